//! The rollout after the patch, to its end.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;

use super::{Inner, Stopped, now};
use crate::{
    audit::Action,
    domain::{
        daemonset::WatchedDaemonSet,
        rollback::{Rollback, RollbackState, relabelled},
        rollout::Phase,
        text::to_the_second,
    },
    failpoint::fail_point,
    kubernetes::{
        ClusterError, Frame, FrameEvent,
        rollouts::Listener,
        watch::{KnownHistory, KnownRevision},
    },
};

/// For how long the watch may not show a DaemonSet before the API server is asked.
const UNSEEN: Duration = Duration::from_secs(5);

/// What to record, and the sentence that goes with it.
type Step = ((RollbackState, Action), String);

fn deleted() -> Step {
    ((RollbackState::Deleted, Action::Deleted), "the DaemonSet was deleted".to_owned())
}

impl Inner {
    /// Follows a rollback until it ends or rollbackd stops; who starts next takes it up again.
    pub(super) async fn follow(self: Arc<Self>, rollback: Rollback) {
        if !rollback.state.is_final() {
            let stop = self.parts.stop.clone();
            let _ = stop.run_until_cancelled(self.follow_to_end(rollback)).await;
        }
    }

    async fn follow_to_end(&self, mut rollback: Rollback) -> Result<(), Stopped> {
        let rollouts = self.parts.cache.index();
        let Listener { snapshot, mut ring } = rollouts.listen(&rollback.key);
        let mut seen = snapshot;
        // How far a stalled rollout has got. What an earlier process found stalled is so until it moves.
        let mut standstill: Option<u64> = None;
        loop {
            let step = match seen.take().filter(|frame| frame.daemonset.uid == rollback.uid) {
                Some(frame) => {
                    if rollback.state != RollbackState::Stalled {
                        standstill = None;
                    }
                    let moves = frame.steps > *standstill.get_or_insert(frame.steps);
                    self.judge(&mut rollback, &frame, moves).await
                }
                None => self.look_for(&mut rollback).await,
            };
            if let Some((step, message)) = step {
                fail_point!("follow-before-record");
                self.advance(&mut rollback, step, message).await?;
                fail_point!("follow-recorded");
            }
            if rollback.state.is_final() {
                return Ok(());
            }
            seen = match tokio::time::timeout(UNSEEN, ring.recv()).await {
                Ok(Ok(frame)) => Some(frame),
                Ok(Err(RecvError::Lagged(_) | RecvError::Closed)) | Err(_) => rollouts.latest(&rollback.key),
            };
        }
    }

    /// Asks the API server for a DaemonSet that the watch does not show, or shows under another uid:
    /// the watch may lag either way.
    async fn look_for(&self, rollback: &mut Rollback) -> Option<Step> {
        match self.parts.live.daemonset(&rollback.key).await {
            Ok(daemonset) if daemonset.uid == rollback.uid => {
                self.judge(
                    rollback,
                    &Frame::fresh(Arc::unwrap_or_clone(daemonset).watched().into(), now()),
                    false,
                )
                .await
            }
            Ok(_) | Err(ClusterError::NotFound) => Some(deleted()),
            Err(_) => None,
        }
    }

    /// What a frame means for a rollback; `None` if nothing new. `moves` says whether a stalled rollout
    /// has left the place where it stood still.
    async fn judge(&self, rollback: &mut Rollback, frame: &Frame, moves: bool) -> Option<Step> {
        let daemonset = &frame.daemonset;
        if frame.event == FrameEvent::Deleted {
            return Some(deleted());
        }
        if Some(daemonset.generation) < rollback.generation {
            return None;
        }
        if daemonset.template.fingerprint() != rollback.template {
            let message = self.superseded_by(daemonset, rollback).await;
            return Some(((RollbackState::Superseded, Action::Superseded), message));
        }
        if frame.rollout.phase == Phase::Complete {
            return self.judge_complete(rollback, frame).await;
        }
        match (rollback.state, frame.stalled_since) {
            (RollbackState::Progressing, Some(since)) => {
                let since = to_the_second(since);
                let message = format!("no progress since {since}: {}", frame.rollout.message);
                Some(((RollbackState::Stalled, Action::Stalled), message))
            }
            (RollbackState::Stalled, None) if moves && rollback.duplicates.is_empty() => {
                Some(((RollbackState::Progressing, Action::Resumed), frame.rollout.message.clone()))
            }
            _ => None,
        }
    }

    /// What it means that all pods count as updated and available. Where the controller has found two revisions with
    /// the same bytes it may have relabelled pods of another template, and nothing tells when they have been
    /// replaced.
    async fn judge_complete(&self, rollback: &mut Rollback, frame: &Frame) -> Option<Step> {
        if rollback.duplicates.is_empty() {
            let history = self.history_at_the_end(&frame.daemonset).await;
            rollback.duplicates = self.duplicates(rollback, &history);
            if rollback.duplicates.is_empty() {
                rollback.new_revision = history.current().map(|revision| revision.number);
                return Some(((RollbackState::Succeeded, Action::Completed), frame.rollout.message.clone()));
            }
        }
        let message = relabelled(&rollback.key, &rollback.duplicates);
        match rollback.state {
            RollbackState::Stalled if rollback.message == message => None,
            // It has stood still for another reason, and has not since. The cause is recorded at the next look.
            RollbackState::Stalled => {
                Some(((RollbackState::Progressing, Action::Resumed), frame.rollout.message.clone()))
            }
            _ => Some(((RollbackState::Stalled, Action::Stalled), message)),
        }
    }

    /// The revisions, read fresh, or, if that fails, as the watch shows them.
    async fn history_at_the_end(&self, daemonset: &WatchedDaemonSet) -> Arc<KnownHistory> {
        match self.parts.live.known_history(daemonset).await {
            Ok(history) => history.into(),
            Err(_) => self.parts.cache.index().history(daemonset).unwrap_or_default(),
        }
    }

    /// Names revisions that have been one to the controller since the rollback was asked for.
    fn duplicates(&self, rollback: &Rollback, history: &KnownHistory) -> Vec<String> {
        let asked = rollback.id.get_timestamp().map_or((0, 0), |time| time.to_unix());
        let asked = i64::try_from(asked.0)
            .ok()
            .and_then(|second| Timestamp::new(second, i32::try_from(asked.1).unwrap_or_default()).ok());
        let asked = asked.unwrap_or(rollback.requested_at);
        let mut names = self.parts.cache.duplicates(&rollback.uid, rollback.template, asked);
        let is_current =
            |group: &&Vec<&KnownRevision>| group.iter().any(|revision| history.is_current(revision));
        let listed = history.duplicates();
        let listed = listed.iter().filter(is_current).flatten();
        names.extend(listed.map(|revision| revision.controller_revision.clone()));
        names.into_iter().collect()
    }

    /// Says who changed the template: another rollback, if the template is the one it wrote, else
    /// whoever has written since.
    async fn superseded_by(&self, daemonset: &WatchedDaemonSet, rollback: &Rollback) -> String {
        let newer = daemonset.rollback_id().and_then(|id| id.parse().ok()).filter(|id| *id != rollback.id);
        let recorded = match newer {
            Some(id) => self.parts.store.rollback(id).await.ok().flatten(),
            None => None,
        };
        let wrote_it = recorded.is_some_and(|newer| newer.template == daemonset.template.fingerprint());
        match (newer, daemonset.later_writer()) {
            (Some(id), _) if wrote_it => format!("superseded by rollback {id}"),
            (_, Some(manager)) => format!("superseded: {} changed the pod template", manager.name),
            (Some(id), None) => format!("superseded by rollback {id}"),
            (None, None) => "superseded: the pod template was changed".to_owned(),
        }
    }
}
