//! Somebody who changes things in the sandbox, in kubectl's words.
//!
//! Only commands that write, and reads of what is there as JSON: what kubectl *prints* about revisions and
//! rollouts is rollbackd's affair, and is held to the real kubectl on the real control plane only.

use rollbackd::sandbox::{Id, Kind, Sandbox};
use serde_json::{Value, json};

/// The words of a command that the sandbox has no hand for.
#[derive(Debug)]
pub struct NotHere;

/// How far a command has got.
pub enum Done {
    /// To its end; this is what it prints.
    Printed(String),
    /// It waits for something; this is what it sees.
    NotYet(Value),
}

/// Who acts in one namespace of the sandbox.
#[derive(Clone)]
pub struct Hand {
    sandbox: Sandbox,
    namespace: String,
}

impl Hand {
    pub fn new(sandbox: &Sandbox, namespace: &str) -> Self {
        Self { sandbox: sandbox.clone(), namespace: namespace.to_owned() }
    }

    /// Carries out a command, as far as it can be now.
    pub fn run(&self, args: &[&str], input: &[u8]) -> Result<Done, NotHere> {
        let (flags, words): (Vec<&str>, Vec<&str>) = args.iter().partition(|word| word.starts_with("--"));
        let manager = flags.iter().find_map(|flag| flag.strip_prefix("--field-manager="));
        let manager = manager.map_or_else(|| format!("kubectl-{}", words[0]), str::to_owned);
        let known =
            ["--overwrite", "--wait", "--type=", "--field-manager=", "--subresource=status", "--timeout="];
        if !flags.iter().all(|flag| known.iter().any(|known| flag.starts_with(known))) {
            return Err(NotHere);
        }
        match words[..] {
            ["create", "namespace", _] => {}
            ["create", "-f", "-"] => self.create(&manager, serde_json::from_slice(input).expect("JSON"))?,
            ["get", kind, name, "-o", "json"] => {
                let object = self.sandbox.get(&self.id(kind, name)?).expect("it is there");
                return Ok(Done::Printed(object.to_string()));
            }
            ["get", kind, "-o", "json"] => {
                let items = self.sandbox.list(self.id(kind, "")?.kind, &self.namespace);
                return Ok(Done::Printed(json!({"items": items}).to_string()));
            }
            ["patch", kind, name, "-p", patch] => {
                let patch: Value = serde_json::from_str(patch).expect("JSON");
                let id = self.id(kind, name)?;
                if flags.contains(&"--type=json") {
                    let patch: json_patch::Patch = serde_json::from_value(patch).expect("a JSON patch");
                    self.edit(&id, &manager, |object| json_patch::patch(object, &patch).expect("it fits"));
                } else {
                    self.edit(&id, &manager, |object| merge(object, &patch));
                }
            }
            ["set", "image", object, pair] => {
                let (container, image) = pair.split_once('=').expect("container=image");
                let containers = json!([{"name": container, "image": image}]);
                let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
                self.edit(&self.slashed(object)?, &manager, |object| merge(object, &patch));
            }
            ["apply", "-f", "-"] => self.apply(serde_json::from_slice(input).expect("JSON"))?,
            [what @ ("annotate" | "label"), object, ref pairs @ ..] if object.contains('/') => {
                self.mark(&self.slashed(object)?, what, pairs);
            }
            [what @ ("annotate" | "label"), kind, name, ref pairs @ ..] => {
                self.mark(&self.id(kind, name)?, what, pairs);
            }
            ["taint", "node", name, taint] => {
                let (pair, effect) = taint.split_once(':').expect("key=value:effect");
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let taint = json!({"key": key, "value": value, "effect": effect});
                self.edit(&self.id("node", name)?, &manager, |node| {
                    let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
                    taints.push(taint);
                    node["spec"]["taints"] = json!(taints);
                });
            }
            ["delete", kind, ref names @ ..] => {
                for name in names {
                    let id = self.id(kind, name)?;
                    let held =
                        self.sandbox.get(&id).is_some_and(|it| it["metadata"]["finalizers"].is_array());
                    if held { self.sandbox.begin_deletion(&id) } else { self.sandbox.delete(&id) }
                }
            }
            ["rollout", "status", object] if flags == ["--timeout=180s"] => {
                if let Err(status) = self.rolled_out(&self.slashed(object)?) {
                    return Ok(Done::NotYet(status));
                }
            }
            _ => return Err(NotHere),
        }
        Ok(Done::Printed(String::new()))
    }

    fn id(&self, kind: &str, name: &str) -> Result<Id, NotHere> {
        let (kind, namespace) = match kind {
            "daemonset" | "daemonsets" | "DaemonSet" => (Kind::DaemonSet, self.namespace.as_str()),
            "controllerrevision" | "controllerrevisions" => {
                (Kind::ControllerRevision, self.namespace.as_str())
            }
            "pod" | "pods" => (Kind::Pod, self.namespace.as_str()),
            "node" | "nodes" | "Node" => (Kind::Node, ""),
            "events.events.k8s.io" => (Kind::Event, self.namespace.as_str()),
            _ => return Err(NotHere),
        };
        Ok(Id::new(kind, namespace, name))
    }

    fn slashed(&self, object: &str) -> Result<Id, NotHere> {
        let (kind, name) = object.split_once('/').ok_or(NotHere)?;
        self.id(kind, name)
    }

    fn create(&self, manager: &str, mut object: Value) -> Result<(), NotHere> {
        let id = self.id(object["kind"].as_str().unwrap_or_default(), "")?;
        if id.kind != Kind::Node {
            object["metadata"]["namespace"] = json!(self.namespace);
        }
        drop(self.sandbox.create(id.kind, manager, object));
        Ok(())
    }

    /// Client-side apply, which keeps what it was given in an annotation.
    fn apply(&self, mut object: Value) -> Result<(), NotHere> {
        let manager = "kubectl-client-side-apply";
        object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] =
            json!(object.to_string());
        let (kind, name) = (object["kind"].as_str(), object["metadata"]["name"].as_str());
        let id = self.id(kind.unwrap_or_default(), name.unwrap_or_default())?;
        match self.sandbox.edit(&id, manager, |there| merge(there, &object)) {
            Some(_) => Ok(()),
            None => self.create(manager, object),
        }
    }

    fn edit(&self, id: &Id, manager: &str, change: impl FnOnce(&mut Value)) {
        let edited = self.sandbox.edit(id, manager, change);
        let edited = edited.unwrap_or_else(|| panic!("{id:?} is not there"));
        let metadata = &edited["metadata"];
        if !metadata["deletionTimestamp"].is_null()
            && !metadata["finalizers"].is_array()
            && id.kind != Kind::Pod
        {
            self.sandbox.delete(id);
        }
    }

    fn mark(&self, id: &Id, what: &str, pairs: &[&str]) {
        let field = if what == "label" { "labels" } else { "annotations" };
        self.edit(id, &format!("kubectl-{what}"), |object| {
            for (key, value) in pairs.iter().map(|pair| pair.split_once('=').expect("key=value")) {
                object["metadata"][field][key] = json!(value);
            }
        });
    }

    fn rolled_out(&self, id: &Id) -> Result<(), Value> {
        let object = self.sandbox.get(id).expect("it is there");
        let (status, desired) = (&object["status"], &object["status"]["desiredNumberScheduled"]);
        let count = |field: &str| status[field].as_i64().unwrap_or(0);
        let done = status["observedGeneration"] == object["metadata"]["generation"]
            && [count("updatedNumberScheduled"), count("numberAvailable")]
                == [desired.as_i64().unwrap_or(0); 2];
        if done { Ok(()) } else { Err(status.clone()) }
    }
}

/// A strategic merge: maps key by key, null deletes, lists of named things by name.
fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(key);
                } else {
                    merge(target.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (Value::Array(items), Value::Array(patch)) if patch.iter().all(|item| item["name"].is_string()) => {
            for item in patch {
                match items.iter_mut().find(|it| it["name"] == item["name"]) {
                    Some(there) => merge(there, item),
                    None => items.push(item.clone()),
                }
            }
        }
        (target, patch) => {
            let mut fresh = patch.clone();
            if let Value::Object(map) = &mut fresh {
                map.retain(|_, value| !value.is_null());
            }
            *target = fresh;
        }
    }
}
