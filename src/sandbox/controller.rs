//! What kube-controller-manager's DaemonSet controller does, as far as the story and the tests of reads,
//! rollback and stream need it: history, placement, rolling update, status (`pkg/controller/daemon`).
//!
//! Deliberately absent, and tested on the real control plane only: adoption and release, `maxSurge`, hash
//! collisions, quotas, pods that fail.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    daemonset::template_generation,
    kubelet,
    world::{Id, Kind, World},
};

const HASH: &str = "controller-revision-hash";
const POD_GENERATION: &str = "pod-template-generation";

/// A DaemonSet and what the controller's caches hold when it looks at it. What it does during the look
/// is not in there, so that the status it writes is one step behind, as the real one's is.
struct Look<'a> {
    daemonset: &'a Value,
    id: &'a Id,
    /// The name of the current revision on pods.
    hash: String,
    nodes: BTreeMap<String, Node>,
    now: Timestamp,
    /// For how long a pod must have been ready to be available.
    min_ready: jiff::SignedDuration,
}

/// A node as one DaemonSet sees it.
#[derive(Default)]
struct Node {
    /// A pod may be left of one that is gone; no counter counts it.
    exists: bool,
    should_run: bool,
    may_stay: bool,
    /// Oldest first.
    pods: Vec<Arc<Value>>,
}

/// One look at one DaemonSet.
pub fn sync(world: &mut World, id: &Id) {
    let Some(daemonset) = world.get(id) else { return };
    if !daemonset["metadata"]["deletionTimestamp"].is_null() {
        return;
    }
    let pods = world.owned(Kind::Pod, &daemonset);
    let hash = record_history(world, &daemonset, &pods);
    let min_ready_seconds = daemonset["spec"]["minReadySeconds"].as_f64().unwrap_or(0.0);
    let look = Look {
        daemonset: &daemonset,
        id,
        hash,
        nodes: nodes(world, &daemonset, &pods),
        now: world.now(),
        min_ready: world.wait(min_ready_seconds),
    };
    let placed = look.place(world);
    // Its own creations and deletions must be seen before it goes on.
    if !placed && daemonset["spec"]["updateStrategy"]["type"] == "RollingUpdate" {
        look.roll(world);
    }
    clean_up_history(world, &daemonset, &look.hash, &pods);
    look.write_status(world);
    if pods.iter().any(|pod| ready_since(pod).is_some() && !look.is_available(pod)) {
        world.sync_after(min_ready_seconds, id.clone());
    }
}

/// Takes away what belonged to a DaemonSet that was deleted, as the garbage collector does.
pub fn collect(world: &mut World, daemonset: &Value) {
    for kind in [Kind::Pod, Kind::ControllerRevision] {
        for object in world.owned(kind, daemonset) {
            world.remove(&Id::of(kind, &object));
        }
    }
}

fn label<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"]["labels"][key].as_str().unwrap_or_default()
}

fn number(revision: &Value) -> i64 {
    revision["revision"].as_i64().unwrap_or(0)
}

/// Sees to it that the template is a revision, the highest one; returns its hash.
fn record_history(world: &mut World, daemonset: &Value, pods: &[Arc<Value>]) -> String {
    let mut template = daemonset["spec"]["template"].clone();
    template["$patch"] = json!("replace");
    let data = json!({"spec": {"template": template}});
    let all = world.owned(Kind::ControllerRevision, daemonset);
    let (mut current, old): (Vec<_>, Vec<_>) = all.into_iter().partition(|it| it["data"] == data);
    let next = old.iter().map(|it| number(it)).max().unwrap_or(0) + 1;
    current.sort_by_key(|it| Reverse(number(it)));
    let Some(keep) = current.first() else {
        return create_revision(world, daemonset, data, next);
    };
    let hash = label(keep, HASH).to_owned();
    for twin in &current[1..] {
        for pod in pods.iter().filter(|pod| label(pod, HASH) != hash) {
            world.update(&Id::of(Kind::Pod, pod), |pod| pod["metadata"]["labels"][HASH] = json!(hash));
        }
        world.remove(&Id::of(Kind::ControllerRevision, twin));
    }
    if number(keep) < next {
        world.update(&Id::of(Kind::ControllerRevision, keep), |revision| revision["revision"] = json!(next));
    }
    hash
}

fn create_revision(world: &mut World, daemonset: &Value, data: Value, next: i64) -> String {
    let metadata = &daemonset["metadata"];
    let hash = hash(&data["spec"]["template"].to_string());
    let name = format!("{}-{hash}", metadata["name"].as_str().unwrap_or_default());
    let mut labels = daemonset["spec"]["template"]["metadata"]["labels"].clone();
    labels[HASH] = json!(hash);
    world.create(
        Kind::ControllerRevision,
        json!({
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": name,
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": metadata["annotations"],
                "ownerReferences": owner(daemonset),
            },
            "data": data,
            "revision": next,
        }),
    );
    hash
}

/// FNV-1a, 32 bits, in the digits and letters that can't form a word.
fn hash(text: &str) -> String {
    let fnv = |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
    let number = text.bytes().fold(2_166_136_261, fnv).to_string();
    number.bytes().map(|digit| char::from(b"456789bcdf"[usize::from(digit - b'0')])).collect()
}

fn owner(daemonset: &Value) -> Value {
    json!([{
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "name": daemonset["metadata"]["name"],
        "uid": daemonset["metadata"]["uid"],
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

/// Deletes the oldest revisions beyond `revisionHistoryLimit` that no pod is of.
fn clean_up_history(world: &mut World, daemonset: &Value, hash: &str, pods: &[Arc<Value>]) {
    let limit = daemonset["spec"]["revisionHistoryLimit"].as_u64().unwrap_or(10);
    let mut old = world.owned(Kind::ControllerRevision, daemonset);
    old.retain(|revision| label(revision, HASH) != hash);
    old.sort_by_key(|revision| number(revision));
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    let live: BTreeSet<&str> = pods.iter().map(|pod| label(pod, HASH)).collect();
    for revision in old.iter().filter(|revision| !live.contains(label(revision, HASH))).take(surplus) {
        world.remove(&Id::of(Kind::ControllerRevision, revision));
    }
}

fn nodes(world: &World, daemonset: &Value, pods: &[Arc<Value>]) -> BTreeMap<String, Node> {
    let spec = &daemonset["spec"]["template"]["spec"];
    let mut nodes = BTreeMap::new();
    for (id, node) in world.list(Kind::Node) {
        let fits = selected(&spec["nodeSelector"], &node["metadata"]["labels"]);
        let taints = node["spec"]["taints"].as_array().map(Vec::as_slice).unwrap_or_default();
        let kept_out = |effects: &[&str]| {
            taints.iter().any(|taint| {
                effects.contains(&taint["effect"].as_str().unwrap_or_default())
                    && !tolerated(&spec["tolerations"], taint)
            })
        };
        let should_run = fits && !kept_out(&["NoSchedule", "NoExecute"]);
        let may_stay = fits && !kept_out(&["NoExecute"]);
        nodes.insert(id.name.clone(), Node { exists: true, should_run, may_stay, pods: Vec::new() });
    }
    let mut pods = pods.to_vec();
    pods.sort_by_key(|pod| pod["metadata"]["creationTimestamp"].as_str().map(str::to_owned));
    for pod in pods {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        nodes.entry(node.to_owned()).or_default().pods.push(pod);
    }
    nodes
}

fn selected(selector: &Value, labels: &Value) -> bool {
    selector.as_object().is_none_or(|wanted| wanted.iter().all(|(key, value)| labels[key] == *value))
}

fn tolerated(tolerations: &Value, taint: &Value) -> bool {
    tolerations.as_array().into_iter().flatten().any(|toleration| {
        let any_key = toleration["key"].as_str().unwrap_or_default().is_empty();
        let any_effect = toleration["effect"].as_str().unwrap_or_default().is_empty();
        let exists = toleration["operator"] == "Exists";
        (any_key && exists || toleration["key"] == taint["key"])
            && (any_effect || toleration["effect"] == taint["effect"])
            && (exists || toleration["value"] == taint["value"])
    })
}

fn is_terminating(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
}

fn ready_since(pod: &Value) -> Option<Timestamp> {
    let mut conditions = pod["status"]["conditions"].as_array()?.iter();
    conditions.find(|it| it["type"] == "Ready" && it["status"] == "True")?["lastTransitionTime"]
        .as_str()?
        .parse()
        .ok()
}

impl Look<'_> {
    fn is_available(&self, pod: &Value) -> bool {
        ready_since(pod).is_some_and(|since| self.min_ready.is_zero() || since + self.min_ready <= self.now)
    }

    fn is_updated(&self, pod: &Value) -> bool {
        label(pod, HASH) == self.hash || label(pod, POD_GENERATION) == template_generation(self.daemonset)
    }

    /// One pod on each node that should have one, none elsewhere. Says whether anything was to do.
    fn place(&self, world: &mut World) -> bool {
        let mut done = false;
        for (name, node) in &self.nodes {
            let mut living = node.pods.iter().filter(|pod| !is_terminating(pod));
            if node.should_run && node.pods.is_empty() {
                self.create_pod(world, name);
                done = true;
            }
            for surplus in living.by_ref().skip(usize::from(node.may_stay)) {
                kubelet::terminate(world, &Id::of(Kind::Pod, surplus));
                done = true;
            }
        }
        done
    }

    fn create_pod(&self, world: &mut World, node: &str) {
        let template = &self.daemonset["spec"]["template"];
        let name = format!("{}-{}", self.id.name, hash(&world.number().to_string()));
        let mut labels = template["metadata"]["labels"].clone();
        labels[HASH] = json!(self.hash);
        labels[POD_GENERATION] = json!(template_generation(self.daemonset));
        let mut spec = template["spec"].clone();
        spec["nodeName"] = json!(node);
        let id = Id::new(Kind::Pod, &self.id.namespace, &name);
        world.create(
            Kind::Pod,
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": self.id.namespace,
                    "labels": labels,
                    "ownerReferences": owner(self.daemonset),
                },
                "spec": spec,
                "status": {"phase": "Pending"},
            }),
        );
        kubelet::take_in(world, &id);
    }

    /// Replaces old pods: those that are not available at once, the others up to `maxUnavailable`.
    fn roll(&self, world: &mut World) {
        let (mut unavailable, mut candidates) = (0, Vec::new());
        for node in self.nodes.values().filter(|node| node.should_run || !node.pods.is_empty()) {
            let living = node.pods.iter().filter(|pod| !is_terminating(pod));
            let (new, old): (Vec<_>, Vec<_>) = living.partition(|pod| self.is_updated(pod));
            match (old.first(), new.first()) {
                (Some(old), None) if self.is_available(old) => candidates.push(*old),
                (Some(old), None) => {
                    unavailable += 1;
                    kubelet::terminate(world, &Id::of(Kind::Pod, old));
                }
                (None, Some(new)) if self.is_available(new) => {}
                _ => unavailable += 1,
            }
        }
        for pod in candidates.into_iter().take(self.max_unavailable().saturating_sub(unavailable)) {
            kubelet::terminate(world, &Id::of(Kind::Pod, pod));
        }
    }

    /// A number or a percentage of the nodes, rounded up, at least one.
    fn max_unavailable(&self) -> usize {
        let limit = &self.daemonset["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"];
        let desired = self.nodes.values().filter(|node| node.should_run).count();
        let percent = limit.as_str().and_then(|text| text.strip_suffix('%')?.parse::<usize>().ok());
        let number = limit.as_u64().and_then(|number| usize::try_from(number).ok());
        percent.map(|percent| (desired * percent).div_ceil(100)).or(number).unwrap_or(1).max(1)
    }

    fn write_status(&self, world: &mut World) {
        let wanted = || self.nodes.values().filter(|node| node.should_run);
        let count = |holds: &dyn Fn(&Value) -> bool| {
            wanted().filter(|node| node.pods.first().is_some_and(|pod| holds(pod))).count()
        };
        let stray = |node: &&Node| node.exists && !node.should_run && !node.pods.is_empty();
        let desired = wanted().count();
        let available = count(&|pod| self.is_available(pod));
        let mut status = Map::new();
        status.insert("currentNumberScheduled".into(), json!(count(&|_| true)));
        status.insert("desiredNumberScheduled".into(), json!(desired));
        status.insert("numberMisscheduled".into(), json!(self.nodes.values().filter(stray).count()));
        status.insert("numberReady".into(), json!(count(&|pod| ready_since(pod).is_some())));
        status.insert("observedGeneration".into(), self.daemonset["metadata"]["generation"].clone());
        // Left out where they are 0.
        for (field, number) in [
            ("numberAvailable", available),
            ("numberUnavailable", desired - available),
            ("updatedNumberScheduled", count(&|pod| self.is_updated(pod))),
        ] {
            if number > 0 {
                status.insert(field.into(), json!(number));
            }
        }
        world.update(self.id, |daemonset| daemonset["status"] = Value::Object(status));
    }
}
