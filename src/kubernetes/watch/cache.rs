//! What the watches show, kept in one index.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    index::{Budgets, Filing, Index},
    scope::Scope,
    source::{Event, Observer, Source},
};
use crate::{
    domain::{
        daemonset::DaemonSet,
        key::{Key, Name, Namespace},
        revision::Revision,
        rollback::Standing,
        template::{Fingerprint, TemplateSummary},
    },
    kubernetes::{
        duplicates::{Duplicates, are_duplicates},
        liveness::Liveness,
        objects::{ObservedDaemonSet, ObservedRevision},
        provenance::{Provenance, RevisionWatch},
    },
};

/// Between two looks for rollouts that stand still.
const TICK: Duration = Duration::from_millis(500);

/// What to watch, and how much of it to keep.
#[derive(Clone, Debug)]
pub struct Watched {
    pub scope: Scope,
    /// A rollout that does not move for so long is called stalled.
    pub stall_after: Duration,
    pub budgets: Budgets,
}

/// The watches and their index. Reads cost the API server nothing.
#[derive(Debug)]
pub struct Cache {
    index: Arc<Index>,
    provenance: Arc<Provenance>,
    duplicates: Arc<Duplicates>,
    liveness: Arc<Liveness>,
    unsynced: watch::Receiver<usize>,
    scope: Scope,
}

impl Cache {
    /// Starts the watches; they end with `stop`.
    #[must_use]
    pub fn start(
        client: &kube::Client,
        Watched { scope, stall_after, budgets }: Watched,
        liveness: Arc<Liveness>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let watches = scope.watches();
        let unsynced = Arc::new(watch::Sender::new(2 * watches.len()));
        let provenance = Arc::new(Provenance::default());
        let duplicates = Arc::new(Duplicates::default());
        let index = Arc::new(Index::new(stall_after, budgets));
        for namespace in watches {
            let synced = || Synced(Some(unsynced.clone()));
            let daemonsets = DaemonSets {
                namespace: namespace.clone(),
                index: index.clone(),
                provenance: provenance.clone(),
                shown: HashSet::new(),
                list: 0,
                synced: synced(),
            };
            let source = Source::<ObservedDaemonSet>::new(client, namespace.as_ref());
            tasks.spawn(stop.clone().run_until_cancelled_owned(source.run(daemonsets)));
            let revisions = Revisions {
                index: index.clone(),
                provenance: RevisionWatch::new(provenance.clone(), namespace.clone()),
                duplicates: duplicates.clone(),
                namespace: namespace.clone(),
                list: 0,
                synced: synced(),
            };
            let source = Source::<ObservedRevision>::new(client, namespace.as_ref());
            tasks.spawn(stop.clone().run_until_cancelled_owned(source.run(revisions)));
        }
        tasks.spawn(stop.clone().run_until_cancelled_owned(tick(index.clone())));
        Self { index, provenance, duplicates, liveness, unsynced: unsynced.subscribe(), scope }
    }

    /// Whether every watch has shown its first full list.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.unsynced.borrow() == 0
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        // Without a sender nothing is watched any more, and nothing is left to wait for.
        let _ = self.unsynced.clone().wait_for(|unsynced| *unsynced == 0).await;
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

    /// What the watches have shown.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// How far a revision of a DaemonSet, both read fresh, can be trusted.
    #[must_use]
    pub fn standing<T: AsRef<TemplateSummary>>(
        &self,
        daemonset: &DaemonSet,
        revision: &Revision<T>,
    ) -> Standing {
        self.provenance.standing(daemonset, revision)
    }

    /// The names of revisions of a DaemonSet, by its uid, that held this template beside each other and have come up
    /// since this time. The controller may have deleted them meanwhile.
    #[must_use]
    pub fn duplicates(&self, owner: &str, template: Fingerprint, since: Timestamp) -> BTreeSet<String> {
        self.duplicates.since(owner, template, since)
    }
}

/// Counts one watch as synced, once.
#[derive(Debug)]
struct Synced(Option<Arc<watch::Sender<usize>>>);

impl Synced {
    fn tell(&mut self) {
        if let Some(unsynced) = self.0.take() {
            unsynced.send_modify(|unsynced| *unsynced -= 1);
        }
    }

    fn is_told(&self) -> bool {
        self.0.is_none()
    }
}

/// Hands on what a watch of DaemonSets shows.
struct DaemonSets {
    namespace: Option<Namespace>,
    index: Arc<Index>,
    provenance: Arc<Provenance>,
    /// In the list that is under way.
    shown: HashSet<Key>,
    /// Number of that list, or of the last one.
    list: u64,
    synced: Synced,
}

impl DaemonSets {
    fn show(&mut self, observed: ObservedDaemonSet) {
        let daemonset = Arc::unwrap_or_clone(observed.daemonset);
        self.provenance.daemonset(&daemonset);
        self.index.apply_daemonset(daemonset.watched(), self.list, Timestamp::now());
    }
}

impl Observer<ObservedDaemonSet> for DaemonSets {
    fn observe(&mut self, event: Event<ObservedDaemonSet>) {
        match event {
            Event::ListBegins => {
                if self.synced.is_told() {
                    self.provenance.gap_begins(self.namespace.as_ref());
                }
                self.list += 1;
                self.shown.clear();
                self.index.daemonsets_list_begins();
            }
            Event::Listed(observed) => {
                self.shown.insert(observed.daemonset.key.clone());
                self.show(observed);
            }
            Event::ListEnds => {
                self.index.daemonsets_listed(self.namespace.as_ref(), self.list, Timestamp::now());
                self.provenance.gap_ends(self.namespace.as_ref(), &std::mem::take(&mut self.shown));
                self.synced.tell();
            }
            Event::Changed(observed) => self.show(observed),
            Event::Deleted(observed) => {
                let key = &observed.daemonset.key;
                self.shown.remove(key);
                self.provenance.daemonset_gone(key);
                self.index.delete_daemonset(key, Timestamp::now());
            }
        }
    }
}

/// Hands on what a watch of ControllerRevisions shows.
struct Revisions {
    namespace: Option<Namespace>,
    index: Arc<Index>,
    provenance: RevisionWatch,
    duplicates: Arc<Duplicates>,
    list: u64,
    synced: Synced,
}

impl Revisions {
    fn owner(observed: &ObservedRevision) -> Option<Key> {
        let (namespace, _) = observed.place()?;
        let name = Name::parse(observed.revision.owner_name.as_deref()?).ok()?;
        Some(Key::new(namespace, name))
    }

    fn show(&self, observed: ObservedRevision) {
        let owner = Self::owner(&observed);
        let ObservedRevision { labels, revision, .. } = observed;
        self.index.apply_revision(Filing { owner, labels, revision }, self.list);
    }
}

impl Observer<ObservedRevision> for Revisions {
    fn observe(&mut self, event: Event<ObservedRevision>) {
        match event {
            Event::ListBegins => {
                self.list += 1;
                self.provenance.list_begins();
            }
            Event::Listed(observed) => {
                self.provenance.listed(&observed);
                self.show(observed);
            }
            Event::ListEnds => {
                self.provenance.list_ends();
                self.index.revisions_listed(self.namespace.as_ref(), self.list);
                self.synced.tell();
            }
            Event::Changed(observed) => {
                self.provenance.applied(&observed);
                let place = Self::owner(&observed).map(|owner| (owner, observed.revision.uid.clone()));
                self.show(observed);
                if let Some((owner, uid)) = place {
                    self.index.beside(&owner, &uid, |new, old| {
                        if are_duplicates(new, old) {
                            self.duplicates.shown(new, old, Timestamp::now());
                        }
                    });
                }
            }
            Event::Deleted(observed) => {
                self.provenance.deleted(&observed);
                self.index.delete_revision(&observed.revision.uid);
            }
        }
    }
}

async fn tick(index: Arc<Index>) {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        index.tick(Timestamp::now());
    }
}
