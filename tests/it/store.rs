//! The store by itself, the same tests on both engines; and what only several processes on one PostgreSQL do.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream};
use jiff::Timestamp;
use rollbackd::{
    audit::{
        Action, Entry, EntryFilter, NewKey, Order, Outcome, RollbackFilter, RollbackScope, Store, StoreError,
        StoreUrl,
    },
    domain::{
        actor::Actor,
        bookkeeping::Ownership,
        key::{Key, Name, Namespace},
        revision::RevisionNumber,
        rollback::{Origin, RevisionInfo, Rollback, RollbackState, Warning},
        template::Template,
    },
    telemetry::{Metrics, causes},
    verifier::{Checks, verify_store},
};
use serde_json::json;
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _, Executor as _, any::install_default_drivers};
use uuid::Uuid;

use crate::{
    chain::{Tampering, entry, found_in, without_triggers},
    support::postgres::{Database, Postgres, run},
};

/// Where a test's store is.
enum Place {
    Sqlite(tempfile::TempDir),
    Postgres(Database),
}

impl Place {
    fn file() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    async fn database() -> Self {
        Self::Postgres(Postgres::shared().database().await)
    }

    fn url(&self) -> StoreUrl {
        match self {
            Self::Sqlite(folder) => {
                format!("sqlite:{}", folder.path().join("rollbackd.db").display()).parse().unwrap()
            }
            Self::Postgres(database) => database.store_url(),
        }
    }

    async fn open(&self) -> Store {
        self.try_open().await.unwrap_or_else(|error| panic!("{}", causes(&error)))
    }

    async fn try_open(&self) -> Result<Store, StoreError> {
        Store::open(&self.url(), Metrics::new(), None).await
    }

    /// The next process: SQLite's file belongs to one at a time, so that the one before it has ended.
    async fn next(&self, before: Store) -> Store {
        if let Self::Sqlite(_) = self {
            before.close().await;
            drop(before);
        }
        self.open().await
    }

    /// A connection past the store.
    async fn raw(&self) -> AnyConnection {
        install_default_drivers();
        AnyConnection::connect(self.url().secret()).await.unwrap()
    }

    /// One that nothing of what keeps the audit append-only holds up.
    async fn tamper(&self) -> AnyConnection {
        match self {
            Self::Sqlite(folder) => without_triggers(&folder.path().join("rollbackd.db")).await,
            Self::Postgres(database) => {
                let mut connection = database.tamper().await;
                run(&mut connection, "ALTER TABLE audit_head ALTER COLUMN hash DROP NOT NULL").await;
                connection
            }
        }
    }

    async fn assert_whole(&self, entries: u64) {
        let report = verify_store(self.url().secret(), &Checks::default()).await.unwrap();
        assert!(report.is_whole(), "{:?}", report.findings);
        assert_eq!((report.entries, report.head.0), (entries, entries as i64));
    }
}

/// Each test, on a file and on a database.
macro_rules! on_both_engines {
    ($($test:ident)*) => {
        mod on_sqlite {
            $(#[tokio::test] async fn $test() { super::$test(super::Place::file()).await; })*
        }
        mod on_postgres {
            $(
                #[tokio::test]
                #[ignore = "needs PostgreSQL"]
                async fn $test() { super::$test(super::Place::database().await).await; }
            )*
        }
    };
}

on_both_engines! {
    entries_are_read_back_as_written_by_every_filter_order_and_page
    rollbacks_are_read_back_as_written_by_every_filter_and_page
    of_one_daemonset_one_rollback_is_undecided
    a_key_makes_one_rollback_unless_that_came_to_nothing
    many_at_once_leave_one_whole_chain
    who_has_lost_a_rollback_writes_nothing_to_it
    released_rollbacks_are_free_at_once
    field_ownership_is_returned_by_one_taker_at_a_time
    a_list_of_rollbacks_is_limited_to_what_its_caller_sees
    lists_keep_no_rollback_waiting
    what_the_next_version_adds_hurts_nobody
    a_store_that_needs_a_newer_version_is_left_alone_with_one_line
    the_store_refuses_to_change_its_audit
    tampering_is_found_and_named
}

fn key(number: u64) -> Key {
    let name = |prefix: &str, number| format!("{prefix}-{number}");
    Key::new(
        Namespace::parse(&name("n", number % 3)).unwrap(),
        Name::parse(&name("agent", number % 4)).unwrap(),
    )
}

fn time(second: u64) -> Timestamp {
    // No, three and six digits after the second: as text they must sort as times do.
    let micros = 1_700_000_000_000_000 + second as i64 * 1_000_000 + [0, 1_000, 1][second as usize % 3];
    Timestamp::from_microsecond(micros).unwrap()
}

/// A rollback of [`key`]`(number)`, in the first state.
fn rollback(number: u64) -> Rollback {
    let actor = |user: String| Actor {
        user,
        groups: vec!["g".into(), "größe 🚀".into()],
        groups_omitted: 0,
        uid: Some("u".into()),
    };
    let revision = |number| RevisionInfo {
        revision: RevisionNumber(number),
        controller_revision: format!("agent-{number}"),
        hash: Some("854b6d86d".into()),
        images: Vec::new(),
    };
    Rollback {
        id: Uuid::now_v7(),
        state: RollbackState::Requested,
        key: key(number),
        uid: format!("uid-{number}"),
        generation: None,
        from: Some(revision(2)),
        to: revision(1),
        new_revision: None,
        warnings: Vec::new(),
        message: "requested \u{0}? no: \"größe\" \\u0041 🚀\n".replace('\u{0}', ""),
        origin: Origin {
            requested_by: actor(format!("user-{}", number % 2)),
            on_behalf_of: number.is_multiple_of(5).then(|| actor("somebody".into())),
            reason: Some("it 'crashes'; DROP TABLE audit --".into()),
            request_id: format!("request-{number}"),
            source: None,
        },
        requested_at: time(number),
        ended_at: None,
        template: Template::new(json!({"number": number})).fingerprint(),
        pinned_to: Some("17".into()),
        pinned_generation: 3,
        pinned_rollback: None,
        ownership: None,
        newest_revision_at: None,
        epoch: 1,
        duplicates: Vec::new(),
    }
}

fn asked(rollback: &Rollback) -> Entry {
    Entry::of_rollback(rollback, Action::Requested, Some("cluster".into()), rollback.requested_at)
}

async fn begin(store: &Store, rollback: &Rollback) -> Result<(), StoreError> {
    store.begin(rollback, &asked(rollback), None).await
}

/// Moves a rollback on, with an entry.
async fn advance(store: &Store, rollback: &mut Rollback, to: RollbackState) -> Result<(), StoreError> {
    let before = rollback.state;
    rollback.state = to;
    rollback.ended_at = to.is_final().then(|| time(1000));
    let action = if to.is_final() { Action::Completed } else { Action::Applied };
    let entry = Entry::of_rollback(rollback, action, None, time(1000));
    let advanced = store.advance(before, rollback, Some(&entry)).await;
    if advanced.is_err() {
        (rollback.state, rollback.ended_at) = (before, None);
    }
    advanced
}

async fn entries_are_read_back_as_written_by_every_filter_order_and_page(place: Place) {
    let store = place.open().await;
    let mut written: Vec<(i64, Entry)> = Vec::new();
    for number in 1..=30 {
        let mut one = entry(number);
        if number % 4 == 0 {
            one = asked(&rollback(number as u64));
        }
        store.append(&one).await.unwrap();
        written.push((number, one));
    }
    let namespace = |text: &str| Some(Namespace::parse(text).unwrap());
    let middle = written[14].1.time;
    let all = EntryFilter::default();
    let filters = [
        all.clone(),
        EntryFilter { namespace: namespace("n1"), ..all.clone() },
        EntryFilter { name: Some(Name::parse("agent-2").unwrap()), ..all.clone() },
        EntryFilter { actor: Some("user-1".into()), ..all.clone() },
        EntryFilter { action: Some(Action::Denied), ..all.clone() },
        EntryFilter { outcome: Some(Outcome::Pending), ..all.clone() },
        EntryFilter { since: Some(middle), ..all.clone() },
        EntryFilter { until: Some(middle), ..all.clone() },
        EntryFilter { within: Some(vec![]), ..all.clone() },
        EntryFilter {
            within: Some(vec![namespace("n1").unwrap(), namespace("n-2").unwrap()]),
            ..all.clone()
        },
        EntryFilter {
            namespace: namespace("n2"),
            actor: Some("user-0".into()),
            action: Some(Action::Refused),
            since: Some(written[0].1.time),
            ..all
        },
    ];
    let micros = |time: Timestamp| time.as_microsecond();
    for filter in filters {
        let fits = |entry: &Entry| {
            filter.namespace.as_ref().is_none_or(|it| entry.namespace.as_ref() == Some(it))
                && filter.name.as_ref().is_none_or(|it| entry.name.as_ref() == Some(it))
                && filter.actor.as_ref().is_none_or(|it| *it == entry.actor.user)
                && filter.action.is_none_or(|it| it == entry.action)
                && filter.outcome.is_none_or(|it| it == entry.outcome)
                && filter.since.is_none_or(|it| micros(entry.time) >= micros(it))
                && filter.until.is_none_or(|it| micros(entry.time) < micros(it))
                && filter
                    .within
                    .as_ref()
                    .is_none_or(|it| entry.namespace.as_ref().is_some_and(|namespace| it.contains(namespace)))
        };
        let oldest_first: Vec<_> = written.iter().filter(|(_, entry)| fits(entry)).cloned().collect();
        let mut newest_first = oldest_first.clone();
        newest_first.reverse();
        // Page by page, in both directions.
        let (mut up, mut down) = (Vec::new(), Vec::new());
        loop {
            let after = up.last().map_or(0, |(sequence, _)| *sequence);
            let page = store.entries(&filter, Order::OldestFirst { after }, 4).await.unwrap();
            let before = down.last().map(|(sequence, _): &(i64, Entry)| *sequence);
            let back = store.entries(&filter, Order::NewestFirst { before }, 4).await.unwrap();
            assert!(page.len() <= 4 && back.len() == page.len(), "{filter:?}");
            if page.is_empty() {
                break;
            }
            up.extend(page);
            down.extend(back);
        }
        assert_eq!((up, down), (oldest_first, newest_first), "{filter:?}");
    }
    let denied = Entry {
        action: Action::Denied,
        outcome: Outcome::Denied,
        namespace: namespace("nowhere"),
        ..entry(31)
    };
    store.append(&denied).await.unwrap();
    let mut expected: HashSet<Namespace> =
        written.iter().filter_map(|(_, entry)| entry.namespace.clone()).collect();
    let others = |names: &[&str]| names.iter().map(|name| namespace(name).unwrap()).collect::<HashSet<_>>();
    let audited =
        async |names: &[&str], limit| store.audited_namespaces(&others(names), limit).await.unwrap();
    // Those that have only denials are asked for by name.
    assert_eq!(audited(&["never"], 100).await, expected);
    assert_eq!(audited(&[], 2).await.len(), 2);
    expected.insert(namespace("nowhere").unwrap());
    assert_eq!(audited(&["never", "nowhere", "n1"], 100).await, expected);
    place.assert_whole(31).await;
}

async fn rollbacks_are_read_back_as_written_by_every_filter_and_page(place: Place) {
    let store = place.open().await;
    let mut written = Vec::new();
    for number in 1..=24 {
        let mut rollback = rollback(number);
        begin(&store, &rollback).await.unwrap();
        let to =
            [RollbackState::Progressing, RollbackState::Skipped, RollbackState::Failed][number as usize % 3];
        advance(&store, &mut rollback, to).await.unwrap();
        written.push(rollback);
    }
    assert_eq!(store.rollback(Uuid::now_v7()).await.unwrap(), None);
    for rollback in &written {
        assert_eq!(store.rollback(rollback.id).await.unwrap().as_ref(), Some(rollback));
    }
    let all = RollbackFilter::default();
    for filter in [
        all.clone(),
        RollbackFilter { namespace: Some(Namespace::parse("n-1").unwrap()), ..all.clone() },
        RollbackFilter { name: Some(Name::parse("agent-3").unwrap()), ..all.clone() },
        RollbackFilter { state: Some(RollbackState::Failed), ..all.clone() },
        RollbackFilter { actor: Some("user-1".into()), ..all.clone() },
        RollbackFilter { since: Some(written[9].requested_at), ..all.clone() },
        RollbackFilter { state: Some(RollbackState::Progressing), actor: Some("user-0".into()), ..all },
    ] {
        let fits = |rollback: &&Rollback| {
            filter.namespace.as_ref().is_none_or(|it| *it == rollback.key.namespace)
                && filter.name.as_ref().is_none_or(|it| *it == rollback.key.name)
                && filter.state.is_none_or(|it| it == rollback.state)
                && filter.actor.as_ref().is_none_or(|it| *it == rollback.origin.requested_by.user)
                && filter.since.is_none_or(|it| rollback.requested_at >= it)
        };
        let expected: Vec<_> = written.iter().rev().filter(fits).cloned().collect();
        let mut read: Vec<Rollback> = Vec::new();
        loop {
            let before = read.last().map(|rollback| rollback.id);
            let page = store.rollbacks(&RollbackFilter { before, ..filter.clone() }, 3).await.unwrap();
            if page.is_empty() {
                break;
            }
            read.extend(page);
        }
        assert_eq!(read, expected, "{filter:?}");
    }
    let open = store.open_rollbacks().await.unwrap();
    let progressing = written.iter().filter(|rollback| rollback.state == RollbackState::Progressing);
    assert!(open.iter().all(|open| open.mine));
    let open: Vec<_> = open.into_iter().map(|open| open.rollback).collect();
    assert_eq!(open, progressing.cloned().collect::<Vec<_>>());
    place.assert_whole(48).await;
}

async fn a_list_of_rollbacks_is_limited_to_what_its_caller_sees(place: Place) {
    let store = place.open().await;
    let mut written = Vec::new();
    for number in 1..=24 {
        let mut rollback = rollback(number);
        begin(&store, &rollback).await.unwrap();
        advance(&store, &mut rollback, RollbackState::Failed).await.unwrap();
        written.push(rollback);
    }
    // As an earlier version, running beside this one, writes it.
    let earlier = &written[6];
    let mut raw = place.raw().await;
    let sql = format!("UPDATE rollbacks SET asker = '' WHERE id = '{}'", earlier.id);
    raw.execute(AssertSqlSafe(sql)).await.unwrap();

    let keys: BTreeSet<Key> = written.iter().map(|rollback| rollback.key.clone()).collect();
    let found = async |namespace: Option<&Namespace>, name: Option<&Name>, limit| {
        store.rolled_back(namespace, name, limit).await.unwrap()
    };
    assert_eq!(found(None, None, 100).await, keys.iter().cloned().collect::<Vec<_>>());
    assert_eq!(found(None, None, 5).await, keys.iter().take(5).cloned().collect::<Vec<_>>());
    let one = key(1);
    let of = |is: &dyn Fn(&&Key) -> bool| keys.iter().filter(is).cloned().collect::<Vec<_>>();
    assert_eq!(found(Some(&one.namespace), None, 100).await, of(&|key| key.namespace == one.namespace));
    assert_eq!(found(None, Some(&one.name), 100).await, of(&|key| key.name == one.name));

    let (namespaces, daemonsets) = (vec![key(2).namespace], vec![key(1), key(3)]);
    for (scope, is) in [
        (RollbackScope::default(), (&|_: &&Rollback| false) as &dyn Fn(&&Rollback) -> bool),
        (RollbackScope { namespaces: namespaces.clone(), ..RollbackScope::default() }, &|it| {
            namespaces.contains(&it.key.namespace)
        }),
        (
            RollbackScope { namespaces: namespaces.clone(), daemonsets: daemonsets.clone(), asker: None },
            &|it| namespaces.contains(&it.key.namespace) || daemonsets.contains(&it.key),
        ),
        (RollbackScope { asker: Some("somebody".into()), ..RollbackScope::default() }, &|it| {
            it.origin.asker().user == "somebody"
        }),
        (
            RollbackScope {
                asker: Some("user-1".into()),
                daemonsets: daemonsets.clone(),
                namespaces: vec![],
            },
            &|it| it.origin.asker().user == "user-1" || daemonsets.contains(&it.key),
        ),
    ] {
        let expected: Vec<_> = written.iter().rev().filter(is).cloned().collect();
        let filter = RollbackFilter { within: Some(scope), ..RollbackFilter::default() };
        assert_eq!(store.rollbacks(&filter, 100).await.unwrap(), expected, "{filter:?}");
    }
}

/// However many lists are asked for, a rollback does not wait for the last of them.
async fn lists_keep_no_rollback_waiting(place: Place) {
    let store = place.open().await;
    let mut raw = place.raw().await;
    let fill =
        "INSERT INTO audit (sequence, time, action, outcome, namespace, name, actor, entry, previous, hash) ";
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000) ";
    let (fill, numbers) = match &place {
        Place::Sqlite(_) => (format!("{numbers}{fill}"), ""),
        Place::Postgres(_) => (fill.to_owned(), numbers),
    };
    let sql =
        format!("{fill}{numbers}SELECT i, '', 'rollback.denied', '', 'n', '', 'user', '{{}}', '', '' FROM n");
    raw.execute(AssertSqlSafe(sql)).await.unwrap();
    raw.execute("UPDATE audit_head SET sequence = 30000").await.unwrap();

    let nobodys = EntryFilter { actor: Some("nobody".into()), ..EntryFilter::default() };
    let lists = (0..200).map(|_| {
        let (store, nobodys) = (store.clone(), nobodys.clone());
        tokio::spawn(async move { store.entries(&nobodys, Order::NewestFirst { before: None }, 100).await })
    });
    let lists: Vec<_> = lists.collect();
    let begun = rollback(1);
    begin(&store, &begun).await.unwrap();
    assert_eq!(store.rollback(begun.id).await.unwrap(), Some(begun));
    assert!(lists.iter().any(|list| !list.is_finished()), "the rollback has waited for all lists");
    lists.iter().for_each(tokio::task::JoinHandle::abort);
}

async fn of_one_daemonset_one_rollback_is_undecided(place: Place) {
    let store = place.open().await;
    let mut first = rollback(1);
    begin(&store, &first).await.unwrap();
    for state in [RollbackState::Requested, RollbackState::Unsettled] {
        if state == RollbackState::Unsettled {
            advance(&store, &mut first, state).await.unwrap();
        }
        let busy = begin(&store, &rollback(1)).await.unwrap_err();
        assert!(matches!(busy, StoreError::Busy { id } if id == first.id), "{busy:?}");
    }
    // Another DaemonSet's is not in its way, nor is one whose patch is decided.
    begin(&store, &rollback(2)).await.unwrap();
    advance(&store, &mut first, RollbackState::Progressing).await.unwrap();
    begin(&store, &rollback(1)).await.unwrap();
    place.assert_whole(5).await;

    // At once, also of several processes.
    let stores = match &place {
        Place::Sqlite(_) => vec![store.clone(), store.clone(), store.clone()],
        Place::Postgres(_) => vec![store.clone(), place.open().await, place.open().await],
    };
    let tries = (0..30).map(|number| {
        let store = stores[number % stores.len()].clone();
        tokio::spawn(async move { begin(&store, &rollback(3)).await })
    });
    let mut begun = 0;
    for tried in tries.collect::<Vec<_>>() {
        match tried.await.unwrap() {
            Ok(()) => begun += 1,
            Err(StoreError::Busy { .. }) => {}
            Err(error) => panic!("{}", causes(&error)),
        }
    }
    assert_eq!(begun, 1);
    place.assert_whole(6).await;
}

async fn a_key_makes_one_rollback_unless_that_came_to_nothing(place: Place) {
    let store = place.open().await;
    let new = |instead_of| NewKey { id: "key".into(), request: "request".into(), instead_of };
    let mut first = rollback(1);
    store.begin(&first, &asked(&first), Some(&new(None))).await.unwrap();
    let used = store.used_key("key").await.unwrap().unwrap();
    assert_eq!((used.request.as_str(), used.rollback, used.answer), ("request", first.id, None));
    assert_eq!(store.used_key("other").await.unwrap(), None);
    // Taken, also where another rollback of the DaemonSet would be in the way anyhow.
    for number in [1, 2] {
        let second = rollback(number);
        let taken = store.begin(&second, &asked(&second), Some(&new(None))).await.unwrap_err();
        assert!(matches!(taken, StoreError::KeyTaken), "{taken:?}");
    }
    // Instead of one that was not made with it.
    let third = rollback(2);
    let wrong = store.begin(&third, &asked(&third), Some(&new(Some(Uuid::now_v7())))).await.unwrap_err();
    assert!(matches!(wrong, StoreError::KeyTaken), "{wrong:?}");
    // Only the first answer is kept, and only that of its rollback.
    store.keep_answer("key", third.id, "of another").await.unwrap();
    store.keep_answer("key", first.id, "the first").await.unwrap();
    store.keep_answer("key", first.id, "the second").await.unwrap();
    let used = store.used_key("key").await.unwrap().unwrap();
    assert_eq!((used.rollback, used.answer.as_deref()), (first.id, Some("the first")));
    advance(&store, &mut first, RollbackState::Failed).await.unwrap();
    store.begin(&third, &asked(&third), Some(&new(Some(first.id)))).await.unwrap();
    let used = store.used_key("key").await.unwrap().unwrap();
    assert_eq!((used.rollback, used.answer), (third.id, None));
    place.assert_whole(3).await;
}

async fn many_at_once_leave_one_whole_chain(place: Place) {
    let mut stores = vec![place.open().await];
    for _ in 0..4 {
        let another = match &place {
            Place::Sqlite(_) => stores[0].clone(),
            Place::Postgres(_) => place.open().await,
        };
        stores.push(another);
    }
    let tasks = (0..40_u64).map(|number| {
        let store = stores[number as usize % stores.len()].clone();
        async move {
            let mut rollback = rollback(number);
            // A DaemonSet of its own.
            rollback.key = Key::new(key(1).namespace, Name::parse(&format!("own-{number}")).unwrap());
            begin(&store, &rollback).await.unwrap();
            store.append(&entry(number as i64 + 1)).await.unwrap();
            store.advance(rollback.state, &rollback, None).await.unwrap();
            advance(&store, &mut rollback, RollbackState::Progressing).await.unwrap();
            advance(&store, &mut rollback, RollbackState::Succeeded).await.unwrap();
        }
    });
    // Not all: each waits for its turn no longer than a rollback may.
    stream::iter(tasks).buffer_unordered(8).collect::<()>().await;
    place.assert_whole(160).await;
    let heads = stores.iter().map(async |store| store.head().await.unwrap());
    for head in heads {
        assert_eq!(head.await.sequence, 160);
    }
}

async fn who_has_lost_a_rollback_writes_nothing_to_it(place: Place) {
    let first = place.open().await;
    let mut old = rollback(1);
    begin(&first, &old).await.unwrap();
    first.release().await.unwrap();
    let late = first.clone();
    let second = match &place {
        Place::Sqlite(_) => {
            drop(late);
            place.next(first).await
        }
        Place::Postgres(_) => place.open().await,
    };
    let [mut taken]: [Rollback; 1] = second.claim().await.unwrap().try_into().unwrap();
    assert_eq!((taken.id, taken.epoch), (old.id, 2));
    assert_eq!(
        second.rollback(old.id).await.unwrap(),
        Some(taken.clone()),
        "the epoch is read with the record"
    );

    // With the epoch of before, and by who held it before; with an entry and without.
    let mut lates = vec![second.clone()];
    if let Place::Postgres(_) = &place {
        lates.push(place.open().await);
    }
    for late in lates {
        let moved = advance(&late, &mut old, RollbackState::Failed).await.unwrap_err();
        assert!(matches!(moved, StoreError::Moved { id, .. } if id == old.id), "{moved:?}");
        let moved = late.advance(old.state, &old, None).await.unwrap_err();
        assert!(matches!(moved, StoreError::Moved { .. }), "{moved:?}");
    }
    assert_eq!(second.rollback(old.id).await.unwrap(), Some(taken.clone()));
    place.assert_whole(1).await;
    // From a state that it is no longer in.
    advance(&second, &mut taken, RollbackState::Progressing).await.unwrap();
    let mut again = Rollback { state: RollbackState::Requested, ..taken.clone() };
    let moved = advance(&second, &mut again, RollbackState::Failed).await.unwrap_err();
    assert!(matches!(moved, StoreError::Moved { state: RollbackState::Requested, .. }), "{moved:?}");
    advance(&second, &mut taken, RollbackState::Succeeded).await.unwrap();
    place.assert_whole(3).await;
}

async fn released_rollbacks_are_free_at_once(place: Place) {
    let first = place.open().await;
    let mut ended = rollback(1);
    begin(&first, &ended).await.unwrap();
    advance(&first, &mut ended, RollbackState::Failed).await.unwrap();
    let open = [rollback(1), rollback(2), rollback(3)];
    for rollback in &open {
        begin(&first, rollback).await.unwrap();
    }
    if let Place::Postgres(_) = &place {
        // However long the next lines take.
        let mut raw = place.raw().await;
        raw.execute("UPDATE rollbacks SET lease = lease + 3600000").await.unwrap();
    }
    assert_eq!(first.claim().await.unwrap(), [], "what this process holds is not taken up again");
    if let Place::Postgres(_) = &place {
        let other = place.open().await;
        assert_eq!(other.claim().await.unwrap(), [], "a live one's are not taken");
        let seen = other.open_rollbacks().await.unwrap();
        assert_eq!(seen.iter().filter(|open| !open.mine).count(), 3);
    }
    first.release().await.unwrap();
    let second = match &place {
        Place::Sqlite(_) => place.next(first).await,
        Place::Postgres(_) => place.open().await,
    };
    let claimed = second.claim().await.unwrap();
    let ids = |rollbacks: &[Rollback]| rollbacks.iter().map(|rollback| rollback.id).collect::<Vec<_>>();
    assert_eq!(ids(&claimed), ids(&open), "oldest first");
    assert!(claimed.iter().all(|rollback| rollback.epoch == 2));
    assert_eq!(second.claim().await.unwrap(), []);
}

async fn field_ownership_is_returned_by_one_taker_at_a_time(place: Place) {
    let store = place.open().await;
    let mut made = rollback(1);
    let entries = r#"[{"manager":"kubectl","operation":"Apply","apiVersion":"apps/v1","fieldsV1":{"f:spec":{"f:template":{}}}}]"#;
    made.ownership = Some(Ownership::of(&serde_json::from_str(entries).unwrap()));
    begin(&store, &made).await.unwrap();
    assert!(store.take_returns().await.unwrap().is_empty(), "before the patch is on record as applied");
    advance(&store, &mut made, RollbackState::Progressing).await.unwrap();
    let first = store.take_returns().await.unwrap().remove(0);
    assert_eq!((first.rollback, first.attempts), (made.id, 1));
    assert!(store.take_returns().await.unwrap().is_empty(), "it is taken");

    // A failure is a warning, and due again.
    let warning = Warning::of_unreturned_ownership("it failed");
    store.not_returned(&first, &warning, Some(Duration::ZERO)).await.unwrap();
    let shown = store.rollback(made.id).await.unwrap().unwrap();
    assert_eq!(shown.warnings.last(), Some(&warning));
    let second = store.take_returns().await.unwrap().remove(0);
    assert_eq!(second.attempts, 2);
    // The one that took it before has lost it.
    store.returned(&first).await.unwrap();
    assert!(store.pending_return(made.id).await.unwrap().is_some());
    // It is given up, and stays so whatever a late one says.
    store.not_returned(&second, &warning, None).await.unwrap();
    for late in [&first, &second] {
        store.not_returned(late, &warning, Some(Duration::ZERO)).await.unwrap();
    }
    assert!(store.take_returns().await.unwrap().is_empty());
    assert_eq!(store.pending_return(made.id).await.unwrap(), None);
    // The warning is kept apart from the record.
    advance(&store, &mut made, RollbackState::Succeeded).await.unwrap();
    let shown = store.rollback(made.id).await.unwrap().unwrap();
    assert_eq!(shown.warnings.iter().filter(|shown| **shown == warning).count(), 1);
}

async fn what_the_next_version_adds_hurts_nobody(place: Place) {
    let open = place.open().await;
    let mut before = rollback(1);
    begin(&open, &before).await.unwrap();
    let mut next = place.raw().await;
    let (time, checksum) = match &place {
        Place::Sqlite(_) => ("datetime('now')", "x'00'"),
        Place::Postgres(_) => ("now()", "'\\x00'"),
    };
    for sql in [
        "ALTER TABLE rollbacks ADD COLUMN cause TEXT NOT NULL DEFAULT 'none'".to_owned(),
        "ALTER TABLE audit ADD COLUMN cause TEXT".into(),
        "CREATE TABLE causes (cause TEXT NOT NULL)".into(),
        format!(
            "INSERT INTO _sqlx_migrations (version, description, installed_on, success, checksum, execution_time) VALUES (1000, 'causes', {time}, TRUE, {checksum}, 1)"
        ),
    ] {
        next.execute(AssertSqlSafe(sql)).await.unwrap();
    }
    next.close().await.unwrap();
    // The one that is open, whose statements are prepared.
    advance(&open, &mut before, RollbackState::Progressing).await.unwrap();
    begin(&open, &rollback(2)).await.unwrap();
    assert_eq!(open.rollback(before.id).await.unwrap(), Some(before.clone()));
    assert_eq!(open.open_rollbacks().await.unwrap().len(), 2);
    open.release().await.unwrap();
    // And one that opens.
    let opened = place.next(open).await;
    assert_eq!(opened.claim().await.unwrap().len(), 2);
    begin(&opened, &rollback(3)).await.unwrap();
    place.assert_whole(4).await;
}

async fn a_store_that_needs_a_newer_version_is_left_alone_with_one_line(place: Place) {
    let open = place.open().await;
    begin(&open, &rollback(1)).await.unwrap();
    open.close().await;
    drop(open);
    let mut next = place.raw().await;
    next.execute("UPDATE schema_support SET oldest = 7").await.unwrap();
    let error = place.try_open().await.unwrap_err();
    let line = causes(&error).to_string();
    assert_eq!(
        line,
        "a newer rollbackd has brought its schema to 7, this one knows schema 6: start that version, or restore a backup from before it"
    );
    // A verifier reads it all the same.
    place.assert_whole(1).await;
    next.execute("UPDATE schema_support SET oldest = 4").await.unwrap();
    next.close().await.unwrap();
    place.open().await;
}

async fn the_store_refuses_to_change_its_audit(place: Place) {
    let store = place.open().await;
    for number in 1..=3 {
        store.append(&entry(number)).await.unwrap();
    }
    let mut raw = place.raw().await;
    let mut statements = vec![
        "UPDATE audit SET entry = '{}'",
        "UPDATE audit SET actor = 'nobody' WHERE sequence = 2",
        "UPDATE audit SET hash = ''",
        "DELETE FROM audit WHERE sequence = 3",
        "DELETE FROM audit",
        "UPDATE audit_start SET sequence = 0",
    ];
    if let Place::Postgres(_) = &place {
        statements.push("TRUNCATE audit");
        statements.push("TRUNCATE audit CASCADE");
    }
    for sql in statements {
        let refused = raw.execute(sql).await.expect_err(sql).to_string();
        assert!(refused.contains("append-only") || refused.contains("stays cut"), "{sql}: {refused}");
    }
    place.assert_whole(3).await;
}

/// One of each kind at each place; `chain` has many more for SQLite.
async fn tampering_is_found_and_named(place: Place) {
    const ENTRIES: i64 = 3;
    let store = place.open().await;
    for number in 1..=ENTRIES {
        store.append(&entry(number)).await.unwrap();
    }
    let head = store.head().await.unwrap().hash;
    store.close().await;
    drop(store);
    // With the first one there is no predecessor to tell of; `chain` has that.
    for at in 1..ENTRIES {
        for tampering in Tampering::all_at(at) {
            let copy = place.copy().await;
            let found = found_in(copy.url().secret(), copy.tamper().await, ENTRIES, &head, tampering).await;
            found.unwrap_or_else(|error| panic!("{tampering:?}: {error}"));
        }
    }
    place.assert_whole(ENTRIES as u64).await;
}

impl Place {
    async fn copy(&self) -> Self {
        match self {
            Self::Sqlite(folder) => {
                let copy = tempfile::tempdir().unwrap();
                std::fs::copy(folder.path().join("rollbackd.db"), copy.path().join("rollbackd.db")).unwrap();
                Self::Sqlite(copy)
            }
            Self::Postgres(database) => Self::Postgres(Postgres::shared().copy_of(database).await),
        }
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn who_claim_at_once_get_disjoint_sets_that_are_all_there_is() {
    let place = Place::database().await;
    let dead = place.open().await;
    let mut open = BTreeSet::new();
    for number in 0..130 {
        let mut rollback = rollback(number);
        rollback.key = Key::new(key(1).namespace, Name::parse(&format!("own-{number}")).unwrap());
        begin(&dead, &rollback).await.unwrap();
        open.insert(rollback.id);
    }
    dead.release().await.unwrap();
    // Another one is in the middle of taking the oldest ten.
    let mut raw = place.raw().await;
    let mut taking = raw.begin().await.unwrap();
    let ten = "SELECT id FROM rollbacks WHERE open ORDER BY id LIMIT 10 FOR UPDATE";
    assert_eq!(taking.fetch_all(ten).await.unwrap().len(), 10);
    let stores = join_all((0..6).map(|_| place.open())).await;
    let claimed = join_all(stores.iter().map(Store::claim)).await;
    let mut taken = BTreeSet::new();
    let mut holders = 0;
    let mut keep = async |store: &Store, claimed: Vec<Rollback>| {
        for mut rollback in claimed {
            assert_eq!(rollback.epoch, 2);
            assert!(taken.insert(rollback.id), "{} was taken twice", rollback.id);
            advance(store, &mut rollback, RollbackState::Failed).await.unwrap();
        }
        taken.len()
    };
    for (store, claimed) in stores.iter().zip(claimed) {
        let claimed = claimed.unwrap();
        holders += usize::from(!claimed.is_empty());
        keep(store, claimed).await;
    }
    assert!(holders > 2, "one took more than a batch");
    // That one gives up, and what it had locked is free.
    taking.rollback().await.unwrap();
    let left = stores[0].claim().await.unwrap();
    assert_eq!(left.len(), 10);
    keep(&stores[0], left).await;
    assert_eq!(taken, open);
    place.assert_whole(260).await;
}

/// A lease that is not renewed is over; renewed by name, it is not.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn only_what_a_process_knows_of_stays_its_own() {
    let place = Place::database().await;
    let first = place.open().await;
    let (known, lost) = (rollback(1), rollback(2));
    for rollback in [&known, &lost] {
        begin(&first, rollback).await.unwrap();
    }
    // Time passes; afterwards less than a lease, however long that takes.
    let mut raw = place.raw().await;
    let (passes, stands_still) =
        ("UPDATE rollbacks SET lease = lease - 3600000", "UPDATE rollbacks SET lease = lease + 1800000");
    raw.execute(passes).await.unwrap();
    first.renew(&[known.id]).await.unwrap();
    raw.execute(stands_still).await.unwrap();
    let second = place.open().await;
    let claimed = second.claim().await.unwrap();
    assert_eq!(claimed.iter().map(|rollback| rollback.id).collect::<Vec<_>>(), [lost.id]);
    // Nobody renews what is another's.
    raw.execute("UPDATE rollbacks SET lease = 0").await.unwrap();
    first.renew(&[known.id, lost.id]).await.unwrap();
    raw.execute("UPDATE rollbacks SET lease = lease + 1800000 WHERE lease > 0").await.unwrap();
    let claimed = place.open().await.claim().await.unwrap();
    assert_eq!(claimed.iter().map(|rollback| rollback.id).collect::<Vec<_>>(), [lost.id]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn all_may_make_the_schema_at_once() {
    let place = Place::database().await;
    let opened = join_all((0..8).map(|_| place.open())).await;
    for (number, store) in (1..).zip(&opened) {
        store.append(&entry(number)).await.unwrap();
    }
    place.assert_whole(8).await;
}

/// A server may be set up to lose the last commits in a crash; what says that it is durable must be.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn commits_are_durable_whatever_the_server_is_set_to() {
    let database = Postgres::shared().database().await;
    let place = Place::Postgres(database);
    place.open().await.close().await;
    let mut raw = place.raw().await;
    // Noted by the sessions themselves.
    for sql in [
        "CREATE TABLE noted (setting TEXT NOT NULL)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO noted VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$",
        "CREATE TRIGGER note AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION note()",
    ] {
        raw.execute(sql).await.unwrap();
    }
    let Place::Postgres(database) = &place else { unreachable!("made above") };
    for (number, (set, kept)) in
        [("off", "on"), ("on", "on"), ("local", "local"), ("remote_apply", "remote_apply")]
            .into_iter()
            .enumerate()
    {
        let alter = format!("ALTER DATABASE {} SET synchronous_commit = {set}", database.name);
        raw.execute(AssertSqlSafe(alter)).await.unwrap();
        let store = place.open().await;
        store.append(&entry(number as i64 + 1)).await.unwrap();
        store.close().await;
        let noted: Vec<String> =
            sqlx::query_scalar("DELETE FROM noted RETURNING setting").fetch_all(&mut raw).await.unwrap();
        assert_eq!(noted, [kept], "{set}");
    }
}

/// Whoever sleeps in the middle of a write loses it, instead of keeping everybody from theirs.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn who_hangs_with_the_head_locked_holds_up_nobody_for_long() {
    let place = Place::database().await;
    let store = place.open().await;
    // As a replica that is frozen between two statements: its session's settings are the store's.
    let mut hanging = place.raw().await;
    hanging.execute("SET idle_in_transaction_session_timeout = '5s'").await.unwrap();
    hanging.execute("BEGIN").await.unwrap();
    hanging.execute("SELECT * FROM audit_head FOR UPDATE").await.unwrap();
    crate::support::wait::until("the head to be free again", async || store.append(&entry(1)).await).await;
    hanging.execute("COMMIT").await.expect_err("it was ended");
    place.assert_whole(1).await;
}
