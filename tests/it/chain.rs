//! The audit as a chain: whatever is done to a store behind rollbackd's back is found and named, and an
//! untouched one is whole: in use, at rest, exported, and brought on from before there was a chain.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::OnceLock,
};

use jiff::Timestamp;
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use rollbackd::{
    audit::{Action, Entry, EntryFilter, Order, Outcome, Store, StoreUrl},
    domain::{
        actor::Actor,
        key::{Key, Name, Namespace},
        rollback::{Mode, Origin},
    },
    telemetry::Metrics,
    verifier::{AnchorPlace, Checks, Finding, Report, VerifyError, verify_store},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _, Executor as _, any::install_default_drivers};
use tokio::io::AsyncWriteExt as _;

use crate::support::{controlplane::ControlPlane, rollbackd::Rollbackd, space::Space, wait::until};

fn url(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

fn store_url(path: &Path) -> StoreUrl {
    url(path).parse().unwrap()
}

async fn open(path: &Path) -> AnyConnection {
    install_default_drivers();
    AnyConnection::connect(&url(path)).await.unwrap()
}

async fn run(connection: &mut AnyConnection, sql: String) {
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
}

/// The triggers of a store as SQLite keeps them.
static TRIGGERS: OnceLock<Vec<String>> = OnceLock::new();

/// What somebody who can write the file does first.
pub async fn without_triggers(path: &Path) -> AnyConnection {
    let mut connection = open(path).await;
    let triggers: Vec<(String, String)> =
        sqlx::query_as("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    for (name, _) in &triggers {
        run(&mut connection, format!("DROP TRIGGER {name}")).await;
    }
    if !triggers.is_empty() {
        TRIGGERS.get_or_init(|| triggers.into_iter().map(|(_, sql)| sql).collect());
    }
    connection
}

/// And does last, so that nothing but the entries tells of it.
pub async fn close_with_triggers(mut connection: AnyConnection) {
    for sql in TRIGGERS.get().expect("they were taken away") {
        run(&mut connection, sql.clone()).await;
    }
    connection.close().await.unwrap();
}

pub fn entry(number: i64) -> Entry {
    let key = Key::new(
        Namespace::parse(&format!("n{}", number % 5)).unwrap(),
        Name::parse(&format!("agent-{}", number % 7)).unwrap(),
    );
    let origin = Origin {
        requested_by: Actor {
            user: format!("user-{}", number % 3),
            groups: vec!["g".into()],
            groups_omitted: 0,
            uid: None,
        },
        on_behalf_of: None,
        reason: Some(format!("reason {number} \"quoted\" größe 🚀\n")),
        request_id: format!("request-{number}"),
        source: Some("127.0.0.1".into()),
    };
    // With no, three and nine digits after the second.
    let nanoseconds =
        1_700_000_000_000_000_000 + i128::from(number) * [1_000_000_000, 1_000_000, 1][number as usize % 3];
    let kind = [(Action::Refused, Outcome::Refused), (Action::Denied, Outcome::Denied)][number as usize % 2];
    let time = Timestamp::from_nanosecond(nanoseconds).unwrap();
    Entry::of_request(kind, &key, &origin, None, Mode::Apply, format!("message {number}"), time)
}

/// A store with so many entries, at rest.
async fn written(path: &Path, entries: i64) {
    let store = Store::open(&store_url(path), Metrics::new(), None).await.unwrap();
    for number in 1..=entries {
        store.append(&entry(number)).await.unwrap();
    }
    store.close().await;
}

async fn verify(path: &Path, anchor: Option<&str>) -> Report {
    verify_store(&url(path), &anchored(anchor)).await.unwrap()
}

fn anchored(anchor: Option<&str>) -> Checks {
    Checks { anchor: anchor.map(|anchor| anchor.parse().unwrap()), ..Checks::default() }
}

/// An entry's hash, as the documentation of the format says; neither rollbackd's nor the verifier's.
fn hash(sequence: i64, previous: &str, text: &str) -> String {
    let digest = Sha256::digest(format!("rollbackd audit 1\n{sequence}\n{previous}\n{text}"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One thing that is done to a store. Places are taken modulo the number of entries.
#[derive(Clone, Copy, Debug)]
pub enum Tampering {
    /// One character of the text.
    Text(i64, usize),
    /// The text, with a hash that fits it.
    Rehashed(i64),
    /// A column that repeats what the text says.
    Column(i64, usize),
    Previous(i64, usize),
    Hash(i64, usize),
    Removed(i64),
    /// All after it too, and the head fits.
    Cut(i64),
    /// Two entries have changed places.
    Swapped(i64, i64),
    /// A new one after it; those that follow have moved on.
    PutIn(i64),
    /// A new one at the end, with a hash that fits; the head is left alone.
    Appended,
    /// Changed, and all hashes from there on and the head fit.
    Rewritten(i64),
    HeadHash,
    HeadSequence,
    /// As if the entries were still to be chained.
    HeadBlank,
    HeadGone,
}

pub const COLUMNS: [&str; 6] = ["time", "action", "outcome", "namespace", "name", "actor"];

pub fn tampering() -> impl Strategy<Value = Tampering> {
    let place = || 0..i64::MAX;
    prop_oneof![
        3 => (place(), any::<usize>()).prop_map(|(at, index)| Tampering::Text(at, index)),
        3 => place().prop_map(Tampering::Rehashed),
        3 => (place(), 0..COLUMNS.len()).prop_map(|(at, column)| Tampering::Column(at, column)),
        1 => (place(), 0..64_usize).prop_map(|(at, index)| Tampering::Previous(at, index)),
        1 => (place(), 0..64_usize).prop_map(|(at, index)| Tampering::Hash(at, index)),
        3 => place().prop_map(Tampering::Removed),
        2 => place().prop_map(Tampering::Cut),
        2 => (place(), place()).prop_map(|(one, other)| Tampering::Swapped(one, other)),
        2 => place().prop_map(Tampering::PutIn),
        1 => Just(Tampering::Appended),
        2 => place().prop_map(Tampering::Rewritten),
        1 => Just(Tampering::HeadHash),
        1 => Just(Tampering::HeadSequence),
        1 => Just(Tampering::HeadBlank),
        1 => Just(Tampering::HeadGone),
    ]
}

fn other_character(text: &str, index: usize) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    let index = index % characters.len();
    characters[index] = if characters[index] == 'a' { 'b' } else { 'a' };
    characters.into_iter().collect()
}

async fn set(connection: &mut AnyConnection, sequence: i64, column: &str, value: &str) {
    let sql = format!("UPDATE audit SET {column} = $1 WHERE sequence = $2");
    sqlx::query(AssertSqlSafe(sql)).bind(value).bind(sequence).execute(connection).await.unwrap();
}

async fn get(connection: &mut AnyConnection, sequence: i64, column: &str) -> String {
    let sql = format!("SELECT {column} FROM audit WHERE sequence = $1");
    sqlx::query_scalar(AssertSqlSafe(sql)).bind(sequence).fetch_one(connection).await.unwrap()
}

impl Tampering {
    /// One of each kind.
    pub fn all_at(place: i64) -> Vec<Self> {
        let mut all = vec![
            Self::Text(place, 1000),
            Self::Rehashed(place),
            Self::Previous(place, 0),
            Self::Hash(place, 63),
            Self::Removed(place),
            Self::Cut(place),
            Self::Swapped(place, place),
            Self::PutIn(place),
            Self::Rewritten(place),
        ];
        all.extend((0..COLUMNS.len()).map(|column| Self::Column(place, column)));
        all.extend([Self::Appended, Self::HeadHash, Self::HeadSequence, Self::HeadBlank, Self::HeadGone]);
        all
    }

    /// Does it to a store of so many entries; returns where something must be found, if that is at an
    /// entry, and whether it needs an anchor.
    async fn apply(self, store: &mut AnyConnection, count: i64) -> (Vec<i64>, bool) {
        let at = |place: i64| place % count + 1;
        match self {
            Self::Text(place, index) => {
                let text = get(store, at(place), "entry").await;
                set(store, at(place), "entry", &other_character(&text, index)).await;
                (vec![at(place)], false)
            }
            Self::Rehashed(place) => {
                rehash(store, at(place)).await;
                let next = at(place) + 1;
                (if next > count { vec![] } else { vec![next] }, false)
            }
            Self::Column(place, column) => {
                let value = get(store, at(place), COLUMNS[column]).await;
                set(store, at(place), COLUMNS[column], &format!("{value}x")).await;
                (vec![at(place)], false)
            }
            Self::Previous(place, index) | Self::Hash(place, index) => {
                let column = if matches!(self, Self::Hash(..)) { "hash" } else { "previous" };
                let value = get(store, at(place), column).await;
                set(store, at(place), column, &other_character(&value, index)).await;
                (vec![at(place)], false)
            }
            Self::Removed(place) => {
                run(store, format!("DELETE FROM audit WHERE sequence = {}", at(place))).await;
                let next = at(place) + 1;
                (if next > count { vec![] } else { vec![next] }, false)
            }
            Self::Cut(place) => {
                let last = at(place) - 1;
                run(store, format!("DELETE FROM audit WHERE sequence > {last}")).await;
                let hash = if last == 0 { "0".repeat(64) } else { get(store, last, "hash").await };
                run(store, format!("UPDATE audit_head SET sequence = {last}, hash = '{hash}'")).await;
                (vec![], true)
            }
            Self::Swapped(one, other) => {
                let (one, other) = (at(one), at(other));
                let other = if one == other { one % count + 1 } else { other };
                let away = count + 10;
                for (from, to) in [(one, away), (other, one), (away, other)] {
                    run(store, format!("UPDATE audit SET sequence = {to} WHERE sequence = {from}")).await;
                }
                (vec![one, other], false)
            }
            Self::PutIn(place) => {
                // By way of the negative numbers, so that no two are the same on the way.
                let away = "UPDATE audit SET sequence = -sequence - 1 WHERE sequence > ";
                run(store, format!("{away}{}", at(place))).await;
                run(store, "UPDATE audit SET sequence = -sequence WHERE sequence < 0".into()).await;
                put_after(store, at(place)).await;
                let next = at(place) + 2;
                (if next > count + 1 { vec![] } else { vec![next] }, false)
            }
            Self::Appended => {
                put_after(store, count).await;
                (vec![], false)
            }
            Self::Rewritten(place) => {
                rehash(store, at(place)).await;
                let mut last = get(store, at(place), "hash").await;
                let following: Vec<(i64, String)> =
                    sqlx::query_as("SELECT sequence, entry FROM audit WHERE sequence > $1 ORDER BY sequence")
                        .bind(at(place))
                        .fetch_all(&mut *store)
                        .await
                        .unwrap();
                for (sequence, text) in following {
                    let next = hash(sequence, &last, &text);
                    let update = sqlx::query("UPDATE audit SET previous = $1, hash = $2 WHERE sequence = $3");
                    update.bind(last).bind(&next).bind(sequence).execute(&mut *store).await.unwrap();
                    last = next;
                }
                run(store, format!("UPDATE audit_head SET hash = '{last}'")).await;
                (vec![], true)
            }
            Self::HeadHash => {
                run(store, format!("UPDATE audit_head SET hash = '{}'", "0".repeat(64))).await;
                (vec![], false)
            }
            Self::HeadSequence => {
                run(store, "UPDATE audit_head SET sequence = sequence + 1".into()).await;
                (vec![], false)
            }
            Self::HeadBlank => {
                run(store, "UPDATE audit_head SET sequence = 0, hash = NULL".into()).await;
                (vec![], false)
            }
            Self::HeadGone => {
                run(store, "DELETE FROM audit_head".into()).await;
                (vec![], false)
            }
        }
    }
}

/// Changes an entry's text, and its hash so that it fits.
async fn rehash(store: &mut AnyConnection, sequence: i64) {
    let text = get(store, sequence, "entry").await.replace("reason", "excuse");
    let previous = get(store, sequence, "previous").await;
    set(store, sequence, "entry", &text).await;
    set(store, sequence, "hash", &hash(sequence, &previous, &text)).await;
}

/// Puts a forged entry after another one, with a hash that fits.
async fn put_after(store: &mut AnyConnection, sequence: i64) {
    let previous = get(store, sequence, "hash").await;
    let text = get(store, sequence, "entry").await;
    let forged = hash(sequence + 1, &previous, &text);
    run(
        store,
        format!(
            "INSERT INTO audit (sequence, time, action, outcome, namespace, name, actor, entry, previous, hash) SELECT {}, time, action, outcome, namespace, name, actor, entry, '{previous}', '{forged}' FROM audit WHERE sequence = {sequence}",
            sequence + 1
        ),
    )
    .await;
}

/// Tampers with a copy of a store, and looks whether that is found.
async fn found(original: &[u8], count: i64, head: &str, tampering: Tampering) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.db");
    std::fs::write(&path, original).unwrap();
    let mut store = open(&path).await;
    run(&mut store, "PRAGMA synchronous = OFF".into()).await;
    found_in(&url(&path), store, count, head, tampering).await
}

/// Tampers with a store that has no triggers any more, and looks whether that is found and named.
pub async fn found_in(
    store_url: &str,
    mut store: AnyConnection,
    count: i64,
    head: &str,
    tampering: Tampering,
) -> Result<(), String> {
    run(&mut store, "BEGIN".into()).await;
    let (places, needs_anchor) = tampering.apply(&mut store, count).await;
    run(&mut store, "COMMIT".into()).await;
    if store_url.starts_with("sqlite:") {
        close_with_triggers(store).await;
    } else {
        store.close().await.unwrap();
    }
    let verify = async |anchor: Option<&str>| verify_store(store_url, &anchored(anchor)).await.unwrap();
    let report = verify(Some(head)).await;
    if report.is_whole() {
        return Err("not found".into());
    }
    for place in places {
        if !report.findings.iter().any(|finding| finding.sequence == Some(place)) {
            return Err(format!("nothing is found at {place}: {:?}", report.findings));
        }
    }
    // What is a chain in itself is told by nothing but the anchor.
    let alone = verify(None).await;
    if alone.is_whole() != needs_anchor {
        return Err(format!("without an anchor: {:?}", alone.findings));
    }
    Ok(())
}

/// A store of so many entries at rest, without its triggers, and its head.
async fn original(entries: i64) -> (Vec<u8>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollbackd.db");
    written(&path, entries).await;
    let whole = verify(&path, None).await;
    assert!(whole.is_whole(), "{:?}", whole.findings);
    assert_eq!((whole.entries, whole.head.0), (entries as u64, entries));
    without_triggers(&path).await.close().await.unwrap();
    (std::fs::read(&path).unwrap(), whole.head.1)
}

fn every_tampering_is_found(entries: i64, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (original, head) = runtime.block_on(original(entries));
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let tested = runner.run(&tampering(), |tampering| {
        let found = runtime.block_on(found(&original, entries, &head, tampering));
        found.map_err(TestCaseError::fail)
    });
    tested.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn every_single_tampering_is_found_and_named() {
    every_tampering_is_found(300, 200);
}

#[test]
#[ignore = "takes a minute or two"]
fn every_single_tampering_with_ten_thousand_entries_is_found_and_named() {
    every_tampering_is_found(10_000, 24);
}

/// The ends are where a verifier goes wrong; no chance is left to meet them.
#[tokio::test]
async fn tampering_with_the_first_and_the_last_entry_is_found() {
    const ENTRIES: i64 = 3;
    let (original, head) = original(ENTRIES).await;
    for place in 0..ENTRIES {
        for tampering in Tampering::all_at(place) {
            found(&original, ENTRIES, &head, tampering)
                .await
                .unwrap_or_else(|error| panic!("{tampering:?}: {error}"));
        }
    }
}

/// Any head that was ever kept is an anchor, that of the empty audit too.
#[tokio::test]
async fn every_head_that_somebody_kept_is_an_anchor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollbackd.db");
    let store = Store::open(&store_url(&path), Metrics::new(), None).await.unwrap();
    let mut heads = vec![store.head().await.unwrap()];
    assert_eq!((heads[0].sequence, heads[0].hash.as_str()), (0, "0".repeat(64).as_str()));
    assert!(verify(&path, Some(&heads[0].hash)).await.is_whole());
    for number in 1..=5 {
        store.append(&entry(number)).await.unwrap();
        heads.push(store.head().await.unwrap());
    }
    for head in &heads {
        // Also while the store is in use.
        let report = verify(&path, Some(&head.hash)).await;
        assert!(report.is_whole(), "{head:?}: {:?}", report.findings);
    }
    for (number, head) in heads.iter().enumerate() {
        let report = verify(&path, Some(&format!("{}:{}", head.sequence, head.hash))).await;
        assert_eq!((report.found, report.anchor), (0, Some(AnchorPlace::Kept(number as i64))));
        let elsewhere = verify(&path, Some(&format!("{}:{}", head.sequence + 1, head.hash))).await;
        let what = format!("its hash is that of entry {number}");
        assert!(elsewhere.found == 1 && elsewhere.findings[0].what.ends_with(&what), "{elsewhere:?}");
    }
    let last = heads.last().unwrap();
    assert_eq!(verify(&path, None).await.head, (last.sequence, last.hash.clone()));
    let never = verify(&path, Some(&"ab".repeat(32))).await;
    assert_eq!((never.found, never.findings[0].sequence), (1, None), "{:?}", never.findings);
    store.close().await;
}

/// Makes of a store what it was before there was a chain.
async fn unchain(path: &Path) {
    let mut store = without_triggers(path).await;
    for sql in [
        "ALTER TABLE audit DROP COLUMN previous",
        "ALTER TABLE audit DROP COLUMN hash",
        "DROP TABLE audit_head",
        "DELETE FROM _sqlx_migrations WHERE version = 2",
        "CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END",
        "CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END",
    ] {
        run(&mut store, sql.into()).await;
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_store_from_before_the_chain_is_chained_when_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollbackd.db");
    written(&path, 2345).await;
    let before = verify(&path, None).await.head;
    unchain(&path).await;
    let error = verify_store(&url(&path), &Checks::default()).await.unwrap_err();
    assert!(matches!(error, VerifyError::NotChained), "{error:?}");

    let store = Store::open(&store_url(&path), Metrics::new(), None).await.unwrap();
    let head = store.head().await.unwrap();
    assert_eq!((head.sequence, head.hash.clone()), before, "the same entries make the same chain");
    store.append(&entry(2346)).await.unwrap();
    store.close().await;
    drop(store);
    // The migration that replaces this trigger was made before the test took the chain away.
    close_with_triggers(without_triggers(&path).await).await;
    let report = verify(&path, Some(&head.hash)).await;
    assert!(report.is_whole(), "{:?}", report.findings);
    assert_eq!(report.head.0, 2346);

    // Opened again, nothing is chained again: what was changed stays found.
    let mut other = without_triggers(&path).await;
    set(&mut other, 7, "entry", "{}").await;
    close_with_triggers(other).await;
    Store::open(&store_url(&path), Metrics::new(), None).await.unwrap().close().await;
    let named: Vec<Option<i64>> =
        verify(&path, None).await.findings.iter().map(|finding| finding.sequence).collect();
    assert_eq!(named, [Some(7), Some(7)]);
}

#[tokio::test]
async fn the_store_itself_refuses_to_change_an_entry() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollbackd.db");
    written(&path, 2).await;
    let mut store = open(&path).await;
    for sql in [
        "UPDATE audit SET entry = '{}'",
        "UPDATE audit SET actor = 'nobody'",
        "UPDATE audit SET hash = ''",
        "UPDATE audit SET previous = NULL",
        "DELETE FROM audit WHERE sequence = 2",
        "INSERT INTO audit (time, action, outcome, namespace, name, actor, entry) VALUES ('', '', '', '', '', '', '')",
    ] {
        store.execute(sql).await.expect_err(sql);
    }
    store.close().await.unwrap();
    assert!(verify(&path, None).await.is_whole());
}

/// Any JSON tool may pass an export on.
#[tokio::test]
async fn tampering_with_an_export_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollbackd.db");
    written(&path, 20).await;
    let mut text = Vec::new();
    let head = rollbackd::audit::export(&store_url(&path), &mut text).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 20);
    let verify = |lines: &[String], anchor: Option<&str>| {
        rollbackd::verifier::verify_export(lines.join("\n").as_bytes(), &anchored(anchor)).unwrap()
    };
    let whole: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    let reformatted: Vec<String> = lines
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap().to_string())
        .collect();
    for lines in [&whole, &reformatted] {
        let report = verify(lines, Some(&head.hash));
        assert!(report.is_whole(), "{:?}", report.findings);
        assert_eq!(report.head, (20, head.hash.clone()));
    }
    let changed = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = whole.clone();
        change(&mut lines);
        verify(&lines, None).findings
    };
    let first = |findings: Vec<Finding>| findings[0].sequence;
    assert_eq!(first(changed(&|it| it[4] = it[4].replace("message 5", "message 6"))), Some(5));
    assert_eq!(first(changed(&|it| drop(it.remove(4)))), Some(6));
    assert_eq!(first(changed(&|it| drop(it.remove(0)))), Some(2));
    assert_eq!(first(changed(&|it| it.swap(4, 9))), Some(10));
    assert_eq!(first(changed(&|it| it.insert(4, it[3].clone()))), Some(4));
    let torn = changed(&|it| it[19].truncate(30));
    assert_eq!(torn[0].what, "line 20 is not one of an export");
    // A cut end is told by the anchor alone.
    assert!(verify(&whole[..19], None).is_whole());
    assert!(!verify(&whole[..19], Some(&head.hash)).is_whole());
}

struct Printed {
    code: i32,
    stdout: String,
    stderr: String,
}

async fn rollbackd_audit(args: &[&str], input: &str) -> Printed {
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollbackd"))
        .arg("audit")
        .args(args)
        .env_remove("ROLLBACKD_STORE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may have ended before it read anything.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Printed { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[tokio::test]
async fn the_command_verifies_a_store_in_use_and_at_rest_and_what_was_exported() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let mut rollbackd = Rollbackd::start().await;
    let api = rollbackd.api.clone();
    let path = format!("{}/rollback", space.path("agent"));
    api.post(&path, &json!({"toRevision": 2})).await.expect(200);
    let kept = api.get("/audit/head").await.expect(200);
    let answer = api.post(&path, &json!({"toRevision": 1, "reason": "it crashes"})).await;
    answer.expect(202);
    api.rollback_at(answer.header("location"), &["succeeded"]).await;
    until("the last entry", async || {
        let head = api.get("/audit/head").await.expect(200);
        let newest = api.get("/audit?limit=1").await.expect(200);
        if head["sequence"] == newest["items"][0]["sequence"] { Ok(()) } else { Err((head, newest)) }
    })
    .await;
    let head = api.get("/audit/head").await.expect(200);
    let (hash, sequence) = (head["hash"].as_str().unwrap(), head["sequence"].as_i64().unwrap());
    let whole = format!("whole: {sequence} entries, head {sequence} {hash}\n");
    let (store, kept) = (rollbackd.store.url(), kept["hash"].as_str().unwrap());

    let in_use = rollbackd_audit(&["verify", "--store", &store, "--anchor", kept], "").await;
    assert_eq!((in_use.code, &in_use.stdout), (0, &whole), "{}", in_use.stderr);
    let export = rollbackd_audit(&["export", "--store", &store], "").await;
    assert_eq!((export.code, export.stderr), (0, format!("head {sequence} {hash}\n")));
    assert_eq!(export.stdout.lines().count() as i64, sequence);
    let file = rollbackd.store.file().with_file_name("audit.ndjson");
    std::fs::write(&file, &export.stdout).unwrap();
    let file = file.to_str().unwrap().to_owned();
    let offline = rollbackd_audit(&["verify", "--file", &file, "--anchor", hash], "").await;
    assert_eq!((offline.code, &offline.stdout), (0, &whole), "{}", offline.stderr);
    let piped = rollbackd_audit(&["verify", "--file", "-"], &export.stdout).await;
    assert_eq!((piped.code, &piped.stdout), (0, &whole), "{}", piped.stderr);

    rollbackd.stop().await;
    let at_rest = rollbackd_audit(&["verify", "--store", &store, "--anchor", hash], "").await;
    assert_eq!((at_rest.code, &at_rest.stdout), (0, &whole), "{}", at_rest.stderr);

    let mut other = without_triggers(rollbackd.store.file()).await;
    set(&mut other, 2, "actor", "some\u{1b}[31mbody").await;
    run(
        &mut other,
        "UPDATE audit SET entry = replace(entry, 'it crashes', 'it worked') WHERE sequence = 3".into(),
    )
    .await;
    run(&mut other, format!("DELETE FROM audit WHERE sequence = {sequence}")).await;
    close_with_triggers(other).await;
    let tampered = rollbackd_audit(&["verify", "--store", &store, "--anchor", hash], "").await;
    assert_eq!(tampered.code, 1);
    let last = sequence - 1;
    assert_eq!(
        tampered.stdout.lines().collect::<Vec<_>>(),
        [
            "entry 2: its column actor is \"some\\u{1b}[31mbody\", its text says \"local\"",
            "entry 3: it was changed: its hash is not that of its text, place and predecessor",
            &format!("the end was cut off: the last entry is {last}, the store's head is {sequence}"),
            &format!("the anchor {hash} is not in it: the end was cut off, or the chain was rewritten"),
        ]
    );
    assert_eq!(tampered.stderr, format!("error: {store} is not what was written (4 findings)\n"));
}

#[tokio::test]
async fn the_command_says_what_it_can_not_do() {
    let folder = tempfile::tempdir().unwrap();
    let there = |name: &str| -> PathBuf { folder.path().join(name) };
    std::fs::write(there("text"), "no database at all, but long enough to be looked at").unwrap();
    for (args, code, told) in [
        (vec!["verify".to_owned(), "--store".into(), url(&there("missing"))], 1, "error: --store sqlite:"),
        (vec!["verify".into(), "--store".into(), url(&there("text"))], 1, "error: --store sqlite:"),
        (vec!["export".into(), "--store".into(), url(&there("missing"))], 1, "error: --store sqlite:"),
        (vec!["verify".into(), "--file".into(), there("missing").display().to_string()], 1, "error: --file "),
        (vec!["verify".into(), "--anchor".into(), "12".into()], 2, "--anchor"),
        (vec!["verify".into(), "--store".into(), "rollbackd.db".into()], 2, "--store"),
        (vec!["prune".into()], 2, "prune"),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let printed = rollbackd_audit(&args, "").await;
        assert_eq!(printed.code, code, "{args:?}: {}", printed.stderr);
        assert!(printed.stderr.contains(told), "{args:?}: {}", printed.stderr);
    }
    assert!(!there("missing").exists(), "to look does not make a store");
}

#[tokio::test]
async fn retention_cuts_the_old_end_and_the_rest_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollbackd.db");
    // As precise as the store keeps times.
    let now = Timestamp::now().round(jiff::Unit::Microsecond).unwrap();
    let days = |days: i64| now.checked_sub(jiff::SignedDuration::from_hours(24 * days)).unwrap();
    let store = Store::open(&store_url(&path), Metrics::new(), None).await.unwrap();
    let mut heads = Vec::new();
    for age in (10..2510).rev() {
        // The newest entries say what time it is.
        let time = days(if age < 21 { 0 } else { age });
        store.append(&Entry { time, ..entry(age) }).await.unwrap();
        heads.push(store.head().await.unwrap());
    }
    // What is but little older than it must be waits until the cut is worth an entry.
    assert_eq!(store.cut(days(2509), now).await.unwrap(), 0);
    // As much at once as a rollback may wait for.
    assert_eq!(store.cut(days(100), now).await.unwrap(), 2000);
    assert_eq!(store.cut(days(100), now).await.unwrap(), 409);
    assert_eq!(store.cut(days(100), now).await.unwrap(), 0);
    let first = store.entries(&EntryFilter::default(), Order::OldestFirst { after: 0 }, 1).await.unwrap();
    assert_eq!(first[0].0, 2410);
    let last = store.entries(&EntryFilter::default(), Order::NewestFirst { before: None }, 2).await.unwrap();
    let message =
        format!("entries 2001 to 2409 were cut: older than {}, as --audit-retention says", days(100));
    assert_eq!((last[0].1.action, &last[0].1.message), (Action::Cut, &message));
    assert_eq!(last[0].1.cut.as_ref(), Some(&heads[2408]));
    let head = store.head().await.unwrap();
    assert_eq!(head.sequence, 2502);

    // In use, exported, and at rest.
    let report = verify(&path, Some(&head.hash)).await;
    assert!(report.is_whole(), "{:?}", report.findings);
    assert_eq!((report.entries, report.cut), (93, Some(2409)));
    let mut text = Vec::new();
    rollbackd::audit::export(&store_url(&path), &mut text).await.unwrap();
    let report = rollbackd::verifier::verify_export(text.as_slice(), &Checks::default()).unwrap();
    assert!(report.is_whole(), "{:?}", report.findings);
    store.close().await;

    // The entry before the first is an anchor still, which says nothing of those that are left; older ones are gone.
    let pruned = verify(&path, Some(&heads[2408].hash)).await;
    assert!(pruned.is_whole() && pruned.anchor == Some(AnchorPlace::Pruned(2409)), "{pruned:?}");
    let report = verify(&path, Some(&heads[2407].hash)).await;
    assert!(
        report.findings[0].what.ends_with("or it is older than what was cut up to entry 2409"),
        "{report:?}"
    );

    // Who cuts more than the audit says, or says nothing, is found out.
    let cut_more = "DELETE FROM audit WHERE sequence = 2410";
    let says_nothing = "DELETE FROM audit WHERE sequence > 2500; UPDATE audit_head SET (sequence, hash) = (SELECT sequence, hash FROM audit WHERE sequence = 2500)";
    for (number, (sql, what)) in [
        (cut_more, "entries 1 to 2410 are missing before it, and the last cut was up to entry 2409"),
        (says_nothing, "entries 1 to 2409 are missing before it"),
    ]
    .into_iter()
    .enumerate()
    {
        let copy = folder.path().join(format!("{number}.db"));
        std::fs::copy(&path, &copy).unwrap();
        let mut tampered = without_triggers(&copy).await;
        run(&mut tampered, sql.to_owned()).await;
        close_with_triggers(tampered).await;
        let report = verify(&copy, None).await;
        assert_eq!(report.findings[0].what, what, "{report:?}");
    }

    // Without its triggers removed, the store gives up only what was cut.
    let mut open = open(&path).await;
    for sql in ["DELETE FROM audit WHERE sequence = 2410", "UPDATE audit_start SET sequence = 2400"] {
        assert!(open.execute(sql).await.is_err(), "{sql}");
    }
}
