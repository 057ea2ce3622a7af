//! Who asks, and what they may do.
//!
//! With `--auth none` everybody who gets past the server's guards is `local` and may do all that
//! rollbackd's own credentials allow; in the sandbox everybody is.

use crate::{
    domain::{actor::Actor, key::Key, rollback::Rollback},
    kubernetes::Grant,
};

/// Whoever sent a request. Every handler gets one.
#[derive(Clone, Debug)]
pub struct Caller {
    actor: Actor,
}

/// How callers are told apart and what is asked before they may do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// No authentication: only ever behind the loopback guards.
    None,
    /// No authentication, and nothing to guard: the cluster is simulated.
    Sandbox,
}

impl Authority {
    /// Finds out who sent a request.
    #[must_use]
    pub fn identify(self) -> Caller {
        match self {
            Self::None | Self::Sandbox => {
                Caller { actor: Actor { user: "local".into(), groups: Vec::new(), uid: None } }
            }
        }
    }

    /// Asks whether a caller may roll back a DaemonSet, now.
    #[must_use]
    pub fn grant_rollback(self, _caller: &Caller, key: &Key) -> Grant {
        match self {
            Self::None | Self::Sandbox => Grant::unreviewed(key.clone()),
        }
    }

    /// The right to settle a rollback that was granted when it was asked for.
    #[must_use]
    pub fn grant_settling(self, rollback: &Rollback) -> Grant {
        Grant::unreviewed(rollback.key.clone())
    }
}

impl Caller {
    /// Who it is.
    #[must_use]
    pub fn actor(&self) -> &Actor {
        &self.actor
    }
}
