//! A DaemonSet as rollbackd sees it: what revisions, rollbacks and rollouts depend on.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    key::Key,
    managers::{Looked, looked_at},
    template::{Template, TemplateSummary},
};

/// Annotation in which people and tools say why they changed a workload; kubectl's `CHANGE-CAUSE`.
pub const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
/// Annotation in which client-side `kubectl apply` keeps the manifest it applied last.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Annotation that carries the id of the rollback that wrote the live template, in the same patch.
/// The controller copies it to ControllerRevisions that it creates later.
pub const ROLLBACK: &str = "rollbackd.dev/rollback";

/// Name under which `metadata.managedFields` shows what rollbackd wrote.
pub const FIELD_MANAGER: &str = "rollbackd";

/// One DaemonSet at one resource version. `T` is what is held of its template: the whole, or its
/// [`TemplateSummary`].
#[derive(Clone, Debug)]
pub struct DaemonSet<T = Template> {
    pub key: Key,
    pub uid: String,
    pub resource_version: String,
    /// Rises with each change of the spec, starting at 1.
    pub generation: i64,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The object that controls it, by `metadata.ownerReferences`, as `Kind/name`.
    pub controller: Option<String>,
    pub being_deleted: bool,
    pub strategy: UpdateStrategy,
    /// Seconds that a pod must be ready before it counts as available.
    pub min_ready_seconds: i64,
    pub template: T,
    /// `spec.selector` as the label selector text that a list request takes.
    pub selector: String,
    pub status: Counts,
    /// Newest first: who wrote something beside the status.
    pub field_managers: Vec<FieldManager>,
}

/// A DaemonSet as the watch keeps it: without the whole template, and with those annotations alone that are
/// looked at.
pub type WatchedDaemonSet = DaemonSet<TemplateSummary>;

/// `spec.updateStrategy.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub enum UpdateStrategy {
    /// The controller replaces old pods, a few at a time.
    RollingUpdate,
    /// Pods are replaced only when somebody deletes them.
    OnDelete,
}

/// The counters of `status`, numbers of nodes. Absent ones are 0, as in Kubernetes' own types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = DaemonSetCounts)]
pub struct Counts {
    /// The generation that the controller has acted on.
    #[serde(default)]
    pub observed_generation: i64,
    /// Nodes that should run a pod.
    #[serde(default)]
    pub desired_number_scheduled: i32,
    /// Of those, nodes that have a pod.
    #[serde(default)]
    pub current_number_scheduled: i32,
    /// Of those, nodes whose pod is of the current template.
    #[serde(default)]
    pub updated_number_scheduled: i32,
    /// Of those, nodes whose pod is ready.
    #[serde(default)]
    pub number_ready: i32,
    /// Of those, nodes whose pod has been ready for `minReadySeconds`.
    #[serde(default)]
    pub number_available: i32,
    /// Nodes that should run a pod and have none available.
    #[serde(default)]
    pub number_unavailable: i32,
    /// Nodes that run a pod and should not.
    #[serde(default)]
    pub number_misscheduled: i32,
}

/// One entry of `metadata.managedFields`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldManager {
    pub name: String,
    /// When it last wrote, to the second.
    pub time: Option<Timestamp>,
    /// Written by server-side apply, not by an update or patch.
    pub applies: bool,
    /// Owns a field inside `spec.template`; unknown where the entry came without its fields.
    pub owns_template: Option<bool>,
    /// Owns the annotation [`LAST_APPLIED`]; unknown where the entry came without its fields.
    pub owns_last_applied: Option<bool>,
}

impl DaemonSet {
    /// What the watch keeps of it: of the annotations what is looked at.
    #[must_use]
    pub fn watched(self) -> WatchedDaemonSet {
        let mut annotations = self.annotations;
        annotations.retain(|key, value| match looked_at(key) {
            _ if [CHANGE_CAUSE, ROLLBACK].contains(&key.as_str()) => true,
            Looked::Whole => true,
            Looked::Presence => {
                *value = String::new();
                true
            }
            Looked::Nothing => false,
        });
        DaemonSet {
            key: self.key,
            uid: self.uid,
            resource_version: self.resource_version,
            generation: self.generation,
            labels: self.labels,
            annotations,
            controller: self.controller,
            being_deleted: self.being_deleted,
            strategy: self.strategy,
            min_ready_seconds: self.min_ready_seconds,
            template: self.template.summary().clone(),
            selector: self.selector,
            status: self.status,
            field_managers: self.field_managers,
        }
    }
}

impl WatchedDaemonSet {
    /// The same without the parts whose size its author chooses: labels, annotations, field managers and images.
    /// Identity, counts, template's fingerprint and selector stay.
    #[must_use]
    pub fn abridged(self) -> Self {
        Self {
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            field_managers: Vec::new(),
            template: self.template.without_images(),
            selector: String::new(),
            ..self
        }
    }

    /// Bytes that it takes in memory.
    #[must_use]
    pub fn size(&self) -> usize {
        let texts = |map: &BTreeMap<String, String>| -> usize {
            map.iter().map(|(key, value)| 2 * size_of::<String>() + key.len() + value.len()).sum()
        };
        let managers: usize =
            self.field_managers.iter().map(|manager| size_of::<FieldManager>() + manager.name.len()).sum();
        let key = self.key.namespace.as_str().len() + self.key.name.as_str().len();
        let controller = self.controller.as_ref().map_or(0, String::len);
        let own = size_of::<Self>()
            + controller
            + key
            + self.uid.len()
            + self.resource_version.len()
            + self.selector.len();
        own + texts(&self.labels) + texts(&self.annotations) + managers + self.template.heap()
    }
}

impl<T> DaemonSet<T> {
    /// The DaemonSet's own change-cause, which speaks of the newest change that somebody
    /// described and stays as it is when a rollback is made.
    #[must_use]
    pub fn change_cause(&self) -> Option<&str> {
        self.annotations.get(CHANGE_CAUSE).map(String::as_str).filter(|cause| !cause.is_empty())
    }

    /// The id of the rollback whose patch was the last one made by rollbackd.
    #[must_use]
    pub fn rollback_id(&self) -> Option<&str> {
        self.annotations.get(ROLLBACK).map(String::as_str)
    }

    /// Who wrote to the template after the last write of rollbackd, or in the same second.
    ///
    /// Whoever only takes something away leaves no trace.
    #[must_use]
    pub fn later_writer(&self) -> Option<&FieldManager> {
        let ours = self.field_managers.iter().find(|manager| manager.name == FIELD_MANAGER)?;
        self.field_managers.iter().find(|manager| {
            manager.owns_template == Some(true) && manager.name != FIELD_MANAGER && manager.time >= ours.time
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::fixtures::daemonset;

    #[test]
    fn a_watched_daemonset_keeps_the_annotations_that_are_looked_at_and_no_manifest() {
        let mut live = daemonset("a");
        let manifest = "x".repeat(200_000);
        for (key, value) in [
            (CHANGE_CAUSE, "because"),
            (ROLLBACK, "id"),
            (LAST_APPLIED, &manifest),
            ("objectset.rio.cattle.io/applied", &manifest),
            ("objectset.rio.cattle.io/owner-name", "bundle"),
            ("example.org/notes", &manifest),
        ] {
            live.annotations.insert(key.into(), value.into());
        }
        let watched = live.clone().watched();
        assert!(watched.size() < 2_000, "{}", watched.size());
        assert_eq!(watched.managed_by(), live.managed_by());
        let said = (watched.change_cause(), watched.rollback_id());
        assert_eq!(said, (Some("because"), Some("id")));
        assert!(!watched.annotations.contains_key("example.org/notes"));
    }
}
