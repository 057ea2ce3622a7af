//! A patch whose answer was lost: was it carried out, and can it still be?
//!
//! *Applied* is proved by the rollback's id, which travels in the same patch as the template: on the
//! DaemonSet, or on a ControllerRevision, to which the controller copies annotations. Nothing else proves
//! it: somebody's `kubectl rollout undo` makes the same template, and an earlier rollback leaves our name
//! among the field managers. *Not applied* must be made certain: a frozen API server can carry out a
//! patch long after it was sent. The patch was pinned to a resource version, so once that version is gone
//! it meets a conflict; while it is still there, a write of ours moves it on. Where the DaemonSet has been
//! written to since and the id is not there, somebody may have taken it away. Then the watch tells: the
//! patch was the first write after its pinned version, or it never was and never will be. A patch that has an
//! effect makes the generation after the pinned one, so that at the pinned one the spec is as it was.

use std::{sync::Arc, time::Duration};

use tracing::Instrument;

use super::{
    Inner, Outcome, RollbackError, Stopped, Turn,
    transaction::{Applied, without_effect},
    waits,
};
use crate::{
    audit::Action,
    domain::{
        daemonset::{DaemonSet, FIELD_MANAGER},
        rollback::{Rollback, RollbackState},
    },
    failpoint::fail_point,
    kubernetes::{ClusterError, Grant, live::Next},
    telemetry::causes,
};

/// What was found out.
enum Verdict {
    Applied(Arc<DaemonSet>),
    /// Carried out, and the spec stayed as it was.
    WithoutEffect,
    NotApplied,
    /// The spec is as it was, and nothing is left that could change it.
    Unchanged,
    Deleted,
    Undecidable,
}

/// What to record, and the sentence that goes with it.
type Step = ((RollbackState, Action), String);

impl Inner {
    /// Settles a lost patch while the caller waits; if that takes too long, the caller is told that
    /// it is unsettled and the settling goes on.
    pub(super) async fn settle_for_caller(
        self: &Arc<Self>,
        mut rollback: Rollback,
        grant: Grant,
        turn: Turn,
        lost: ClusterError,
    ) -> Result<Outcome, RollbackError> {
        let looking = self.verdict(&rollback, &grant);
        let verdict = tokio::time::timeout(self.parts.patience.settling, looking).await;
        let Ok(Ok(verdict)) = verdict else {
            let before = self.step(&mut rollback, RollbackState::Unsettled, lost.to_string());
            let recorded = self.record(before, &rollback, Action::Unsettled).await;
            fail_point!("unsettled-recorded");
            if recorded.is_err() {
                // The record still says `requested`, from which it is settled all the same.
                rollback.state = before;
            }
            let settling = self.clone().settle_and_follow(rollback.clone(), grant, Some(turn));
            self.parts.tasks.spawn(settling.in_current_span());
            return Ok(Outcome::Made(rollback));
        };
        rollback.message = lost.to_string();
        let told = match &verdict {
            Verdict::Applied(_) | Verdict::WithoutEffect => None,
            Verdict::NotApplied | Verdict::Unchanged => Some(lost.into()),
            Verdict::Deleted => Some(RollbackError::Deleted),
            Verdict::Undecidable => Some(RollbackError::Undecidable),
        };
        let (step, message) = step(&mut rollback, verdict);
        self.conclude(&mut rollback, step, message, turn).await;
        match told {
            Some(error) => Err(error),
            None if rollback.state == RollbackState::Skipped => {
                let number = rollback.to.revision;
                Ok(Outcome::Skipped { rollback, number })
            }
            None => Ok(Outcome::Made(rollback)),
        }
    }

    /// Settles a lost patch, however long that takes, and follows the rollout if it was applied.
    pub(super) async fn settle_and_follow(
        self: Arc<Self>,
        mut rollback: Rollback,
        grant: Grant,
        turn: Option<Turn>,
    ) {
        let Ok(verdict) = self.verdict(&rollback, &grant).await else { return };
        let (step, message) = step(&mut rollback, verdict);
        fail_point!("settling");
        let advanced = self.advance(&mut rollback, step, message).await;
        fail_point!("settled");
        drop(turn);
        if advanced.is_ok() {
            self.follow(rollback).await;
        }
    }

    async fn verdict(&self, rollback: &Rollback, grant: &Grant) -> Result<Verdict, Stopped> {
        let mut waits = waits(Duration::from_secs(5));
        loop {
            match self.look(rollback, grant).await {
                Ok(verdict) => return Ok(verdict),
                Err(error) => {
                    let id = rollback.id;
                    tracing::warn!(rollback = %id, error = %causes(&error), "a rollback can't be settled yet; trying again");
                }
            }
            let wait = tokio::time::sleep(waits.next().unwrap_or_default());
            self.parts.stop.run_until_cancelled(wait).await.ok_or(Stopped)?;
        }
    }

    async fn look(&self, rollback: &Rollback, grant: &Grant) -> Result<Verdict, ClusterError> {
        let live = &self.parts.live;
        let id = rollback.id.to_string();
        let daemonset = match live.daemonset(&rollback.key).await {
            Err(ClusterError::NotFound) => return Ok(Verdict::Deleted),
            other => other?,
        };
        if daemonset.uid != rollback.uid {
            return Ok(Verdict::Deleted);
        }
        let marked = |daemonset: &DaemonSet| daemonset.rollback_id() == Some(&id);
        if marked(&daemonset) && daemonset.generation == rollback.pinned_generation {
            return Ok(Verdict::WithoutEffect);
        }
        let history = live.history(&daemonset).await?;
        let recorded = history.revisions().iter().any(|revision| revision.rollback.as_ref() == Some(&id));
        let proved = recorded || marked(&daemonset);
        if proved && daemonset.template.fingerprint() == rollback.template {
            return Ok(Verdict::Applied(daemonset));
        }
        if !proved && rollback.pinned_to.as_ref() == Some(&daemonset.resource_version) {
            fail_point!("settling-looked");
            // A conflict means that the version has moved on by itself: by the patch, perhaps.
            live.outdate(grant, &daemonset, rollback.id).await?;
            fail_point!("settling-outdated");
            return Ok(Verdict::NotApplied);
        }
        // It has been written to since: after the patch, which may have changed nothing and whose id somebody may
        // have taken away, or without it.
        let next = match &rollback.pinned_to {
            Some(pinned_to) => live.after(&rollback.key, pinned_to).await?,
            None => Next::Forgotten,
        };
        Ok(match next {
            Next::Version(next) if marked(&next) && next.generation == rollback.pinned_generation => {
                Verdict::WithoutEffect
            }
            Next::Version(next) if marked(&next) => Verdict::Applied(next),
            _ if proved => Verdict::Applied(daemonset),
            Next::Version(_) => Verdict::NotApplied,
            Next::Forgotten if daemonset.generation == rollback.pinned_generation => Verdict::Unchanged,
            Next::Forgotten if changed_by_others(rollback, &daemonset) => Verdict::NotApplied,
            Next::Forgotten => Verdict::Undecidable,
        })
    }
}

/// What a verdict does to the record.
fn step(rollback: &mut Rollback, verdict: Verdict) -> Step {
    match verdict {
        Verdict::Applied(daemonset) => {
            let applied = read_back(rollback, &daemonset);
            ((applied.state, Action::Applied), applied.message)
        }
        Verdict::WithoutEffect => {
            ((RollbackState::Skipped, Action::Skipped), without_effect(rollback.to.revision))
        }
        Verdict::NotApplied => {
            let message = format!("{}; the patch was not carried out", rollback.message);
            ((RollbackState::Abandoned, Action::Failed), message)
        }
        Verdict::Unchanged => {
            let message = format!("{}; the DaemonSet's spec was not changed", rollback.message);
            ((RollbackState::Abandoned, Action::Failed), message)
        }
        Verdict::Deleted => {
            ((RollbackState::Deleted, Action::Deleted), "the DaemonSet was deleted".to_owned())
        }
        Verdict::Undecidable => {
            let message = format!("{}; the changes after it have left no proof either way", rollback.message);
            ((RollbackState::Unknown, Action::Failed), message)
        }
    }
}

/// Notes what the patch made, from the DaemonSet as it is now. If somebody has changed the spec since,
/// the record keeps the planned template, and the follower sees whether it is still the live one.
fn read_back(rollback: &mut Rollback, daemonset: &DaemonSet) -> Applied {
    let planned = rollback.template;
    let applied = Applied::note(rollback, daemonset);
    let made = rollback.pinned_generation + 1;
    if daemonset.generation == made {
        return applied;
    }
    rollback.generation = Some(made);
    rollback.template = planned;
    Applied { message: "rolled back".into(), ..applied }
}

/// Whether the one change of the spec since the pinned version was somebody else's, as far as the
/// DaemonSet itself can prove it: the patch would have left an id that is not there, or our name on the
/// template, after which nobody can have written to it without changing the spec a second time.
fn changed_by_others(rollback: &Rollback, daemonset: &DaemonSet) -> bool {
    let only_one = daemonset.generation == rollback.pinned_generation + 1;
    let writers = || daemonset.field_managers.iter().filter(|manager| manager.owns_template != Some(false));
    let ours = writers().find(|manager| manager.name == FIELD_MANAGER);
    let written_since = ours.is_none_or(|ours| writers().any(|manager| manager.time > ours.time));
    only_one && (daemonset.rollback_id().is_some() || written_since)
}
