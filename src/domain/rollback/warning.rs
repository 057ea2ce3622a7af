//! Facts that a caller should know before a rollback is made, and what a caller makes of them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Standing;
use crate::domain::{
    daemonset::{DaemonSet, LAST_APPLIED, UpdateStrategy},
    revision::{Recordability, Revision, RevisionNumber},
    text::cut,
};

/// Bytes of one warning of the API server's that are kept.
const WORDS: usize = 1024;

/// Something that the caller should know before the rollback is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(from = "StoredWarning")]
pub struct Warning {
    pub code: WarningCode,
    pub severity: Severity,
    /// What will happen.
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

/// A warning on record. Rollbacks of older versions have none with a severity.
#[derive(Deserialize)]
struct StoredWarning {
    code: WarningCode,
    severity: Option<Severity>,
    message: String,
    fix: String,
}

/// How much a warning weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = WarningSeverity)]
pub enum Severity {
    /// It is so, and no harm comes of it.
    Info,
    /// Something will go another way than a caller may expect. `failOnWarning` refuses from here on.
    Warning,
    /// The rollback will not last.
    Blocking,
}

/// Stable name of a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WarningCode {
    /// `kubectl apply` manages it from a file: what its next apply does.
    LastApplied,
    /// The record that `kubectl apply` keeps of the last manifest could not be restored with the pod template, so
    /// that its next apply merges two pod templates.
    LastAppliedNotRestored,
    /// A tool keeps its manifest: what the next write of that tool does.
    Managed,
    /// The rollback is made, and the ownership of its fields could not be returned to the tools that apply them yet.
    OwnershipNotReturned,
    /// Fields that came back with the restored pod template stay with rollbackd, as no single tool applies them.
    OwnershipKept,
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
    /// Newer revisions than the previous one were skipped, because the caller may not use them.
    RevisionsSkipped,
    /// The API server, or a policy or webhook of its admission, lets the template through and warns of it.
    ApiServer,
}

/// What a rollback does about the records by which tools know what they have applied: the annotation of the last
/// applied manifest, and the ownership of fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bookkeeping {
    /// Both are returned to the tools, with the pod template that they describe (`--field-ownership=return`).
    Restored,
    /// As [`Bookkeeping::Restored`], but the revision holds more than the manifest of its time, or something else: at
    /// this path first.
    Changed(String),
    /// Both stay as the rollback leaves them (`--field-ownership=keep`).
    Kept,
    /// The ownership is returned, and the annotation can't be restored, for the reason in this sentence. Not for a
    /// DaemonSet that client-side apply has never managed: there is nothing to restore then.
    NotRestored(String),
}

/// What a warning does to the rollback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnWarning {
    Proceed,
    /// Refuse the rollback from [`Severity::Warning`] on.
    Refuse {
        /// Codes that refuse nothing.
        ignore: BTreeSet<WarningCode>,
    },
}

impl OnWarning {
    /// The warnings that refuse the rollback; none if it may be made.
    #[must_use]
    pub fn refusing(&self, warnings: &[Warning]) -> Vec<Warning> {
        match self {
            Self::Proceed => Vec::new(),
            Self::Refuse { ignore } => {
                let refuses = |warning: &&Warning| {
                    warning.severity >= Severity::Warning && !ignore.contains(&warning.code)
                };
                warnings.iter().filter(refuses).cloned().collect()
            }
        }
    }
}

impl WarningCode {
    /// The severity of a warning of which nothing more is known.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self {
            Self::OnDelete => Severity::Info,
            Self::LastApplied
            | Self::LastAppliedNotRestored
            | Self::Managed
            | Self::OwnershipNotReturned
            | Self::OwnershipKept
            | Self::MinReadySeconds
            | Self::NotRecorded
            | Self::NeverRunning
            | Self::NotWatched
            | Self::RevisionsSkipped
            | Self::ApiServer => Severity::Warning,
        }
    }
}

impl From<StoredWarning> for Warning {
    fn from(StoredWarning { code, severity, message, fix }: StoredWarning) -> Self {
        Self { code, severity: severity.unwrap_or_else(|| code.severity()), message, fix }
    }
}

impl Warning {
    /// A warning of the severity that its code has.
    #[must_use]
    pub fn new(code: WarningCode, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code, severity: code.severity(), message: message.into(), fix: fix.into() }
    }

    /// The same with another severity.
    #[must_use]
    pub fn with_severity(self, severity: Severity) -> Self {
        Self { severity, ..self }
    }

    /// Takes the API server's words, which kubectl prints.
    #[must_use]
    pub fn of_api_server(words: &str) -> Self {
        let fix = "check the fields of the restored template that the API server warns about";
        Self::new(WarningCode::ApiServer, cut(words, WORDS), fix)
    }
}

impl Warning {
    /// Names the newer revisions that were skipped in favour of `target`; `None` if there are none.
    #[must_use]
    pub(super) fn of_skipped(target: &Revision, skipped: &[&Revision]) -> Option<Self> {
        let name =
            |revision: &&Revision| format!("{} (revision {})", revision.controller_revision, revision.number);
        let names: Vec<String> = skipped.iter().take(PATHS).map(name).collect();
        let more = match skipped.len().saturating_sub(PATHS) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let message = format!(
            "the previous revision is taken to be revision {}; skipped, because its template was never the running one and the caller may not patch daemonsets: {}{more}",
            target.number,
            names.join(", ")
        );
        let fix = "look into the skipped revisions: the DaemonSet controller did not make them";
        (!skipped.is_empty()).then(|| Self::new(WarningCode::RevisionsSkipped, message, fix))
    }
}

/// Most paths that a warning lists.
const PATHS: usize = 10;
/// End of the path of the annotation that `kubectl rollout restart` sets.
const RESTARTED_AT: &str = ".kubectl.kubernetes.io/restartedAt";

impl Warning {
    /// Lists what stays with rollbackd of what came back; `None` if nothing does. The time of a restart alone harms
    /// no apply.
    #[must_use]
    pub fn of_kept_fields(paths: &[String]) -> Option<Self> {
        let more = match paths.len().saturating_sub(PATHS) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let listed = paths[..paths.len().min(PATHS)].join(", ");
        let message =
            format!("field manager rollbackd keeps what came back: {listed}{more}; no apply removes it");
        let severity = if paths.iter().all(|path| path.ends_with(RESTARTED_AT)) {
            Severity::Info
        } else {
            Severity::Warning
        };
        let fix = "remove these fields by hand when they are no longer wanted";
        (!paths.is_empty())
            .then(|| Self::new(WarningCode::OwnershipKept, cut(&message, WORDS), fix).with_severity(severity))
    }

    /// Says that the API server let the template through only without last-applied.
    #[must_use]
    pub fn of_refused_last_applied(number: RevisionNumber) -> Self {
        Self::new(
            WarningCode::LastAppliedNotRestored,
            format!(
                "the annotation {LAST_APPLIED} is left as it is: the API server refused to change it; the next client-side 'kubectl apply' may merge two pod templates"
            ),
            apply_first(number),
        )
    }

    /// Says why the fields of the template are not returned.
    #[must_use]
    pub fn of_unreturned_ownership(why: &str) -> Self {
        Self::new(
            WarningCode::OwnershipNotReturned,
            format!("the fields of the template still belong to field manager rollbackd: {why}"),
            "before the next server-side apply compare the template with the manifest; an apply does not remove what rollbackd owns",
        )
    }
}

/// The way out where `kubectl apply` has a record of another manifest.
pub(super) fn apply_first(number: RevisionNumber) -> String {
    format!(
        "apply the manifest of revision {number} before any other: a later apply then removes what it no longer holds"
    )
}

/// Warnings about the DaemonSet as it is.
pub(super) fn warnings(daemonset: &DaemonSet, current: Option<&Revision>) -> Vec<Warning> {
    let name = &daemonset.key.name;
    let mut warnings = Vec::new();
    let mut warn = |code, message: String, fix: &str| warnings.push(Warning::new(code, message, fix));
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

/// What to know of a revision that nobody saw running.
pub(super) fn distrust(target: &Revision, standing: Standing) -> Option<Warning> {
    let name = &target.controller_revision;
    let (code, message) = match standing {
        Standing::Trusted | Standing::NotSeen => return None,
        Standing::Planted => (
            WarningCode::NeverRunning,
            format!(
                "ControllerRevision {name} appeared while rollbackd was watching, and its template was never the running one: it was made by hand"
            ),
        ),
        Standing::Unwatched => (
            WarningCode::NotWatched,
            format!(
                "ControllerRevision {name} appeared while rollbackd could not watch: whether its template has ever been the running one is not known"
            ),
        ),
    };
    Some(Warning::new(code, message, "look into the revision before you roll back to it"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALL: [WarningCode; 12] = [
        WarningCode::LastApplied,
        WarningCode::LastAppliedNotRestored,
        WarningCode::Managed,
        WarningCode::OwnershipNotReturned,
        WarningCode::OwnershipKept,
        WarningCode::OnDelete,
        WarningCode::MinReadySeconds,
        WarningCode::NotRecorded,
        WarningCode::NeverRunning,
        WarningCode::NotWatched,
        WarningCode::RevisionsSkipped,
        WarningCode::ApiServer,
    ];

    #[test]
    fn warning_without_severity_reads_back_with_that_of_its_code() {
        for code in ALL {
            let stored = json!({"code": code, "message": "m", "fix": "f"});
            let read: Warning = serde_json::from_value(stored).unwrap();
            assert_eq!(read, Warning::new(code, "m", "f"));
            assert_eq!(read.severity == Severity::Info, code == WarningCode::OnDelete, "{code:?}");
        }
        let blocking = Warning::new(WarningCode::Managed, "m", "f").with_severity(Severity::Blocking);
        let stored = serde_json::to_value(&blocking).unwrap();
        assert_eq!(stored["severity"], "blocking");
        assert_eq!(serde_json::from_value::<Warning>(stored).unwrap(), blocking);
    }

    #[test]
    fn kept_time_of_a_restart_is_no_warning_but_another_field_is() {
        let restarted = "metadata.annotations.kubectl.kubernetes.io/restartedAt";
        let severity = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
            Warning::of_kept_fields(&paths).map(|warning| warning.severity)
        };
        assert_eq!(severity(&[]), None);
        assert_eq!(severity(&[restarted]), Some(Severity::Info));
        assert_eq!(severity(&[restarted, "spec.hostNetwork"]), Some(Severity::Warning));
    }

    #[test]
    fn rollback_is_refused_from_warning_on_but_not_by_ignored_codes() {
        let managed = |severity| Warning::new(WarningCode::Managed, "m", "f").with_severity(severity);
        let all = [
            Warning::new(WarningCode::OnDelete, "m", "f"),
            Warning::new(WarningCode::MinReadySeconds, "m", "f"),
            managed(Severity::Info),
            managed(Severity::Warning),
            managed(Severity::Blocking),
        ];
        let refuse = |ignore: &[WarningCode]| OnWarning::Refuse { ignore: ignore.iter().copied().collect() };
        assert_eq!(OnWarning::Proceed.refusing(&all), []);
        assert_eq!(refuse(&[]).refusing(&all), [&all[1], &all[3], &all[4]].map(Clone::clone));
        assert_eq!(refuse(&[WarningCode::Managed]).refusing(&all), [all[1].clone()]);
        assert_eq!(refuse(&[WarningCode::Managed, WarningCode::MinReadySeconds]).refusing(&all), []);
        assert_eq!(refuse(&[]).refusing(&all[..1]), []);
    }
}
