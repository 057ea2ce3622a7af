//! What somebody should know before a rollback is made.

use serde::{Deserialize, Serialize};

use super::Standing;
use crate::domain::{
    daemonset::{DaemonSet, LAST_APPLIED, ManagedBy, UpdateStrategy},
    key::Name,
    revision::{Recordability, Revision},
    text::cut,
};

/// Bytes of one warning of the API server's that are kept.
const WORDS: usize = 1024;

/// Something that the caller should know before the rollback is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Warning {
    pub code: WarningCode,
    /// What will happen.
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

/// Stable name of a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WarningCode {
    /// `kubectl apply` manages it from a file, and may undo the rollback.
    LastApplied,
    /// A tool keeps its manifest, and will undo the rollback.
    Managed,
    /// Pods are replaced only when somebody deletes them.
    OnDelete,
    /// Pods are ready but not yet for `minReadySeconds`: the controller replaces them all at once.
    MinReadySeconds,
    /// The live template is not in the history yet, and may be lost.
    NotRecorded,
    /// The target came up while rollbackd watched, and its template was never the running one.
    NeverRunning,
    /// The target came up while rollbackd could not watch, so that nobody saw its template running.
    NotWatched,
    /// The API server, or a policy or webhook of its admission, lets the template through and warns of it.
    ApiServer,
    /// The last-applied annotation is left as it is, so that the next client-side apply merges two templates.
    LastAppliedNotRestored,
    /// Fields of the template that came back stay with rollbackd: no single manager applies the template.
    OwnershipKept,
    /// The fields of the template are not returned to the managers that apply it.
    OwnershipNotReturned,
}

impl Warning {
    /// Takes the API server's words, which kubectl prints.
    #[must_use]
    pub fn of_api_server(words: &str) -> Self {
        Self {
            code: WarningCode::ApiServer,
            message: cut(words, WORDS).into_owned(),
            fix: "look at what the restored template asks for that the cluster is warned of".to_owned(),
        }
    }
}

/// Most paths that a warning lists.
const PATHS: usize = 10;

impl Warning {
    /// Lists what stays with rollbackd of what came back; `None` if nothing does.
    #[must_use]
    pub fn of_kept_fields(paths: &[String]) -> Option<Self> {
        let more = match paths.len().saturating_sub(PATHS) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let listed = paths[..paths.len().min(PATHS)].join(", ");
        (!paths.is_empty()).then(|| Self {
            code: WarningCode::OwnershipKept,
            message: cut(
                &format!("field manager rollbackd keeps what came back: {listed}{more}; no apply removes it"),
                WORDS,
            )
            .into_owned(),
            fix: "remove these fields by hand when they are no longer wanted".to_owned(),
        })
    }

    /// Says why the fields of the template are not returned.
    #[must_use]
    pub fn of_unreturned_ownership(why: &str) -> Self {
        Self {
            code: WarningCode::OwnershipNotReturned,
            message: format!("the fields of the template still belong to field manager rollbackd: {why}"),
            fix: "before the next server-side apply compare the template with the manifest; an apply does not remove what rollbackd owns".to_owned(),
        }
    }
}

/// Warnings about the DaemonSet as it is.
pub(super) fn warnings(daemonset: &DaemonSet, current: Option<&Revision>) -> Vec<Warning> {
    let name = &daemonset.key.name;
    let mut warnings = Vec::new();
    let mut warn = |code, message, fix: &str| {
        warnings.push(Warning { code, message, fix: fix.to_owned() });
    };
    if daemonset.annotations.contains_key(LAST_APPLIED) {
        warn(
            WarningCode::LastApplied,
            // kubectl's words, from `rollout_undo.go`.
            format!(
                "resource daemonsets/{name} was previously managed with 'kubectl apply'. Rolling back will not update the {LAST_APPLIED} annotation, which may cause unexpected behavior on future 'kubectl apply' operations. Consider using 'kubectl apply' with your previous configuration file instead."
            ),
            "bring the manifest back to the restored revision before anybody applies it again",
        );
    }
    if let Some((message, fix)) = daemonset.managed_by().and_then(|by| managed(name, &by)) {
        warn(WarningCode::Managed, message, fix);
    }
    if daemonset.strategy == UpdateStrategy::OnDelete {
        warn(
            WarningCode::OnDelete,
            format!(
                "daemonsets/{name} has updateStrategy OnDelete: pods keep running the old template until they are deleted"
            ),
            "delete the pods, node by node, after the rollback",
        );
    }
    let status = &daemonset.status;
    let ready_only = status.number_ready - status.number_available;
    if daemonset.strategy == UpdateStrategy::RollingUpdate
        && daemonset.min_ready_seconds > 0
        && ready_only > 0
    {
        warn(
            WarningCode::MinReadySeconds,
            format!(
                "{ready_only} ready pods of daemonsets/{name} have not been ready for minReadySeconds ({} s): they count as unavailable, and the controller will replace all of them at once, whatever maxUnavailable says",
                daemonset.min_ready_seconds
            ),
            "wait until numberAvailable equals numberReady",
        );
    }
    let recordability = Recordability::of_name(name.as_str().len());
    if current.is_none() && recordability != Recordability::Always {
        warn(
            WarningCode::NotRecorded,
            format!(
                "the controller has not recorded the running template of daemonsets/{name} as a revision, and the name of the DaemonSet is probably too long for it ever to do so; after this rollback it will not be in the history"
            ),
            "keep the running template: kubectl get daemonset -o yaml",
        );
    } else if current.is_none() {
        warn(
            WarningCode::NotRecorded,
            format!(
                "the controller has not recorded the running template of daemonsets/{name} as a revision yet; after this rollback it may not be in the history"
            ),
            "wait until observedGeneration equals generation",
        );
    }
    warnings
}

/// What a tool that keeps the manifest will do about a rollback. Of client-side apply kubectl's own words are
/// said already.
fn managed(name: &Name, by: &ManagedBy) -> Option<(String, &'static str)> {
    let (tool, will, fix) = match by {
        ManagedBy::ArgoCd { id } => (
            format!("Argo CD ({id})"),
            "its next sync will undo the rollback",
            "revert the change in the repository that it syncs from, or switch its automatic sync off before",
        ),
        ManagedBy::Flux { id } => (
            format!("Flux ({id})"),
            "its next reconciliation will undo the rollback",
            "revert the change in the repository that it reconciles from, or suspend it before",
        ),
        ManagedBy::Helm { id } => (
            format!("Helm (release {id})"),
            "its next upgrade of the release will undo the rollback",
            "roll the release back as well: helm rollback",
        ),
        ManagedBy::ServerSideApply { id } => (
            format!("server-side apply (field manager {id})"),
            "its next apply will fail with a conflict that names rollbackd, or, if it is forced, undo the rollback",
            "bring the manifest back to the restored revision before it is applied again",
        ),
        ManagedBy::KubectlApply => return None,
    };
    Some((format!("daemonsets/{name} is managed by {tool}: {will}"), fix))
}

/// What to know of a revision that nobody saw running.
pub(super) fn distrust(target: &Revision, standing: Standing) -> Option<Warning> {
    let name = &target.controller_revision;
    let (code, message) = match standing {
        Standing::Trusted | Standing::NotSeen => return None,
        Standing::Planted => (
            WarningCode::NeverRunning,
            format!(
                "ControllerRevision {name} appeared while rollbackd was watching, and its template was never the running one: somebody made it by hand"
            ),
        ),
        Standing::Unwatched => (
            WarningCode::NotWatched,
            format!(
                "ControllerRevision {name} appeared while rollbackd could not watch: whether its template has ever been the running one is not known"
            ),
        ),
    };
    Some(Warning { code, message, fix: "look into the revision before you roll back to it".to_owned() })
}
