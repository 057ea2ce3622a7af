//! Keeps rollbacks and audit entries. Each write is one transaction, durable when the call returns.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{Any, AssertSqlSafe, Transaction, any::AnyQueryResult};
use tokio::sync::{Mutex, Notify};
use uuid::Uuid;

use super::{
    Entry, Head, NewKey, StoreUrl, Trouble, chain, claims,
    database::{Database, TURN},
    integrity, keys, outbox, ownership, time_text,
};
use crate::{
    domain::{
        key::Key,
        rollback::{Rollback, RollbackState, WarningCode},
    },
    telemetry::{AuditLog, Metrics},
};

/// How long a write may take in all: a disk that hangs must not hang whoever waits for it.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the answer of [`Store::trouble`] is good.
const RECHECK: Duration = Duration::from_secs(2);

/// Keeps rollbacks and audit entries.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) database: Database,
    /// This process, as other replicas know it.
    pub(super) holder: String,
    pub(super) metrics: Metrics,
    pub(super) log: Option<AuditLog>,
    /// Wakes what writes the lines.
    pub(super) appended: Arc<Notify>,
    pub(super) checked: Arc<Mutex<Option<Check>>>,
    pub(super) alteration: Alteration,
    /// What the tables show as the migrations make them.
    pub(super) expected: Arc<BTreeSet<String>>,
}

/// Whether the tables were found not to be what rollbackd made.
#[derive(Clone, Debug, Default)]
pub(super) struct Alteration(Arc<AtomicBool>);

impl Alteration {
    pub fn set(&self, altered: bool) {
        self.0.store(altered, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.0.load(Ordering::Relaxed) { Err(StoreError::Altered) } else { Ok(()) }
    }
}

/// What a look at the store has found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    at: Instant,
    trouble: Option<Trouble>,
}

impl Check {
    fn now(trouble: Option<Trouble>) -> Self {
        Self { at: Instant::now(), trouble }
    }
}

/// Why the store did not take or give something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The text after `--store` is of no known form.
    #[error("expected sqlite:PATH or postgres://…")]
    Url,
    /// The database failed: disk full, read-only, corrupt, locked, out of reach. Nothing was written, except
    /// where [`StoreError::leaves_open`] says so.
    #[error("the audit store failed")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the audit store's schema can't be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A newer rollbackd has changed the store in a way that this one does not know.
    #[error(
        "a newer rollbackd has brought its schema to {needed}, this one knows schema {known}: start that version, or restore a backup from before it"
    )]
    TooNew { needed: i64, known: i64 },
    /// Another process uses the file.
    #[error("another process uses it")]
    InUse,
    /// The file has several names.
    #[error(
        "the file has {names} names (hard links), and each would have a write-ahead log of its own: remove all but one"
    )]
    HardLinks { names: u64 },
    /// The file was removed, or another one was put in its place. Nothing was written; only a restart helps.
    #[error("the audit store's file was removed or replaced")]
    Gone,
    /// The tables are not what rollbackd made, or a write has not changed what it should have. Nothing was written.
    #[error("the audit store's tables were altered: what is written is not certain to be found again")]
    Altered,
    /// The disk or the server did not answer. Whether something was written is not known.
    #[error("the audit store did not answer in time")]
    Silent,
    /// A record that this version can't read.
    #[error("the audit store holds a record that can't be read")]
    Record(#[from] serde_json::Error),
    /// Another rollback of the DaemonSet is undecided. Nothing was written.
    #[error("rollback {id} of this DaemonSet is undecided")]
    Busy { id: Uuid },
    /// The key has made another rollback meanwhile. Nothing was written.
    #[error("the key has been used meanwhile")]
    KeyTaken,
    /// The rollback is not in the state that the caller took it to be in, or another replica has taken it over.
    /// Nothing was written.
    #[error("rollback {id} is no longer {state:?}, or is followed by another replica")]
    Moved { id: Uuid, state: RollbackState },
}

impl Store {
    /// Opens the database that `url` names, makes it if there is none, and brings its schema up to date. Each
    /// entry goes to `log` as a line of JSON once it is durable ([`Store::log_writer`]).
    ///
    /// # Errors
    /// When it can't be opened, written or read, or belongs to another process or a newer version.
    pub async fn open(url: &StoreUrl, metrics: Metrics, log: Option<AuditLog>) -> Result<Self, StoreError> {
        let database = Database::open(url).await?;
        Ok(Self {
            expected: Arc::new(integrity::expected(database.engine).await?),
            database,
            holder: claims::new_holder(),
            metrics,
            log,
            appended: Arc::default(),
            checked: Arc::default(),
            alteration: Alteration::default(),
        })
    }

    /// What keeps the store from writing: tries it, at most once in [`RECHECK`].
    pub async fn trouble(&self) -> Option<Trouble> {
        if self.alteration.check().is_err() {
            return Some(Trouble::Altered);
        }
        let mut checked = self.checked.lock().await;
        if let Some(check) = *checked
            && check.at.elapsed() < RECHECK
        {
            return check.trouble;
        }
        let probe = async {
            self.database.holds_its_place().await?;
            sqlx::query("UPDATE probe SET written = written + 1").execute(&self.database.write).await?;
            Ok::<_, StoreError>(())
        };
        let written = tokio::time::timeout(TURN, probe).await.unwrap_or(Err(StoreError::Silent));
        let trouble = written.as_ref().err().map(Trouble::from);
        *checked = Some(Check::now(trouble));
        trouble
    }

    /// Records a new rollback, its first entry, and the key that makes it, if there is one. This process holds
    /// the rollback from then on.
    ///
    /// # Errors
    /// [`StoreError::KeyTaken`], [`StoreError::Busy`], or the database failed; nothing was recorded, unless
    /// [`StoreError::leaves_open`] says so.
    pub async fn begin(
        &self,
        rollback: &Rollback,
        entry: &Entry,
        key: Option<&NewKey>,
    ) -> Result<(), StoreError> {
        self.alteration.check()?;
        let record = record(rollback)?;
        let insert = format!(
            "INSERT INTO rollbacks (id, state, open, namespace, name, actor, requested_at, record, holder, epoch, asker, lease) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, {})",
            self.lease()
        );
        self.measured(async {
            let mut transaction = self.database.begin().await?;
            // From here on nobody else begins one.
            let head = chain::lock_head(self.database.engine, &mut transaction).await?;
            if let Some(key) = key {
                keys::insert(&mut transaction, key, rollback.id, rollback.requested_at).await?;
            }
            if let Some(id) = undecided(&mut transaction, &rollback.key).await? {
                return Err(StoreError::Busy { id });
            }
            sqlx::query(AssertSqlSafe(insert))
                .bind(rollback.id.to_string())
                .bind(rollback.state.as_str())
                .bind(!rollback.state.is_final())
                .bind(rollback.key.namespace.as_str())
                .bind(rollback.key.name.as_str())
                .bind(&rollback.origin.requested_by.user)
                .bind(time_text(rollback.requested_at))
                .bind(record)
                .bind(&self.holder)
                .bind(rollback.epoch)
                .bind(&rollback.origin.asker().user)
                .execute(&mut *transaction)
                .await
                .map_err(StoreError::from)
                .and_then(exactly_one)?;
            self.append_in(&mut transaction, head, entry).await?;
            Ok(transaction.commit().await?)
        })
        .await?;
        self.tell(entry);
        Ok(())
    }

    /// Moves a rollback on from `state`, and records the entry that says so, if there is one to say.
    ///
    /// # Errors
    /// Nothing was recorded; [`StoreError::Moved`] when the rollback was not in `state`, or another process has
    /// taken it over.
    pub async fn advance(
        &self,
        state: RollbackState,
        rollback: &Rollback,
        entry: Option<&Entry>,
    ) -> Result<(), StoreError> {
        let record = record(rollback)?;
        // A patch that left the spec alone has changed the owner of last-applied.
        let applied = matches!(
            rollback.state,
            RollbackState::Progressing | RollbackState::Applied | RollbackState::Skipped
        );
        let to_return = rollback.ownership.as_ref().filter(|_| state.is_undecided() && applied);
        self.measured(async {
            let mut transaction = self.database.begin().await?;
            let head = match entry {
                Some(entry) => Some((chain::lock_head(self.database.engine, &mut transaction).await?, entry)),
                None => None,
            };
            let moved = sqlx::query(
                "UPDATE rollbacks SET state = $1, open = $2, record = $3 WHERE id = $4 AND state = $5 AND holder = $6 AND epoch = $7",
            )
            .bind(rollback.state.as_str())
            .bind(!rollback.state.is_final())
            .bind(record)
            .bind(rollback.id.to_string())
            .bind(state.as_str())
            .bind(&self.holder)
            .bind(rollback.epoch)
            .execute(&mut *transaction)
            .await?;
            if moved.rows_affected() != 1 {
                return Err(StoreError::Moved { id: rollback.id, state });
            }
            if let Some(ownership) = to_return {
                ownership::insert(&mut transaction, self.database.engine, rollback.id, ownership).await?;
            }
            if let Some((head, entry)) = head {
                self.append_in(&mut transaction, head, entry).await?;
            }
            Ok(transaction.commit().await?)
        })
        .await?;
        if let Some(entry) = entry {
            self.tell(entry);
        }
        Ok(())
    }

    /// Records an entry that belongs to no rollback.
    ///
    /// # Errors
    /// Nothing was recorded.
    pub async fn append(&self, entry: &Entry) -> Result<(), StoreError> {
        self.measured(async {
            let mut transaction = self.database.begin().await?;
            let head = chain::lock_head(self.database.engine, &mut transaction).await?;
            self.append_in(&mut transaction, head, entry).await?;
            Ok(transaction.commit().await?)
        })
        .await?;
        self.tell(entry);
        Ok(())
    }

    /// Uses another password for connections that are made from now on.
    ///
    /// # Errors
    /// When the URL can't be used.
    pub fn use_password_of(&self, url: &StoreUrl) -> Result<(), StoreError> {
        self.database.use_password_of(url)
    }

    /// Closes the database; what is being written is finished first.
    pub async fn close(&self) {
        self.database.close().await;
    }

    pub(super) async fn measured<T>(
        &self,
        write: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let write = async {
            self.database.holds_its_place().await?;
            write.await
        };
        let result = within_deadline(write).await;
        if matches!(result, Err(StoreError::Altered)) {
            self.alteration.set(true);
        }
        let trouble = result.as_ref().err().filter(|error| error.is_trouble()).map(Trouble::from);
        self.metrics.store_write(started.elapsed(), trouble.is_some());
        // What is known of the store is newer than the last check of it.
        if let Ok(mut checked) = self.checked.try_lock() {
            *checked = Some(Check::now(trouble));
        }
        result
    }

    /// Appends an entry after the locked head, and sees to it that its line is written.
    pub(super) async fn append_in(
        &self,
        transaction: &mut Transaction<'_, Any>,
        head: Head,
        entry: &Entry,
    ) -> Result<Head, StoreError> {
        let head = chain::append(transaction, head, entry).await?;
        if self.log.is_some() {
            outbox::put(transaction, self.database.engine, &self.holder, head.sequence).await?;
        }
        Ok(head)
    }

    /// Counts an entry that is durable, and lets its line be written.
    pub(super) fn tell(&self, entry: &Entry) {
        self.metrics.audit_entry(entry.action.as_str());
        self.appended.notify_one();
    }
}

/// Checks that a write has changed one row. A rule or a view may let none, or others, be changed.
pub(super) fn exactly_one(written: AnyQueryResult) -> Result<(), StoreError> {
    if written.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Altered) }
}

/// A rollback as it is stored. What is to be returned once it is decided, and the warning that it is not, are kept apart.
fn record(rollback: &Rollback) -> Result<String, StoreError> {
    let mut stored = rollback.clone();
    stored.warnings.retain(|warning| warning.code != WarningCode::OwnershipNotReturned);
    if !stored.state.is_undecided() {
        stored.ownership = None;
    }
    Ok(serde_json::to_string(&stored)?)
}

/// Waits for a write, and not for ever.
pub(super) async fn within_deadline<T>(
    write: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(DEADLINE, write).await.unwrap_or(Err(StoreError::Silent))
}

impl StoreError {
    /// Whether the store is at fault, rather than right.
    fn is_trouble(&self) -> bool {
        !matches!(self, Self::Busy { .. } | Self::KeyTaken | Self::Moved { .. })
    }

    /// Whether a write that failed like this may have been made all the same: the connection was lost, and with
    /// it perhaps the answer to a commit.
    #[must_use]
    pub fn leaves_open(&self) -> bool {
        match self {
            Self::Silent => true,
            // What an engine refuses is not made; a server that is shut down may have made it.
            Self::Database(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| code.starts_with("57P"))
            }
            // Not even sent.
            Self::Database(sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) => false,
            Self::Database(_) => true,
            _ => false,
        }
    }
}

/// The rollback of a DaemonSet whose patch may yet be carried out.
async fn undecided(
    transaction: &mut sqlx::Transaction<'_, sqlx::Any>,
    key: &Key,
) -> Result<Option<Uuid>, StoreError> {
    let [requested, unsettled] =
        [RollbackState::Requested, RollbackState::Unsettled].map(RollbackState::as_str);
    let id: Option<String> = sqlx::query_scalar(
        "SELECT id FROM rollbacks WHERE open AND namespace = $1 AND name = $2 AND state IN ($3, $4) LIMIT 1",
    )
    .bind(key.namespace.as_str())
    .bind(key.name.as_str())
    .bind(requested)
    .bind(unsettled)
    .fetch_optional(&mut **transaction)
    .await?;
    Ok(id.map(|id| Uuid::try_parse(&id)).transpose().map_err(|error| sqlx::Error::Decode(error.into()))?)
}
