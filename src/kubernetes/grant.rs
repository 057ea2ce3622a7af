//! Proof that a write was allowed.

use crate::domain::key::Key;

/// The right to roll back one DaemonSet, for one request. Every write takes one and goes to the DaemonSet that
/// it names, so that a write without a check does not compile.
#[derive(Debug)]
pub struct Grant {
    key: Key,
}

impl Grant {
    /// Grants without asking the cluster: for `--auth none`, whose guards are in front of the
    /// server. Nobody but [`crate::auth`] calls it; a test sees to that.
    pub(crate) fn unreviewed(key: Key) -> Self {
        Self { key }
    }

    /// The DaemonSet that may be rolled back.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }
}
