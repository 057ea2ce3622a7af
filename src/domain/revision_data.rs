//! The `data` of ControllerRevisions as bytes, which is how the DaemonSet controller compares them.
//!
//! Two revisions with the same bytes are one to the controller: it keeps the one with the highest number,
//! gives all pods of the DaemonSet its hash and deletes the others (`dedupCurHistories` in
//! `pkg/controller/daemon/update.go`, kubernetes/kubernetes#111280). Pods of another template then count as
//! updated and are never replaced.

use std::fmt::Write;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// SHA-256 over the bytes of a ControllerRevision's `data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataDigest([u8; 32]);

impl DataDigest {
    /// Takes `data` as the API server writes it: the JSON text as it was stored, without white space.
    #[must_use]
    pub fn of(data: &str) -> Self {
        Self(Sha256::digest(data.as_bytes()).into())
    }

    /// The digest of what the controller records of a pod template that the API server has stored.
    #[must_use]
    pub fn recorded(template: &Value) -> Self {
        Self::of(&recorded(template))
    }
}

/// The text that the controller makes of a stored pod template (`getPatch` in
/// `pkg/controller/daemon/update.go`): Go's `encoding/json` of maps, so compact and with sorted keys.
fn recorded(template: &Value) -> String {
    let mut template = template.clone();
    if let Value::Object(map) = &mut template {
        map.insert("$patch".into(), "replace".into());
    }
    let mut text = String::from(r#"{"spec":{"template":"#);
    write_json(&template, &mut text);
    text.push_str("}}");
    text
}

fn write_json(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(key, _)| key.as_bytes());
            out.push('{');
            for (index, (key, value)) in fields.into_iter().enumerate() {
                separate(index, out);
                write_text(key, out);
                out.push(':');
                write_json(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                separate(index, out);
                write_json(item, out);
            }
            out.push(']');
        }
        Value::String(text) => write_text(text, out),
        Value::Number(number) => write_number(number, out),
        Value::Bool(_) | Value::Null => write!(out, "{value}").expect("a String takes all"),
    }
}

fn separate(index: usize, out: &mut String) {
    if index > 0 {
        out.push(',');
    }
}

/// Go keeps a number as a 64-bit float on the way, which rounds whole numbers beyond 2^53.
fn write_number(number: &serde_json::Number, out: &mut String) {
    const EXACT: u64 = 1 << 53;
    let whole = number.as_i64().map(i64::unsigned_abs).or(number.as_u64());
    match (whole, number.as_f64()) {
        (Some(whole), Some(float)) if whole > EXACT => write!(out, "{float:.0}"),
        _ => write!(out, "{number}"),
    }
    .expect("a String takes all");
}

/// Go escapes for HTML, too.
fn write_text(text: &str, out: &mut String) {
    for character in Value::from(text).to_string().chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                write!(out, "\\u{:04x}", u32::from(character)).expect("a String takes all");
            }
            _ => out.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn recorded_text_is_that_of_the_controller() {
        // As a real controller of 1.37.2 has recorded it.
        let expected = r#"{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"app":"agent"}},"spec":{"containers":[{"image":"img:1","name":"main","resources":{}}],"dnsPolicy":"ClusterFirst","securityContext":{},"terminationGracePeriodSeconds":5}}}}"#;
        let template = json!({
            "spec": {
                "terminationGracePeriodSeconds": 5,
                "containers": [{"resources": {}, "name": "main", "image": "img:1"}],
                "securityContext": {},
                "dnsPolicy": "ClusterFirst",
            },
            "metadata": {"labels": {"app": "agent"}},
        });
        assert_eq!(recorded(&template), expected);
    }

    #[test]
    fn text_and_numbers_are_written_as_go_writes_them() {
        let template = json!({"a": "<&>\u{2028}\u{2029}\u{7f}\u{1}\"\\\n\té", "n": 9_007_199_254_740_993_i64, "z": null});
        let expected = concat!(
            r#"{"spec":{"template":{"$patch":"replace","a":"\u003c\u0026\u003e\u2028\u2029"#,
            "\u{7f}",
            r#"\u0001\"\\\n\té","n":9007199254740992,"z":null}}}"#
        );
        assert_eq!(recorded(&template), expected);
    }

    #[test]
    fn bytes_of_another_kubernetes_are_another_digest() {
        let new = json!({"metadata": {"labels": {"app": "a"}}});
        let old = json!({"metadata": {"creationTimestamp": null, "labels": {"app": "a"}}});
        assert_ne!(DataDigest::recorded(&new), DataDigest::recorded(&old));
        assert_eq!(DataDigest::recorded(&new), DataDigest::of(&recorded(&new)));
    }
}
