//! What a caller wants to hold of the DaemonSet, else nothing is to be done (`If-Match`).

use crate::domain::daemonset::DaemonSet;

/// What must hold when a rollback is planned, and still when it is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    #[default]
    Unconditional,
    /// That there is a DaemonSet, whichever.
    Exists,
    /// That it is at one of these versions; of an empty list, as when the caller's tags are none of
    /// ours, it never is.
    OneOf(Vec<Version>),
}

/// What of a DaemonSet an entity tag names: its status may move on, its spec may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub uid: String,
    pub generation: i64,
}

impl Precondition {
    /// Whether it holds of a DaemonSet.
    #[must_use]
    pub fn holds(&self, daemonset: &DaemonSet) -> bool {
        match self {
            Self::Unconditional | Self::Exists => true,
            Self::OneOf(versions) => versions
                .iter()
                .any(|version| version.uid == daemonset.uid && version.generation == daemonset.generation),
        }
    }
}
