//! Lists of revisions, beside `kubectl rollout history`.

use serde_json::{Value, json};

use crate::support::{
    controlplane::ControlPlane,
    history::{by_hand, current, numbers, same_history},
    rollbackd::Rollbackd,
    space::{Space, daemonset},
    wait::until,
};

fn causes(revisions: &[Value]) -> Vec<Option<&str>> {
    revisions.iter().map(|revision| revision["changeCause"].as_str()).collect()
}

async fn annotate(space: &Space, object: &str, cause: &str) {
    let cause = format!("kubernetes.io/change-cause={cause}");
    space.kubectl.ok(&["annotate", object, "--overwrite", &cause]).await;
}

async fn uid(space: &Space, name: &str) -> String {
    space.kubectl.get("daemonset", name).await["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn one_revision_without_a_change_cause_is_a_history() {
    let space = Space::new(ControlPlane::shared()).await;
    let mut object = daemonset("agent", "img:1");
    object["metadata"]["annotations"] = json!({});
    object["spec"]["template"]["spec"]["initContainers"] = json!([{"name": "setup", "image": "init:1"}]);
    space.kubectl.create(&object).await;
    let rollbackd = Rollbackd::start().await;

    let revisions = same_history(&space, &rollbackd.api, "agent", |all| current(all) == Some(1)).await;
    assert_eq!((numbers(&revisions), causes(&revisions)), (vec![1], vec![None]));
    let images = json!([
        {"container": "setup", "image": "init:1", "init": true},
        {"container": "main", "image": "img:1", "init": false},
    ]);
    assert_eq!(revisions[0]["images"], images);
    assert_eq!(revisions[0]["restorable"], true);

    // An empty change-cause is none, too.
    annotate(
        &space,
        &format!("controllerrevision/{}", revisions[0]["controllerRevision"].as_str().unwrap()),
        "",
    )
    .await;
    let revisions = same_history(&space, &rollbackd.api, "agent", |all| all.len() == 1).await;
    assert_eq!(causes(&revisions), [None]);
}

#[tokio::test]
async fn a_change_cause_counts_if_it_is_set_before_its_change() {
    let space = Space::new(ControlPlane::shared()).await;
    space.kubectl.create(&daemonset("agent", "img:1")).await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    same_history(&space, api, "agent", |all| current(all) == Some(1)).await;

    // Set afterwards, the old text stays in the new revision.
    space.kubectl.ok(&["set", "image", "daemonset/agent", "main=img:2"]).await;
    same_history(&space, api, "agent", |all| current(all) == Some(2)).await;
    annotate(&space, "daemonset/agent", "too late").await;
    // Set before, it is in the next revision.
    space.kubectl.ok(&["set", "image", "daemonset/agent", "main=img:3"]).await;
    let revisions = same_history(&space, api, "agent", |all| current(all) == Some(3)).await;
    assert_eq!(numbers(&revisions), [1, 2, 3]);
    assert_eq!(causes(&revisions), [Some("image img:1"), Some("image img:1"), Some("too late")]);

    // Set on the ControllerRevision itself, it is shown and survives what the controller does.
    let second = format!("controllerrevision/{}", revisions[1]["controllerRevision"].as_str().unwrap());
    annotate(&space, &second, "what it really was").await;
    space.set_image("agent", "img:4").await;
    let revisions = same_history(&space, api, "agent", |all| current(all) == Some(4)).await;
    assert_eq!(
        causes(&revisions),
        [Some("image img:1"), Some("what it really was"), Some("too late"), Some("image img:4")]
    );
}

/// Where kubectl is silent: the DaemonSet's own annotation then speaks of the undone change, and nothing
/// but rollbackd's record says why the old template is back.
#[tokio::test]
#[ignore = "needs kubectl rollout undo"]
async fn a_restored_revision_keeps_its_first_change_cause() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let rollbackd = Rollbackd::start().await;
    same_history(&space, &rollbackd.api, "agent", |all| current(all) == Some(2)).await;

    space.kubectl.ok(&["rollout", "undo", "daemonset/agent"]).await;
    let revisions = same_history(&space, &rollbackd.api, "agent", |all| current(all) == Some(3)).await;
    assert_eq!(numbers(&revisions), [2, 3]);
    assert_eq!(causes(&revisions), [Some("image img:2"), Some("image img:1")]);
    let object = space.kubectl.get("daemonset", "agent").await;
    assert_eq!(object["metadata"]["annotations"]["kubernetes.io/change-cause"], "image img:2");
    let path = space.path("agent");
    let summary = rollbackd.api.shows(&path, "the revision", |one| one["currentRevision"] == 3).await;
    assert_eq!(summary["changeCause"], "image img:1");
}

/// Where kubectl is wrong: of two ControllerRevisions with one number it hides one.
#[tokio::test]
#[ignore = "compares with the real kubectl"]
async fn two_revisions_with_one_number_are_both_listed_and_asked_for_by_name() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    let first = &space.revisions().await[0];
    let mut twin = by_hand("twin", "agent", Some(&uid(&space, "agent").await), 1, &first["data"]);
    twin["data"]["spec"]["template"]["spec"]["containers"][0]["image"] = "img:planted".into();
    twin["metadata"]["annotations"] = json!({"kubernetes.io/change-cause": "planted"});
    space.kubectl.create(&twin).await;

    let path = format!("{}/revisions", space.path("agent"));
    let list = api.shows(&path, "both", |list| list["items"].as_array().unwrap().len() == 3).await;
    let items = list["items"].as_array().unwrap();
    let name = |index: usize| items[index]["controllerRevision"].as_str().unwrap();
    assert_eq!(numbers(items), [1, 1, 2]);
    assert!(name(0) < name(1), "equal numbers are ordered by name");
    let text = api.text(&path).await;
    assert!(text.contains("\n1         image img:1\n1         planted\n2         image img:2\n"), "{text}");
    let shown = space.kubectl.ok(&["rollout", "history", "daemonset", "agent"]).await;
    assert_eq!(shown.lines().filter(|line| line.starts_with("1 ")).count(), 1, "{shown}");

    let problem = api.get(&format!("{path}/1")).await.problem(422, "ambiguous-revision");
    assert_eq!(
        problem["detail"],
        format!("revision 1 is ambiguous: ask for one of {}, {}", name(0), name(1))
    );
    let plain = api.get_as(&format!("{path}/1"), "text/plain").await;
    assert_eq!(plain.status, 422);
    assert_eq!(plain.text, format!("error: {}\n", problem["detail"].as_str().unwrap()));
    for item in &items[..2] {
        let link = format!("/{}", item["links"]["self"].as_str().unwrap());
        let one = api.get(&link).await.expect(200);
        assert_eq!(one["controllerRevision"], item["controllerRevision"]);
        assert_eq!(one["template"]["spec"]["containers"][0]["image"], item["images"][0]["image"]);
    }
}

#[tokio::test]
#[ignore = "needs the controller of StatefulSets"]
async fn revisions_of_other_owners_are_not_listed() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let rollbackd = Rollbackd::start().await;
    let data = &space.revisions().await[0]["data"];

    // A StatefulSet's, made by its own controller, and one of a DaemonSet that is gone, both with our labels.
    let statefulset = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "agent"},
        "spec": {
            "replicas": 0, "serviceName": "agent",
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {
                "metadata": {"labels": {"app": "agent"}},
                "spec": {"containers": [{"name": "main", "image": "img:stateful"}]},
            },
        },
    });
    space.kubectl.create(&statefulset).await;
    let stranger = by_hand("stranger", "agent", Some("00000000-0000-4000-8000-000000000000"), 7, data);
    space.kubectl.create(&stranger).await;
    until("the StatefulSet's revision", async || {
        let all = space.kubectl.list("controllerrevisions").await;
        let of_statefulset =
            all.iter().any(|object| object["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet");
        if of_statefulset { Ok(()) } else { Err(all.len()) }
    })
    .await;
    space.set_image("agent", "img:3").await;
    let revisions = same_history(&space, &rollbackd.api, "agent", |all| current(all) == Some(3)).await;
    assert_eq!(numbers(&revisions), [1, 2, 3]);
}

#[tokio::test]
#[ignore = "needs adoption by the controller"]
async fn a_revision_whose_labels_are_edited_vanishes_and_an_orphan_is_adopted() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2", "img:3"]).await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    let first = space.revisions().await[0]["metadata"]["name"].as_str().unwrap().to_owned();

    space.kubectl.ok(&["label", "controllerrevision", &first, "app=elsewhere", "--overwrite"]).await;
    let revisions = same_history(&space, api, "agent", |all| all.len() == 2).await;
    assert_eq!(numbers(&revisions), [2, 3]);
    let path = format!("{}/revisions", space.path("agent"));
    for gone in ["1", &first] {
        let problem = api.get(&format!("{path}/{gone}")).await.problem(404, "revision-not-found");
        assert_eq!(problem["detail"], "unable to find the specified revision");
    }
    // The controller lets go of it, and takes it back once it is labelled again.
    until("the controller to release it", async || {
        let object = space.kubectl.get("controllerrevision", &first).await;
        let owners = object["metadata"]["ownerReferences"].clone();
        if owners.is_null() { Ok(()) } else { Err(owners) }
    })
    .await;
    space.kubectl.ok(&["label", "controllerrevision", &first, "app=agent", "--overwrite"]).await;
    let revisions = same_history(&space, api, "agent", |all| all.len() == 3).await;
    assert_eq!((numbers(&revisions), current(&revisions)), (vec![1, 2, 3], Some(3)));

    // Whatever an orphan holds, it is adopted and listed.
    space.kubectl.create(&by_hand("foreign", "agent", None, 9, &json!({"a": 1}))).await;
    let revisions = same_history(&space, api, "agent", |all| all.len() == 4).await;
    let foreign = revisions.iter().find(|one| one["controllerRevision"] == "foreign").unwrap();
    assert_eq!(foreign["notRestorableReason"], "its data holds no spec.template");
    // The controller raises the current revision above it.
    let revisions = same_history(&space, api, "agent", |all| current(all) == Some(10)).await;
    assert_eq!(numbers(&revisions), [1, 2, 9, 10]);
}

#[tokio::test]
#[ignore = "needs adoption by the controller"]
async fn a_history_survives_an_orphaning_deletion() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    space.kubectl.ok(&["rollout", "undo", "daemonset/agent"]).await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    let before = same_history(&space, api, "agent", |all| current(all) == Some(3)).await;

    space.kubectl.ok(&["delete", "daemonset", "agent", "--cascade=orphan"]).await;
    until("rollbackd to see it gone", async || {
        let answer = api.get(&format!("{}/revisions", space.path("agent"))).await;
        if answer.status == 404 { Ok(()) } else { Err(answer) }
    })
    .await;
    space.kubectl.create(&daemonset("agent", "img:3")).await;
    let after =
        same_history(&space, api, "agent", |all| (numbers(all), current(all)) == (vec![2, 3, 4], Some(4)))
            .await;
    for (old, new) in before.iter().zip(&after) {
        assert_eq!(old["controllerRevision"], new["controllerRevision"]);
        assert_eq!(old["changeCause"], new["changeCause"]);
    }
}

#[tokio::test]
async fn old_revisions_are_kept_up_to_the_limit_and_as_long_as_pods_run_them() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2", "img:3", "img:4"]).await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    let limit =
        async |limit: i64| space.patch("agent", &json!({"spec": {"revisionHistoryLimit": limit}})).await;
    same_history(&space, api, "agent", |all| numbers(all) == [1, 2, 3, 4]).await;

    limit(1).await;
    same_history(&space, api, "agent", |all| numbers(all) == [3, 4]).await;
    limit(0).await;
    same_history(&space, api, "agent", |all| numbers(all) == [4]).await;
    // A rollout that hangs: pods of the old revision still run, so that it stays beyond the limit.
    space.set_image("agent", "img:unready").await;
    let revisions = same_history(&space, api, "agent", |all| current(all) == Some(5)).await;
    assert_eq!(numbers(&revisions), [4, 5]);
    space.set_image("agent", "img:6").await;
    same_history(&space, api, "agent", |all| numbers(all) == [6]).await;
    limit(10).await;
    space.set_image("agent", "img:7").await;
    let revisions = same_history(&space, api, "agent", |all| current(all) == Some(7)).await;
    assert_eq!(numbers(&revisions), [6, 7]);
}

#[tokio::test]
#[ignore = "needs a foreground deletion"]
async fn every_kind_of_selector_finds_its_revisions() {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let selectors = [
        json!({"matchLabels": {"app": "agent", "example.com/Tier_1.x": "", "in": "notin"}}),
        json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["other", "agent"]}]}),
        json!({"matchExpressions": [{"key": "example.com/Tier_1.x", "operator": "NotIn", "values": ["old", "z"]}]}),
        json!({"matchExpressions": [{"key": "in", "operator": "Exists"}]}),
        json!({"matchExpressions": [{"key": "absent", "operator": "DoesNotExist"}]}),
        json!({
            "matchLabels": {"in": "notin", "app": "agent"},
            "matchExpressions": [
                {"key": "old", "operator": "DoesNotExist"},
                {"key": "app", "operator": "NotIn", "values": ["b", "a"]},
                {"key": "app", "operator": "In", "values": ["agent"]},
                {"key": "app", "operator": "Exists"},
            ],
        }),
    ];
    for selector in selectors {
        let mut object = daemonset("agent", "img:1");
        object["spec"]["selector"] = selector;
        object["spec"]["template"]["metadata"]["labels"] =
            json!({"app": "agent", "example.com/Tier_1.x": "", "in": "notin"});
        space.kubectl.create(&object).await;
        same_history(&space, &rollbackd.api, "agent", |all| current(all) == Some(1)).await;
        space.set_image("agent", "img:2").await;
        let revisions = same_history(&space, &rollbackd.api, "agent", |all| current(all) == Some(2)).await;
        assert_eq!(numbers(&revisions), [1, 2]);
        space.kubectl.ok(&["delete", "daemonset", "agent", "--cascade=foreground"]).await;
    }
}

/// A ControllerRevision's name is the DaemonSet's, a dash and a hash: with a name of 253 characters none
/// can be made, and the DaemonSet never gets a pod.
#[tokio::test]
#[ignore = "needs the API server's limit of names"]
async fn names_may_have_dots_and_be_long() {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let longest = format!("{}{}", "long.".repeat(50), "end");
    for (name, expected) in [("v1.2-agent.example.com", 1), (&longest[12..], 1), (longest.as_str(), 0)] {
        let mut object = daemonset(name, "img:1");
        object["spec"]["selector"]["matchLabels"]["app"] = "agent".into();
        object["spec"]["template"]["metadata"]["labels"]["app"] = "agent".into();
        space.kubectl.create(&object).await;
        let revisions = same_history(&space, &rollbackd.api, name, |all| all.len() == expected).await;
        for revision in &revisions {
            let link = format!("/{}", revision["links"]["self"].as_str().unwrap());
            assert_eq!(rollbackd.api.get(&link).await.expect(200)["revision"], revision["revision"]);
        }
        let is_current = |summary: &Value| summary.get("currentRevision").is_some() == (expected == 1);
        let summary = rollbackd.api.shows(&space.path(name), "the current revision", is_current).await;
        assert_eq!(summary["name"], name);
    }
}

#[tokio::test]
async fn what_does_not_exist_is_told_in_kubectls_words() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1"]).await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;

    let stderr = "Error from server (NotFound): daemonsets.apps \"x\" not found\n";
    if let Some(printed) = space.kubectl.beside(&["rollout", "history", "daemonset", "x"]).await {
        assert_eq!((printed.code, printed.stderr.as_str()), (1, stderr));
    }
    for suffix in ["/revisions", "/revisions/1", "/status", ""] {
        let path = format!("{}{suffix}", space.path("x"));
        let problem = api.get(&path).await.problem(404, "daemonset-not-found");
        assert_eq!(problem["detail"], "daemonsets.apps \"x\" not found");
        assert_eq!(problem["instance"], path);
        let plain = api.get_as(&path, "text/plain").await;
        if suffix.is_empty() {
            // A summary has no text, but the answer to who wants one is still a plain line.
            assert_eq!(plain.header("content-type"), "text/plain; charset=utf-8");
            continue;
        }
        assert_eq!((plain.status, plain.text.as_str()), (404, stderr));
        assert_eq!(plain.header("content-type"), "text/plain; charset=utf-8");
    }
    for name in
        ["A", "a_b", "-a", "a..b", "a%20b", "%C3%A4", "%00", "a%0A", "%2e%2e%2f", "a%2Fb", &"a".repeat(254)]
    {
        let path = format!("/daemonsets/{}/{name}/revisions", space.namespace);
        let problem = api.get(&path).await.problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["parameter"], "name", "{problem}");
    }
    for namespace in ["A", "a.b", "%C3%A4", &"a".repeat(64)] {
        let problem =
            api.get(&format!("/daemonsets/{namespace}/x/revisions")).await.problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["parameter"], "namespace", "{problem}");
    }
    for path in
        ["/daemonsets/%FF/x/revisions", "/daemonsets/a/%FF/revisions", "/daemonsets/a/b/revisions/%FF"]
    {
        api.get(path).await.problem(400, "invalid-request");
    }
    api.get("/daemonsets/no-such-namespace/x/revisions").await.problem(404, "daemonset-not-found");
    api.get("/daemonsets/a/b/revisions/1/2").await.problem(404, "unknown-path");
}

#[tokio::test]
async fn a_revision_that_does_not_exist_is_told_in_kubectls_words() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1"]).await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    let path = format!("{}/revisions", space.path("agent"));
    let kubectl = async |number: &str| {
        let flag = format!("--revision={number}");
        space.kubectl.beside(&["rollout", "history", "daemonset", "agent", &flag]).await
    };

    for number in ["99", "9223372036854775807", "-1"] {
        let plain = api.get_as(&format!("{path}/{number}"), "text/plain").await;
        assert_eq!(plain.status, if number == "-1" { 400 } else { 404 });
        assert!(plain.text.starts_with("error: "), "{plain:?}");
        if let Some(printed) = kubectl(number).await {
            assert_eq!((1, plain.text), (printed.code, printed.stderr));
        }
    }
    for number in ["99", "9223372036854775807", "abc", "1.0", "agent-0000", "0x1"] {
        let problem = api.get(&format!("{path}/{number}")).await.problem(404, "revision-not-found");
        assert_eq!(problem["detail"], "unable to find the specified revision");
    }
    // To kubectl, 0 is all revisions.
    if let Some(printed) = kubectl("0").await {
        assert_eq!(printed.stdout, api.text(&path).await);
    }
    for number in ["0", "-1", "-0", "9223372036854775808", "99999999999999999999999999999999"] {
        let problem = api.get(&format!("{path}/{number}")).await.problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["parameter"], "revision");
        let detail = problem["errors"][0]["detail"].as_str().unwrap();
        assert!(detail.contains(number), "{detail}");
    }
    for rubbish in ["%20", "1%20", "%C2%B2", "%00", "1%0A", "a%2Fb", "ABC", "1e3_", "+", "%25", "..%2f"] {
        let problem = api.get(&format!("{path}/{rubbish}")).await.problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["parameter"], "revision", "{rubbish}");
        let plain = api.get_as(&format!("{path}/{rubbish}"), "text/plain").await;
        assert!(plain.text.starts_with("error: ") && plain.text.lines().count() == 1, "{plain:?}");
    }
}
