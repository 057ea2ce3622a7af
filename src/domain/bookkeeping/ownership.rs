//! Which field managers own the fields of a pod template, and what is returned to them after a rollback.
//!
//! The API server gives every field that the patch of a rollback changes to the field manager `rollbackd`
//! (`structured-merge-diff`, `merge/update.go`). Server-side apply removes only fields that its own manager owns, so
//! that the next apply would leave what the rollback brought back beside what the manifest names. The fields go back
//! to the managers that apply the template:
//!
//! | owned before the rollback by | goes to |
//! |---|---|
//! | Apply managers | all of them |
//! | only the Update manager that owns last-applied | that manager |
//! | only other Update managers | stays with rollbackd |
//! | no manager: the field came back | the only manager that applies the template; if there are several, or none, it stays |
//!
//! An item of a list that came back moves whole, with its key: a leaf that stayed behind would become a container
//! without an image at the next apply. `kubectl.kubernetes.io/restartedAt` stays, since no manifest names it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};

use crate::domain::daemonset::{FIELD_MANAGER, LAST_APPLIED};

/// Set by `kubectl rollout restart` in the template's annotations.
const RESTARTED_AT: &str = "f:kubectl.kubernetes.io/restartedAt";

/// The entries of `metadata.managedFields`, as they came: one that can't be read is passed on unchanged.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ManagedFields(Vec<Box<RawValue>>);

/// Who owned the template and last-applied before a rollback.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ownership(Vec<Owner>);

/// One manager of a DaemonSet's main resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Owner {
    manager: String,
    operation: Operation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    /// What it owns of `spec.template`, as `FieldsV1`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    template: Map<String, Value>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    last_applied: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Operation {
    Apply,
    Update,
}

/// An entry of the main resource in `apps/v1`; of others nothing is read and nothing changed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    manager: String,
    operation: Operation,
    api_version: String,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    time: Option<String>,
    #[serde(default)]
    fields_v1: Map<String, Value>,
}

impl Entry {
    fn read(raw: &RawValue) -> Option<Self> {
        let entry: Self = serde_json::from_str(raw.get()).ok()?;
        (entry.api_version == "apps/v1" && entry.subresource.is_empty()).then_some(entry)
    }

    fn template(&self) -> Option<&Map<String, Value>> {
        self.fields_v1.get("f:spec")?.get("f:template")?.as_object()
    }

    fn owns_last_applied(&self) -> bool {
        annotations(&self.fields_v1).is_some_and(|annotations| annotations.contains_key(&last_applied_key()))
    }
}

fn annotations(fields: &Map<String, Value>) -> Option<&Map<String, Value>> {
    fields.get("f:metadata")?.get("f:annotations")?.as_object()
}

fn last_applied_key() -> String {
    format!("f:{LAST_APPLIED}")
}

impl ManagedFields {
    /// Takes the entries of an object.
    #[must_use]
    pub fn new(entries: Vec<Box<RawValue>>) -> Self {
        Self(entries)
    }

    /// Whether `rollbackd` owns an annotation.
    #[must_use]
    pub fn own_annotation(&self, name: &str) -> bool {
        let key = format!("f:{name}");
        let owns = |entry: Entry| {
            is_ours(&entry) && annotations(&entry.fields_v1).is_some_and(|all| all.contains_key(&key))
        };
        self.0.iter().filter_map(|raw| Entry::read(raw)).any(owns)
    }

    /// The entries.
    #[must_use]
    pub fn entries(&self) -> &[Box<RawValue>] {
        &self.0
    }
}

impl Ownership {
    /// Reads who owns what now.
    #[must_use]
    pub fn of(entries: &ManagedFields) -> Self {
        let owner = |entry: Entry| {
            let (template, last_applied) = (entry.template().cloned(), entry.owns_last_applied());
            // What rollbackd owned before it kept, or could not return: it goes to those who apply the template.
            let relevant = (template.is_some() || last_applied) && !is_ours(&entry);
            relevant.then(|| Owner {
                manager: entry.manager,
                operation: entry.operation,
                time: entry.time,
                template: template.unwrap_or_default(),
                last_applied,
            })
        };
        Self(entries.0.iter().filter_map(|raw| Entry::read(raw)).filter_map(owner).collect())
    }

    /// The Update manager that owns last-applied: a client-side apply.
    fn client_side(&self) -> Option<usize> {
        self.0.iter().position(|owner| owner.last_applied && owner.operation == Operation::Update)
    }

    /// The only manager that applies the template.
    fn only_applier(&self) -> Option<usize> {
        let applies = |(index, owner): (usize, &Owner)| {
            (owner.operation == Operation::Apply && !owner.template.is_empty()).then_some(index)
        };
        let mut appliers = self.0.iter().enumerate().filter_map(applies).chain(self.client_side());
        appliers.next().filter(|_| appliers.next().is_none())
    }

    /// Who owned last-applied.
    fn of_last_applied(&self) -> impl Iterator<Item = usize> {
        let owns = |(index, owner): (usize, &Owner)| owner.last_applied.then_some(index);
        self.0.iter().enumerate().filter_map(owns)
    }

    /// Whether no manager applies the template, so that there is nothing to return to.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let applies = |owner: &Owner| owner.operation == Operation::Apply || owner.last_applied;
        !self.0.iter().any(applies)
    }

    /// What of the template stays with `rollbackd` although it came back, as paths such as
    /// `spec.containers[name=main].env[name=OLD]`: no single manager applies the template, or it is `restartedAt`.
    #[must_use]
    pub fn kept(&self, now: &ManagedFields) -> Vec<String> {
        let Some(ours) = now.0.iter().filter_map(|raw| Entry::read(raw)).find(is_ours) else {
            return Vec::new();
        };
        ours.template().map_or_else(Vec::new, |template| self.shares(template).came_back)
    }

    /// Returns what `rollbackd` owns now to those who owned it before; `None` if nothing is to be returned.
    ///
    /// Each entry keeps its `time`; entries of other API versions and of subresources are copied unchanged.
    #[must_use]
    pub fn returned(&self, now: &ManagedFields) -> Option<ManagedFields> {
        let mut entries: Vec<(Cow<'_, RawValue>, Option<Entry>)> =
            now.0.iter().map(|raw| (Cow::Borrowed(&**raw), Entry::read(raw))).collect();
        let ours = entries.iter_mut().filter_map(|(_, entry)| entry.as_mut()).find(|entry| is_ours(entry))?;
        let shares =
            ours.template().map_or_else(|| Shares::none(self.0.len()), |template| self.shares(template));
        let last_applied: Vec<usize> =
            if ours.owns_last_applied() { self.of_last_applied().collect() } else { Vec::new() };
        if last_applied.is_empty() && shares.given.iter().all(Map::is_empty) {
            return None;
        }
        take(&mut ours.fields_v1, &shares.kept, !last_applied.is_empty());
        let mut changed = vec![(FIELD_MANAGER, Operation::Update)];
        for (index, (owner, template)) in self.0.iter().zip(shares.given).enumerate() {
            let annotated = last_applied.contains(&index);
            if template.is_empty() && !annotated {
                continue;
            }
            let mut given = Map::new();
            if !template.is_empty() {
                given.insert("f:spec".into(), json!({"f:template": template}));
            }
            if annotated {
                given.insert("f:metadata".into(), json!({"f:annotations": {last_applied_key(): {}}}));
            }
            changed.push((owner.manager.as_str(), owner.operation));
            let theirs = entries.iter_mut().filter_map(|(_, entry)| entry.as_mut());
            match theirs.into_iter().find(|entry| owner.is(entry)) {
                Some(entry) => unite(&mut entry.fields_v1, given),
                None => entries.push((Cow::Owned(owner.entry(&given)), None)),
            }
        }
        let write = |(raw, entry): (Cow<'_, RawValue>, Option<Entry>)| match entry {
            Some(entry) if changed.contains(&(entry.manager.as_str(), entry.operation)) => {
                with_fields(&raw, &entry.fields_v1)
            }
            _ => raw.into_owned(),
        };
        Some(ManagedFields(entries.into_iter().map(write).collect()))
    }

    fn shares(&self, set: &Map<String, Value>) -> Shares {
        let owners: Vec<Option<&Map<String, Value>>> = self
            .0
            .iter()
            .map(|owner| Some(&owner.template).filter(|template| !template.is_empty()))
            .collect();
        self.split(set, &owners, "")
    }

    /// Shares one node of `rollbackd`'s set out. `owners` has what each owner had at the same place.
    fn split(&self, set: &Map<String, Value>, owners: &[Option<&Map<String, Value>>], path: &str) -> Shares {
        let mut shares = Shares::none(self.0.len());
        for (key, child) in set {
            let here = element_path(path, key);
            let below: Vec<_> = owners.iter().map(|owner| owner.and_then(|node| step(node, key))).collect();
            let empty = Map::new();
            let fields = child.as_object().unwrap_or(&empty);
            if key == "." || fields.is_empty() {
                let owned = |index: &usize| match key.as_str() {
                    "." => owners[*index].is_some_and(is_element),
                    _ => below[*index].is_some_and(is_element),
                };
                let receivers = self.receivers((0..owners.len()).filter(owned).collect(), key);
                shares.share(key, child, receivers, &here);
            } else if is_item(key) && below.iter().all(Option::is_none) {
                shares.share(key, child, self.receivers(Vec::new(), key), &here);
            } else {
                shares.nest(key, self.split(fields, &below, &here));
            }
        }
        shares
    }

    fn receivers(&self, owned: Vec<usize>, key: &str) -> Receivers {
        if owned.is_empty() {
            let only = self.only_applier().filter(|_| key != RESTARTED_AT);
            return only.map_or(Receivers::CameBack, |only| Receivers::Owners(vec![only]));
        }
        let apply: Vec<usize> =
            owned.iter().copied().filter(|index| self.0[*index].operation == Operation::Apply).collect();
        if !apply.is_empty() {
            return Receivers::Owners(apply);
        }
        match self.client_side().filter(|index| owned.contains(index)) {
            Some(index) => Receivers::Owners(vec![index]),
            None => Receivers::Stays,
        }
    }
}

impl Owner {
    fn is(&self, entry: &Entry) -> bool {
        entry.manager == self.manager && entry.operation == self.operation
    }

    /// An entry for one that has lost its last field.
    fn entry(&self, fields: &Map<String, Value>) -> Box<RawValue> {
        raw(&json!({
            "manager": self.manager, "operation": self.operation, "apiVersion": "apps/v1", "time": self.time,
            "fieldsType": "FieldsV1", "fieldsV1": fields,
        }))
    }
}

/// Who gets a field.
enum Receivers {
    Owners(Vec<usize>),
    /// It was another Update manager's: none of those applies it.
    Stays,
    /// It came back, and no single manager applies the template.
    CameBack,
}

/// What each gets of a set.
struct Shares {
    given: Vec<Map<String, Value>>,
    kept: Map<String, Value>,
    came_back: Vec<String>,
}

impl Shares {
    fn none(owners: usize) -> Self {
        Self { given: vec![Map::new(); owners], kept: Map::new(), came_back: Vec::new() }
    }

    fn share(&mut self, key: &str, child: &Value, receivers: Receivers, path: &str) {
        match receivers {
            Receivers::Owners(owners) => {
                for owner in owners {
                    self.given[owner].insert(key.to_owned(), child.clone());
                }
                return;
            }
            Receivers::CameBack => self.came_back.push(path.to_owned()),
            Receivers::Stays => {}
        }
        self.kept.insert(key.to_owned(), child.clone());
    }

    fn nest(&mut self, key: &str, below: Self) {
        let put = |into: &mut Map<String, Value>, fields: Map<String, Value>| {
            if !fields.is_empty() {
                into.insert(key.to_owned(), Value::Object(fields));
            }
        };
        put(&mut self.kept, below.kept);
        self.given.iter_mut().zip(below.given).for_each(|(into, fields)| put(into, fields));
        self.came_back.extend(below.came_back);
    }
}

fn is_ours(entry: &Entry) -> bool {
    (entry.manager.as_str(), entry.operation) == (FIELD_MANAGER, Operation::Update)
}

/// An item of a list that is merged by keys.
fn is_item(key: &str) -> bool {
    key.starts_with("k:")
}

/// Whether the place of a node is owned itself, and not only places below it.
fn is_element(node: &Map<String, Value>) -> bool {
    node.is_empty() || node.contains_key(".")
}

/// What is below a node. The owner of a whole place owns all that is below it.
fn step<'a>(node: &'a Map<String, Value>, key: &str) -> Option<&'a Map<String, Value>> {
    if node.is_empty() { Some(node) } else { node.get(key)?.as_object() }
}

/// `f:spec`, `k:{"name":"main"}` and so on as a person reads a path.
fn element_path(path: &str, key: &str) -> String {
    let (kind, rest) = key.split_at_checked(2).unwrap_or((key, ""));
    match kind {
        "f:" if path.is_empty() => rest.to_owned(),
        "f:" => format!("{path}.{rest}"),
        "k:" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let keys: Vec<String> =
                keys.iter().map(|(key, value)| format!("{key}={}", text(value))).collect();
            format!("{path}[{}]", keys.join(","))
        }
        "v:" => format!("{path}[{rest}]"),
        _ => path.to_owned(),
    }
}

/// Leaves `rollbackd` with what it keeps of the template, and takes last-applied off it.
fn take(fields: &mut Map<String, Value>, kept: &Map<String, Value>, last_applied: bool) {
    if let Some(Value::Object(spec)) = fields.get_mut("f:spec") {
        if kept.is_empty() {
            spec.remove("f:template");
        } else {
            spec.insert("f:template".into(), Value::Object(kept.clone()));
        }
        if spec.is_empty() {
            fields.remove("f:spec");
        }
    }
    if last_applied
        && let Some(Value::Object(metadata)) = fields.get_mut("f:metadata")
        && let Some(Value::Object(annotations)) = metadata.get_mut("f:annotations")
    {
        annotations.remove(&last_applied_key());
    }
}

/// Adds the fields of one set to another.
fn unite(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, theirs) in from {
        match (into.get_mut(&key), theirs) {
            (None, theirs) => drop(into.insert(key, theirs)),
            (Some(Value::Object(there)), Value::Object(theirs)) if there.is_empty() || theirs.is_empty() => {
                // An element that is owned itself, and places below it.
                let bare = there.is_empty() && theirs.is_empty();
                unite(there, theirs);
                if !bare {
                    there.insert(".".into(), json!({}));
                }
            }
            (Some(Value::Object(there)), Value::Object(theirs)) => unite(there, theirs),
            (Some(_), _) => {}
        }
    }
}

/// The entry with other fields; everything else stays as it is.
fn with_fields(entry: &RawValue, fields: &Map<String, Value>) -> Box<RawValue> {
    let mut entry: Map<String, Value> = serde_json::from_str(entry.get()).unwrap_or_default();
    entry.insert("fieldsV1".into(), Value::Object(fields.clone()));
    raw(&Value::Object(entry))
}

fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("JSON is JSON")
}

#[cfg(test)]
mod tests;
