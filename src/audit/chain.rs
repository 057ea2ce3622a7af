//! The chain: each entry carries a hash over itself and its predecessor's hash, so that none can be
//! changed, removed or put in without a trace.
//!
//! Format 1: SHA-256 over `rollbackd audit 1`, the sequence in decimal, the predecessor's hash in
//! lower-case hex, each with a newline at the end, and the entry's text as it is stored. Before the first
//! entry stand 64 zeros. There is no key in it: who can write the store can rewrite all of it, so the
//! head is given away.
//!
//! Absent on purpose: any check. `rollbackd audit verify` shares no code with this.

use std::fmt::Write as _;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Sequence;

/// Where the chain ends: its last entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
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
