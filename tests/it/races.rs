//! Somebody else writes between rollbackd's read and its patch. Nothing is ever overwritten, and who only
//! wrote something else is not in the way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Request;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{
    controlplane::ControlPlane,
    faults::{self, Fault, Faults},
    kubectl::Kubectl,
    rollbackd::{Rollbackd, Setup, agent},
    space::{Space, daemonset},
    wait::until,
};

/// Before each of the first `times` patches, dry runs too, runs what `write` makes.
fn before_patches(
    faults: &Faults,
    times: usize,
    write: impl Fn(usize) -> BoxFuture<'static, ()> + Send + 'static,
) {
    let mut made = 0;
    faults.before(move |request: &Request<Body>| {
        (request.method() == http::Method::PATCH && made < times).then(|| {
            made += 1;
            write(made)
        })
    });
}

/// Runs kubectl as somebody else.
fn meddle(kubectl: &Kubectl, args: Vec<String>) -> BoxFuture<'static, ()> {
    let kubectl = kubectl.clone();
    Box::pin(async move {
        kubectl.ok(&args.iter().map(String::as_str).collect::<Vec<_>>()).await;
    })
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn image(daemonset: &Value) -> &Value {
    &daemonset["spec"]["template"]["spec"]["containers"][0]["image"]
}

#[tokio::test]
async fn of_two_rollbacks_at_once_one_is_made_and_the_other_is_told() {
    let (space, rollbackd, path) = agent().await;
    // The first one's patch waits until the second one has been answered.
    let gate = Arc::new(Semaphore::new(0));
    let (entered, waiting) = tokio::sync::oneshot::channel();
    let (mut entered, opened) = (Some(entered), gate.clone());
    rollbackd.faults.before(move |request| {
        let entered = faults::patch(request).then(|| entered.take()).flatten()?;
        let opened = opened.clone();
        Some(Box::pin(async move {
            entered.send(()).expect("the test waits");
            drop(opened.acquire().await);
        }))
    });
    let api = rollbackd.api.clone();
    let first = tokio::spawn({
        let (api, path) = (api.clone(), path.clone());
        async move { api.post(&path, &json!({"toRevision": 1, "reason": "first"})).await }
    });
    waiting.await.expect("the first patch is on its way");
    let second = api.post(&path, &json!({"toRevision": 2, "reason": "second"})).await;
    let dry_run = api.post(&path, &json!({"toRevision": 2, "dryRun": true})).await;
    gate.add_permits(1);
    let made = first.await.expect("it does not panic").expect(202);

    let problem = second.problem(409, "rollback-in-progress");
    let detail =
        format!("another rollback of this DaemonSet is being made: {}", made["id"].as_str().unwrap());
    assert_eq!(problem["detail"], detail);
    assert_eq!(second.header("retry-after"), "1");
    // Who only looks is in nobody's way.
    dry_run.expect(200);
    let ended = api.rollback_in(made["id"].as_str().unwrap(), &["succeeded"]).await;
    assert_eq!(ended["newRevision"], 4);
    assert_eq!(image(&space.observed("agent").await), "img:1");

    let audit = api.audit(&space.namespace).await;
    let told =
        audit.iter().find(|entry| entry["action"] == "rollback.refused").expect("the loser is on record");
    assert_eq!((&told["reason"], &told["message"]), (&json!("second"), &json!(detail)));
    let expected = [
        "rollback.requested",
        "rollback.refused",
        "rollback.dryRun",
        "rollback.applied",
        "rollout.completed",
    ];
    assert_eq!(api.actions(&space.namespace).await, expected);
}

#[tokio::test]
async fn many_rollbacks_at_once_leave_the_last_one_that_was_made() {
    let (space, rollbackd, path) = agent().await;
    let names: Vec<Value> =
        space.revisions().await.iter().map(|revision| revision["metadata"]["name"].clone()).collect();
    let posts = (0..12).map(|turn| {
        let (api, path, body) = (rollbackd.api.clone(), path.clone(), json!({"toRevision": names[turn % 3]}));
        tokio::spawn(async move { api.post(&path, &body).await })
    });
    let mut made = Vec::new();
    for post in posts.collect::<Vec<_>>() {
        let answer = post.await.expect("it does not panic");
        match answer.status {
            202 => made.push(answer.json()["id"].as_str().unwrap().to_owned()),
            200 => assert_eq!(answer.json()["state"], "skipped"),
            _ => drop(answer.problem(409, "rollback-in-progress")),
        }
    }
    assert!(!made.is_empty());
    // Ids rise with time.
    made.sort();
    let last = made.pop().unwrap();
    for earlier in &made {
        // Its rollout may have been complete before the next one was made.
        let ended = rollbackd.api.rollback_in(earlier, &["superseded", "succeeded"]).await;
        let by_another = ended["message"].as_str().unwrap().starts_with("superseded by rollback ");
        assert_eq!(by_another, ended["state"] == "superseded", "{ended}");
    }
    let ended = rollbackd.api.rollback_in(&last, &["succeeded"]).await;
    assert_eq!(*image(&space.observed("agent").await), ended["to"]["images"][0]["image"]);
}

#[tokio::test]
async fn a_template_changed_in_between_is_not_overwritten() {
    let (space, rollbackd, path) = agent().await;
    let kubectl = space.kubectl.clone();
    before_patches(&rollbackd.faults, 1, move |_| {
        meddle(&kubectl, words("set image daemonset/agent main=img:theirs"))
    });
    let problem = rollbackd.api.post(&path, &json!({"toRevision": 1})).await.problem(409, "modified");
    let detail = "the pod template was changed while the rollback was being made; nothing was overwritten";
    assert_eq!(problem["detail"], detail);
    let daemonset = space.observed("agent").await;
    assert_eq!(image(&daemonset), "img:theirs");
    assert_eq!(daemonset["metadata"]["annotations"]["rollbackd.dev/rollback"], Value::Null);
    assert_eq!(rollbackd.faults.patches(), 1);
    let record = rollbackd.api.get(&format!("/rollbacks?namespace={}", space.namespace)).await.expect(200);
    let record = &record["items"][0];
    assert_eq!((&record["state"], &record["message"]), (&json!("failed"), &json!(detail)));
    assert_eq!(rollbackd.api.actions(&space.namespace).await, ["rollback.requested", "rollback.failed"]);
    // The way is free: asked again, it is made.
    rollbackd.api.post(&path, &json!({"toRevision": 1})).await.expect(202);
}

#[tokio::test]
async fn writes_that_leave_the_template_alone_are_no_conflict_and_survive() {
    let (space, rollbackd, path) = agent().await;
    let kubectl = space.kubectl.clone();
    before_patches(&rollbackd.faults, 6, move |turn| {
        let line = match turn {
            1 | 4 => format!(
                r#"patch daemonset agent --subresource=status --type=merge -p {{"status":{{"numberMisscheduled":{turn}}}}}"#
            ),
            2 => "annotate daemonset agent theirs=kept kubernetes.io/change-cause=theirs --overwrite".into(),
            3 => "label daemonset agent theirs=kept".into(),
            5 => r#"patch daemonset agent -p {"spec":{"minReadySeconds":1}}"#.into(),
            _ => r#"patch daemonset agent -p {"spec":{"updateStrategy":{"rollingUpdate":{"maxUnavailable":2}}}}"#.into(),
        };
        meddle(&kubectl, words(&line))
    });
    let made = rollbackd.api.post(&path, &json!({"toRevision": 1})).await.expect(202);
    assert!(rollbackd.faults.patches() >= 7, "{:?}", rollbackd.faults.requests());
    let daemonset = space.observed("agent").await;
    assert_eq!(image(&daemonset), "img:1");
    let metadata = &daemonset["metadata"];
    assert_eq!(
        (&metadata["labels"]["theirs"], &metadata["annotations"]["theirs"]),
        (&json!("kept"), &json!("kept"))
    );
    assert_eq!(metadata["annotations"]["kubernetes.io/change-cause"], "theirs");
    assert_eq!(metadata["annotations"]["rollbackd.dev/rollback"], made["id"]);
    let spec = &daemonset["spec"];
    assert_eq!(spec["minReadySeconds"], 1);
    assert_eq!(spec["updateStrategy"]["rollingUpdate"]["maxUnavailable"], 2);
    assert_eq!(made["generation"], metadata["generation"]);
    let entries = rollbackd.api.audit(&space.namespace).await;
    assert_eq!(entries.iter().filter(|entry| entry["action"] == "rollback.requested").count(), 1);
}

#[tokio::test]
async fn constant_writes_end_in_a_conflict_that_says_when_to_try_again() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2", "img:3"]).await;
    let mut setup = Setup::new(ControlPlane::shared());
    setup.timing.patience.attempts = 3;
    let rollbackd = Rollbackd::start_with(setup).await;
    let path = format!("{}/rollback", space.path("agent"));
    for dry_run in [false, true] {
        let kubectl = space.kubectl.clone();
        before_patches(&rollbackd.faults, 3, move |turn| {
            let label = format!("label daemonset agent turn={turn}{dry_run} --overwrite");
            meddle(&kubectl, words(&label))
        });
        let answer = rollbackd.api.post(&path, &json!({"toRevision": 1, "dryRun": dry_run})).await;
        let problem = answer.problem(409, "modified");
        let detail = "the DaemonSet is being written to all the time; nothing was changed";
        assert_eq!((problem["detail"].as_str(), answer.header("retry-after")), (Some(detail), "1"));
        assert_eq!(problem["retryAfter"], 1);
    }
    rollbackd.api.post(&path, &json!({"toRevision": 1})).await.expect(202);
}

#[tokio::test]
async fn a_status_written_in_between_is_no_conflict_for_a_dry_run() {
    let (space, rollbackd, path) = agent().await;
    let kubectl = space.kubectl.clone();
    before_patches(&rollbackd.faults, 1, move |_| {
        meddle(&kubectl, words("label daemonset agent theirs=kept"))
    });
    let preview = rollbackd.api.post(&path, &json!({"dryRun": true})).await.expect(200);
    assert_eq!(preview["to"]["revision"], 2);
    assert!(rollbackd.faults.requests().iter().filter(|request| request.starts_with("PATCH ")).count() >= 2);
    let kubectl = space.kubectl.clone();
    before_patches(&rollbackd.faults, 1, move |_| {
        meddle(&kubectl, words("set image daemonset/agent main=img:theirs"))
    });
    rollbackd.api.post(&path, &json!({"dryRun": true})).await.problem(409, "modified");
}

#[tokio::test]
#[ignore = "writes with a client of its own"]
async fn a_daemonset_that_is_written_to_several_times_a_second_can_be_rolled_back() {
    let (space, rollbackd, path) = agent().await;
    let api: kube::Api<k8s_openapi::api::apps::v1::DaemonSet> =
        kube::Api::namespaced(ControlPlane::shared().client().await, &space.namespace);
    let writes = Arc::new(AtomicUsize::new(0));
    let busy = tokio::spawn({
        let writes = writes.clone();
        async move {
            loop {
                let turn = writes.fetch_add(1, Ordering::Relaxed);
                let patch = json!({"metadata": {"annotations": {"turn": turn.to_string()}}});
                let patch = kube::api::Patch::Merge(patch);
                api.patch("agent", &kube::api::PatchParams::default(), &patch).await.expect("it is written");
                tokio::time::sleep(Duration::from_millis(80)).await;
            }
        }
    });
    until("the writes to begin", async || {
        let made = writes.load(Ordering::Relaxed);
        if made > 3 { Ok(()) } else { Err(made) }
    })
    .await;
    let answer = rollbackd.api.post(&path, &json!({"toRevision": 1})).await;
    busy.abort();
    answer.expect(202);
    assert_eq!(image(&space.observed("agent").await), "img:1");
}

#[tokio::test]
async fn a_daemonset_made_again_in_between_is_not_the_one_that_was_meant() {
    let (space, rollbackd, path) = agent().await;
    let kubectl = space.kubectl.clone();
    before_patches(&rollbackd.faults, 1, move |_| {
        let kubectl = kubectl.clone();
        Box::pin(async move {
            kubectl.ok(&["delete", "daemonset", "agent", "--wait"]).await;
            kubectl.create(&daemonset("agent", "img:3")).await;
        })
    });
    let problem = rollbackd.api.post(&path, &json!({"toRevision": 1})).await.problem(409, "modified");
    let detail =
        "it is not the same DaemonSet any more: it was deleted and created again; nothing was changed";
    assert_eq!(problem["detail"], detail);
    let daemonset = space.observed("agent").await;
    assert_eq!((image(&daemonset), &daemonset["metadata"]["generation"]), (&json!("img:3"), &json!(1)));
    assert_eq!(daemonset["metadata"]["annotations"]["rollbackd.dev/rollback"], Value::Null);
    assert_eq!(rollbackd.api.actions(&space.namespace).await, ["rollback.requested", "rollback.failed"]);
}

#[tokio::test]
async fn a_daemonset_deleted_in_between_is_told() {
    let (space, rollbackd, path) = agent().await;
    let kubectl = space.kubectl.clone();
    before_patches(&rollbackd.faults, 1, move |_| meddle(&kubectl, words("delete daemonset agent --wait")));
    let problem = rollbackd.api.post(&path, &json!({"toRevision": 1})).await.problem(409, "modified");
    assert_eq!(problem["detail"], "the DaemonSet was deleted while the rollback was being made");
    let audit = rollbackd.api.audit(&space.namespace).await;
    assert_eq!((&audit[1]["action"], &audit[1]["message"]), (&json!("rollback.failed"), &problem["detail"]));
    rollbackd.api.post(&path, &json!({"toRevision": 1})).await.problem(404, "daemonset-not-found");
}

#[tokio::test]
async fn a_daemonset_deleted_after_a_lost_answer_is_told() {
    let (space, rollbackd, path) = agent().await;
    rollbackd.faults.inject(1, Fault::CutAfter, faults::patch);
    let (kubectl, mut patched) = (space.kubectl.clone(), false);
    rollbackd.faults.before(move |request| {
        let looks =
            request.method() == http::Method::GET && request.uri().path().ends_with("/daemonsets/agent");
        let delete = looks && std::mem::take(&mut patched);
        patched |= faults::patch(request);
        delete.then(|| meddle(&kubectl, words("delete daemonset agent --wait")))
    });
    let problem = rollbackd.api.post(&path, &json!({"toRevision": 1})).await.problem(409, "modified");
    // Not "nothing was changed": who knows.
    assert_eq!(problem["detail"], "the DaemonSet was deleted while the rollback was being made");
    let audit = rollbackd.api.audit(&space.namespace).await;
    assert_eq!((audit.len(), &audit[1]["action"]), (2, &json!("rollout.deleted")));
}

#[tokio::test]
async fn a_revision_pruned_in_between_is_restored_as_a_new_one() {
    let (space, rollbackd, path) = agent().await;
    let name = space.revisions().await[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let kubectl = space.kubectl.clone();
    before_patches(&rollbackd.faults, 1, move |_| {
        meddle(&kubectl, words(&format!("delete controllerrevision {name}")))
    });
    let made = rollbackd.api.post(&path, &json!({"toRevision": 1})).await.expect(202);
    let ended = rollbackd.api.rollback_in(made["id"].as_str().unwrap(), &["succeeded"]).await;
    assert_eq!((image(&space.observed("agent").await), &ended["newRevision"]), (&json!("img:1"), &json!(4)));
    let revisions = space.revisions().await;
    assert_eq!(revisions.iter().map(|it| &it["revision"]).collect::<Vec<_>>(), [2, 3, 4]);
}

#[tokio::test]
async fn a_caller_who_goes_away_changes_nothing() {
    let (space, rollbackd, path) = agent().await;
    let (entered, waiting) = tokio::sync::oneshot::channel();
    let gate = Arc::new(Semaphore::new(0));
    let (mut entered, opened) = (Some(entered), gate.clone());
    rollbackd.faults.before(move |request| {
        let entered = faults::patch(request).then(|| entered.take()).flatten()?;
        let opened = opened.clone();
        Some(Box::pin(async move {
            entered.send(()).expect("the test waits");
            drop(opened.acquire().await);
        }))
    });
    let api = rollbackd.api.clone();
    let caller = tokio::spawn({
        let api = api.clone();
        async move { api.post(&path, &json!({"toRevision": 1, "reason": "and off"})).await }
    });
    waiting.await.expect("the patch is on its way");
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    gate.add_permits(1);
    let namespace = &space.namespace;
    let ended = until("the rollback to succeed", async || {
        let listed = api.get(&format!("/rollbacks?namespace={namespace}")).await.expect(200);
        let rollback = listed["items"][0].clone();
        if rollback["state"] == "succeeded" { Ok(rollback) } else { Err(rollback) }
    })
    .await;
    assert_eq!((&ended["reason"], &ended["newRevision"]), (&json!("and off"), &json!(4)));
    assert_eq!(image(&space.observed("agent").await), "img:1");
    let actions = ["rollback.requested", "rollback.applied", "rollout.completed"];
    assert_eq!(api.actions(namespace).await, actions);
}
