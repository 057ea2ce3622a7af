//! SQLite, one file. Each write is one transaction, durable when the call returns
//! (write-ahead log, `synchronous=FULL`). The sandbox, which changes nothing real, may keep it in memory.

use std::{
    borrow::Cow,
    collections::HashSet,
    fs::{File, TryLockError},
    path::Path,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{
    QueryBuilder, SqlStr, Sqlite, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{
    Entry, EntryFilter, Head, NewKey, Order, RollbackFilter, Sequence, keys, place::Place, time_text,
};
use crate::{
    domain::{
        key::Namespace,
        rollback::{Rollback, RollbackState},
    },
    telemetry::{AuditLog, Metrics},
};

/// How long a write may wait for its turn before the store counts as failed.
const TURN: Duration = Duration::from_secs(5);
/// How long a write may take in all: a disk that hangs must not hang whoever waits for it.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the answer to [`Store::can_write`] is good.
const RECHECK: Duration = Duration::from_secs(2);

const HEAD: &str = "SELECT sequence, hash FROM audit_head";

/// The URL of a store that is gone when the process ends.
pub const IN_MEMORY: &str = "sqlite::memory:";

/// Keeps rollbacks and audit entries.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) write: SqlitePool,
    pub(super) read: SqlitePool,
    metrics: Metrics,
    log: Option<AuditLog>,
    checked: Arc<Mutex<Option<(Instant, bool)>>>,
    /// `None` in memory.
    place: Option<Place>,
    _lock: Arc<Option<File>>,
}

/// Why the store did not take or give something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The text after `--store` is of no known form.
    #[error("expected sqlite:PATH")]
    Url,
    /// The database failed: disk full, read-only, corrupt, locked. Nothing was written.
    #[error("the audit store failed")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the audit store's schema can't be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// Another process uses the file.
    #[error("another process uses it")]
    InUse,
    /// The file was removed, or another one was put in its place. Nothing was written; only a restart helps.
    #[error("the audit store's file was removed or replaced")]
    Gone,
    /// The disk did not answer. Whether something was written is not known.
    #[error("the audit store did not answer in time")]
    Silent,
    /// A record that this version can't read.
    #[error("the audit store holds a record that can't be read")]
    Record(#[from] serde_json::Error),
    /// The rollback is not in the state that the caller took it to be in.
    #[error("rollback {id} is no longer {state:?}")]
    Moved { id: Uuid, state: RollbackState },
}

fn migrator() -> Migrator {
    let migration = |version, about, sql| {
        let sql = SqlStr::from_static(sql);
        Migration::new(version, Cow::Borrowed(about), MigrationType::Simple, sql, false)
    };
    let all = vec![
        migration(1, "rollbacks and audit", include_str!("migrations/0001_rollbacks_and_audit.sql")),
        migration(2, "audit chain", include_str!("migrations/0002_audit_chain.sql")),
        migration(3, "idempotency keys", include_str!("migrations/0003_idempotency_keys.sql")),
    ];
    Migrator { migrations: all.into(), ..Migrator::DEFAULT }
}

impl Store {
    /// Opens the database that `url` (`sqlite:PATH` or [`IN_MEMORY`]) names, makes it if there is none,
    /// and brings its schema up to date. Each entry goes to `log` as a line of JSON once it is durable.
    ///
    /// # Errors
    /// When the URL is of another form, or the file can't be opened, written or read.
    pub async fn open(url: &str, metrics: Metrics, log: Option<AuditLog>) -> Result<Self, StoreError> {
        if !url.starts_with("sqlite:") {
            return Err(StoreError::Url);
        }
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|_| StoreError::Url)?
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(TURN);
        let in_memory = url == IN_MEMORY;
        let lock = if in_memory { None } else { Some(lock(options.get_filename())?) };
        // One writer: a transaction that reads first and then writes can't meet another's write.
        let write = SqlitePoolOptions::new()
            .min_connections(1)
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(TURN)
            .connect_with(options.clone().create_if_missing(true))
            .await?;
        migrator().run(&write).await?;
        chain_what_was_there(&write).await?;
        let read = if in_memory {
            // Another connection to it would meet the locks of a shared cache.
            write.clone()
        } else {
            let readers = SqlitePoolOptions::new().max_connections(2).acquire_timeout(TURN);
            readers.connect_with(options.clone().read_only(true)).await?
        };
        let place = if in_memory { None } else { Some(place(options.get_filename())?) };
        Ok(Self { write, read, metrics, log, checked: Arc::default(), place, _lock: Arc::new(lock) })
    }

    /// Whether the store can write: tries it, at most once in [`RECHECK`].
    pub async fn can_write(&self) -> bool {
        let mut checked = self.checked.lock().await;
        if let Some((at, can)) = *checked
            && at.elapsed() < RECHECK
        {
            return can;
        }
        let probe = async {
            self.holds_its_place().await?;
            sqlx::query("UPDATE probe SET written = written + 1").execute(&self.write).await?;
            Ok::<_, StoreError>(())
        };
        let can = matches!(tokio::time::timeout(TURN, probe).await, Ok(Ok(())));
        *checked = Some((Instant::now(), can));
        can
    }

    /// Records a new rollback, its first entry, and the key that makes it, if there is one.
    ///
    /// # Errors
    /// Nothing was recorded.
    pub async fn begin(
        &self,
        rollback: &Rollback,
        entry: &Entry,
        key: Option<&NewKey>,
    ) -> Result<(), StoreError> {
        let record = serde_json::to_string(rollback)?;
        let head = self
            .measured(async {
                let mut transaction = self.write.begin_with("BEGIN IMMEDIATE").await?;
                sqlx::query(
                    "INSERT INTO rollbacks (id, state, open, namespace, name, actor, requested_at, record) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                )
                .bind(rollback.id.to_string())
                .bind(rollback.state.as_str())
                .bind(!rollback.state.is_final())
                .bind(rollback.key.namespace.as_str())
                .bind(rollback.key.name.as_str())
                .bind(&rollback.origin.requested_by.user)
                .bind(time_text(rollback.requested_at))
                .bind(record)
                .execute(&mut *transaction)
                .await?;
                if let Some(key) = key {
                    keys::insert(&mut transaction, key, rollback.id, rollback.requested_at).await?;
                }
                let head = insert(&mut transaction, entry).await?;
                transaction.commit().await?;
                Ok(head)
            })
            .await?;
        self.tell(&head, entry);
        Ok(())
    }

    /// Moves a rollback on from `state`, and records the entry that says so, if there is one to say.
    ///
    /// # Errors
    /// Nothing was recorded; [`StoreError::Moved`] when the rollback was not in `state`.
    pub async fn advance(
        &self,
        state: RollbackState,
        rollback: &Rollback,
        entry: Option<&Entry>,
    ) -> Result<(), StoreError> {
        let record = serde_json::to_string(rollback)?;
        let head = self
            .measured(async {
                let mut transaction = self.write.begin_with("BEGIN IMMEDIATE").await?;
                let moved = sqlx::query(
                    "UPDATE rollbacks SET state = ?, open = ?, record = ? WHERE id = ? AND state = ?",
                )
                .bind(rollback.state.as_str())
                .bind(!rollback.state.is_final())
                .bind(record)
                .bind(rollback.id.to_string())
                .bind(state.as_str())
                .execute(&mut *transaction)
                .await?;
                if moved.rows_affected() != 1 {
                    return Err(StoreError::Moved { id: rollback.id, state });
                }
                let head = match entry {
                    Some(entry) => Some(insert(&mut transaction, entry).await?),
                    None => None,
                };
                transaction.commit().await?;
                Ok(head)
            })
            .await?;
        if let (Some(head), Some(entry)) = (head, entry) {
            self.tell(&head, entry);
        }
        Ok(())
    }

    /// Records an entry that belongs to no rollback.
    ///
    /// # Errors
    /// Nothing was recorded.
    pub async fn append(&self, entry: &Entry) -> Result<(), StoreError> {
        let head = self
            .measured(async {
                let mut transaction = self.write.begin_with("BEGIN IMMEDIATE").await?;
                let head = insert(&mut transaction, entry).await?;
                transaction.commit().await?;
                Ok(head)
            })
            .await?;
        self.tell(&head, entry);
        Ok(())
    }

    /// Reads one rollback.
    ///
    /// # Errors
    /// When the database fails; a rollback that does not exist is `None`.
    pub async fn rollback(&self, id: Uuid) -> Result<Option<Rollback>, StoreError> {
        let record: Option<String> = sqlx::query_scalar("SELECT record FROM rollbacks WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.read)
            .await?;
        Ok(record.map(|record| serde_json::from_str(&record)).transpose()?)
    }

    /// Reads rollbacks, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rollbacks(&self, filter: &RollbackFilter, limit: u32) -> Result<Vec<Rollback>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT record FROM rollbacks WHERE 1 = 1");
        let mut equal = |column: &'static str, value: Option<String>| {
            if let Some(value) = value {
                query.push(" AND ").push(column).push_bind(value);
            }
        };
        equal("namespace = ", filter.namespace.as_ref().map(ToString::to_string));
        equal("name = ", filter.name.as_ref().map(ToString::to_string));
        equal("state = ", filter.state.map(|state| state.as_str().to_owned()));
        equal("actor = ", filter.actor.clone());
        equal("requested_at >= ", filter.since.map(time_text));
        equal("id < ", filter.before.map(|id| id.to_string()));
        query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(limit));
        self.read_records(query).await
    }

    /// Reads all rollbacks that have not ended, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn open_rollbacks(&self) -> Result<Vec<Rollback>, StoreError> {
        self.read_records(QueryBuilder::new("SELECT record FROM rollbacks WHERE open = 1 ORDER BY id")).await
    }

    /// Reads entries, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn entries(
        &self,
        filter: &EntryFilter,
        order: Order,
        limit: u32,
    ) -> Result<Vec<(Sequence, Entry)>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT sequence, entry FROM audit WHERE 1 = 1");
        let mut equal = |column: &'static str, value: Option<String>| {
            if let Some(value) = value {
                query.push(" AND ").push(column).push_bind(value);
            }
        };
        equal("namespace = ", filter.namespace.as_ref().map(ToString::to_string));
        equal("name = ", filter.name.as_ref().map(ToString::to_string));
        equal("actor = ", filter.actor.clone());
        equal("action = ", filter.action.map(|action| action.as_str().to_owned()));
        equal("outcome = ", filter.outcome.map(|outcome| outcome.as_str().to_owned()));
        equal("time >= ", filter.since.map(time_text));
        equal("time < ", filter.until.map(time_text));
        if let Some(namespaces) = &filter.within {
            query.push(" AND namespace IN (");
            let mut list = query.separated(", ");
            for namespace in namespaces {
                list.push_bind(namespace.to_string());
            }
            query.push(")");
        }
        match order {
            Order::NewestFirst { before } => {
                if let Some(before) = before {
                    query.push(" AND sequence < ").push_bind(before);
                }
                query.push(" ORDER BY sequence DESC");
            }
            Order::OldestFirst { after } => {
                query.push(" AND sequence > ").push_bind(after).push(" ORDER BY sequence");
            }
        }
        query.push(" LIMIT ").push_bind(i64::from(limit));
        let rows: Vec<(Sequence, String)> = query.build_query_as().fetch_all(&self.read).await?;
        rows.into_iter().map(|(sequence, entry)| Ok((sequence, serde_json::from_str(&entry)?))).collect()
    }

    /// Where the audit ends.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn head(&self) -> Result<Head, StoreError> {
        let (sequence, hash) = sqlx::query_as(HEAD).fetch_one(&self.read).await?;
        Ok(Head { sequence, hash })
    }

    /// The namespaces that have entries.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn namespaces(&self) -> Result<HashSet<Namespace>, StoreError> {
        let names: Vec<String> =
            sqlx::query_scalar("SELECT DISTINCT namespace FROM audit").fetch_all(&self.read).await?;
        Ok(names.iter().filter_map(|name| Namespace::parse(name).ok()).collect())
    }

    /// Closes the database; what is being written is finished first.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    async fn read_records(&self, mut query: QueryBuilder<Sqlite>) -> Result<Vec<Rollback>, StoreError> {
        let records: Vec<String> = query.build_query_scalar().fetch_all(&self.read).await?;
        records.iter().map(|record| Ok(serde_json::from_str(record)?)).collect()
    }

    async fn holds_its_place(&self) -> Result<(), StoreError> {
        match &self.place {
            Some(place) if !place.is_held().await => Err(StoreError::Gone),
            _ => Ok(()),
        }
    }

    pub(super) async fn measured<T>(
        &self,
        write: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let write = async {
            self.holds_its_place().await?;
            write.await
        };
        let result = tokio::time::timeout(DEADLINE, write).await.unwrap_or(Err(StoreError::Silent));
        self.metrics.store_write(started.elapsed(), result.is_err());
        // What is known of the store is newer than the last check of it.
        if let Ok(mut checked) = self.checked.try_lock() {
            *checked = Some((Instant::now(), result.is_ok()));
        }
        result
    }

    /// Hands an entry that is durable to the central log. A log that can't keep up must not stop a
    /// rollback: the store has the entry.
    fn tell(&self, head: &Head, entry: &Entry) {
        self.metrics.audit_entry(entry.action.as_str());
        let Some(log) = &self.log else { return };
        let mut line = serde_json::to_value(entry).unwrap_or_default();
        line["log"] = "audit".into();
        line["sequence"] = head.sequence.into();
        line["hash"] = head.hash.as_str().into();
        if !log.write(&line) {
            tracing::warn!(
                sequence = head.sequence,
                "the audit entry did not get into the log; the store has it"
            );
        }
    }
}

fn place(file: &Path) -> Result<Place, StoreError> {
    Ok(Place::of(file).map_err(sqlx::Error::Io)?)
}

/// Keeps a second process off the file: each would settle what the other is still making. The lock
/// goes with the process, however that ends.
fn lock(file: &Path) -> Result<File, StoreError> {
    let mut name = file.as_os_str().to_owned();
    name.push(".lock");
    let lock = File::create(name).map_err(sqlx::Error::Io)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse),
        Err(TryLockError::Error(error)) => Err(sqlx::Error::Io(error).into()),
    }
}

/// Appends an entry to the chain. The transaction holds the database's only write lock since it began, so
/// that nobody else reads the same head.
async fn insert(transaction: &mut sqlx::Transaction<'_, Sqlite>, entry: &Entry) -> Result<Head, StoreError> {
    let (sequence, hash) = sqlx::query_as(HEAD).fetch_one(&mut **transaction).await?;
    let previous = Head { sequence, hash };
    let text = serde_json::to_string(entry)?;
    let head = previous.next(&text);
    sqlx::query(
        "INSERT INTO audit (sequence, time, action, outcome, namespace, name, actor, entry, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(head.sequence)
    .bind(time_text(entry.time))
    .bind(entry.action.as_str())
    .bind(entry.outcome.as_str())
    .bind(entry.namespace.as_str())
    .bind(entry.name.as_str())
    .bind(&entry.actor.user)
    .bind(text)
    .bind(previous.hash)
    .bind(&head.hash)
    .execute(&mut **transaction)
    .await?;
    move_head(transaction, &head).await?;
    Ok(head)
}

async fn move_head(transaction: &mut sqlx::Transaction<'_, Sqlite>, head: &Head) -> Result<(), StoreError> {
    sqlx::query("UPDATE audit_head SET sequence = ?, hash = ?")
        .bind(head.sequence)
        .bind(&head.hash)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Chains the entries of a store that was made before there was a chain, all or none of them.
///
/// Somebody who can write the store can bring this about again, and wins nothing by it: they could as
/// well have rewritten the chain themselves, which an anchor tells.
async fn chain_what_was_there(write: &SqlitePool) -> Result<(), StoreError> {
    const BATCH: i64 = 1000;
    // Nothing is written where nothing is to be done: a start must not need that.
    let chained: Option<String> = sqlx::query_scalar("SELECT hash FROM audit_head").fetch_one(write).await?;
    if chained.is_some() {
        return Ok(());
    }
    let mut transaction = write.begin_with("BEGIN IMMEDIATE").await?;
    let mut head = Head::start();
    loop {
        let entries: Vec<(Sequence, String)> =
            sqlx::query_as("SELECT sequence, entry FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?")
                .bind(head.sequence)
                .bind(BATCH)
                .fetch_all(&mut *transaction)
                .await?;
        if entries.is_empty() {
            break;
        }
        for (sequence, text) in entries {
            // What was removed before stays missing, and verify names it.
            let next = Head { sequence: sequence - 1, ..head.clone() }.next(&text);
            sqlx::query("UPDATE audit SET previous = ?, hash = ? WHERE sequence = ?")
                .bind(&head.hash)
                .bind(&next.hash)
                .bind(sequence)
                .execute(&mut *transaction)
                .await?;
            head = next;
        }
    }
    move_head(&mut transaction, &head).await?;
    transaction.commit().await?;
    if head.sequence > 0 {
        tracing::info!(
            sequence = head.sequence,
            hash = head.hash,
            "the audit's entries are chained from here on"
        );
    }
    Ok(())
}
