//! The next apply after a rollback, where more than one tool or none has kept the manifest before.

use serde_json::{Value, json};

use crate::support::{
    applying::{
        AGENT, LAST_APPLIED, RESTARTED_AT, Tool, Workload, last_applied, owners, template, template_fields,
        v1, v2, warned, with,
    },
    controlplane::ControlPlane,
    rollbackd::Rollbackd,
    space::Space,
    wait::until,
};

/// The image of `main`, as [`template_fields`] names it.
const IMAGE: &str = "f:spec f:containers k:{\"name\":\"main\"} f:image";

async fn start() -> (Space, Rollbackd) {
    (Space::new(ControlPlane::shared()).await, Rollbackd::start().await)
}

/// An image that was set by hand belongs to nobody's manifest: rollbackd owns it in place of `kubectl set`.
async fn an_image_set_in_between(tool: Tool) -> (Space, Value, Value) {
    let (space, rollbackd) = start().await;
    let workload = Workload::new(&space, tool);
    let first = workload.apply(&v1()).await;
    let second = workload.apply(&v2()).await;
    space.kubectl.ok(&["set", "image", "daemonset/agent", "main=agent:3"]).await;
    space.observed(AGENT).await;
    let record = workload.roll_back(&rollbackd, &json!({"toRevision": 1})).await;
    let live = workload.returned_but(&rollbackd, &record, &[IMAGE]).await;
    assert_eq!(template(&live), template(&first));
    let again = workload.apply(&v1()).await;
    assert_eq!(template(&again), template(&first));
    assert_eq!(again["metadata"]["generation"], live["metadata"]["generation"]);
    (space, template(&first).clone(), template(&second).clone())
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn kubectl_apply_is_exact_after_an_image_set_by_hand_was_rolled_back() {
    let (space, _, second) = an_image_set_in_between(Tool::KubectlApply).await;
    let newest = Workload::new(&space, Tool::KubectlApply).apply(&v2()).await;
    assert_eq!(template(&newest), &second);
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn server_side_apply_conflicts_only_over_the_image_that_was_set_by_hand() {
    let (space, first, second) = an_image_set_in_between(Tool::ServerSideApply).await;
    let workload = Workload::new(&space, Tool::ServerSideApply);
    // Without the rollback it would have named kubectl-set.
    let refused = workload.try_apply(&v2()).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    let conflict =
        "conflict with \"rollbackd\" using apps/v1: .spec.template.spec.containers[name=\"main\"].image";
    assert!(refused.stderr.contains(conflict), "{refused:?}");
    assert_eq!(template(&workload.live().await), &first);
    let forced = workload.try_apply_as(Tool::ForcedServerSideApply, &v2()).await;
    assert_eq!(forced.code, 0, "{forced:?}");
    assert_eq!(template(&workload.live().await), &second);
}

async fn a_restart_in_between(tool: Tool) {
    let (space, rollbackd) = start().await;
    let workload = Workload::new(&space, tool);
    let first = workload.apply(&v1()).await;
    workload.apply(&v2()).await;
    space.kubectl.ok(&["rollout", "restart", "daemonset/agent"]).await;
    let restarted = workload.observed().await;
    // The restart goes: nothing of it is left to own.
    let (live, _) = workload.roll_back_and_return(&rollbackd, &json!({"toRevision": 1})).await;
    assert_eq!(template(&live), template(&first));
    // The restart comes back, and belongs to no manifest.
    let record = workload.roll_back(&rollbackd, &json!({"toRevision": 3})).await;
    let live = workload.returned_but(&rollbackd, &record, &[RESTARTED_AT]).await;
    assert_eq!(template(&live), template(&restarted));
    let message = warned(&rollbackd, &record, "ownership-kept").await;
    assert!(message.contains("restartedAt"), "{message}");
    // Both the patch and the return show it, once.
    let rollback = rollbackd.api.get(&record).await.expect(200);
    let codes = rollback["warnings"].as_array().expect("a list").iter().map(|warning| &warning["code"]);
    assert_eq!(codes.filter(|code| *code == "ownership-kept").count(), 1, "{rollback}");

    let newer = workload.apply(&v2()).await;
    assert_eq!(newer["metadata"]["generation"], live["metadata"]["generation"]);
    let older = workload.apply(&v1()).await;
    let annotations = template(&restarted)["metadata"]["annotations"].clone();
    let expected = with(template(&first).clone(), "/metadata/annotations", annotations);
    assert_eq!(template(&older), &expected);
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn restart_stays_outside_the_manifest_of_kubectl_apply_after_a_rollback() {
    a_restart_in_between(Tool::KubectlApply).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn restart_stays_outside_the_manifest_of_server_side_apply_after_a_rollback() {
    a_restart_in_between(Tool::ServerSideApply).await;
}

/// The second applier of a template: it shares a field with the first and has a container of its own.
fn sidecar(image: &str, grace: u64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": AGENT},
        "spec": {"template": {"spec": {
            "terminationGracePeriodSeconds": grace,
            "containers": [{"name": "sidecar", "image": image}],
        }}},
    })
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn fields_of_several_appliers_return_to_all_and_items_that_came_back_stay() {
    let (space, rollbackd) = start().await;
    let argo_cd = Workload::new(&space, Tool::ArgoCdServerSide);
    let grace = |manifest, seconds: u64| {
        with(manifest, "/spec/template/spec/terminationGracePeriodSeconds", json!(seconds))
    };
    let apply_as = async |manager: &str, manifest: &Value| {
        let manager = format!("--field-manager={manager}");
        let args = ["apply", "-f", "-", "--server-side", &manager, "--force-conflicts"];
        space.kubectl.feed(&args, manifest).await;
        argo_cd.observed().await
    };
    argo_cd.apply(&grace(v1(), 1)).await;
    let first = apply_as("team", &sidecar("sidecar:1", 1)).await;
    argo_cd.apply(&grace(v2(), 2)).await;
    apply_as("team", &sidecar("sidecar:2", 2)).await;
    // Its only field becomes rollbackd's, so that its entry is lost on the way.
    let template_spec = json!({"terminationGracePeriodSeconds": 2});
    let tuned = with(sidecar("", 2), "/spec/template/spec", template_spec);
    apply_as("tuner", &tuned).await;

    let record = argo_cd.roll_back(&rollbackd, &json!({"toRevision": 2})).await;
    let field =
        |live: &Value, path: &[&str]| owners(live, &[&["f:spec", "f:template", "f:spec"], path].concat());
    let live = until("the field of all appliers to be theirs", async || {
        let live = argo_cd.observed().await;
        let owners = field(&live, &["f:terminationGracePeriodSeconds"]);
        if owners == ["argocd-controller/Apply", "team/Apply", "tuner/Apply"] {
            Ok(live)
        } else {
            Err(owners)
        }
    })
    .await;
    assert_eq!(template(&live), template(&first));
    let image = |name| field(&live, &["f:containers", &format!("k:{{\"name\":\"{name}\"}}"), "f:image"]);
    assert_eq!(image("main"), ["argocd-controller/Apply"]);
    assert_eq!(image("sidecar"), ["team/Apply"]);
    // Whether an item that came back is the one's or the other's is not known: it stays whole.
    assert_eq!(image("helper-old"), ["rollbackd/Update"]);
    for kept in template_fields(&live, "rollbackd", "Update") {
        let came_back = ["helper-old", "OLD", "8081", "\"/old\"", "\"name\":\"old\"", "f:label-old"];
        assert!(came_back.iter().any(|item| kept.contains(item)), "{kept}");
    }
    let message = warned(&rollbackd, &record, "ownership-kept").await;
    assert!(message.contains("helper-old"), "{message}");

    // What stays is left beside the next apply, as a whole that works.
    let newest = argo_cd.apply(&grace(v2(), 2)).await;
    let container = |daemonset: &Value, name: &str| {
        let containers = template(daemonset)["spec"]["containers"].as_array().expect("a list").clone();
        containers.into_iter().find(|it| it["name"] == name).unwrap_or_else(|| panic!("no {name}"))
    };
    assert_eq!(container(&newest, "main")["image"], "agent:2");
    assert_eq!(container(&newest, "helper-old"), container(&first, "helper-old"));
}

/// The names of the containers, in order of the alphabet.
fn containers(daemonset: &Value) -> Vec<&str> {
    let containers = template(daemonset)["spec"]["containers"].as_array().expect("a list");
    let mut names: Vec<_> = containers.iter().map(|it| it["name"].as_str().expect("a name")).collect();
    names.sort_unstable();
    names
}

/// Waits for the warning that the annotation could not be restored, which must be true: the next apply merges.
async fn annotation_is_left_and_the_warning_is_true(
    workload: &Workload<'_>,
    rollbackd: &Rollbackd,
    newer: &Value,
    first: &Value,
) {
    let before = workload.live().await;
    let record = workload.roll_back(rollbackd, &json!({"toRevision": 1})).await;
    let message = warned(rollbackd, &record, "last-applied-not-restored").await;
    assert!(message.contains("helper-old"), "{message}");
    let live = workload.observed().await;
    assert_eq!(template(&live), template(first));
    let annotation = |daemonset: &Value| daemonset["metadata"]["annotations"][LAST_APPLIED].clone();
    assert_eq!(annotation(&live), annotation(&before));
    let newest = workload.apply(newer).await;
    assert_eq!(containers(&newest), ["helper-new", "helper-old", "main"]);
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn revision_made_by_kubectl_create_leaves_the_annotation_and_warns() {
    let (space, rollbackd) = start().await;
    let workload = Workload::new(&space, Tool::KubectlApply);
    space.kubectl.create(&v1()).await;
    let first = workload.observed().await;
    // From here on it is applied; the revision that is there keeps its annotations.
    workload.apply(&v1()).await;
    let second = workload.apply(&v2()).await;
    assert_eq!(containers(&second), ["helper-new", "main"]);
    annotation_is_left_and_the_warning_is_true(&workload, &rollbackd, &v2(), &first).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn annotation_that_kubectl_replace_dropped_is_not_added_again() {
    let (space, rollbackd) = start().await;
    let workload = Workload::new(&space, Tool::KubectlApply);
    let first = workload.apply(&v1()).await;
    let second = workload.apply(&v2()).await;
    space.kubectl.feed(&["replace", "-f", "-"], &v2()).await;
    assert_eq!(last_applied(&workload.observed().await), None);
    let record = workload.roll_back(&rollbackd, &json!({"toRevision": 1})).await;
    warned(&rollbackd, &record, "last-applied-not-restored").await;
    let live = workload.observed().await;
    assert_eq!((last_applied(&live), template(&live)), (None, template(&first)));
    // kubectl takes up its bookkeeping again.
    assert_eq!(template(&workload.apply(&v1()).await), template(&first));
    assert_eq!(template(&workload.apply(&v2()).await), template(&second));
}

/// v1 with a last-applied annotation of at least 250 KiB.
fn large() -> Value {
    let value = "x".repeat(250 * 1024);
    with(v1(), "/spec/template/spec/containers/0/env/0/value", json!(value))
}

#[tokio::test]
#[ignore = "needs the API server's limit of annotations"]
async fn annotation_of_250_kib_is_restored() {
    let (space, rollbackd) = start().await;
    let workload = Workload::new(&space, Tool::KubectlApply);
    let first = workload.apply(&large()).await;
    let second = workload.apply(&v2()).await;
    let (live, _) = workload.roll_back_and_return(&rollbackd, &json!({})).await;
    assert!(template(&live) == template(&first) && last_applied(&live) == last_applied(&first));
    let again = workload.apply(&large()).await;
    assert_eq!(again["metadata"]["generation"], live["metadata"]["generation"]);
    assert_eq!(template(&workload.apply(&v2()).await), template(&second));
}

#[tokio::test]
#[ignore = "needs the API server's limit of annotations"]
async fn annotation_that_would_exceed_the_limit_is_left_and_warned_about() {
    let (space, rollbackd) = start().await;
    let workload = Workload::new(&space, Tool::KubectlApply);
    let first = workload.apply(&large()).await;
    // It stands beside the annotation and in it. Together with the old template that is too much.
    let newer = with(v2(), "/metadata/annotations", json!({"note": "y".repeat(10 * 1024)}));
    workload.apply(&newer).await;
    annotation_is_left_and_the_warning_is_true(&workload, &rollbackd, &newer, &first).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn migration_to_server_side_apply_after_a_rollback_is_exact() {
    let (space, rollbackd) = start().await;
    let workload = Workload::new(&space, Tool::KubectlApply);
    let first = workload.apply(&v1()).await;
    let second = workload.apply(&v2()).await;
    let (live, _) = workload.roll_back_and_return(&rollbackd, &json!({})).await;
    let id = live["metadata"]["annotations"]["rollbackd.dev/rollback"].clone();
    assert!(id.is_string(), "{live}");
    for (manifest, expected) in [(v2(), &second), (v1(), &first), (v2(), &second)] {
        let printed = workload.try_apply_as(Tool::ServerSideApply, &manifest).await;
        assert_eq!(printed.code, 0, "{printed:?}");
        let live = workload.observed().await;
        assert_eq!(template(&live), template(expected));
        assert_eq!(live["metadata"]["annotations"]["rollbackd.dev/rollback"], id);
    }
    // kubectl goes on to keep the annotation, which now belongs to an Apply manager.
    let annotation = ["f:metadata", "f:annotations", &format!("f:{LAST_APPLIED}")];
    let before = owners(&workload.live().await, &annotation);
    assert_eq!(before, ["kubectl-last-applied/Apply"]);
    let (live, _) = workload.roll_back_and_return(&rollbackd, &json!({})).await;
    assert_eq!((template(&live), owners(&live, &annotation)), (template(&first), before));
    assert_eq!(last_applied(&live).expect("it is there")["spec"]["template"], v1()["spec"]["template"]);
    let printed = workload.try_apply_as(Tool::ServerSideApply, &v2()).await;
    assert_eq!(printed.code, 0, "{printed:?}");
    assert_eq!(template(&workload.observed().await), template(&second));
}
