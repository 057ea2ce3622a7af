//! Where pods of a template may run: topology spread constraints and tolerations.

use super::{Page, fields::Fields};

/// `describeTopologySpreadConstraints`.
pub(super) fn topology_spread(page: &mut Page, mut constraints: Vec<Fields>) {
    constraints.sort_by_key(|constraint| constraint.raw_text("topologyKey"));
    for (index, constraint) in constraints.into_iter().enumerate() {
        page.put(
            0,
            match index {
                0 => "  Topology Spread Constraints:\t",
                _ => "  \t",
            },
        );
        let selector = match constraint.object("labelSelector") {
            Some(selector) => format!(" for selector {}", label_selector(selector)),
            None => String::new(),
        };
        page.line(
            0,
            format_args!(
                "{}:{} when max skew {} is exceeded{selector}",
                constraint.text("topologyKey"),
                constraint.text("whenUnsatisfiable"),
                constraint.number("maxSkew"),
            ),
        );
    }
}

/// `printTolerationsMultilineWithIndent`.
pub(super) fn tolerations(page: &mut Page, mut tolerations: Vec<Fields>) {
    tolerations.sort_by_key(|toleration| toleration.raw_text("key"));
    page.put(0, "  Tolerations:\t");
    if tolerations.is_empty() {
        page.line(0, "<none>");
    }
    for (index, toleration) in tolerations.into_iter().enumerate() {
        if index > 0 {
            page.put(0, "\t");
        }
        page.line(0, tolerated(toleration));
    }
}

fn tolerated(toleration: Fields) -> String {
    let mut text = toleration.text("key").into_owned();
    let value = toleration.text("value");
    if !value.is_empty() {
        text.push_str(&format!("={value}"));
    }
    let effect = toleration.text("effect");
    if !effect.is_empty() {
        text.push_str(&format!(":{effect}"));
    }
    if toleration.raw_text("operator") == "Exists" && value.is_empty() {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str("op=Exists");
    }
    if let Some(seconds) = toleration.optional_number("tolerationSeconds") {
        text.push_str(&format!(" for {seconds}s"));
    }
    text
}

/// `metav1.FormatLabelSelector` of k8s.io/apimachinery: requirements by key, `<error>` if one
/// is invalid.
fn label_selector(selector: Fields) -> String {
    let labels = selector.raw_pairs("matchLabels");
    let mut requirements: Vec<_> = labels.into_iter().map(|(key, value)| (key, equals(key, value))).collect();
    for expression in selector.list("matchExpressions") {
        requirements.push((expression.raw_text("key"), matches(expression)));
    }
    if requirements.is_empty() {
        return "<none>".to_owned();
    }
    requirements.sort_by_key(|(key, _)| *key);
    let requirements: Option<Vec<_>> = requirements.into_iter().map(|(_, text)| text).collect();
    requirements.map_or_else(|| "<error>".to_owned(), |texts| texts.join(","))
}

fn equals(key: &str, value: &str) -> Option<String> {
    (is_label_key(key) && is_label_value(value)).then(|| format!("{key}={value}"))
}

fn matches(expression: Fields) -> Option<String> {
    let key = expression.raw_text("key");
    let mut values = expression.raw_texts("values");
    if !is_label_key(key) || !values.iter().all(|value| is_label_value(value)) {
        return None;
    }
    values.sort_unstable();
    let set = values.join(",");
    match (expression.raw_text("operator"), values.is_empty()) {
        ("In", false) => Some(format!("{key} in ({set})")),
        ("NotIn", false) => Some(format!("{key} notin ({set})")),
        ("Exists", true) => Some(key.to_owned()),
        ("DoesNotExist", true) => Some(format!("!{key}")),
        _ => None,
    }
}

/// `content.IsLabelKey`: an optional DNS subdomain and a slash before the name.
fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_value(name)
}

/// `content.IsLabelValue`.
fn is_label_value(value: &str) -> bool {
    value.len() <= 63
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && ends_are(value, |byte| byte.is_ascii_alphanumeric())
}

fn is_subdomain(prefix: &str) -> bool {
    prefix.len() <= 253
        && prefix.split('.').all(|label| {
            let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            !label.is_empty()
                && label.bytes().all(|byte| alphanumeric(byte) || byte == b'-')
                && ends_are(label, alphanumeric)
        })
}

fn ends_are(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    [bytes.first(), bytes.last()].into_iter().flatten().all(|byte| allowed(*byte))
}
