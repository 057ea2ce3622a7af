//! Label selectors: `matchLabels` and `matchExpressions` of an object, and the text of a list request.

use serde_json::Value;

/// All requirements must hold.
#[derive(Clone, Debug, Default)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Reads a `LabelSelector`.
    pub fn of(selector: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let equal = selector["matchLabels"].as_object().into_iter().flatten().map(|(key, value)| {
            Requirement { key: key.clone(), operator: Operator::In, values: vec![text(value)] }
        });
        let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
        let expressions = expressions.map(|expression| Requirement {
            key: text(&expression["key"]),
            operator: match expression["operator"].as_str() {
                Some("NotIn") => Operator::NotIn,
                Some("Exists") => Operator::Exists,
                Some("DoesNotExist") => Operator::DoesNotExist,
                _ => Operator::In,
            },
            values: expression["values"].as_array().into_iter().flatten().map(text).collect(),
        });
        Self(equal.chain(expressions).collect())
    }

    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k`, as kube writes it.
    pub fn parse(text: &str) -> Option<Self> {
        let mut requirements = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let end = match (rest.find(','), rest.find('('), rest.find(')')) {
                (Some(comma), Some(open), Some(close)) if open < comma => close + 1,
                (Some(comma), ..) => comma,
                (None, ..) => rest.len(),
            };
            requirements.push(Requirement::parse(rest[..end].trim())?);
            rest = rest[end..].trim_start_matches(',').trim();
        }
        Some(Self(requirements))
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &Value) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels[&requirement.key].as_str();
            let listed = value.is_some_and(|value| requirement.values.iter().any(|it| it == value));
            match requirement.operator {
                Operator::In => listed,
                Operator::NotIn => !listed,
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

impl Requirement {
    fn parse(text: &str) -> Option<Self> {
        let new = |key: &str, operator, values: &str| {
            let key = key.trim().to_owned();
            let values = values.split(',').map(|value| value.trim().to_owned()).collect();
            (!key.is_empty() && !key.contains([' ', '('])).then_some(Self { key, operator, values })
        };
        if let Some(list) = text.strip_suffix(')') {
            let (left, values) = list.split_once('(')?;
            return match left.trim().rsplit_once(' ')? {
                (key, "in") => new(key, Operator::In, values),
                (key, "notin") => new(key, Operator::NotIn, values),
                _ => None,
            };
        }
        if let Some((key, value)) = text.split_once("!=") {
            return new(key, Operator::NotIn, value);
        }
        if let Some((key, value)) = text.split_once('=') {
            return new(key, Operator::In, value.trim_start_matches('='));
        }
        match text.strip_prefix('!') {
            Some(key) => new(key, Operator::DoesNotExist, ""),
            None => new(text, Operator::Exists, ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_selects_the_same_from_an_object_and_from_text() {
        let object = json!({
            "matchLabels": {"app": "a"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["x", "y"]},
                {"key": "old", "operator": "DoesNotExist"},
                {"key": "env", "operator": "NotIn", "values": ["dev"]},
                {"key": "zone", "operator": "Exists"},
            ],
        });
        let text = "app=a,tier in (x,y),!old,env notin (dev),zone";
        for selector in [Selector::of(&object), Selector::parse(text).unwrap()] {
            let labels = json!({"app": "a", "tier": "y", "zone": ""});
            assert!(selector.matches(&labels), "{selector:?}");
            for (key, value) in [("app", "b"), ("tier", "z"), ("old", "1"), ("env", "dev")] {
                let mut other = labels.clone();
                other[key] = json!(value);
                assert!(!selector.matches(&other), "{selector:?} {other}");
            }
            assert!(!selector.matches(&json!({"app": "a", "tier": "x"})));
        }
        assert!(Selector::parse("a in b c").is_none() && Selector::parse("=").is_none());
    }
}
