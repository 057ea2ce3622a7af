//! DaemonSets and ControllerRevisions as they come over the wire.
//!
//! Not k8s-openapi's types: those would lose fields they do not know, and take 123 KiB where this
//! takes 10. What the domain needs is worked out once, when the object arrives.
//!
//! One object that can't be read would end the watch of all, in every namespace. So what the API
//! server stores as its author wrote it (a ControllerRevision's `data`, the entries of
//! `managedFields`) is cut out as text first and read by itself: it may be nested deeper than
//! `serde_json` goes, or hold half of a surrogate pair.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};
use kube::{Resource, core::Selector};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, value::RawValue};

use crate::domain::{
    bookkeeping::ManagedFields,
    daemonset::{CHANGE_CAUSE, Counts, DaemonSet, FieldManager, LAST_APPLIED, ROLLBACK, UpdateStrategy},
    key::{Key, Name, Namespace},
    revision::{Revision, RevisionNumber},
    revision_data::DataDigest,
    template::{NotRestorable, Template},
};

/// A DaemonSet from the wire, under the metadata that kube's reflector needs.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "WireDaemonSet")]
pub struct ObservedDaemonSet {
    meta: ObjectMeta,
    pub daemonset: Arc<DaemonSet>,
}

/// A ControllerRevision from the wire.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WireRevision")]
pub struct ObservedRevision {
    meta: ObjectMeta,
    pub labels: BTreeMap<String, String>,
    pub revision: Revision,
}

/// A DaemonSet that was read to be written: with the bookkeeping that no watch keeps.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "WireDaemonSet")]
pub struct FreshDaemonSet {
    meta: ObjectMeta,
    pub daemonset: Arc<DaemonSet>,
    pub managed_fields: ManagedFields,
}

/// A ControllerRevision that was read for a rollback: with its last-applied annotation.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WireRevision")]
pub struct FreshRevision {
    pub observed: ObservedRevision,
}

/// The metadata that is looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    #[serde(default)]
    generation: i64,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Timestamp>,
    deletion_timestamp: Option<IgnoredAny>,
    owner_references: Option<Vec<OwnerReference>>,
    managed_fields: Option<Vec<Box<RawValue>>>,
}

/// An entry of `managedFields`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireManager {
    manager: Option<String>,
    operation: Option<String>,
    subresource: Option<String>,
    time: Option<Timestamp>,
    fields_v1: Option<OwnedFields>,
}

#[derive(Deserialize)]
struct OwnedFields {
    #[serde(rename = "f:spec")]
    spec: Option<OwnedSpec>,
    #[serde(rename = "f:metadata")]
    metadata: Option<OwnedMetadata>,
}

#[derive(Deserialize)]
struct OwnedMetadata {
    #[serde(rename = "f:annotations")]
    annotations: Option<OwnedAnnotations>,
}

#[derive(Deserialize)]
struct OwnedAnnotations {
    #[serde(rename = "f:kubectl.kubernetes.io/last-applied-configuration")]
    last_applied: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct OwnedSpec {
    #[serde(rename = "f:template")]
    template: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct WireDaemonSet {
    metadata: WireMeta,
    #[serde(default)]
    spec: WireSpec,
    #[serde(default)]
    status: Counts,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireSpec {
    #[serde(default)]
    template: Value,
    // The bookmark that ends a streamed list holds `selector: null`.
    #[serde(default)]
    selector: Option<LabelSelector>,
    #[serde(default)]
    min_ready_seconds: i64,
    #[serde(default)]
    update_strategy: WireStrategy,
}

#[derive(Default, Deserialize)]
struct WireStrategy {
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct WireRevision {
    metadata: WireMeta,
    data: Option<Box<RawValue>>,
    #[serde(default)]
    revision: i64,
}

impl TryFrom<WireDaemonSet> for ObservedDaemonSet {
    type Error = String;

    fn try_from(wire: WireDaemonSet) -> Result<Self, String> {
        let WireDaemonSet { metadata, spec, status } = wire;
        let meta = identity(&metadata);
        let name = |text: Option<String>| text.unwrap_or_default();
        let key = Key {
            namespace: Namespace::parse(&name(metadata.namespace)).map_err(|error| error.to_string())?,
            name: Name::parse(&name(metadata.name)).map_err(|error| error.to_string())?,
        };
        // One odd object must not stop the watch of all; ownership is checked by uid in any case.
        let selector = spec.selector.and_then(|selector| Selector::try_from(selector).ok());
        let daemonset = DaemonSet {
            key,
            uid: metadata.uid.unwrap_or_default(),
            resource_version: metadata.resource_version.unwrap_or_default(),
            generation: metadata.generation,
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
            controller: controller(metadata.owner_references)
                .map(|owner| format!("{}/{}", owner.kind, owner.name)),
            being_deleted: metadata.deletion_timestamp.is_some(),
            strategy: match spec.update_strategy.kind.as_deref() {
                Some("OnDelete") => UpdateStrategy::OnDelete,
                _ => UpdateStrategy::RollingUpdate,
            },
            min_ready_seconds: spec.min_ready_seconds,
            template: Template::new(spec.template),
            selector: selector.map(|selector| selector.to_string()).unwrap_or_default(),
            status,
            field_managers: field_managers(&metadata.managed_fields.unwrap_or_default()),
        };
        Ok(Self { meta, daemonset: Arc::new(daemonset) })
    }
}

impl TryFrom<WireDaemonSet> for FreshDaemonSet {
    type Error = String;

    fn try_from(wire: WireDaemonSet) -> Result<Self, String> {
        let managed_fields = ManagedFields::new(wire.metadata.managed_fields.clone().unwrap_or_default());
        let ObservedDaemonSet { meta, daemonset } = wire.try_into()?;
        Ok(Self { meta, daemonset, managed_fields })
    }
}

impl From<WireRevision> for FreshRevision {
    fn from(wire: WireRevision) -> Self {
        let annotations = wire.metadata.annotations.as_ref();
        let last_applied = annotations.and_then(|annotations| annotations.get(LAST_APPLIED));
        let last_applied = last_applied.map(|text| text.as_str().into());
        let mut observed = ObservedRevision::from(wire);
        observed.revision.last_applied = last_applied;
        Self { observed }
    }
}

impl From<WireRevision> for ObservedRevision {
    fn from(wire: WireRevision) -> Self {
        let WireRevision { metadata, data, revision } = wire;
        let meta = identity(&metadata);
        let annotation = |key: &str| {
            let value = metadata.annotations.as_ref().and_then(|annotations| annotations.get(key));
            value.filter(|value| !value.is_empty()).cloned()
        };
        let labels = metadata.labels.unwrap_or_default();
        let controller = controller(metadata.owner_references);
        let (owner, owner_name) = controller.map(|owner| (owner.uid, named(owner.kind, owner.name))).unzip();
        let revision = Revision {
            number: RevisionNumber(revision),
            controller_revision: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            owner,
            owner_name,
            hash: labels.get("controller-revision-hash").cloned(),
            change_cause: annotation(CHANGE_CAUSE),
            created_at: metadata.creation_timestamp,
            rollback: annotation(ROLLBACK),
            last_applied: None,
            template: template(data.as_deref()),
            data: data.map(|data| DataDigest::of(data.get())),
        };
        Self { meta, labels, revision }
    }
}

fn controller(owners: Option<Vec<OwnerReference>>) -> Option<OwnerReference> {
    owners?.into_iter().find(|owner| owner.controller == Some(true))
}

/// The name of a DaemonSet by itself, any other with its kind, which no name of a DaemonSet is like.
fn named(kind: String, name: String) -> String {
    if kind == "DaemonSet" { name } else { format!("{kind}/{name}") }
}

fn template(data: Option<&RawValue>) -> Result<Template, NotRestorable> {
    let data = data.map(|data| serde_json::from_str(data.get())).transpose();
    Template::from_revision_data(data.map_err(|_| NotRestorable::Unreadable)?)
}

impl OwnedFields {
    /// Whether a field of the pod template is among them, and whether the annotation of the last applied manifest
    /// is.
    fn owned(self) -> (bool, bool) {
        let annotations = self.metadata.and_then(|metadata| metadata.annotations);
        (
            self.spec.is_some_and(|spec| spec.template.is_some()),
            annotations.is_some_and(|annotations| annotations.last_applied.is_some()),
        )
    }
}

impl AsRef<ObservedRevision> for ObservedRevision {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl AsRef<ObservedRevision> for FreshRevision {
    fn as_ref(&self) -> &ObservedRevision {
        &self.observed
    }
}

impl ObservedRevision {
    /// Namespace and uid.
    pub fn place(&self) -> Option<(Namespace, &str)> {
        let namespace = Namespace::parse(self.meta.namespace.as_deref()?).ok()?;
        Some((namespace, self.meta.uid.as_deref()?))
    }

    /// One for unit tests.
    #[cfg(test)]
    pub(super) fn fixture(namespace: &str, revision: Revision) -> Self {
        let meta = ObjectMeta {
            namespace: Some(namespace.into()),
            uid: Some(revision.uid.clone()),
            ..ObjectMeta::default()
        };
        Self { meta, labels: BTreeMap::new(), revision }
    }
}

/// What the reflector's store needs of the metadata: the rest is in the domain object.
fn identity(metadata: &WireMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        ..ObjectMeta::default()
    }
}

/// Who wrote something beside the status, newest first.
fn field_managers(entries: &[Box<RawValue>]) -> Vec<FieldManager> {
    let read = |entry: &RawValue| serde_json::from_str::<WireManager>(entry.get()).ok();
    let mut entries: Vec<WireManager> = entries.iter().filter_map(|entry| read(entry)).collect();
    entries.retain(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty());
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.time));
    let manager = |entry: WireManager| {
        let (template, last_applied) = entry.fields_v1.map(OwnedFields::owned).unzip();
        FieldManager {
            name: entry.manager.unwrap_or_default(),
            time: entry.time,
            applies: entry.operation.as_deref() == Some("Apply"),
            owns_template: template,
            owns_last_applied: last_applied,
        }
    };
    entries.into_iter().map(manager).collect()
}

/// Makes a type stand for one of k8s-openapi's kinds.
macro_rules! resource {
    ($observed:ty, $kind:ty, $($meta:ident).+) => {
        impl Resource for $observed {
            type DynamicType = ();
            type Scope = <$kind as Resource>::Scope;

            fn kind((): &()) -> Cow<'_, str> {
                <$kind as Resource>::kind(&())
            }
            fn group((): &()) -> Cow<'_, str> {
                <$kind as Resource>::group(&())
            }
            fn version((): &()) -> Cow<'_, str> {
                <$kind as Resource>::version(&())
            }
            fn plural((): &()) -> Cow<'_, str> {
                <$kind as Resource>::plural(&())
            }
            fn meta(&self) -> &ObjectMeta {
                &self.$($meta).+
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.$($meta).+
            }
        }
    };
}

resource!(ObservedDaemonSet, v1::DaemonSet, meta);
resource!(FreshDaemonSet, v1::DaemonSet, meta);
resource!(ObservedRevision, v1::ControllerRevision, meta);
resource!(FreshRevision, v1::ControllerRevision, observed.meta);
