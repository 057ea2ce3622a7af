//! The second write of a rollback: the fields of the template go back to the managers that had them.
//!
//! It is sent only after the first one is on record as applied, pinned to the resource version, and only while uid,
//! generation, template and id are those of the rollback. It never delays an answer and never makes a rollback fail:
//! what can't be returned is a warning, and tried again, also by the next process or another replica.

use std::time::Duration;

use uuid::Uuid;

use super::{Inner, Rollbacks, waits};
use crate::{
    audit::{PendingReturn, StoreError},
    domain::{
        bookkeeping::{FieldOwnership, ManagedFields, Ownership},
        rollback::{Rollback, RollbackState, Warning},
    },
    failpoint::{fail_during, fail_point},
    kubernetes::{ClusterError, FreshDaemonSet, Grant},
    telemetry::causes,
};

/// How often is looked for what others have left.
const PERIOD: Duration = Duration::from_secs(5);
/// Attempts that meet a write by others before it is put off.
const ATTEMPTS: usize = 12;
/// Wait after the first failure, and the longest one.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// What came of an attempt.
enum Return {
    /// With the paths that stay with rollbackd although they came back.
    Done(Vec<String>),
    /// The DaemonSet is gone: nothing is left to return.
    Gone,
    /// It never will be.
    Skipped(&'static str),
    Failed(String),
}

impl Rollbacks {
    /// Returns the ownership that is due, as it comes and for as long as rollbackd runs.
    pub async fn return_ownership(self) {
        let inner = &self.inner;
        loop {
            match inner.parts.store.take_returns().await {
                Ok(taken) if !taken.is_empty() => {
                    for pending in taken {
                        inner.return_one(pending).await;
                    }
                    continue;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(error = %causes(&error), "ownership to return can't be read; trying again");
                }
            }
            let _ = tokio::time::timeout(PERIOD, inner.returns.notified()).await;
        }
    }
}

impl Inner {
    /// Who owns the template of a DaemonSet, if its fields are returned and a manager applies it.
    pub(super) async fn ownership_of(&self, fresh: &FreshDaemonSet) -> Option<Ownership> {
        match self.parts.field_ownership {
            FieldOwnership::Keep => None,
            FieldOwnership::Return => {
                let pending = self.pending_return_of(fresh).await;
                let entries = pending.as_ref().unwrap_or(&fresh.managed_fields);
                Some(Ownership::of(entries)).filter(|ownership| !ownership.is_empty())
            }
        }
    }

    /// The managed fields of a DaemonSet as they will be when its last rollback has returned its fields: until then they
    /// belong to rollbackd only for the moment. `None` if nothing is to be returned.
    async fn pending_return_of(&self, fresh: &FreshDaemonSet) -> Option<ManagedFields> {
        let last: Uuid = fresh.daemonset.rollback_id()?.parse().ok()?;
        let store = &self.parts.store;
        let read =
            async { Ok::<_, StoreError>((store.rollback(last).await?, store.pending_return(last).await?)) };
        match read.await {
            Ok((Some(rollback), Some(ownership))) if is_unchanged(&rollback, fresh) => {
                ownership.returned(&fresh.managed_fields)
            }
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(rollback = %last, error = %causes(&error), "ownership to return can't be read; what it would return stays with rollbackd");
                None
            }
        }
    }

    async fn return_one(&self, pending: PendingReturn) {
        let id = pending.rollback;
        let done = match self.parts.store.rollback(id).await {
            Ok(Some(rollback)) => self.attempt_return(&rollback, &pending.ownership).await,
            Ok(None) => Return::Gone,
            Err(error) => Return::Failed(error.to_string()),
        };
        if let Err(error) = self.note_return(&pending, done).await {
            tracing::warn!(rollback = %id, error = %causes(&error), "what came of returning ownership is not on record; trying again");
        }
    }

    async fn note_return(&self, pending: &PendingReturn, done: Return) -> Result<(), StoreError> {
        let (id, attempts) = (pending.rollback, pending.attempts);
        let (store, metrics) = (&self.parts.store, &self.parts.metrics);
        match done {
            Return::Done(kept) => {
                metrics.ownership_return("returned");
                match Warning::of_kept_fields(&kept) {
                    None => store.returned(pending).await,
                    // A rollback that was settled has not warned of it yet.
                    Some(warning) => store.not_returned(pending, &warning, None).await,
                }
            }
            Return::Gone => store.returned(pending).await,
            Return::Skipped(why) => {
                metrics.ownership_return("skipped");
                tracing::warn!(rollback = %id, why, "the field ownership of the template is not returned");
                store.not_returned(pending, &Warning::of_unreturned_ownership(why), None).await
            }
            Return::Failed(why) => {
                metrics.ownership_return("failed");
                tracing::warn!(rollback = %id, why, "the field ownership of the template is not returned yet; trying again");
                let (first, longest) = RETRY;
                let wait = first.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(longest);
                store.not_returned(pending, &Warning::of_unreturned_ownership(&why), Some(wait)).await
            }
        }
    }

    async fn attempt_return(&self, rollback: &Rollback, ownership: &Ownership) -> Return {
        let grant = Grant::recorded(rollback);
        let mut waits = waits(Duration::from_millis(500)).take(ATTEMPTS);
        loop {
            let fresh = match self.parts.live.fresh(&rollback.key).await {
                Ok(fresh) => fresh,
                Err(ClusterError::NotFound) => return Return::Gone,
                Err(error) => return Return::Failed(error.to_string()),
            };
            if fresh.daemonset.uid != rollback.uid {
                return Return::Gone;
            }
            if !is_unchanged(rollback, &fresh) {
                return Return::Skipped("the DaemonSet was changed before they were returned");
            }
            let Some(entries) = ownership.returned(&fresh.managed_fields) else {
                return Return::Done(ownership.kept(&fresh.managed_fields));
            };
            fail_point!("ownership-read");
            let write = self.parts.live.write_managed_fields(&grant, &fresh.daemonset, &entries);
            let written = fail_during!("ownership-sent", write);
            fail_point!("ownership-answered");
            match written {
                Ok(now) if ownership.returned(&now).is_none() => {
                    return Return::Done(ownership.kept(&now));
                }
                Ok(_) => return Return::Failed("the API server ignored the write".to_owned()),
                Err(ClusterError::Conflict) => match waits.next() {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Return::Failed("gave up after repeated write conflicts".to_owned()),
                },
                Err(ClusterError::NotFound | ClusterError::Replaced) => return Return::Gone,
                Err(error) => return Return::Failed(error.to_string()),
            }
        }
    }
}

fn is_unchanged(rollback: &Rollback, fresh: &FreshDaemonSet) -> bool {
    let daemonset = &fresh.daemonset;
    // Of a patch that left the spec alone, the template that is live is another one than was sent.
    let skipped = rollback.state == RollbackState::Skipped;
    daemonset.generation == rollback.generation.unwrap_or(rollback.pinned_generation)
        && (skipped || daemonset.template.fingerprint() == rollback.template)
        && daemonset.rollback_id() == Some(&rollback.id.to_string())
}
