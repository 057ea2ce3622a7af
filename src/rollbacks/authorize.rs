//! May this be made? And the record of a no.

use std::sync::Arc;

use tracing::Instrument;

use super::{Inner, RollbackError, Rollbacks, now};
use crate::{
    audit::{Action, Entry, Outcome},
    auth::{Arrival, AuthError, Caller},
    domain::{
        key::Key,
        rollback::{Mode, Origin},
    },
    kubernetes::Grant,
    telemetry::causes,
};

impl Rollbacks {
    /// Asks whether somebody may roll back a DaemonSet, now. A no is recorded, also if the returned future is
    /// dropped.
    ///
    /// # Errors
    /// [`RollbackError::Auth`].
    pub async fn authorize(
        &self,
        arrival: Arrival,
        key: &Key,
        origin: &Origin,
        mode: Mode,
    ) -> Result<(Caller, Grant), RollbackError> {
        let asking = self.inner.clone().ask(arrival, key.clone(), origin.clone(), mode);
        let asked = self.inner.parts.tasks.spawn(asking.in_current_span()).await;
        asked.map_err(|died| {
            tracing::error!(error = %causes(&died), "the review of a rollback died");
            RollbackError::Interrupted
        })?
    }
}

impl Inner {
    async fn ask(
        self: Arc<Self>,
        arrival: Arrival,
        key: Key,
        origin: Origin,
        mode: Mode,
    ) -> Result<(Caller, Grant), RollbackError> {
        let granted = self.parts.authority.grant_rollback(arrival, &key).await;
        if let Err(no @ (AuthError::Denied(_) | AuthError::NeverImpersonated(_))) = &granted {
            self.record_no((Action::Denied, Outcome::Denied), &key, &origin, mode, no.to_string()).await;
        }
        Ok(granted?)
    }

    /// Records that a request was refused or denied. That changes nothing, so a store that fails now does
    /// not turn it into something else.
    pub(super) async fn record_no(
        self: &Arc<Self>,
        no: (Action, Outcome),
        key: &Key,
        origin: &Origin,
        mode: Mode,
        why: String,
    ) {
        let entry = Entry::of_request(no, key, origin, self.parts.cluster.clone(), mode, why, now());
        if let Err(error) = self.record_harmless(entry).await {
            tracing::warn!(error = %causes(&error), "a refusal is not on record");
        }
    }
}
