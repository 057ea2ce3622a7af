//! `Idempotency-Key`: what is sent again gets the first answer again, and nothing is made twice.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};
use tokio::sync::Semaphore;

use crate::{
    errors::named,
    support::{
        api::{Answer, Api},
        controlplane::ControlPlane,
        faults::{self, Fault},
        people::Right,
        rollbackd::{Rollbackd, Setup},
        space::Space,
    },
};

async fn agent() -> (Space, Rollbackd, String) {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2", "img:3"]).await;
    // No status is written any more, so that the first patch meets no conflict.
    space.rolled_out("agent").await;
    let path = format!("{}/rollback", space.path("agent"));
    (space, Rollbackd::start().await, path)
}

async fn post_keyed(api: &Api, path: &str, key: &str, body: &Value) -> Answer {
    api.send(api.request(Method::POST, path).json(body).header("idempotency-key", key)).await
}

/// Checks that an answer is the first one again.
fn replays(again: &Answer, first: &Answer) {
    assert_eq!(again.header("idempotent-replayed"), "true", "{again:?}");
    assert_eq!(again.status, first.status, "{again:?}");
    for header in ["location", "content-type", "warning"] {
        assert_eq!(again.header(header), first.header(header), "{header}: {again:?}");
    }
    let body = |answer: &Answer| {
        let mut body = answer.json();
        if first.status >= 400 {
            // A problem names the request that it answers.
            body["requestId"] = Value::Null;
        }
        body
    };
    assert_eq!(body(again), body(first));
}

#[tokio::test]
async fn a_rollback_sent_again_is_not_made_again_also_after_a_restart() {
    let (space, mut rollbackd, path) = agent().await;
    let body = json!({"toRevision": 1, "reason": "it crashes"});
    let first = post_keyed(&rollbackd.api, &path, "\"k-1\"", &body).await;
    assert_eq!((first.status, first.header("idempotent-replayed")), (202, ""), "{first:?}");
    replays(&post_keyed(&rollbackd.api, &path, "\"k-1\"", &body).await, &first);
    // By now 1 has become 4, and the rollout has ended: the answer is still the first one.
    let id = first.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(rollbackd.api.rollback_in(&id, &["succeeded"]).await["newRevision"], 4);
    replays(&post_keyed(&rollbackd.api, &path, "k-1", &body).await, &first);
    // What means the same is the same body.
    let spaced = json!({"toRevision": "1", "reason": " it crashes\n", "dryRun": false});
    replays(&post_keyed(&rollbackd.api, &path, "k-1", &spaced).await, &first);
    assert_eq!(rollbackd.faults.patches(), 1);

    rollbackd.stop().await;
    let again =
        Rollbackd::start_with(Setup { store: Some(&rollbackd.store), ..Setup::new(ControlPlane::shared()) })
            .await;
    replays(&post_keyed(&again.api, &path, "\"k-1\"", &body).await, &first);
    assert_eq!(again.faults.patches(), 0);
    let asked = ["rollback.requested", "rollback.applied", "rollout.completed"];
    assert_eq!(again.api.actions(&space.namespace).await, asked);
    // Another key is another request.
    post_keyed(&again.api, &path, "\"k-2\"", &json!({"toRevision": 2})).await.expect(202);
}

#[tokio::test]
async fn a_crash_before_the_answer_was_kept_leaves_the_record_to_tell() {
    let (_space, mut rollbackd, path) = agent().await;
    let body = json!({"toRevision": 1});
    let first = post_keyed(&rollbackd.api, &path, "k", &body).await.expect(202);
    rollbackd.api.rollback_in(first["id"].as_str().unwrap(), &["succeeded"]).await;
    rollbackd.stop().await;
    let mut store = SqliteConnectOptions::new().filename(rollbackd.store.file()).connect().await.unwrap();
    let forgotten =
        sqlx::query("UPDATE idempotency_keys SET answer = NULL").execute(&mut store).await.unwrap();
    assert_eq!(forgotten.rows_affected(), 1);
    store.close().await.unwrap();
    let again =
        Rollbackd::start_with(Setup { store: Some(&rollbackd.store), ..Setup::new(ControlPlane::shared()) })
            .await;
    let told = post_keyed(&again.api, &path, "k", &body).await;
    assert_eq!(told.header("idempotent-replayed"), "true");
    let rollback = told.expect(202);
    assert_eq!((&rollback["id"], &rollback["state"]), (&first["id"], &json!("succeeded")));
    assert_eq!(again.faults.patches(), 0);
}

#[tokio::test]
async fn a_key_stands_for_one_path_and_body() {
    let (space, rollbackd, path) = agent().await;
    space.kubectl.create(&crate::support::space::daemonset("other", "img:1")).await;
    let api = &rollbackd.api;
    post_keyed(api, &path, "k", &json!({"toRevision": 1})).await.expect(202);
    let other = format!("{}/rollback", space.path("other"));
    for (path, body) in [
        (&path, json!({"toRevision": 2})),
        (&path, json!({})),
        (&path, json!({"toRevision": 1, "reason": "x"})),
        (&path, json!({"toRevision": 1, "dryRun": true})),
        (&path, json!({"toRevision": 1, "failOnWarning": true})),
        (&path, json!({"toRevision": 1, "failOnWarning": true, "ignoreWarnings": ["managed"]})),
        (&path, json!({"toRevision": 1, "expectedRevision": 3})),
        (&other, json!({"toRevision": 1})),
    ] {
        let problem = post_keyed(api, path, "k", &body).await.problem(422, "key-reused");
        assert_eq!(named(&problem), "header Idempotency-Key", "{body}");
    }
    assert_eq!(rollbackd.faults.patches(), 1);
}

#[tokio::test]
async fn while_the_first_is_being_made_the_second_is_told_to_come_back() {
    let (_space, rollbackd, path) = agent().await;
    let gate = Arc::new(Semaphore::new(0));
    let (entered, waiting) = tokio::sync::oneshot::channel();
    let (mut entered, opened) = (Some(entered), gate.clone());
    rollbackd.faults.before(move |request| {
        let entered = faults::patch(request).then(|| entered.take()).flatten()?;
        let opened = opened.clone();
        let held: BoxFuture<'static, ()> = Box::pin(async move {
            entered.send(()).expect("the test waits");
            drop(opened.acquire().await);
        });
        Some(held)
    });
    let body = json!({"toRevision": 1});
    let first = tokio::spawn({
        let (api, path, body) = (rollbackd.api.clone(), path.clone(), body.clone());
        async move { post_keyed(&api, &path, "k", &body).await }
    });
    waiting.await.expect("the first patch is on its way");
    let second = post_keyed(&rollbackd.api, &path, "k", &body).await;
    assert_eq!(named(&second.problem(409, "key-at-work")), "header Idempotency-Key");
    assert_eq!(second.header("retry-after"), "1");
    gate.add_permits(1);
    let first = first.await.expect("it does not panic");
    replays(&post_keyed(&rollbackd.api, &path, "k", &body).await, &first);
    assert_eq!(rollbackd.faults.patches(), 1);
}

#[tokio::test]
async fn of_many_at_once_one_is_made() {
    let (space, rollbackd, path) = agent().await;
    let posts: Vec<_> = (0..8)
        .map(|_| {
            let (api, path) = (rollbackd.api.clone(), path.clone());
            tokio::spawn(async move { post_keyed(&api, &path, "k", &json!({"toRevision": 1})).await })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    for post in posts {
        let answer = post.await.expect("it does not panic");
        match answer.status {
            202 => drop(ids.insert(answer.json()["id"].to_string())),
            _ => drop(answer.problem(409, "key-at-work")),
        }
    }
    assert_eq!(ids.len(), 1);
    let requested = rollbackd.api.actions(&space.namespace).await;
    assert_eq!(requested.iter().filter(|action| *action == "rollback.requested").count(), 1);
}

#[tokio::test]
async fn every_first_answer_that_is_on_record_is_given_again() {
    let (space, rollbackd, path) = agent().await;
    let api = &rollbackd.api;
    // Nothing to do.
    let skip = json!({"toRevision": 3});
    let skipped = post_keyed(api, &path, "skip", &skip).await;
    assert_eq!(skipped.expect(200)["state"], "skipped");
    // The template is changed between the plan and the patch.
    let (kubectl, mut changed) = (space.kubectl.clone(), false);
    rollbackd.faults.before(move |request| {
        let first = faults::patch(request) && !std::mem::replace(&mut changed, true);
        let kubectl = kubectl.clone();
        first.then(|| -> BoxFuture<'static, ()> {
            Box::pin(async move {
                kubectl.ok(&["set", "image", "daemonset/agent", "main=img:4"]).await;
            })
        })
    });
    let modify = json!({"toRevision": 2});
    let modified = post_keyed(api, &path, "modified", &modify).await;
    modified.problem(409, "modified");
    // The API server says no.
    let no = Fault::Answer {
        status: 422,
        headers: vec![],
        body: r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no","reason":"Invalid","code":422}"#,
    };
    rollbackd.faults.inject(1, no, faults::patch);
    let refuse = json!({"toRevision": 1});
    let refused = post_keyed(api, &path, "refused", &refuse).await;
    refused.problem(422, "refused-by-api-server");
    // The end, for who waits; whoever asks again does not wait.
    let wait = json!({"toRevision": 1});
    let request = api.request(Method::POST, &path).json(&wait).header("idempotency-key", "wait");
    let waited = api.send(request.header("prefer", "wait=60")).await;
    assert_eq!(waited.expect(200)["state"], "succeeded");
    let patches = rollbackd.faults.patches();
    for (key, body, first) in [
        ("skip", &skip, &skipped),
        ("modified", &modify, &modified),
        ("refused", &refuse, &refused),
        ("wait", &wait, &waited),
    ] {
        replays(&post_keyed(api, &path, key, body).await, first);
    }
    assert_eq!(rollbackd.faults.patches(), patches);
}

#[tokio::test]
async fn what_came_to_nothing_is_made_when_it_is_sent_again() {
    let (_space, rollbackd, path) = agent().await;
    let api = &rollbackd.api;
    // Refused before it was recorded.
    let body = json!({"toRevision": 2, "expectedRevision": 4});
    post_keyed(api, &path, "early", &body).await.problem(412, "unexpected-revision");
    let other = api.post(&path, &json!({"toRevision": 1})).await.expect(202);
    api.rollback_in(other["id"].as_str().unwrap(), &["succeeded"]).await;
    let made = post_keyed(api, &path, "early", &body).await;
    made.expect(202);
    assert_eq!(made.header("idempotent-replayed"), "");
    let second: Value = serde_json::from_str(&made.text).unwrap();
    api.rollback_in(second["id"].as_str().unwrap(), &["succeeded"]).await;
    // Recorded, and then the API server was away: `Retry-After` is meant.
    rollbackd.faults.inject(1, Fault::CutBefore, faults::patch);
    let body = json!({"toRevision": 3});
    let away = post_keyed(api, &path, "away", &body).await;
    away.problem(503, "cluster-unavailable");
    let made = post_keyed(api, &path, "away", &body).await;
    made.expect(202);
    assert_eq!(made.header("idempotent-replayed"), "");
    replays(&post_keyed(api, &path, "away", &body).await, &made);
    // A dry run is always made.
    for _ in 0..2 {
        let preview = post_keyed(api, &path, "dry", &json!({"dryRun": true})).await;
        assert_eq!((preview.status, preview.header("idempotent-replayed")), (200, ""), "{preview:?}");
    }
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_key_belongs_to_its_caller() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    let rights = [Right::View, Right::RollBack];
    let (alice, bob) = (space.person("alice", &rights).await, space.person("bob", &rights).await);
    let rollbackd = Rollbackd::guarded().await;
    let path = format!("{}/rollback", space.path("agent"));
    let (alice, bob) = (rollbackd.api.with_token(&alice), rollbackd.api.with_token(&bob));
    let body = json!({"toRevision": 1});
    let first = post_keyed(&alice, &path, "k", &body).await;
    first.expect(202);
    let theirs = post_keyed(&bob, &path, "k", &json!({"toRevision": 2})).await;
    theirs.expect(202);
    assert_eq!(theirs.header("idempotent-replayed"), "");
    replays(&post_keyed(&alice, &path, "k", &body).await, &first);
    // Who may no longer roll back is not told again either.
    space.take("alice", Right::RollBack).await;
    crate::support::wait::until("the right to be gone", async || {
        let answer = post_keyed(&alice, &path, "k", &body).await;
        if answer.status == 403 { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let (space, rollbackd, path) = agent().await;
    let long = "k".repeat(256);
    let quoted = format!("\"{long}\"");
    for key in ["", "\"\"", "\"k", "a b", "a, b", "\"a\";b=c", &long, &quoted] {
        let answer = post_keyed(&rollbackd.api, &path, key, &json!({})).await;
        assert_eq!(named(&answer.problem(400, "invalid-request")), "header Idempotency-Key", "{key}");
    }
    assert_eq!(rollbackd.api.actions(&space.namespace).await, [""; 0]);
}
