//! What an apply that merges would leave of a restored pod template.
//!
//! An apply removes only what the applying tool remembers to have written. After a rollback that may be the newer
//! pod template alone: then nothing removes what only the restored one holds.

use std::{collections::HashMap, fmt};

use serde_json::{Map, Value};

use crate::domain::{
    template::Template,
    text::{cut, escape},
};

/// Most parts that are named.
const NAMED: usize = 10;
/// Bytes of one name or path that are shown.
const WORDS: usize = 80;

/// Who merges. Both match the items of a list by a key; they differ in what they replace as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// A strategic merge patch, as `kubectl apply` and Helm 3 make one.
    Client,
    /// Server-side apply.
    Server,
}

/// The items and fields of a restored pod template that the live one lacks, in words such as
/// `env OLD of container main`.
///
/// It may be less than what really remains: a field that the newer manifest leaves to its default is in the live
/// pod template all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remains {
    parts: Vec<String>,
    /// How many there are beyond those that are named.
    more: usize,
}

/// A list whose items are matched by a key.
struct Keyed {
    list: &'static str,
    item: &'static str,
    key: &'static str,
}

/// The lists of a pod template with a merge key, from the Go types of Kubernetes' `core/v1`.
const KEYED: [Keyed; 12] = [
    Keyed { list: "containers", item: "container", key: "name" },
    Keyed { list: "initContainers", item: "init container", key: "name" },
    Keyed { list: "volumes", item: "volume", key: "name" },
    Keyed { list: "imagePullSecrets", item: "image pull secret", key: "name" },
    Keyed { list: "hostAliases", item: "host alias", key: "ip" },
    Keyed { list: "topologySpreadConstraints", item: "topology spread constraint", key: "topologyKey" },
    Keyed { list: "schedulingGates", item: "scheduling gate", key: "name" },
    Keyed { list: "resourceClaims", item: "resource claim", key: "name" },
    Keyed { list: "ports", item: "port", key: "containerPort" },
    Keyed { list: "env", item: "env", key: "name" },
    Keyed { list: "volumeMounts", item: "mount", key: "mountPath" },
    Keyed { list: "volumeDevices", item: "device", key: "devicePath" },
];

/// Objects that server-side apply replaces as a whole (`structType=atomic`, `mapType=atomic`).
const SERVER_ATOMIC: [&str; 9] = [
    "nodeSelector",
    "labelSelector",
    "namespaceSelector",
    "requiredDuringSchedulingIgnoredDuringExecution",
    "configMapKeyRef",
    "secretKeyRef",
    "fieldRef",
    "resourceFieldRef",
    "fileKeyRef",
];

/// Lists whose items a strategic merge patch of kubectl's replaces as far as their fields are not named again
/// (`patchStrategy=merge,retainKeys`).
const CLIENT_RETAINS_KEYS: [&str; 2] = ["volumes", "resourceClaims"];

impl Remains {
    /// Compares the pod template that a rollback restores with the one that is live before it.
    pub(super) fn of(restored: &Template, live: &Template, merge: Merge) -> Self {
        let mut parts = Parts { merge, found: Self { parts: Vec::new(), more: 0 } };
        if let (Value::Object(restored), Value::Object(live)) = (restored.value(), live.value()) {
            parts.fields(&restored, &live, &Place { item: String::new(), path: String::new() });
        }
        parts.found
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn push(&mut self, part: impl FnOnce() -> String) {
        if self.parts.len() < NAMED { self.parts.push(part()) } else { self.more += 1 }
    }
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parts.join(", "))?;
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

/// Where in the pod template the comparison is.
struct Place {
    /// The item of a list, as in ` of container main`; empty outside of all.
    item: String,
    /// Keys from there, each with a dot behind it.
    path: String,
}

impl Place {
    fn field(&self, key: &str) -> String {
        format!("field {}{}", shown(&format!("{}{key}", self.path)), self.item)
    }

    fn item(&self, keyed: &Keyed, key: &str) -> String {
        format!("{} {}{}", keyed.item, shown(key), self.item)
    }
}

struct Parts {
    merge: Merge,
    found: Remains,
}

impl Parts {
    fn fields(&mut self, restored: &Map<String, Value>, live: &Map<String, Value>, place: &Place) {
        for (key, value) in restored {
            let keyed = KEYED.iter().find(|keyed| keyed.list == key);
            match (keyed, value, live.get(key)) {
                (Some(keyed), Value::Array(items), live @ (None | Some(Value::Array(_)))) => {
                    let live = live.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                    self.items(keyed, items, live, place);
                }
                (_, _, None) => self.found.push(|| place.field(key)),
                (_, Value::Object(value), Some(Value::Object(live))) if !self.replaces(key) => {
                    let path = format!("{}{key}.", place.path);
                    self.fields(value, live, &Place { item: place.item.clone(), path });
                }
                // One value takes the place of the other.
                _ => {}
            }
        }
    }

    fn items(&mut self, keyed: &Keyed, restored: &[Value], live: &[Value], place: &Place) {
        let live: HashMap<String, &Value> =
            live.iter().filter_map(|item| Some((key_of(keyed, item)?, item))).collect();
        for item in restored {
            let Some(key) = key_of(keyed, item) else { continue };
            match (item, live.get(&key)) {
                (_, None) => self.found.push(|| place.item(keyed, &key)),
                (Value::Object(item), Some(Value::Object(live))) if !self.retains_keys(keyed) => {
                    let item_place = format!(" of {}", place.item(keyed, &key));
                    self.fields(item, live, &Place { item: item_place, path: String::new() });
                }
                _ => {}
            }
        }
    }

    fn replaces(&self, key: &str) -> bool {
        self.merge == Merge::Server && SERVER_ATOMIC.contains(&key)
    }

    fn retains_keys(&self, keyed: &Keyed) -> bool {
        self.merge == Merge::Client && CLIENT_RETAINS_KEYS.contains(&keyed.list)
    }
}

fn key_of(keyed: &Keyed, item: &Value) -> Option<String> {
    match item.get(keyed.key)? {
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn shown(text: &str) -> String {
    cut(&escape(text), WORDS).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn remains(restored: &Value, live: &Value, merge: Merge) -> Vec<String> {
        let remains = Remains::of(&Template::new(restored.clone()), &Template::new(live.clone()), merge);
        assert_eq!((remains.more, remains.is_empty()), (0, remains.parts.is_empty()));
        remains.parts
    }

    fn pod(spec: &Value) -> Value {
        json!({"metadata": {"labels": {"app": "a"}}, "spec": spec})
    }

    fn main(container: &Value) -> Value {
        let mut main = json!({"name": "main", "image": "a"});
        main.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
        pod(&json!({"containers": [main]}))
    }

    #[test]
    fn restored_parts_that_the_live_template_lacks_are_named() {
        let other_image = json!([{"name": "main", "image": "b"}]);
        for (restored, live, expected) in [
            // What differs only in its value is replaced.
            (main(&json!({})), pod(&json!({"containers": other_image})), vec![]),
            (main(&json!({"args": ["a", "b"]})), main(&json!({"args": ["c"]})), vec![]),
            // What only the live one holds belongs to the tool that applies.
            (main(&json!({})), main(&json!({"env": [{"name": "NEW"}]})), vec![]),
            (
                pod(&json!({"containers": [{"name": "helper-old"}], "initContainers": [{"name": "setup"}]})),
                pod(&json!({"containers": [{"name": "helper-new"}]})),
                vec!["container helper-old", "init container setup"],
            ),
            (
                pod(
                    &json!({"volumes": [{"name": "old", "emptyDir": {}}, {"name": "both"}], "hostNetwork": true}),
                ),
                pod(&json!({"volumes": [{"name": "both"}]})),
                vec!["field spec.hostNetwork", "volume old"],
            ),
            (
                main(&json!({
                    "env": [{"name": "OLD", "value": "1"}, {"name": "BOTH", "value": "1"}],
                    "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 81}],
                    "volumeMounts": [{"name": "v", "mountPath": "/old"}],
                    "volumeDevices": [{"name": "v", "devicePath": "/dev/old"}],
                    "resources": {"limits": {"cpu": "1"}},
                })),
                main(&json!({
                    "env": [{"name": "BOTH", "valueFrom": {}}],
                    "ports": [{"containerPort": 80, "protocol": "UDP"}],
                    "volumeMounts": [{"name": "v", "mountPath": "/new"}],
                    "resources": {"limits": {"memory": "1Gi"}},
                })),
                vec![
                    "env OLD of container main",
                    "field value of env BOTH of container main",
                    "port 81 of container main",
                    "field resources.limits.cpu of container main",
                    "device /dev/old of container main",
                    "mount /old of container main",
                ],
            ),
            (
                json!({"metadata": {"labels": {"app": "a", "tier": "x"}, "annotations": {"a/b": ""}}}),
                json!({"metadata": {"labels": {"app": "a"}}}),
                vec!["field metadata.annotations", "field metadata.labels.tier"],
            ),
            (
                pod(&json!({"tolerations": [{"operator": "Exists"}]})),
                pod(&json!({})),
                vec!["field spec.tolerations"],
            ),
            (
                pod(&json!({"tolerations": [{"operator": "Exists"}]})),
                pod(&json!({"tolerations": [{"key": "a", "operator": "Exists"}]})),
                vec![],
            ),
            (
                pod(&json!({
                    "imagePullSecrets": [{"name": "old"}], "hostAliases": [{"ip": "10.0.0.1"}],
                    "topologySpreadConstraints": [{"topologyKey": "zone"}],
                    "schedulingGates": [{"name": "gate"}], "resourceClaims": [{"name": "gpu"}],
                })),
                pod(&json!({})),
                vec![
                    "host alias 10.0.0.1",
                    "image pull secret old",
                    "resource claim gpu",
                    "scheduling gate gate",
                    "topology spread constraint zone",
                ],
            ),
        ] {
            for merge in [Merge::Client, Merge::Server] {
                assert_eq!(remains(&restored, &live, merge), expected, "{merge:?}");
            }
        }
    }

    #[test]
    fn the_two_merges_differ_in_what_they_replace_as_a_whole() {
        for (restored, live, client, server) in [
            (
                pod(&json!({"nodeSelector": {"disk": "ssd", "os": "linux"}})),
                pod(&json!({"nodeSelector": {"os": "linux"}})),
                vec!["field spec.nodeSelector.disk"],
                vec![],
            ),
            (
                pod(&json!({"volumes": [{"name": "data", "hostPath": {"path": "/"}}]})),
                pod(&json!({"volumes": [{"name": "data", "emptyDir": {}}]})),
                vec![],
                vec!["field hostPath of volume data"],
            ),
        ] {
            assert_eq!(remains(&restored, &live, Merge::Client), client);
            assert_eq!(remains(&restored, &live, Merge::Server), server);
        }
    }

    #[test]
    fn a_long_list_is_cut_and_says_how_much_is_left_out() {
        let env: Vec<Value> = (0..13).map(|n| json!({"name": format!("E{n:02}")})).collect();
        let (restored, live) = (main(&json!({"env": env})), main(&json!({})));
        let of = |restored: &Value| {
            Remains::of(&Template::new(restored.clone()), &Template::new(live.clone()), Merge::Client)
        };
        let text = of(&restored).to_string();
        assert!(text.starts_with("env E00 of container main, env E01"), "{text}");
        assert!(text.ends_with("env E09 of container main and 3 more"), "{text}");
        let long = main(&json!({"env": [{"name": "\u{1b}[2J".repeat(1000)}]}));
        let text = of(&long).to_string();
        assert!(text.len() < 150 && !text.contains('\u{1b}'), "{text}");
        // A template that the API server would refuse is compared all the same.
        let odd = json!({"spec": {"containers": [3, {"name": ["x"]}, {}], "volumes": "x"}});
        assert_eq!(of(&odd).to_string(), "container [\"x\"], field spec.volumes");
    }
}
