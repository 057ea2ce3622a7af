//! One entry of the audit.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Head, Sequence};
use crate::domain::{
    actor::Actor,
    key::{Key, Name, Namespace},
    revision::RevisionNumber,
    rollback::{Mode, Origin, RevisionInfo, Rollback, RollbackState},
    text::cut,
};

/// Version of the entry's format; what a version means never changes.
pub const FORMAT_VERSION: u32 = 1;

/// Most bytes of a message. What the API server and its webhooks say has no limit.
pub const MESSAGE: usize = 2048;

/// One entry, without its sequence number, which the store gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AuditEntryContent)]
pub struct Entry {
    /// Version of the entry's format.
    pub version: u32,
    /// When it happened.
    pub time: Timestamp,
    pub action: Action,
    pub outcome: Outcome,
    /// What happened, in one sentence.
    pub message: String,
    /// Who asked.
    pub actor: Actor,
    /// For whom, where `actor` asked for somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<Actor>,
    /// Why, in the caller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Id of the request that asked for it; left out where nobody did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// Address that it came from: of the TCP peer, or, behind a `--trusted-proxy`, as the proxy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `--cluster-name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Namespace of the DaemonSet; left out where an entry is about the audit itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub namespace: Option<Namespace>,
    /// Name of the DaemonSet; left out where an entry is about the audit itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// Uid of the DaemonSet, where one was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Id of the rollback, where one was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Uuid>,
    /// Whether it was only tried.
    pub dry_run: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<RevisionInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<RevisionInfo>,
    /// The number that the restored revision got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_revision: Option<RevisionNumber>,
    /// How many requests this entry sums up, where there were too many to tell of each. What else it
    /// says is true of the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Seconds since the rollback was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
    /// The last entry that was cut off the old end, where the entry says that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Head>,
    /// Time of the newest entry that was cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_cut: Option<Timestamp>,
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = AuditAction)]
pub enum Action {
    /// A rollback was recorded; its patch is about to be sent.
    #[serde(rename = "rollback.requested")]
    Requested,
    /// The patch was sent, its answer was lost.
    #[serde(rename = "rollback.unsettled")]
    Unsettled,
    /// The patch was carried out.
    #[serde(rename = "rollback.applied")]
    Applied,
    /// The template was already the one asked for.
    #[serde(rename = "rollback.skipped")]
    Skipped,
    /// The rollback made no sense, or came while another one was being made; or a dry run was refused
    /// by the API server.
    #[serde(rename = "rollback.refused")]
    Refused,
    /// Whoever asked for it may not.
    #[serde(rename = "rollback.denied")]
    Denied,
    /// The patch was not carried out.
    #[serde(rename = "rollback.failed")]
    Failed,
    /// A dry run.
    #[serde(rename = "rollback.dryRun")]
    DryRun,
    /// The rollout that the rollback started is complete.
    #[serde(rename = "rollout.completed")]
    Completed,
    /// The rollout stands still.
    #[serde(rename = "rollout.stalled")]
    Stalled,
    /// The rollout moves again.
    #[serde(rename = "rollout.resumed")]
    Resumed,
    /// The template was changed again.
    #[serde(rename = "rollout.superseded")]
    Superseded,
    /// The DaemonSet was deleted.
    #[serde(rename = "rollout.deleted")]
    Deleted,
    /// Entries older than `--audit-retention` were cut off.
    #[serde(rename = "audit.cut")]
    Cut,
    /// The cluster shows a rollback that is not on record.
    #[serde(rename = "rollback.unrecorded")]
    Unrecorded,
}

/// How an entry reads at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AuditOutcome)]
pub enum Outcome {
    /// Not decided yet.
    Pending,
    Success,
    Failure,
    /// The request made no sense, or the API server refused it.
    Refused,
    /// RBAC does not allow it.
    Denied,
}

impl Action {
    /// The name as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "rollback.requested",
            Self::Unsettled => "rollback.unsettled",
            Self::Applied => "rollback.applied",
            Self::Skipped => "rollback.skipped",
            Self::Refused => "rollback.refused",
            Self::Denied => "rollback.denied",
            Self::Failed => "rollback.failed",
            Self::DryRun => "rollback.dryRun",
            Self::Completed => "rollout.completed",
            Self::Stalled => "rollout.stalled",
            Self::Resumed => "rollout.resumed",
            Self::Superseded => "rollout.superseded",
            Self::Deleted => "rollout.deleted",
            Self::Cut => "audit.cut",
            Self::Unrecorded => "rollback.unrecorded",
        }
    }
}

impl Outcome {
    /// The name as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Refused => "refused",
            Self::Denied => "denied",
        }
    }
}

impl Entry {
    /// An entry about a request of which no rollback came: a refusal or a dry run.
    #[must_use]
    pub fn of_request(
        (action, outcome): (Action, Outcome),
        key: &Key,
        origin: &Origin,
        cluster: Option<String>,
        mode: Mode,
        message: String,
        time: Timestamp,
    ) -> Self {
        Self {
            on_behalf_of: origin.on_behalf_of.clone(),
            reason: origin.reason.clone(),
            request_id: origin.request_id.clone(),
            source: origin.source.clone(),
            cluster,
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            dry_run: mode == Mode::DryRun,
            ..Self::bare((action, outcome), origin.requested_by.clone(), message, time)
        }
    }

    /// The entry that says up to which one all were cut.
    #[must_use]
    pub fn of_cut(
        cut: Head,
        (first, newest): (Sequence, Option<Timestamp>),
        older_than: Timestamp,
        time: Timestamp,
    ) -> Self {
        let message = format!(
            "entries {first} to {} were cut: older than {older_than}, as --audit-retention says",
            cut.sequence
        );
        let cut_off = (Action::Cut, Outcome::Success);
        Self { cut: Some(cut), newest_cut: newest, ..Self::bare(cut_off, Actor::rollbackd(), message, time) }
    }

    /// What every entry has.
    fn bare((action, outcome): (Action, Outcome), actor: Actor, message: String, time: Timestamp) -> Self {
        Self {
            version: FORMAT_VERSION,
            time,
            action,
            outcome,
            message: cut(&message, MESSAGE).into_owned(),
            actor,
            on_behalf_of: None,
            reason: None,
            request_id: String::new(),
            source: None,
            cluster: None,
            namespace: None,
            name: None,
            uid: None,
            rollback: None,
            dry_run: false,
            from: None,
            to: None,
            new_revision: None,
            count: None,
            duration_seconds: None,
            cut: None,
            newest_cut: None,
        }
    }

    /// The same with another message, which is truncated to [`MESSAGE`] bytes.
    #[must_use]
    pub fn with_message(self, message: &str) -> Self {
        Self { message: cut(message, MESSAGE).into_owned(), ..self }
    }

    /// The entry that says what state a rollback has come to.
    #[must_use]
    pub fn of_rollback(
        rollback: &Rollback,
        action: Action,
        cluster: Option<String>,
        time: Timestamp,
    ) -> Self {
        let taken = time.duration_since(rollback.requested_at);
        Self {
            uid: Some(rollback.uid.clone()),
            rollback: Some(rollback.id),
            from: rollback.from.clone(),
            to: Some(rollback.to.clone()),
            new_revision: rollback.new_revision,
            duration_seconds: (action != Action::Requested).then(|| taken.as_secs_f64()),
            ..Self::of_request(
                (action, outcome(rollback.state)),
                &rollback.key,
                &rollback.origin,
                cluster,
                Mode::Apply,
                rollback.message.clone(),
                time,
            )
        }
    }
}

fn outcome(state: RollbackState) -> Outcome {
    match state {
        RollbackState::Requested | RollbackState::Unsettled | RollbackState::Progressing => Outcome::Pending,
        RollbackState::Succeeded | RollbackState::Applied | RollbackState::Skipped => Outcome::Success,
        RollbackState::Stalled
        | RollbackState::Superseded
        | RollbackState::Deleted
        | RollbackState::Failed
        | RollbackState::Abandoned
        | RollbackState::Unknown => Outcome::Failure,
    }
}
