//! PostgreSQL fails while rollbackd runs: it is down, frozen, slow, full of connections, only read, or lets nobody in.
//! Nothing is changed that is not on record, reads and streams go on, and all is well again once it is back.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use rollbackd::verifier::{Checks, verify_store};
use serde_json::{Value, json};

use crate::support::{
    controlplane::ControlPlane,
    faults,
    line::{Line, Way},
    postgres::{Database, Postgres, run},
    rollbackd::{Rollbackd, Setup},
    space::Space,
    sse::Events,
    store::Place,
    wait::{until, until_within},
};

/// rollbackd's own deadlines are of seconds; several of them may pass one after the other.
const PATIENCE: Duration = Duration::from_secs(120);

/// A rollbackd on a server of its own, and a DaemonSet `agent` with the recorded revisions `img:1` and `img:2`.
struct Trouble {
    space: Space,
    rollbackd: Rollbackd,
    /// Path of the rollback.
    path: String,
    /// A rollback that was made before.
    before: Value,
    database: Arc<Database>,
    line: Line,
    postgres: Postgres,
}

impl Trouble {
    async fn start() -> Self {
        let postgres = Postgres::private();
        let database = Arc::new(postgres.database().await);
        let line = Line::to(postgres.address()).await;
        let space = Space::new(ControlPlane::shared()).await;
        space.recorded(&["img:1", "img:2"]).await;
        space.rolled_out("agent").await;
        let store = Place::Url(database.url_by(line.port).to_string());
        let rollbackd =
            Rollbackd::start_with(Setup { store: Some(&store), ..Setup::new(ControlPlane::shared()) }).await;
        let path = format!("{}/rollback", space.path("agent"));
        let answer = rollbackd.api.post(&path, &json!({})).await;
        answer.expect(202);
        let before = rollbackd.api.rollback_at(answer.header("location"), &["succeeded"]).await;
        space.rolled_out("agent").await;
        Self { space, rollbackd, path, before, database, line, postgres }
    }

    /// Starts to watch a rollout that takes as long as the trouble.
    async fn rollout(&self) -> Events {
        self.space.set_image("agent", "img:slow").await;
        let generation = self.space.observed("agent").await["metadata"]["generation"].clone();
        let path = self.space.path("agent");
        self.rollbackd.api.events(&format!("{path}/status?generation={generation}")).await
    }

    /// What a failing store does, and what it does not.
    async fn is_felt(&self) {
        let api = &self.rollbackd.api;
        let rollout = self.rollout().await;
        let (patches, before) = (self.rollbackd.faults.patches(), self.spec().await);
        // It answers, however the server fails.
        for body in [json!({}), json!({"dryRun": true})] {
            let answer = api.post(&self.path, &body).await;
            let problem = answer.problem(503, "store-unavailable");
            assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
            let command =
                format!("kubectl rollout undo daemonset/agent --namespace={}", self.space.namespace);
            assert!(problem["command"].as_str().unwrap().starts_with(&command), "{problem}");
        }
        assert_eq!(self.rollbackd.faults.patches(), patches);
        assert_eq!(self.spec().await, before);
        // What needs no record goes on.
        api.get(&self.space.path("agent")).await.expect(200);
        api.get(&format!("{}/revisions", self.space.path("agent"))).await.expect(200);
        assert_eq!(rollout.into_all().await.last().unwrap().name, "complete");
        assert_eq!(api.get("/readyz").await.text, "ok");
        let verbose = api.get("/readyz?verbose").await;
        assert_eq!(verbose.status, 200);
        assert!(verbose.text.contains("store degraded: no rollback can be recorded"), "{}", verbose.text);
    }

    async fn spec(&self) -> Value {
        self.space.kubectl.get("daemonset", "agent").await["spec"].clone()
    }

    /// Without a restart.
    async fn recovers(&self) {
        let api = &self.rollbackd.api;
        let answer = until_within(PATIENCE, "a rollback after the trouble", async || {
            let answer = api.post(&self.path, &json!({})).await;
            if answer.status == 202 { Ok(answer) } else { Err(answer) }
        })
        .await;
        api.rollback_at(answer.header("location"), &["succeeded"]).await;
        let location = format!("/rollbacks/{}", self.before["id"].as_str().unwrap());
        assert_eq!(api.get(&location).await.expect(200), self.before);
        until("the store to be called ok", async || {
            let ready = api.get("/readyz?verbose").await;
            if ready.text.contains("[+]store ok") { Ok(()) } else { Err(ready.text) }
        })
        .await;
        // None is left open, of those that were refused either.
        let open = until("every rollback to have its end", async || {
            let all = api.get(&format!("/rollbacks?namespace={}", self.space.namespace)).await.expect(200);
            let all = all["items"].as_array().unwrap().clone();
            if all.iter().any(|one| one["endedAt"].is_null()) { Err(all) } else { Ok(all) }
        })
        .await;
        let made = open.iter().filter(|one| one["state"] == "succeeded").count();
        assert_eq!(made, self.rollbackd.faults.patches(), "{open:?}");
        let report = verify_store(self.database.url().as_str(), &Checks::default()).await.unwrap();
        assert!(report.is_whole(), "{:?}", report.findings);
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn it_is_down() {
    let trouble = Trouble::start().await;
    trouble.postgres.signal("KILL");
    trouble.is_felt().await;
    trouble.postgres.restart();
    trouble.recovers().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn it_is_frozen() {
    let trouble = Trouble::start().await;
    trouble.postgres.signal("STOP");
    trouble.is_felt().await;
    // What is read of the record has an answer, too.
    trouble.rollbackd.api.get("/audit").await.problem(503, "store-unavailable");
    trouble.postgres.signal("CONT");
    trouble.recovers().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn it_is_frozen_and_then_killed() {
    let trouble = Trouble::start().await;
    trouble.postgres.signal("STOP");
    trouble.is_felt().await;
    trouble.postgres.signal("KILL");
    trouble.postgres.restart();
    trouble.recovers().await;
}

/// As when a failover moves the address: what was sent to the old server is answered by nobody.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn it_has_moved_and_old_connections_are_silent_for_ever() {
    let trouble = Trouble::start().await;
    // As many at once as there are connections, each of which is waited for.
    trouble.line.make(Way::Silent);
    let reads = (0..12).map(|_| async { trouble.rollbackd.api.get("/audit").await });
    for read in futures_util::future::join_all(reads).await {
        read.problem(503, "store-unavailable");
    }
    trouble.is_felt().await;
    trouble.line.forget_connections();
    trouble.line.make(Way::Open);
    trouble.recovers().await;
}

/// Each connection is lost in the middle of a write; none of them comes back, and yet there is one again.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn all_connections_have_become_silent_in_the_middle_of_a_write() {
    let trouble = Trouble::start().await;
    trouble.line.make(Way::SilentAfterCommit);
    let body = json!({"dryRun": true});
    let posts = (0..8).map(|_| trouble.rollbackd.api.post(&trouble.path, &body));
    for post in futures_util::future::join_all(posts).await {
        post.problem(503, "store-unavailable");
    }
    trouble.line.forget_connections();
    trouble.line.make(Way::Open);
    trouble.recovers().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn it_is_slow() {
    let trouble = Trouble::start().await;
    let api = &trouble.rollbackd.api;
    // Slow, but in time.
    trouble.line.make(Way::Slow(Duration::from_millis(30)));
    let answer = api.post(&trouble.path, &json!({})).await;
    answer.expect(202);
    api.rollback_at(answer.header("location"), &["succeeded"]).await;
    // Too slow to be waited for.
    trouble.line.make(Way::Slow(Duration::from_secs(4)));
    trouble.is_felt().await;
    trouble.line.make(Way::Open);
    trouble.recovers().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn its_connections_are_all_taken() {
    let trouble = Trouble::start().await;
    let mut admin = trouble.postgres.admin().await;
    let user = trouble.database.name.clone();
    run(&mut admin, &format!("ALTER ROLE {user} CONNECTION LIMIT 0")).await;
    trouble.postgres.end_sessions(&trouble.database).await;
    trouble.is_felt().await;
    run(&mut admin, &format!("ALTER ROLE {user} CONNECTION LIMIT -1")).await;
    trouble.recovers().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn it_can_only_be_read() {
    let trouble = Trouble::start().await;
    let mut admin = trouble.postgres.admin().await;
    let alter = format!("ALTER DATABASE {} SET default_transaction_read_only", trouble.database.name);
    run(&mut admin, &format!("{alter} = on")).await;
    trouble.postgres.end_sessions(&trouble.database).await;
    trouble.is_felt().await;
    // The record can be read.
    let location = format!("/rollbacks/{}", trouble.before["id"].as_str().unwrap());
    assert_eq!(trouble.rollbackd.api.get(&location).await.expect(200), trouble.before);
    // Sessions that were begun meanwhile are not ended, and keep what they were begun with.
    run(&mut admin, &format!("{alter} = off")).await;
    trouble.recovers().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn it_lets_nobody_in() {
    let trouble = Trouble::start().await;
    let mut admin = trouble.postgres.admin().await;
    trouble.postgres.asks_for_passwords().await;
    let user = trouble.database.name.clone();
    run(&mut admin, &format!("ALTER ROLE {user} PASSWORD 'another'")).await;
    trouble.postgres.end_sessions(&trouble.database).await;
    trouble.is_felt().await;
    run(&mut admin, &format!("ALTER ROLE {user} PASSWORD 'right'")).await;
    trouble.recovers().await;
}

/// Runs something right before the patch is sent.
fn before_patch(rollbackd: &Rollbackd, what: impl FnOnce() -> BoxFuture<'static, ()> + Send + 'static) {
    let mut what = Some(what);
    rollbackd
        .faults
        .before(move |request| faults::patch(request).then(|| what.take()).flatten().map(|what| what()));
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn what_was_done_is_recorded_when_it_is_back() {
    let trouble = Trouble::start().await;
    let api = &trouble.rollbackd.api;
    let postgres = Arc::new(trouble.postgres);
    let server = postgres.clone();
    before_patch(&trouble.rollbackd, move || Box::pin(async move { server.signal("KILL") }));
    let answer = api.post(&trouble.path, &json!({"reason": "before it went down"})).await;
    // What is on record.
    assert_eq!(answer.expect(202)["state"], "requested");
    // Nobody can roll back until it is on record, for want of the store and not of their turn.
    let problem = api.post(&trouble.path, &json!({})).await.problem(503, "store-unavailable");
    assert!(problem["command"].as_str().unwrap().starts_with("kubectl rollout undo "), "{problem}");
    postgres.restart();
    let location = answer.header("location");
    let ended = until_within(PATIENCE, "the end to be on record", async || {
        let answer = api.get(location).await;
        if answer.status == 200 && answer.json()["state"] == "succeeded" {
            Ok(answer.json())
        } else {
            Err(answer)
        }
    })
    .await;
    let audit = api.audit(&trouble.space.namespace).await;
    let mine = audit.iter().filter(|entry| entry["rollback"] == ended["id"]);
    let actions: Vec<&Value> = mine.map(|entry| &entry["action"]).collect();
    assert_eq!(actions, ["rollback.requested", "rollback.applied", "rollout.completed"]);
    let report = verify_store(trouble.database.url().as_str(), &Checks::default()).await.unwrap();
    assert!(report.is_whole(), "{:?}", report.findings);
}

/// The server has taken the first record, and rollbackd is not told: it makes nothing, and the record says so.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_record_whose_answer_is_lost_is_withdrawn() {
    let trouble = Trouble::start().await;
    let api = &trouble.rollbackd.api;
    let patches = trouble.rollbackd.faults.patches();
    trouble.line.make(Way::LosesAnswerToCommit);
    api.post(&trouble.path, &json!({"reason": "lost"})).await.problem(503, "store-unavailable");
    let list = format!("/rollbacks?namespace={}", trouble.space.namespace);
    let withdrawn = until("the record to be withdrawn", async || {
        let newest = api.get(&list).await.expect(200)["items"][0].clone();
        if newest["reason"] == "lost" && !newest["endedAt"].is_null() { Ok(newest) } else { Err(newest) }
    })
    .await;
    assert!(["failed", "abandoned"].contains(&withdrawn["state"].as_str().unwrap()), "{withdrawn}");
    assert_eq!(trouble.rollbackd.faults.patches(), patches);
    trouble.recovers().await;
}

/// The outcome is on record, and rollbackd is not told: it does not record it twice, nor leave the rollback alone.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn an_outcome_whose_answer_is_lost_is_recorded_once() {
    let trouble = Trouble::start().await;
    let api = &trouble.rollbackd.api;
    let line = Arc::new(trouble.line);
    let lossy = line.clone();
    before_patch(&trouble.rollbackd, move || Box::pin(async move { lossy.make(Way::LosesAnswerToCommit) }));
    let answer = api.post(&trouble.path, &json!({})).await;
    let made = answer.expect(202);
    api.rollback_at(answer.header("location"), &["succeeded"]).await;
    let audit = api.audit(&trouble.space.namespace).await;
    let mine = audit.iter().filter(|entry| entry["rollback"] == made["id"]);
    let actions: Vec<&Value> = mine.map(|entry| &entry["action"]).collect();
    assert_eq!(actions, ["rollback.requested", "rollback.applied", "rollout.completed"]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_does_not_answer_holds_up_no_stop() {
    let mut trouble = Trouble::start().await;
    trouble.postgres.signal("STOP");
    trouble.rollbackd.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn one_that_is_away_at_the_start_is_told_in_one_line() {
    let postgres = Postgres::private();
    let database = postgres.database().await;
    let shown = format!("postgres://{0}@127.0.0.1:{1}/{0}", database.name, postgres.address().port());
    let start = async |signal: &str| {
        postgres.signal(signal);
        let mut sandbox = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollbackd"));
        sandbox.args(["sandbox", "--listen", "127.0.0.1:0", "--store", database.url().as_str()]);
        let output = sandbox.output().await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for signal in ["STOP", "KILL"] {
        let (code, said) = start(signal).await;
        assert_eq!(code, Some(1), "{signal}: {said}");
        assert_eq!(said.lines().count(), 1, "{signal}: {said}");
        assert!(said.starts_with(&format!("error: --store {shown}: ")), "{signal}: {said}");
        assert!(!said.contains("right"), "the password is told: {said}");
    }
}
