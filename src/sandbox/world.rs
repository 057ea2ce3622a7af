//! The objects of the simulated cluster, their versions, and what is due next.
//!
//! Nothing here knows what a DaemonSet does: [`super::controller`] and [`super::kubelet`] do. Time is
//! whatever it is told to be, so that a story of months is told in a moment.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

/// Versions that a watch can look back: what is older is answered with 410, as after a compaction.
const LOG: usize = 4_096;
/// Seconds until a controller sees what was written.
const LAG: f64 = 0.03;

/// The kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    DaemonSet,
    ControllerRevision,
    Pod,
    Node,
    Event,
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    pub kind: Kind,
    /// Empty for a Node.
    pub namespace: String,
    pub name: String,
}

/// A change of one object, as a watch tells it.
#[derive(Clone, Debug)]
pub struct Event {
    pub version: u64,
    pub change: Change,
    pub kind: Kind,
    pub object: Arc<Value>,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

/// What is done at its time.
#[derive(Clone, Debug)]
pub enum Due {
    /// The controller looks at a DaemonSet.
    Sync(Id),
    /// The kubelet takes a pod one step on.
    Pod(Id, PodStep),
    /// An Event has been kept for long enough.
    Forget(Id),
}

/// The steps of a pod's life.
#[derive(Clone, Copy, Debug)]
pub enum PodStep {
    /// Its images have been pulled, or not.
    Start,
    /// Its containers pass their readiness probes.
    Ready,
    /// A container that crashes is started once more.
    Restart,
    /// What made it wait has lasted.
    BackOff,
    /// It has terminated.
    Gone,
}

/// A watch asked for versions that are not kept any more.
#[derive(Debug)]
pub struct TooOld;

/// All objects at one moment.
#[derive(Debug)]
pub struct World {
    now: Timestamp,
    speed: f64,
    version: u64,
    objects: BTreeMap<Id, Arc<Value>>,
    log: VecDeque<Event>,
    /// The version up to which the log has been cut.
    forgotten: u64,
    agenda: BTreeMap<(Timestamp, u64), Due>,
    syncs: BTreeSet<Id>,
    count: u64,
}

impl Id {
    /// Names an object.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// Reads it off an object.
    pub fn of(kind: Kind, object: &Value) -> Self {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
        Self::new(kind, text("namespace"), text("name"))
    }
}

impl World {
    /// Nothing yet. Simulated waits are `speed` times shorter than real ones.
    pub fn new(now: Timestamp, speed: f64) -> Self {
        Self {
            now,
            speed,
            version: 1,
            objects: BTreeMap::new(),
            log: VecDeque::new(),
            forgotten: 0,
            agenda: BTreeMap::new(),
            syncs: BTreeSet::new(),
            count: 0,
        }
    }

    /// The moment that it has come to.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// How long a wait of so many simulated seconds takes.
    pub fn wait(&self, seconds: f64) -> SignedDuration {
        SignedDuration::from_secs_f64(seconds / self.speed)
    }

    /// The version of the newest change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// One object.
    pub fn get(&self, id: &Id) -> Option<Arc<Value>> {
        self.objects.get(id).cloned()
    }

    /// The objects of a kind, ordered by namespace and name.
    pub fn list(&self, kind: Kind) -> impl Iterator<Item = (&Id, &Arc<Value>)> {
        self.objects.range(Id::new(kind, "", "")..).take_while(move |(id, _)| id.kind == kind)
    }

    /// The objects of a kind whose controller is this object.
    pub fn owned(&self, kind: Kind, owner: &Value) -> Vec<Arc<Value>> {
        let first = Id::new(kind, owner["metadata"]["namespace"].as_str().unwrap_or_default(), "");
        let uid = &owner["metadata"]["uid"];
        let near = self.objects.range(&first..);
        near.take_while(|(id, _)| (id.kind, &id.namespace) == (kind, &first.namespace))
            .filter(|(_, object)| object["metadata"]["ownerReferences"][0]["uid"] == *uid)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Adds an object; the one of that name that is there stays.
    pub fn create(&mut self, kind: Kind, mut object: Value) -> Arc<Value> {
        let id = Id::of(kind, &object);
        if let Some(there) = self.get(&id) {
            return there;
        }
        object["metadata"]["uid"] = json!(Uuid::now_v7());
        object["metadata"]["creationTimestamp"] = json!(whole_seconds(self.now));
        self.record(id, Change::Added, object)
    }

    /// Changes an object, if that changes anything.
    pub fn update(&mut self, id: &Id, change: impl FnOnce(&mut Value)) -> Option<Arc<Value>> {
        let before = self.get(id)?;
        let mut object = Value::clone(&before);
        change(&mut object);
        if object == *before {
            return Some(before);
        }
        Some(self.record(id.clone(), Change::Modified, object))
    }

    /// Takes an object away.
    pub fn remove(&mut self, id: &Id) {
        if let Some(object) = self.objects.remove(id) {
            self.record(id.clone(), Change::Deleted, Value::clone(&object));
        }
    }

    fn record(&mut self, id: Id, change: Change, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        self.log.push_back(Event { version: self.version, change, kind: id.kind, object: object.clone() });
        if self.log.len() > LOG {
            self.forgotten = self.log.pop_front().map_or(self.forgotten, |event| event.version);
        }
        self.tell_controller(&id, &object);
        if change != Change::Deleted {
            self.objects.insert(id, object.clone());
        }
        object
    }

    fn tell_controller(&mut self, id: &Id, object: &Value) {
        match id.kind {
            Kind::DaemonSet => self.sync_after(LAG, id.clone()),
            Kind::ControllerRevision | Kind::Pod => {
                if let Some(owner) = object["metadata"]["ownerReferences"][0]["name"].as_str() {
                    self.sync_after(LAG, Id::new(Kind::DaemonSet, &id.namespace, owner));
                }
            }
            Kind::Event => {}
            Kind::Node => {
                let all: Vec<Id> = self.list(Kind::DaemonSet).map(|(id, _)| id.clone()).collect();
                all.into_iter().for_each(|id| self.sync_after(LAG, id));
            }
        }
    }

    /// Lets the controller look at a DaemonSet, once for all that happens until then.
    pub fn sync_after(&mut self, seconds: f64, daemonset: Id) {
        // A look that is planned for later (a pod gets available) must not hold up one that is due now.
        if seconds > LAG || self.syncs.insert(daemonset.clone()) {
            self.plan(seconds, Due::Sync(daemonset));
        }
    }

    /// Plans something.
    pub fn plan(&mut self, seconds: f64, due: Due) {
        self.count += 1;
        self.agenda.insert((self.now + self.wait(seconds), self.count), due);
    }

    /// What is next up to `until`, moving to its moment; `None` when it has come to `until`.
    pub fn next(&mut self, until: Timestamp) -> Option<Due> {
        match self.agenda.first_entry() {
            Some(entry) if entry.key().0 <= until => {
                let ((at, _), due) = entry.remove_entry();
                self.now = self.now.max(at);
                if let Due::Sync(id) = &due {
                    self.syncs.remove(id);
                }
                Some(due)
            }
            _ => {
                self.now = self.now.max(until);
                None
            }
        }
    }

    /// When something is due next.
    pub fn next_at(&self) -> Option<Timestamp> {
        self.agenda.first_key_value().map(|((at, _), _)| *at)
    }

    /// The changes after a version.
    pub fn since(&self, version: u64) -> Result<impl Iterator<Item = &Event>, TooOld> {
        if version < self.forgotten {
            return Err(TooOld);
        }
        let seen = self.log.partition_point(|event| event.version <= version);
        Ok(self.log.range(seen..))
    }

    /// The versions of an object that are still in the log.
    pub fn versions(&self, id: &Id) -> Vec<Arc<Value>> {
        let mine = self
            .log
            .iter()
            .filter(|event| event.change != Change::Deleted && Id::of(event.kind, &event.object) == *id);
        mine.map(|event| event.object.clone()).collect()
    }

    /// Cuts the log, as etcd's compaction does.
    pub fn compact(&mut self) {
        self.forgotten = self.version;
        self.log.clear();
    }

    /// A number that was not given before.
    pub fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}

/// A time as Kubernetes writes it.
pub fn whole_seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
