//! A small cluster, simulated in the process: to try rollbackd without a cluster, and for the fast leg of
//! its tests.
//!
//! [`world`] holds objects and time, [`controller`] and [`kubelet`] act on them, [`api_server`] answers what
//! rollbackd asks, [`scenario`] is the story that it starts with. It shares no code with the other rooms, so
//! that no mistake of theirs is mirrored here, and none of them but `server` knows it. It is trusted only as
//! far as the integration tests pass on it *and* on the real control plane.
//!
//! Deliberately absent: whatever rollbackd does not ask of Kubernetes, and what no test and no story needs.

mod api_server;
mod controller;
mod daemonset;
mod kubelet;
mod scenario;
mod selector;
mod world;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

pub use scenario::{STORY, welcome};
use world::{Due, World};
pub use world::{Id, Kind};

/// A simulated cluster. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    world: Mutex<World>,
    /// The version of the newest change.
    changed: watch::Sender<u64>,
    /// Something may be due earlier than it was.
    woken: Notify,
}

/// The requests that were answered with 404 because nothing here simulates them. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Unsimulated(Arc<Mutex<Vec<String>>>);

impl Unsimulated {
    /// What was asked, and why there is no answer.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, request: String) {
        tracing::error!(request, "the sandbox does not simulate this");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }
}

impl Sandbox {
    /// A cluster of so many nodes and nothing else. What takes a second takes `1 / speed` seconds.
    #[must_use]
    pub fn empty(nodes: usize, speed: f64) -> Self {
        let mut world = World::new(Timestamp::now(), speed);
        scenario::add_nodes(&mut world, nodes);
        Self::of(world)
    }

    /// A cluster of so many nodes with several DaemonSets that have a history, as [`STORY`] tells.
    #[must_use]
    pub fn with_story(nodes: usize, speed: f64) -> Self {
        Self::of(scenario::tell(Timestamp::now(), nodes, speed))
    }

    fn of(world: World) -> Self {
        let changed = watch::Sender::new(world.version());
        let inner = Inner { world: Mutex::new(world), changed, woken: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// What stands under a `kube::Client`. What it is asked and has no answer to goes into `unsimulated`.
    pub fn router(&self, unsimulated: Unsimulated) -> axum::Router {
        api_server::router(self.clone(), unsimulated)
    }

    /// Lets time pass, for ever.
    pub async fn run(self) {
        loop {
            let next = self.with(|world| world.next_at());
            let wait = next.map_or(Duration::from_secs(60), |next| {
                Duration::try_from(next.duration_since(Timestamp::now())).unwrap_or_default()
            });
            // Whoever changes something may bring the next moment closer.
            let _ = tokio::time::timeout(wait, self.inner.woken.notified()).await;
        }
    }

    /// Does something to the world as it is now.
    fn with<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.world();
        let (version, next) = (world.version(), world.next_at());
        advance(&mut world, Timestamp::now());
        let outcome = act(&mut world);
        if world.version() != version {
            self.inner.changed.send_replace(world.version());
        }
        if world.next_at() != next {
            self.inner.woken.notify_one();
        }
        outcome
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.inner.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }
}

/// What somebody else does in the cluster: rollbackd asks for none of this.
impl Sandbox {
    /// Adds an object; a DaemonSet gets the defaults that the tests look at.
    #[must_use]
    pub fn create(&self, kind: Kind, manager: &str, object: Value) -> Arc<Value> {
        self.with(|world| match kind {
            Kind::DaemonSet => daemonset::create(world, manager, object),
            _ => world.create(kind, object),
        })
    }

    /// Changes an object; `None` if it is not there.
    pub fn edit(&self, id: &Id, manager: &str, change: impl FnOnce(&mut Value)) -> Option<Arc<Value>> {
        self.with(|world| match id.kind {
            Kind::DaemonSet => daemonset::edit(world, id, manager, change),
            _ => world.update(id, change),
        })
    }

    /// Deletes an object, and what belongs to it.
    pub fn delete(&self, id: &Id) {
        self.with(|world| match id.kind {
            Kind::Pod => kubelet::terminate(world, id),
            _ => {
                let object = world.get(id);
                world.remove(id);
                if let Some(daemonset) = object.filter(|_| id.kind == Kind::DaemonSet) {
                    controller::collect(world, &daemonset);
                }
            }
        });
    }

    /// Marks an object as being deleted, as a foreground deletion does.
    pub fn begin_deletion(&self, id: &Id) {
        self.with(|world| {
            let now = world::whole_seconds(world.now());
            world.update(id, |object| {
                let metadata = &mut object["metadata"];
                metadata["deletionTimestamp"] = json!(now);
                metadata["generation"] = json!(metadata["generation"].as_i64().unwrap_or(0) + 1);
            });
        });
    }

    /// One object.
    #[must_use]
    pub fn get(&self, id: &Id) -> Option<Arc<Value>> {
        self.with(|world| world.get(id))
    }

    /// The objects of a kind in a namespace, ordered by name.
    #[must_use]
    pub fn list(&self, kind: Kind, namespace: &str) -> Vec<Arc<Value>> {
        self.with(|world| {
            let within = world.list(kind).filter(|(id, _)| id.namespace == namespace);
            within.map(|(_, object)| object.clone()).collect()
        })
    }

    /// Every version of an object that has not been forgotten, oldest first.
    #[must_use]
    pub fn versions(&self, id: &Id) -> Vec<Arc<Value>> {
        self.with(|world| world.versions(id))
    }

    /// Forgets all past versions: a watch that asks for one is told that it is too old.
    pub fn compact(&self) {
        self.with(World::compact);
    }
}

/// Lets everything happen that is due.
fn advance(world: &mut World, until: Timestamp) {
    while let Some(due) = world.next(until) {
        match due {
            Due::Sync(daemonset) => controller::sync(world, &daemonset),
            Due::Pod(pod, step) => kubelet::act(world, &pod, step),
            Due::Forget(event) => world.remove(&event),
        }
    }
}
