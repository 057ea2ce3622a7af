//! What is shipped in `deploy/`, on a real control plane: it is accepted, it gives the rights that it says and no
//! others, and the admission policy holds rollbackd's account to what a rollback changes.

use std::{collections::BTreeSet, path::Path};

use serde_json::{Value, json};

use crate::support::{
    controlplane::ControlPlane,
    kubectl::Kubectl,
    rollbackd::Rollbackd,
    space::Space,
    wait::{until, until_is},
};

/// rollbackd's account, as the API server calls it.
const ACCOUNT: &str = "system:serviceaccount:rollbackd:rollbackd";

fn shipped(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path).to_str().unwrap().to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What a user (`--as` and who) may do in a namespace beyond what every user or every account may, a line for each
/// resource.
async fn rights(kubectl: &Kubectl, user: &[&str], namespace: &str) -> BTreeSet<String> {
    let list = async |who: &[&str]| {
        let args = [&["auth", "can-i", "--list", "--no-headers", "--namespace", namespace], who].concat();
        let printed = kubectl.ok(&args).await;
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        printed.lines().map(words).collect::<BTreeSet<_>>()
    };
    let everybody = if user[1].starts_with("system:serviceaccount:") {
        list(&["--as", "system:serviceaccount:default:default"]).await
    } else {
        list(&["--as", "somebody"]).await
    };
    list(user).await.difference(&everybody).cloned().collect()
}

/// Waits until these are a user's rights: the API server reads roles and bindings from watches of its own.
async fn has(kubectl: &Kubectl, user: &[&str], namespace: &str, expected: BTreeSet<String>) {
    let what = format!("the rights of {user:?} in {namespace}");
    until_is(&what, expected, async || rights(kubectl, user, namespace).await).await;
}

/// Asks as rollbackd asks.
async fn may(kubectl: &Kubectl, user: &str, namespace: &str, verb: &str, what: [&str; 3]) -> bool {
    let [group, resource, subresource] = what;
    let attributes = json!({
        "namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource,
    });
    kubectl.allows(json!({"user": user, "resourceAttributes": attributes})).await
}

fn lines<const N: usize>(lines: [&str; N]) -> BTreeSet<String> {
    lines.map(ToOwned::to_owned).into()
}

/// Applies a folder or file of `deploy/` with the server's strict validation, which must not even warn.
async fn apply(control_plane: &ControlPlane, how: &str, path: &str) {
    // In the namespaces that stand in it.
    let kubectl = Kubectl::new(control_plane, "admin", "");
    let args = ["apply", "--server-side", "--force-conflicts", "--validate=strict", how, &shipped(path)];
    let printed = kubectl.run(&args).await;
    assert_eq!((printed.code, printed.stderr.as_str()), (0, ""), "{path}: {printed:?}");
}

#[tokio::test]
#[ignore = "applies the manifests to a real API server"]
async fn an_installation_has_the_rights_that_are_used_and_no_others() {
    let control_plane = ControlPlane::private("deploy");
    let kubectl = Kubectl::new(&control_plane, "admin", "rollbackd");
    let itself = ["--as", ACCOUNT];
    let reviews = [
        "subjectaccessreviews.authorization.k8s.io [] [] [create]",
        "tokenreviews.authentication.k8s.io [] [] [create]",
    ];
    let served = [
        "controllerrevisions.apps [] [] [list watch]",
        "daemonsets.apps [] [] [get list watch patch]",
        "events.events.k8s.io [] [] [create]",
    ];
    let all = lines([reviews[0], reviews[1], served[0], served[1], served[2]]);

    // For one namespace: nothing in any other. What another installation has bound is not looked at here.
    kubectl.ok(&["delete", "clusterrolebinding", "rollbackd", "--ignore-not-found"]).await;
    apply(&control_plane, "-k", "overlays/namespaced").await;
    has(&kubectl, &itself, "kube-system", lines(reviews)).await;
    has(&kubectl, &itself, "default", all.clone()).await;
    let deployment = kubectl.get("deployment", "rollbackd").await;
    let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone();
    assert!(env.contains(&json!({"name": "ROLLBACKD_NAMESPACE", "value": "default"})), "{env:?}");

    // For all.
    apply(&control_plane, "-k", "overlays/sqlite").await;
    has(&kubectl, &itself, "kube-system", all).await;

    // Its pod passes Pod Security, quota and priority; only the volume is missing here.
    let pod = until("the Deployment's pod", async || {
        let pods = kubectl.list("pods").await;
        let told = |pod: &Value| pod["status"]["conditions"][0]["message"].as_str().map(ToOwned::to_owned);
        let told = pods.first().and_then(told).filter(|told| told.contains("PersistentVolumeClaim"));
        let deployment = kubectl.get("deployment", "rollbackd").await;
        let status = deployment["status"].clone();
        // None of the installation before it.
        let newest = status["observedGeneration"] == deployment["metadata"]["generation"]
            && status["replicas"] == 1
            && status["updatedReplicas"] == 1
            && pods.len() == 1;
        if newest && told.is_some() { Ok(pods[0].clone()) } else { Err((pods, status)) }
    })
    .await;
    assert_eq!(pod["spec"]["priority"], 2_000_000_000);
    // Neither the admission plugin's token, nor its five minutes.
    assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 3, "{pod}");
    assert!(!pod["spec"]["tolerations"].to_string().contains("300"), "{pod}");
    let budget = until("the disruption budget to be computed", async || {
        let budget = kubectl.get("poddisruptionbudget", "rollbackd").await;
        if budget["status"]["expectedPods"] == 1 { Ok(budget) } else { Err(budget["status"].clone()) }
    })
    .await;
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
    // A pod that isn't ready may be evicted whatever the budget says.
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod["metadata"]["name"]}});
    let path =
        format!("/api/v1/namespaces/rollbackd/pods/{}/eviction", pod["metadata"]["name"].as_str().unwrap());
    kubectl.feed(&["create", "--raw", &path, "-f", "-"], &eviction).await;

    // Pod Security lets the pod in that copies the store, without a warning.
    apply(&control_plane, "-f", "examples/backup/sqlite.yaml").await;

    the_roles_for_callers(&control_plane, &kubectl).await;
}

#[tokio::test]
#[ignore = "applies the manifests to a real API server"]
async fn three_replicas_are_spread_and_a_drain_takes_one_at_a_time() {
    let control_plane = ControlPlane::private("deploy-postgres");
    let kubectl = Kubectl::new(&control_plane, "admin", "rollbackd");
    // The scheduler spreads them over the nodes that take pods by then.
    until("all nodes to take pods", async || {
        let nodes = kubectl.list("nodes").await;
        let ready = |node: &&Value| {
            let conditions = node["status"]["conditions"].as_array();
            let ready =
                conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True");
            ready && node["spec"]["taints"].is_null()
        };
        if nodes.len() >= 3 && nodes.iter().filter(ready).count() == nodes.len() {
            Ok(())
        } else {
            Err(nodes)
        }
    })
    .await;
    // The control plane comes with the installation for SQLite, whose pod would be one more.
    kubectl.ok(&["delete", "deployment", "rollbackd", "--cascade=foreground"]).await;
    apply(&control_plane, "-k", "overlays/postgres").await;
    let pods = until("three replicas", async || {
        let pods = kubectl.list("pods").await;
        let placed = pods.iter().filter(|pod| pod["spec"]["nodeName"].is_string()).count();
        if (placed, pods.len()) == (3, 3) { Ok(pods) } else { Err(pods) }
    })
    .await;
    let nodes: BTreeSet<_> = pods.iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap()).collect();
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    let budget = until("the disruption budget to be computed", async || {
        let budget = kubectl.get("poddisruptionbudget", "rollbackd").await;
        if budget["status"]["expectedPods"] == 3 { Ok(budget) } else { Err(budget["status"].clone()) }
    })
    .await;
    assert_eq!(budget["status"]["desiredHealthy"], 2);

    // The password is in a file, and nowhere else.
    let container = &pods[0]["spec"]["containers"][0];
    let env = container["env"].to_string();
    assert!(env.contains("ROLLBACKD_STORE_PASSWORD_FILE") && !env.contains("secretKeyRef"), "{env}");
    let volumes = pods[0]["spec"]["volumes"].to_string();
    assert!(volumes.contains(r#""secretName":"rollbackd-store""#), "{volumes}");
}

async fn the_roles_for_callers(control_plane: &ControlPlane, kubectl: &Kubectl) {
    kubectl.ok(&["create", "namespace", "monitoring"]).await;
    let roll_back = ["apps", "daemonsets", "rollback"];
    let audit = ["rollbackd.dev", "audit", ""];

    // The built-in roles, in one namespace.
    for role in ["view", "edit", "admin"] {
        let binding = [
            "create",
            "rolebinding",
            role,
            "--namespace",
            "monitoring",
            "--clusterrole",
            role,
            "--user",
            role,
        ];
        kubectl.ok(&binding).await;
    }
    for (user, rolls_back, audits) in [("admin", true, true), ("edit", true, false), ("view", false, false)] {
        // Once the roles are aggregated, which gives nobody what patching would not.
        let patch = ["apps", "daemonsets", ""];
        for (verb, what, expected) in
            [("patch", patch, rolls_back), ("create", roll_back, rolls_back), ("get", audit, audits)]
        {
            let told = format!("whether {user} may {verb} {what:?}");
            until_is(&told, expected, async || may(kubectl, user, "monitoring", verb, what).await).await;
        }
        assert!(!may(kubectl, user, "default", "create", roll_back).await, "{user}");
    }

    // The example: a group looks and rolls back, and nothing else.
    apply(control_plane, "-f", "examples/on-call/on-call.yaml").await;
    let oncall = ["--as", "alice", "--as-group", "oncall"];
    let expected = lines([
        "controllerrevisions.apps [] [] [get list]",
        "daemonsets.apps [] [] [get list]",
        "daemonsets.apps/rollback [] [] [create]",
        "pods [] [] [list]",
    ]);
    has(kubectl, &oncall, "monitoring", expected).await;
    has(kubectl, &oncall, "default", BTreeSet::new()).await;

    let auditor =
        ["create", "clusterrolebinding", "auditor", "--clusterrole=rollbackd-auditor", "--user=auditor"];
    kubectl.ok(&auditor).await;
    has(kubectl, &["--as", "auditor"], "default", lines(["audit.rollbackd.dev [] [] [get]"])).await;

    // The examples' accounts act for those that are named, here alone.
    apply(control_plane, "-f", "examples/slack/rbac.yaml").await;
    apply(control_plane, "-f", "examples/backstage/rbac.yaml").await;
    let groups = "groups.rollbackd.dev [] [oncall] [impersonate]";
    for (account, expected) in [
        ("slack", lines([groups, "users.rollbackd.dev [] [jane@example.com] [impersonate]"])),
        ("backstage", lines([groups, "users.rollbackd.dev [] [] [impersonate]"])),
    ] {
        let user = format!("system:serviceaccount:rollbackd:{account}");
        has(kubectl, &["--as", &user], "monitoring", expected).await;
    }
    let reader = ["--as", "system:serviceaccount:rollbackd:backstage-reader"];
    let expected = lines([
        "controllerrevisions.apps [] [] [get list]",
        "daemonsets.apps [] [] [get list]",
        "pods [] [] [list]",
    ]);
    has(kubectl, &reader, "monitoring", expected).await;
}

#[tokio::test]
#[ignore = "applies the manifests to a real API server"]
async fn the_admission_policy_lets_rollbackd_restore_templates_and_nothing_else() {
    let control_plane = ControlPlane::shared();
    let space = Space::new(control_plane).await;
    space.agent(&["img:1", "img:2"]).await;
    let namespace = space.namespace.as_str();
    space.kubectl.ok(&["create", "serviceaccount", "rollbackd"]).await;
    // More than it is ever given, so that it is the policy that says no.
    let everything = ["create", "rolebinding", "rollbackd", "--clusterrole=cluster-admin"];
    let account = format!("--serviceaccount={namespace}:rollbackd");
    space.kubectl.ok(&[&everything[..], &[&account]].concat()).await;
    apply(control_plane, "-f", "components/admission-policy/policy.yaml").await;
    let user = format!("system:serviceaccount:{namespace}:rollbackd");
    let itself = ["--as", &user];
    let patch = async |who: &[&str], kind: &str, patch: &Value| {
        let patch = patch.to_string();
        space
            .kubectl
            .run(&[&["patch", "daemonset", "agent", "--type", kind, "-p", &patch], who].concat())
            .await
    };
    let id = |n: u32| format!("01936b5e-7d0a-7f43-9c7e-{n:012x}");
    let live = space.kubectl.get("daemonset", "agent").await;
    let restore = |image: &str, annotations: Value| {
        let mut template = live["spec"]["template"].clone();
        template["$patch"] = json!("replace");
        template["spec"]["containers"][0]["image"] = json!(image);
        json!({"metadata": {"annotations": annotations, "uid": live["metadata"]["uid"]}, "spec": {"template": template}})
    };

    let dry = [&itself[..], &["--dry-run=server"]].concat();
    until("the policy to be in force", async || {
        let printed = patch(&dry, "strategic", &json!({"spec": {"minReadySeconds": 1}})).await;
        // Not for want of the right, which is given above.
        let refused = printed.stderr.contains("nothing of a DaemonSet's spec but the template");
        if refused { Ok(()) } else { Err(printed) }
    })
    .await;

    // What rollbackd sends: a dry run, a rollback, and the write that settles a lost one.
    for (who, body) in [
        (&dry[..], restore("img:1", json!({"rollbackd.dev/rollback": id(1)}))),
        (&itself, restore("img:1", json!({"rollbackd.dev/rollback": id(1)}))),
        (&itself, restore("img:2", json!({"rollbackd.dev/rollback": id(2)}))),
        (&itself, json!({"metadata": {"annotations": {"rollbackd.dev/settled": id(3)}}})),
        // A rollback to what is there already.
        (&itself, restore("img:2", json!({"rollbackd.dev/rollback": id(4)}))),
    ] {
        let printed = patch(who, "strategic", &body).await;
        assert_eq!(printed.code, 0, "{body}: {printed:?}");
    }
    let now = space.kubectl.get("daemonset", "agent").await;
    assert_eq!(now["spec"]["template"], live["spec"]["template"]);
    assert_eq!(now["metadata"]["annotations"]["rollbackd.dev/rollback"], id(4));

    let meta = |metadata: Value| json!({"metadata": metadata});
    let spec = |spec: Value| json!({"spec": spec});
    let template = json!({"template": {"spec": {"containers": [{"name": "main", "image": "img:evil"}]}}});
    let both = |annotations: Value| json!({"metadata": {"annotations": annotations}, "spec": template});
    for (why, bodies) in [
        (
            "nothing of a DaemonSet's spec but the template",
            vec![
                spec(json!({"minReadySeconds": 7})),
                spec(json!({"revisionHistoryLimit": 0})),
                spec(json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}})),
                spec(json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}}})),
            ],
        ),
        (
            "nothing of a DaemonSet's metadata but its own annotations",
            vec![
                meta(json!({"labels": {"a": "b"}})),
                meta(json!({"finalizers": ["rollbackd.dev/never"]})),
                meta(json!({"ownerReferences": [
                    {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "00000000-0000-0000-0000-000000000000"},
                ]})),
            ],
        ),
        (
            "no annotation but rollbackd.dev/rollback and rollbackd.dev/settled",
            vec![
                meta(json!({"annotations": {"a": "b"}})),
                meta(json!({"annotations": {"kubernetes.io/change-cause": "hidden"}})),
                meta(json!({"annotations": {"kubernetes.io/change-cause": null}})),
                meta(json!({"annotations": {"rollbackd.dev/rollback": null}})),
            ],
        ),
        (
            "a template only with the id of a new rollback",
            vec![
                both(json!({})),
                both(json!({"rollbackd.dev/rollback": id(4)})),
                both(json!({"rollbackd.dev/rollback": "me"})),
                both(json!({"rollbackd.dev/settled": id(5)})),
            ],
        ),
    ] {
        for body in bodies {
            let printed = patch(&itself, "strategic", &body).await;
            assert!(printed.code == 1 && printed.stderr.contains(why), "{why}: {body}: {printed:?}");
        }
    }
    // Last-applied changes where there is one, and only with the template and a new id.
    const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
    let applied = |text: Option<&str>, id: &str| json!({LAST_APPLIED: text, "rollbackd.dev/rollback": id});
    let refused = async |body: Value| {
        let printed = patch(&itself, "strategic", &body).await;
        let why = "last-applied only with the template";
        assert!(printed.code == 1 && printed.stderr.contains(why), "{body}: {printed:?}");
    };
    refused(restore("img:1", applied(Some("{}"), &id(5)))).await;
    space.kubectl.ok(&["annotate", "daemonset", "agent", &format!("{LAST_APPLIED}={{\"a\":1}}")]).await;
    refused(json!({"metadata": {"annotations": applied(Some("{}"), &id(5))}})).await;
    refused(json!({"metadata": {"annotations": {LAST_APPLIED: "{}"}}})).await;
    refused(restore("img:1", applied(None, &id(5)))).await;
    let printed = patch(&itself, "strategic", &restore("img:1", applied(Some("{}"), &id(5)))).await;
    assert_eq!(printed.code, 0, "{printed:?}");
    let printed =
        patch(&itself, "strategic", &restore("img:2", json!({"rollbackd.dev/rollback": id(6)}))).await;
    assert_eq!(printed.code, 0, "{printed:?}");
    // The fields that it owns it may return.
    let shown = ["get", "daemonset", "agent", "-o", "json", "--show-managed-fields"];
    let now: Value = serde_json::from_str(&space.kubectl.ok(&shown).await).unwrap();
    let mut entries = now["metadata"]["managedFields"].clone();
    let ours = entries.as_array_mut().unwrap().iter_mut().find(|entry| entry["manager"] == "kubectl-patch");
    ours.expect("an entry of ours")["manager"] = json!("another");
    let printed = patch(&itself, "merge", &meta(json!({"managedFields": entries}))).await;
    assert_eq!(printed.code, 0, "{printed:?}");

    let status =
        patch(&["--subresource=status", "--as", &user], "merge", &json!({"status": {"numberReady": 9}}))
            .await;
    let deleted = space.kubectl.run(&["delete", "daemonset", "agent", "--as", &user]).await;
    let created = [
        "create",
        "--raw",
        &format!("/apis/apps/v1/namespaces/{namespace}/daemonsets"),
        "--as",
        &user,
        "-f",
        "-",
    ];
    let mut create = space.kubectl.command(&created);
    create.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut create = create.spawn().unwrap();
    let other = crate::support::space::daemonset("other", "img:1").to_string();
    tokio::io::AsyncWriteExt::write_all(&mut create.stdin.take().unwrap(), other.as_bytes()).await.unwrap();
    let created = create.wait_with_output().await.unwrap();
    for (code, said) in [
        (status.code, status.stderr),
        (deleted.code, deleted.stderr),
        (created.status.code().unwrap(), String::from_utf8(created.stderr).unwrap()),
    ] {
        assert!(code == 1 && said.contains("rollbackd's account may only patch DaemonSets"), "{said}");
    }
    assert_eq!(
        space.kubectl.get("daemonset", "agent").await["metadata"]["labels"],
        live["metadata"]["labels"]
    );

    // It is about nobody else.
    let printed = patch(&[], "strategic", &spec(json!({"minReadySeconds": 1}))).await;
    assert_eq!(printed.code, 0, "{printed:?}");
    until_is("the policy to be checked, without a warning", json!({}), async || {
        let policy = space.kubectl.get("validatingadmissionpolicy", "rollbackd-changes-templates-only").await;
        policy["status"]["typeChecking"].clone()
    })
    .await;
}

#[tokio::test]
async fn the_alerts_name_metrics_that_there_are() {
    let rollbackd = Rollbackd::start().await;
    rollbackd.api.get("/daemonsets").await;
    let told = rollbackd.api.get("/metrics").await.text;
    let rules = read("deploy/components/alerts/prometheus-rule.yaml");
    let named: BTreeSet<&str> = rules
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("rollbackd_"))
        .collect();
    assert!(named.len() >= 5, "{named:?}");
    for metric in named {
        let sample = told.lines().any(|line| line.split(['{', ' ']).next() == Some(metric));
        assert!(sample, "{metric} is not among\n{told}");
    }
    let alerts = rules.matches("- alert:").count();
    assert_eq!((rules.matches("runbook:").count(), rules.matches("summary:").count()), (alerts, alerts));
}

/// An installation as the README tells to make one.
#[tokio::test]
#[ignore = "applies the manifests to a real API server"]
async fn the_kustomizations_of_the_readme_render() {
    let readme = read("README.md");
    let mut blocks = readme.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let (kustomization, postgres) = (blocks.next().unwrap(), blocks.next().unwrap());
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(env!("CARGO_MANIFEST_DIR"), folder.path().join("rollbackd")).unwrap();
    let kubectl = Kubectl::new(ControlPlane::shared(), "admin", "default");

    std::fs::write(folder.path().join("kustomization.yaml"), postgres).unwrap();
    let rendered = kubectl.ok(&["kustomize", folder.path().to_str().unwrap()]).await;
    let store = "- name: ROLLBACKD_STORE\n          value: postgres://rollbackd@db.your.org/rollbackd?sslmode=verify-full\n";
    assert!(rendered.contains(store) && !rendered.contains("postgres.example"), "{rendered}");

    std::fs::write(folder.path().join("kustomization.yaml"), kustomization).unwrap();
    let rendered = kubectl.ok(&["kustomize", folder.path().to_str().unwrap()]).await;
    for expected in [
        "image: registry.your.org/rollbackd:0.1.0",
        "- name: ROLLBACKD_CLUSTER_NAME\n          value: berlin-1\n",
        "- name: ROLLBACKD_ANONYMOUS\n          value: metrics\n",
        "kind: ValidatingAdmissionPolicyBinding",
        "kind: PrometheusRule",
        "kind: ServiceMonitor",
    ] {
        assert!(rendered.contains(expected), "{expected} is not in\n{rendered}");
    }
    // Into another namespace: all of it, the subjects of the bindings too.
    let elsewhere = format!("namespace: tools\n{kustomization}");
    std::fs::write(folder.path().join("kustomization.yaml"), elsewhere).unwrap();
    let rendered = kubectl.ok(&["kustomize", folder.path().to_str().unwrap()]).await;
    assert!(!rendered.contains("namespace: rollbackd\n"), "{rendered}");
    assert_eq!(rendered.matches("\n  name: tools\n").count(), 1, "the Namespace itself");
}

#[test]
fn image_and_manifests_are_of_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let tagged = format!("newTag: {version}\n");
    assert!(read("deploy/base/kustomization.yaml").contains(&tagged), "expected {tagged}");
    assert!(read("Dockerfile").contains(&format!("\nARG VERSION={version}\n")));
    let rust = format!("/rust:{}.", env!("CARGO_PKG_RUST_VERSION"));
    assert!(read("Dockerfile").contains(&rust), "expected {rust}");
}
