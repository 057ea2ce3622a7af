//! All that is known of one DaemonSet: itself, its rollout, its revisions.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use super::super::{rollouts::Topic, selector::LabelSelector};
use crate::domain::{
    daemonset::{DaemonSet, WatchedDaemonSet},
    key::Key,
    revision::{History, Revision},
    template::TemplateSummary,
};

/// Label whose value is different in each revision of a DaemonSet.
const HASH: &str = "controller-revision-hash";
/// Bytes of one object's summary, beyond which it is not kept whole. Usual ones take one to three KiB.
const LARGEST_OBJECT: usize = 16 * 1024;
/// Bytes of the summaries of all revisions of one DaemonSet, beyond which they are not kept. Ten take about 7 KiB.
const LARGEST_HISTORY: usize = 256 * 1024;
/// What an entry takes beside the objects in it: its place, the frame of its rollout, and what an allocator adds.
pub(super) const OVERHEAD: usize = 1024;
/// The same of one revision.
const REVISION_OVERHEAD: usize = 160;

/// One revision as it is kept.
pub type KnownRevision = Revision<TemplateSummary>;
/// The revisions of a DaemonSet as they are kept.
pub type KnownHistory = History<TemplateSummary>;

/// How much is kept of a DaemonSet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    #[default]
    Whole,
    /// It is too large: labels, annotations, field managers, images and revisions are read when they are needed.
    Abridged,
}

/// What the index has under one key.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: Arc<Key>,
    pub topic: Topic,
    pub extent: Extent,
    /// The list that showed the DaemonSet last.
    pub listed: u64,
    revisions: Revisions,
    bytes: usize,
}

#[derive(Debug)]
enum Revisions {
    Kept {
        held: Vec<Held>,
        history: OnceLock<Arc<KnownHistory>>,
    },
    /// They take too much room, and are read when they are needed.
    NotKept,
}

/// Whether a revision was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filed {
    Yes,
    /// It was, and now the revisions are too large to be kept.
    TooLarge,
    /// The revisions are not kept.
    No,
}

#[derive(Debug)]
struct Held {
    revision: Arc<KnownRevision>,
    /// Without [`HASH`]; shared by revisions with the same.
    labels: Arc<BTreeMap<String, String>>,
    listed: u64,
}

impl Held {
    fn size(&self) -> usize {
        let labels: usize = self.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.revision.size() + labels + REVISION_OVERHEAD
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::clone(&self.labels);
        labels.extend(self.revision.hash.clone().map(|hash| (HASH.to_owned(), hash)));
        labels
    }
}

impl Entry {
    pub fn new(key: Key) -> Self {
        Self {
            key: key.into(),
            topic: Topic::default(),
            extent: Extent::Whole,
            listed: 0,
            revisions: Revisions::Kept { held: Vec::new(), history: OnceLock::new() },
            bytes: 0,
        }
    }

    /// What of a DaemonSet is kept.
    pub fn fit(daemonset: WatchedDaemonSet) -> (WatchedDaemonSet, Extent) {
        if daemonset.size() > LARGEST_OBJECT {
            (daemonset.abridged(), Extent::Abridged)
        } else {
            (daemonset, Extent::Whole)
        }
    }

    /// Bytes that it takes, as they were measured last; none at first.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Of which its revisions take so many.
    pub fn history_bytes(&self) -> usize {
        match &self.revisions {
            Revisions::Kept { held, .. } => held.iter().map(Held::size).sum(),
            Revisions::NotKept => 0,
        }
    }

    /// After each change.
    pub fn measure(&mut self) {
        let daemonset = self.topic.daemonset().map_or(0, |daemonset| daemonset.size());
        self.bytes = OVERHEAD + daemonset + self.history_bytes();
    }

    /// Whether there is nothing left to keep.
    pub fn is_idle(&self) -> bool {
        let revisions = match &self.revisions {
            Revisions::Kept { held, .. } => !held.is_empty(),
            // Nothing tells when the last one goes.
            Revisions::NotKept => false,
        };
        !revisions && self.topic.is_idle()
    }

    /// The DaemonSet has changed: which revisions are its own may have, too.
    pub fn recount(&mut self) {
        if let Revisions::Kept { history, .. } = &mut self.revisions {
            *history = OnceLock::new();
        }
    }

    /// Files a revision, if revisions are kept.
    pub fn file(
        &mut self,
        revision: KnownRevision,
        mut labels: BTreeMap<String, String>,
        listed: u64,
    ) -> Filed {
        self.recount();
        let Revisions::Kept { held, .. } = &mut self.revisions else { return Filed::No };
        labels.remove(HASH);
        let twin = held.iter().find(|other| *other.labels == labels);
        let labels = twin.map_or_else(|| Arc::new(labels), |twin| twin.labels.clone());
        let new = Held { revision: revision.into(), labels, listed };
        let too_large = new.size() > LARGEST_OBJECT;
        match held.iter_mut().find(|other| other.revision.uid == new.revision.uid) {
            Some(known) => *known = new,
            None => held.push(new),
        }
        if too_large || self.history_bytes() > LARGEST_HISTORY { Filed::TooLarge } else { Filed::Yes }
    }

    /// Takes a revision out.
    pub fn take(&mut self, uid: &str) -> Option<Arc<KnownRevision>> {
        self.recount();
        let Revisions::Kept { held, .. } = &mut self.revisions else { return None };
        let index = held.iter().position(|held| held.revision.uid == uid)?;
        Some(held.swap_remove(index).revision)
    }

    /// Takes out all revisions that a list did not show.
    pub fn take_unlisted(&mut self, list: u64) -> Vec<Arc<KnownRevision>> {
        let Revisions::Kept { held, history } = &mut self.revisions else { return Vec::new() };
        let gone: Vec<_> =
            held.extract_if(.., |held| held.listed != list).map(|held| held.revision).collect();
        if !gone.is_empty() {
            *history = OnceLock::new();
        }
        gone
    }

    /// Stops to keep the revisions, and returns those that were.
    pub fn drop_history(&mut self) -> Vec<Arc<KnownRevision>> {
        match std::mem::replace(&mut self.revisions, Revisions::NotKept) {
            Revisions::Kept { held, .. } => held.into_iter().map(|held| held.revision).collect(),
            Revisions::NotKept => Vec::new(),
        }
    }

    /// Whether the revisions are kept.
    pub fn keeps_history(&self) -> bool {
        self.extent == Extent::Whole && matches!(self.revisions, Revisions::Kept { .. })
    }

    /// All revisions that are kept, whosever they are.
    pub fn revisions(&self) -> impl Iterator<Item = &KnownRevision> {
        let held = match &self.revisions {
            Revisions::Kept { held, .. } => held.as_slice(),
            Revisions::NotKept => &[],
        };
        held.iter().map(|held| held.revision.as_ref())
    }

    /// The revisions of a DaemonSet of this key; `None` if they are not kept.
    pub fn history<T: AsRef<TemplateSummary>>(&self, daemonset: &DaemonSet<T>) -> Option<Arc<KnownHistory>> {
        let Revisions::Kept { held, history } = &self.revisions else { return None };
        if !self.keeps_history() {
            return None;
        }
        let known = self.topic.daemonset().is_some_and(|known| {
            known.uid == daemonset.uid
                && known.selector == daemonset.selector
                && known.template == *daemonset.template.as_ref()
        });
        if known {
            return Some(history.get_or_init(|| Arc::new(of(daemonset, held))).clone());
        }
        Some(Arc::new(of(daemonset, held)))
    }
}

/// What the list request of kubectl would return: ControllerRevisions whose labels match.
fn of<T: AsRef<TemplateSummary>>(daemonset: &DaemonSet<T>, held: &[Held]) -> KnownHistory {
    let selector = LabelSelector::parse(&daemonset.selector).unwrap_or_default();
    let selected = held.iter().filter(|held| selector.matches(&held.labels()));
    History::of(daemonset, selected.map(|held| held.revision.clone()))
}
