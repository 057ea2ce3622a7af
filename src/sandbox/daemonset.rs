//! Writes to DaemonSets, with what the API server does about them: defaults, generation, field managers.

use std::sync::Arc;

use serde_json::{Value, json};

use super::world::{Id, Kind, World, whole_seconds};

/// Counts the changes of the template; the API server keeps it, and pods carry it as a label.
pub const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Makes a DaemonSet from what `manager` sent.
pub fn create(world: &mut World, manager: &str, mut object: Value) -> Arc<Value> {
    object["metadata"]["generation"] = json!(1);
    object["metadata"]["annotations"][TEMPLATE_GENERATION] = json!("1");
    default(&mut object["spec"]["revisionHistoryLimit"], json!(10));
    default(&mut object["spec"]["updateStrategy"]["type"], json!("RollingUpdate"));
    if object["spec"]["updateStrategy"]["type"] == "RollingUpdate" {
        default(&mut object["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], json!(1));
    }
    default(&mut object["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], json!(30));
    object["status"] = json!({
        "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
    });
    note_manager(&mut object, manager, &whole_seconds(world.now()), Hold::Takes);
    world.create(Kind::DaemonSet, object)
}

fn default(field: &mut Value, value: Value) {
    if field.is_null() {
        *field = value;
    }
}

/// Changes metadata or spec of a DaemonSet. The generation rises with a change of the spec only.
pub fn edit(
    world: &mut World,
    id: &Id,
    manager: &str,
    change: impl FnOnce(&mut Value),
) -> Option<Arc<Value>> {
    let now = whole_seconds(world.now());
    world.update(id, |object| edited(object, manager, &now, change))
}

/// What [`edit`] does to an object, which is all that a dry run does.
pub fn edited(object: &mut Value, manager: &str, now: &str, change: impl FnOnce(&mut Value)) {
    let before = object.clone();
    change(object);
    if *object == before {
        return;
    }
    let retemplated = object["spec"]["template"] != before["spec"]["template"];
    if object["spec"] != before["spec"] {
        object["metadata"]["generation"] = json!(before["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
    }
    if retemplated {
        let count = template_generation(&before).parse::<i64>().unwrap_or(0) + 1;
        object["metadata"]["annotations"][TEMPLATE_GENERATION] = json!(count.to_string());
    }
    let hold = match adds(&before["spec"]["template"], &object["spec"]["template"]) {
        true => Hold::Takes,
        false if retemplated => Hold::Loses,
        false => Hold::Keeps,
    };
    note_manager(object, manager, now, hold);
}

/// What a write does to its manager's ownership of fields of the template.
enum Hold {
    /// Who sets a field owns it.
    Takes,
    /// Who only takes fields away owns nothing.
    Loses,
    /// The template is as it was.
    Keeps,
}

/// Whether something is set that was not, or was otherwise.
fn adds(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            after.iter().any(|(key, value)| before.get(key).is_none_or(|there| adds(there, value)))
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            before.iter().zip(after).any(|(before, after)| adds(before, after))
        }
        _ => before != after,
    }
}

/// The annotation that counts the changes of the template.
pub fn template_generation(object: &Value) -> &str {
    object["metadata"]["annotations"][TEMPLATE_GENERATION].as_str().unwrap_or_default()
}

/// Who has written is told by `managedFields`; of the fields, only whether the template is among them.
fn note_manager(object: &mut Value, manager: &str, now: &str, template: Hold) {
    let metadata = &mut object["metadata"];
    let mut entries = metadata["managedFields"].as_array().cloned().unwrap_or_default();
    let mine = entries.iter().position(|entry| entry["manager"] == manager);
    let mut fields = mine.map_or(json!({}), |index| entries.remove(index)["fieldsV1"].take());
    fields["f:metadata"] = json!({});
    match template {
        Hold::Takes => fields["f:spec"]["f:template"] = json!({}),
        Hold::Loses => fields["f:spec"] = json!({}),
        Hold::Keeps => {}
    }
    entries.push(json!({
        "manager": manager,
        "operation": "Update",
        "apiVersion": "apps/v1",
        "time": now,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }));
    metadata["managedFields"] = json!(entries);
}
