//! A replica stands still for so long that another one takes its rollback over. When it goes on, it answers what is
//! on record, and not what it knows.

use std::sync::Arc;

use reqwest::Method;
use rollbackd::verifier::{Checks, verify_store};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::{
    api::{Answer, Api},
    controlplane::ControlPlane,
    faults::{self, Fault},
    postgres::{self, Postgres},
    rollbackd::{Rollbackd, Setup},
    space::{Space, daemonset},
    store::Place,
    twins::plant,
    wait::until,
};

/// Where the replica stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// The patch was carried out, and its answer is on the way.
    PatchAnswered,
    /// The patch was refused, and its answer is on the way.
    Failing,
    /// The answer to the patch was lost, and the DaemonSet has been read to find out what came of it.
    Resolving,
}

/// What becomes of the DaemonSet meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Deleted,
    Replaced,
    RolledBackByKubectl,
}

/// A DaemonSet `agent` that runs `img:3`, and two replicas.
struct Replicas {
    space: Space,
    held_up: Rollbackd,
    other: Rollbackd,
    store: Place,
    path: String,
}

impl Replicas {
    async fn start() -> Self {
        let space = Space::new(ControlPlane::shared()).await;
        space.recorded(&["img:1", "img:2", "img:3"]).await;
        space.rolled_out("agent").await;
        let store = Place::Database(Arc::new(Postgres::shared().database().await));
        let replica = async || {
            Rollbackd::start_with(Setup { store: Some(&store), ..Setup::new(ControlPlane::shared()) }).await
        };
        let (held_up, other) = (replica().await, replica().await);
        let path = format!("{}/rollback", space.path("agent"));
        Self { space, held_up, other, store, path }
    }

    /// Asks the replica that is held up for a rollback, with a key.
    fn ask(&self, to: &str) -> impl Future<Output = Answer> + use<> {
        let (api, path) = (self.held_up.api.clone(), self.path.clone());
        let body = json!({"toRevision": to});
        async move {
            let request = api.request(Method::POST, &path).json(&body);
            api.send(request.header("idempotency-key", "k")).await
        }
    }

    /// Holds the replica up at a point, until the sender says true.
    fn hold(&self, point: Point) -> watch::Sender<bool> {
        let (release, released) = watch::channel(false);
        let faults = &self.held_up.faults;
        match point {
            Point::PatchAnswered | Point::Failing => {
                faults.inject(1, Fault::HeldBody(released), faults::patch);
            }
            Point::Resolving => {
                faults.inject(1, Fault::CutAfter, faults::patch);
                let seen = faults.clone();
                let path = format!("/namespaces/{}/daemonsets/agent", self.space.namespace);
                faults.inject(1, Fault::HeldBody(released), move |request| {
                    request.method() == http::Method::GET
                        && request.uri().path().ends_with(&path)
                        && seen.patches() > 0
                });
            }
        }
        release
    }

    async fn act(&self, meanwhile: Meanwhile) {
        let kubectl = &self.space.kubectl;
        match meanwhile {
            Meanwhile::Deleted => drop(kubectl.ok(&["delete", "daemonset", "agent"]).await),
            Meanwhile::Replaced => {
                kubectl.ok(&["delete", "daemonset", "agent"]).await;
                kubectl.create(&daemonset("agent", "img:9")).await;
            }
            Meanwhile::RolledBackByKubectl => {
                kubectl.ok(&["rollout", "undo", "daemonset/agent", "--to-revision=1"]).await;
            }
        }
    }

    /// Takes the one that is held up for dead, until another one has brought the rollback to its end.
    async fn taken_over(&self) -> Value {
        let Place::Database(database) = &self.store else { unreachable!("made above") };
        let mut raw = database.connect().await;
        until("another replica to bring it to its end", async || {
            let lapse = "UPDATE rollbacks SET lease = 0 WHERE epoch = 1 AND open";
            postgres::run(&mut raw, lapse).await;
            let listed = newest(&self.other.api, &self.space).await;
            if listed["endedAt"].is_null() { Err(listed) } else { Ok(listed) }
        })
        .await
    }

    async fn check(&self, point: Point, meanwhile: Meanwhile) {
        let case = format!("{point:?}, {meanwhile:?}");
        let to = if point == Point::Failing { "agent-other" } else { "previous" };
        let generation = generation(&self.space).await;
        let release = self.hold(point);
        let answer = tokio::spawn(self.ask(to));
        let carried_out = point != Point::Failing;
        until("the patch to be sent", async || {
            let sent = self.held_up.faults.patches() > 0;
            let now = self::generation(&self.space).await;
            if sent && (now != generation) == carried_out { Ok(()) } else { Err((sent, now)) }
        })
        .await;
        self.act(meanwhile).await;
        let ended = self.taken_over().await;
        release.send_replace(true);
        let answer = answer.await.unwrap();

        let expected = match (meanwhile, carried_out) {
            (Meanwhile::Deleted | Meanwhile::Replaced, _) => "deleted",
            (Meanwhile::RolledBackByKubectl, true) => "superseded",
            (Meanwhile::RolledBackByKubectl, false) => "abandoned",
        };
        assert_eq!(ended["state"], expected, "{case}: {ended}");
        match expected {
            "superseded" => assert_eq!(answer.expect(200)["state"], "superseded", "{case}"),
            "abandoned" => drop(answer.problem(503, "cluster-unavailable")),
            _ => drop(answer.problem(409, "modified")),
        }
        // It stays so, wherever it is read, and the key is answered alike.
        for api in [&self.held_up.api, &self.other.api] {
            assert_eq!(newest(api, &self.space).await, ended, "{case}");
        }
        if expected != "abandoned" {
            assert_eq!(self.ask(to).await.status, answer.status, "{case}");
        }
        let report = verify_store(&self.store.url(), &Checks::default()).await.unwrap();
        assert!(report.is_whole(), "{case}: {:?}", report.findings);
    }
}

async fn newest(api: &Api, space: &Space) -> Value {
    let listed = api.get(&format!("/rollbacks?namespace={}", space.namespace)).await.expect(200);
    listed["items"][0].clone()
}

async fn generation(space: &Space) -> Value {
    space.kubectl.get("daemonset", "agent").await["metadata"]["generation"].clone()
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn replica_that_wakes_up_with_an_applied_patch_answers_what_is_on_record() {
    for meanwhile in [Meanwhile::Deleted, Meanwhile::Replaced, Meanwhile::RolledBackByKubectl] {
        Replicas::start().await.check(Point::PatchAnswered, meanwhile).await;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn replica_that_wakes_up_with_a_refused_patch_answers_what_is_on_record() {
    for meanwhile in [Meanwhile::Deleted, Meanwhile::Replaced, Meanwhile::RolledBackByKubectl] {
        let replicas = Replicas::start().await;
        // Its labels do not match the selector, so that the API server refuses the patch.
        plant(&replicas.space, "agent-other", 9, |data| {
            data["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
        })
        .await;
        replicas.check(Point::Failing, meanwhile).await;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn replica_that_wakes_up_while_it_resolves_a_lost_patch_answers_what_is_on_record() {
    for meanwhile in [Meanwhile::Deleted, Meanwhile::Replaced, Meanwhile::RolledBackByKubectl] {
        Replicas::start().await.check(Point::Resolving, meanwhile).await;
    }
}
