//! Whose rollback it is: which process makes and follows it.
//!
//! A rollback belongs to one holder, for as long as its lease goes on being renewed. When the lease is over, the
//! holder has died or hangs, and another one may take the rollback; the epoch tells the two apart. Each write to
//! a rollback names holder and epoch, so that who wakes up late writes nothing. SQLite's file belongs to one
//! process, which takes all that earlier ones have left.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{
    Store, StoreError,
    database::Engine,
    reads::{Recorded, in_time, read},
    store::within_deadline,
};
use crate::domain::rollback::Rollback;

/// For how long a rollback is its holder's after the last sign of life.
const LEASE: Duration = Duration::from_secs(5);
/// Between two signs of life, and two looks for rollbacks that lack one.
pub const PULSE: Duration = Duration::from_secs(1);
/// Most rollbacks that are taken at once.
const BATCH: i64 = 50;

/// An open rollback, and whose it is.
#[derive(Clone, Debug)]
pub struct Open {
    pub rollback: Rollback,
    /// Whether this process holds it.
    pub mine: bool,
}

impl Store {
    /// Whether other processes use the store, too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.database.engine == Engine::Postgres
    }

    /// When a lease that is renewed now ends.
    pub(super) fn lease(&self) -> String {
        format!("{} + {}", self.database.engine.now(), LEASE.as_millis())
    }

    /// Takes open rollbacks that nobody holds any more, oldest first.
    ///
    /// # Errors
    /// None was taken, or it is not known whether some were.
    pub async fn claim(&self) -> Result<Vec<Rollback>, StoreError> {
        let (now, lease) = (self.database.engine.now(), self.lease());
        let free = match self.database.engine {
            // A replica that takes some at the same time takes others.
            Engine::Postgres => {
                format!("open AND lease < {now} ORDER BY id LIMIT {BATCH} FOR UPDATE SKIP LOCKED")
            }
            Engine::Sqlite => "open AND holder <> $1".to_owned(),
        };
        let sql = format!(
            "UPDATE rollbacks SET holder = $1, epoch = epoch + 1, lease = {lease} WHERE id IN (SELECT id FROM rollbacks WHERE {free}) RETURNING record, epoch"
        );
        let claimed = within_deadline(async {
            let claimed = sqlx::query_as(AssertSqlSafe(sql)).bind(&self.holder);
            Ok::<Vec<Recorded>, _>(claimed.fetch_all(&self.database.pulse).await?)
        });
        let mut claimed = claimed.await?.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        claimed.sort_by_key(|rollback| rollback.id);
        Ok(claimed)
    }

    /// Gives a sign of life for these rollbacks. What is recorded as this process's and that it knows nothing of,
    /// such as a record whose write was reported as failed, runs out, and is taken up like any other.
    ///
    /// # Errors
    /// The leases go on running out.
    pub async fn renew(&self, rollbacks: &[Uuid]) -> Result<(), StoreError> {
        if rollbacks.is_empty() {
            return Ok(());
        }
        let these: Vec<String> = rollbacks.iter().map(|id| format!("'{id}'")).collect();
        self.set_lease(&self.lease(), &format!("id IN ({})", these.join(", "))).await
    }

    /// Gives up what this process holds, so that others need not wait for it.
    ///
    /// # Errors
    /// They have to.
    pub async fn release(&self) -> Result<(), StoreError> {
        self.set_lease("0", "open").await
    }

    async fn set_lease(&self, lease: &str, which: &str) -> Result<(), StoreError> {
        let sql = format!("UPDATE rollbacks SET lease = {lease} WHERE {which} AND open AND holder = $1");
        within_deadline(async {
            sqlx::query(AssertSqlSafe(sql)).bind(&self.holder).execute(&self.database.pulse).await?;
            Ok(())
        })
        .await
    }

    /// Reads all rollbacks that have not ended, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn open_rollbacks(&self) -> Result<Vec<Open>, StoreError> {
        let query = sqlx::query_as("SELECT record, epoch, holder FROM rollbacks WHERE open ORDER BY id");
        let rows: Vec<(String, i64, String)> = in_time(query.fetch_all(&self.database.pulse)).await?;
        let open = rows.into_iter().map(|(record, epoch, holder)| {
            let rollback = read((record, epoch))?;
            Ok(Open { rollback, mine: holder == self.holder })
        });
        open.collect()
    }
}

/// A new process's name.
pub(super) fn new_holder() -> String {
    Uuid::now_v7().to_string()
}
