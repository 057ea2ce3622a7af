//! Label selectors as text, in the grammar of `k8s.io/apimachinery/pkg/labels`:
//! `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b)`, `a`, `!a`, `a>1`, `a<1`, joined by commas.
//!
//! kube evaluates selectors, but does not parse them, and knows no `a>1` and `a<1`.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use kube::core::{Expression, Selector, SelectorExt};

/// A parsed label selector.
#[derive(Clone, Debug, Default)]
pub struct LabelSelector {
    selector: Selector,
    bounds: Vec<Bound>,
}

/// `a>1` or `a<1`: holds for labels that are whole numbers.
#[derive(Clone, Debug)]
struct Bound {
    key: String,
    side: Ordering,
    number: i64,
}

enum Requirement {
    Expression(Expression),
    Bound(Bound),
}

/// A text that is no label selector; says what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a label selector such as app=web,tier in (a,b),!old: {0}")]
pub struct InvalidSelector(String);

impl LabelSelector {
    /// Parses a selector; the empty text selects everything.
    ///
    /// # Errors
    /// What about the text is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidSelector> {
        let mut parsed = Self::default();
        for requirement in requirements(text)? {
            match requirement_of(requirement)? {
                Requirement::Expression(expression) => {
                    parsed.selector.extend(expression);
                }
                Requirement::Bound(bound) => parsed.bounds.push(bound),
            }
        }
        Ok(parsed)
    }

    /// Whether these labels are selected.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.matches(labels) && self.bounds.iter().all(|bound| bound.holds(labels))
    }
}

impl Bound {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let number = labels.get(&self.key).and_then(|value| value.parse::<i64>().ok());
        number.is_some_and(|number| number.cmp(&self.number) == self.side)
    }
}

/// What may stand around words (`isWhitespace` in apimachinery's `labels`).
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Splits at the commas that are not inside parentheses.
fn requirements(text: &str) -> Result<Vec<&str>, InvalidSelector> {
    if text.trim_matches(SPACE).is_empty() {
        return Ok(Vec::new());
    }
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (index, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
        if !(0..=1).contains(&depth) {
            return Err(InvalidSelector("unbalanced parentheses".into()));
        }
    }
    if depth != 0 {
        return Err(InvalidSelector("unbalanced parentheses".into()));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn requirement_of(text: &str) -> Result<Requirement, InvalidSelector> {
    let text = text.trim_matches(SPACE);
    if let Some((left, right)) = text.split_once(['<', '>']).filter(|_| !text.contains('=')) {
        let side = if text[left.len()..].starts_with('<') { Ordering::Less } else { Ordering::Greater };
        let number = value(right)?;
        let number =
            number.parse().map_err(|_| InvalidSelector(format!("{number:?} is not a whole number")))?;
        return Ok(Requirement::Bound(Bound { key: key(left)?, side, number }));
    }
    expression(text).map(Requirement::Expression)
}

fn expression(text: &str) -> Result<Expression, InvalidSelector> {
    if let Some(absent) = text.strip_prefix('!') {
        return Ok(Expression::DoesNotExist(key(absent)?));
    }
    if let Some((left, right)) = text.split_once("!=") {
        return Ok(Expression::NotEqual(key(left)?, value(right)?));
    }
    if let Some((left, right)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Expression::Equal(key(left)?, value(right)?));
    }
    if let Some(list) = text.strip_suffix(')') {
        let (left, list) = list.split_once('(').unwrap_or((list, ""));
        let values = list.split(',').map(value).collect::<Result<BTreeSet<_>, _>>()?;
        let mut words = left.split(SPACE).filter(|word| !word.is_empty());
        return match (words.next(), words.next(), words.next()) {
            (Some(name), Some("in"), None) => Ok(Expression::In(key(name)?, values)),
            (Some(name), Some("notin"), None) => Ok(Expression::NotIn(key(name)?, values)),
            _ => Err(InvalidSelector(format!("{text:?} has neither in nor notin"))),
        };
    }
    Ok(Expression::Exists(key(text)?))
}

/// A qualified name: an optional DNS subdomain and a slash, then up to 63 characters.
fn key(text: &str) -> Result<String, InvalidSelector> {
    let text = text.trim_matches(SPACE);
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let prefix_fits = prefix.is_none_or(|prefix| crate::domain::key::Name::parse(prefix).is_ok());
    if prefix_fits && !name.is_empty() && is_word(name) {
        Ok(text.to_owned())
    } else {
        Err(InvalidSelector(format!("{text:?} is not a label key")))
    }
}

fn value(text: &str) -> Result<String, InvalidSelector> {
    let text = text.trim_matches(SPACE);
    if is_word(text) {
        Ok(text.to_owned())
    } else {
        Err(InvalidSelector(format!("{text:?} is not a label value")))
    }
}

/// Empty, or up to 63 of `[A-Za-z0-9_.-]`, first and last alphanumeric.
fn is_word(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        LabelSelector::parse(selector).unwrap().matches(&labels)
    }

    #[test]
    fn selectors_select_as_in_kubernetes() {
        let labels = [("app", "web"), ("example.com/tier", "a"), ("empty", ""), ("size", "10")];
        for selector in [
            "",
            "app=web",
            "app==web",
            " app = web , example.com/tier in ( a , b )",
            "app!=api",
            "missing!=x",
            "missing notin (x)",
            "app",
            "!missing",
            "empty=",
            "app notin (api,db)",
            "size>9",
            "size < 11, app",
        ] {
            assert!(matches(selector, &labels), "{selector}");
        }
        for selector in [
            "app=api",
            "!app",
            "missing",
            "app in (api)",
            "app notin (web)",
            "app!=web",
            "size>10",
            "size<10",
            "app>1",
            "missing<1",
        ] {
            assert!(!matches(selector, &labels), "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for selector in [
            ",",
            "a,",
            "=b",
            "a in b",
            "a in (b",
            "a in b)",
            "a (b)",
            "a>b",
            "a>=1",
            "a>1>0",
            "a in (>1)",
            "a=b=c",
            "a b",
            "-a",
            "a/b/c",
            "a=é",
            "!!a",
            "a in ((b))",
            "a\u{a0}=b",
            "a=b\u{b}",
        ] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
    }
}
