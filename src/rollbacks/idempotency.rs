//! A request sent again: it gets the first answer again, and nothing is made twice.
//!
//! Which rollback a key makes is written with the rollback's first record, so that no crash can come
//! between the two. The answer is kept once it is known; where a crash came first it is told from the
//! rollback's record. What was refused before the record is not kept, nor is what failed in passing
//! and changed nothing: sending such a request again is what its caller is asked to do.

use std::{collections::HashSet, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Inner, Outcome, RollbackError, Wait, answer_of_record};
use crate::{
    audit::NewKey,
    domain::{
        actor::Actor,
        key::Key,
        revision::{RevisionNumber, RevisionRef},
        rollback::{Mode, OnWarning, Origin, Refusal, Rollback, RollbackRequest, RollbackState, Target},
    },
    failpoint::fail_point,
    kubernetes::Grant,
    telemetry::causes,
};

/// What a caller calls a request, to send it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

/// A key of no length, or of too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to {} characters", IdempotencyKey::LONGEST)]
pub struct NoIdempotencyKey;

impl IdempotencyKey {
    /// Most characters of a key.
    pub const LONGEST: usize = 255;

    /// Takes the text of a key.
    ///
    /// # Errors
    /// When it is empty or too long.
    pub fn new(text: impl Into<String>) -> Result<Self, NoIdempotencyKey> {
        let text = text.into();
        if text.is_empty() || text.chars().count() > Self::LONGEST {
            return Err(NoIdempotencyKey);
        }
        Ok(Self(text))
    }
}

/// How a caller wants to be answered.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    pub key: Option<IdempotencyKey>,
    pub wait: Option<Wait>,
}

/// What a caller is told.
#[derive(Debug)]
pub struct Answer {
    pub result: Result<Outcome, RollbackError>,
    pub told: Told,
}

/// Whether an answer is given for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    First,
    /// The first answer to the same key and request.
    Again,
}

/// Why a rollback that is on record was not made, or can't be told to have been: what a first answer
/// said, to say it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    BeingDeleted,
    PreconditionFailed,
    RefusedByServer,
    Modified,
    Undecidable,
}

/// A first answer as it is kept.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "answer")]
enum Kept {
    Made { rollback: Box<Rollback> },
    Ended { rollback: Box<Rollback> },
    Skipped { rollback: Box<Rollback>, number: RevisionNumber },
    Failed { failure: Failure, message: String },
}

/// Holds a key: while it lives, no other request with it is answered here.
struct AtWork {
    inner: Arc<Inner>,
    id: String,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.inner.keys().remove(&self.id);
    }
}

impl Inner {
    /// Makes a rollback, or tells again what came of it.
    pub(super) async fn answer(
        self: Arc<Self>,
        id: Uuid,
        grant: Grant,
        origin: Origin,
        request: RollbackRequest,
        terms: Terms,
    ) -> Answer {
        let first = |result| Answer { result, told: Told::First };
        let Some(key) = terms.key else {
            return first(self.make_and_wait(id, grant, origin, request, None, terms.wait).await);
        };
        let (daemonset, mode) = (grant.key().clone(), request.mode);
        let mut key = new_key(&key, &origin, &daemonset, &request);
        // Before the plan: by now the same request may mean another revision.
        let recalled = match self.hold(&key.id) {
            Some(held) => self.recall(&mut key).await.map(|kept| (held, kept)),
            None => Err(RollbackError::KeyAtWork),
        };
        let _held = match recalled {
            Ok((_, Some(kept))) => return Answer { result: kept.into(), told: Told::Again },
            Ok((held, None)) => held,
            Err(error) => {
                if matches!(error, RollbackError::KeyAtWork | RollbackError::KeyReused) {
                    self.record_refusal(&daemonset, &origin, mode, &error).await;
                }
                return first(Err(error));
            }
        };
        let result = self.clone().make_and_wait(id, grant, origin, request, Some(&key), terms.wait).await;
        // A dry run makes nothing that could be made twice.
        if mode == Mode::Apply {
            fail_point!("answer-made");
            self.keep(&key, id, &result).await;
            fail_point!("answer-kept");
        }
        first(result)
    }

    async fn make_and_wait(
        self: Arc<Self>,
        id: Uuid,
        grant: Grant,
        origin: Origin,
        request: RollbackRequest,
        key: Option<&NewKey>,
        wait: Option<Wait>,
    ) -> Result<Outcome, RollbackError> {
        let outcome = self.clone().transact(id, grant, origin, request, key).await?;
        Ok(self.wait_for_end(outcome, wait).await)
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn hold(self: &Arc<Self>, id: &str) -> Option<AtWork> {
        let free = self.keys().insert(id.to_owned());
        free.then(|| AtWork { inner: self.clone(), id: id.to_owned() })
    }

    /// What was answered to a key; `None` if it is still to be made, perhaps in place of one that came to
    /// nothing.
    async fn recall(&self, key: &mut NewKey) -> Result<Option<Kept>, RollbackError> {
        let Some(used) = self.parts.store.used_key(&key.id).await? else { return Ok(None) };
        if used.request != key.request {
            return Err(RollbackError::KeyReused);
        }
        if let Some(answer) = used.answer {
            return Ok(Some(serde_json::from_str(&answer).map_err(crate::audit::StoreError::from)?));
        }
        // It did not come to an answer, or its answer was to try again.
        let rollback = self.parts.store.rollback(used.rollback).await?;
        key.instead_of = Some(used.rollback);
        rollback.map_or(Ok(None), Kept::of_record)
    }

    async fn keep(&self, key: &NewKey, rollback: Uuid, result: &Result<Outcome, RollbackError>) {
        let Some(kept) = Kept::of(result) else { return };
        let text = serde_json::to_string(&kept).expect("an answer has string keys");
        if let Err(error) = self.parts.store.keep_answer(&key.id, rollback, &text).await {
            tracing::warn!(%rollback, error = %causes(&error), "a first answer is not kept; if it is asked for again, the rollback's record will tell");
        }
    }
}

impl Kept {
    /// What is kept of a first answer; `None` of one that asks to try again.
    fn of(result: &Result<Outcome, RollbackError>) -> Option<Self> {
        let error = match result {
            // The store has failed: what comes is told from the record.
            Ok(Outcome::Made(rollback)) if rollback.state == RollbackState::Requested => return None,
            Ok(Outcome::Made(rollback)) => return Some(Self::Made { rollback: Box::new(rollback.clone()) }),
            Ok(Outcome::Ended(rollback)) => {
                return Some(Self::Ended { rollback: Box::new(rollback.clone()) });
            }
            Ok(Outcome::Skipped { rollback, number }) => {
                return Some(Self::Skipped { rollback: Box::new(rollback.clone()), number: *number });
            }
            Ok(Outcome::Previewed(_)) => return None,
            Err(error) => error,
        };
        let failure = match error {
            RollbackError::Refused(Refusal::BeingDeleted) => Failure::BeingDeleted,
            RollbackError::Refused(Refusal::PreconditionFailed { .. }) => Failure::PreconditionFailed,
            RollbackError::RefusedByServer { .. } => Failure::RefusedByServer,
            RollbackError::Changed | RollbackError::Replaced | RollbackError::Deleted => Failure::Modified,
            RollbackError::Undecidable => Failure::Undecidable,
            RollbackError::Refused(_)
            | RollbackError::Busy { .. }
            | RollbackError::Contended
            | RollbackError::Cluster(_)
            | RollbackError::Auth(_)
            | RollbackError::Store(_)
            | RollbackError::TakenOver
            | RollbackError::Interrupted
            | RollbackError::KeyAtWork
            | RollbackError::KeyReused
            | RollbackError::Again { .. } => return None,
        };
        Some(Self::Failed { failure, message: error.to_string() })
    }

    /// The answer that a rollback's record tells; `None` if nothing came of it.
    fn of_record(rollback: Rollback) -> Result<Option<Self>, RollbackError> {
        if rollback.state.is_undecided() {
            return Err(RollbackError::KeyAtWork);
        }
        Ok(match answer_of_record(rollback) {
            // The first answer came before its end.
            Ok(Outcome::Ended(rollback)) => Some(Self::Made { rollback: Box::new(rollback) }),
            answer => Self::of(&answer),
        })
    }
}

impl From<Kept> for Result<Outcome, RollbackError> {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Made { rollback } => Ok(Outcome::Made(*rollback)),
            Kept::Ended { rollback } => Ok(Outcome::Ended(*rollback)),
            Kept::Skipped { rollback, number } => Ok(Outcome::Skipped { rollback: *rollback, number }),
            Kept::Failed { failure, message } => Err(RollbackError::Again { failure, message }),
        }
    }
}

/// A key belongs to its caller, and to whom they act for; what it stands for is the path and the body,
/// as they were understood.
fn new_key(
    IdempotencyKey(key): &IdempotencyKey,
    origin: &Origin,
    daemonset: &Key,
    request: &RollbackRequest,
) -> NewKey {
    let who = |actor: &Actor| json!([actor.user, actor.uid]);
    let behalf = origin.on_behalf_of.as_ref().map(|actor| {
        let mut groups = actor.groups.clone();
        groups.sort_unstable();
        json!([who(actor), groups])
    });
    let RollbackRequest { to, reason, mode, expected_revision, precondition: _, on_warning } = request;
    let to = match to {
        Target::Previous => json!(null),
        Target::Revision(RevisionRef::Number(number)) => json!(number.0),
        Target::Revision(RevisionRef::ControllerRevision(name)) => json!(name),
    };
    // Without codes to ignore it is what it was before there were any, so that a key stays the same over an upgrade.
    let on_warning = match on_warning {
        OnWarning::Proceed => json!(false),
        OnWarning::Refuse { ignore } if ignore.is_empty() => json!(true),
        OnWarning::Refuse { ignore } => json!(ignore),
    };
    let request = json!([
        daemonset.namespace.as_str(),
        daemonset.name.as_str(),
        to,
        reason,
        *mode == Mode::DryRun,
        expected_revision.map(|number| number.0),
        on_warning,
    ]);
    NewKey {
        id: hash(&json!([who(&origin.requested_by), behalf, key])),
        request: hash(&request),
        instead_of: None,
    }
}

fn hash(value: &serde_json::Value) -> String {
    let digest = Sha256::digest(value.to_string().as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        key::{Name, Namespace},
        rollback::{Precondition, WarningCode},
    };

    #[test]
    fn a_key_belongs_to_its_caller_and_to_whom_they_act_for() {
        let actor =
            |user: &str| Actor { user: user.into(), groups: vec!["g".into()], groups_omitted: 0, uid: None };
        let origin = |by: &str, behalf: Option<&str>, request: &str| Origin {
            requested_by: actor(by),
            on_behalf_of: behalf.map(actor),
            reason: None,
            request_id: request.into(),
            source: None,
        };
        let daemonset = Key::new(Namespace::parse("a").unwrap(), Name::parse("b").unwrap());
        let request = RollbackRequest {
            to: Target::Previous,
            reason: None,
            mode: Mode::Apply,
            expected_revision: None,
            precondition: Precondition::Unconditional,
            on_warning: OnWarning::Proceed,
        };
        let id = |key: &str, origin: &Origin| {
            new_key(&IdempotencyKey::new(key).unwrap(), origin, &daemonset, &request).id
        };
        let first = id("k", &origin("alice", None, "1"));
        assert_eq!(first, id("k", &origin("alice", None, "2")));
        for (key, other) in [
            ("k", origin("bob", None, "1")),
            ("k", origin("alice", Some("bob"), "1")),
            ("k", origin("portal", Some("alice"), "1")),
            ("l", origin("alice", None, "1")),
        ] {
            assert_ne!(first, id(key, &other), "{key} {other:?}");
        }
        // Groups that the authenticator gives may change from one token to the next.
        let mut moved = origin("alice", None, "1");
        moved.requested_by.groups.clear();
        assert_eq!(first, id("k", &moved));
    }

    #[test]
    fn request_with_other_codes_to_ignore_is_another_request() {
        let origin = Origin {
            requested_by: Actor { user: "alice".into(), groups: Vec::new(), uid: None, groups_omitted: 0 },
            on_behalf_of: None,
            reason: None,
            request_id: "1".into(),
            source: None,
        };
        let daemonset = Key::new(Namespace::parse("a").unwrap(), Name::parse("b").unwrap());
        let request = |on_warning| {
            let request = RollbackRequest {
                to: Target::Previous,
                reason: None,
                mode: Mode::Apply,
                expected_revision: None,
                precondition: Precondition::Unconditional,
                on_warning,
            };
            new_key(&IdempotencyKey::new("k").unwrap(), &origin, &daemonset, &request).request
        };
        let refuse =
            |ignore: &[WarningCode]| request(OnWarning::Refuse { ignore: ignore.iter().copied().collect() });
        let different = [
            request(OnWarning::Proceed),
            refuse(&[]),
            refuse(&[WarningCode::Managed]),
            refuse(&[WarningCode::LastApplied]),
            refuse(&[WarningCode::LastApplied, WarningCode::Managed]),
        ];
        assert_eq!(different.iter().collect::<HashSet<_>>().len(), different.len());
        assert_eq!(different[4], refuse(&[WarningCode::Managed, WarningCode::LastApplied]));
        // As versions without codes to ignore have stored them.
        let before = |refuse: bool| hash(&json!(["a", "b", null, null, false, null, refuse]));
        assert_eq!((&different[0], &different[1]), (&before(false), &before(true)));
    }
}
