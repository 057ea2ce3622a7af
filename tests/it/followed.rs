//! A rollback is followed to its end, and who or what ended it is said.

use serde_json::{Value, json};

use crate::support::{
    controlplane::{ControlPlane, NODES},
    rollbackd::{Rollbackd, Setup},
    space::Space,
    wait::until,
};

/// Never ready, so that whatever has to come before the end of a rollout does.
const ENDLESS: &str = "img:unready";

/// A rollback to an image that takes a while, of a DaemonSet that ran `img:2`.
struct Slow {
    space: Space,
    rollbackd: Rollbackd,
    /// Path of the rollback.
    location: String,
}

impl Slow {
    /// `image` is what it goes back to.
    async fn start(image: &str) -> Self {
        let space = Space::new(ControlPlane::shared()).await;
        space.recorded(&[image, "img:2"]).await;
        let rollbackd = Rollbackd::start().await;
        next_second().await;
        let answer = rollbackd.api.post(&path(&space), &json!({})).await;
        assert_eq!(answer.expect(202)["state"], "progressing");
        Self { space, rollbackd, location: answer.header("location").to_owned() }
    }

    /// Waits for the end, which must be this; returns what was said about it.
    async fn ends(&self, state: &str, action: &str) -> String {
        let ended = self.rollbackd.api.rollback_at(&self.location, &[state]).await;
        assert!(!ended["endedAt"].is_null(), "{ended}");
        let audit = self.rollbackd.api.audit(&self.space.namespace).await;
        let mine: Vec<&Value> = audit.iter().filter(|entry| entry["rollback"] == ended["id"]).collect();
        let actions: Vec<&Value> = mine.iter().map(|entry| &entry["action"]).collect();
        assert_eq!(actions, ["rollback.requested", "rollback.applied", action]);
        assert_eq!(mine[2]["message"], ended["message"]);
        assert!(mine[2]["durationSeconds"].as_f64().is_some());
        ended["message"].as_str().expect("a sentence").to_owned()
    }
}

fn path(space: &Space) -> String {
    format!("{}/rollback", space.path("agent"))
}

/// Waits until what was written so far can be told from what is written next: Kubernetes keeps the times
/// of writers in whole seconds.
async fn next_second() {
    let second = || jiff::Timestamp::now().as_second();
    let before = second();
    until("the next second", async || if second() > before { Ok(()) } else { Err(before) }).await;
}

#[tokio::test]
async fn to_success_past_changes_that_leave_the_template_alone() {
    let slow = Slow::start("img:slow").await;
    let faster = json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}}}});
    slow.space.patch("agent", &faster).await;
    slow.space.kubectl.ok(&["label", "daemonset", "agent", "a=b"]).await;
    let message = slow.ends("succeeded", "rollout.completed").await;
    assert_eq!(message, "daemon set \"agent\" successfully rolled out");
    let record = slow.rollbackd.api.get(&slow.location).await.expect(200);
    assert_eq!(record["newRevision"], 3);
}

#[tokio::test]
async fn until_somebody_changes_the_template_who_is_named() {
    // The names sort before and after our own, and the change may come in the same second.
    for manager in ["kubectl-set", "zz-controller"] {
        let slow = Slow::start(ENDLESS).await;
        let flag = format!("--field-manager={manager}");
        slow.space.kubectl.ok(&["set", "image", "daemonset/agent", "main=img:3", &flag]).await;
        let message = slow.ends("superseded", "rollout.superseded").await;
        assert_eq!(message, format!("superseded: {manager} changed the pod template"));
    }
}

#[tokio::test]
async fn until_somebody_takes_something_away_whom_nobody_can_name() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&[ENDLESS]).await;
    let env = json!([{"op": "add", "path": "/spec/template/spec/containers/0/env", "value": [{"name": "A", "value": "b"}]}]);
    let patch = async |patch: &Value| {
        let patch = patch.to_string();
        space.kubectl.ok(&["patch", "daemonset", "agent", "--type=json", "-p", &patch]).await;
        space.observed("agent").await;
    };
    patch(&env).await;
    space.set_image("agent", "img:2").await;
    space.observed("agent").await;
    let rollbackd = Rollbackd::start().await;
    next_second().await;
    let answer = rollbackd.api.post(&path(&space), &json!({})).await;
    answer.expect(202);
    patch(&json!([{"op": "remove", "path": "/spec/template/spec/containers/0/env"}])).await;
    let ended = rollbackd.api.rollback_at(answer.header("location"), &["superseded"]).await;
    assert_eq!(ended["message"], "superseded: the pod template was changed");
}

#[tokio::test]
#[ignore = "needs kubectl rollout undo"]
async fn until_another_rollback_which_is_named() {
    let slow = Slow::start(ENDLESS).await;
    let api = &slow.rollbackd.api;
    // A rollout under way is in nobody's way.
    let answer = until("the slow revision to be recorded", async || {
        let answer = api.post(&path(&slow.space), &json!({})).await;
        if answer.status == 202 { Ok(answer) } else { Err(answer) }
    })
    .await;
    let second = answer.expect(202);
    let message = slow.ends("superseded", "rollout.superseded").await;
    assert_eq!(message, format!("superseded by rollback {}", second["id"].as_str().unwrap()));
    let ended = api.rollback_at(answer.header("location"), &["succeeded"]).await;
    assert_eq!((&ended["to"]["images"][0]["image"], &ended["newRevision"]), (&json!("img:2"), &json!(4)));

    // By kubectl, of a rollback that has come to its end: nothing changes any more.
    slow.space.kubectl.ok(&["rollout", "undo", "daemonset/agent"]).await;
    slow.space.observed("agent").await;
    assert_eq!(api.get(answer.header("location")).await.expect(200), ended);
}

#[tokio::test]
async fn until_the_daemonset_is_deleted_even_if_it_is_made_again() {
    for again in [false, true] {
        let slow = Slow::start(ENDLESS).await;
        slow.space.kubectl.ok(&["delete", "daemonset", "agent"]).await;
        if again {
            slow.space.recorded(&[ENDLESS]).await;
        }
        let message = slow.ends("deleted", "rollout.deleted").await;
        assert_eq!(message, "the DaemonSet was deleted");
    }
}

#[tokio::test]
#[ignore = "needs kwok's conditions of pods"]
async fn over_a_standstill_to_success() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:unready", "img:2"]).await;
    space.rolled_out("agent").await;
    let flags = ["--stall-after", "1s"];
    let rollbackd =
        Rollbackd::start_with(Setup { flags: &flags, ..Setup::new(ControlPlane::shared()) }).await;
    let api = &rollbackd.api;
    let answer = api.post(&path(&space), &json!({})).await;
    answer.expect(202);
    let sentence =
        "Waiting for daemon set \"agent\" rollout to finish: 1 out of 5 new pods have been updated...";
    // On the way there the controller may take longer than a second, too.
    until("the standstill", async || {
        let stalled = api.rollback_at(answer.header("location"), &["stalled"]).await;
        let message = stalled["message"].as_str().unwrap();
        let since = message.strip_prefix("no progress since ").and_then(|rest| rest.split_once("Z: "));
        let (since, _) = since.unwrap_or_else(|| panic!("{message}"));
        assert_eq!(since.len(), "2026-11-29T12:00:52".len(), "{message}");
        assert!(stalled["endedAt"].is_null());
        if message.ends_with(sentence) { Ok(()) } else { Err(stalled) }
    })
    .await;

    // Somebody finds out what held the pods back, one after the other.
    let mut ready = 0;
    let ended = until("the rollout to be complete", async || {
        for pod in space.kubectl.list("pods").await {
            let held = pod["spec"]["containers"][0]["image"] == "img:unready"
                && pod["status"]["conditions"].to_string().contains("ContainersNotReady");
            if held {
                let name = pod["metadata"]["name"].as_str().unwrap();
                let patch = json!({"status": {"conditions": [
                    {"type": "Ready", "status": "True", "reason": null, "message": null},
                    {"type": "ContainersReady", "status": "True", "reason": null, "message": null},
                ]}});
                let patch = patch.to_string();
                space.kubectl.ok(&["patch", "pod", name, "--subresource=status", "-p", &patch]).await;
                ready += 1;
            }
        }
        let rollback = api.get(answer.header("location")).await.expect(200);
        if rollback["state"] == "succeeded" { Ok(rollback) } else { Err(rollback) }
    })
    .await;
    assert_eq!((ready, &ended["newRevision"]), (NODES, &json!(3)));
    let actions = api.actions(&space.namespace).await;
    assert_eq!(
        actions[..4],
        ["rollback.requested", "rollback.applied", "rollout.stalled", "rollout.resumed"]
    );
    assert_eq!(actions.last().unwrap(), "rollout.completed");
    let outcomes = api.audit(&space.namespace).await;
    assert_eq!((&outcomes[2]["outcome"], &outcomes[3]["outcome"]), (&json!("failure"), &json!("pending")));
}

#[tokio::test]
async fn a_standstill_is_ended_by_the_next_rollback() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:missing", "img:2"]).await;
    space.rolled_out("agent").await;
    let flags = ["--stall-after", "1s"];
    let rollbackd =
        Rollbackd::start_with(Setup { flags: &flags, ..Setup::new(ControlPlane::shared()) }).await;
    let api = &rollbackd.api;
    let first = api.post(&path(&space), &json!({})).await;
    first.expect(202);
    api.rollback_at(first.header("location"), &["stalled"]).await;
    let second = api.post(&path(&space), &json!({})).await;
    let made = second.expect(202);
    let ended = api.rollback_at(first.header("location"), &["superseded"]).await;
    assert_eq!(ended["message"], format!("superseded by rollback {}", made["id"].as_str().unwrap()));
    api.rollback_at(second.header("location"), &["succeeded"]).await;
}
