//! How long `rollbackd audit verify` takes, as a ratio to reading the same rows and hashing the same bytes once.
//!
//! usage: `cargo bench --bench verify` [-- ENTRIES], by default 1,000,000; about 1 GB of disk for a minute or two.
#![expect(clippy::unwrap_used, reason = "a bench that lacks something ends")]

use std::time::Instant;

use futures_util::TryStreamExt as _;
use rollbackd::{
    audit::Store,
    telemetry::Metrics,
    verifier::{Checks, verify_store},
};
use sha2::{Digest as _, Sha256};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

fn text(number: i64) -> String {
    let (user, name) = (number % 50, number % 300);
    format!(
        r#"{{"version":1,"time":"2026-11-25T01:02:03.{:06}Z","action":"rollback.applied","outcome":"pending","message":"rolled back","actor":{{"user":"user-{user}","groups":["oncall","system:authenticated"]}},"reason":"error rate of the new image went up, see the incident's page","requestId":"01a2107c-3c02-7180-bf38-{number:012}","source":"10.0.0.1","cluster":"berlin-1","namespace":"monitoring","name":"agent-{name}","uid":"6a1d3f2e-1111-4222-8333-{number:012}","rollback":"01a2107c-4147-7230-bfd9-{number:012}","dryRun":false,"from":{{"revision":3,"controllerRevision":"agent-854b6d86d","hash":"854b6d86d"}},"to":{{"revision":2,"controllerRevision":"agent-5f9c7b44c8","hash":"5f9c7b44c8"}},"durationSeconds":0.123}}"#,
        number % 1_000_000
    )
}

/// Writes so many entries in one transaction: what is timed is not the writing.
async fn fill(store: &mut SqliteConnection, entries: i64) {
    let mut previous = "0".repeat(64);
    let mut transaction = store.begin().await.unwrap();
    for sequence in 1..=entries {
        let entry = text(sequence);
        let bytes = format!("rollbackd audit 1\n{sequence}\n{previous}\n{entry}");
        let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        sqlx::query("INSERT INTO audit (sequence, time, action, outcome, namespace, name, actor, entry, previous, hash) VALUES ($1, $2, 'rollback.applied', 'pending', 'monitoring', $3, $4, $5, $6, $7)")
            .bind(sequence)
            .bind(format!("2026-11-25T01:02:03.{:06}Z", sequence % 1_000_000))
            .bind(format!("agent-{}", sequence % 300))
            .bind(format!("user-{}", sequence % 50))
            .bind(entry)
            .bind(previous)
            .bind(hash.clone())
            .execute(&mut *transaction)
            .await
            .unwrap();
        previous = hash;
    }
    sqlx::query("UPDATE audit_head SET sequence = $1, hash = $2")
        .bind(entries)
        .bind(previous)
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
}

/// Reads every row and hashes its text: what no verification can do without.
async fn reference(store: &mut SqliteConnection) -> usize {
    let mut rows = sqlx::query_as::<_, (i64, String, String, String)>(
        "SELECT sequence, previous, hash, entry FROM audit ORDER BY sequence",
    )
    .fetch(store);
    let mut zeros = 0;
    while let Some((_, _, _, entry)) = rows.try_next().await.unwrap() {
        zeros += usize::from(Sha256::digest(entry)[0] == 0);
    }
    zeros
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let entries = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(1_000_000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rollbackd.db");
    let url = format!("sqlite:{}", path.display());
    Store::open(&url.parse().unwrap(), Metrics::new(), None).await.unwrap().close().await;
    let mut store = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    fill(&mut store, entries).await;
    println!("{entries} entries, {} MB", path.metadata().unwrap().len() / 1_000_000);
    for _ in 0..3 {
        let started = Instant::now();
        std::hint::black_box(reference(&mut store).await);
        let reference = started.elapsed();
        let started = Instant::now();
        let report = verify_store(&url, &Checks::default()).await.unwrap();
        let verify = started.elapsed();
        assert!(
            report.is_whole() && report.entries == u64::try_from(entries).unwrap(),
            "{:?}",
            report.findings
        );
        println!(
            "verify {:.1} s, reading and hashing alone {:.1} s: {:.2} times as long",
            verify.as_secs_f64(),
            reference.as_secs_f64(),
            verify.as_secs_f64() / reference.as_secs_f64()
        );
    }
}
