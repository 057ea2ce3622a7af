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
use uuid::Uuid;

use super::{
    Inner, Outcome, RollbackError, Stopped, Turn, answer_of_record,
    transaction::{Applied, without_effect},
    waits,
};
use crate::{
    audit::{Action, StoreError},
    domain::{
        daemonset::{DaemonSet, FIELD_MANAGER, FieldManager, ROLLBACK},
        revision::Revision,
        rollback::{Rollback, RollbackState},
    },
    failpoint::fail_point,
    kubernetes::{
        ClusterError, FreshDaemonSet, Grant,
        live::{Next, Restore},
        watch::{KnownHistory, KnownRevision},
    },
    telemetry::causes,
};

/// What was found out.
enum Verdict {
    Applied(Arc<DaemonSet>),
    /// Carried out, and the spec stayed as it was.
    WithoutEffect,
    NotApplied,
    /// It did not change the spec and never will; whether it was carried out is not known.
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
            match recorded {
                Ok(()) => {}
                Err(StoreError::Moved { .. }) => {
                    return self.taken_over(&rollback).await.answer(Err(RollbackError::TakenOver));
                }
                // The record still says `requested`, from which it is settled all the same.
                Err(_) => rollback.state = before,
            }
            let settling = self.clone().settle_and_follow(rollback.clone(), grant, Some(turn));
            self.parts.tasks.spawn(settling.in_current_span());
            return Ok(Outcome::Made(rollback));
        };
        rollback.message = lost.to_string();
        let error = match &verdict {
            Verdict::Applied(_) | Verdict::WithoutEffect => None,
            Verdict::NotApplied | Verdict::Unchanged => Some(lost.into()),
            Verdict::Deleted => Some(RollbackError::Deleted),
            Verdict::Undecidable => Some(RollbackError::Undecidable),
        };
        let (step, message) = step(&mut rollback, verdict);
        let on_record = self.conclude(&mut rollback, step, message, turn).await;
        on_record.answer(error.map_or_else(|| answer_of_record(rollback), Err))
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
        let fresh = match live.fresh(&rollback.key).await {
            Err(ClusterError::NotFound) => return Ok(Verdict::Deleted),
            other => other?,
        };
        let daemonset = fresh.daemonset.clone();
        if daemonset.uid != rollback.uid {
            return Ok(Verdict::Deleted);
        }
        let marked = |daemonset: &DaemonSet| daemonset.rollback_id() == Some(&id);
        if marked(&daemonset) && daemonset.generation == rollback.pinned_generation {
            return Ok(Verdict::WithoutEffect);
        }
        let history = live.known_history(&daemonset).await?;
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
            Next::Forgotten => self.decide_without_versions(rollback, grant, &fresh, &history).await?,
        })
    }

    /// Decides by what is left where the id is nowhere and the API server has forgotten the versions in between.
    async fn decide_without_versions(
        &self,
        rollback: &Rollback,
        grant: &Grant,
        fresh: &FreshDaemonSet,
        history: &KnownHistory,
    ) -> Result<Verdict, ClusterError> {
        let daemonset = &fresh.daemonset;
        if daemonset.generation == rollback.pinned_generation {
            return Ok(Verdict::Unchanged);
        }
        if keeps_earlier_id(rollback, fresh) || changed_before_the_patch(rollback, history) {
            return Ok(Verdict::NotApplied);
        }
        if daemonset.generation != rollback.pinned_generation + 1 {
            return Ok(Verdict::Undecidable);
        }
        if changed_by_others(daemonset) {
            return Ok(Verdict::Unchanged);
        }
        // A patch that changed the spec made the template that is live now.
        let sent = |revision: &&Arc<KnownRevision>| {
            revision.template.as_ref().is_ok_and(|template| template.fingerprint() == rollback.template)
        };
        let Some(target) = history.revisions().iter().find(sent) else { return Ok(Verdict::Undecidable) };
        let read = self.parts.live.revision(&rollback.key, &target.controller_revision).await;
        let template = match read {
            Ok(Revision { uid, template: Ok(template), .. }) if uid == target.uid => template,
            Ok(_) | Err(ClusterError::NotFound) => return Ok(Verdict::Undecidable),
            Err(error) => return Err(error),
        };
        let restore = Restore { daemonset, template: &template, last_applied: None, rollback: rollback.id };
        match self.parts.live.try_restore(grant, restore).await {
            Ok(made) if made.daemonset.template != daemonset.template => Ok(Verdict::Unchanged),
            Ok(_) | Err(ClusterError::Refused { .. } | ClusterError::Forbidden { .. }) => {
                Ok(Verdict::Undecidable)
            }
            Err(error) => Err(error),
        }
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
            let message = format!("{}; the patch did not change the DaemonSet's spec", rollback.message);
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
    let applied = Applied::note(rollback, daemonset, None);
    let made = rollback.pinned_generation + 1;
    if daemonset.generation == made {
        return applied;
    }
    rollback.generation = Some(made);
    rollback.template = planned;
    Applied { message: "rolled back".into(), ..applied }
}

/// Whether the id that the DaemonSet carried at the pinned version is still there, as rollbackd wrote it: the patch
/// would have replaced it, and a manager that writes it back takes the field over.
fn keeps_earlier_id(rollback: &Rollback, fresh: &FreshDaemonSet) -> bool {
    let stands = |earlier: Uuid| fresh.daemonset.rollback_id() == Some(&earlier.to_string());
    rollback.pinned_rollback.is_some_and(stands) && fresh.managed_fields.own_annotation(ROLLBACK)
}

/// Whether a ControllerRevision shows that the template was changed before the patch came, which then met a conflict:
/// it was created after the plan, of another template than the one that ran, while the DaemonSet still carried the
/// id of the rollback before. The controller copies annotations to revisions that it creates.
fn changed_before_the_patch(rollback: &Rollback, history: &KnownHistory) -> bool {
    let (Some(earlier), Some(newest), Some(from)) =
        (rollback.pinned_rollback, rollback.newest_revision_at, &rollback.from)
    else {
        return false;
    };
    history.revisions().iter().any(|revision| {
        revision.created_at > Some(newest)
            && revision.controller_revision != from.controller_revision
            && revision.rollback.as_ref() == Some(&earlier.to_string())
    })
}

/// Whether the one change of the spec since the pinned version was made by others, as the field managers show: the
/// patch would have made rollbackd an owner of the template, and no manager can have taken its fields over without changing
/// the spec a second time.
fn changed_by_others(daemonset: &DaemonSet) -> bool {
    let owns = |manager: &&FieldManager| manager.owns_template == Some(true);
    let mut owners = daemonset.field_managers.iter().filter(owns).peekable();
    owners.peek().is_some() && owners.all(|manager| manager.name != FIELD_MANAGER)
}
