//! The record of one rollback, from the request to its end.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Warning;
use crate::domain::{
    actor::Actor,
    bookkeeping::Ownership,
    key::Key,
    revision::{Revision, RevisionNumber},
    template::{ContainerImage, Fingerprint},
};

/// One rollback as it is stored and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollback {
    pub id: Uuid,
    pub state: RollbackState,
    #[serde(flatten)]
    pub key: Key,
    /// Uid of the DaemonSet, so that one of the same name made later is not mistaken for it.
    pub uid: String,
    /// The generation that the patch made.
    pub generation: Option<i64>,
    /// What ran before; `None` where no revision held the live template.
    pub from: Option<RevisionInfo>,
    pub to: RevisionInfo,
    /// The number that the restored revision got.
    pub new_revision: Option<RevisionNumber>,
    pub warnings: Vec<Warning>,
    /// What happened last, in one sentence.
    pub message: String,
    pub origin: Origin,
    pub requested_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// Fingerprint of the template that it writes; once the patch is answered, of the template in the
    /// answer, which admission may have changed. The follower expects it to stay live.
    pub template: Fingerprint,
    /// The resource version that the latest patch was pinned to. Stored before it is sent.
    pub pinned_to: Option<String>,
    /// The generation at that version: a patch that was carried out made the next one.
    pub pinned_generation: i64,
    /// The id of an earlier rollback that the DaemonSet carried at that version. The patch replaces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_rollback: Option<Uuid>,
    /// When the newest ControllerRevision was created, by the API server's clock, if the spec at that version is the
    /// one that was planned on. Revisions that are created later are made of other templates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_revision_at: Option<Timestamp>,
    /// Who owned the template at the pinned version, where the fields are to be returned. Until the rollback is
    /// decided: then the store keeps it apart, until it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ownership: Option<Ownership>,
    /// Tells who holds it from who has held it before; 1 at first.
    #[serde(default)]
    pub epoch: i64,
    /// ControllerRevisions whose bytes were the same while the rollout was under way. The controller may
    /// have given pods of another template the hash of this one, so that the rollout never counts as complete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub duplicates: Vec<String>,
}

/// Who asked for a rollback, from where and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    pub requested_by: Actor,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<Actor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub request_id: String,
    /// Address that the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

impl Origin {
    /// The user for whom the rollback is made: the one on whose behalf it was asked for, else the one who asked.
    #[must_use]
    pub fn asker(&self) -> &Actor {
        self.on_behalf_of.as_ref().unwrap_or(&self.requested_by)
    }
}

/// A revision as a rollback names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionInfo {
    /// The number at the time of the rollback.
    pub revision: RevisionNumber,
    /// Name of the ControllerRevision, which stays when the number changes.
    #[schema(examples("agent-854b6d86d"))]
    pub controller_revision: String,
    /// Value of the label `controller-revision-hash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// Left out for who may not read ControllerRevisions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ContainerImage>,
}

/// Where a rollback stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum RollbackState {
    /// On record; the patch has not been answered yet.
    Requested,
    /// The patch was sent and its answer was lost; whether it was applied is being found out.
    Unsettled,
    /// Applied; the rollout is under way.
    Progressing,
    /// Applied; the rollout has stood still for `--stall-after`, and is still followed.
    Stalled,
    /// The rollout is complete.
    Succeeded,
    /// Applied with updateStrategy OnDelete: what happens next is up to whoever deletes pods.
    Applied,
    /// The template was already the one asked for.
    Skipped,
    /// Applied, and then somebody changed the pod template again.
    Superseded,
    /// The DaemonSet was deleted.
    Deleted,
    /// The patch was refused, or could not be sent: nothing was changed.
    Failed,
    /// The answer to the patch was lost, and it is certain that the patch was not and will not be applied.
    Abandoned,
    /// The answer to the patch was lost, and what came after it has left no proof either way.
    Unknown,
}

impl RollbackState {
    /// All states, in the order in which a rollback can reach them.
    pub const ALL: [Self; 12] = [
        Self::Requested,
        Self::Unsettled,
        Self::Progressing,
        Self::Stalled,
        Self::Succeeded,
        Self::Applied,
        Self::Skipped,
        Self::Superseded,
        Self::Deleted,
        Self::Failed,
        Self::Abandoned,
        Self::Unknown,
    ];

    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Requested | Self::Unsettled | Self::Progressing | Self::Stalled => false,
            Self::Succeeded
            | Self::Applied
            | Self::Skipped
            | Self::Superseded
            | Self::Deleted
            | Self::Failed
            | Self::Abandoned
            | Self::Unknown => true,
        }
    }

    /// Whether it is still open if the patch changes anything; only then it blocks another one.
    #[must_use]
    pub fn is_undecided(self) -> bool {
        matches!(self, Self::Requested | Self::Unsettled)
    }

    /// Whether a rollback in this state may move on to `next`.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Requested => !matches!(next, Self::Requested | Self::Stalled),
            Self::Unsettled => matches!(
                next,
                Self::Progressing
                    | Self::Applied
                    | Self::Skipped
                    | Self::Deleted
                    | Self::Abandoned
                    | Self::Unknown
            ),
            Self::Progressing => matches!(
                next,
                Self::Stalled | Self::Succeeded | Self::Applied | Self::Superseded | Self::Deleted
            ),
            Self::Stalled => matches!(
                next,
                Self::Progressing | Self::Succeeded | Self::Applied | Self::Superseded | Self::Deleted
            ),
            _ => false,
        }
    }

    /// The name as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Unsettled => "unsettled",
            Self::Progressing => "progressing",
            Self::Stalled => "stalled",
            Self::Succeeded => "succeeded",
            Self::Applied => "applied",
            Self::Skipped => "skipped",
            Self::Superseded => "superseded",
            Self::Deleted => "deleted",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
            Self::Unknown => "unknown",
        }
    }
}

impl RevisionInfo {
    /// Takes what a rollback's record keeps of a revision.
    #[must_use]
    pub fn of(revision: &Revision) -> Self {
        Self {
            revision: revision.number,
            controller_revision: revision.controller_revision.clone(),
            hash: revision.hash.clone(),
            images: revision.template.as_ref().map(|t| t.images().to_vec()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_state_leads_nowhere_and_an_open_one_somewhere() {
        for state in RollbackState::ALL {
            let onward = RollbackState::ALL.iter().any(|next| state.may_become(*next));
            assert_eq!(onward, !state.is_final(), "{state:?}");
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
