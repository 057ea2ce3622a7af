//! What a rollback changes in the pod template, for people and for programs.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use similar::TextDiff;

use super::template::Template;

/// The difference between two pod templates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TemplateDiff {
    /// Each change, addressed by an RFC 6901 pointer into the template.
    pub changes: Vec<Change>,
    /// How many more changes there are: at most 1,000 are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted_changes: usize,
    /// Unified diff of the two templates as YAML.
    pub unified: String,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = TemplateChange)]
pub struct Change {
    pub op: Op,
    /// RFC 6901 pointer into the pod template.
    #[schema(examples("/spec/containers/0/image"))]
    pub path: String,
    /// The value before; absent for `add`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// The value after; absent for `remove`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

/// What happens to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = TemplateChangeOperation)]
pub enum Op {
    Add,
    Remove,
    Replace,
}

/// After this long the text diff gets coarser: two unlike templates of megabytes must not keep a
/// processor busy.
const EFFORT: Duration = Duration::from_millis(200);
/// Most changes that are listed. Templates of a megabyte can differ in hundreds of thousands of places, each of which
/// takes time in proportion to the template.
const MOST_CHANGES: usize = 1000;

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl TemplateDiff {
    /// Compares two templates.
    #[must_use]
    pub fn between(from: &Template, to: &Template) -> Self {
        let (before, after) = (from.value(), to.value());
        // Each pointer speaks of the document as the operations before it have left it.
        let mut work = before.clone();
        let mut changes = Vec::new();
        let operations = json_patch::diff(&before, &after).0;
        let omitted_changes = operations.len().saturating_sub(MOST_CHANGES);
        for operation in operations.into_iter().take(MOST_CHANGES) {
            changes.extend(change(&work, &operation));
            json_patch::patch(&mut work, &[operation]).expect("the patch was made for this document");
        }
        let (old, new) = (yaml(&before), yaml(&after));
        let unified = TextDiff::configure()
            .timeout(EFFORT)
            .diff_lines(&old, &new)
            .unified_diff()
            .header("current", "restored")
            .to_string();
        Self { changes, omitted_changes, unified }
    }
}

fn change(before: &Value, operation: &json_patch::PatchOperation) -> Option<Change> {
    use json_patch::PatchOperation::{Add, Copy, Move, Remove, Replace, Test};
    let (op, path, to) = match operation {
        Add(add) => (Op::Add, add.path.to_string(), Some(add.value.clone())),
        Remove(remove) => (Op::Remove, remove.path.to_string(), None),
        Replace(replace) => (Op::Replace, replace.path.to_string(), Some(replace.value.clone())),
        // `json_patch::diff` makes none of these.
        Copy(_) | Move(_) | Test(_) => return None,
    };
    let from = if op == Op::Add { None } else { before.pointer(&path).cloned() };
    Some(Change { op, path, from, to })
}

/// A JSON value as YAML.
#[must_use]
pub fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(&Yaml(value)).expect("a JSON value has string keys and finite numbers")
}

/// A JSON value on its way to YAML that kubectl reads too: its parser takes a tab at the start of a
/// block scalar for indentation, so such a text is quoted.
struct Yaml<'a>(&'a Value);

impl Serialize for Yaml<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(map) => serializer.collect_map(map.iter().map(|(key, value)| (key, Yaml(value)))),
            Value::Array(items) => serializer.collect_seq(items.iter().map(Yaml)),
            Value::String(text) if text.contains('\n') && text.trim_start_matches('\n').starts_with('\t') => {
                serde_saphyr::DoubleQuoted(text).serialize(serializer)
            }
            other => other.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_beyond_a_thousand_are_counted_and_not_listed() {
        let args = |count: usize| {
            let args = vec!["x"; count];
            Template::new(json!({"spec": {"containers": [{"name": "main", "args": args}]}}))
        };
        let diff = TemplateDiff::between(&args(200_000), &args(1));
        assert_eq!((diff.changes.len(), diff.omitted_changes), (MOST_CHANGES, 200_000 - 1 - MOST_CHANGES));
        assert_eq!(TemplateDiff::between(&args(2), &args(1)).omitted_changes, 0);
    }

    #[test]
    fn a_changed_image_is_one_change_and_two_lines() {
        let image =
            |image: &str| Template::new(json!({"spec": {"containers": [{"name": "a", "image": image}]}}));
        let diff = TemplateDiff::between(&image("x:1"), &image("x:2"));
        assert_eq!(
            diff.changes,
            [Change {
                op: Op::Replace,
                path: "/spec/containers/0/image".into(),
                from: Some("x:1".into()),
                to: Some("x:2".into())
            }]
        );
        let changed: Vec<_> =
            diff.unified.lines().filter(|line| line.contains("image:")).map(str::trim_end).collect();
        assert_eq!(changed.len(), 2, "{}", diff.unified);
        assert!(changed[0].starts_with('-') && changed[1].starts_with('+'), "{}", diff.unified);
    }
}
