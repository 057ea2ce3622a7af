//! The index: what the watches have shown, by DaemonSet.
//!
//! The tasks of the watches write, one event at a time; any number read. What is kept of an object is what answers
//! need often; the rest is read from the API server when it is needed ([`super::super::reader`]). Its size is
//! bounded: of a DaemonSet that is too large only the rollout is kept, and where all together are too large, the
//! largest histories of the namespaces that take most are not.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use jiff::Timestamp;

use super::{
    budget::{Candidate, victims},
    entries::Entries,
    entry::{self, Entry, Extent, Filed, KnownHistory, KnownRevision},
    templates::Templates,
};
use crate::{
    domain::{
        daemonset::{DaemonSet, WatchedDaemonSet},
        key::{Key, Namespace},
        revision::Revision,
        template::{Fingerprint, Template, TemplateSummary},
    },
    kubernetes::rollouts::{Frame, Listener},
};

/// Bytes that the index may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Of DaemonSets and their revisions, without templates.
    pub index: usize,
    /// Of compressed templates.
    pub templates: usize,
}

/// What the index takes, and what it does without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub index_bytes: usize,
    pub template_bytes: usize,
    /// DaemonSets whose revisions are read from the API server for each answer.
    pub histories_not_kept: usize,
    /// DaemonSets that are not shown in lists, as there is no room for them.
    pub daemonsets_not_kept: usize,
}

/// One DaemonSet of a page.
#[derive(Clone, Debug)]
pub struct Shown {
    pub daemonset: Arc<WatchedDaemonSet>,
    pub extent: Extent,
    /// `None` if its revisions are not kept.
    pub history: Option<Arc<KnownHistory>>,
}

/// What a revision of a DaemonSet comes from, as the watch shows it.
pub(super) struct Filing {
    pub owner: Option<Key>,
    pub labels: BTreeMap<String, String>,
    pub revision: Revision,
}

/// All DaemonSets.
#[derive(Debug)]
pub struct Index {
    stall_after: Duration,
    budget: usize,
    state: RwLock<State>,
    templates: Templates,
}

#[derive(Debug, Default)]
struct State {
    entries: Entries,
    /// Where the revision of a uid is filed.
    places: HashMap<Box<str>, Arc<Key>>,
    bytes: usize,
    /// DaemonSets for which there was no room, since the last list.
    turned_away: usize,
}

impl Index {
    /// Nothing yet. A rollout that does not move for `stall_after` is called stalled.
    #[must_use]
    pub fn new(stall_after: Duration, budgets: Budgets) -> Self {
        let templates = Templates::new(budgets.templates);
        Self { stall_after, budget: budgets.index, state: RwLock::default(), templates }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watch shows a DaemonSet, in the list of this number or after it.
    pub(crate) fn apply_daemonset(&self, daemonset: WatchedDaemonSet, listed: u64, now: Timestamp) {
        let (daemonset, extent) = Entry::fit(daemonset);
        let mut state = self.write();
        let full = |state: &State| state.bytes + daemonset.size() + entry::OVERHEAD > self.budget;
        if full(&state) && state.entries.get(&daemonset.key).is_none() {
            self.shed(&mut state);
            if full(&state) {
                state.turn_away(&daemonset.key);
                return;
            }
        }
        let key = daemonset.key.clone();
        let entry = state.entries.get_or_insert(&key);
        entry.topic.apply(daemonset.into(), now, self.stall_after);
        entry.listed = listed;
        if extent == Extent::Abridged && entry.extent == Extent::Whole {
            tracing::warn!(daemonset = %key, "a DaemonSet is too large to be kept whole: what is asked of it is read from the API server");
        }
        entry.extent = extent;
        entry.recount();
        self.settle(&mut state, &key);
    }

    /// The watch shows that a DaemonSet is gone.
    pub(crate) fn delete_daemonset(&self, key: &Key, now: Timestamp) {
        let mut state = self.write();
        if let Some(entry) = state.entries.get_mut(key) {
            entry.topic.end(now);
            entry.recount();
            self.settle(&mut state, key);
        }
    }

    /// A list of DaemonSets begins.
    pub(super) fn daemonsets_list_begins(&self) {
        self.write().turned_away = 0;
    }

    /// A list of DaemonSets is over: those in its namespace that it did not show are gone.
    pub(super) fn daemonsets_listed(&self, namespace: Option<&Namespace>, list: u64, now: Timestamp) {
        let mut state = self.write();
        let unlisted = |entry: &&Entry| entry.listed != list && entry.topic.daemonset().is_some();
        let gone = state.entries.within(namespace).filter(unlisted).map(|entry| entry.key.clone());
        for key in gone.collect::<Vec<_>>() {
            if let Some(entry) = state.entries.get_mut(&key) {
                entry.topic.end(now);
                entry.recount();
            }
            self.settle(&mut state, &key);
        }
    }

    /// The watch shows a ControllerRevision, in the list of this number or after it.
    pub(super) fn apply_revision(&self, filing: Filing, listed: u64) {
        let Filing { owner, labels, revision } = filing;
        let uid = revision.uid.clone();
        let mut state = self.write();
        let before = state.places.get(uid.as_str()).cloned();
        if let Some(before) = before.filter(|before| Some(before.as_ref()) != owner.as_ref()) {
            self.take(&mut state, &before, &uid);
        }
        // What no DaemonSet controls is in no history.
        let Some(owner) = owner else { return };
        let template = revision.template.clone();
        let entry = state.entries.get_or_insert(&owner);
        let place = entry.key.clone();
        match entry.file(revision.summary(), labels, listed) {
            Filed::Yes => {
                state.places.insert(uid.into(), place.clone());
                self.settle(&mut state, &owner);
                drop(state);
                if let Ok(template) = template {
                    self.templates.insert(&place, &template);
                }
            }
            Filed::TooLarge => {
                tracing::warn!(daemonset = %owner, "the revisions of a DaemonSet are too large to be kept: they are read from the API server for each answer");
                self.forget_history(&mut state, &owner);
            }
            Filed::No => self.settle(&mut state, &owner),
        }
    }

    /// The watch shows that a ControllerRevision is gone.
    pub(super) fn delete_revision(&self, uid: &str) {
        let mut state = self.write();
        if let Some(place) = state.places.get(uid).cloned() {
            self.take(&mut state, &place, uid);
        }
    }

    /// A list of ControllerRevisions is over: those in its namespace that it did not show are gone.
    pub(super) fn revisions_listed(&self, namespace: Option<&Namespace>, list: u64) {
        let mut state = self.write();
        let keys = state.entries.within(namespace).map(|entry| entry.key.clone());
        for key in keys.collect::<Vec<_>>() {
            let Some(entry) = state.entries.get_mut(&key) else { continue };
            let gone = entry.take_unlisted(list);
            if gone.is_empty() {
                continue;
            }
            for revision in gone {
                state.places.remove(revision.uid.as_str());
                self.forget_template(&key, &revision);
            }
            self.settle(&mut state, &key);
        }
    }

    /// Shows the revision of a uid together with each other one that is filed under the same key.
    pub(super) fn beside(&self, key: &Key, uid: &str, mut each: impl FnMut(&KnownRevision, &KnownRevision)) {
        let state = self.read();
        let Some(entry) = state.entries.get(key) else { return };
        let Some(new) = entry.revisions().find(|revision| revision.uid == uid) else { return };
        for old in entry.revisions().filter(|revision| revision.uid != uid) {
            each(new, old);
        }
    }

    fn take(&self, state: &mut State, place: &Key, uid: &str) {
        state.places.remove(uid);
        if let Some(revision) = state.entries.get_mut(place).and_then(|entry| entry.take(uid)) {
            self.forget_template(place, &revision);
        }
        self.settle(state, place);
    }

    fn forget_template(&self, key: &Key, revision: &KnownRevision) {
        if let Ok(template) = &revision.template {
            self.templates.remove(key, template.fingerprint());
        }
    }

    fn forget_history(&self, state: &mut State, key: &Key) {
        let dropped = state.entries.get_mut(key).map(Entry::drop_history).unwrap_or_default();
        for revision in dropped {
            state.places.remove(revision.uid.as_str());
        }
        self.templates.remove_all(key);
        state.count(key);
    }

    /// Takes stock after a change of one entry.
    fn settle(&self, state: &mut State, key: &Key) {
        state.count(key);
        if state.entries.get(key).is_some_and(Entry::is_idle)
            && let Some(idle) = state.entries.remove(key)
        {
            state.bytes -= idle.bytes();
            self.templates.remove_all(key);
        }
        if state.bytes > self.budget {
            self.shed(state);
        }
    }

    /// Drops histories until there is room again.
    fn shed(&self, state: &mut State) {
        let excess = (state.bytes + self.budget / 10).saturating_sub(self.budget);
        let held = state.entries.within(None).filter(|entry| entry.history_bytes() > 0);
        let candidates = held.map(|entry| {
            let bytes = entry.history_bytes();
            Candidate { key: entry.key.as_ref(), bytes, rank: bytes }
        });
        let victims = victims(candidates.collect(), excess);
        if !victims.is_empty() {
            tracing::warn!(
                histories = victims.len(),
                "the index is full: the revisions of some DaemonSets are read from the API server for each answer"
            );
        }
        for key in victims {
            self.forget_history(state, &key);
        }
    }

    /// Time has passed: finds rollouts that stand still, and forgets what nobody listens to.
    pub(super) fn tick(&self, now: Timestamp) {
        let mut state = self.write();
        let mut idle = Vec::new();
        for entry in state.entries.values_mut() {
            entry.topic.tick(now, self.stall_after);
            if entry.is_idle() {
                idle.push(entry.key.clone());
            }
        }
        for key in idle {
            self.settle(&mut state, &key);
        }
    }

    /// One DaemonSet.
    #[must_use]
    pub fn daemonset(&self, key: &Key) -> Option<(Arc<WatchedDaemonSet>, Extent)> {
        let state = self.read();
        let entry = state.entries.get(key)?;
        Some((entry.topic.daemonset()?.clone(), entry.extent))
    }

    /// The revisions of a DaemonSet; `None` if they are not kept.
    #[must_use]
    pub fn history<T: AsRef<TemplateSummary>>(&self, daemonset: &DaemonSet<T>) -> Option<Arc<KnownHistory>> {
        match self.read().entries.get(&daemonset.key) {
            Some(entry) => entry.history(daemonset),
            None => Some(Arc::new(KnownHistory::of(daemonset, [] as [Arc<KnownRevision>; 0]))),
        }
    }

    /// The template of a revision of a DaemonSet, if it is kept.
    #[must_use]
    pub fn template(&self, key: &Key, summary: &TemplateSummary) -> Option<Template> {
        self.templates.get(key, summary)
    }

    /// Keeps a template that was read, if its revision is known.
    pub fn keep_template(&self, key: &Key, uid: &str, template: &Template) {
        let place = self.read().places.get(uid).filter(|place| ***place == *key).cloned();
        if let Some(place) = place {
            self.templates.insert(&place, template);
        }
    }

    /// The namespaces that have a DaemonSet.
    #[must_use]
    pub fn namespaces(&self) -> HashSet<Namespace> {
        let state = self.read();
        let named = state.entries.namespaces().filter_map(|(namespace, mut entries)| {
            entries.any(|entry| entry.topic.daemonset().is_some()).then(|| namespace.clone())
        });
        named.collect()
    }

    /// DaemonSets in the order of namespace and name, after `after`, in the namespaces that `visible` holds for:
    /// those that `is` holds for, and at most `limit`. Says whether there are more.
    #[must_use]
    pub fn page(
        &self,
        visible: impl Fn(&Namespace) -> bool,
        after: Option<&Key>,
        limit: usize,
        is: impl Fn(&WatchedDaemonSet, Extent) -> bool,
    ) -> (Vec<Shown>, bool) {
        let state = self.read();
        let entries = state.entries.after(after, visible);
        let mut wanted = entries
            .filter_map(|entry| Some((entry, entry.topic.daemonset()?)))
            .filter(|(entry, daemonset)| is(daemonset, entry.extent));
        let shown = wanted.by_ref().take(limit).map(|(entry, daemonset)| Shown {
            daemonset: daemonset.clone(),
            extent: entry.extent,
            history: entry.history(daemonset),
        });
        let shown = shown.collect();
        let more = wanted.next().is_some();
        (shown, more)
    }

    /// The ids of rollbacks, as they stand on DaemonSets and on what these control: key and uid of the DaemonSet,
    /// and the id as text, which anybody may have written.
    #[must_use]
    pub fn shown_rollbacks(&self) -> Vec<(Key, String, String)> {
        let state = self.read();
        let of = |entry: &Entry| {
            let daemonset = entry.topic.daemonset()?.clone();
            let own = entry.revisions().filter(|revision| revision.owner.as_ref() == Some(&daemonset.uid));
            let ids = own.filter_map(|revision| revision.rollback.clone());
            let ids: Vec<String> = ids.chain(daemonset.rollback_id().map(ToOwned::to_owned)).collect();
            let shown = |id| (Key::clone(&entry.key), daemonset.uid.clone(), id);
            Some(ids.into_iter().map(shown).collect::<Vec<_>>())
        };
        state.entries.within(None).filter_map(of).flatten().collect()
    }

    /// The state of a rollout now.
    #[must_use]
    pub fn latest(&self, key: &Key) -> Option<Arc<Frame>> {
        self.read().entries.get(key)?.topic.latest().cloned()
    }

    /// Joins the listeners of a rollout: the state now and everything after it, with nothing missing in between.
    #[must_use]
    pub fn listen(&self, key: &Key) -> Listener {
        let mut state = self.write();
        let listener = state.entries.get_or_insert(key).topic.listen();
        self.settle(&mut state, key);
        listener
    }

    /// The template that a DaemonSet had in one generation, if the watch showed it.
    #[must_use]
    pub fn template_at(&self, key: &Key, generation: i64) -> Option<Fingerprint> {
        self.read().entries.get(key)?.topic.template_at(generation)
    }

    /// How many rollouts stand still.
    #[must_use]
    pub fn stalled(&self) -> usize {
        let state = self.read();
        let stalled =
            |entry: &&Entry| entry.topic.latest().is_some_and(|latest| latest.stalled_since.is_some());
        state.entries.within(None).filter(stalled).count()
    }

    /// Whether there are DaemonSets for which there was no room.
    #[must_use]
    pub fn lacks_daemonsets(&self) -> bool {
        self.read().turned_away > 0
    }

    /// What it takes, and what it does without.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let state = self.read();
        let not_kept = |entry: &&Entry| entry.topic.daemonset().is_some() && !entry.keeps_history();
        Usage {
            index_bytes: state.bytes,
            template_bytes: self.templates.bytes(),
            histories_not_kept: state.entries.within(None).filter(not_kept).count(),
            daemonsets_not_kept: state.turned_away,
        }
    }
}

impl State {
    /// Counts the bytes of one entry anew.
    fn count(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            let before = entry.bytes();
            entry.measure();
            self.bytes = self.bytes + entry.bytes() - before;
        }
    }

    fn turn_away(&mut self, key: &Key) {
        if self.turned_away == 0 {
            tracing::error!(daemonset = %key, "the index is full of DaemonSets: this one and others are not shown in lists");
        }
        self.turned_away += 1;
    }
}

#[cfg(test)]
mod tests;
