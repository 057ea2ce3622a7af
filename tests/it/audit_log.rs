//! Lines on standard output, pruning by the clock, and one process for one file.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rollbackd::{
    audit::{Action, Entry, Store, StoreError, StoreUrl},
    telemetry::{AuditLog, Metrics, causes},
};
use serde_json::{Value, json};
use sqlx::{AnyConnection, Connection as _, any::install_default_drivers};

use crate::{
    chain::entry,
    support::{
        controlplane::ControlPlane,
        faults::Fault,
        postgres::{Database, Postgres, run},
        rollbackd::{Rollbackd, Setup},
        store::Place,
        wait::{until, until_is},
    },
};

/// Standard output as a test reads it.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn read(&self) -> Vec<Value> {
        let bytes = self.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn sequences(&self) -> Vec<i64> {
        self.read().iter().map(|line| line["sequence"].as_i64().unwrap()).collect()
    }
}

async fn open(url: &str) -> (Store, Lines) {
    let lines = Lines::default();
    let log = Some(AuditLog::to(lines.clone()));
    let url: StoreUrl = url.parse().unwrap();
    let store = Store::open(&url, Metrics::new(), log).await;
    (store.unwrap_or_else(|error| panic!("{}", causes(&error))), lines)
}

async fn write_all(store: &Store) {
    store.log_writer().unwrap().write_all().await.unwrap();
}

async fn waiting(url: &str) -> i64 {
    install_default_drivers();
    let mut raw = AnyConnection::connect(url).await.unwrap();
    sqlx::query_scalar("SELECT count(*) FROM audit_outbox").fetch_one(&mut raw).await.unwrap()
}

async fn every_entry_has_a_line(url: &str) {
    let (store, lines) = open(url).await;
    for number in 1..=250 {
        store.append(&entry(number)).await.unwrap();
    }
    assert_eq!((lines.read().len(), waiting(url).await), (0, 250));
    write_all(&store).await;
    assert_eq!(lines.sequences(), (1..=250).collect::<Vec<_>>());
    assert_eq!(waiting(url).await, 0);
    let last = lines.read().pop().unwrap();
    let head = store.head().await.unwrap();
    assert_eq!((&last["log"], &last["hash"]), (&json!("audit"), &json!(head.hash)));
    assert_eq!((&last["message"], &last["takenOver"]), (&json!("message 250"), &Value::Null));
    write_all(&store).await;
    assert_eq!(lines.read().len(), 250, "each is written once");

    // One comes without a call, as of a write whose answer was lost, and after it the others in their order.
    let mut writer = store.log_writer().unwrap();
    let running = tokio::spawn(async move { writer.run().await });
    for number in 251..=260 {
        store.append(&entry(number)).await.unwrap();
    }
    until_is("all lines", (1..=260).collect(), async || lines.sequences()).await;
    until_is("the outbox to be empty", 0, async || waiting(url).await).await;
    running.abort();
    store.close().await;
}

#[tokio::test]
async fn every_entry_has_a_line_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    every_entry_has_a_line(&format!("sqlite:{}", folder.path().join("rollbackd.db").display())).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn every_entry_has_a_line_on_postgres() {
    let database = Postgres::shared().database().await;
    every_entry_has_a_line(database.url().as_str()).await;
}

#[tokio::test]
async fn next_process_writes_the_lines_that_one_has_left() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("rollbackd.db").display());
    let (first, none) = open(&url).await;
    for number in 1..=3 {
        first.append(&entry(number)).await.unwrap();
    }
    first.close().await;
    drop(first);
    let (second, lines) = open(&url).await;
    second.append(&entry(4)).await.unwrap();
    write_all(&second).await;
    assert_eq!((none.read().len(), lines.sequences()), (0, vec![1, 2, 3, 4]));
    let taken: Vec<bool> = lines.read().iter().map(|line| line["takenOver"] == true).collect();
    assert_eq!(taken, [true, true, true, false]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn another_replica_writes_lines_only_when_the_lease_is_over() {
    let database: Database = Postgres::shared().database().await;
    let url = database.url().to_string();
    let (first, mine) = open(&url).await;
    let (second, theirs) = open(&url).await;
    let mut writer = second.log_writer().unwrap();
    let running = tokio::spawn(async move { writer.run().await });
    let mut raw = database.connect().await;
    for number in 1..=3 {
        first.append(&entry(number)).await.unwrap();
        // However busy the machine is.
        run(&mut raw, "UPDATE audit_outbox SET lease = lease + 3600000 WHERE sequence < 3").await;
    }
    second.append(&entry(4)).await.unwrap();
    until_is("its own line", vec![4], async || theirs.sequences()).await;
    // The first one hangs.
    run(&mut raw, "UPDATE audit_outbox SET lease = 0 WHERE sequence = 2").await;
    until_is("the line that was left", vec![4, 2], async || theirs.sequences()).await;
    assert_eq!(theirs.read()[1]["takenOver"], true);
    // And goes on.
    until("the rest", async || {
        write_all(&first).await;
        let mine = mine.sequences();
        if mine.contains(&1) { Ok(()) } else { Err(mine) }
    })
    .await;
    running.abort();
}

/// A store whose entries are from 100 days ago, but for the newest.
async fn old(folder: &tempfile::TempDir) -> Place {
    let place = Place::File(folder.path().join("rollbackd.db"));
    let url: StoreUrl = place.url().parse().unwrap();
    let store = Store::open(&url, Metrics::new(), None).await.unwrap();
    let now = Timestamp::now();
    let then = now.checked_sub(SignedDuration::from_hours(24 * 100)).unwrap();
    for number in 1..=30 {
        let time = if number <= 10 { then } else { now };
        store.append(&Entry { time, ..entry(number) }).await.unwrap();
    }
    store.close().await;
    place
}

#[tokio::test]
async fn audit_is_pruned_only_by_a_clock_that_the_api_server_agrees_with() {
    let folder = tempfile::tempdir().unwrap();
    let store = old(&folder).await;
    let mut setup = Setup { store: Some(&store), ..Setup::new(ControlPlane::shared()) };
    setup.flags = &["--audit-retention", "30d"];
    setup.timing.prune = Duration::from_millis(20);
    setup.timing.probe = Duration::from_millis(50);
    let faults = setup.faults.clone();
    faults.inject(usize::MAX, Fault::Dated("Sun, 26 Nov 2023 12:00:00 GMT"), |_| true);
    let rollbackd = Rollbackd::start_with(setup).await;
    let probes = || faults.requests().iter().filter(|request| request.contains("/version")).count();
    let seen = probes();
    until("some answers with the wrong date", async || {
        let more = probes() - seen;
        if more > 5 { Ok(()) } else { Err(more) }
    })
    .await;
    let first = async || {
        rollbackd.api.get("/audit?after=0&limit=1").await.expect(200)["items"][0]["sequence"].clone()
    };
    assert_eq!(first().await, 1);
    faults.clear();
    until_is("the old entries to be pruned", json!(11), first).await;
    let pruned = rollbackd.api.get("/audit?action=audit.cut").await.expect(200);
    assert_eq!(pruned["items"].as_array().unwrap().len(), 1, "{pruned}");
}

#[tokio::test]
async fn clock_that_is_ahead_prunes_nothing_that_newest_entries_do_not_justify() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("rollbackd.db").display());
    let (store, _) = open(&url).await;
    let now = Timestamp::now();
    let days = |days: i64| now.checked_sub(SignedDuration::from_hours(24 * days)).unwrap();
    for age in (0..100).rev() {
        store.append(&Entry { time: days(age), ..entry(age) }).await.unwrap();
    }
    // Three years ahead, and some entries by that clock.
    let ahead = days(-3 * 365);
    for number in 1..=5 {
        store.append(&Entry { time: ahead, ..entry(number) }).await.unwrap();
    }
    let before = ahead.checked_sub(SignedDuration::from_hours(24 * 30)).unwrap();
    let mut pruned = 0;
    for _ in 0..10 {
        pruned += store.cut(before, ahead).await.unwrap();
    }
    // The median of the newest is of today.
    assert_eq!(pruned, 69);
    let filter = rollbackd::audit::EntryFilter { action: Some(Action::Cut), ..Default::default() };
    let order = rollbackd::audit::Order::OldestFirst { after: 0 };
    assert_eq!(store.entries(&filter, order, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn file_belongs_to_one_process_by_whatever_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollbackd.db");
    let url = format!("sqlite:{}", path.display());
    let (store, _) = open(&url).await;
    store.append(&entry(1)).await.unwrap();
    // The lock beside the file is gone, as of a file that is mounted alone in another place.
    std::fs::remove_file(folder.path().join("rollbackd.db.lock")).unwrap();
    let second = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollbackd"))
        .args(["sandbox", "--listen", "127.0.0.1:0", "--store", &url])
        .output()
        .await
        .unwrap();
    let stderr = String::from_utf8(second.stderr).unwrap();
    assert!(second.status.code() == Some(1) && stderr.contains("another process uses it"), "{stderr}");
    store.append(&entry(2)).await.unwrap();
    store.close().await;
    drop(store);

    let link = folder.path().join("linked.db");
    std::fs::hard_link(&path, &link).unwrap();
    for name in [&path, &link] {
        let url: StoreUrl = format!("sqlite:{}", name.display()).parse().unwrap();
        let refused = Store::open(&url, Metrics::new(), None).await.unwrap_err();
        assert!(matches!(refused, StoreError::HardLinks { names: 2 }), "{refused:?}");
    }
    std::fs::remove_file(&link).unwrap();
    open(&url).await;
}
