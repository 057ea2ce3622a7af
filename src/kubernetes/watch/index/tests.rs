use super::*;
use crate::domain::{
    fixtures::{self, daemonset, revision},
    key::Name,
    revision::RevisionNumber,
};

const AMPLE: Budgets = Budgets { index: 1 << 30, templates: 1 << 30 };

fn index(budgets: Budgets) -> Index {
    Index::new(Duration::from_secs(600), budgets)
}

fn key(namespace: &str, name: &str) -> Key {
    Key::new(Namespace::parse(namespace).unwrap(), Name::parse(name).unwrap())
}

/// A DaemonSet that runs `image`. Its uid is its key.
fn live(key: &Key, image: &str) -> WatchedDaemonSet {
    WatchedDaemonSet { key: key.clone(), uid: key.to_string(), ..daemonset(image).watched() }
}

fn apply(index: &Index, daemonset: WatchedDaemonSet) {
    index.apply_daemonset(daemonset, 1, Timestamp::UNIX_EPOCH);
}

/// The revision of a DaemonSet that holds an image.
fn filing(key: &Key, number: i64, image: &str) -> Filing {
    let revision = Revision {
        uid: format!("{key}-{number}"),
        owner: Some(key.to_string()),
        hash: Some(format!("hash-{number}")),
        ..revision(number, image)
    };
    let labels = [("app", "web"), ("controller-revision-hash", "x")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Filing { owner: Some(key.clone()), labels, revision }
}

fn numbers(index: &Index, key: &Key) -> Option<Vec<i64>> {
    let (daemonset, _) = index.daemonset(key)?;
    let history = index.history(&*daemonset)?;
    Some(history.revisions().iter().map(|revision| revision.number.0).collect())
}

fn forgets_everything(index: &Index) {
    assert_eq!(index.usage(), Usage::default());
    let state = index.read();
    assert!(state.places.is_empty() && state.entries.within(None).next().is_none());
}

#[test]
fn a_history_is_found_under_its_daemonset_and_follows_each_change() {
    let (index, web) = (index(AMPLE), key("default", "web"));
    index.apply_revision(filing(&web, 1, "a"), 1);
    apply(&index, live(&web, "a"));
    assert_eq!(numbers(&index, &web), Some(vec![1]));
    index.apply_revision(filing(&web, 2, "b"), 1);
    let current = || {
        let (daemonset, _) = index.daemonset(&web)?;
        Some(index.history(&*daemonset)?.current()?.number)
    };
    assert_eq!(current(), Some(RevisionNumber(1)));
    apply(&index, live(&web, "b"));
    assert_eq!(current(), Some(RevisionNumber(2)));
    // A rollback gives the revision a new number.
    let renumbered = Revision { number: RevisionNumber(3), ..filing(&web, 1, "a").revision };
    index.apply_revision(Filing { revision: renumbered, ..filing(&web, 1, "a") }, 1);
    assert_eq!(numbers(&index, &web), Some(vec![2, 3]));
    index.delete_revision(&format!("{web}-2"));
    assert_eq!(numbers(&index, &web), Some(vec![3]));
    index.delete_daemonset(&web, Timestamp::UNIX_EPOCH);
    index.delete_revision(&format!("{web}-1"));
    forgets_everything(&index);
}

#[test]
fn what_the_selector_does_not_select_or_another_controls_is_in_no_history() {
    let (index, web) = (index(AMPLE), key("default", "web"));
    apply(&index, live(&web, "a"));
    let other = BTreeMap::from([("app".to_owned(), "other".to_owned())]);
    index.apply_revision(Filing { labels: other, ..filing(&web, 1, "a") }, 1);
    let orphan = Revision { owner: None, owner_name: None, ..filing(&web, 2, "b").revision };
    index.apply_revision(Filing { owner: None, revision: orphan, ..filing(&web, 2, "b") }, 1);
    let former = Revision { owner: Some("of one before".into()), ..filing(&web, 3, "c").revision };
    index.apply_revision(Filing { revision: former, ..filing(&web, 3, "c") }, 1);
    assert_eq!(numbers(&index, &web), Some(vec![]));
    // A selector can name the label that is different in each revision.
    let selective =
        WatchedDaemonSet { selector: "controller-revision-hash=hash-4".into(), ..live(&web, "a") };
    index.apply_revision(filing(&web, 4, "d"), 1);
    index.apply_revision(filing(&web, 5, "e"), 1);
    assert_eq!(numbers(&index, &web), Some(vec![4, 5]));
    apply(&index, selective);
    assert_eq!(numbers(&index, &web), Some(vec![4]));
}

#[test]
fn a_revision_that_changes_its_owner_is_in_one_history() {
    let (index, web, api) = (index(AMPLE), key("default", "web"), key("default", "api"));
    apply(&index, live(&web, "a"));
    apply(&index, live(&api, "a"));
    index.apply_revision(filing(&web, 1, "a"), 1);
    let moved = Revision { owner: Some(api.to_string()), ..filing(&web, 1, "a").revision };
    index.apply_revision(Filing { owner: Some(api.clone()), revision: moved, ..filing(&web, 1, "a") }, 1);
    assert_eq!((numbers(&index, &web), numbers(&index, &api)), (Some(vec![]), Some(vec![1])));
    let released = Revision { owner: None, owner_name: None, ..filing(&web, 1, "a").revision };
    index.apply_revision(Filing { owner: None, revision: released, ..filing(&web, 1, "a") }, 1);
    assert_eq!(numbers(&index, &api), Some(vec![]));
    assert!(index.template(&api, fixtures::template("a").summary()).is_none());
}

#[test]
fn what_a_list_does_not_show_is_gone_in_its_namespace() {
    let index = index(AMPLE);
    let (a, b, c) = (key("one", "a"), key("one", "b"), key("two", "c"));
    for key in [&a, &b, &c] {
        apply(&index, live(key, "x"));
        index.apply_revision(filing(key, 1, "x"), 1);
        index.apply_revision(filing(key, 2, "y"), 1);
    }
    let mut listener = index.listen(&b);
    index.apply_daemonset(live(&a, "x"), 2, Timestamp::UNIX_EPOCH);
    index.apply_revision(filing(&a, 2, "y"), 2);
    let one = Namespace::parse("one").unwrap();
    index.daemonsets_listed(Some(&one), 2, Timestamp::UNIX_EPOCH);
    index.revisions_listed(Some(&one), 2);
    assert_eq!((numbers(&index, &a), numbers(&index, &b)), (Some(vec![2]), None));
    assert_eq!(numbers(&index, &c), Some(vec![1, 2]));
    assert_eq!(listener.ring.try_recv().unwrap().event, crate::kubernetes::FrameEvent::Deleted);
    drop(listener);
    index.tick(Timestamp::UNIX_EPOCH);
    index.daemonsets_listed(None, 3, Timestamp::UNIX_EPOCH);
    index.revisions_listed(None, 3);
    forgets_everything(&index);
}

#[test]
fn pages_come_in_order_and_without_what_is_not_visible() {
    let index = index(AMPLE);
    let keys = [key("a", "y"), key("a", "z"), key("a-b", "a"), key("b", "a"), key("c", "a")];
    for key in &keys {
        apply(&index, live(key, "x"));
    }
    // One that somebody waits for is not there yet.
    let _listener = index.listen(&key("d", "a"));
    let page = |after: Option<&Key>, limit| {
        let (shown, more) = index.page(|namespace| namespace.as_str() != "b", after, limit, |_, _| true);
        (shown.into_iter().map(|shown| shown.daemonset.key.to_string()).collect::<Vec<_>>(), more)
    };
    assert_eq!(page(None, 2), (vec!["a/y".into(), "a/z".into()], true));
    assert_eq!(page(Some(&keys[0]), 2), (vec!["a/z".into(), "a-b/a".into()], true));
    assert_eq!(page(Some(&keys[2]), 2), (vec!["c/a".into()], false));
    // The one before may have gone.
    assert_eq!(page(Some(&key("a", "yy")), 1), (vec!["a/z".into()], true));
    assert_eq!(index.namespaces().len(), 4);
}

#[test]
fn one_that_is_too_large_keeps_its_rollout_and_not_the_rest() {
    let (index, web) = (index(AMPLE), key("default", "web"));
    let mut large = live(&web, "a");
    large.labels.insert("key".into(), "x".repeat(20_000));
    apply(&index, large.clone());
    index.apply_revision(filing(&web, 1, "a"), 1);
    let (kept, extent) = index.daemonset(&web).unwrap();
    assert_eq!((extent, kept.labels.len(), kept.status), (Extent::Abridged, 0, large.status));
    assert!(index.history(&large).is_none());
    assert_eq!(index.usage().histories_not_kept, 1);
    assert!(index.usage().index_bytes < 10_000);
    large.labels.clear();
    apply(&index, large);
    assert_eq!(numbers(&index, &web), Some(vec![1]));
}

#[test]
fn a_history_that_is_too_large_is_not_kept() {
    for causes in [[20_000].as_slice(), [10_000; 40].as_slice()] {
        let (index, web) = (index(AMPLE), key("default", "web"));
        apply(&index, live(&web, "a"));
        for (number, size) in (1..).zip(causes) {
            let mut filing = filing(&web, number, "a");
            filing.revision.change_cause = Some("x".repeat(*size));
            index.apply_revision(filing, 1);
        }
        assert_eq!(numbers(&index, &web), None);
        assert!(index.usage().index_bytes < 10_000);
        assert_eq!(index.usage().template_bytes, 0);
        // It is not half of one later.
        index.apply_revision(filing(&web, 99, "b"), 1);
        assert_eq!(numbers(&index, &web), None);
        index.delete_daemonset(&web, Timestamp::UNIX_EPOCH);
        forgets_everything(&index);
    }
}

#[test]
fn a_full_index_drops_the_histories_of_the_namespace_that_takes_most() {
    let index = index(Budgets { index: 2_000_000, templates: 0 });
    let quiet = key("quiet", "web");
    apply(&index, live(&quiet, "a"));
    index.apply_revision(filing(&quiet, 1, "a"), 1);
    for web in (0..100).map(|number| key("loud", &format!("web-{number}"))) {
        apply(&index, live(&web, "a"));
        for number in 0..50 {
            index.apply_revision(filing(&web, number, "a"), 1);
            assert!(index.usage().index_bytes <= 2_000_000);
        }
    }
    assert_eq!(numbers(&index, &quiet), Some(vec![1]));
    let (shown, _) = index.page(|_| true, None, 1000, |_, _| true);
    let kept = shown.iter().filter(|shown| shown.history.is_some()).count();
    assert_eq!(shown.len(), 101);
    assert_eq!(index.usage().histories_not_kept, 101 - kept);
    assert!((10..90).contains(&kept), "{kept}");
}

#[test]
fn an_index_that_is_full_of_daemonsets_says_so() {
    let index = index(Budgets { index: 100_000, templates: 0 });
    index.daemonsets_list_begins();
    for number in 0..200 {
        apply(&index, live(&key("default", &format!("web-{number}")), "a"));
        assert!(index.usage().index_bytes <= 100_000);
    }
    let (shown, _) = index.page(|_| true, None, 1000, |_, _| true);
    assert!(index.lacks_daemonsets() && shown.len() > 20);
    assert_eq!(index.usage().daemonsets_not_kept, 200 - shown.len());
    // What is there is kept current.
    let known = live(&shown[0].daemonset.key, "b");
    apply(&index, known.clone());
    assert_eq!(index.daemonset(&known.key).unwrap().0.template, known.template);
}
