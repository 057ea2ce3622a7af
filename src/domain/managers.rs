//! Which tools keep a DaemonSet's manifest, told from what each of them leaves on the object.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::daemonset::{DaemonSet, FIELD_MANAGER, FieldManager, LAST_APPLIED};

/// A tool that keeps the DaemonSet's manifest, and so may bring its own pod template back after a rollback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManagedBy {
    pub tool: Tool,
    /// What the tool calls the source: the tracking id of Argo CD, the Kustomization or HelmRelease of Flux, the
    /// release of Helm, the app of kapp, the owner of Rancher's object set, `Kind/name` of the object that an
    /// operator acts on, or the field manager of a server-side apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(examples("agents"))]
    pub id: Option<String>,
    /// The entry of `metadata.managedFields` that the tool writes with, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(examples("argocd-controller"))]
    pub field_manager: Option<String>,
}

/// Name of a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ManagedByTool)]
pub enum Tool {
    #[serde(rename = "Argo CD")]
    ArgoCd,
    Flux,
    Helm,
    /// Client-side `kubectl apply`.
    #[serde(rename = "kubectl apply")]
    KubectlApply,
    #[serde(rename = "server-side apply")]
    ServerSideApply,
    #[serde(rename = "kapp")]
    Kapp,
    /// Rancher, Fleet and k3s, which share one way to apply.
    Rancher,
    #[serde(rename = "add-on manager")]
    AddonManager,
    /// A controller that owns the DaemonSet.
    #[serde(rename = "operator")]
    Operator,
}

/// How a field manager writes the pod template, which decides what its next write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// By server-side apply.
    ServerSide,
    /// By client-side apply: its record of the last manifest is the annotation [`LAST_APPLIED`].
    ClientSide,
}

/// Field managers of the controllers of Flux.
const FLUX: [&str; 2] = ["kustomize-controller", "helm-controller"];
/// Prefix of the field managers of Argo CD.
const ARGO_CD: &str = "argocd-";
/// Field manager of Helm.
const HELM: &str = "helm";

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ArgoCd => "Argo CD",
            Self::Flux => "Flux",
            Self::Helm => "Helm",
            Self::KubectlApply => "kubectl apply",
            Self::ServerSideApply => "server-side apply",
            Self::Kapp => "kapp",
            Self::Rancher => "Rancher",
            Self::AddonManager => "add-on manager",
            Self::Operator => "operator",
        })
    }
}

impl FieldManager {
    /// How it applies the pod template, if it does.
    #[must_use]
    pub fn applies_template(&self) -> Option<Applies> {
        // A manager that applies a label only leaves the template as a rollback makes it.
        if self.applies && self.owns_template != Some(false) {
            Some(Applies::ServerSide)
        } else if !self.applies && self.owns_last_applied == Some(true) && self.name != FIELD_MANAGER {
            Some(Applies::ClientSide)
        } else {
            None
        }
    }
}

/// Prefix of the labels and annotations of Rancher.
const RANCHER: &str = "objectset.rio.cattle.io/";

/// How much of an annotation is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    Whole,
    /// That it is there: its value may be a whole manifest.
    Presence,
    Nothing,
}

/// How much [`DaemonSet::managed_by`] looks at of an annotation.
pub(super) fn looked_at(annotation: &str) -> Looked {
    match annotation {
        "argocd.argoproj.io/tracking-id" | "meta.helm.sh/release-name" => Looked::Whole,
        LAST_APPLIED => Looked::Presence,
        other => match other.strip_prefix(RANCHER) {
            Some("owner-name" | "id") => Looked::Whole,
            Some(_) => Looked::Presence,
            None => Looked::Nothing,
        },
    }
}

impl<T> DaemonSet<T> {
    /// The tools that keep this DaemonSet's manifest, each source once, the most decisive first: a tool that acts
    /// without being asked comes before one that somebody runs.
    ///
    /// The label `app.kubernetes.io/instance` counts for nothing: Argo CD can track by it, but Helm charts set it
    /// as well. Nor does the mode `EnsureExists` of the add-on manager, which only creates what is missing.
    #[must_use]
    pub fn managed_by(&self) -> Vec<ManagedBy> {
        let tools = [
            self.operator(),
            self.argo_cd(),
            self.flux(),
            self.helm(),
            self.kapp(),
            self.rancher(),
            self.addon_manager(),
        ];
        let applied = self.server_side_appliers().chain(self.kubectl_apply());
        tools.into_iter().flatten().chain(applied).collect()
    }

    /// How the field manager of this name applies the pod template, if it does.
    #[must_use]
    pub fn applies_template(&self, field_manager: &str) -> Option<Applies> {
        let mut entries = self.field_managers.iter().filter(|manager| manager.name == field_manager);
        entries.find_map(FieldManager::applies_template)
    }

    fn operator(&self) -> Option<ManagedBy> {
        self.controller.as_ref().map(|object| ManagedBy::of(Tool::Operator, Some(object), None))
    }

    fn argo_cd(&self) -> Option<ManagedBy> {
        let id = self.annotations.get("argocd.argoproj.io/tracking-id");
        let manager = self.writer(is_argo_cd);
        (id.is_some() || manager.is_some()).then(|| ManagedBy::of(Tool::ArgoCd, id, manager))
    }

    fn flux(&self) -> Option<ManagedBy> {
        let label = |key| self.labels.get(key);
        let id = label("kustomize.toolkit.fluxcd.io/name").or_else(|| label("helm.toolkit.fluxcd.io/name"));
        let manager = self.writer(is_flux);
        (id.is_some() || manager.is_some()).then(|| ManagedBy::of(Tool::Flux, id, manager))
    }

    fn helm(&self) -> Option<ManagedBy> {
        let release = self.annotations.get("meta.helm.sh/release-name")?;
        Some(ManagedBy::of(Tool::Helm, Some(release), self.writer(|name| name == HELM)))
    }

    fn kapp(&self) -> Option<ManagedBy> {
        let app = self.labels.get("kapp.k14s.io/app")?;
        Some(ManagedBy::of(Tool::Kapp, Some(app), self.writer(|name| name == "kapp")))
    }

    fn rancher(&self) -> Option<ManagedBy> {
        let mut keys = self.labels.keys().chain(self.annotations.keys());
        if !keys.any(|key| key.starts_with(RANCHER)) {
            return None;
        }
        let value = |key| self.annotations.get(&format!("{RANCHER}{key}"));
        Some(ManagedBy::of(Tool::Rancher, value("owner-name").or_else(|| value("id")), None))
    }

    fn addon_manager(&self) -> Option<ManagedBy> {
        let mode = self.labels.get("addonmanager.kubernetes.io/mode")?;
        (mode == "Reconcile").then(|| ManagedBy::of(Tool::AddonManager, None, None))
    }

    fn server_side_appliers(&self) -> impl Iterator<Item = ManagedBy> {
        let release = self.annotations.contains_key("meta.helm.sh/release-name");
        let known = move |name: &str| is_argo_cd(name) || is_flux(name) || (release && name == HELM);
        let applies = |manager: &&FieldManager| manager.applies_template() == Some(Applies::ServerSide);
        let mut names: Vec<&String> = Vec::new();
        for manager in self.field_managers.iter().filter(applies) {
            if !known(&manager.name) && !names.contains(&&manager.name) {
                names.push(&manager.name);
            }
        }
        names.into_iter().map(|name| ManagedBy::of(Tool::ServerSideApply, Some(name), Some(name)))
    }

    /// The annotation alone does not prove it: Argo CD writes it too, and `kubectl apply --server-side` keeps it
    /// current, as an Apply manager of its own.
    fn kubectl_apply(&self) -> Option<ManagedBy> {
        if !self.annotations.contains_key(LAST_APPLIED) {
            return None;
        }
        let owns = |manager: &&FieldManager| {
            manager.owns_last_applied == Some(true) && manager.name != FIELD_MANAGER
        };
        let owners: Vec<&FieldManager> = self.field_managers.iter().filter(owns).collect();
        let by_hand = owners.iter().find(|owner| !owner.applies && !is_argo_cd(&owner.name));
        (owners.is_empty() || by_hand.is_some())
            .then(|| ManagedBy::of(Tool::KubectlApply, None, by_hand.map(|owner| &owner.name)))
    }

    /// The field manager of a tool that tells most of what its next write does: one that applies the template, else
    /// the one that wrote last.
    fn writer(&self, is: impl Fn(&str) -> bool) -> Option<&String> {
        let mine = || self.field_managers.iter().filter(|manager| is(&manager.name));
        let applies = mine().find(|manager| manager.applies_template().is_some());
        applies.or_else(|| mine().next()).map(|manager| &manager.name)
    }
}

impl ManagedBy {
    fn of(tool: Tool, id: Option<&String>, field_manager: Option<&String>) -> Self {
        Self { tool, id: id.cloned(), field_manager: field_manager.cloned() }
    }
}

fn is_argo_cd(name: &str) -> bool {
    name.starts_with(ARGO_CD)
}

fn is_flux(name: &str) -> bool {
    FLUX.contains(&name)
}

#[cfg(test)]
mod tests;
