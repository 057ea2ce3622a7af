//! The next apply after a rollback, by each tool: the older manifest changes nothing in the template, the newer one
//! brings back exactly its own template.

use serde_json::{Value, json};

use crate::support::{
    applying::{Tool, Workload, last_applied, template, times, v1, v2, warning, with},
    controlplane::ControlPlane,
    rollbackd::Rollbackd,
    space::Space,
};

/// Warnings that say that a rollback could not restore the bookkeeping.
const NOT_RESTORED: [&str; 3] = ["last-applied-not-restored", "ownership-not-returned", "ownership-kept"];

/// Applies both versions in turn; returns the template of each.
async fn both_versions(workload: &Workload<'_>) -> (Value, Value) {
    let first = workload.apply(&v1()).await;
    let second = workload.apply(&v2()).await;
    let images = [&first, &second].map(|it| it["spec"]["template"]["spec"]["containers"][0]["image"].clone());
    assert_eq!(images, ["agent:1", "agent:2"]);
    (template(&first).clone(), template(&second).clone())
}

/// Rolls back from v2 to v1, and checks that the bookkeeping of the template is that of v1.
async fn back_to_first(workload: &Workload<'_>, rollbackd: &Rollbackd, first: &Value) -> Value {
    let before = workload.live().await;
    let (live, record) = workload.roll_back_and_return(rollbackd, &json!({})).await;
    assert_eq!(template(&live), first);
    // No manager has come or gone, and none has written.
    let times = |daemonset: &Value| {
        let mut times = times(daemonset);
        times.remove("rollbackd/Update");
        times
    };
    assert_eq!(times(&live), times(&before));
    if workload.tool.is_client_side() {
        let mut expected = last_applied(&before).expect("it was applied");
        expected["spec"]["template"] = v1()["spec"]["template"].clone();
        assert_eq!(last_applied(&live), Some(expected));
    } else {
        assert_eq!(last_applied(&live), None);
    }
    let rollback = rollbackd.api.get(&record).await.expect(200);
    for code in NOT_RESTORED {
        assert_eq!(warning(&rollback, code), None, "{rollback}");
    }
    // What the callers of this function try next is what was predicted.
    let exact = "back exactly; a manifest that describes revision ";
    let predicted = |warning: &Value| warning["message"].as_str().expect("a message").contains(exact);
    let warnings = rollback["warnings"].as_array().expect("warnings");
    assert!(warnings.len() == 1 && warnings.iter().all(predicted), "{rollback}");
    live
}

async fn older_manifest_then_newer(workload: &Workload<'_>, rollbackd: &Rollbackd) {
    let (first, second) = both_versions(workload).await;
    let live = back_to_first(workload, rollbackd, &first).await;
    let again = workload.apply(&v1()).await;
    assert_eq!(again["metadata"]["generation"], live["metadata"]["generation"]);
    assert_eq!(template(&again), &first);
    assert_eq!(template(&workload.apply(&v2()).await), &second);
}

async fn newer_manifest_at_once(workload: &Workload<'_>, rollbackd: &Rollbackd) {
    let (first, second) = both_versions(workload).await;
    // The second time the DaemonSet carries the marks of a rollback.
    for _ in 0..2 {
        back_to_first(workload, rollbackd, &first).await;
        assert_eq!(template(&workload.apply(&v2()).await), &second);
    }
    workload.pods_run(&second).await;
}

async fn is_understood_by(tool: Tool) {
    let (one, other) = tokio::join!(Space::new(ControlPlane::shared()), Space::new(ControlPlane::shared()));
    let rollbackd = Rollbackd::start().await;
    let (one, other) = (Workload::new(&one, tool), Workload::new(&other, tool));
    tokio::join!(older_manifest_then_newer(&one, &rollbackd), newer_manifest_at_once(&other, &rollbackd));
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn rollback_is_understood_by_kubectl_apply() {
    is_understood_by(Tool::KubectlApply).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn rollback_is_understood_by_server_side_apply() {
    is_understood_by(Tool::ServerSideApply).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn rollback_is_understood_by_forced_server_side_apply() {
    is_understood_by(Tool::ForcedServerSideApply).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn rollback_is_understood_by_flux() {
    is_understood_by(Tool::Flux).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn rollback_is_understood_by_argo_cd_client_side() {
    is_understood_by(Tool::ArgoCdClientSide).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn rollback_is_understood_by_argo_cd_server_side() {
    is_understood_by(Tool::ArgoCdServerSide).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn rollback_is_understood_by_helm_4() {
    is_understood_by(Tool::Helm4).await;
}

async fn changes_outside_the_template_are_kept_apart(tool: Tool) {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let workload = Workload::new(&space, tool);
    let outside = |manifest, labels, seconds| {
        with(with(manifest, "/metadata/labels", labels), "/spec/minReadySeconds", seconds)
    };
    let older = outside(v1(), json!({"release": "one", "first": "yes"}), json!(1));
    let newer = outside(v2(), json!({"release": "two", "second": "yes"}), json!(2));
    let first = workload.apply(&older).await;
    let second = workload.apply(&newer).await;

    let (live, _) = workload.roll_back_and_return(&rollbackd, &json!({})).await;
    let labels = |daemonset: &Value| daemonset["metadata"]["labels"].clone();
    assert_eq!(template(&live), template(&first));
    assert_eq!((labels(&live), &live["spec"]["minReadySeconds"]), (labels(&second), &json!(2)));
    let revisions = space.revisions().await.len();

    let again = workload.apply(&older).await;
    assert_eq!((labels(&again), &again["spec"]), (labels(&first), &first["spec"]));
    assert_eq!(space.revisions().await.len(), revisions);
    let newest = workload.apply(&newer).await;
    assert_eq!((labels(&newest), &newest["spec"]), (labels(&second), &second["spec"]));
    // The newer one at once.
    workload.roll_back_and_return(&rollbackd, &json!({})).await;
    let newest = workload.apply(&newer).await;
    assert_eq!((labels(&newest), &newest["spec"]), (labels(&second), &second["spec"]));
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn kubectl_apply_restores_fields_outside_the_template_after_a_rollback() {
    changes_outside_the_template_are_kept_apart(Tool::KubectlApply).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn server_side_apply_restores_fields_outside_the_template_after_a_rollback() {
    changes_outside_the_template_are_kept_apart(Tool::ServerSideApply).await;
}

async fn a_renamed_container_is_left_alone(tool: Tool) {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let workload = Workload::new(&space, tool);
    let newer = with(v1(), "/spec/template/spec/containers/0/name", json!("renamed"));
    let first = workload.apply(&v1()).await;
    let second = workload.apply(&newer).await;
    let (live, _) = workload.roll_back_and_return(&rollbackd, &json!({})).await;
    assert_eq!(template(&live), template(&first));
    let newest = workload.apply(&newer).await;
    assert_eq!(template(&newest), template(&second));
    workload.pods_run(template(&second)).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn renamed_container_has_only_its_new_name_after_rollback_and_kubectl_apply() {
    a_renamed_container_is_left_alone(Tool::KubectlApply).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn renamed_container_has_only_its_new_name_after_rollback_and_server_side_apply() {
    a_renamed_container_is_left_alone(Tool::ServerSideApply).await;
}
