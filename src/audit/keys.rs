//! Which rollback a key has made, so that a request sent again is not made again.

use jiff::{SignedDuration, Timestamp};
use sqlx::{Any, Transaction};
use uuid::Uuid;

use super::{Store, StoreError, reads::in_time, time_text};

/// For how long a key is kept at least.
pub const KEPT: SignedDuration = SignedDuration::from_hours(24);

/// A key that is about to make a rollback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// Hash of the caller and the key.
    pub id: String,
    /// Hash of what is asked for.
    pub request: String,
    /// The rollback that it was used for before, if that one came to nothing.
    pub instead_of: Option<Uuid>,
}

/// What a key has been used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedKey {
    pub request: String,
    pub rollback: Uuid,
    /// The first answer, if it is known.
    pub answer: Option<String>,
}

impl Store {
    /// What a key has been used for; `None` if it is new.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn used_key(&self, id: &str) -> Result<Option<UsedKey>, StoreError> {
        let query = sqlx::query_as("SELECT request, rollback, answer FROM idempotency_keys WHERE id = $1");
        let row: Option<(String, String, Option<String>)> =
            in_time(query.bind(id).fetch_optional(&self.database.read)).await?;
        let used = row.map(|(request, rollback, answer)| {
            let rollback = Uuid::try_parse(&rollback).map_err(|error| sqlx::Error::Decode(error.into()))?;
            Ok(UsedKey { request, rollback, answer })
        });
        used.transpose()
    }

    /// Keeps the first answer to a key, if the key has made this rollback and no answer is kept yet.
    ///
    /// # Errors
    /// Nothing was kept.
    pub async fn keep_answer(&self, id: &str, rollback: Uuid, answer: &str) -> Result<(), StoreError> {
        self.measured(async {
            sqlx::query(
                "UPDATE idempotency_keys SET answer = $1 WHERE id = $2 AND rollback = $3 AND answer IS NULL",
            )
            .bind(answer)
            .bind(id)
            .bind(rollback.to_string())
            .execute(&self.database.write)
            .await?;
            Ok(())
        })
        .await
    }
}

/// Notes that a key makes a rollback, and forgets the keys that have been kept for long enough.
pub(super) async fn insert(
    transaction: &mut Transaction<'_, Any>,
    key: &NewKey,
    rollback: Uuid,
    now: Timestamp,
) -> Result<(), StoreError> {
    if let Ok(old) = now.checked_sub(KEPT) {
        sqlx::query("DELETE FROM idempotency_keys WHERE used_at < $1")
            .bind(time_text(old))
            .execute(&mut **transaction)
            .await?;
    }
    if let Some(before) = key.instead_of {
        sqlx::query("DELETE FROM idempotency_keys WHERE id = $1 AND rollback = $2")
            .bind(&key.id)
            .bind(before.to_string())
            .execute(&mut **transaction)
            .await?;
    }
    let inserted = sqlx::query(
        "INSERT INTO idempotency_keys (id, request, rollback, used_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(&key.id)
    .bind(&key.request)
    .bind(rollback.to_string())
    .bind(time_text(now))
    .execute(&mut **transaction)
    .await?;
    if inserted.rows_affected() == 1 { Ok(()) } else { Err(StoreError::KeyTaken) }
}
