//! Plan, record, patch.

use std::{fmt::Display, sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use super::{Inner, Outcome, Preview, RollbackError, Turn, now, waits};
use crate::{
    audit::{Action, Entry, NewKey, Outcome as EntryOutcome, StoreError},
    domain::{
        admitted::Admitted,
        bookkeeping::{ManagedFields, Ownership},
        daemonset::{DaemonSet, UpdateStrategy},
        diff::TemplateDiff,
        key::Key,
        kubectl,
        revision::{History, Revision, RevisionNumber},
        rollback::{
            Decision, Duplicates, Mode, OnWarning, Origin, Plan, Refusal, RevisionInfo, Rollback,
            RollbackRequest, RollbackState, Warning, WarningCode, plan,
        },
        template::Template,
    },
    failpoint::{fail_during, fail_point},
    kubernetes::{
        ClusterError, Delivery, FreshDaemonSet, Grant,
        live::{Restore, Restored},
    },
    telemetry::causes,
};

/// Longest wait between two attempts to patch.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// How one attempt to patch ended.
enum Attempt {
    Applied(Restored),
    /// Somebody else wrote in between.
    Conflict,
    /// The answer was lost.
    Lost(ClusterError),
    /// Certainly not carried out.
    Failed(RollbackError),
}

impl Inner {
    pub(super) async fn transact(
        self: Arc<Self>,
        id: Uuid,
        grant: Grant,
        origin: Origin,
        request: RollbackRequest,
        idempotency: Option<&NewKey>,
    ) -> Result<Outcome, RollbackError> {
        let key = grant.key().clone();
        // A dry run writes nothing, so it needs no turn.
        let turn = match request.mode {
            Mode::DryRun => None,
            Mode::Apply => match self.take_turn(&key, id) {
                Ok(turn) => Some(turn),
                Err(busy) => {
                    let entry = Entry::of_request(
                        (Action::Refused, EntryOutcome::Refused),
                        &key,
                        &origin,
                        self.parts.cluster.clone(),
                        request.mode,
                        busy.to_string(),
                        now(),
                    );
                    // Whose turn it is may be waiting for the store, too: that can be for long.
                    return Err(self.record_harmless(entry).await.err().map_or(busy, RollbackError::Store));
                }
            },
        };
        let (fresh, decision) = match self.decide(id, &grant, &request).await {
            Err(RollbackError::Refused(refusal)) => {
                self.record_refusal(&key, &origin, request.mode, &refusal).await;
                return Err(refusal.into());
            }
            other => other?,
        };
        let daemonset = &fresh.daemonset;
        match (decision, turn) {
            (Decision::Skip { current, number }, None) => {
                self.preview_skip(id, daemonset, current, number, origin).await
            }
            (Decision::Restore(mut plan), None) => {
                let tried = self.try_out(id, &grant, fresh, &mut plan, &request, &origin).await;
                let (fresh, patched) = tried?;
                self.preview(id, fresh.daemonset, &patched, *plan, &origin).await
            }
            (Decision::Skip { current, number }, Some(_turn)) => {
                let mut rollback =
                    new_rollback(id, daemonset, Some(current.clone()), current, &daemonset.template, origin);
                rollback.state = RollbackState::Skipped;
                rollback.ended_at = Some(rollback.requested_at);
                rollback.message = kubectl::skipped(number.0);
                self.begin(&rollback, Action::Skipped, idempotency).await?;
                self.announce(&rollback);
                Ok(Outcome::Skipped { rollback, number })
            }
            (Decision::Restore(mut plan), Some(turn)) => {
                let fresh = match &request.on_warning {
                    OnWarning::Proceed => fresh,
                    // What the API server warns of it says only when it is asked.
                    OnWarning::Refuse { .. } => {
                        self.try_out(id, &grant, fresh, &mut plan, &request, &origin).await?.0
                    }
                };
                let (from, to) = (plan.from.clone(), plan.to.clone());
                let mut rollback = new_rollback(id, &fresh.daemonset, from, to, &plan.template, origin);
                rollback.warnings.clone_from(&plan.warnings);
                rollback.newest_revision_at = plan.newest_revision_at;
                self.pin(&mut rollback, &fresh).await;
                fail_point!("planned");
                self.begin(&rollback, Action::Requested, idempotency).await?;
                fail_point!("recorded");
                self.announce(&rollback);
                self.parts.events.tell(&rollback, rollback.requested_at);
                self.make(grant, fresh, &plan, rollback, turn).await
            }
        }
    }

    /// Reads and plans. While the controller has not recorded the live template, or the watch has not
    /// shown where the target comes from, waits for it.
    async fn decide(
        &self,
        id: Uuid,
        grant: &Grant,
        request: &RollbackRequest,
    ) -> Result<(FreshDaemonSet, Decision), RollbackError> {
        let deadline = Instant::now() + self.parts.patience.recording;
        let mut waits = waits(Duration::from_millis(800));
        loop {
            let fresh = self.parts.live.fresh(grant.key()).await?;
            let daemonset = &fresh.daemonset;
            let read = self.parts.live.history(daemonset).await?;
            let history = &read.history;
            let wait = waits.next().unwrap_or_default();
            let standing = |revision: &Revision| self.parts.cache.standing(daemonset, revision);
            let ownership = self.parts.field_ownership;
            match plan(daemonset, history, request, grant.power(), ownership, standing) {
                Err(refusal) if refusal.may_pass() && Instant::now() + wait < deadline => {
                    tokio::time::sleep(wait).await
                }
                decision => {
                    let decision = decision?;
                    if let Decision::Restore(plan) = &decision {
                        match self.find_duplicates(id, grant, daemonset, history, plan).await {
                            Ok(None) => {}
                            Ok(Some(duplicates)) => return Err(Refusal::DuplicateRevision(duplicates).into()),
                            Err(ClusterError::Conflict) if Instant::now() + wait < deadline => {
                                tokio::time::sleep(wait).await;
                                continue;
                            }
                            Err(ClusterError::Conflict) => return Err(RollbackError::Contended),
                            Err(error) => return Err(error.into()),
                        }
                    }
                    return Ok((fresh, decision));
                }
            }
        }
    }

    /// Finds revisions that would be one to the controller after this rollback. Only if there are any with the same
    /// bytes at all, the API server is asked which bytes the restored template would have.
    async fn find_duplicates(
        &self,
        id: Uuid,
        grant: &Grant,
        daemonset: &DaemonSet,
        history: &History,
        plan: &Plan,
    ) -> Result<Option<Duplicates>, ClusterError> {
        let groups = history.duplicates();
        if groups.is_empty() {
            return Ok(None);
        }
        let restore = Restore { daemonset, template: &plan.template, last_applied: None, rollback: id };
        let recorded = match self.parts.live.try_record(grant, restore).await {
            Ok(data) => Some(data),
            // Admission that answers no dry run, or no rollback: the patch will tell.
            Err(ClusterError::Refused { .. } | ClusterError::Forbidden { .. }) => None,
            Err(error) => return Err(error),
        };
        let is_recorded = |group: &&Vec<&Revision>| match recorded {
            Some(_) => group[0].data == recorded,
            None => group[0].template.as_ref() == Ok(&plan.template),
        };
        Ok(groups.iter().find(is_recorded).map(|group| Duplicates::of(daemonset, group)))
    }

    /// Sends the patch until it is decided, then starts to follow the rollout.
    async fn make(
        self: Arc<Self>,
        grant: Grant,
        mut fresh: FreshDaemonSet,
        plan: &Plan,
        mut rollback: Rollback,
        turn: Turn,
    ) -> Result<Outcome, RollbackError> {
        let mut waits = waits(LONGEST_WAIT);
        let deadline = Instant::now() + self.parts.patience.patching;
        for attempt in 1.. {
            let daemonset = &fresh.daemonset;
            match self.attempt(&grant, daemonset, plan, &mut rollback).await {
                Attempt::Applied(Restored { daemonset: patched, .. })
                    if patched.generation == daemonset.generation =>
                {
                    let number = rollback.to.revision;
                    let end = (RollbackState::Skipped, Action::Skipped);
                    let on_record = self.conclude(&mut rollback, end, without_effect(number), turn).await;
                    return on_record.answer(Ok(Outcome::Skipped { rollback, number }));
                }
                Attempt::Applied(Restored { daemonset: patched, managed_fields, warnings }) => {
                    fail_point!("patch-answered");
                    add_warnings(
                        &mut rollback.warnings,
                        &warnings,
                        rollback.ownership.as_ref(),
                        &managed_fields,
                    );
                    let applied = Applied::note(&mut rollback, &patched, Some(&plan.template));
                    let step = (applied.state, Action::Applied);
                    let on_record = self.conclude(&mut rollback, step, applied.message, turn).await;
                    fail_point!("applied-recorded");
                    return on_record.answer(Ok(Outcome::Made(rollback)));
                }
                Attempt::Conflict => {
                    // What is read is patched at once: a wait after the read would only let the next
                    // status write in.
                    tokio::time::sleep(waits.next().unwrap_or_default()).await;
                    let read = match self.read_again(&daemonset.key).await {
                        Ok(read) => read,
                        Err(error) => return self.fail(rollback, error, turn).await,
                    };
                    if read.daemonset.rollback_id() == Some(&rollback.id.to_string()) {
                        // A proxy sent the patch twice, and the conflict is the second one's.
                        return self.settle_for_caller(rollback, grant, turn, ClusterError::Conflict).await;
                    }
                    if let Err(error) = still_holds(plan, daemonset, &read.daemonset) {
                        return self.fail(rollback, error, turn).await;
                    }
                    if attempt >= self.parts.patience.attempts || Instant::now() > deadline {
                        return self.fail(rollback, RollbackError::Contended, turn).await;
                    }
                    fresh = read;
                    self.pin(&mut rollback, &fresh).await;
                    match self.parts.store.advance(rollback.state, &rollback, None).await {
                        Ok(()) => {}
                        Err(StoreError::Moved { .. }) => {
                            return self.taken_over(&rollback).await.answer(Err(RollbackError::TakenOver));
                        }
                        Err(error) => return self.fail(rollback, error.into(), turn).await,
                    }
                    fail_point!("pinned-again");
                }
                Attempt::Lost(error) => {
                    tracing::warn!(rollback = %rollback.id, error = %causes(&error), "the answer to a patch was lost; finding out whether it was applied");
                    return self.settle_for_caller(rollback, grant, turn, error).await;
                }
                Attempt::Failed(error) => return self.fail(rollback, error, turn).await,
            }
        }
        unreachable!("the range has no end")
    }

    async fn attempt(
        &self,
        grant: &Grant,
        daemonset: &DaemonSet,
        plan: &Plan,
        rollback: &mut Rollback,
    ) -> Attempt {
        let (id, warnings) = (rollback.id, &mut rollback.warnings);
        let error = match self.patch(grant, daemonset, plan, (id, Mode::Apply), warnings).await {
            Ok(patched) => return Attempt::Applied(patched),
            Err(error) => error,
        };
        match error {
            ClusterError::Conflict => Attempt::Conflict,
            ClusterError::Unavailable { delivery: Delivery::Unknown, .. } => Attempt::Lost(error),
            error => Attempt::Failed(self.explain(grant.key(), plan, error).await),
        }
    }

    /// Sends the patch with last-applied, and without it if it is refused: bookkeeping never makes a rollback fail. An
    /// admission policy may let last-applied change only together with the template, which defaulting can leave as it
    /// is.
    async fn patch(
        &self,
        grant: &Grant,
        daemonset: &DaemonSet,
        plan: &Plan,
        (rollback, mode): (Uuid, Mode),
        warnings: &mut Vec<Warning>,
    ) -> Result<Restored, ClusterError> {
        let last_applied = plan.last_applied(daemonset);
        let restore = |last_applied| Restore { daemonset, template: &plan.template, last_applied, rollback };
        match self.send(grant, restore(last_applied.as_deref()), mode).await {
            Err(ClusterError::Refused { .. } | ClusterError::Forbidden { .. }) if last_applied.is_some() => {
                let patched = self.send(grant, restore(None), mode).await?;
                warnings.retain(|warning| warning.code != WarningCode::LastApplied);
                warnings.push(Warning::of_refused_last_applied(plan.to.revision));
                Ok(patched)
            }
            patched => patched,
        }
    }

    async fn send(&self, grant: &Grant, restore: Restore<'_>, mode: Mode) -> Result<Restored, ClusterError> {
        match mode {
            Mode::Apply => fail_during!("patch-sent", self.parts.live.restore(grant, restore)),
            Mode::DryRun => self.parts.live.try_restore(grant, restore).await,
        }
    }

    /// Notes what the next patch is pinned to.
    async fn pin(&self, rollback: &mut Rollback, fresh: &FreshDaemonSet) {
        let daemonset = &fresh.daemonset;
        rollback.pinned_to = Some(daemonset.resource_version.clone());
        rollback.pinned_rollback = daemonset.rollback_id().and_then(|id| id.parse().ok());
        rollback.ownership = self.ownership_of(fresh).await;
        if rollback.pinned_generation != daemonset.generation {
            rollback.pinned_generation = daemonset.generation;
            // Templates may have come and gone since the history was read.
            rollback.newest_revision_at = None;
        }
    }

    /// Reads what a conflict was about.
    async fn read_again(&self, key: &Key) -> Result<FreshDaemonSet, RollbackError> {
        self.parts.live.fresh(key).await.map_err(|error| match error {
            ClusterError::NotFound => RollbackError::Deleted,
            error => error.into(),
        })
    }

    /// Tells a refusal by admission, which is the caller's affair, from a missing right of
    /// rollbackd's own account, which is not.
    async fn explain(&self, key: &Key, plan: &Plan, error: ClusterError) -> RollbackError {
        let refused = |message| RollbackError::RefusedByServer { revision: plan.to.revision, message };
        match error {
            ClusterError::Refused { message } => refused(message),
            ClusterError::NotFound => RollbackError::Deleted,
            ClusterError::Replaced => RollbackError::Replaced,
            ClusterError::Forbidden { message } => match self.parts.live.may_patch(key).await {
                Ok(true) => refused(message),
                Ok(false) | Err(_) => ClusterError::Forbidden { message }.into(),
            },
            error => error.into(),
        }
    }

    pub(super) async fn fail(
        self: &Arc<Self>,
        mut rollback: Rollback,
        error: RollbackError,
        turn: Turn,
    ) -> Result<Outcome, RollbackError> {
        let end = (RollbackState::Failed, Action::Failed);
        fail_point!("failing");
        self.conclude(&mut rollback, end, error.to_string(), turn).await.answer(Err(error))
    }

    /// Asks the API server what a rollback would do, and adds what it warns of to the plan. Returns what it was asked
    /// of, and what that would become.
    async fn try_out(
        self: &Arc<Self>,
        id: Uuid,
        grant: &Grant,
        mut fresh: FreshDaemonSet,
        plan: &mut Plan,
        request: &RollbackRequest,
        origin: &Origin,
    ) -> Result<(FreshDaemonSet, Arc<DaemonSet>), RollbackError> {
        let mut waits = waits(LONGEST_WAIT).take(self.parts.patience.attempts - 1);
        let refusal = loop {
            let daemonset = &fresh.daemonset;
            let mut warned = std::mem::take(&mut plan.warnings);
            let tried = self.patch(grant, daemonset, plan, (id, Mode::DryRun), &mut warned).await;
            plan.warnings = warned;
            match tried {
                Ok(Restored { daemonset: patched, managed_fields, warnings }) => {
                    let ownership = self.ownership_of(&fresh).await;
                    add_warnings(&mut plan.warnings, &warnings, ownership.as_ref(), &managed_fields);
                    let refusing = request.on_warning.refusing(&plan.warnings);
                    if refusing.is_empty() {
                        return Ok((fresh, patched));
                    }
                    break Refusal::Warned { warnings: refusing }.into();
                }
                Err(ClusterError::Conflict) => {
                    tokio::time::sleep(waits.next().ok_or(RollbackError::Contended)?).await;
                    let read = self.read_again(&daemonset.key).await?;
                    still_holds(plan, daemonset, &read.daemonset)?;
                    fresh = read;
                }
                Err(error) => match self.explain(grant.key(), plan, error).await {
                    refusal @ RollbackError::RefusedByServer { .. } => break refusal,
                    error => return Err(error),
                },
            }
        };
        self.record_refusal(grant.key(), origin, request.mode, &refusal).await;
        Err(refusal)
    }

    async fn preview(
        self: &Arc<Self>,
        id: Uuid,
        daemonset: Arc<DaemonSet>,
        patched: &DaemonSet,
        plan: Plan,
        origin: &Origin,
    ) -> Result<Outcome, RollbackError> {
        // Two unlike templates of megabytes keep a thread busy for a while.
        let (live, restored) = (plan.live.clone(), patched.template.clone());
        let compared = tokio::task::spawn_blocking(move || TemplateDiff::between(&live, &restored));
        let diff = compared.await.map_err(|_| RollbackError::Interrupted)?;
        let effect = patched.generation != daemonset.generation;
        let message = if effect { "rolled back".to_owned() } else { without_effect(plan.to.revision) };
        let preview = Preview {
            id,
            key: daemonset.key.clone(),
            uid: daemonset.uid.clone(),
            live_generation: daemonset.generation,
            generation: effect.then_some(patched.generation),
            skipped: (!effect).then_some(plan.to.revision),
            diff,
            from: plan.from,
            to: plan.to,
            warnings: plan.warnings,
            message: format!("{message} (server dry run)"),
            origin: origin.clone(),
            requested_at: now(),
        };
        self.record_preview(preview).await
    }

    async fn preview_skip(
        self: &Arc<Self>,
        id: Uuid,
        daemonset: &DaemonSet,
        current: RevisionInfo,
        number: RevisionNumber,
        origin: Origin,
    ) -> Result<Outcome, RollbackError> {
        let preview = Preview {
            id,
            key: daemonset.key.clone(),
            uid: daemonset.uid.clone(),
            live_generation: daemonset.generation,
            generation: None,
            diff: TemplateDiff::between(&daemonset.template, &daemonset.template),
            from: Some(current.clone()),
            to: current,
            warnings: Vec::new(),
            message: format!("{} (server dry run)", kubectl::skipped(number.0)),
            origin,
            requested_at: now(),
            skipped: Some(number),
        };
        self.record_preview(preview).await
    }

    async fn record_preview(self: &Arc<Self>, preview: Preview) -> Result<Outcome, RollbackError> {
        let mut entry = Entry::of_request(
            (Action::DryRun, EntryOutcome::Success),
            &preview.key,
            &preview.origin,
            self.parts.cluster.clone(),
            Mode::DryRun,
            preview.message.clone(),
            preview.requested_at,
        );
        entry.uid = Some(preview.uid.clone());
        entry.from.clone_from(&preview.from);
        entry.to = Some(preview.to.clone());
        self.record_harmless(entry).await?;
        Ok(Outcome::Previewed(preview))
    }

    pub(super) async fn record_refusal(
        self: &Arc<Self>,
        key: &Key,
        origin: &Origin,
        mode: Mode,
        refusal: &impl Display,
    ) {
        let no = (Action::Refused, EntryOutcome::Refused);
        self.record_no(no, key, origin, mode, refusal.to_string()).await;
    }

    async fn begin(
        self: &Arc<Self>,
        rollback: &Rollback,
        action: Action,
        idempotency: Option<&NewKey>,
    ) -> Result<(), RollbackError> {
        let entry = Entry::of_rollback(rollback, action, self.parts.cluster.clone(), rollback.requested_at);
        let begun = self.parts.store.begin(rollback, &entry, idempotency).await;
        match &begun {
            Err(error) if error.leaves_open() => {
                drop(self.parts.tasks.spawn(self.clone().withdraw(rollback.clone())))
            }
            // Another replica was first.
            Err(error @ (StoreError::Busy { .. } | StoreError::KeyTaken)) => {
                self.record_refusal(&rollback.key, &rollback.origin, Mode::Apply, error).await;
            }
            _ => {}
        }
        Ok(begun?)
    }

    /// The store did not say whether it took a new rollback, so that the rollback is not made. If the
    /// record turns up after all, says so in it.
    async fn withdraw(self: Arc<Self>, mut rollback: Rollback) {
        // A write that hangs is made within minutes or not at all: so often is looked once the store answers.
        let mut looks = 30;
        for wait in waits(Duration::from_secs(10)) {
            match self.parts.store.rollback(rollback.id).await {
                Ok(Some(stored)) if stored.state.is_final() => return,
                Ok(Some(_)) => {
                    let end = (RollbackState::Failed, Action::Failed);
                    let message = "the audit store did not answer in time; nothing was sent".to_owned();
                    // Stopping: the next start settles it by looking.
                    let _ = self.advance(&mut rollback, end, message).await;
                    return;
                }
                Ok(None) if looks == 0 => return,
                Ok(None) => looks -= 1,
                Err(_) => {}
            }
            if self.parts.stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }
}

/// Adds what the answer to a patch, or to its dry run, shows: what the API server warns of, and what stays with
/// rollbackd.
fn add_warnings(
    warnings: &mut Vec<Warning>,
    of_api_server: &[String],
    ownership: Option<&Ownership>,
    managed_fields: &ManagedFields,
) {
    let kept = ownership.map(|ownership| ownership.kept(managed_fields));
    let kept = kept.and_then(|kept| Warning::of_kept_fields(&kept));
    let new = of_api_server.iter().map(|words| Warning::of_api_server(words)).chain(kept);
    for warning in new {
        // A dry run may have shown it before.
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
}

/// The patch made no new generation: defaulting made the two templates the same, or admission took the
/// change back.
pub(super) fn without_effect(number: RevisionNumber) -> String {
    format!(
        "nothing has changed: as the API server admits it, the pod template of revision {number} is the running one"
    )
}

/// After a conflict: is what was read now still what the plan was made for?
fn still_holds(plan: &Plan, planned: &DaemonSet, read: &DaemonSet) -> Result<(), RollbackError> {
    if read.uid != planned.uid {
        return Err(RollbackError::Replaced);
    }
    if read.being_deleted {
        return Err(Refusal::BeingDeleted.into());
    }
    if !plan.precondition.holds(read) {
        return Err(Refusal::precondition_failed(read).into());
    }
    if read.template != plan.live { Err(RollbackError::Changed) } else { Ok(()) }
}

fn new_rollback(
    id: Uuid,
    daemonset: &DaemonSet,
    from: Option<RevisionInfo>,
    to: RevisionInfo,
    template: &Template,
    origin: Origin,
) -> Rollback {
    Rollback {
        id,
        state: RollbackState::Requested,
        key: daemonset.key.clone(),
        uid: daemonset.uid.clone(),
        generation: None,
        from,
        to,
        new_revision: None,
        warnings: Vec::new(),
        message: "requested".into(),
        origin,
        requested_at: now(),
        ended_at: None,
        template: template.fingerprint(),
        pinned_to: None,
        pinned_generation: daemonset.generation,
        pinned_rollback: None,
        ownership: None,
        newest_revision_at: None,
        epoch: 1,
        duplicates: Vec::new(),
    }
}

/// What the patch made.
pub(super) struct Applied {
    pub state: RollbackState,
    pub message: String,
}

impl Applied {
    /// Reads the patch's answer, and notes in the record what the follower needs. `sent` is the template that was
    /// sent, where it is still known.
    pub(super) fn note(rollback: &mut Rollback, patched: &DaemonSet, sent: Option<&Template>) -> Self {
        rollback.generation = Some(patched.generation);
        let message = match sent {
            Some(sent) => Admitted::between(sent, &patched.template).message(),
            None if patched.template.fingerprint() == rollback.template => Admitted::Unchanged.message(),
            None => "rolled back; the pod template was changed on its way, by admission or by defaults of the API server, so that it becomes a new revision".to_owned(),
        };
        rollback.template = patched.template.fingerprint();
        let state = match patched.strategy {
            UpdateStrategy::OnDelete => RollbackState::Applied,
            UpdateStrategy::RollingUpdate => RollbackState::Progressing,
        };
        Self { state, message }
    }
}
