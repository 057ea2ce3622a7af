//! The bookkeeping of tools that apply manifests: what they remember of a pod template, so that their next apply
//! removes what their manifest no longer names.
//!
//! Client-side apply keeps the manifest in an annotation ([`last_applied`]), server-side apply owns fields in
//! `metadata.managedFields` ([`ownership`]). A rollback that restores only the template leaves both behind, and the next
//! apply merges two templates.

pub mod last_applied;
pub mod ownership;

pub use last_applied::LastAppliedNotRestored;
pub use ownership::{ManagedFields, Ownership};

use serde::{Deserialize, Serialize};

/// What a rollback does with the bookkeeping of the template (`--field-ownership`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FieldOwnership {
    /// Restores last-applied and returns the fields to the managers that had them.
    #[default]
    Return,
    /// Leaves last-applied as it is, and the fields with rollbackd.
    Keep,
}
