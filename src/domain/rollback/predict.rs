//! What the tools that keep the manifest will do after a rollback.
//!
//! Facts about each way to apply are in Kubernetes' documentation of server-side apply and of `kubectl apply`; a
//! tool whose apply is not tested only "will probably restore" its own pod template.

use super::{
    Warning, WarningCode,
    remains::{Merge, Remains},
    warning::{Bookkeeping, Severity, apply_first},
};
use crate::domain::{
    daemonset::{DaemonSet, FIELD_MANAGER, FieldManager, LAST_APPLIED},
    managers::{Applies, ManagedBy, Tool},
    revision::RevisionNumber,
    template::Template,
    text::{cut, escape},
};

/// Bytes of a tool's id that are shown.
const ID: usize = 200;

/// What the next write of a tool does to the pod template.
enum Next {
    /// Brings back what was live before, and nothing else.
    Exact,
    /// Brings back what was live before; this part of what is restored no manifest names.
    Mostly(String),
    /// Mixes what was live before with what is restored.
    Merges(Remains),
    /// Fails, or mixes if it is forced.
    Conflicts(Remains),
    /// Not known for sure.
    Unproven,
}

/// A rollback, as far as its consequences depend on it.
pub(super) struct Prediction<'a> {
    pub daemonset: &'a DaemonSet,
    /// The number of the revision that is restored.
    pub number: RevisionNumber,
    /// Its pod template.
    pub restored: &'a Template,
    pub bookkeeping: &'a Bookkeeping,
}

impl Prediction<'_> {
    /// A warning for each tool that keeps the manifest, the most decisive tool first.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        let all = self.daemonset.managed_by();
        let flux = all.iter().any(|by| by.tool == Tool::Flux);
        let mut warnings: Vec<Warning> = all
            .iter()
            // A release that Flux upgrades: Flux is warned of.
            .filter(|by| !(flux && by.tool == Tool::Helm && by.field_manager.is_none()))
            .filter_map(|by| self.of_tool(by))
            .collect();
        if let Bookkeeping::NotRestored(reason) = self.bookkeeping {
            warnings.push(self.not_restored(reason));
        }
        warnings
    }

    fn of_tool(&self, by: &ManagedBy) -> Option<Warning> {
        let name = &self.daemonset.key.name;
        if by.tool == Tool::Operator {
            let owner = shown(by.id.as_deref().unwrap_or_default());
            let message = format!(
                "daemonsets/{name} is controlled by {owner}: its operator will probably restore its own pod template within seconds, so that the rollback will not last"
            );
            let fix = format!("change {owner} instead");
            return Some(Warning::new(WarningCode::Managed, message, fix).with_severity(Severity::Blocking));
        }
        let code = match (by.tool, self.bookkeeping) {
            // The warning about the annotation says it all.
            (Tool::KubectlApply, Bookkeeping::NotRestored(_)) => return None,
            (Tool::KubectlApply, _) => WarningCode::LastApplied,
            _ => WarningCode::Managed,
        };
        let next = self.next(by);
        let mut message =
            format!("daemonsets/{name} is managed by {}: {}", tool(by), self.consequence(by, &next));
        message.push_str(&self.conflicts(by, &next));
        Some(Warning::new(code, message, self.fix(by, &next)))
    }

    /// What a bookkeeping of client-side apply that describes another pod template leads to.
    fn not_restored(&self, reason: &str) -> Warning {
        let Self { daemonset, number, .. } = self;
        let remains = self.remains(Merge::Client);
        let message = format!(
            "the annotation {LAST_APPLIED} of daemonsets/{} can't be restored: {}; the next client-side 'kubectl apply' merges two pod templates{}",
            daemonset.key.name,
            reason.trim_end_matches('.'),
            self.list(&remains)
        );
        Warning::new(WarningCode::LastAppliedNotRestored, message, apply_first(*number))
    }

    /// How the tool applies the template, if it does.
    fn applies(&self, by: &ManagedBy) -> Option<Applies> {
        by.field_manager.as_deref().and_then(|name| self.daemonset.applies_template(name))
    }

    fn next(&self, by: &ManagedBy) -> Next {
        let applies = self.applies(by);
        match (by.tool, applies, self.bookkeeping) {
            (Tool::Kapp | Tool::Rancher | Tool::AddonManager | Tool::Operator, _, _) => Next::Unproven,
            (_, Some(Applies::ServerSide), Bookkeeping::Kept) => {
                let remains = self.remains(Merge::Server);
                // Flux and Argo CD force every apply.
                if matches!(by.tool, Tool::ArgoCd | Tool::Flux) {
                    Next::Merges(remains)
                } else {
                    Next::Conflicts(remains)
                }
            }
            (_, Some(Applies::ServerSide), _) => {
                let remains = self.remains(Merge::Server);
                // What comes back goes to the only manager that applies, or to none.
                if self.appliers() == 1 || remains.is_empty() { Next::Exact } else { Next::Merges(remains) }
            }
            (Tool::KubectlApply, _, Bookkeeping::Restored)
            | (_, Some(Applies::ClientSide), Bookkeeping::Restored) => Next::Exact,
            (Tool::KubectlApply, _, Bookkeeping::Changed(path))
            | (_, Some(Applies::ClientSide), Bookkeeping::Changed(path)) => Next::Mostly(path.clone()),
            // Helm 3 merges against its stored release, which a rollback can't reach.
            (Tool::KubectlApply | Tool::Helm, _, _) | (_, Some(Applies::ClientSide), _) => {
                Next::Merges(self.remains(Merge::Client))
            }
            (Tool::Flux, None, _) if of_helm_release(by) => Next::Merges(self.remains(Merge::Client)),
            (Tool::ArgoCd | Tool::Flux | Tool::ServerSideApply, None, _) => Next::Unproven,
        }
    }

    /// Fields that others wrote by an update are not returned to the tool: unless it forces its apply, it meets a
    /// conflict where it changes them.
    fn conflicts(&self, by: &ManagedBy, next: &Next) -> String {
        let applies = self.applies(by);
        let forces = matches!(by.tool, Tool::ArgoCd | Tool::Flux);
        if forces || applies != Some(Applies::ServerSide) || matches!(next, Next::Conflicts(_)) {
            return String::new();
        }
        let wrote = |manager: &&FieldManager| {
            manager.owns_template == Some(true)
                && manager.applies_template().is_none()
                && manager.name != FIELD_MANAGER
        };
        let others = self.daemonset.field_managers.iter().filter(wrote);
        let others: Vec<String> = others.map(|manager| shown(&manager.name)).collect();
        if others.is_empty() {
            return String::new();
        }
        format!(
            "; unless it is forced, it fails with a conflict where it changes fields that {} wrote",
            others.join(", ")
        )
    }

    /// How many managers apply the pod template; of those on the client only one can hold the annotation.
    fn appliers(&self) -> usize {
        let all = || self.daemonset.field_managers.iter().map(FieldManager::applies_template);
        let server = all().filter(|applies| *applies == Some(Applies::ServerSide)).count();
        server + usize::from(all().any(|applies| applies == Some(Applies::ClientSide)))
    }

    fn remains(&self, merge: Merge) -> Remains {
        Remains::of(self.restored, &self.daemonset.template, merge)
    }

    fn consequence(&self, by: &ManagedBy, next: &Next) -> String {
        let write = write(by);
        match next {
            Next::Exact => {
                let number = self.number;
                format!(
                    "{write} brings {} back exactly; a manifest that describes revision {number} changes nothing in the pod template",
                    template_of(by)
                )
            }
            Next::Mostly(path) => {
                let number = self.number;
                format!(
                    "{write} brings {} back; revision {number} was changed after its manifest was applied ({}), and what only that change had may remain",
                    template_of(by),
                    shown(path)
                )
            }
            Next::Merges(remains) if by.tool == Tool::Helm => format!(
                "{write} merges against the stored release, which holds the pod template that was live before the rollback{}",
                self.list(remains)
            ),
            Next::Merges(remains) => format!("{write} merges two pod templates{}", self.list(remains)),
            Next::Conflicts(remains) => format!(
                "{write} fails with a conflict that names rollbackd; a forced one, and any client-side apply, merges two pod templates{}",
                self.list(remains)
            ),
            Next::Unproven => format!("{write} will probably restore its own pod template"),
        }
    }

    fn list(&self, remains: &Remains) -> String {
        if remains.is_empty() {
            return String::new();
        }
        format!("; at least these parts of revision {} would remain: {remains}", self.number)
    }

    fn fix(&self, by: &ManagedBy, next: &Next) -> String {
        let number = self.number;
        let applies = self.applies(by);
        let fix = match by.tool {
            Tool::ArgoCd => {
                "revert the change in the repository that it syncs from, or switch its automatic sync off before"
                    .to_owned()
            }
            Tool::Flux => {
                "revert the change in the repository that it reconciles from, or suspend it before".to_owned()
            }
            Tool::Helm => {
                let release = shown(by.id.as_deref().unwrap_or_default());
                format!("roll the release back as well: helm rollback {release}")
            }
            Tool::KubectlApply if matches!(next, Next::Merges(_)) => return apply_first(number),
            Tool::KubectlApply | Tool::ServerSideApply => {
                format!("change the manifest back to revision {number} before it is applied again")
            }
            Tool::Kapp | Tool::Rancher | Tool::AddonManager | Tool::Operator => {
                "change the pod template at its source as well".to_owned()
            }
        };
        match next {
            Next::Merges(remains) | Next::Conflicts(remains)
                if applies == Some(Applies::ServerSide) && !remains.is_empty() =>
            {
                format!("{fix}; after the next apply remove by hand what remains")
            }
            _ => fix,
        }
    }
}

/// The tool and what it calls its source.
fn tool(by: &ManagedBy) -> String {
    let kind = match by.tool {
        Tool::Helm => "release ",
        Tool::Kapp => "app ",
        Tool::ServerSideApply => "field manager ",
        _ => "",
    };
    let tool = by.tool;
    match (&by.id, &by.field_manager) {
        (Some(id), _) => format!("{tool} ({kind}{})", shown(id)),
        (None, Some(manager)) if tool != Tool::KubectlApply => {
            format!("{tool} (field manager {})", shown(manager))
        }
        (None, _) if tool == Tool::AddonManager => format!("the {tool}"),
        (None, _) => tool.to_string(),
    }
}

fn template_of(by: &ManagedBy) -> &'static str {
    match by.tool {
        Tool::KubectlApply | Tool::ServerSideApply => "its pod template",
        _ => "the pod template that was live before the rollback",
    }
}

/// The write by which the tool brings its pod template.
fn write(by: &ManagedBy) -> &'static str {
    match by.tool {
        Tool::ArgoCd => "its next sync, which it may start by itself,",
        Tool::Flux if of_helm_release(by) => "the next upgrade of its HelmRelease",
        Tool::Flux => "its next reconciliation, which it starts by itself,",
        Tool::Helm => "the next 'helm upgrade'",
        Tool::KubectlApply => "the next 'kubectl apply' of the manifest that was live before the rollback",
        Tool::ServerSideApply => "its next apply of the manifest that was live before the rollback",
        Tool::Kapp | Tool::Rancher | Tool::AddonManager | Tool::Operator => "it",
    }
}

/// Whether Flux manages it by its helm-controller.
fn of_helm_release(by: &ManagedBy) -> bool {
    by.field_manager.as_deref() == Some("helm-controller")
}

fn shown(text: &str) -> String {
    cut(&escape(text), ID).into_owned()
}

#[cfg(test)]
mod tests;
