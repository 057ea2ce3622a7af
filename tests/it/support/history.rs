//! Histories: what kubectl shows and what rollbackd shows, side by side.

use serde_json::{Value, json};

use super::{api::Api, space::Space, wait::until};

/// Waits until rollbackd and kubectl show the same history of a DaemonSet, `expected` says that it is
/// the one awaited, and each revision is what its ControllerRevision says. Returns the revisions.
pub async fn same_history(
    space: &Space,
    api: &Api,
    name: &str,
    expected: impl Fn(&[Value]) -> bool,
) -> Vec<Value> {
    until(&format!("one history of {name}"), async || compared(space, api, name, &expected).await).await
}

async fn compared(
    space: &Space,
    api: &Api,
    name: &str,
    expected: &impl Fn(&[Value]) -> bool,
) -> Result<Vec<Value>, String> {
    let path = format!("{}/revisions", space.path(name));
    let items = api.get(&path).await.expect(200)["items"].as_array().cloned().unwrap_or_default();
    let text = api.text(&path).await;
    let objects = space.kubectl.list("controllerrevisions").await;
    if let Some(shown) = space.kubectl.beside(&["rollout", "history", "daemonset", name]).await
        && text != shown.stdout
    {
        return Err(format!("rollbackd: {text}\nkubectl: {}", shown.stdout));
    }
    for item in &items {
        let object = objects
            .iter()
            .find(|object| object["metadata"]["name"] == item["controllerRevision"])
            .ok_or_else(|| format!("no ControllerRevision for {item}"))?;
        if *item != view(space, name, object, item) {
            return Err(format!("{item}\nis not\n{}", view(space, name, object, item)));
        }
    }
    let mut rows = text.lines().skip(2).filter(|line| !line.is_empty()).count();
    if text.contains("No rollout history found") {
        rows = 0;
    }
    if items.len() != rows || !expected(&items) {
        return Err(format!("not the history awaited: {items:#?}"));
    }
    Ok(items)
}

/// What rollbackd should say of a ControllerRevision. Whether it is current and restorable is for each
/// test to check.
fn view(space: &Space, name: &str, object: &Value, shown: &Value) -> Value {
    let metadata = &object["metadata"];
    let cause = &metadata["annotations"]["kubernetes.io/change-cause"];
    let link = space.path(name)[1..].to_owned();
    let mut view = json!({
        "revision": object["revision"],
        "controllerRevision": metadata["name"],
        "current": shown["current"],
        "changeCause": if cause == "" { &Value::Null } else { cause },
        "createdAt": metadata["creationTimestamp"],
        "images": if shown["restorable"] == true { images(&object["data"]) } else { json!([]) },
        "restorable": shown["restorable"],
        "links": {
            "self": format!("{link}/revisions/{}", metadata["name"].as_str().unwrap()),
            "rollback": format!("{link}/rollback"),
        },
    });
    if let Some(hash) = metadata["labels"].get("controller-revision-hash") {
        view["hash"] = hash.clone();
    }
    if shown["restorable"] == false {
        view["notRestorableReason"] = shown["notRestorableReason"].clone();
    }
    view
}

fn images(data: &Value) -> Value {
    let spec = &data["spec"]["template"]["spec"];
    let of = |field: &str, init: bool| {
        let containers = spec[field].as_array().cloned().unwrap_or_default();
        containers.into_iter().map(move |container| {
            json!({"container": container["name"], "image": container["image"], "init": init})
        })
    };
    of("initContainers", true).chain(of("containers", false)).collect()
}

/// The numbers of revisions, in order.
pub fn numbers(revisions: &[Value]) -> Vec<i64> {
    revisions.iter().map(|revision| revision["revision"].as_i64().expect("a number")).collect()
}

/// The number of the current revision.
pub fn current(revisions: &[Value]) -> Option<i64> {
    let mut current = revisions.iter().filter(|revision| revision["current"] == true);
    let number = current.next()?["revision"].as_i64();
    assert_eq!(current.next(), None, "one revision is current: {revisions:#?}");
    number
}

/// A ControllerRevision made by hand, with the labels of the DaemonSet's pods; an orphan without `owner`.
pub fn by_hand(name: &str, daemonset: &str, owner: Option<&str>, number: i64, data: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {"name": name, "labels": {"app": daemonset}},
        "revision": number,
        "data": data,
    });
    if let Some(uid) = owner {
        object["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "DaemonSet", "name": daemonset, "uid": uid,
            "controller": true, "blockOwnerDeletion": true,
        }]);
    }
    object
}
