//! The field ownership that applied rollbacks have yet to return. A row comes with the record that says that the patch
//! was applied, and goes when the ownership is returned.

use std::time::Duration;

use sqlx::{Any, AssertSqlSafe, Transaction};
use uuid::Uuid;

use super::{Store, StoreError, database::Engine, reads::in_time, store::within_deadline};
use crate::domain::{bookkeeping::Ownership, rollback::Warning};

/// For how long one that is taken is left to its taker.
const LEASE: Duration = Duration::from_secs(30);
/// Most that are taken at once: each has the whole lease.
const BATCH: i64 = 1;

/// Holds unless another process has taken it since, or has ended it.
const STILL_TAKEN: &str = "ownership IS NOT NULL AND attempts = $2";

/// Ownership to return.
#[derive(Clone, Debug)]
pub struct PendingReturn {
    pub rollback: Uuid,
    /// Who owned the template before the rollback.
    pub ownership: Ownership,
    /// How often it was taken, this time included.
    pub attempts: u32,
}

impl Store {
    /// Takes what is due. A process that dies with it leaves it to another one, [`LEASE`] later.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn take_returns(&self) -> Result<Vec<PendingReturn>, StoreError> {
        let now = self.database.engine.now();
        let count = format!(
            "SELECT count(*), CAST(coalesce(sum(CASE WHEN retry_at <= {now} THEN 1 ELSE 0 END), 0) AS BIGINT) FROM ownership_returns WHERE retry_at IS NOT NULL"
        );
        let count = sqlx::query_as::<_, (i64, i64)>(AssertSqlSafe(count));
        let (pending, due) = in_time(count.fetch_one(&self.database.read)).await?;
        self.metrics.pending_ownership_returns(pending);
        // A write is not tried for nothing.
        if due == 0 {
            return Ok(Vec::new());
        }
        let lock = match self.database.engine {
            Engine::Postgres => " FOR UPDATE SKIP LOCKED",
            Engine::Sqlite => "",
        };
        let lease = LEASE.as_millis();
        let sql = format!(
            "UPDATE ownership_returns SET retry_at = {now} + {lease}, attempts = attempts + 1 WHERE rollback IN (SELECT rollback FROM ownership_returns WHERE retry_at <= {now} ORDER BY retry_at LIMIT {BATCH}{lock}) RETURNING rollback, ownership, attempts"
        );
        let taken = within_deadline(async {
            let taken = sqlx::query_as(AssertSqlSafe(sql));
            Ok::<Vec<(String, String, i64)>, _>(taken.fetch_all(&self.database.write).await?)
        });
        let read = |(rollback, ownership, attempts): (String, String, i64)| {
            let rollback = Uuid::try_parse(&rollback).map_err(|error| sqlx::Error::Decode(error.into()))?;
            let ownership = serde_json::from_str(&ownership)?;
            Ok(PendingReturn { rollback, ownership, attempts: attempts.try_into().unwrap_or(u32::MAX) })
        };
        taken.await?.into_iter().map(read).collect()
    }

    /// Reads what a rollback has yet to return.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pending_return(&self, rollback: Uuid) -> Result<Option<Ownership>, StoreError> {
        let sql = "SELECT ownership FROM ownership_returns WHERE rollback = $1 AND ownership IS NOT NULL";
        let query = sqlx::query_scalar::<_, String>(sql).bind(rollback.to_string());
        let pending = in_time(query.fetch_optional(&self.database.read)).await?;
        Ok(pending.map(|text| serde_json::from_str(&text)).transpose()?)
    }

    /// The ownership is returned, or nothing is left to return it to.
    ///
    /// # Errors
    /// It is taken again.
    pub async fn returned(&self, taken: &PendingReturn) -> Result<(), StoreError> {
        let sql = format!("DELETE FROM ownership_returns WHERE rollback = $1 AND {STILL_TAKEN}");
        let delete = sqlx::query(AssertSqlSafe(sql)).bind(taken.rollback.to_string());
        self.change_return(delete.bind(i64::from(taken.attempts))).await
    }

    /// The ownership, or a part of it, is not returned: never, or not before `retry_in`. The warning is shown with the
    /// rollback.
    ///
    /// # Errors
    /// It is taken again.
    pub async fn not_returned(
        &self,
        taken: &PendingReturn,
        warning: &Warning,
        retry_in: Option<Duration>,
    ) -> Result<(), StoreError> {
        let warning = serde_json::to_string(warning)?;
        let next = match retry_in {
            Some(wait) => format!("retry_at = {} + {}", self.database.engine.now(), wait.as_millis()),
            None => "retry_at = NULL, ownership = NULL".to_owned(),
        };
        let sql = format!(
            "UPDATE ownership_returns SET warning = $3, {next} WHERE rollback = $1 AND {STILL_TAKEN}"
        );
        let update = sqlx::query(AssertSqlSafe(sql)).bind(taken.rollback.to_string());
        self.change_return(update.bind(i64::from(taken.attempts)).bind(warning)).await
    }

    async fn change_return(
        &self,
        query: sqlx::query::Query<'_, Any, sqlx::any::AnyArguments>,
    ) -> Result<(), StoreError> {
        self.measured(async {
            query.execute(&self.database.write).await?;
            Ok(())
        })
        .await
    }
}

/// Notes what is to be returned.
pub(super) async fn insert(
    transaction: &mut Transaction<'_, Any>,
    engine: Engine,
    rollback: Uuid,
    ownership: &Ownership,
) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO ownership_returns (rollback, ownership, retry_at) VALUES ($1, $2, {}) ON CONFLICT DO NOTHING",
        engine.now()
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(rollback.to_string())
        .bind(serde_json::to_string(ownership)?)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}
