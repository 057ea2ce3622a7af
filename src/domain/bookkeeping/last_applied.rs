//! The annotation in which client-side apply keeps the manifest that it applied last.
//!
//! The controller copies the DaemonSet's annotations to each ControllerRevision that it creates (`snapshot` in
//! `pkg/controller/daemon/update.go`), so that the revision carries the manifest of its time.

use serde_json::Value;

use crate::domain::{
    daemonset::{DaemonSet, LAST_APPLIED},
    template::Template,
};

/// Most bytes of all keys and values of an object's annotations (`TotalAnnotationSizeLimitB` in
/// `apimachinery/pkg/api/validation/objectmeta.go`).
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// Keys that tell the items of a list apart in `spec.template`, as `patchMergeKey` in `k8s.io/api/core/v1` names them.
const ITEM_KEYS: [&str; 6] = ["name", "mountPath", "containerPort", "devicePath", "ip", "topologyKey"];

/// Why last-applied is left as it is, although client-side apply manages the DaemonSet or has managed it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LastAppliedNotRestored {
    #[error("the DaemonSet has no last-applied annotation any more")]
    NotOnDaemonSet,
    #[error("the revision carries no last-applied annotation")]
    NotOnRevision,
    #[error("the last-applied annotation of the {of} can't be read")]
    Unreadable { of: &'static str },
    #[error("the last-applied annotation of the {of} is of another object")]
    AnotherObject { of: &'static str },
    #[error(
        "the last-applied annotation of the revision describes another template: it names {field}, which the revision does not have"
    )]
    AnotherTemplate { field: String },
    #[error("the annotations would exceed {ANNOTATIONS_LIMIT} bytes")]
    TooLarge,
}

/// The live annotation with its `spec.template` replaced by that of the revision's annotation. Only the template is
/// rolled back, so only the template's bookkeeping changes. `None` if nothing is to be written.
///
/// # Errors
/// Why the annotation stays as it is.
pub fn restored(
    daemonset: &DaemonSet,
    of_revision: Option<&str>,
    target: &Template,
) -> Result<Option<String>, LastAppliedNotRestored> {
    let live = match (daemonset.annotations.get(LAST_APPLIED), of_revision) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err(LastAppliedNotRestored::NotOnDaemonSet),
        (Some(live), _) => live,
    };
    let of_revision = of_revision.ok_or(LastAppliedNotRestored::NotOnRevision)?;
    let mut manifest = read(daemonset, live, "DaemonSet")?;
    let template = read(daemonset, of_revision, "revision")?["spec"]["template"].take();
    if let Some(field) = foreign_field(&template, &target.value(), "") {
        return Err(LastAppliedNotRestored::AnotherTemplate { field });
    }
    manifest["spec"]["template"] = template;
    // As kubectl writes it (`GetModifiedConfiguration` in `kubectl/pkg/util/apply.go`).
    let text = format!("{manifest}\n");
    let others = daemonset.annotations.iter().filter(|(key, _)| *key != LAST_APPLIED);
    // The id of the rollback comes with the same patch.
    let id = crate::domain::daemonset::ROLLBACK.len() + uuid::fmt::Hyphenated::LENGTH;
    let size: usize = others.map(|(key, value)| key.len() + value.len()).sum();
    if size + LAST_APPLIED.len() + text.len() + id > ANNOTATIONS_LIMIT {
        return Err(LastAppliedNotRestored::TooLarge);
    }
    Ok((text.trim_end() != live.trim_end()).then_some(text))
}

/// Reads the annotation, which must be the manifest of this DaemonSet.
fn read(daemonset: &DaemonSet, text: &str, of: &'static str) -> Result<Value, LastAppliedNotRestored> {
    let manifest: Value =
        serde_json::from_str(text).map_err(|_| LastAppliedNotRestored::Unreadable { of })?;
    let metadata = &manifest["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or(daemonset.key.namespace.as_str());
    let this = (manifest["apiVersion"].as_str(), manifest["kind"].as_str())
        == (Some("apps/v1"), Some("DaemonSet"))
        && metadata["name"] == daemonset.key.name.as_str()
        && namespace == daemonset.key.namespace.as_str();
    if !this {
        return Err(LastAppliedNotRestored::AnotherObject { of });
    }
    if manifest["spec"]["template"].is_object() {
        Ok(manifest)
    } else {
        Err(LastAppliedNotRestored::Unreadable { of })
    }
}

/// The first field that a manifest names and a template lacks. The API server does not store zero values.
fn foreign_field(manifest: &Value, stored: &Value, path: &str) -> Option<String> {
    match manifest {
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match stored.get(key) {
                Some(stored) => foreign_field(value, stored, &path),
                None => (!is_zero(value)).then_some(path),
            }
        }),
        Value::Array(items) => {
            let stored = stored.as_array().map(Vec::as_slice).unwrap_or_default();
            items.iter().find_map(|item| {
                let mut same = stored.iter().filter(|stored| is_same_item(item, stored)).peekable();
                if same.peek().is_none() {
                    return Some(path.to_owned());
                }
                let foreign: Vec<_> = same.map(|stored| foreign_field(item, stored, path)).collect();
                if foreign.iter().any(Option::is_none) { None } else { foreign.into_iter().flatten().next() }
            })
        }
        _ => None,
    }
}

/// The first place at which a revision holds something else than the manifest of its time, or more: it was changed by
/// `kubectl set image`, `kubectl rollout restart` or the like. Defaults do not count, nor does another way to write a
/// quantity.
#[must_use]
pub fn difference(manifest: &str, revision: &Template) -> Option<String> {
    let manifest: Value = serde_json::from_str(manifest).ok()?;
    changed_field(&manifest["spec"]["template"], &revision.value(), "")
}

fn changed_field(manifest: &Value, stored: &Value, path: &str) -> Option<String> {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (manifest, stored) {
        (Value::Object(named), Value::Object(fields)) => fields.iter().find_map(|(key, stored)| {
            let path = below(key);
            match named.get(key) {
                _ if matches!(key.as_str(), "resources" | "sizeLimit" | "divisor") => None,
                Some(named) => changed_field(named, stored, &path),
                // In maps of strings and in lists that are merged by name nothing is a default.
                None if matches!(
                    key.as_str(),
                    "annotations" | "env" | "initContainers" | "volumes" | "volumeMounts"
                ) =>
                {
                    Some(path)
                }
                None if matches!(path.as_str(), "metadata.labels")
                    || path.starts_with("metadata.annotations.") =>
                {
                    Some(path)
                }
                None => None,
            }
        }),
        (Value::Array(named), Value::Array(stored)) => stored.iter().find_map(|stored| {
            let mut same = named.iter().filter(|item| is_same_item(item, stored)).peekable();
            if same.peek().is_none() {
                return Some(path.to_owned());
            }
            let changed: Vec<_> = same.map(|item| changed_field(item, stored, path)).collect();
            if changed.iter().any(Option::is_none) { None } else { changed.into_iter().flatten().next() }
        }),
        (Value::String(named), Value::String(stored)) if named != stored => Some(path.to_owned()),
        _ => None,
    }
}

fn is_same_item(item: &Value, stored: &Value) -> bool {
    ITEM_KEYS.iter().all(|key| match (item.get(key), stored.get(key)) {
        (Some(named), Some(stored)) => named == stored,
        _ => true,
    })
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::fixtures;

    fn manifest(image: &str, labels: Value) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": "web", "namespace": "default", "labels": labels},
            "spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}},
        })
    }

    fn applied(manifest: &Value) -> DaemonSet {
        let mut daemonset = fixtures::daemonset("a:2");
        daemonset.annotations.insert(LAST_APPLIED.into(), format!("{manifest}\n"));
        daemonset
    }

    fn restore(live: &Value, of_revision: &Value) -> Result<Option<String>, LastAppliedNotRestored> {
        restored(&applied(live), Some(&of_revision.to_string()), &fixtures::template("a:1"))
    }

    #[test]
    fn only_the_template_is_restored() {
        let text = restore(&manifest("a:2", json!({"of": "v2"})), &manifest("a:1", json!({"of": "v1"})));
        let text = text.unwrap().unwrap();
        assert!(text.ends_with("}\n"));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), manifest("a:1", json!({"of": "v2"})));
        assert_eq!(restore(&manifest("a:1", json!({})), &manifest("a:1", json!({}))), Ok(None));
        let none = fixtures::daemonset("a:2");
        assert_eq!(restored(&none, None, &fixtures::template("a:1")), Ok(None));
    }

    #[test]
    fn annotation_that_can_not_be_trusted_is_left_and_says_why() {
        let live = manifest("a:2", json!({}));
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut other = manifest("a:1", json!({}));
            change(&mut other);
            restore(&live, &other).unwrap_err()
        };
        let another = LastAppliedNotRestored::AnotherObject { of: "revision" };
        assert_eq!(changed(&|it| it["metadata"]["name"] = json!("other")), another);
        assert_eq!(changed(&|it| it["metadata"]["namespace"] = json!("other")), another);
        assert_eq!(changed(&|it| it["kind"] = json!("Deployment")), another);
        assert_eq!(changed(&|it| it["apiVersion"] = json!("extensions/v1beta1")), another);
        let unreadable = LastAppliedNotRestored::Unreadable { of: "revision" };
        assert_eq!(changed(&|it| it["spec"] = json!({})), unreadable);
        assert_eq!(changed(&|it| *it = json!([])), another);
        let target = fixtures::template("a:1");
        assert_eq!(restored(&applied(&live), Some("{"), &target), Err(unreadable));
        assert_eq!(restored(&applied(&live), None, &target), Err(LastAppliedNotRestored::NotOnRevision));
        let none = fixtures::daemonset("a:2");
        let text = live.to_string();
        assert_eq!(restored(&none, Some(&text), &target), Err(LastAppliedNotRestored::NotOnDaemonSet));
    }

    #[test]
    fn manifest_that_names_what_the_revision_lacks_describes_another_template() {
        let live = manifest("a:2", json!({}));
        let field = |change: &dyn Fn(&mut Value)| {
            let mut other = manifest("a:1", json!({}));
            change(&mut other["spec"]["template"]["spec"]);
            match restore(&live, &other) {
                Err(LastAppliedNotRestored::AnotherTemplate { field }) => Some(field),
                _ => None,
            }
        };
        assert_eq!(field(&|spec| spec["hostNetwork"] = json!(true)).unwrap(), "spec.hostNetwork");
        assert_eq!(field(&|spec| spec["containers"][0]["name"] = json!("x")).unwrap(), "spec.containers");
        let env = json!([{"name": "A", "value": "x"}]);
        assert_eq!(field(&|spec| spec["containers"][0]["env"] = env.clone()).unwrap(), "spec.containers.env");
        // Zero values are not stored, and other values were `kubectl set image` or the like.
        assert_eq!(field(&|spec| spec["hostNetwork"] = json!(false)), None);
        assert_eq!(field(&|spec| spec["containers"][0]["resources"] = json!({"limits": {}})), None);
        assert_eq!(field(&|spec| spec["containers"][0]["image"] = json!("b")), None);
    }

    #[test]
    fn revision_that_was_changed_after_its_manifest_was_applied_is_found() {
        let with = |spec: Value| Template::new(json!({"metadata": {"labels": {"app": "a"}}, "spec": spec}));
        let manifest = json!({"spec": {"template": {"metadata": {"labels": {"app": "a"}}, "spec": {
            "containers": [{"name": "main", "image": "a:1", "env": [{"name": "A", "value": "x"}]}],
        }}}})
        .to_string();
        let main = |image: &str, env: Value| {
            json!({"dnsPolicy": "ClusterFirst", "containers": [
                {"name": "main", "image": image, "env": env, "imagePullPolicy": "Always", "resources": {"limits": {"cpu": "1"}}},
            ]})
        };
        let one = || json!([{"name": "A", "value": "x"}]);
        let at = |template: &Template| difference(&manifest, template);
        assert_eq!(at(&with(main("a:1", one()))), None);
        assert_eq!(at(&with(main("a:2", one()))).unwrap(), "spec.containers.image");
        let two = json!([{"name": "A", "value": "x"}, {"name": "B", "value": "y"}]);
        assert_eq!(at(&with(main("a:1", two))).unwrap(), "spec.containers.env");
        let mut restarted = with(main("a:1", one())).value();
        restarted["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/restartedAt": "now"});
        assert_eq!(at(&Template::new(restarted)).unwrap(), "metadata.annotations");
    }

    #[test]
    fn annotations_stay_below_the_limit_of_the_api_server() {
        let live = manifest("a:2", json!({}));
        let large = |bytes: usize| {
            let mut daemonset = applied(&live);
            daemonset.annotations.insert("note".into(), "x".repeat(bytes));
            restored(&daemonset, Some(&manifest("a:1", json!({})).to_string()), &fixtures::template("a:1"))
        };
        assert!(large(200 * 1024).unwrap().is_some());
        assert_eq!(large(ANNOTATIONS_LIMIT - 100), Err(LastAppliedNotRestored::TooLarge));
    }
}
