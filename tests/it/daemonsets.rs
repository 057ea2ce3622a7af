//! Summaries and lists of DaemonSets, beside `kubectl get daemonsets`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{
    api::Api,
    controlplane::ControlPlane,
    history::{numbers, same_history},
    rollbackd::Rollbackd,
    space::{Space, daemonset},
    wait::until,
};

/// A DaemonSet that runs nowhere.
fn idle(name: &str, labels: Value) -> Value {
    let mut object = daemonset(name, "img:1");
    object["metadata"]["labels"] = labels;
    object["spec"]["template"]["spec"]["nodeName"] = "nowhere".into();
    object
}

/// Waits until the list in rollbackd holds this many DaemonSets.
async fn filled(api: &Api, space: &Space, count: usize) {
    let path = format!("/daemonsets/{}", space.namespace);
    api.shows(&path, "all DaemonSets", |list| list["items"].as_array().unwrap().len() == count).await;
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().expect("a list").iter();
    items.map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
}

/// A label selector as the value of a query parameter.
fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test]
async fn a_summary_says_what_the_object_says() {
    let space = Space::new(ControlPlane::shared()).await;
    let mut object = daemonset("agent", "img:1");
    object["spec"]["template"]["spec"]["initContainers"] = json!([{"name": "setup", "image": "init:1"}]);
    space.kubectl.create(&object).await;
    space.rolled_out("agent").await;
    space.set_image("agent", "img:unready").await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;

    // A rollout that hangs, then one that is complete, then one that waits for somebody.
    let path = space.path("agent");
    for (phase, change) in [
        ("updating", Value::Null),
        (
            "complete",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "img:3"}]}}}}),
        ),
        (
            "updating",
            json!({"spec": {
                "updateStrategy": {"type": "OnDelete", "rollingUpdate": null},
                "template": {"spec": {"containers": [{"name": "main", "image": "img:4"}]}},
            }}),
        ),
    ] {
        if !change.is_null() {
            space.patch("agent", &change).await;
        }
        until(&format!("the summary in phase {phase}"), async || {
            let object = space.observed("agent").await;
            let summary = api.get(&path).await.expect(200);
            let expected = expected(&space, &object, &summary, phase).await;
            if summary == expected { Ok(()) } else { Err(format!("{summary}\nis not\n{expected}")) }
        })
        .await;
        let listed = api.get(&format!("/daemonsets/{}", space.namespace)).await.expect(200);
        assert_eq!(listed["items"][0]["phase"], phase);
    }
    assert_eq!(numbers(&same_history(&space, api, "agent", |all| all.len() == 4).await), [1, 2, 3, 4]);
}

async fn expected(space: &Space, object: &Value, summary: &Value, phase: &str) -> Value {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    let revisions = space.revisions().await;
    let current = revisions.last().expect("a revision");
    let link = space.path("agent")[1..].to_owned();
    let image = &spec["template"]["spec"]["containers"][0]["image"];
    let count = |field: &str| status[field].as_i64().unwrap_or_default();
    let message = if spec["updateStrategy"]["type"] == "OnDelete" {
        // kubectl refuses to tell.
        summary["message"].clone()
    } else {
        let printed = space.kubectl.beside(&["rollout", "status", "daemonset/agent", "--watch=false"]).await;
        printed.map_or(summary["message"].clone(), |printed| printed.stdout.trim_end().into())
    };
    json!({
        "namespace": space.namespace,
        "name": "agent",
        "uid": metadata["uid"],
        "generation": metadata["generation"],
        "currentRevision": current["revision"],
        "changeCause": current["metadata"]["annotations"]["kubernetes.io/change-cause"],
        "images": [
            {"container": "setup", "image": "init:1", "init": true},
            {"container": "main", "image": image, "init": false},
        ],
        "updateStrategy": spec["updateStrategy"]["type"],
        "phase": phase,
        "message": message,
        "observedGeneration": status["observedGeneration"],
        "desiredNumberScheduled": count("desiredNumberScheduled"),
        "currentNumberScheduled": count("currentNumberScheduled"),
        "updatedNumberScheduled": count("updatedNumberScheduled"),
        "numberReady": count("numberReady"),
        "numberAvailable": count("numberAvailable"),
        "numberUnavailable": count("numberUnavailable"),
        "numberMisscheduled": count("numberMisscheduled"),
        "managedBy": [],
        "links": {
            "self": link,
            "revisions": format!("{link}/revisions"),
            "status": format!("{link}/status"),
            "rollback": format!("{link}/rollback"),
        },
    })
}

#[tokio::test]
#[ignore = "compares with the real kubectl"]
async fn label_selectors_select_as_in_kubectl() {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    for (name, labels) in [
        ("none", json!({})),
        ("web", json!({"app": "web", "tier": "edge", "empty": ""})),
        ("api", json!({"app": "api", "tier": "core", "in": "notin"})),
        ("db", json!({"app": "db", "example.com/Tier_1.x": "core", "size": "10"})),
        ("odd", json!({"app": "In", "size": "3", "A": "a", "n": "9223372036854775807"})),
    ] {
        space.kubectl.create(&idle(name, labels)).await;
    }
    filled(&rollbackd.api, &space, 5).await;
    let good = [
        "",
        " ",
        "app",
        "!app",
        "! app",
        "app=web",
        "app==web",
        "app = web",
        "app!=web",
        "app=",
        "empty=",
        "empty==",
        "empty",
        "empty!=",
        "missing!=",
        "app=web,tier=edge",
        "app=web,tier=core",
        " app = web , tier = edge ",
        "app in (web,api)",
        "app in (web)",
        "app in ( web , api )",
        "app in(web)",
        "app notin (web,api)",
        "app notin (web),app",
        "missing notin (a)",
        "missing in (a)",
        "app in ()",
        "empty in ()",
        "empty in (,x)",
        "empty notin ()",
        "example.com/Tier_1.x=core",
        "example.com/Tier_1.x",
        "in=notin",
        "in in (notin)",
        "in",
        "notin",
        "app=In",
        "app in (In,in)",
        "A=a",
        "a=a",
        "app,!tier",
        "!missing,app in (db,odd,In)",
        "app\t=\tweb",
        "app in (web),tier notin (core),empty",
        "size>9",
        "size<9",
        "size>10",
        "size<0,app",
        "size>9,size<11",
        "app>1",
        "missing<1",
        "n>9223372036854775806",
    ];
    let bad = [
        ",",
        "app,",
        ",app",
        "app,,tier",
        "=web",
        "app=web=x",
        "app in web",
        "app in (web",
        "app in web)",
        "app (web)",
        "app>web",
        "app web",
        "-app",
        "app=-",
        "a/b/c",
        "A.b/c",
        "app=é",
        "!!app",
        "!app=web",
        "app in ((web))",
        "()",
        "app in",
        "app notin",
        "app=web)",
        "(app=web",
        "app=!web",
        "app===web",
        "app=>web",
        "size>",
        "size>1.5",
        "size>(1)",
        "size>9223372036854775808",
        "app>=1",
        "size > -4",
        "size>+9",
        "app=\"web\"",
        "app='web'",
        "app;tier",
        "app|tier",
        "app in (web)(api)",
        "app in (web) tier",
        "a%b",
        "/app",
        "app/",
    ];
    let long = format!("app={}", "x".repeat(64));
    let long_key = format!("{}=x", "x".repeat(64));
    for selector in good.iter().chain(&bad).copied().chain([long.as_str(), long_key.as_str()]) {
        let query = format!("/daemonsets/{}?labelSelector={}", space.namespace, encoded(selector));
        let answer = rollbackd.api.get(&query).await;
        let args = ["get", "daemonsets", "-o", "jsonpath={.items[*].metadata.name}", "-l", selector];
        let printed = space.kubectl.run(&args).await;
        if printed.code == 0 {
            let kubectls: Vec<&str> = printed.stdout.split_whitespace().collect();
            assert_eq!(names(&answer.expect(200)), kubectls, "{selector:?}");
        } else {
            let problem = answer.problem(400, "invalid-request");
            assert_eq!(problem["errors"][0]["parameter"], "labelSelector", "{selector:?}");
        }
        let expect_good = good.contains(&selector);
        assert_eq!(printed.code == 0, expect_good, "{selector:?}: {printed:?}");
    }
}

#[tokio::test]
async fn pages_show_each_daemonset_once() {
    let space = Space::new(ControlPlane::shared()).await;
    let other = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    let mut all = BTreeSet::new();
    for name in ["a", "a-b", "a.b", "a0", "b", "z9", "z-9"] {
        for (space, tier) in [(&space, "edge"), (&other, "core")] {
            space.kubectl.create(&idle(name, json!({"tier": tier, "page": space.namespace}))).await;
            all.insert((space.namespace.clone(), name.to_owned()));
        }
    }
    filled(api, &space, 7).await;
    filled(api, &other, 7).await;

    let both = encoded(&format!("page in ({},{})", space.namespace, other.namespace));
    for limit in [1, 2, 3, 5, 7, 14, 1000] {
        for (path, mut left) in [
            (format!("/daemonsets?labelSelector={both}&limit={limit}"), all.clone()),
            (
                format!("/daemonsets/{}?limit={limit}", space.namespace),
                all.iter().filter(|(namespace, _)| *namespace == space.namespace).cloned().collect(),
            ),
        ] {
            let (mut next, mut pages, mut last) = (String::new(), 0, None);
            let expected = left.len().div_ceil(limit);
            loop {
                let page = api.get(&format!("{path}{next}")).await.expect(200);
                pages += 1;
                for item in page["items"].as_array().unwrap() {
                    let key = ["namespace", "name"].map(|field| item[field].as_str().unwrap().to_owned());
                    assert!(last.as_ref().is_none_or(|last| *last < key), "{key:?} is out of order");
                    assert!(left.remove(&(key[0].clone(), key[1].clone())), "{key:?} is shown twice");
                    last = Some(key);
                }
                let Some(token) = page["continue"].as_str() else { break };
                next = format!("&continue={token}");
            }
            assert!(left.is_empty(), "{limit}: {left:?}");
            assert_eq!(pages, expected, "{path}");
        }
    }
    // A DaemonSet that is deleted or made between two pages moves nobody else.
    let path = format!("/daemonsets/{}", space.namespace);
    let first = api.get(&format!("{path}?limit=3")).await.expect(200);
    let token = first["continue"].as_str().unwrap();
    space.kubectl.ok(&["delete", "daemonset", &names(&first)[2]]).await;
    space.kubectl.create(&idle("a-0", json!({}))).await;
    filled(api, &space, 7).await;
    until("the deleted one to vanish", async || {
        let shown = names(&api.get(&path).await.expect(200));
        if shown.contains(&names(&first)[2]) { Err(shown) } else { Ok(()) }
    })
    .await;
    let rest = api.get(&format!("{path}?limit=100&continue={token}")).await.expect(200);
    assert_eq!(names(&rest), ["a0", "b", "z-9", "z9"]);

    // A token leads on only where it was given.
    for wrong in [
        format!("/daemonsets?limit=3&continue={token}"),
        format!("/daemonsets/{}?limit=3&continue={token}", other.namespace),
        format!("{path}?limit=3&labelSelector=tier&continue={token}"),
        format!("{path}?continue=x"),
        format!("{path}?continue="),
        format!("{path}?continue={}", &token[1..]),
        format!("{path}?continue=%00%FF"),
        format!("{path}?continue={}", "A".repeat(4_000)),
    ] {
        let problem = api.get(&wrong).await.problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["parameter"], "continue", "{wrong}");
    }
}

#[tokio::test]
async fn unknown_and_wrong_parameters_are_refused() {
    let space = Space::new(ControlPlane::shared()).await;
    space.kubectl.create(&idle("agent", json!({}))).await;
    let rollbackd = Rollbackd::start().await;
    filled(&rollbackd.api, &space, 1).await;
    let list = format!("/daemonsets/{}", space.namespace);
    let one = space.path("agent");
    for (path, parameter) in [
        (format!("{list}?limit=0"), "limit"),
        (format!("{list}?limit=-1"), "limit"),
        (format!("{list}?limit=1001"), "limit"),
        (format!("{list}?limit=x"), "limit"),
        (format!("{list}?limit="), "limit"),
        (format!("{list}?limit=99999999999999999999"), "limit"),
        (format!("{list}?fieldSelector=a"), "fieldSelector"),
        (format!("{list}?labelselector=a"), "labelselector"),
        ("/daemonsets?watch=true".to_owned(), "watch"),
        (format!("{one}?pretty=true"), "pretty"),
        (format!("{one}?labelSelector=a"), "labelSelector"),
        (format!("{one}/revisions?limit=1"), "limit"),
        (format!("{one}/revisions/1?output=yaml"), "output"),
    ] {
        let problem = rollbackd.api.get(&path).await.problem(400, "invalid-request");
        let error = &problem["errors"][0];
        let named = error["parameter"] == parameter
            || error["detail"].as_str().is_some_and(|detail| detail.contains(&format!("`{parameter}`")));
        assert!(named, "{path}: {problem}");
    }
    let twice = format!("{list}?limit=1&limit=2");
    rollbackd.api.get(&twice).await.problem(400, "invalid-request");
    // A namespace that does not exist is empty, as in kubectl.
    assert_eq!(rollbackd.api.get("/daemonsets/no-such-namespace").await.expect(200), json!({"items": []}));
    rollbackd.api.get("/daemonsets/No").await.problem(400, "invalid-request");
}

#[tokio::test]
async fn what_the_caller_has_already_is_not_sent_again() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    same_history(&space, api, "agent", |all| all.len() == 2).await;
    let object = space.kubectl.get("daemonset", "agent").await;
    let pinned =
        format!("\"{}.{}.", object["metadata"]["uid"].as_str().unwrap(), object["metadata"]["generation"]);
    let path = space.path("agent");
    let complete = |summary: &Value| summary["phase"] == "complete" && summary["currentRevision"] == 2;
    api.shows(&path, "the end of the rollout", complete).await;

    let paths = [
        path.clone(),
        format!("{path}/revisions"),
        format!("{path}/revisions/1"),
        format!("{path}/revisions/2"),
    ];
    let mut tags = Vec::new();
    for path in &paths {
        let answer = api.get(path).await;
        let tag = answer.header("etag").to_owned();
        assert!(tag.starts_with(&pinned), "{tag}");
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            let again =
                api.send(api.request(reqwest::Method::GET, path).header("if-none-match", &known)).await;
            assert_eq!((again.status, again.text.as_str()), (304, ""), "{path} {known}");
            assert_eq!(again.header("etag"), tag);
        }
        for unknown in ["\"other\"", "other", "", &tag.replace('.', "-")] {
            let again =
                api.send(api.request(reqwest::Method::GET, path).header("if-none-match", unknown)).await;
            assert_eq!((again.status, &again.text), (200, &answer.text), "{path} {unknown}");
        }
        tags.push(tag);
    }
    // A change of what is shown changes the tag; the generation is part of it.
    space.set_image("agent", "img:3").await;
    api.shows(&path, "the new revision", |summary| summary["currentRevision"] == 3).await;
    for (path, tag) in paths.iter().zip(&tags) {
        let again = api.send(api.request(reqwest::Method::GET, path).header("if-none-match", tag)).await;
        assert_eq!(again.status, 200, "{path}");
        assert!(!again.header("etag").starts_with(&pinned), "{path}");
    }
}

#[tokio::test]
#[ignore = "needs server-side apply"]
async fn tools_that_keep_the_manifest_are_named() {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let with = |name: &str, kind: &str, key: &str, value: &str| {
        let mut object = idle(name, json!({}));
        object["metadata"][kind][key] = value.into();
        object
    };
    for object in [
        idle("nobody", json!({})),
        with(
            "argo",
            "annotations",
            "argocd.argoproj.io/tracking-id",
            "agents:apps/DaemonSet:monitoring/agent",
        ),
        with("flux", "labels", "kustomize.toolkit.fluxcd.io/name", "infra"),
        with("flux-helm", "labels", "helm.toolkit.fluxcd.io/name", "agents"),
        with("helm", "annotations", "meta.helm.sh/release-name", "agents"),
        with("instance", "labels", "app.kubernetes.io/instance", "agents"),
        with("kapp", "labels", "kapp.k14s.io/app", "17"),
        with("rancher", "labels", "objectset.rio.cattle.io/hash", "x"),
        with("addon", "labels", "addonmanager.kubernetes.io/mode", "Reconcile"),
    ] {
        space.kubectl.create(&object).await;
    }
    space.kubectl.apply(&idle("applied", json!({}))).await;
    space.kubectl.feed(&["apply", "--server-side", "-f", "-"], &idle("server-side", json!({}))).await;
    let named = ["apply", "--server-side", "--field-manager=portal", "-f", "-"];
    space.kubectl.feed(&named, &idle("portal", json!({}))).await;
    // Whoever applies a label only would not undo a rollback.
    space.kubectl.create(&idle("labelled", json!({}))).await;
    let label = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "labelled", "labels": {"team": "a"}},
    });
    space.kubectl.feed(&["apply", "--server-side", "--field-manager=labeller", "-f", "-"], &label).await;
    // Argo CD applies on the server, too, and on the client with the annotation of kubectl.
    let argo = with("argo-ssa", "annotations", "argocd.argoproj.io/tracking-id", "x");
    let by_argo = "--field-manager=argocd-controller";
    space.kubectl.feed(&["apply", "--server-side", by_argo, "-f", "-"], &argo).await;
    space.kubectl.feed(&["apply", by_argo, "-f", "-"], &idle("argo-csa", json!({}))).await;
    space.kubectl.feed(&["apply", "--server-side", by_argo, "-f", "-"], &idle("both", json!({}))).await;
    let shared = ["apply", "--server-side", "--force-conflicts", "--field-manager=portal", "-f", "-"];
    space.kubectl.feed(&shared, &idle("both", json!({}))).await;
    let by_helm = with("helm-4", "annotations", "meta.helm.sh/release-name", "agents");
    space.kubectl.feed(&["apply", "--server-side", "--field-manager=helm", "-f", "-"], &by_helm).await;
    // What was applied on the client first, and on the server from then on.
    space.kubectl.apply(&idle("migrated", json!({}))).await;
    space.kubectl.feed(&["apply", "--server-side", "-f", "-"], &idle("migrated", json!({}))).await;

    let expected = [
        ("nobody", json!([])),
        ("argo", json!([{"tool": "Argo CD", "id": "agents:apps/DaemonSet:monitoring/agent"}])),
        ("argo-ssa", json!([{"tool": "Argo CD", "id": "x", "fieldManager": "argocd-controller"}])),
        ("argo-csa", json!([{"tool": "Argo CD", "fieldManager": "argocd-controller"}])),
        ("flux", json!([{"tool": "Flux", "id": "infra"}])),
        ("flux-helm", json!([{"tool": "Flux", "id": "agents"}])),
        ("helm", json!([{"tool": "Helm", "id": "agents"}])),
        ("helm-4", json!([{"tool": "Helm", "id": "agents", "fieldManager": "helm"}])),
        ("instance", json!([])),
        ("kapp", json!([{"tool": "kapp", "id": "17"}])),
        ("rancher", json!([{"tool": "Rancher"}])),
        ("addon", json!([{"tool": "add-on manager"}])),
        ("applied", json!([{"tool": "kubectl apply", "fieldManager": "kubectl-client-side-apply"}])),
        ("server-side", json!([{"tool": "server-side apply", "id": "kubectl", "fieldManager": "kubectl"}])),
        ("migrated", json!([{"tool": "server-side apply", "id": "kubectl", "fieldManager": "kubectl"}])),
        ("portal", json!([{"tool": "server-side apply", "id": "portal", "fieldManager": "portal"}])),
        (
            "both",
            json!([
                {"tool": "Argo CD", "fieldManager": "argocd-controller"},
                {"tool": "server-side apply", "id": "portal", "fieldManager": "portal"},
            ]),
        ),
        ("labelled", json!([])),
    ];
    for (name, managed_by) in expected {
        let is = |summary: &Value| summary["managedBy"] == managed_by;
        rollbackd.api.shows(&space.path(name), &format!("{name} to be of {managed_by}"), is).await;
    }
}
