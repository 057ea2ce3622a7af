//! The write: a rollback from its request to its end.
//!
//! [`Rollbacks::authorize`] asks whether it may be made; [`Rollbacks::roll_back`] plans on fresh objects,
//! records, patches and answers (`transaction`); a patch whose answer was lost is settled (`settle`); a rollback that was applied
//! is followed until it ends (`follow`). All of it runs on tasks of its own, so that a caller who
//! goes away changes nothing, and what a crash left open is taken up again by [`Rollbacks::resume`], or by another
//! replica (`claims`).

mod authorize;
mod claims;
mod follow;
mod idempotency;
mod ownership;
mod quota;
mod settle;
mod transaction;
mod unrecorded;
mod wait;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use idempotency::{Answer, Failure, IdempotencyKey, Terms, Told};
pub use quota::Quota;
use quota::Used;
pub use wait::Wait;

use backon::{BackoffBuilder, ExponentialBuilder};
use jiff::{Timestamp, Unit};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    audit::{Action, Entry, MESSAGE, Store, StoreError},
    auth::{AuthError, Authority},
    domain::{
        bookkeeping::FieldOwnership,
        diff::TemplateDiff,
        key::Key,
        revision::RevisionNumber,
        rollback::{Origin, Refusal, RevisionInfo, Rollback, RollbackRequest, RollbackState, Warning},
        text::cut,
    },
    kubernetes::{Cache, ClusterError, Events, Grant, Live},
    telemetry::{Metrics, causes},
};

/// How long the steps of a rollback may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the controller to record the live template, before *previous* is given up.
    pub recording: Duration,
    /// For a lost patch to be settled, before the caller is told `unsettled`.
    pub settling: Duration,
    /// How often a patch is sent that meets a status write in between.
    pub attempts: usize,
    /// For all attempts together.
    pub patching: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            recording: Duration::from_secs(5),
            settling: Duration::from_secs(5),
            attempts: 12,
            patching: Duration::from_secs(15),
        }
    }
}

/// What rollbacks need of the other rooms.
#[derive(Clone)]
pub struct Parts {
    pub live: Live,
    pub cache: Arc<Cache>,
    pub events: Events,
    pub store: Store,
    pub authority: Authority,
    /// `--cluster-name`.
    pub cluster: Option<String>,
    pub patience: Patience,
    pub quota: Quota,
    /// `--field-ownership`.
    pub field_ownership: FieldOwnership,
    pub metrics: Metrics,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// Makes rollbacks and follows them.
#[derive(Clone)]
pub struct Rollbacks {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    /// DaemonSets whose rollback's patch is undecided.
    turns: Mutex<HashMap<Key, Uuid>>,
    /// Rollbacks that have not ended.
    open: Mutex<HashMap<Uuid, Feed>>,
    /// Keys whose first answer is being made.
    keys: Mutex<HashSet<String>>,
    used: Used,
    /// There is ownership to return.
    returns: Notify,
}

/// The states of an open rollback, as they come.
struct Feed {
    states: watch::Sender<Arc<Rollback>>,
    followed: Followed,
}

/// Who follows a rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Followed {
    Here,
    /// By another replica: what is known of it is what the store says.
    Elsewhere,
}

/// What came of a request that was not refused.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The patch was carried out, or its answer was lost (`unsettled`).
    Made(Rollback),
    /// The caller wanted to wait, and it ended in time.
    Ended(Rollback),
    /// The live template is the one asked for.
    Skipped {
        rollback: Rollback,
        /// The number in kubectl's sentence.
        number: RevisionNumber,
    },
    Previewed(Preview),
}

/// What a dry run found.
#[derive(Clone, Debug)]
pub struct Preview {
    pub id: Uuid,
    pub key: Key,
    pub uid: String,
    /// The generation that it was planned on.
    pub live_generation: i64,
    /// The generation that the rollback would make; `None` if it would be skipped.
    pub generation: Option<i64>,
    pub from: Option<RevisionInfo>,
    pub to: RevisionInfo,
    pub warnings: Vec<Warning>,
    pub message: String,
    pub diff: TemplateDiff,
    pub origin: Origin,
    pub requested_at: Timestamp,
    /// The number in kubectl's sentence, if it would be skipped.
    pub skipped: Option<RevisionNumber>,
}

/// Why a rollback was not made, or not as far as can be said now.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// It makes no sense.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The API server refused the patch; its own words, after kubectl's.
    #[error("failed restoring revision {revision}: {message}")]
    RefusedByServer { revision: RevisionNumber, message: String },
    /// The patch of another rollback of the same DaemonSet is undecided.
    #[error("another rollback of this DaemonSet is being made: {id}")]
    Busy { id: Uuid },
    /// Somebody changed the pod template while the rollback was being made. Nothing was overwritten.
    #[error("the pod template was changed while the rollback was being made; nothing was overwritten")]
    Changed,
    /// Only other writes came in between, but again and again.
    #[error("the DaemonSet is being written to all the time; nothing was changed")]
    Contended,
    /// The DaemonSet was deleted and made again under the same name.
    #[error("it is not the same DaemonSet any more: it was deleted and created again; nothing was changed")]
    Replaced,
    /// The DaemonSet was deleted before the patch was answered.
    #[error("the DaemonSet was deleted while the rollback was being made")]
    Deleted,
    /// The answer to the patch was lost, and what came after it has left no proof.
    #[error(
        "whether the rollback was made can't be told: the API server's answer was lost, and the DaemonSet has been changed since"
    )]
    Undecidable,
    /// The API server failed. Nothing was changed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The caller may not, or that can't be asked.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The record could not be written. Nothing was changed.
    #[error(transparent)]
    Store(StoreError),
    /// This replica was held up, and another one has settled the rollback meanwhile. Nothing was changed.
    #[error("the rollback took too long and was given up by another replica; nothing was changed")]
    TakenOver,
    /// The first request with the same key has no answer yet.
    #[error("the request that this key was sent with first is still being answered")]
    KeyAtWork,
    /// The key was sent before, with another request.
    #[error("this key was sent before, with another body or for another DaemonSet")]
    KeyReused,
    /// What a first answer said, in its words.
    #[error("{message}")]
    Again { failure: Failure, message: String },
    /// The task that made the rollback died.
    #[error("the rollback was interrupted")]
    Interrupted,
}

impl From<StoreError> for RollbackError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Busy { id } => Self::Busy { id },
            StoreError::KeyTaken => Self::KeyAtWork,
            error => Self::Store(error),
        }
    }
}

/// Holds a DaemonSet's turn: while it lives no other rollback of it is made here.
struct Turn {
    inner: Arc<Inner>,
    key: Key,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.inner.turns().remove(&self.key);
    }
}

impl Rollbacks {
    /// Starts with nothing open.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let (turns, open, keys) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (used, returns) = (Used::default(), Notify::new());
        Self { inner: Arc::new(Inner { parts, turns, open, keys, used, returns }) }
    }

    /// Makes one rollback. It goes on when the returned future is dropped.
    ///
    /// An error says why it was not made. Nothing was changed in the cluster, except that it is not known
    /// with [`RollbackError::Deleted`], [`RollbackError::Undecidable`] and [`RollbackError::Interrupted`].
    pub async fn roll_back(
        &self,
        grant: Grant,
        origin: Origin,
        request: RollbackRequest,
        terms: Terms,
    ) -> Answer {
        let id = Uuid::now_v7();
        let answer = self.inner.clone().answer(id, grant, origin, request, terms).in_current_span();
        match self.inner.parts.tasks.spawn(answer).await {
            Ok(answer) => answer,
            Err(died) => {
                tracing::error!(rollback = %id, error = %causes(&died), "a rollback's task died");
                let result = match self.inner.parts.store.rollback(id).await {
                    Ok(rollback) => {
                        rollback.into_iter().for_each(|rollback| self.take_up(rollback));
                        Err(RollbackError::Interrupted)
                    }
                    Err(error) => Err(error.into()),
                };
                Answer { result, told: Told::First }
            }
        }
    }

    fn take_up(&self, mut rollback: Rollback) {
        if rollback.state.is_final() {
            return;
        }
        tracing::info!(rollback = %rollback.id, state = rollback.state.as_str(), "taking up a rollback");
        let inner = self.inner.clone();
        inner.announce(&rollback);
        if !rollback.state.is_undecided() {
            self.inner.parts.tasks.spawn(inner.follow(rollback));
            return;
        }
        if rollback.state == RollbackState::Requested {
            "rollbackd was interrupted before the patch was answered".clone_into(&mut rollback.message);
        }
        // Two undecided ones of one DaemonSet are settled side by side: each only looks.
        let turn = inner.take_turn(&rollback.key, rollback.id).ok();
        let grant = Grant::recorded(&rollback);
        self.inner.parts.tasks.spawn(inner.settle_and_follow(rollback, grant, turn));
    }

    /// The newest rollback of a DaemonSet that has not ended. One that another replica makes is known within
    /// moments.
    #[must_use]
    pub fn open(&self, key: &Key) -> Option<Arc<Rollback>> {
        let open = self.inner.open();
        let all = open.values().map(|feed| feed.states.borrow().clone());
        all.filter(|rollback| rollback.key == *key).max_by_key(|rollback| rollback.id)
    }
}

impl Inner {
    fn turns(&self) -> MutexGuard<'_, HashMap<Key, Uuid>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Uuid, Feed>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_turn(self: &Arc<Self>, key: &Key, id: Uuid) -> Result<Turn, RollbackError> {
        let mut turns = self.turns();
        if let Some(id) = turns.get(key) {
            return Err(RollbackError::Busy { id: *id });
        }
        turns.insert(key.clone(), id);
        Ok(Turn { inner: self.clone(), key: key.clone() })
    }

    /// Shows a rollback's state to who watches it, and counts it.
    fn announce(&self, rollback: &Rollback) {
        self.show(&mut self.open(), rollback, Followed::Here);
        if let Some(ended_at) = rollback.ended_at {
            let taken = ended_at.duration_since(rollback.requested_at);
            self.parts
                .metrics
                .rollback_ended(rollback.state.as_str(), Duration::try_from(taken).unwrap_or_default());
        }
    }

    fn show(&self, open: &mut HashMap<Uuid, Feed>, rollback: &Rollback, followed: Followed) {
        let shown = Arc::new(rollback.clone());
        match open.get_mut(&rollback.id) {
            Some(feed) => {
                feed.followed = followed;
                feed.states.send_if_modified(|state| {
                    let news = *state != shown;
                    *state = shown;
                    news
                });
            }
            None => drop(open.insert(rollback.id, Feed { states: watch::Sender::new(shown), followed })),
        }
        if rollback.state.is_final() {
            open.remove(&rollback.id);
        }
        // The others are counted where they are followed.
        let here = open.values().filter(|feed| feed.followed == Followed::Here).count();
        self.parts.metrics.open_rollbacks(here);
    }

    /// Moves a rollback on and records it before the caller is answered, then follows it if it is still
    /// open. If the store fails, a task of its own keeps trying and keeps the DaemonSet's turn. Returns what is on
    /// record: nothing else may be answered.
    async fn conclude(
        self: &Arc<Self>,
        rollback: &mut Rollback,
        (next, action): (RollbackState, Action),
        message: String,
        turn: Turn,
    ) -> OnRecord {
        let before = self.step(rollback, next, message);
        // As it was recorded last.
        let recorded = self.open().get(&rollback.id).map(|feed| feed.states.borrow().as_ref().clone());
        let error = match self.record(before, rollback, action).await {
            Ok(()) => {
                drop(turn);
                self.parts.tasks.spawn(self.clone().follow(rollback.clone()));
                return OnRecord::Written;
            }
            Err(error) => error,
        };
        if matches!(error, StoreError::Moved { .. }) {
            drop(turn);
            return self.taken_over(rollback).await;
        }
        tracing::warn!(rollback = %rollback.id, error = %causes(&error), "an outcome is not on record yet; trying again");
        let (inner, rollback) = (self.clone(), rollback.clone());
        self.parts.tasks.spawn(async move {
            // Stopping: the next start finds the rollback open and settles it by looking.
            if inner.record_surely(before, &rollback, action).await.is_ok() {
                drop(turn);
                inner.follow(rollback).await;
            }
        });
        recorded.map_or(OnRecord::Unreadable, OnRecord::Pending)
    }

    /// Another replica took this one for dead and has taken the rollback over: reads what it has recorded.
    async fn taken_over(&self, rollback: &Rollback) -> OnRecord {
        let id = rollback.id;
        tracing::warn!(rollback = %id, "another replica has taken this rollback over; leaving it alone");
        self.leave(rollback);
        match self.parts.store.rollback(id).await {
            Ok(Some(recorded)) => OnRecord::TakenOver(recorded),
            Ok(None) => OnRecord::Unreadable,
            Err(error) => {
                tracing::warn!(rollback = %id, error = %causes(&error), "its record can't be read");
                OnRecord::Unreadable
            }
        }
    }

    /// Moves a rollback on and records it, however long that takes: what happened has happened. Gives
    /// up only when rollbackd stops; the next start takes the rollback up from its last record.
    async fn advance(
        &self,
        rollback: &mut Rollback,
        (next, action): (RollbackState, Action),
        message: String,
    ) -> Result<(), Stopped> {
        let before = self.step(rollback, next, message);
        self.record_surely(before, rollback, action).await
    }

    fn step(&self, rollback: &mut Rollback, next: RollbackState, message: String) -> RollbackState {
        let before = rollback.state;
        debug_assert!(before.may_become(next), "{before:?} may not become {next:?}");
        rollback.state = next;
        rollback.message = cut(&message, MESSAGE).into_owned();
        rollback.ended_at = next.is_final().then(now);
        before
    }

    async fn record(
        &self,
        before: RollbackState,
        rollback: &Rollback,
        action: Action,
    ) -> Result<(), StoreError> {
        let entry = Entry::of_rollback(rollback, action, self.parts.cluster.clone(), now());
        self.parts.store.advance(before, rollback, Some(&entry)).await?;
        self.recorded(rollback);
        Ok(())
    }

    async fn record_surely(
        &self,
        before: RollbackState,
        rollback: &Rollback,
        action: Action,
    ) -> Result<(), Stopped> {
        let (mut before, mut waits) = (before, waits(Duration::from_secs(5)));
        loop {
            let error = match self.record(before, rollback, action).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Moved { id, .. }) => match self.parts.store.rollback(id).await {
                    Ok(Some(stored)) if stored.epoch == rollback.epoch => {
                        if stored.state == rollback.state {
                            // The write was reported as failed and has been made all the same.
                            self.recorded(rollback);
                            return Ok(());
                        }
                        // So was the one before it.
                        before = stored.state;
                        StoreError::Moved { id, state: stored.state }
                    }
                    Ok(_) => {
                        tracing::warn!(rollback = %id, "another replica has taken this rollback over; leaving it alone");
                        self.leave(rollback);
                        return Err(Stopped);
                    }
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let (id, wait) = (rollback.id, waits.next().unwrap_or_default());
            tracing::warn!(rollback = %id, error = %causes(&error), "an outcome is not on record yet; trying again");
            self.parts.stop.run_until_cancelled(tokio::time::sleep(wait)).await.ok_or(Stopped)?;
        }
    }

    /// Tells everybody what is on record now.
    fn recorded(&self, rollback: &Rollback) {
        self.announce(rollback);
        self.parts.events.tell(rollback, now());
        if rollback.ownership.is_some() && !rollback.state.is_undecided() {
            self.returns.notify_one();
        }
    }
}

/// What is on record after a rollback was to be moved on.
enum OnRecord {
    /// The move.
    Written,
    /// What was there before: the store fails, and a task goes on trying.
    Pending(Rollback),
    /// What another replica has recorded.
    TakenOver(Rollback),
    /// Another replica has taken the rollback over, and its record can't be read now.
    Unreadable,
}

impl OnRecord {
    /// The answer of a caller whose rollback was to be moved on: `written` if it was, else what the record says.
    ///
    /// While the store fails, an error that says that nothing was changed is true whatever is recorded in the end.
    fn answer(self, written: Result<Outcome, RollbackError>) -> Result<Outcome, RollbackError> {
        match (self, written) {
            (Self::Written, written) => written,
            (Self::Pending(recorded), Ok(_) | Err(RollbackError::Deleted | RollbackError::Undecidable)) => {
                Ok(Outcome::Made(recorded))
            }
            (Self::Pending(_), Err(error)) => Err(error),
            (Self::TakenOver(recorded), _) => answer_of_record(recorded),
            (Self::Unreadable, _) => Err(RollbackError::Interrupted),
        }
    }
}

/// The answer that a rollback's record gives.
fn answer_of_record(rollback: Rollback) -> Result<Outcome, RollbackError> {
    match rollback.state {
        RollbackState::Failed | RollbackState::Abandoned => Err(RollbackError::TakenOver),
        RollbackState::Unknown => Err(RollbackError::Undecidable),
        RollbackState::Deleted if rollback.generation.is_none() => Err(RollbackError::Deleted),
        RollbackState::Skipped => Ok(Outcome::Skipped { number: rollback.to.revision, rollback }),
        RollbackState::Requested
        | RollbackState::Unsettled
        | RollbackState::Progressing
        | RollbackState::Stalled
        | RollbackState::Applied => Ok(Outcome::Made(rollback)),
        RollbackState::Succeeded | RollbackState::Superseded | RollbackState::Deleted => {
            Ok(Outcome::Ended(rollback))
        }
    }
}

/// rollbackd is stopping, or another replica has taken over.
#[derive(Debug)]
struct Stopped;

/// Waiting times with jitter: from 100 ms, twice as long each time, up to `longest`.
fn waits(longest: Duration) -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(longest)
        .without_max_times()
        .with_jitter()
        .build()
}

/// The time now, to the microsecond, which is what the store keeps.
fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(Unit::Microsecond).unwrap_or(now)
}
