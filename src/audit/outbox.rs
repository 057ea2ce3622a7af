//! Each entry's line on standard output: from the store, in order, at least once.
//!
//! An entry is put into the outbox in the transaction that appends it, and taken out once its line is written. So
//! an entry whose commit was not answered gets its line, too. Its writer writes the line; if that process has ended,
//! or its standard output is not read, another one does so when the lease is over.

use std::{collections::HashSet, time::Duration};

use sqlx::{Any, AssertSqlSafe, Transaction};

use super::{
    Sequence, Store, StoreError,
    database::Engine,
    reads::in_time,
    store::{exactly_one, within_deadline},
};
use crate::telemetry::{AuditLog, causes};

/// For how long an entry is its writer's, in milliseconds.
const LEASE: i64 = 30_000;
/// Lines that are written before it is waited for them.
const BATCH: u32 = 200;
/// Between two looks for entries that no write here has told of.
const PERIOD: Duration = Duration::from_secs(1);

/// An entry in the outbox: its number, hash and text. Of one that was pruned since there is only the number.
type Waiting = (Sequence, Option<String>, Option<String>);

/// Puts an entry into the outbox.
pub(super) async fn put(
    transaction: &mut Transaction<'_, Any>,
    engine: Engine,
    writer: &str,
    sequence: Sequence,
) -> Result<(), StoreError> {
    let now = engine.now();
    let sql = format!("INSERT INTO audit_outbox (sequence, writer, lease) VALUES ($1, $2, {now} + {LEASE})");
    let put = sqlx::query(AssertSqlSafe(sql)).bind(sequence).bind(writer).execute(&mut **transaction);
    exactly_one(put.await?)
}

/// Writes the lines of a store's entries.
pub struct LogWriter {
    store: Store,
    log: AuditLog,
    /// Lines that are written, of entries that are still in the outbox.
    written: HashSet<Sequence>,
    /// Entries that other processes have left, which may have written their lines.
    taken: HashSet<Sequence>,
}

impl Store {
    /// What writes the lines; `None` if there is no audit log.
    #[must_use]
    pub fn log_writer(&self) -> Option<LogWriter> {
        let log = self.log.clone()?;
        Some(LogWriter { store: self.clone(), log, written: HashSet::new(), taken: HashSet::new() })
    }
}

impl LogWriter {
    /// Writes lines as entries come, for ever.
    pub async fn run(&mut self) {
        let mut failing = false;
        loop {
            // What another replica has left, and what no write here knows of, comes without a word.
            let _ = tokio::time::timeout(PERIOD, self.store.appended.notified()).await;
            match self.write_all().await {
                Ok(()) => failing = false,
                Err(error) if failing => tracing::debug!(error = %causes(&error), "still not written"),
                Err(error) => {
                    failing = true;
                    tracing::warn!(error = %causes(&error), "audit entries are not written to standard output yet");
                }
            }
        }
    }

    /// Writes all lines that are due.
    ///
    /// # Errors
    /// When the database fails. They are written later, some perhaps again.
    pub async fn write_all(&mut self) -> Result<(), StoreError> {
        self.take_over().await?;
        loop {
            let waiting = self.waiting().await?;
            let read = waiting.len();
            for (sequence, hash, text) in waiting {
                if let (Some(hash), Some(text)) = (hash, text)
                    && !self.written.contains(&sequence)
                {
                    let mut line = line(sequence, &hash, &text);
                    if self.taken.contains(&sequence) {
                        line["takenOver"] = true.into();
                    }
                    if !self.log.write(&line) {
                        // Its thread has not caught up: the rest comes with the next look.
                        return Ok(());
                    }
                }
                self.written.insert(sequence);
            }
            self.log.written().await;
            self.remove_written().await?;
            if read < BATCH as usize {
                return Ok(());
            }
        }
    }

    /// Takes the entries whose writers have ended. SQLite's file belongs to one process, which takes all that
    /// earlier ones have left.
    async fn take_over(&mut self) -> Result<(), StoreError> {
        let database = &self.store.database;
        let now = database.engine.now();
        let over = match database.engine {
            Engine::Sqlite => String::new(),
            Engine::Postgres => format!(" AND lease < {now}"),
        };
        let left = format!("SELECT count(*) FROM audit_outbox WHERE writer <> $1{over}");
        let left: i64 = in_time(
            sqlx::query_scalar(AssertSqlSafe(left)).bind(&self.store.holder).fetch_one(&database.read),
        )
        .await?;
        if left == 0 {
            return Ok(());
        }
        let sql = format!(
            "UPDATE audit_outbox SET writer = $1, lease = {now} + {LEASE} WHERE writer <> $1{over} RETURNING sequence"
        );
        let taken = within_deadline(async {
            let taken = sqlx::query_scalar(AssertSqlSafe(sql)).bind(&self.store.holder);
            Ok::<Vec<Sequence>, _>(taken.fetch_all(&database.write).await?)
        });
        self.taken.extend(taken.await?);
        Ok(())
    }

    async fn waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        let sql = "SELECT o.sequence, a.hash, a.entry FROM audit_outbox o LEFT JOIN audit a ON a.sequence = o.sequence WHERE o.writer = $1 ORDER BY o.sequence LIMIT $2";
        let query = sqlx::query_as(sql).bind(&self.store.holder).bind(i64::from(BATCH));
        in_time(query.fetch_all(&self.store.database.read)).await
    }

    /// Takes out of the outbox what is written. Each was this process's, so that another one may only have written
    /// it again.
    async fn remove_written(&mut self) -> Result<(), StoreError> {
        if self.written.is_empty() {
            return Ok(());
        }
        let numbers: Vec<_> = self.written.iter().map(ToString::to_string).collect();
        let sql = format!("DELETE FROM audit_outbox WHERE sequence IN ({})", numbers.join(", "));
        within_deadline(async {
            sqlx::query(AssertSqlSafe(sql)).execute(&self.store.database.write).await?;
            Ok(())
        })
        .await?;
        self.taken.retain(|sequence| !self.written.contains(sequence));
        self.written.clear();
        Ok(())
    }
}

/// The line of an entry: the entry, and what makes it an anchor.
fn line(sequence: Sequence, hash: &str, text: &str) -> serde_json::Value {
    let mut line = match serde_json::from_str(text) {
        Ok(line @ serde_json::Value::Object(_)) => line,
        // What is no entry was not written by rollbackd.
        _ => serde_json::json!({"unreadable": text}),
    };
    line["log"] = "audit".into();
    line["sequence"] = sequence.into();
    line["hash"] = hash.into();
    line
}
