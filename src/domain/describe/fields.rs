//! A JSON object read the way Go fills a struct from it: whatever is absent, `null` or of another
//! type is the field's zero value, so nothing a template holds can make a description fail.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::domain::text::escape;

/// One object of the template.
///
/// Text comes escaped, ready to be shown; the `raw_` readers give it as it is stored, for sorting,
/// splitting and measuring.
#[derive(Clone, Copy, Default)]
pub(super) struct Fields<'a>(Option<&'a Map<String, Value>>);

impl<'a> Fields<'a> {
    pub(super) fn of(value: &'a Value) -> Self {
        Self(value.as_object())
    }

    pub(super) fn get(self, name: &str) -> Option<&'a Value> {
        self.0?.get(name)
    }

    /// A Go pointer: presence means something.
    pub(super) fn object(self, name: &str) -> Option<Self> {
        self.get(name)?.as_object().map(|map| Self(Some(map)))
    }

    /// A Go struct: absent is empty.
    pub(super) fn part(self, name: &str) -> Self {
        self.object(name).unwrap_or_default()
    }

    pub(super) fn list(self, name: &str) -> Vec<Self> {
        self.values(name).iter().map(Self::of).collect()
    }

    pub(super) fn raw_text(self, name: &str) -> &'a str {
        self.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn text(self, name: &str) -> Cow<'a, str> {
        escape(self.raw_text(name))
    }

    pub(super) fn optional_text(self, name: &str) -> Option<Cow<'a, str>> {
        self.get(name)?.as_str().map(escape)
    }

    pub(super) fn raw_texts(self, name: &str) -> Vec<&'a str> {
        let values = self.values(name).iter();
        values.map(|value| value.as_str().unwrap_or_default()).collect()
    }

    pub(super) fn texts(self, name: &str) -> Vec<Cow<'a, str>> {
        self.raw_texts(name).into_iter().map(escape).collect()
    }

    /// A string map, sorted by key as kubectl sorts every map before printing it.
    pub(super) fn raw_pairs(self, name: &str) -> Vec<(&'a str, &'a str)> {
        let entries = self.part(name).entries().into_iter();
        entries.map(|(key, value)| (key, value.as_str().unwrap_or_default())).collect()
    }

    /// Every field of this object, sorted by name.
    pub(super) fn entries(self) -> Vec<(&'a str, &'a Value)> {
        let entries = self.0.into_iter().flatten();
        let mut entries: Vec<_> = entries.map(|(name, value)| (name.as_str(), value)).collect();
        entries.sort_unstable_by_key(|(name, _)| *name);
        entries
    }

    pub(super) fn number(self, name: &str) -> i64 {
        self.optional_number(name).unwrap_or_default()
    }

    pub(super) fn optional_number(self, name: &str) -> Option<i64> {
        self.get(name)?.as_i64()
    }

    pub(super) fn flag(self, name: &str) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or_default()
    }

    /// Go's `intstr.IntOrString`, a port by number or by name.
    pub(super) fn raw_port(self, name: &str) -> Cow<'a, str> {
        match self.get(name) {
            Some(Value::String(name)) => Cow::Borrowed(name),
            _ => Cow::Owned(self.number(name).to_string()),
        }
    }

    fn values(self, name: &str) -> &'a [Value] {
        let values = self.get(name).and_then(Value::as_array);
        values.map(Vec::as_slice).unwrap_or_default()
    }
}
