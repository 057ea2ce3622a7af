//! What can be asked of the store.

use jiff::Timestamp;
use uuid::Uuid;

use super::{Action, Outcome};
use crate::domain::{
    key::{Key, Name, Namespace},
    rollback::RollbackState,
};

/// Place of an entry in the audit, starting at 1.
pub type Sequence = i64;

/// Which entries; all conditions hold together.
#[derive(Clone, Debug, Default)]
pub struct EntryFilter {
    pub namespace: Option<Namespace>,
    pub name: Option<Name>,
    /// User who asked, or for whom it was asked.
    pub actor: Option<String>,
    pub action: Option<Action>,
    pub outcome: Option<Outcome>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
    /// Only of these namespaces.
    pub within: Option<Vec<Namespace>>,
}

/// In which order, from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Newest first, only sequences below the given one.
    NewestFirst { before: Option<Sequence> },
    /// Oldest first, only sequences above the given one.
    OldestFirst { after: Sequence },
}

/// Which rollbacks, newest first; all conditions hold together.
#[derive(Clone, Debug, Default)]
pub struct RollbackFilter {
    pub namespace: Option<Namespace>,
    pub name: Option<Name>,
    pub state: Option<RollbackState>,
    /// User who asked, or for whom it was asked.
    pub actor: Option<String>,
    /// Requested not before.
    pub since: Option<Timestamp>,
    /// Only older than this one.
    pub before: Option<Uuid>,
    /// Only these.
    pub within: Option<RollbackScope>,
}

/// Rollbacks that one caller sees: those of the namespaces and DaemonSets named, and the caller's own.
#[derive(Clone, Debug, Default)]
pub struct RollbackScope {
    pub namespaces: Vec<Namespace>,
    pub daemonsets: Vec<Key>,
    /// The caller, as the user for whom they were made.
    pub asker: Option<String>,
}
