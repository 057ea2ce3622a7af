//! Finds out whether an audit is what was written: `rollbackd audit verify`.
//!
//! It knows no other room, so that it shares no code with what writes: its own reading of stores and
//! exports, its own hashing, its own idea of what an entry says. A bug in one is not hidden by the other.
//!
//! Absent on purpose: repair. What is wrong is named; what is true is for whoever kept the log to say.

mod chain;
mod export;
mod prune;
mod schema;
mod store;

use std::fmt;

use jiff::SignedDuration;

pub use chain::{Anchor, InvalidAnchor};
pub use export::verify_export;
pub use store::verify_store;

/// Findings that are told; the others are counted.
const TOLD: usize = 100;

/// What an audit is held to, beside being a chain.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// A head that must be in it.
    pub anchor: Option<Anchor>,
    /// How old an entry must at least have been when it was pruned.
    pub retention: Option<SignedDuration>,
    /// Triggers of others on the store's tables, such as those of replication, that are no finding.
    pub known_triggers: Vec<String>,
}

/// Where the anchor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnchorPlace {
    /// It is an entry, or the beginning.
    Kept(i64),
    /// It is the last entry that was pruned: it says nothing of any entry that is left but where they begin.
    Pruned(i64),
}

/// What became of it.
#[derive(Debug)]
pub struct Report {
    /// How many entries were read.
    pub entries: u64,
    /// The last one that was cut off before the first that is there: whoever may write the store can say so of
    /// any, and only whoever knows the retention can tell.
    pub cut: Option<i64>,
    /// Sequence and hash of the last one.
    pub head: (i64, String),
    /// Where the anchor is, if one was given and is there.
    pub anchor: Option<AnchorPlace>,
    /// What is wrong, in the order of the entries; the first [`TOLD`] of them.
    pub findings: Vec<Finding>,
    /// How many findings there are in all.
    pub found: u64,
}

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// The entry, where it is about one.
    pub sequence: Option<i64>,
    pub what: String,
}

/// Why it could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It can't be opened, or reading it failed half-way.
    #[error("it can't be read")]
    Database(#[from] sqlx::Error),
    #[error("it can't be read")]
    Io(#[from] std::io::Error),
    /// The store was last used by a version that knew no chain.
    #[error("its entries are not chained yet: a rollbackd of this version does so when it opens the store")]
    NotChained,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.found == 0
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sequence {
            Some(sequence) => write!(f, "entry {sequence}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}
