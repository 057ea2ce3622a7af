//! As `undo`, for DaemonSets and histories in less common states.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{
    controlplane::{ControlPlane, NODES, kubernetes},
    space::{Space, daemonset},
    twins::{LAST_APPLIED, Twins, plant},
    wait::{until, until_is},
};

async fn create(space: &Space, change: Value) {
    let mut object = daemonset("agent", "img:1");
    json_merge(&mut object, &change);
    space.kubectl.create(&object).await;
    space.observed("agent").await;
}

fn json_merge(into: &mut Value, from: &Value) {
    match (into.as_object_mut(), from.as_object()) {
        (Some(into), Some(from)) => {
            for (key, value) in from {
                json_merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        _ => *into = from.clone(),
    }
}

fn numbers(revisions: &[Value]) -> Vec<i64> {
    revisions.iter().map(|revision| revision["revision"].as_i64().expect("a number")).collect()
}

/// Uids of the pods that are not being deleted.
async fn pods(space: &Space) -> BTreeSet<String> {
    let pods = space.kubectl.list("pods").await;
    let kept = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    kept.map(|pod| pod["metadata"]["uid"].as_str().expect("a uid").to_owned()).collect()
}

#[tokio::test]
async fn a_history_that_was_pruned_has_only_what_is_left() {
    let twins = Twins::new().await;
    twins
        .both(async |space| {
            create(space, json!({"spec": {"revisionHistoryLimit": 1}})).await;
            for image in ["img:2", "img:3"] {
                space.set_image("agent", image).await;
                space.rolled_out("agent").await;
            }
            until("revision 1 to be pruned", async || {
                let numbers = numbers(&space.revisions().await);
                if numbers == [2, 3] { Ok(()) } else { Err(numbers) }
            })
            .await;
        })
        .await;
    twins.undo(&["--to-revision=1"], json!({"toRevision": 1})).await;
    twins.undo(&["--to-revision=2"], json!({"toRevision": 2})).await;
    // Limit 0: only the running revision stays, once no pod of another one is left.
    twins
        .each(async |space| {
            space.patch("agent", &json!({"spec": {"revisionHistoryLimit": 0}})).await;
            until("only the running revision to stay", async || {
                let numbers = numbers(&space.revisions().await);
                if numbers == [4] { Ok(()) } else { Err(numbers) }
            })
            .await;
        })
        .await;
    let answer = twins.undo(&[], json!({})).await;
    assert_eq!(answer.text, "error: no last revision to roll back to\n");
}

#[tokio::test]
#[ignore = "needs adoption by the controller"]
async fn an_adopted_history_goes_on() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    twins
        .both(async |space| {
            space.kubectl.ok(&["delete", "daemonset", "agent", "--cascade=orphan"]).await;
            space.recorded(&["img:3"]).await;
            // The controller may find the old ones only after it has made its own.
            until_is("the history to be adopted", (vec![1, 2, 3], true), async || {
                let revisions = space.revisions().await;
                let owned = |one: &Value| one["metadata"]["ownerReferences"].is_array();
                (numbers(&revisions), revisions.iter().all(owned))
            })
            .await;
        })
        .await;
    twins.undo(&["--to-revision=1"], json!({"toRevision": 1})).await;
    twins.undo(&[], json!({})).await;
    assert_eq!(numbers(&twins.ours.revisions().await), [2, 4, 5]);
}

#[tokio::test]
async fn a_name_that_is_used_again_starts_a_new_history() {
    let twins = Twins::of(&["img:1", "img:2", "img:3"]).await;
    twins
        .both(async |space| {
            space.kubectl.ok(&["delete", "daemonset", "agent"]).await;
            space.recorded(&["img:8", "img:9"]).await;
        })
        .await;
    // The garbage collector may not have been here yet: what is left of the old one is not ours.
    twins.undo_texts(&["--to-revision=3"], json!({"toRevision": 3})).await;
    twins.undo_texts(&["--to-revision=1"], json!({"toRevision": 1})).await;
    twins
        .each(async |space| {
            until("the old revisions to be collected", async || {
                let numbers = numbers(&space.revisions().await);
                if numbers == [2, 3] { Ok(()) } else { Err(numbers) }
            })
            .await;
        })
        .await;
    twins.same_objects().await;
}

#[tokio::test]
#[ignore = "needs maxSurge"]
async fn with_max_surge_it_rolls_out_as_any_change_does() {
    let twins = Twins::new().await;
    let surge = json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}}}});
    twins
        .both(async |space| {
            create(space, surge.clone()).await;
            space.set_image("agent", "img:2").await;
            space.rolled_out("agent").await;
        })
        .await;
    let answer = twins.undo(&[], json!({})).await;
    twins.each(async |space| space.rolled_out("agent").await).await;
    let ended = twins.rollbackd.api.rollback_at(answer.header("location"), &["succeeded"]).await;
    assert_eq!(ended["newRevision"], 3);
}

#[tokio::test]
async fn with_on_delete_it_is_applied_and_pods_stay_until_they_are_deleted() {
    let twins = Twins::new().await;
    twins
        .both(async |space| {
            create(space, json!({"spec": {"updateStrategy": {"type": "OnDelete"}}})).await;
            space.set_image("agent", "img:2").await;
            space.observed("agent").await;
        })
        .await;
    until("all pods to run", async || {
        let count = pods(&twins.ours).await.len();
        if count == NODES { Ok(()) } else { Err(count) }
    })
    .await;
    let before = pods(&twins.ours).await;
    // kubectl keeps silent about it. It refuses nothing.
    let answer = twins.undo(&[], json!({"failOnWarning": true})).await;
    assert!(answer.header("warning").contains("pods keep running the old template until they are deleted"));
    let record = twins.record(&answer).await;
    let warning = &record["warnings"][0];
    assert_eq!((&record["state"], &warning["code"]), (&json!("applied"), &json!("on-delete")));
    assert_eq!(warning["severity"], "info");
    assert_eq!(pods(&twins.ours).await, before);
}

#[tokio::test]
#[ignore = "needs adoption by the controller"]
async fn a_template_that_the_selector_does_not_match_is_refused_by_the_api_server() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    let namespace = &twins.ours.namespace;
    twins
        .both(async |space| {
            // The right labels on itself, others in its template.
            plant(space, "agent-orphan", 7, |data| {
                data["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
            })
            .await;
        })
        .await;
    let answer = twins.undo(&["--to-revision=7"], json!({"toRevision": 7})).await;
    assert!(answer.text.contains("`selector` does not match template `labels`"), "{answer:?}");
    assert_eq!(answer.status, 422);
    let flags = ["--to-revision=7", "--dry-run=server"];
    twins.undo(&flags, json!({"toRevision": 7, "dryRun": true})).await;

    let api = &twins.rollbackd.api;
    let body = json!({"toRevision": 7, "reason": "labels"});
    let problem = api.post(&twins.path(), &body).await;
    let problem = problem.problem(422, "refused-by-api-server");
    let listed = api.get(&format!("/rollbacks?namespace={namespace}")).await.expect(200);
    let record = &listed["items"][0];
    assert_eq!((&record["state"], &record["message"]), (&json!("failed"), &problem["detail"]));
    assert_eq!(record["reason"], "labels");
    let made = ["rollback.requested", "rollback.failed"];
    assert_eq!(api.actions(namespace).await, [&made[..], &["rollback.refused"], &made[..]].concat());
    assert_eq!(api.audit(namespace).await[4]["requestId"], problem["requestId"]);
}

#[tokio::test]
async fn in_the_middle_of_a_rollout_it_turns_the_rollout_round() {
    let twins = Twins::new().await;
    twins
        .both(async |space| {
            space.agent(&["img:1"]).await;
            space.set_image("agent", "img:slow").await;
            until("the rollout to be under way", async || {
                let status = space.observed("agent").await["status"].clone();
                if status["updatedNumberScheduled"].as_i64() >= Some(1) { Ok(()) } else { Err(status) }
            })
            .await;
        })
        .await;
    let answer = twins.undo(&[], json!({})).await;
    let ended = twins.rollbackd.api.rollback_at(answer.header("location"), &["succeeded"]).await;
    assert_eq!((&ended["from"]["revision"], &ended["newRevision"]), (&json!(2), &json!(3)));
    twins.each(async |space| space.rolled_out("agent").await).await;
    twins.same_objects().await;
}

#[tokio::test]
async fn of_a_stuck_rollout_it_replaces_broken_pods_and_keeps_healthy_ones() {
    let twins = Twins::new().await;
    let kept = async |space: &Space| {
        space.agent(&["img:1"]).await;
        let before = pods(space).await;
        // Two bad changes in a row.
        for image in ["img:crash", "img:missing"] {
            space.set_image("agent", image).await;
            until("a pod of the bad revision", async || {
                let pods = space.kubectl.list("pods").await;
                let bad = |pod: &Value| pod["spec"]["containers"][0]["image"] == image;
                let stuck = pods.iter().any(|pod| bad(pod) && pod.to_string().contains("BackOff"));
                if stuck { Ok(()) } else { Err(pods.len()) }
            })
            .await;
        }
        before
    };
    let (their_pods, our_pods) = tokio::join!(kept(&twins.theirs), kept(&twins.ours));
    let answer = twins.undo(&["--to-revision=1"], json!({"toRevision": 1})).await;
    twins.rollbackd.api.rollback_at(answer.header("location"), &["succeeded"]).await;
    twins.each(async |space| space.rolled_out("agent").await).await;
    let sides = [(&twins.ours, our_pods), (&twins.theirs, their_pods)];
    let sides = sides.into_iter().take(if kubernetes().is_some() { 2 } else { 1 });
    for (space, before) in sides {
        let after = pods(space).await;
        assert_eq!((before.intersection(&after).count(), after.len()), (NODES - 1, NODES));
    }
    // A second one to the previous revision goes to the broken one, and is as stuck as it was.
    let answer = twins.undo(&[], json!({})).await;
    assert_eq!(twins.record(&answer).await["to"]["images"][0]["image"], "img:missing");
}

#[tokio::test]
async fn next_kubectl_apply_is_predicted() {
    let twins = Twins::new().await;
    twins
        .both(async |space| {
            for image in ["img:1", "img:2"] {
                space.kubectl.apply(&daemonset("agent", image)).await;
                space.observed("agent").await;
            }
        })
        .await;
    let api = &twins.rollbackd.api;
    let refused = api.post(&twins.path(), &json!({"failOnWarning": true})).await.problem(422, "warned");
    twins.same_objects().await;
    let dry = ["--dry-run=server"];
    let answer = twins.undo(&dry, json!({"dryRun": true})).await;
    let message = "daemonsets/agent is managed by kubectl apply: the next 'kubectl apply' of the manifest that was live before the rollback brings its pod template back exactly; a manifest that describes revision 1 changes nothing in the pod template";
    assert_eq!(answer.header("warning"), format!("299 - {message:?}"));
    let careful = json!({"failOnWarning": true, "ignoreWarnings": ["managed", "on-delete"], "dryRun": true});
    let problem = api.post(&twins.path(), &careful).await.problem(422, "warned");
    assert_eq!(problem["warnings"], refused["warnings"]);
    // Whoever ignores it may roll back.
    let careful = json!({"failOnWarning": true, "ignoreWarnings": ["last-applied"]});
    let answer = twins.undo(&[], careful).await;
    let record = twins.record(&answer).await;
    assert_eq!(record["warnings"], refused["warnings"]);
    let fix = "change the manifest back to revision 1 before it is applied again";
    let expected = json!([{"code": "last-applied", "severity": "warning", "message": message, "fix": fix}]);
    assert_eq!(record["warnings"], expected);
    let agent = twins.ours.kubectl.get("daemonset", "agent").await;
    let manifest = agent["metadata"]["annotations"][LAST_APPLIED].as_str().expect("a manifest");
    let manifest: Value = serde_json::from_str(manifest).expect("a manifest is JSON");
    assert_eq!(manifest["spec"]["template"]["spec"]["containers"][0]["image"], "img:1");
}

#[tokio::test]
#[ignore = "needs the hash of the real controller"]
async fn a_hash_collision_is_no_obstacle() {
    let scratch = Space::new(ControlPlane::shared()).await;
    scratch.recorded(&["img:2"]).await;
    let taken = scratch.revisions().await[0]["metadata"]["name"].clone();
    let twins = Twins::new().await;
    twins
        .both(async |space| {
            space.recorded(&["img:1"]).await;
            let stranger = json!({
                "apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 1, "data": {"a": 1},
                "metadata": {"name": taken},
            });
            space.kubectl.create(&stranger).await;
            space.set_image("agent", "img:2").await;
            let observed = space.observed("agent").await;
            assert_eq!(observed["status"]["collisionCount"], 1);
        })
        .await;
    twins.undo(&["--to-revision=1"], json!({"toRevision": 1})).await;
    let answer = twins.undo(&[], json!({})).await;
    twins.rollbackd.api.rollback_at(answer.header("location"), &["succeeded"]).await;
}

#[tokio::test]
#[ignore = "needs adoption by the controller"]
async fn copy_of_a_revision_replaces_no_pod_and_is_refused() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    twins.both(async |space| space.rolled_out("agent").await).await;
    twins.both(async |space| plant(space, "agent-copy", 5, |_| {}).await).await;
    let before = pods(&twins.ours).await;
    let answer = twins.rollbackd.api.post(&twins.path(), &json!({"toRevision": 5})).await;
    answer.problem(422, "duplicate-revision");
    assert_eq!(numbers(&twins.ours.revisions().await), [1, 5, 6]);
    assert_eq!(pods(&twins.ours).await, before);

    // kubectl says that it has rolled back, and all pods count as updated, with the image of before.
    let before = pods(&twins.theirs).await;
    let undone = twins.theirs.kubectl.ok(&["rollout", "undo", "daemonset/agent", "--to-revision=5"]).await;
    assert_eq!(undone, "daemonset.apps/agent rolled back\n");
    twins.theirs.observed("agent").await;
    twins.theirs.rolled_out("agent").await;
    assert_eq!(numbers(&twins.theirs.revisions().await), [6, 7]);
    assert_eq!(pods(&twins.theirs).await, before);
    for pod in twins.theirs.kubectl.list("pods").await {
        assert_eq!(pod["spec"]["containers"][0]["image"], "img:2");
        assert_eq!(pod["metadata"]["labels"]["controller-revision-hash"], "agent-copy");
    }

    twins.ours.kubectl.ok(&["delete", "controllerrevision", "agent-copy"]).await;
    let answer = twins.rollbackd.api.post(&twins.path(), &json!({"toRevision": 1})).await;
    answer.expect(202);
    twins.rollbackd.api.rollback_at(answer.header("location"), &["succeeded"]).await;
    for pod in twins.ours.kubectl.list("pods").await {
        assert_eq!(pod["spec"]["containers"][0]["image"], "img:1");
    }
}
