//! What the record says of rollbacks that the cluster shows.

use uuid::Uuid;

use super::{Action, Entry, Store, StoreError, reads::in_time};
use crate::domain::key::Key;

impl Store {
    /// Whether a rollback is on record.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn has_rollback(&self, id: Uuid) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar("SELECT count(*) FROM rollbacks WHERE id = $1").bind(id.to_string());
        let found: i64 = in_time(query.fetch_one(&self.database.read)).await?;
        Ok(found > 0)
    }

    /// Whether an entry says that this rollback, shown by the DaemonSet of this uid, is not on record.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn has_reported(&self, id: Uuid, key: &Key, uid: &str) -> Result<bool, StoreError> {
        let query =
            sqlx::query_scalar("SELECT entry FROM audit WHERE namespace = $1 AND name = $2 AND action = $3")
                .bind(key.namespace.as_str())
                .bind(key.name.as_str())
                .bind(Action::Unrecorded.as_str());
        let entries: Vec<String> = in_time(query.fetch_all(&self.database.read)).await?;
        for entry in entries {
            let entry: Entry = serde_json::from_str(&entry)?;
            if entry.rollback == Some(id) && entry.uid.as_deref() == Some(uid) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
