//! A dry run while others write.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::future::BoxFuture;
use http::Method;
use serde_json::{Value, json};

use crate::support::{controlplane::ControlPlane, rollbackd::Rollbackd, space::Space};

/// Runs kubectl right before each of the next `times` dry-run patches; `#` in its arguments is which one.
fn before_patches(rollbackd: &Rollbackd, space: &Space, times: usize, args: &'static [&'static str]) {
    let (kubectl, sent) = (space.kubectl.clone(), Arc::new(AtomicUsize::new(0)));
    rollbackd.faults.before(move |request| {
        let dry_run = request.uri().query().unwrap_or_default().contains("dryRun");
        if request.method() != Method::PATCH || !dry_run {
            return None;
        }
        let at = sent.fetch_add(1, Ordering::Relaxed);
        let (kubectl, args) = (kubectl.clone(), args.iter().map(|arg| arg.replace('#', &at.to_string())));
        let args: Vec<String> = args.collect();
        (at < times).then(|| {
            let run: BoxFuture<'static, ()> = Box::pin(async move {
                kubectl.ok(&args.iter().map(String::as_str).collect::<Vec<_>>()).await;
            });
            run
        })
    });
}

#[tokio::test]
async fn a_dry_run_is_tried_again_when_only_other_fields_were_written_in_between() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let rollbackd = Rollbackd::start().await;
    // Moves the resource version as a status write does.
    before_patches(&rollbackd, &space, 3, &["annotate", "daemonset/agent", "--overwrite", "touched=#"]);
    let preview =
        rollbackd.api.post(&format!("{}/rollback", space.path("agent")), &json!({"dryRun": true})).await;
    assert_eq!(preview.expect(200)["to"]["revision"], 1);
}

#[tokio::test]
async fn a_dry_run_is_refused_when_the_template_was_changed_in_between() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let rollbackd = Rollbackd::start().await;
    before_patches(&rollbackd, &space, 1, &["set", "image", "daemonset/agent", "main=img:3"]);
    let answer =
        rollbackd.api.post(&format!("{}/rollback", space.path("agent")), &json!({"dryRun": true})).await;
    answer.problem(409, "modified");
    let image: Value = space.kubectl.get("daemonset", "agent").await;
    assert_eq!(image["spec"]["template"]["spec"]["containers"][0]["image"], "img:3");
}
