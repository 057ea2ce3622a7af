//! Two ControllerRevisions with the same bytes are one to the controller: it relabels all pods and replaces none
//! (kubernetes/kubernetes#111280).

use serde_json::{Value, json};

use crate::support::{
    controlplane::{ControlPlane, NODES},
    rollbackd::{Rollbackd, Setup},
    space::Space,
    wait::until,
};

const HASH: &str = "controller-revision-hash";

/// Copies a revision under another name, number and hash, owned by the DaemonSet from the start.
async fn copy(space: &Space, of: &Value, name: &str, number: i64) {
    let mut copy = of.clone();
    copy["metadata"] = json!({
        "name": name,
        "labels": {"app": "agent", HASH: name},
        "ownerReferences": of["metadata"]["ownerReferences"],
    });
    copy["revision"] = json!(number);
    space.kubectl.create(&copy).await;
}

/// Image and hash of each pod that is not being deleted.
async fn pods(space: &Space) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = space.kubectl.list("pods").await;
    let kept = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    kept.map(|pod| (text(&pod["spec"]["containers"][0]["image"]), text(&pod["metadata"]["labels"][HASH])))
        .collect()
}

fn name(revision: &Value) -> &str {
    revision["metadata"]["name"].as_str().unwrap()
}

fn rollback(space: &Space) -> String {
    format!("{}/rollback", space.path("agent"))
}

/// Waits until as many pods as there are nodes run this image, and no other runs.
async fn all_run(space: &Space, image: &str) {
    until(&format!("all pods to run {image}"), async || {
        let pods = pods(space).await;
        if pods.len() == NODES && pods.iter().all(|(it, _)| it == image) { Ok(()) } else { Err(pods) }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs ControllerRevisions made by hand"]
async fn rollback_to_a_duplicate_is_refused_until_one_of_the_two_is_deleted() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let first = space.revisions().await.remove(0);
    copy(&space, &first, "agent-copy", 7).await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    let before = pods(&space).await;
    for to in [json!(1), json!("agent-copy"), json!("previous")] {
        for dry_run in [true, false] {
            let answer = api.post(&rollback(&space), &json!({"toRevision": to, "dryRun": dry_run})).await;
            let problem = answer.problem(422, "duplicate-revision");
            let detail = problem["detail"].as_str().unwrap();
            let hash = first["metadata"]["labels"][HASH].as_str().unwrap();
            for part in [
                &format!(
                    "{} (revision 1, hash {hash}) and agent-copy (revision 7, hash agent-copy)",
                    name(&first)
                ),
                "Delete the one whose hash no pod carries",
                &format!("kubectl delete controllerrevision NAME --namespace={}", space.namespace),
                "delete controllerrevisions.apps",
                &format!("kubectl get pods --namespace={} --selector='app=agent'", space.namespace),
            ] {
                assert!(detail.contains(part), "{part}: {detail}");
            }
        }
    }
    assert_eq!(rollbackd.faults.patches(), 0);
    assert_eq!(pods(&space).await, before);
    assert_eq!(api.actions(&space.namespace).await, ["rollback.refused"; 6]);

    // No pod carries either hash, so that either may go.
    space.kubectl.ok(&["delete", "controllerrevision", "agent-copy"]).await;
    let answer = api.post(&rollback(&space), &json!({"toRevision": 1})).await;
    answer.expect(202);
    api.rollback_at(answer.header("location"), &["succeeded"]).await;
    all_run(&space, "img:1").await;
}

#[tokio::test]
#[ignore = "needs ControllerRevisions made by hand"]
async fn duplicate_of_another_revision_is_in_no_ones_way() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2", "img:3"]).await;
    let first = space.revisions().await.remove(0);
    copy(&space, &first, "agent-copy", 7).await;
    let rollbackd = Rollbackd::start().await;
    let answer = rollbackd.api.post(&rollback(&space), &json!({"toRevision": 2})).await;
    answer.expect(202);
    rollbackd.api.rollback_at(answer.header("location"), &["succeeded"]).await;
    all_run(&space, "img:2").await;
}

/// Kubernetes up to 1.33 wrote other bytes for the same template: to the controller that is another revision.
#[tokio::test]
#[ignore = "needs ControllerRevisions made by hand"]
async fn same_template_in_other_bytes_is_rolled_back_to() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let mut first = space.revisions().await.remove(0);
    let metadata = first["data"]["spec"]["template"]["metadata"].as_object_mut().unwrap();
    if metadata.remove("creationTimestamp").is_none() {
        metadata.insert("creationTimestamp".into(), Value::Null);
    }
    copy(&space, &first, "agent-of-another", 7).await;
    let rollbackd = Rollbackd::start().await;
    let body = json!({"toRevision": "agent-of-another"});
    let answer = rollbackd.api.post(&rollback(&space), &body).await;
    answer.expect(202);
    rollbackd.api.rollback_at(answer.header("location"), &["succeeded"]).await;
    all_run(&space, "img:1").await;
}

/// A copy of the restored revision that comes up in the middle of the rollout, with this number. The controller relabels
/// what still runs the bad image, and all pods count as updated.
async fn copied_in_the_middle(number: i64) {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:slow", "img:2"]).await;
    let flags = ["--namespace", &space.namespace];
    let setup = Setup { flags: &flags, ..Setup::new(ControlPlane::shared()) };
    let mut rollbackd = Rollbackd::start_with(setup).await;
    let api = rollbackd.api.clone();
    let first = space.revisions().await.remove(0);
    let answer = api.post(&rollback(&space), &json!({"toRevision": 1})).await;
    answer.expect(202);
    until("the restored revision to be the current one", async || {
        let newest = space.revisions().await.pop().unwrap();
        if name(&newest) == name(&first) { Ok(()) } else { Err(newest) }
    })
    .await;
    copy(&space, &first, "agent-copy", number).await;
    let stalled = api.rollback_at(answer.header("location"), &["stalled", "succeeded"]).await;
    assert_eq!(stalled["state"], "stalled", "{stalled}");
    let message = stalled["message"].as_str().unwrap();
    let mut names = [name(&first), "agent-copy"];
    names.sort_unstable();
    let [one, other] = names;
    let said = format!("ControllerRevisions {one} and {other} held the same pod template");
    assert!(message.contains(&said) && message.contains("kubectl rollout restart"), "{message}");
    assert_eq!(stalled["newRevision"], Value::Null);
    // To the controller it is complete, with pods of the bad image.
    let pods = pods(&space).await;
    assert!(pods.iter().any(|(image, _)| image == "img:2"), "{pods:?}");
    let current = space.revisions().await.pop().unwrap();
    let hash = current["metadata"]["labels"][HASH].as_str().unwrap();
    assert!(pods.iter().all(|(_, it)| it == hash), "{pods:?} {hash}");
    let actions = api.actions(&space.namespace).await;
    assert_eq!(actions, ["rollback.requested", "rollback.applied", "rollout.stalled"]);

    // It stays so until the template is another one, also after a restart.
    rollbackd.stop().await;
    let setup = Setup { flags: &flags, store: Some(&rollbackd.store), ..Setup::new(ControlPlane::shared()) };
    let again = Rollbackd::start_with(setup).await;
    let api = &again.api;
    assert_eq!(api.get(answer.header("location")).await.expect(200)["state"], "stalled");
    space.kubectl.run(&["delete", "controllerrevision", "agent-copy"]).await;
    space.kubectl.ok(&["rollout", "restart", "daemonset/agent"]).await;
    let ended = api.rollback_at(answer.header("location"), &["superseded", "succeeded"]).await;
    assert_eq!(ended["state"], "superseded");
    all_run(&space, "img:slow").await;
}

#[tokio::test]
#[ignore = "needs ControllerRevisions made by hand"]
async fn rollout_in_which_a_newer_duplicate_appears_is_stalled() {
    copied_in_the_middle(100).await;
}

/// The controller deletes the copy as soon as it sees it.
#[tokio::test]
#[ignore = "needs ControllerRevisions made by hand"]
async fn rollout_in_which_an_older_duplicate_appears_is_stalled() {
    copied_in_the_middle(1).await;
}
