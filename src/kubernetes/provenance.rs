//! Where a revision comes from: was its template ever the live one?
//!
//! The controller records templates that were live. Whoever may create ControllerRevisions can put another
//! one beside them, which the controller adopts; rolled back to, it would run what its maker likes. So
//! this keeps which templates the watch has shown as live, and how each ControllerRevision came
//! up. What was there when the watch began is taken on trust; what came up while a watch had a gap can't
//! be told.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::objects::ObservedRevision;
use crate::domain::{
    daemonset::DaemonSet,
    key::{Key, Namespace},
    revision::Revision,
    rollback::Standing,
    template::{Fingerprint, TemplateSummary},
};

/// Templates of one DaemonSet that are remembered; far more than a `revisionHistoryLimit` keeps.
const TEMPLATES: usize = 256;
/// Gaps that are remembered. What came up in one that is forgotten counts as planted.
const GAPS: usize = 64;
/// A watch may have been silent for so long before it was found dead ([`super::liveness`]).
const BEFORE_GAP: Duration = Duration::from_secs(150);
/// The controller may record a template so much later than it was live.
const AFTER_GAP: Duration = Duration::from_secs(30);

/// What the watches have shown of templates and revisions.
#[derive(Debug, Default)]
pub struct Provenance {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    daemonsets: HashMap<Key, Lived>,
    /// By uid: the data of one ControllerRevision never changes.
    revisions: HashMap<String, Appearance>,
    gaps: VecDeque<Gap>,
}

/// The life of one DaemonSet, or of several of one name after each other: one that is deleted with
/// `--cascade=orphan` and made again keeps its revisions.
#[derive(Debug, Default)]
struct Lived {
    templates: VecDeque<Fingerprint>,
    /// The newest resource version that the watch has shown; `None` while there is no such DaemonSet.
    version: Option<String>,
}

#[derive(Debug)]
struct Appearance {
    namespace: Namespace,
    /// Name of the object that controlled it when it was first seen with one.
    owner: Option<String>,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// It was in the first list.
    Before,
    /// A list after a gap showed it.
    InGap,
    /// The watch told of it as it came up.
    Watched(Instant),
    /// It came up as [`How::Watched`], and both watches had shown everything when it was found to be planted: no
    /// later gap makes it better.
    Planted,
}

/// A time in which the watch of DaemonSets may have missed something.
#[derive(Debug)]
struct Gap {
    watch: Option<Namespace>,
    from: Instant,
    /// `None` while the list after it is under way.
    to: Option<Instant>,
}

impl Provenance {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far a revision of a DaemonSet, both read fresh, can be trusted.
    #[must_use]
    pub fn standing<T: AsRef<TemplateSummary>>(
        &self,
        daemonset: &DaemonSet,
        revision: &Revision<T>,
    ) -> Standing {
        let mut seen = self.seen();
        let Seen { daemonsets, revisions, gaps } = &mut *seen;
        let lived = daemonsets.get(&daemonset.key);
        if let (Some(lived), Ok(template)) = (lived, &revision.template)
            && lived.templates.contains(&template.as_ref().fingerprint())
        {
            return Standing::Trusted;
        }
        let Some(appearance) = revisions.get_mut(&revision.uid) else { return Standing::NotSeen };
        let name = daemonset.key.name.as_str();
        if appearance.how == How::Before && appearance.owner.as_deref().is_none_or(|owner| owner == name) {
            return Standing::Trusted;
        }
        let caught_up = lived
            .and_then(|lived| lived.version.as_deref())
            .is_some_and(|version| compare_versions(version, &daemonset.resource_version) != Ordering::Less);
        match appearance.how {
            _ if !caught_up => Standing::NotSeen,
            How::InGap => Standing::Unwatched,
            How::Watched(at) if gaps.iter().any(|gap| gap.holds(&daemonset.key.namespace, at)) => {
                Standing::Unwatched
            }
            How::Watched(at) => {
                // Not while the watch of DaemonSets may yet show its template, if it does so by a list.
                if at.elapsed() > AFTER_GAP {
                    appearance.how = How::Planted;
                }
                Standing::Planted
            }
            How::Before | How::Planted => Standing::Planted,
        }
    }

    /// The watch shows a DaemonSet.
    pub fn daemonset(&self, daemonset: &DaemonSet) {
        let mut seen = self.seen();
        let lived = seen.daemonsets.entry(daemonset.key.clone()).or_default();
        lived.version = Some(daemonset.resource_version.clone());
        let template = daemonset.template.fingerprint();
        if !lived.templates.contains(&template) {
            if lived.templates.len() == TEMPLATES {
                lived.templates.pop_front();
            }
            lived.templates.push_back(template);
        }
    }

    /// The watch shows that a DaemonSet is gone. Its templates are kept as long as it has left revisions.
    pub fn daemonset_gone(&self, key: &Key) {
        let mut seen = self.seen();
        if let Some(lived) = seen.daemonsets.get_mut(key) {
            lived.version = None;
        }
        seen.forget(key);
    }

    /// The watch of DaemonSets in these namespaces has to list again: it may have missed something.
    pub fn gap_begins(&self, watch: Option<&Namespace>) {
        let now = Instant::now();
        let mut seen = self.seen();
        if seen.gaps.len() == GAPS {
            seen.gaps.pop_front();
        }
        let from = now.checked_sub(BEFORE_GAP).unwrap_or(now);
        seen.gaps.push_back(Gap { watch: watch.cloned(), from, to: None });
    }

    /// That list is over, and showed these DaemonSets.
    pub fn gap_ends(&self, watch: Option<&Namespace>, shown: &HashSet<Key>) {
        let mut seen = self.seen();
        for gap in seen.gaps.iter_mut().filter(|gap| gap.to.is_none() && gap.watch.as_ref() == watch) {
            gap.to = Some(Instant::now() + AFTER_GAP);
        }
        let in_watch = |key: &Key| watch.is_none_or(|watch| *watch == key.namespace);
        let gone: Vec<Key> =
            seen.daemonsets.keys().filter(|key| in_watch(key) && !shown.contains(key)).cloned().collect();
        for key in gone {
            if let Some(lived) = seen.daemonsets.get_mut(&key) {
                lived.version = None;
            }
            seen.forget(&key);
        }
    }

    /// The watch shows a ControllerRevision: in its first list, in a later one, or as news.
    fn revision(&self, observed: &ObservedRevision, how: How) {
        let Some((namespace, uid)) = observed.place() else { return };
        let owner = observed.revision.owner_name.clone();
        let mut seen = self.seen();
        let appearance =
            seen.revisions.entry(uid.to_owned()).or_insert(Appearance { namespace, owner: None, how });
        if appearance.owner.is_none() {
            appearance.owner = owner;
        }
    }

    fn revision_gone(&self, uid: &str) {
        let mut seen = self.seen();
        let Some(Appearance { namespace, owner: Some(owner), .. }) = seen.revisions.remove(uid) else {
            return;
        };
        if let Ok(name) = crate::domain::key::Name::parse(&owner) {
            seen.forget(&Key::new(namespace, name));
        }
    }
}

impl Seen {
    /// Drops the templates of a DaemonSet that is gone with all its revisions.
    fn forget(&mut self, key: &Key) {
        if self.daemonsets.get(key).is_none_or(|lived| lived.version.is_some()) {
            return;
        }
        let left = self.revisions.values().any(|revision| {
            revision.namespace == key.namespace && revision.owner.as_deref() == Some(key.name.as_str())
        });
        if !left {
            self.daemonsets.remove(key);
        }
    }
}

impl Gap {
    fn holds(&self, namespace: &Namespace, at: Instant) -> bool {
        self.watch.as_ref().is_none_or(|watch| watch == namespace)
            && self.from <= at
            && self.to.is_none_or(|to| at <= to)
    }
}

/// Follows one watch of ControllerRevisions.
#[derive(Debug)]
pub(super) struct RevisionWatch {
    provenance: std::sync::Arc<Provenance>,
    namespace: Option<Namespace>,
    /// Uids in the list that is under way.
    listed: HashSet<String>,
    first: bool,
}

impl RevisionWatch {
    pub(super) fn new(provenance: std::sync::Arc<Provenance>, namespace: Option<Namespace>) -> Self {
        Self { provenance, namespace, listed: HashSet::new(), first: true }
    }

    pub(super) fn list_begins(&mut self) {
        self.listed.clear();
    }

    pub(super) fn listed(&mut self, observed: &ObservedRevision) {
        if let Some((_, uid)) = observed.place() {
            self.listed.insert(uid.to_owned());
        }
        self.provenance.revision(observed, if self.first { How::Before } else { How::InGap });
    }

    pub(super) fn list_ends(&mut self) {
        self.first = false;
        let listed = std::mem::take(&mut self.listed);
        let in_watch = |at: &Namespace| self.namespace.as_ref().is_none_or(|watch| watch == at);
        let gone: Vec<String> = {
            let seen = self.provenance.seen();
            let mine = seen.revisions.iter().filter(|(_, appearance)| in_watch(&appearance.namespace));
            mine.map(|(uid, _)| uid).filter(|uid| !listed.contains(*uid)).cloned().collect()
        };
        for uid in gone {
            self.provenance.revision_gone(&uid);
        }
    }

    pub(super) fn applied(&mut self, observed: &ObservedRevision) {
        self.provenance.revision(observed, How::Watched(Instant::now()));
    }

    pub(super) fn deleted(&mut self, observed: &ObservedRevision) {
        if let Some((_, uid)) = observed.place() {
            self.provenance.revision_gone(uid);
        }
    }
}

/// Resource versions of one kind are decimal numbers of any length that rise (KEP-5504).
fn compare_versions(a: &str, b: &str) -> Ordering {
    (a.len(), a).cmp(&(b.len(), b))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::fixtures::{self, daemonset};

    /// The ControllerRevision `uid` of `web`, which holds `image`.
    fn observed(uid: &str, image: &str) -> ObservedRevision {
        ObservedRevision::fixture("default", fixtures::revision_of(uid, image))
    }

    fn standing(provenance: &Provenance, live: &DaemonSet, uid: &str, image: &str) -> Standing {
        provenance.standing(live, &fixtures::revision_of(uid, image))
    }

    /// Both watches have shown their first list: `web` runs `a`, and has revision `r-a`.
    fn watching() -> (Arc<Provenance>, RevisionWatch) {
        let provenance = Arc::new(Provenance::default());
        let mut watch = RevisionWatch::new(provenance.clone(), None);
        provenance.daemonset(&daemonset("a"));
        watch.list_begins();
        watch.listed(&observed("r-a", "a"));
        watch.listed(&observed("r-old", "old"));
        watch.list_ends();
        (provenance, watch)
    }

    #[tokio::test]
    async fn what_was_there_and_what_was_live_is_trusted_and_what_was_put_there_is_not() {
        let (provenance, mut watch) = watching();
        let mut live = daemonset("b");
        live.resource_version = "2".into();
        assert_eq!(standing(&provenance, &live, "r-old", "old"), Standing::Trusted);
        assert_eq!(standing(&provenance, &live, "r-new", "c"), Standing::NotSeen);
        watch.applied(&observed("r-new", "c"));
        // The watch of DaemonSets is behind: it may show `c` yet.
        assert_eq!(standing(&provenance, &live, "r-new", "c"), Standing::NotSeen);
        provenance.daemonset(&live);
        assert_eq!(standing(&provenance, &live, "r-new", "c"), Standing::Planted);
        watch.applied(&observed("r-b", "b"));
        assert_eq!(standing(&provenance, &live, "r-b", "b"), Standing::Trusted);
        // Made again under the same name, it is another one.
        watch.deleted(&observed("r-old", "old"));
        watch.applied(&observed("r-old2", "old"));
        assert_eq!(standing(&provenance, &live, "r-old2", "old"), Standing::Planted);
    }

    #[tokio::test]
    async fn a_revision_that_another_daemonset_had_is_not_ours() {
        let (provenance, _watch) = watching();
        let mut other = daemonset("x");
        other.key.name = crate::domain::key::Name::parse("other").unwrap();
        provenance.daemonset(&other);
        assert_eq!(standing(&provenance, &other, "r-old", "old"), Standing::Planted);
    }

    #[tokio::test]
    async fn a_revision_that_a_statefulset_of_the_same_name_had_is_not_ours() {
        let provenance = Arc::new(Provenance::default());
        let mut watch = RevisionWatch::new(provenance.clone(), None);
        let live = daemonset("a");
        provenance.daemonset(&live);
        let mut theirs = fixtures::revision_of("r-theirs", "theirs");
        theirs.owner_name = Some("StatefulSet/web".into());
        watch.list_begins();
        watch.listed(&ObservedRevision::fixture("default", theirs));
        watch.list_ends();
        // Whoever may write ControllerRevisions can give it to the DaemonSet.
        watch.applied(&observed("r-theirs", "theirs"));
        assert_eq!(standing(&provenance, &live, "r-theirs", "theirs"), Standing::Planted);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_up_in_a_gap_can_not_be_told() {
        let (provenance, mut watch) = watching();
        let live = daemonset("a");
        tokio::time::advance(Duration::from_secs(600)).await;
        watch.applied(&observed("r-early", "early"));
        tokio::time::advance(Duration::from_secs(300)).await;
        provenance.gap_begins(None);
        watch.applied(&observed("r-within", "within"));
        assert_eq!(standing(&provenance, &live, "r-within", "within"), Standing::Unwatched);
        provenance.gap_ends(None, &HashSet::from([live.key.clone()]));
        tokio::time::advance(AFTER_GAP + Duration::from_secs(1)).await;
        watch.applied(&observed("r-late", "late"));
        let of = |uid: &str, image: &str| standing(&provenance, &live, uid, image);
        assert_eq!(of("r-early", "early"), Standing::Planted);
        assert_eq!(of("r-within", "within"), Standing::Unwatched);
        assert_eq!(of("r-late", "late"), Standing::Planted);
        // A gap makes nothing better that was found a while before it.
        tokio::time::advance(AFTER_GAP + Duration::from_secs(1)).await;
        assert_eq!(of("r-late", "late"), Standing::Planted);
        watch.applied(&observed("r-unasked", "unasked"));
        provenance.gap_begins(None);
        assert_eq!(of("r-late", "late"), Standing::Planted);
        assert_eq!(of("r-unasked", "unasked"), Standing::Unwatched);

        watch.list_begins();
        for (uid, image) in [("r-a", "a"), ("r-late", "late"), ("r-relisted", "relisted")] {
            watch.listed(&observed(uid, image));
        }
        watch.list_ends();
        let of = |uid: &str, image: &str| standing(&provenance, &live, uid, image);
        assert_eq!(of("r-relisted", "relisted"), Standing::Unwatched);
        assert_eq!(of("r-late", "late"), Standing::Planted);
        assert_eq!(of("r-old", "old"), Standing::NotSeen);
    }

    #[tokio::test]
    async fn templates_outlive_a_daemonset_that_leaves_its_revisions() {
        let (provenance, mut watch) = watching();
        let live = daemonset("a");
        provenance.daemonset_gone(&live.key);
        let mut again = daemonset("b");
        again.uid = "u2".into();
        provenance.daemonset(&again);
        assert_eq!(standing(&provenance, &again, "r-new", "a"), Standing::Trusted);
        provenance.daemonset_gone(&live.key);
        watch.deleted(&observed("r-a", "a"));
        watch.deleted(&observed("r-old", "old"));
        assert!(provenance.seen().daemonsets.is_empty());
    }

    #[test]
    fn resource_versions_are_compared_as_numbers() {
        assert_eq!(compare_versions("9", "10"), Ordering::Less);
        assert_eq!(compare_versions("10", "10"), Ordering::Equal);
        assert_eq!(compare_versions("123456789012345678901234567890", "9"), Ordering::Greater);
    }
}
