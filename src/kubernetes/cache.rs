//! What the watches show: DaemonSets and ControllerRevisions, kept by kube's reflectors.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, pin_mut};
use jiff::Timestamp;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        utils::Backoff,
        watcher::{self, DefaultBackoff, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Rollouts,
    duplicates::{Duplicates, are_duplicates},
    liveness::Liveness,
    objects::{ObservedDaemonSet, ObservedRevision},
    provenance::{Provenance, RevisionWatch},
    selector::LabelSelector,
    transport::NoStatus,
};
use crate::domain::{
    daemonset::DaemonSet,
    key::{Key, Namespace},
    revision::{History, Revision},
    rollback::Standing,
    template::Fingerprint,
    text::escape,
};

/// Which namespaces rollbackd serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    Namespaces(Vec<Namespace>),
}

impl Scope {
    /// These namespaces, or all if none is named. Naming one twice is naming it once.
    #[must_use]
    pub fn of(mut namespaces: Vec<Namespace>) -> Self {
        namespaces.sort();
        namespaces.dedup();
        if namespaces.is_empty() { Self::All } else { Self::Namespaces(namespaces) }
    }

    /// Whether a namespace is served.
    #[must_use]
    pub fn contains(&self, namespace: &Namespace) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(served) => served.contains(namespace),
        }
    }

    /// One entry for each watch of a kind.
    fn watches(&self) -> Vec<Option<Namespace>> {
        match self {
            Self::All => vec![None],
            Self::Namespaces(served) => served.iter().cloned().map(Some).collect(),
        }
    }

    /// How many watches each kind has.
    #[must_use]
    pub fn watches_per_kind(&self) -> usize {
        match self {
            Self::All => 1,
            Self::Namespaces(served) => served.len(),
        }
    }
}

/// The caches. Reads cost the API server nothing.
#[derive(Debug)]
pub struct Cache {
    daemonsets: Vec<Store<ObservedDaemonSet>>,
    revisions: Vec<Store<ObservedRevision>>,
    rollouts: Arc<Rollouts>,
    provenance: Arc<Provenance>,
    duplicates: Arc<Duplicates>,
    liveness: Arc<Liveness>,
    unsynced: Arc<watch::Sender<usize>>,
    scope: Scope,
}

/// How long to wait before a watch is tried again: kube's default, but never longer than 5 s, as
/// somebody watches a rollout while the API server comes back.
struct Retry(DefaultBackoff);

impl Iterator for Retry {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|wait| wait.min(Duration::from_secs(5)))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0.reset();
    }
}

impl Cache {
    /// Starts the watches; they end with `stop`.
    #[must_use]
    pub fn start(
        client: &kube::Client,
        scope: Scope,
        rollouts: Arc<Rollouts>,
        liveness: Arc<Liveness>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let watches = scope.watches();
        let unsynced = Arc::new(watch::Sender::new(2 * watches.len()));
        let provenance = Arc::new(Provenance::default());
        let duplicates = Arc::new(Duplicates::default());
        let (mut daemonsets, mut revisions) = (Vec::new(), Vec::new());
        for namespace in watches {
            let (store, writer) = reflector::store();
            daemonsets.push(store.clone());
            let watch = Watch::new(client, namespace.as_ref(), unsynced.clone(), stop.clone());
            let follower = Follower {
                namespace: namespace.clone(),
                store,
                rollouts: rollouts.clone(),
                provenance: provenance.clone(),
                listed: false,
            };
            tasks.spawn(watch.run(writer, follower));
            let (store, writer) = reflector::store();
            revisions.push(store.clone());
            let watch = Watch::new(client, namespace.as_ref(), unsynced.clone(), stop.clone());
            let watched = RevisionWatch::new(provenance.clone(), namespace);
            tasks.spawn(
                watch.run(writer, RevisionFollower { watched, store, duplicates: duplicates.clone() }),
            );
        }
        tasks.spawn(tick(rollouts.clone(), stop.clone()));
        Self { daemonsets, revisions, rollouts, provenance, duplicates, liveness, unsynced, scope }
    }

    /// Whether every watch has shown its first full list.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.unsynced.borrow() == 0
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        // The sender is ours, so that there is no error.
        let _ = self.unsynced.subscribe().wait_for(|unsynced| *unsynced == 0).await;
    }

    /// How far behind the truth the answers may be.
    #[must_use]
    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Which namespaces are watched.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The rollouts of all DaemonSets.
    #[must_use]
    pub fn rollouts(&self) -> &Rollouts {
        &self.rollouts
    }

    /// How far a revision of a DaemonSet, both read fresh, can be trusted.
    #[must_use]
    pub fn standing(&self, daemonset: &DaemonSet, revision: &Revision) -> Standing {
        self.provenance.standing(daemonset, revision)
    }

    /// The names of revisions of a DaemonSet, by its uid, that held this template beside each other and have come up
    /// since this time. The controller may have deleted them meanwhile.
    #[must_use]
    pub fn duplicates(&self, owner: &str, template: Fingerprint, since: Timestamp) -> BTreeSet<String> {
        self.duplicates.since(owner, template, since)
    }

    /// One DaemonSet.
    #[must_use]
    pub fn daemonset(&self, key: &Key) -> Option<Arc<DaemonSet>> {
        let reference = ObjectRef::new(key.name.as_str()).within(key.namespace.as_str());
        let observed = self.daemonsets.iter().find_map(|store| store.get(&reference))?;
        Some(observed.daemonset.clone())
    }

    /// The DaemonSets of one namespace or of all, ordered by namespace and name.
    #[must_use]
    pub fn daemonsets(&self, namespace: Option<&Namespace>) -> BTreeMap<Key, Arc<DaemonSet>> {
        let all = self.daemonsets.iter().flat_map(Store::state);
        let wanted =
            all.filter(|observed| namespace.is_none_or(|wanted| observed.daemonset.key.namespace == *wanted));
        wanted.map(|observed| (observed.daemonset.key.clone(), observed.daemonset.clone())).collect()
    }

    /// The revisions of one DaemonSet.
    #[must_use]
    pub fn history(&self, daemonset: &DaemonSet) -> History {
        let mine = |observed: &ObservedRevision| observed.revision.owner.as_ref() == Some(&daemonset.uid);
        let found = self.revisions.iter().flat_map(|store| store.state_filter(mine));
        History::of(daemonset, selected(daemonset, found.map(|observed| (*observed).clone())))
    }

    /// The ids of rollbacks, as they stand on DaemonSets and on what these control: key and uid of the DaemonSet, and
    /// the id as text, which anybody may have written.
    #[must_use]
    pub fn shown_rollbacks(&self) -> Vec<(Key, String, String)> {
        let daemonsets: Vec<Arc<ObservedDaemonSet>> = self.daemonsets.iter().flat_map(Store::state).collect();
        let by_uid: HashMap<&str, &Key> = daemonsets
            .iter()
            .map(|observed| (observed.daemonset.uid.as_str(), &observed.daemonset.key))
            .collect();
        let revisions = self.revisions.iter().flat_map(Store::state);
        let on_revisions = revisions.filter_map(|observed| {
            let Revision { owner, rollback, .. } = &observed.revision;
            let (uid, id) = owner.as_ref().zip(rollback.as_ref())?;
            let key = *by_uid.get(uid.as_str())?;
            // Whoever may write them in one namespace says nothing of another.
            let (namespace, _) = observed.place()?;
            (namespace == key.namespace).then(|| (key.clone(), uid.clone(), id.clone()))
        });
        let on_daemonsets = daemonsets.iter().filter_map(|observed| {
            let DaemonSet { key, uid, .. } = observed.daemonset.as_ref();
            Some((key.clone(), uid.clone(), observed.daemonset.rollback_id()?.to_owned()))
        });
        on_revisions.chain(on_daemonsets).collect()
    }

    /// The revisions of several DaemonSets, found in one pass over the cache.
    #[must_use]
    pub fn histories<'a>(&self, daemonsets: impl IntoIterator<Item = &'a DaemonSet>) -> Vec<History> {
        let daemonsets: Vec<&DaemonSet> = daemonsets.into_iter().collect();
        let wanted: HashSet<&str> = daemonsets.iter().map(|daemonset| daemonset.uid.as_str()).collect();
        let mut by_owner: HashMap<String, Vec<ObservedRevision>> = HashMap::new();
        for observed in self.revisions.iter().flat_map(Store::state) {
            if let Some(owner) =
                observed.revision.owner.as_ref().filter(|owner| wanted.contains(owner.as_str()))
            {
                by_owner.entry(owner.clone()).or_default().push((*observed).clone());
            }
        }
        let history = |daemonset: &&DaemonSet| {
            let found = by_owner.remove(&daemonset.uid).unwrap_or_default();
            History::of(daemonset, selected(daemonset, found))
        };
        daemonsets.iter().map(history).collect()
    }
}

/// What the list request of kubectl would return: ControllerRevisions whose labels match.
pub(super) fn selected(
    daemonset: &DaemonSet,
    observed: impl IntoIterator<Item = ObservedRevision>,
) -> impl Iterator<Item = Revision> {
    let selector = LabelSelector::parse(&daemonset.selector).unwrap_or_default();
    observed
        .into_iter()
        .filter(move |observed| selector.matches(&observed.labels))
        .map(|observed| observed.revision)
}

/// What is done with the events of one watch, after the store has taken them.
trait Observer<K>: Send + 'static {
    fn observe(&mut self, event: &Event<K>);
}

/// Hands what the watch shows to [`Provenance`] and [`Duplicates`].
struct RevisionFollower {
    watched: RevisionWatch,
    store: Store<ObservedRevision>,
    duplicates: Arc<Duplicates>,
}

impl Observer<ObservedRevision> for RevisionFollower {
    fn observe(&mut self, event: &Event<ObservedRevision>) {
        match event {
            Event::Init => self.watched.list_begins(),
            Event::InitApply(observed) => self.watched.listed(observed),
            Event::InitDone => self.watched.list_ends(),
            Event::Apply(observed) => {
                self.watched.applied(observed);
                for other in self.store.state_filter(|other| are_duplicates(observed, other)) {
                    self.duplicates.shown(observed, &other, Timestamp::now());
                }
            }
            Event::Delete(observed) => self.watched.deleted(observed),
        }
    }
}

/// Hands what the watch shows to [`Rollouts`] and [`Provenance`].
struct Follower {
    namespace: Option<Namespace>,
    store: Store<ObservedDaemonSet>,
    rollouts: Arc<Rollouts>,
    provenance: Arc<Provenance>,
    /// Whether the first list is over: each one after it ends a gap.
    listed: bool,
}

impl Observer<ObservedDaemonSet> for Follower {
    fn observe(&mut self, event: &Event<ObservedDaemonSet>) {
        let now = Timestamp::now();
        match event {
            Event::Apply(observed) | Event::InitApply(observed) => {
                self.provenance.daemonset(&observed.daemonset);
                self.rollouts.apply(observed.daemonset.clone(), now);
            }
            Event::Delete(observed) => {
                self.provenance.daemonset_gone(&observed.daemonset.key);
                self.rollouts.delete(&observed.daemonset.key, now);
            }
            Event::Init if self.listed => self.provenance.gap_begins(self.namespace.as_ref()),
            Event::Init => {}
            Event::InitDone => {
                let shown: HashSet<Key> =
                    self.store.state().iter().map(|observed| observed.daemonset.key.clone()).collect();
                let in_scope =
                    |key: &Key| self.namespace.as_ref().is_none_or(|namespace| key.namespace == *namespace);
                self.rollouts.retain(in_scope, |key| shown.contains(key), now);
                self.provenance.gap_ends(self.namespace.as_ref(), &shown);
                self.listed = true;
            }
        }
    }
}

struct Watch<K> {
    api: Api<K>,
    unsynced: Arc<watch::Sender<usize>>,
    stop: CancellationToken,
}

impl<K> Watch<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    K: Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    fn new(
        client: &kube::Client,
        namespace: Option<&Namespace>,
        unsynced: Arc<watch::Sender<usize>>,
        stop: CancellationToken,
    ) -> Self {
        let api = match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace.as_str()),
            None => Api::all(client.clone()),
        };
        Self { api, unsynced, stop }
    }

    async fn run(self, writer: reflector::store::Writer<K>, mut observer: impl Observer<K>) {
        let kind = K::plural(&());
        let retry = Retry(DefaultBackoff::default());
        let events = watcher(self.api, watcher::Config::default()).backoff(retry).reflect(writer);
        let events = events.take_until(self.stop.cancelled_owned());
        pin_mut!(events);
        let mut synced = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    observer.observe(&event);
                    if matches!(event, Event::InitDone) && !std::mem::replace(&mut synced, true) {
                        self.unsynced.send_modify(|unsynced| *unsynced -= 1);
                    }
                }
                Err(error) => {
                    tracing::warn!(%kind, problem = problem(&error), "watch interrupted; trying again")
                }
            }
        }
    }
}

/// Why a watch stopped, without the text of an answer that may hold anything.
fn problem(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => match error {
            kube::Error::Api(status) => format!("{} {}", status.code, escape(&status.message)),
            kube::Error::Service(error) if error.is::<NoStatus>() => error.to_string(),
            kube::Error::SerdeError(_) => "the answer can't be read".to_owned(),
            _ => "the connection failed".to_owned(),
        },
        watcher::Error::WatchError(status) => format!("{} {}", status.code, status.reason),
        _ => "the answer is incomplete".to_owned(),
    }
}

async fn tick(rollouts: Arc<Rollouts>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        rollouts.tick(Timestamp::now());
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all namespaces"),
            Self::Namespaces(served) => {
                let names: Vec<&str> = served.iter().map(Namespace::as_str).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}
