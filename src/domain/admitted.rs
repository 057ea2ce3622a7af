//! What the API server has made of a pod template that was sent to it.

use serde_json::{Map, Value};

use super::template::Template;

/// Paths of fields that a sentence names at most.
const NAMED: usize = 5;

/// Maps of strings, or of quantities: the API server adds no keys to them, admission does.
const FREE_MAPS: [&str; 6] = ["labels", "annotations", "nodeSelector", "matchLabels", "limits", "requests"];

/// What has become of a template between the patch and the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    Unchanged,
    /// Only fields were added that the template did not hold, as defaults are: their paths. A webhook or policy
    /// that adds such fields looks the same.
    FilledIn(Vec<String>),
    /// Something was changed, removed or added that is no default.
    Changed,
}

impl Admitted {
    /// Compares what was sent with what was stored.
    #[must_use]
    pub fn between(sent: &Template, stored: &Template) -> Self {
        if sent == stored {
            return Self::Unchanged;
        }
        let mut added = Vec::new();
        if additions(&sent.value(), &stored.value(), &mut String::new(), &mut added) {
            Self::FilledIn(added)
        } else {
            Self::Changed
        }
    }

    /// The sentence of a rollback that was applied.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Unchanged => "rolled back".to_owned(),
            Self::FilledIn(paths) => {
                let more = paths.len().saturating_sub(NAMED);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                let named = paths[..paths.len().min(NAMED)].join(", ");
                format!(
                    "rolled back; fields were filled in that the revision does not hold, probably defaults of the API server that are newer than it ({named}{more}), so that it becomes a new revision"
                )
            }
            Self::Changed => {
                "rolled back; admission changed the pod template on its way, so that it becomes a new revision"
                    .to_owned()
            }
        }
    }
}

/// Collects the paths of added fields; false if there is any other difference.
fn additions(sent: &Value, stored: &Value, path: &mut String, added: &mut Vec<String>) -> bool {
    match (sent, stored) {
        (Value::Object(sent), Value::Object(stored)) => {
            let free = FREE_MAPS.iter().any(|map| path.ends_with(&format!(".{map}")));
            sent.keys().all(|key| stored.contains_key(key)) && fields(sent, stored, free, path, added)
        }
        (Value::Array(sent), Value::Array(stored)) if sent.len() == stored.len() => {
            sent.iter().zip(stored).enumerate().all(|(index, (sent, stored))| {
                within(path, &format!("[{index}]"), |path| additions(sent, stored, path, added))
            })
        }
        _ => sent == stored,
    }
}

fn fields(
    sent: &Map<String, Value>,
    stored: &Map<String, Value>,
    free: bool,
    path: &mut String,
    added: &mut Vec<String>,
) -> bool {
    stored.iter().all(|(key, value)| {
        let step = if path.is_empty() { key.clone() } else { format!(".{key}") };
        within(path, &step, |path| match sent.get(key) {
            Some(sent) => additions(sent, value, path, added),
            None if free || !may_be_default(key, value) => false,
            None => {
                added.push(path.clone());
                true
            }
        })
    })
}

fn within(path: &mut String, step: &str, visit: impl FnOnce(&mut String) -> bool) -> bool {
    let before = path.len();
    path.push_str(step);
    let result = visit(path);
    path.truncate(before);
    result
}

/// Defaults are values and objects of values, never items of a list or entries of a map.
fn may_be_default(key: &str, value: &Value) -> bool {
    match value {
        Value::Object(map) => {
            !FREE_MAPS.contains(&key) && map.iter().all(|(key, value)| may_be_default(key, value))
        }
        Value::Array(items) => items.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sent() -> Value {
        json!({
            "metadata": {"labels": {"app": "a"}},
            "spec": {"containers": [{"name": "main", "image": "a:1"}, {"name": "side", "image": "b:1"}]},
        })
    }

    fn admitted(edit: impl FnOnce(&mut Value)) -> Admitted {
        let mut stored = sent();
        edit(&mut stored);
        Admitted::between(&Template::new(sent()), &Template::new(stored))
    }

    #[test]
    fn added_fields_are_defaults_and_are_named() {
        assert_eq!(admitted(|_| ()), Admitted::Unchanged);
        let filled_in = admitted(|stored| {
            stored["spec"]["dnsPolicy"] = json!("ClusterFirst");
            stored["spec"]["securityContext"] = json!({});
            stored["spec"]["containers"][1]["resources"] = json!({"claims": []});
            stored["spec"]["containers"][1]["terminationMessagePath"] = json!("/dev/termination-log");
        });
        let paths = [
            "spec.containers[1].resources",
            "spec.containers[1].terminationMessagePath",
            "spec.dnsPolicy",
            "spec.securityContext",
        ];
        assert_eq!(filled_in, Admitted::FilledIn(paths.map(str::to_owned).to_vec()));
        assert!(filled_in.message().contains(&format!("({})", paths.join(", "))), "{}", filled_in.message());
        let many = admitted(|stored| (0..7).for_each(|n| stored["spec"][format!("f{n}")] = json!(1)));
        assert!(many.message().contains("(spec.f0, spec.f1, spec.f2, spec.f3, spec.f4 and 2 more)"));
    }

    #[test]
    fn whatever_is_no_added_field_was_changed_by_admission() {
        let edits: [fn(&mut Value); 8] = [
            |stored| stored["spec"]["containers"][0]["image"] = json!("mirror/a:1"),
            |stored| drop(stored["spec"]["containers"].as_array_mut().unwrap().pop()),
            |stored| stored["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "injected"})),
            |stored| stored["metadata"]["annotations"] = json!({"seen": "yes"}),
            |stored| stored["metadata"]["labels"]["injected"] = json!("yes"),
            |stored| stored["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "b"}]),
            |stored| stored["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "1"}}),
            |stored| drop(stored["metadata"].as_object_mut().unwrap().remove("labels")),
        ];
        for (index, edit) in edits.into_iter().enumerate() {
            assert_eq!(admitted(edit), Admitted::Changed, "edit {index}");
        }
    }
}
