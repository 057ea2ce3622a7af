//! Several replicas over one cluster and one PostgreSQL: any of them answers any request, and what one of them leaves
//! behind another one brings to its end.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::{BoxFuture, join_all};
use reqwest::Method;
use rollbackd::verifier::{Checks, verify_store};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{
    account,
    api::{Answer, Api},
    controlplane::ControlPlane,
    faults,
    postgres::{Database, Postgres},
    program::{Running, free_port},
    rollbackd::{Rollbackd, Setup},
    space::Space,
    store::Place,
    wait::until,
};

/// Three replicas, and a DaemonSet `agent` with the recorded revisions `img:1`, `img:2`, `img:3`.
struct Replicas {
    space: Space,
    all: Vec<Rollbackd>,
    store: Place,
    /// Path of the rollback.
    path: String,
}

impl Replicas {
    async fn start() -> Self {
        Self::with_images(&["img:1", "img:2", "img:3"]).await
    }

    async fn with_images(images: &[&str]) -> Self {
        let space = Space::new(ControlPlane::shared()).await;
        space.recorded(images).await;
        let store = Place::Database(Arc::new(Postgres::shared().database().await));
        // At once, as a Deployment starts them: each makes the schema.
        let all = join_all((0..3).map(|_| replica(&store))).await;
        let path = format!("{}/rollback", space.path("agent"));
        Self { space, all, store, path }
    }

    fn api(&self, number: usize) -> &Api {
        &self.all[number % self.all.len()].api
    }

    /// Patches that were sent by all of them.
    fn patches(&self) -> usize {
        self.all.iter().map(|one| one.faults.patches()).sum()
    }

    async fn assert_whole(&self) {
        let report = verify_store(&self.store.url(), &Checks::default()).await.unwrap();
        assert!(report.is_whole(), "{:?}", report.findings);
    }
}

async fn replica(store: &Place) -> Rollbackd {
    Rollbackd::start_with(Setup { store: Some(store), ..Setup::new(ControlPlane::shared()) }).await
}

fn id(answer: &Answer) -> String {
    answer.json()["id"].as_str().expect("an id").to_owned()
}

/// Actions of one rollback, oldest first.
async fn actions_of(api: &Api, namespace: &str, id: &str) -> Vec<String> {
    let audit = api.audit(namespace).await;
    let mine = audit.iter().filter(|entry| entry["rollback"] == id);
    mine.map(|entry| entry["action"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn any_of_them_answers_any_request() {
    let replicas = Replicas::with_images(&["img:slow", "img:2"]).await;
    let (space, path) = (&replicas.space, &replicas.path);
    let [a, b, c] = [0, 1, 2].map(|number| replicas.api(number));
    let etag = a.get(&space.path("agent")).await.header("etag").to_owned();
    let request =
        a.request(Method::POST, path).json(&json!({"reason": "it crashes"})).header("if-match", &etag);
    let answer = a.send(request).await;
    let made = answer.expect(202);
    let location = answer.header("location");

    // Read at once elsewhere, by id and in the list, and followed from a third.
    assert_eq!(b.get(location).await.expect(200)["state"], "progressing");
    let listed = c.get(&format!("/rollbacks?namespace={}", space.namespace)).await.expect(200);
    assert_eq!(listed["items"][0]["id"], made["id"]);
    let stream = c.events(location).await;
    // The status of the generation that it made, from whoever has not seen it yet.
    let status = format!("/{}", made["links"]["status"].as_str().unwrap());
    let rollout = b.events(&status).await;
    // A precondition that held before holds no longer, wherever it is asked.
    let request = b.request(Method::POST, path).json(&json!({"toRevision": 2})).header("if-match", &etag);
    b.send(request).await.problem(412, "precondition-failed");

    let states = stream.into_all().await;
    let last = states.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["state"]), ("ended", &json!("succeeded")), "{states:?}");
    assert_eq!(rollout.into_all().await.last().unwrap().name, "complete");
    for api in [a, b, c] {
        let ended = api.get(location).await.expect(200);
        assert_eq!((&ended["state"], &ended["newRevision"]), (&json!("succeeded"), &json!(3)));
    }
    let heads = join_all((0..3).map(|number| replicas.api(number).get("/audit/head"))).await;
    assert_eq!(heads.iter().map(|head| head.text.clone()).collect::<BTreeSet<_>>().len(), 1, "{heads:?}");
    let expected = ["rollback.requested", "rollback.applied", "rollout.completed"];
    assert_eq!(actions_of(b, &space.namespace, &id(&answer)).await, expected);
    replicas.assert_whole().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn of_many_rollbacks_at_once_one_is_made() {
    let replicas = Replicas::start().await;
    replicas.space.rolled_out("agent").await;
    // The first patch waits until all others are answered.
    let gate = Arc::new(Semaphore::new(0));
    for one in &replicas.all {
        let gate = gate.clone();
        one.faults.before(move |request| {
            let gate = gate.clone();
            faults::patch(request)
                .then(|| -> BoxFuture<'static, ()> { Box::pin(async move { drop(gate.acquire().await) }) })
        });
    }
    let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..20 {
        let (api, path, answers) = (replicas.api(number).clone(), replicas.path.clone(), answers.clone());
        tokio::spawn(async move {
            let _ = answers.send(api.post(&path, &json!({"toRevision": 1})).await);
        });
    }
    for _ in 0..19 {
        let answer = answered.recv().await.expect("it answers");
        answer.problem(409, "rollback-in-progress");
    }
    gate.add_permits(100);
    let made = answered.recv().await.expect("it answers");
    made.expect(202);
    replicas.api(1).rollback_at(made.header("location"), &["succeeded"]).await;
    assert_eq!(replicas.patches(), 1);
    let actions = replicas.api(2).actions(&replicas.space.namespace).await;
    let made = actions.iter().filter(|action| *action != "rollback.refused").collect::<Vec<_>>();
    assert_eq!(made, ["rollback.requested", "rollback.applied", "rollout.completed"]);
    replicas.assert_whole().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn the_same_key_on_all_of_them_at_once_makes_one_rollback() {
    let replicas = Replicas::start().await;
    replicas.space.rolled_out("agent").await;
    let post = |number: usize| {
        let (api, path) = (replicas.api(number).clone(), replicas.path.clone());
        async move {
            let request = api.request(Method::POST, &path).json(&json!({"toRevision": 1}));
            api.send(request.header("idempotency-key", "k")).await
        }
    };
    let mut ids = BTreeSet::new();
    for answer in join_all((0..12).map(post)).await {
        match answer.status {
            202 => drop(ids.insert(id(&answer))),
            _ => drop(answer.problem(409, "key-at-work")),
        }
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
    // And again, from each: the first answer.
    for number in 0..3 {
        let again = post(number).await;
        assert_eq!(again.header("idempotent-replayed"), "true", "{again:?}");
        assert!(ids.contains(&id(&again)));
    }
    assert_eq!(replicas.patches(), 1);
    let actions = replicas.api(0).actions(&replicas.space.namespace).await;
    assert_eq!(actions.iter().filter(|action| *action == "rollback.requested").count(), 1);
    replicas.assert_whole().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn what_one_followed_that_stops_another_follows_to_the_end() {
    let mut replicas = Replicas::with_images(&["img:slow", "img:2"]).await;
    let answer = replicas.api(0).post(&replicas.path, &json!({})).await;
    answer.expect(202);
    let stream = replicas.api(1).events(answer.header("location")).await;
    replicas.all[0].stop().await;
    replicas.all.remove(0);
    let states = stream.into_all().await;
    assert_eq!(states.last().unwrap().data["state"], "succeeded", "{states:?}");
    let expected = ["rollback.requested", "rollback.applied", "rollout.completed"];
    assert_eq!(actions_of(replicas.api(0), &replicas.space.namespace, &id(&answer)).await, expected);
    // A new one finds nothing left to do.
    let new = replica(&replicas.store).await;
    assert_eq!(new.api.get(answer.header("location")).await.expect(200)["state"], "succeeded");
    replicas.assert_whole().await;
}

/// Between record and patch one is cut off from the store, for so long that another one settles the rollback: its
/// patch, which it sends afterwards, meets a conflict.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn who_sends_its_patch_too_late_changes_nothing() {
    let replicas = Replicas::start().await;
    replicas.space.rolled_out("agent").await;
    let before = replicas.space.kubectl.get("daemonset", "agent").await;
    let gate = Arc::new(Semaphore::new(0));
    let (entered, waiting) = tokio::sync::oneshot::channel();
    let (mut entered, opened) = (Some(entered), gate.clone());
    replicas.all[0].faults.before(move |request| {
        let entered = faults::patch(request).then(|| entered.take()).flatten()?;
        let opened = opened.clone();
        Some(Box::pin(async move {
            entered.send(()).expect("the test waits");
            drop(opened.acquire().await);
        }))
    });
    let (api, path) = (replicas.api(0).clone(), replicas.path.clone());
    let first = tokio::spawn(async move { api.post(&path, &json!({"toRevision": 1})).await });
    waiting.await.expect("the patch is on its way");
    // Taken for dead by the others: its lease is over, and what it would renew is another's by then.
    let listed = replicas.api(1).get(&format!("/rollbacks?namespace={}", replicas.space.namespace)).await;
    let id = listed.expect(200)["items"][0]["id"].as_str().unwrap().to_owned();
    let Place::Database(database) = &replicas.store else { unreachable!("made above") };
    let mut raw = database.connect().await;
    until("another one to settle it", async || {
        let lapse = "UPDATE rollbacks SET lease = 0 WHERE epoch = 1 AND open";
        crate::support::postgres::run(&mut raw, lapse).await;
        let rollback = replicas.api(1).get(&format!("/rollbacks/{id}")).await.expect(200);
        if rollback["state"] == "abandoned" { Ok(()) } else { Err(rollback) }
    })
    .await;
    gate.add_permits(1);
    let answer = first.await.unwrap();
    assert_eq!(answer.status / 100, 5, "{answer:?}");
    assert!(answer.json()["detail"].as_str().unwrap().contains("nothing was changed"), "{answer:?}");
    let after = replicas.space.kubectl.get("daemonset", "agent").await;
    assert_eq!(
        (&after["spec"], &after["metadata"]["generation"]),
        (&before["spec"], &before["metadata"]["generation"])
    );
    for number in 0..3 {
        let rollback = replicas.api(number).get(&format!("/rollbacks/{id}")).await.expect(200);
        assert_eq!(rollback["state"], "abandoned");
    }
    let expected = ["rollback.requested", "rollback.failed"];
    assert_eq!(actions_of(replicas.api(0), &replicas.space.namespace, &id).await, expected);
    // The next one is in nobody's way, wherever it is asked for.
    let next = replicas.api(0).post(&replicas.path, &json!({"toRevision": 1})).await;
    next.expect(202);
    replicas.api(2).rollback_at(next.header("location"), &["succeeded"]).await;
    replicas.assert_whole().await;
}

/// Whoever follows a rollback is taken for dead, and is not.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_rollback_that_two_follow_is_written_to_by_one() {
    let replicas = Replicas::with_images(&["img:missing", "img:2"]).await;
    let answer = replicas.api(0).post(&replicas.path, &json!({})).await;
    answer.expect(202);
    let Place::Database(database) = &replicas.store else { unreachable!("made above") };
    let mut raw = database.connect().await;
    until("another one to take it", async || {
        let lapse = "UPDATE rollbacks SET lease = 0 WHERE epoch = 1 AND open";
        crate::support::postgres::run(&mut raw, lapse).await;
        let epoch: i64 = sqlx::query_scalar("SELECT epoch FROM rollbacks").fetch_one(&mut raw).await.unwrap();
        if epoch > 1 { Ok(()) } else { Err(epoch) }
    })
    .await;
    replicas.space.set_image("agent", "img:3").await;
    // The one that has lost it reads on all the same, and says what the other one writes.
    for number in 0..3 {
        replicas.api(number).rollback_at(answer.header("location"), &["superseded"]).await;
    }
    let expected = ["rollback.requested", "rollback.applied", "rollout.superseded"];
    assert_eq!(actions_of(replicas.api(0), &replicas.space.namespace, &id(&answer)).await, expected);
    replicas.assert_whole().await;
}

/// A replica as a process of its own, on the real control plane.
struct Process {
    running: Running,
    address: std::net::SocketAddr,
    api: Api,
}

impl Process {
    async fn start(database: &Database) -> Self {
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let kubeconfig = ControlPlane::shared().kubeconfig(account::USER);
        let url = database.url().to_string();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rollbackd"));
        command.args(["serve", "--auth", "none", "--drain-delay", "0s", "--listen", &listen]);
        command.arg("--kubeconfig").arg(kubeconfig).env("ROLLBACKD_STORE", url);
        let running = Running::spawn(&mut command);
        let address = listen.parse().unwrap();
        let api = Api::new(address);
        let ready = format!("http://{listen}/readyz");
        until("the replica to be ready", async || match reqwest::get(&ready).await {
            Ok(answer) if answer.status() == 200 => Ok(()),
            other => Err(other.map(|answer| answer.status())),
        })
        .await;
        Self { running, address, api }
    }
}

/// What cluster, record and audit say of the rollbacks of a DaemonSet, which must be the same.
async fn all_agree(space: &Space, api: &Api, store: &str) -> Vec<Value> {
    let listed = until("every rollback to have its end", async || {
        let all =
            api.get(&format!("/rollbacks?namespace={}", space.namespace)).await.expect(200)["items"].clone();
        let open = all.as_array().unwrap().iter().any(|one| one["endedAt"].is_null());
        if open { Err(all) } else { Ok(all) }
    })
    .await;
    let listed = listed.as_array().unwrap().clone();
    let live = space.kubectl.get("daemonset", "agent").await;
    let annotated = live["metadata"]["annotations"]["rollbackd.dev/rollback"].as_str();
    let applied =
        |one: &&Value| ["succeeded", "superseded", "applied"].contains(&one["state"].as_str().unwrap());
    assert_eq!(listed.iter().find(applied).and_then(|newest| newest["id"].as_str()), annotated, "{listed:?}");
    for one in &listed {
        let actions = actions_of(api, &space.namespace, one["id"].as_str().unwrap()).await;
        let says_applied = actions.iter().filter(|action| *action == "rollback.applied").count();
        assert_eq!(says_applied, usize::from(applied(&one)), "{one}: {actions:?}");
        assert_eq!(actions.iter().filter(|action| *action == "rollback.requested").count(), 1, "{actions:?}");
    }
    let report = verify_store(store, &Checks::default()).await.unwrap();
    assert!(report.is_whole(), "{:?}", report.findings);
    listed
}

#[tokio::test]
#[ignore = "needs PostgreSQL and processes of their own on a real control plane"]
async fn one_that_is_killed_is_taken_over() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:slow", "img:2"]).await;
    let path = format!("{}/rollback", space.path("agent"));
    let database = Postgres::shared().database().await;
    let mut first = Process::start(&database).await;
    let second = Process::start(&database).await;
    let answer = first.api.post(&path, &json!({"reason": "it crashes"})).await;
    answer.expect(202);
    let stream = second.api.events(answer.header("location")).await;
    first.running.kill();
    let states = stream.into_all().await;
    assert_eq!(states.last().unwrap().data["state"], "succeeded", "{states:?}");
    let listed = all_agree(&space, &second.api, database.url().as_str()).await;
    assert_eq!(listed.len(), 1);
}

#[tokio::test]
#[ignore = "needs PostgreSQL and processes of their own on a real control plane"]
async fn one_that_is_frozen_while_it_follows_writes_nothing_when_it_wakes_up() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:slow", "img:2"]).await;
    let path = format!("{}/rollback", space.path("agent"));
    let database = Postgres::shared().database().await;
    let first = Process::start(&database).await;
    let second = Process::start(&database).await;
    let answer = first.api.post(&path, &json!({"reason": "it crashes"})).await;
    answer.expect(202);
    first.running.signal("STOP");
    let ended = second.api.rollback_at(answer.header("location"), &["succeeded"]).await;
    first.running.signal("CONT");
    // It knows by itself, and goes on serving; connections that were idle for so long it may close.
    let api = Api::new(first.address);
    let woken = api.rollback_at(answer.header("location"), &["succeeded"]).await;
    assert_eq!(woken, ended);
    let next = api.post(&path, &json!({"toRevision": "previous"})).await;
    next.expect(202);
    second.api.rollback_at(next.header("location"), &["succeeded"]).await;
    let listed = all_agree(&space, &api, database.url().as_str()).await;
    assert_eq!(listed.len(), 2);
}

/// Frozen at some moment between request and answer, again and again, so that the patch is in flight at some of
/// them: before the record, after it, sent and not yet answered.
#[tokio::test]
#[ignore = "needs PostgreSQL and processes of their own on a real control plane"]
async fn one_that_is_frozen_while_its_patch_is_in_flight_is_taken_over() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    let path = format!("{}/rollback", space.path("agent"));
    let database = Postgres::shared().database().await;
    let first = Process::start(&database).await;
    let second = Process::start(&database).await;
    let mut database_now = database.connect().await;
    // Until it has been caught after the record, too, and a few more.
    for round in 0.. {
        let taken = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM rollbacks WHERE epoch > 1");
        if round >= 12 && taken.fetch_one(&mut database_now).await.unwrap() > 0 {
            break;
        }
        assert!(round < 100, "no rollback was ever taken over");
        let (api, path) = (Api::new(first.address), path.clone());
        let asked = tokio::spawn(async move { api.post(&path, &json!({"reason": "it crashes"})).await });
        // Not a wait for something: the moment is what the test varies.
        tokio::time::sleep(std::time::Duration::from_millis(round * 4)).await;
        first.running.signal("STOP");
        // The other one is the only one left to settle what there is.
        until("the other one to settle what is open", async || {
            let all = second.api.get(&format!("/rollbacks?namespace={}", space.namespace)).await.expect(200);
            let open = all["items"].as_array().unwrap().iter().any(|one| one["endedAt"].is_null());
            if open { Err(all) } else { Ok(()) }
        })
        .await;
        first.running.signal("CONT");
        let answer = asked.await.unwrap();
        // 200 where the other one has brought it to its end before this one answers.
        assert!(matches!(answer.status, 200 | 202 | 503 | 409), "{answer:?}");
        if answer.status == 200 {
            let state = answer.json()["state"].clone();
            second.api.rollback_in(&id(&answer), &[state.as_str().unwrap()]).await;
        }
        if answer.status == 202 {
            // What it says was made was made; of what is in doubt it says so.
            let ends = ["succeeded", "superseded", "abandoned"];
            let ends = if answer.json()["state"] == "unsettled" { &ends[..] } else { &ends[..2] };
            second.api.rollback_in(&id(&answer), ends).await;
        }
        all_agree(&space, &second.api, database.url().as_str()).await;
    }
}
