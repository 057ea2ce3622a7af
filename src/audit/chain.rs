//! The chain: each entry carries a hash over itself and its predecessor's hash, so that none can be
//! changed, removed or put in without a trace.
//!
//! Format 1: SHA-256 over `rollbackd audit 1`, the sequence in decimal, the predecessor's hash in
//! lower-case hex, each with a newline at the end, and the entry's text as it is stored. Before the first
//! entry stand 64 zeros. What is cut off the old end leaves an entry that names the last one that was cut, and
//! the chain goes on from that one's hash. There is no key in it: who can write the store can rewrite all of it, so the
//! head is given away.
//!
//! Absent on purpose: any check. `rollbackd audit verify` shares no code with this.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::{Any, Transaction};

use super::{Entry, Sequence, StoreError, database::Engine, store::exactly_one, time_text};
use crate::domain::key::{Name, Namespace};

/// Where the chain ends: its last entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = AuditHead)]
pub struct Head {
    /// Place of the last entry in the audit; 0 before the first.
    #[schema(value_type = i64, minimum = 0, examples(42))]
    pub sequence: Sequence,
    /// Hash of the last entry, and with it of all before it; zeros before the first.
    #[schema(
        pattern = "^[0-9a-f]{64}$",
        examples("3f0a377ba0a4a460ecb616f6507ce0d8cfa3e704025d4fda3ed0c5ca05468728")
    )]
    pub hash: String,
}

impl Head {
    /// Where a chain begins.
    pub(super) fn start() -> Self {
        Self { sequence: 0, hash: "0".repeat(64) }
    }

    /// The head once an entry of this text is appended.
    pub(super) fn next(&self, text: &str) -> Self {
        let sequence = self.sequence + 1;
        let mut hasher = Sha256::new();
        hasher.update(format!("rollbackd audit 1\n{sequence}\n{}\n", self.hash));
        hasher.update(text);
        let hash = hasher.finalize().iter().fold(String::with_capacity(64), |mut hash, byte| {
            write!(hash, "{byte:02x}").expect("a String takes all");
            hash
        });
        Self { sequence, hash }
    }
}

/// Reads the head, which nobody else can move before the transaction ends.
pub(super) async fn lock_head(
    engine: Engine,
    transaction: &mut Transaction<'_, Any>,
) -> Result<Head, StoreError> {
    let (sequence, hash) = sqlx::query_as(engine.lock_head()).fetch_one(&mut **transaction).await?;
    Ok(Head { sequence, hash })
}

/// Appends an entry after the locked head.
pub(super) async fn append(
    transaction: &mut Transaction<'_, Any>,
    previous: Head,
    entry: &Entry,
) -> Result<Head, StoreError> {
    let text = serde_json::to_string(entry)?;
    let head = previous.next(&text);
    sqlx::query(
        "INSERT INTO audit (sequence, time, action, outcome, namespace, name, actor, entry, previous, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(head.sequence)
    .bind(time_text(entry.time))
    .bind(entry.action.as_str())
    .bind(entry.outcome.as_str())
    .bind(entry.namespace.as_ref().map_or("", Namespace::as_str))
    .bind(entry.name.as_ref().map_or("", Name::as_str))
    .bind(&entry.actor.user)
    .bind(text)
    .bind(previous.hash)
    .bind(&head.hash)
    .execute(&mut **transaction)
    .await
    .map_err(StoreError::from)
    .and_then(exactly_one)?;
    move_head(transaction, &head).await?;
    Ok(head)
}

pub(super) async fn move_head(transaction: &mut Transaction<'_, Any>, head: &Head) -> Result<(), StoreError> {
    sqlx::query("UPDATE audit_head SET sequence = $1, hash = $2")
        .bind(head.sequence)
        .bind(&head.hash)
        .execute(&mut **transaction)
        .await
        .map_err(StoreError::from)
        .and_then(exactly_one)
}
