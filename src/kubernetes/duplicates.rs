//! ControllerRevisions with the same bytes, as the watch has shown them beside each other.
//!
//! The controller deletes all but one of them as soon as it looks, so that a list shows them only by chance.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

use super::watch::KnownRevision;
use crate::domain::template::Fingerprint;

/// Pairs that are remembered. There are none in a healthy cluster.
const PAIRS: usize = 1024;

/// What the watch has shown.
#[derive(Debug, Default)]
pub struct Duplicates {
    pairs: Mutex<VecDeque<Pair>>,
}

#[derive(Debug)]
struct Pair {
    /// Uid of the DaemonSet that controls both.
    owner: String,
    template: Fingerprint,
    uids: [String; 2],
    names: [String; 2],
    /// When the watch showed the second one.
    since: Timestamp,
}

impl Duplicates {
    fn pairs(&self) -> MutexGuard<'_, VecDeque<Pair>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watch shows a revision beside another one of the same owner.
    pub(super) fn shown(&self, new: &KnownRevision, old: &KnownRevision, now: Timestamp) {
        let (Some(owner), Ok(template)) = (&new.owner, &new.template) else { return };
        let mut uids = [new.uid.clone(), old.uid.clone()];
        uids.sort_unstable();
        let mut pairs = self.pairs();
        if pairs.iter().any(|pair| pair.uids == uids) {
            return;
        }
        if pairs.len() == PAIRS {
            pairs.pop_front();
        }
        let mut names = [new.controller_revision.clone(), old.controller_revision.clone()];
        names.sort_unstable();
        let (owner, template) = (owner.clone(), template.fingerprint());
        pairs.push_back(Pair { owner, template, uids, names, since: now });
    }

    /// The names of revisions of a DaemonSet that held this template beside each other, the later one of them since
    /// this time.
    #[must_use]
    pub fn since(&self, owner: &str, template: Fingerprint, since: Timestamp) -> BTreeSet<String> {
        let pairs = self.pairs();
        let of_it = pairs
            .iter()
            .filter(|pair| pair.owner == owner && pair.template == template && pair.since >= since);
        of_it.flat_map(|pair| pair.names.clone()).collect()
    }
}

/// Whether two revisions are one to the controller.
pub(super) fn are_duplicates(one: &KnownRevision, other: &KnownRevision) -> bool {
    one.uid != other.uid
        && one.owner.is_some()
        && one.owner == other.owner
        && one.data.is_some()
        && one.data == other.data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{fixtures::revision, revision::Revision};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn observed(number: i64, image: &str) -> KnownRevision {
        let data = revision(1, image).data;
        Revision { data, ..revision(number, image) }.summary()
    }

    #[test]
    fn same_bytes_of_one_owner_are_duplicates() {
        let (one, copy) = (observed(1, "a"), observed(2, "a"));
        assert!(are_duplicates(&one, &copy) && !are_duplicates(&one, &one));
        assert!(!are_duplicates(&one, &observed(2, "b")));
        let mut orphan = copy.clone();
        orphan.owner = None;
        assert!(!are_duplicates(&one, &orphan));
        let mut without = (one.clone(), copy);
        (without.0.data, without.1.data) = (None, None);
        assert!(!are_duplicates(&without.0, &without.1));
    }

    #[test]
    fn a_pair_is_remembered_with_the_time_at_which_it_was_first_shown() {
        let (one, copy) = (observed(1, "a"), observed(2, "a"));
        let template = one.template.as_ref().unwrap().fingerprint();
        let duplicates = Duplicates::default();
        duplicates.shown(&copy, &one, at(10));
        duplicates.shown(&one, &copy, at(20));
        let names = ["web-1".to_owned(), "web-2".to_owned()];
        assert_eq!(duplicates.since("u1", template, at(10)), BTreeSet::from(names));
        assert!(duplicates.since("u1", template, at(11)).is_empty());
        assert!(duplicates.since("u2", template, at(0)).is_empty());
        for number in 0..2 * i64::try_from(PAIRS).unwrap() {
            duplicates.shown(&observed(number + 10, "b"), &observed(5, "b"), at(30));
        }
        assert_eq!(duplicates.pairs().len(), PAIRS);
    }
}
