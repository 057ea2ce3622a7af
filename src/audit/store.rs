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

use super::{Entry, EntryFilter, NewKey, Order, RollbackFilter, Sequence, keys, time_text};
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
    let first = Migration::new(
        1,
        Cow::Borrowed("rollbacks and audit"),
        MigrationType::Simple,
        SqlStr::from_static(include_str!("migrations/0001_rollbacks_and_audit.sql")),
        false,
    );
    let keys = Migration::new(
        3,
        Cow::Borrowed("idempotency keys"),
        MigrationType::Simple,
        SqlStr::from_static(include_str!("migrations/0003_idempotency_keys.sql")),
        false,
    );
    Migrator { migrations: vec![first, keys].into(), ..Migrator::DEFAULT }
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
        let read = if in_memory {
            // Another connection to it would meet the locks of a shared cache.
            write.clone()
        } else {
            let readers = SqlitePoolOptions::new().max_connections(2).acquire_timeout(TURN);
            readers.connect_with(options.read_only(true)).await?
        };
        Ok(Self { write, read, metrics, log, checked: Arc::default(), _lock: Arc::new(lock) })
    }

    /// Whether the store can write: tries it, at most once in [`RECHECK`].
    pub async fn can_write(&self) -> bool {
        let mut checked = self.checked.lock().await;
        if let Some((at, can)) = *checked
            && at.elapsed() < RECHECK
        {
            return can;
        }
        let probe = sqlx::query("UPDATE probe SET written = written + 1").execute(&self.write);
        let can = matches!(tokio::time::timeout(TURN, probe).await, Ok(Ok(_)));
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
        let sequence = self
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
                let sequence = insert(&mut transaction, entry).await?;
                transaction.commit().await?;
                Ok(sequence)
            })
            .await?;
        self.tell(sequence, entry);
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
        let sequence = self
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
                let sequence = match entry {
                    Some(entry) => Some(insert(&mut transaction, entry).await?),
                    None => None,
                };
                transaction.commit().await?;
                Ok(sequence)
            })
            .await?;
        if let (Some(sequence), Some(entry)) = (sequence, entry) {
            self.tell(sequence, entry);
        }
        Ok(())
    }

    /// Records an entry that belongs to no rollback.
    ///
    /// # Errors
    /// Nothing was recorded.
    pub async fn append(&self, entry: &Entry) -> Result<(), StoreError> {
        let sequence = self
            .measured(async {
                let mut transaction = self.write.begin_with("BEGIN IMMEDIATE").await?;
                let sequence = insert(&mut transaction, entry).await?;
                transaction.commit().await?;
                Ok(sequence)
            })
            .await?;
        self.tell(sequence, entry);
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

    pub(super) async fn measured<T>(
        &self,
        write: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
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
    fn tell(&self, sequence: Sequence, entry: &Entry) {
        self.metrics.audit_entry(entry.action.as_str());
        let Some(log) = &self.log else { return };
        let mut line = serde_json::to_value(entry).unwrap_or_default();
        line["log"] = "audit".into();
        line["sequence"] = sequence.into();
        if !log.write(&line) {
            tracing::warn!(sequence, "the audit entry did not get into the log; the store has it");
        }
    }
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

async fn insert(
    transaction: &mut sqlx::Transaction<'_, Sqlite>,
    entry: &Entry,
) -> Result<Sequence, StoreError> {
    let row = sqlx::query(
        "INSERT INTO audit (time, action, outcome, namespace, name, actor, entry) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(time_text(entry.time))
    .bind(entry.action.as_str())
    .bind(entry.outcome.as_str())
    .bind(entry.namespace.as_str())
    .bind(entry.name.as_str())
    .bind(&entry.actor.user)
    .bind(serde_json::to_string(entry)?)
    .execute(&mut **transaction)
    .await?;
    Ok(row.last_insert_rowid())
}
