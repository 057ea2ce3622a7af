//! The audit store fails while rollbackd runs. Nothing is changed that is not on record; reads go on.

use serde_json::json;
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::support::{controlplane::ControlPlane, faults, rollbackd::Rollbackd, space::Space, wait::until};

/// Keeps everybody else from writing, as a full disk or a stuck backup does, until it is dropped.
async fn lock(rollbackd: &Rollbackd) -> SqliteConnection {
    let mut other = SqliteConnectOptions::new().filename(rollbackd.store.file()).connect().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    other
}

async fn agent() -> (Space, Rollbackd, String) {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    // No status is written any more, so that the first patch meets no conflict.
    space.rolled_out("agent").await;
    let path = format!("{}/rollback", space.path("agent"));
    (space, Rollbackd::start().await, path)
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done() {
    let (space, rollbackd, path) = agent().await;
    let api = &rollbackd.api;
    let before = space.kubectl.get("daemonset", "agent").await;
    let lock = lock(&rollbackd).await;
    // A rollback, a skipped one, a dry run.
    let bodies = [json!({"toRevision": 1}), json!({"toRevision": 2}), json!({"dryRun": true})];
    let posts = bodies.map(|body| {
        let (api, path) = (api.clone(), path.clone());
        tokio::spawn(async move { (api.post(&path, &body).await, body) })
    });
    for post in posts {
        // Also the one whose turn the other has: both wait for the store.
        let (answer, body) = post.await.expect("it does not panic");
        let problem = answer.problem(503, "store-unavailable");
        let detail =
            "the audit store is not available, so that the rollback can't be recorded; nothing was changed";
        assert_eq!(problem["detail"], detail, "{body}");
        let command = format!("kubectl rollout undo daemonset/agent --namespace={}", space.namespace);
        assert!(problem["command"].as_str().unwrap().starts_with(&command), "{problem}");
        assert!(!answer.header("retry-after").is_empty());
    }
    assert_eq!(rollbackd.faults.patches(), 0);
    let after = space.kubectl.get("daemonset", "agent").await;
    assert_eq!(
        (&after["spec"], &after["metadata"]["generation"]),
        (&before["spec"], &before["metadata"]["generation"])
    );

    // A refusal needs no record to be true.
    api.post(&path, &json!({"toRevision": 99})).await.problem(422, "unknown-revision");
    // Reads go on, and it is said what is wrong.
    api.get(&space.path("agent")).await.expect(200);
    api.get(&format!("{}/revisions", space.path("agent"))).await.expect(200);
    assert!(api.actions(&space.namespace).await.is_empty());
    assert_eq!(api.get("/readyz").await.text, "ok");
    let verbose = api.get("/readyz?verbose").await;
    assert_eq!(verbose.status, 200);
    assert!(verbose.text.contains("store degraded: no rollback can be recorded"), "{}", verbose.text);

    lock.close().await.unwrap();
    let answer = api.post(&path, &json!({"toRevision": 1})).await;
    answer.expect(202);
    api.rollback_at(answer.header("location"), &["succeeded"]).await;
    assert!(api.get("/readyz?verbose").await.text.contains("[+]store ok"));
    let metrics = api.get("/metrics").await.text;
    let errors = metrics.lines().find_map(|line| line.strip_prefix("rollbackd_store_errors_total "));
    assert!(errors.and_then(|count| count.parse::<u64>().ok()).is_some_and(|count| count >= 3), "{errors:?}");
}

#[tokio::test]
async fn what_was_done_is_recorded_when_the_store_is_back() {
    let (space, rollbackd, path) = agent().await;
    let api = &rollbackd.api;
    // The store fails between the record and the patch's answer.
    let (locked, held) = tokio::sync::oneshot::channel();
    let (store, mut locked) = (rollbackd.store.file().to_owned(), Some(locked));
    rollbackd.faults.before(move |request| {
        let locked = faults::patch(request).then(|| locked.take()).flatten()?;
        let store = store.clone();
        Some(Box::pin(async move {
            let mut other = SqliteConnectOptions::new().filename(store).connect().await.unwrap();
            sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
            drop(locked.send(other));
        }))
    });
    let answer = api.post(&path, &json!({"toRevision": 1, "reason": "before the disk was full"})).await;
    let made = answer.expect(202);
    // What is on record.
    assert_eq!(made["state"], "requested");
    let image = &space.observed("agent").await["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, "img:1");
    // Until it is on record it is undecided for everybody else, who need not wait for a turn that is of no use.
    assert_eq!(api.get(answer.header("location")).await.expect(200)["state"], "requested");
    let problem = api.post(&path, &json!({"toRevision": 2})).await.problem(503, "store-unavailable");
    assert!(problem["command"].as_str().unwrap().ends_with("--to-revision=2"), "{problem}");

    held.await.expect("the store was locked").close().await.unwrap();
    let ended = api.rollback_at(answer.header("location"), &["succeeded"]).await;
    assert_eq!((&ended["newRevision"], &ended["reason"]), (&json!(3), &made["reason"]));
    let actions = api.actions(&space.namespace).await;
    let actions: Vec<_> = actions.iter().filter(|action| *action != "rollback.refused").collect();
    assert_eq!(actions, ["rollback.requested", "rollback.applied", "rollout.completed"]);
}

#[tokio::test]
async fn a_store_that_cannot_be_read_says_so() {
    let (space, rollbackd, path) = agent().await;
    let api = &rollbackd.api;
    // The table is gone: whoever can write the file can do that.
    let mut other = SqliteConnectOptions::new().filename(rollbackd.store.file()).connect().await.unwrap();
    sqlx::query("ALTER TABLE rollbacks RENAME TO elsewhere").execute(&mut other).await.unwrap();
    for read in ["/rollbacks", "/rollbacks/01936b5e-7d0a-7f43-9c7e-2f3f6a0b1c2d"] {
        let problem = api.get(read).await.problem(503, "store-unavailable");
        assert_eq!(problem["detail"], "the audit store is not available");
    }
    api.post(&path, &json!({})).await.problem(503, "store-unavailable");
    assert_eq!(rollbackd.faults.patches(), 0);
    api.get(&space.path("agent")).await.expect(200);
    sqlx::query("ALTER TABLE elsewhere RENAME TO rollbacks").execute(&mut other).await.unwrap();
    until("the store to work again", async || {
        let answer = api.post(&path, &json!({})).await;
        if answer.status == 202 { Ok(()) } else { Err(answer) }
    })
    .await;
}

/// What is only in the log is gone with it when the process is killed.
#[tokio::test]
async fn a_store_whose_log_is_gone_takes_no_more_records() {
    let (_space, rollbackd, path) = agent().await;
    let mut log = rollbackd.store.file().to_owned().into_os_string();
    log.push("-wal");
    std::fs::remove_file(log).unwrap();
    rollbackd.api.post(&path, &json!({"toRevision": 1})).await.problem(503, "store-unavailable");
    assert_eq!(rollbackd.faults.patches(), 0);
}

/// SQLite itself would go on, into a file that nobody can open any more.
#[tokio::test]
async fn a_store_whose_file_is_gone_takes_no_more_records() {
    let (space, rollbackd, path) = agent().await;
    let before = space.kubectl.get("daemonset", "agent").await;
    let file = rollbackd.store.file();
    std::fs::rename(file, file.with_extension("moved")).unwrap();
    for dry_run in [false, true] {
        let answer = rollbackd.api.post(&path, &json!({"toRevision": 1, "dryRun": dry_run})).await;
        let problem = answer.problem(503, "store-unavailable");
        assert!(problem["retryAfter"].is_u64(), "{problem}");
    }
    std::fs::write(file, "another one").unwrap();
    rollbackd.api.post(&path, &json!({"toRevision": 1})).await.problem(503, "store-unavailable");
    assert_eq!(rollbackd.faults.patches(), 0);
    assert_eq!(space.kubectl.get("daemonset", "agent").await["spec"], before["spec"]);
    rollbackd.api.get(&space.path("agent")).await.expect(200);
    until("the store to be called degraded", async || {
        let ready = rollbackd.api.get("/readyz?verbose").await;
        if ready.text.contains("store degraded") { Ok(()) } else { Err(ready.text) }
    })
    .await;
}
