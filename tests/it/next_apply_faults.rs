//! What comes between a rollback's patch and the write that returns the ownership of its fields.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::support::{
    applying::{
        AGENT, LAST_APPLIED, RESTARTED_AT, Tool, Workload, managed_fields, owners, template, template_fields,
        v1, v2, warned,
    },
    controlplane::ControlPlane,
    faults::{self, Fault},
    rollbackd::{Rollbackd, Setup},
    space::Space,
};

/// Runs something once, right before the ownership write is sent.
fn before_ownership_write(
    rollbackd: &Rollbackd,
    run: impl FnOnce() -> BoxFuture<'static, ()> + Send + 'static,
) {
    let mut run = Some(run);
    rollbackd.faults.before(move |request| {
        faults::ownership_write(request).then(|| run.take()).flatten().map(|run| run())
    });
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn ownership_is_not_returned_after_an_apply_between_the_two_writes() {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let workload = Workload::new(&space, Tool::KubectlApply);
    workload.apply(&v1()).await;
    let second = workload.apply(&v2()).await;
    let (kubectl, seen) = (space.kubectl.clone(), Arc::new(Mutex::new(None)));
    let applied = seen.clone();
    before_ownership_write(&rollbackd, move || {
        Box::pin(async move {
            kubectl.apply(&v2()).await;
            let args = ["get", "daemonset", AGENT, "-o", "json", "--show-managed-fields"];
            let live: Value = serde_json::from_str(&kubectl.ok(&args).await).expect("kubectl prints JSON");
            *applied.lock().unwrap() = Some(live);
        })
    });
    let record = workload.roll_back(&rollbackd, &json!({})).await;
    warned(&rollbackd, &record, "ownership-not-returned").await;
    let applied = seen.lock().unwrap().take().expect("the apply came between the writes");
    let live = workload.observed().await;
    assert_eq!(template(&live), template(&second));
    assert_eq!(managed_fields(&live), managed_fields(&applied));
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn ownership_is_returned_after_another_field_was_written_between_the_two_writes() {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let workload = Workload::new(&space, Tool::ServerSideApply);
    workload.apply(&v1()).await;
    let second = workload.apply(&v2()).await;
    let kubectl = space.kubectl.clone();
    before_ownership_write(&rollbackd, move || {
        Box::pin(async move {
            kubectl.ok(&["label", "daemonset", AGENT, "touched=yes"]).await;
        })
    });
    let (live, _) = workload.roll_back_and_return(&rollbackd, &json!({})).await;
    assert_eq!(live["metadata"]["labels"]["touched"], "yes");
    assert_eq!(owners(&live, &["f:metadata", "f:labels", "f:touched"]), ["kubectl-label/Update"]);
    assert_eq!(template(&workload.apply(&v2()).await), template(&second));
}

/// The fields that the first rollback has not returned yet are not rollbackd's own.
async fn second_rollback_before_the_return_of_the_first_is_understood_by(tool: Tool) {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let workload = Workload::new(&space, tool);
    let first = workload.apply(&v1()).await;
    let second = workload.apply(&v2()).await;
    // Nothing is returned before the patch of the second one is sent.
    let rollbacks = AtomicUsize::new(0);
    rollbackd.faults.inject(usize::MAX, Fault::CutBefore, move |request| {
        if faults::ownership_write(request) {
            return rollbacks.load(Ordering::Relaxed) < 2;
        }
        rollbacks.fetch_add(usize::from(faults::patch(request)), Ordering::Relaxed);
        false
    });
    workload.roll_back(&rollbackd, &json!({})).await;
    assert_eq!(template(&workload.observed().await), template(&first));
    let record = workload.roll_back(&rollbackd, &json!({})).await;
    let live = workload.returned_but(&rollbackd, &record, &[]).await;
    assert_eq!(template(&live), template(&second));
    assert_eq!(template(&workload.apply(&v1()).await), template(&first));
    assert_eq!(template(&workload.apply(&v2()).await), template(&second));
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn second_rollback_before_the_return_of_the_first_is_understood_by_kubectl_apply() {
    second_rollback_before_the_return_of_the_first_is_understood_by(Tool::KubectlApply).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn second_rollback_before_the_return_of_the_first_is_understood_by_server_side_apply() {
    second_rollback_before_the_return_of_the_first_is_understood_by(Tool::ServerSideApply).await;
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn rollback_whose_answer_was_lost_is_understood_and_lists_what_stays() {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let workload = Workload::new(&space, Tool::KubectlApply);
    let first = workload.apply(&v1()).await;
    let second = workload.apply(&v2()).await;
    space.kubectl.ok(&["rollout", "restart", "daemonset/agent"]).await;
    workload.observed().await;
    // A status that is written in between would make the patch a conflict, whose answer is lost as well.
    space.rolled_out(AGENT).await;
    rollbackd.faults.inject(1, Fault::CutAfter, faults::patch);
    let (live, _) = workload.roll_back_and_return(&rollbackd, &json!({"toRevision": 1})).await;
    assert_eq!(template(&live), template(&first));
    assert_eq!(template(&workload.apply(&v2()).await), template(&second));
    workload.apply(&v1()).await;

    space.rolled_out(AGENT).await;
    rollbackd.faults.inject(1, Fault::CutAfter, faults::patch);
    let record = workload.roll_back(&rollbackd, &json!({"toRevision": 3})).await;
    workload.returned_but(&rollbackd, &record, &[RESTARTED_AT]).await;
    let message = warned(&rollbackd, &record, "ownership-kept").await;
    assert!(message.contains("restartedAt"), "{message}");
}

#[tokio::test]
#[ignore = "needs kubectl apply and the field ownership of a real API server"]
async fn ownership_is_kept_if_the_flag_says_so() {
    let space = Space::new(ControlPlane::shared()).await;
    let flags = ["--field-ownership=keep"];
    let rollbackd =
        Rollbackd::start_with(Setup { flags: &flags, ..Setup::new(ControlPlane::shared()) }).await;
    let workload = Workload::new(&space, Tool::KubectlApply);
    let first = workload.apply(&v1()).await;
    let second = workload.apply(&v2()).await;
    let record = workload.roll_back(&rollbackd, &json!({})).await;
    rollbackd.api.rollback_at(&record, &["succeeded"]).await;
    let live = workload.observed().await;
    assert_eq!(template(&live), template(&first));
    let annotation = |daemonset: &Value| daemonset["metadata"]["annotations"][LAST_APPLIED].clone();
    assert_eq!(annotation(&live), annotation(&second));
    let image = "f:spec f:containers k:{\"name\":\"main\"} f:image".to_owned();
    assert!(template_fields(&live, "rollbackd", "Update").contains(&image));
    assert_eq!(rollbackd.faults.patches(), 1);
}
