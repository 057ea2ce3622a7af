//! A rollback is what `kubectl rollout undo` does: same words, same objects. Each case is made twice,
//! in two namespaces: kubectl undoes in one, rollbackd rolls back in the other.

use serde_json::json;

use crate::support::twins::Twins;

#[tokio::test]
async fn to_a_number_restores_it_under_the_next_number() {
    let twins = Twins::of(&["img:1", "img:2", "img:3"]).await;
    let answer = twins.undo(&["--to-revision=1"], json!({"toRevision": 1})).await;
    assert_eq!(answer.status, 202);
    let numbers = twins.ours.revisions().await;
    let numbers: Vec<_> = numbers.iter().map(|revision| revision["revision"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [2, 3, 4]);
    let answer = twins.undo(&["--to-revision=1"], json!({"toRevision": 1})).await;
    assert_eq!(answer.status, 422);
    twins.undo(&["--to-revision=3"], json!({"toRevision": "3"})).await;
}

#[tokio::test]
async fn to_the_previous_one_however_it_is_said_and_again_and_again() {
    let twins = Twins::of(&["img:1", "img:2", "img:3"]).await;
    let bodies = [
        json!({}),
        json!({"toRevision": null}),
        json!({"toRevision": 0}),
        json!({"toRevision": "previous"}),
        json!({"toRevision": "0"}),
    ];
    let mut running = Vec::new();
    for (turn, body) in bodies.into_iter().enumerate() {
        let flags: &[&str] = if turn % 2 == 0 { &[] } else { &["--to-revision=0"] };
        let answer = twins.undo(flags, body).await;
        let record = twins.record(&answer).await;
        running.push((record["from"]["revision"].clone(), record["to"]["revision"].clone()));
    }
    // Previous twice is there and back.
    let expected = [(3, 2), (4, 3), (5, 4), (6, 5), (7, 6)].map(|(from, to)| (json!(from), json!(to)));
    assert_eq!(running, expected);
}

#[tokio::test]
async fn to_the_running_revision_is_skipped_and_writes_nothing() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    twins.both(async |space| space.rolled_out("agent").await).await;
    let before = twins.ours.kubectl.get("daemonset", "agent").await;
    let answer = twins.undo(&["--to-revision=2"], json!({"toRevision": 2})).await;
    assert!(answer.text.contains("skipped rollback (current template already matches revision 2)"));
    assert_eq!(answer.status, 200);
    let record = twins.record(&answer).await;
    assert_eq!(record["state"], "skipped");
    assert_eq!((&record["from"]["revision"], &record["to"]["revision"]), (&json!(2), &json!(2)));
    assert_eq!(record["message"], "skipped rollback (current template already matches revision 2)");
    twins.undo(&["--to-revision=2", "--dry-run=server"], json!({"toRevision": 2, "dryRun": true})).await;
    assert_eq!(twins.ours.kubectl.get("daemonset", "agent").await, before);
}

#[tokio::test]
async fn what_is_not_in_the_history_is_refused_in_the_same_words() {
    let twins = Twins::of(&["img:1"]).await;
    // The only revision: there is none before it, and it is the running one.
    let answer = twins.undo(&[], json!({})).await;
    assert_eq!(answer.text, "error: no last revision to roll back to\n");
    assert_eq!(answer.status, 422);
    let answer = twins.undo(&["--to-revision=1"], json!({"toRevision": 1})).await;
    assert_eq!(answer.status, 200);
    for number in [99, -1, i64::MAX, i64::MIN] {
        let flag = format!("--to-revision={number}");
        let answer = twins.undo(&[&flag], json!({"toRevision": number})).await;
        let text = format!("unable to find specified revision {number} in history");
        assert_eq!(answer.text, format!("error: {text}\n"));
        assert_eq!(answer.status, 422);
        let problem = twins.rollbackd.api.post(&twins.path(), &json!({"toRevision": number})).await;
        let problem = problem.problem(422, "unknown-revision");
        assert_eq!(problem["detail"], text);
        assert_eq!(problem["errors"], json!([{"pointer": "/toRevision", "detail": text}]));
        twins.undo(&[&flag, "--dry-run=server"], json!({"toRevision": number, "dryRun": true})).await;
    }
    let path = format!("{}/rollback", twins.ours.path("none"));
    let answer = twins.rollbackd.api.post_as(&path, &json!({}), "text/plain").await;
    let words = "Error from server (NotFound): daemonsets.apps \"none\" not found\n";
    assert_eq!((answer.status, answer.text.as_str()), (404, words));
    if let Some(printed) = twins.theirs.kubectl.beside(&["rollout", "undo", "daemonset/none"]).await {
        assert_eq!(printed.stderr, words);
    }
}

#[tokio::test]
async fn a_server_dry_run_changes_nothing_and_shows_what_would_change() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    twins.both(async |space| space.rolled_out("agent").await).await;
    let before = twins.ours.kubectl.get("daemonset", "agent").await;
    let revisions = twins.ours.revisions().await;
    let answer = twins.undo(&["--dry-run=server"], json!({"dryRun": true})).await;
    assert_eq!(answer.text, "daemonset.apps/agent rolled back (server dry run)\n");
    assert_eq!((answer.status, answer.header("location")), (200, ""));

    let body = json!({"toRevision": 1, "dryRun": true, "reason": "only looking"});
    let preview = twins.rollbackd.api.post(&twins.path(), &body).await.expect(200);
    assert_eq!((&preview["dryRun"], &preview["skipped"]), (&json!(true), &json!(false)));
    assert_eq!((&preview["from"]["revision"], &preview["to"]["revision"]), (&json!(2), &json!(1)));
    assert_eq!(preview["generation"], before["metadata"]["generation"].as_i64().unwrap() + 1);
    let change =
        json!([{"op": "replace", "path": "/spec/containers/0/image", "from": "img:2", "to": "img:1"}]);
    assert_eq!(preview["diff"]["changes"], change, "{preview}");
    let unified = preview["diff"]["unified"].as_str().unwrap();
    assert!(unified.contains("\n-") && unified.contains("image: img:2"), "{unified}");
    assert!(unified.contains("\n+") && unified.contains("image: img:1"), "{unified}");

    assert_eq!(twins.ours.kubectl.get("daemonset", "agent").await, before);
    assert_eq!(twins.ours.revisions().await, revisions);
    let api = &twins.rollbackd.api;
    let namespace = &twins.ours.namespace;
    let listed = api.get(&format!("/rollbacks?namespace={namespace}")).await.expect(200);
    assert_eq!(listed["items"], json!([]));
    let audit = api.audit(namespace).await;
    assert_eq!(audit.len(), 2, "{audit:?}");
    let entry = &audit[1];
    assert_eq!((&entry["action"], &entry["dryRun"]), (&json!("rollback.dryRun"), &json!(true)));
    assert_eq!((&entry["from"]["revision"], &entry["to"]["revision"]), (&json!(2), &json!(1)));
    assert_eq!((&entry["outcome"], &entry["reason"]), (&json!("success"), &body["reason"]));
}
