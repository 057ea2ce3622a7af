//! Proof that a write was allowed.

use crate::domain::{
    key::Key,
    rollback::{Power, Rollback},
};

/// The right to roll back one DaemonSet, for one request. Every write takes one and goes to the DaemonSet that
/// it names, so that a write without a check does not compile.
///
/// There are three ways to one: the review ([`super::Reviewer::rollback`]), `--auth none`, and a
/// rollback that was granted when it was recorded. A test holds who may call the last two.
#[derive(Debug)]
pub struct Grant {
    key: Key,
    power: Power,
}

impl Grant {
    /// Grants what the cluster's RBAC has granted.
    pub(super) fn reviewed(key: Key, power: Power) -> Self {
        Self { key, power }
    }

    /// Grants without asking the cluster: for `--auth none`, whose guards are in front of the
    /// server. Nobody but [`crate::auth`] calls it.
    pub(crate) fn unreviewed(key: Key) -> Self {
        Self { key, power: Power::Patch }
    }

    /// Grants the settling of a rollback that was granted when it was recorded. Nobody but
    /// [`crate::rollbacks`] calls it.
    pub(crate) fn recorded(rollback: &Rollback) -> Self {
        Self { key: rollback.key.clone(), power: Power::RollBack }
    }

    /// The DaemonSet that may be rolled back.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// What its holder may do beside.
    #[must_use]
    pub fn power(&self) -> Power {
        self.power
    }
}
