//! A pod template, kept as JSON: fields that this build does not know must survive a rollback,
//! so it is never decoded into typed structs.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// A pod template in canonical form: no `$patch` key, no nulls, whole numbers as integers,
/// keys sorted.
///
/// Two templates are the same when their canonical forms are. The controller and kubectl compare
/// bytes instead, which breaks across versions: up to Kubernetes 1.33 the bytes hold
/// `"creationTimestamp":null`, from 1.34 on they do not.
#[derive(Clone, Debug)]
pub struct Template {
    canonical: Arc<str>,
    summary: TemplateSummary,
}

/// What is kept of a [`Template`] where there is no room for the whole of it.
#[derive(Clone, Debug)]
pub struct TemplateSummary {
    fingerprint: Fingerprint,
    images: Arc<[ContainerImage]>,
}

/// SHA-256 over the canonical JSON of a [`Template`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// Which image one container of a pod template runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerImage {
    /// Name of the container.
    #[schema(examples("agent"))]
    pub container: String,
    /// Image reference as it stands in the template.
    #[schema(examples("registry.example/agent:1.4.2"))]
    pub image: String,
    /// Whether it is an init container.
    pub init: bool,
}

/// Why a ControllerRevision's `data` cannot be rolled back to.
///
/// The API server accepts any JSON object as `data`, and kubectl patches whatever it holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum NotRestorable {
    /// It is nested too deep, or holds text that is not Unicode: the API server stores both.
    #[error("its data can't be read")]
    Unreadable,
    /// There is no `data`, or it is not an object.
    #[error("its data is not a JSON object")]
    NotAnObject,
    /// `spec.template` is missing or is not an object.
    #[error("its data holds no spec.template")]
    NoTemplate,
    /// A key stands beside `spec` or `spec.template`.
    #[error("its data holds {path:?}, which is not part of spec.template")]
    ForeignKey {
        /// Where the key stands, dots between the keys.
        path: String,
    },
    /// `$patch: replace` is missing, so that a strategic merge would mix two templates.
    #[error("its spec.template is not marked \"$patch\": \"replace\"")]
    NotReplacing,
    /// A strategic merge directive stands deeper in the template.
    #[error("its spec.template holds the strategic merge directive {path:?}")]
    Directive {
        /// Where the key stands, dots between the keys.
        path: String,
    },
}

impl Template {
    /// Takes a live DaemonSet's `spec.template`.
    #[must_use]
    pub fn new(mut template: Value) -> Self {
        if let Value::Object(map) = &mut template {
            map.remove("$patch");
        }
        canonicalize(&mut template);
        let canonical = template.to_string();
        let fingerprint = Fingerprint::of(&canonical);
        let images = images(&template).into();
        Self { canonical: canonical.into(), summary: TemplateSummary { fingerprint, images } }
    }

    /// Takes the canonical form back, under the summary that it had. `None` if it is that of another template.
    #[must_use]
    pub fn restored(canonical: &str, summary: &TemplateSummary) -> Option<Self> {
        let same = Fingerprint::of(canonical) == summary.fingerprint;
        same.then(|| Self { canonical: canonical.into(), summary: summary.clone() })
    }

    /// Takes the `data` of a ControllerRevision, which is untrusted.
    ///
    /// # Errors
    /// What keeps it from being exactly one replaced pod template.
    pub fn from_revision_data(data: Option<Value>) -> Result<Self, NotRestorable> {
        let Some(Value::Object(mut data)) = data else {
            return Err(NotRestorable::NotAnObject);
        };
        let Some(Value::Object(mut spec)) = data.remove("spec") else {
            return Err(NotRestorable::NoTemplate);
        };
        let Some(Value::Object(mut template)) = spec.remove("template") else {
            return Err(NotRestorable::NoTemplate);
        };
        if let Some(key) = data.keys().next() {
            return Err(NotRestorable::ForeignKey { path: key.clone() });
        }
        if let Some(key) = spec.keys().next() {
            return Err(NotRestorable::ForeignKey { path: format!("spec.{key}") });
        }
        if template.remove("$patch") != Some(Value::from("replace")) {
            return Err(NotRestorable::NotReplacing);
        }
        let template = Value::Object(template);
        if let Some(path) = directive(&template, "") {
            return Err(NotRestorable::Directive { path });
        }
        Ok(Self::new(template))
    }

    /// The template as JSON.
    #[must_use]
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.canonical).expect("canonical form was serialised from JSON")
    }

    /// The template as it stands in a strategic merge patch that replaces the live one.
    #[must_use]
    pub fn replacing(&self) -> Value {
        let mut value = self.value();
        if let Value::Object(map) = &mut value {
            map.insert("$patch".into(), "replace".into());
        }
        value
    }

    /// The canonical form as text.
    #[must_use]
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// What is kept of it where there is no room for the whole.
    #[must_use]
    pub fn summary(&self) -> &TemplateSummary {
        &self.summary
    }

    /// Digest of the canonical form.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.summary.fingerprint
    }

    /// Images of all containers, init containers first, in the template's order.
    #[must_use]
    pub fn images(&self) -> &[ContainerImage] {
        &self.summary.images
    }
}

impl TemplateSummary {
    /// Digest of the template's canonical form.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Images of all containers, init containers first, in the template's order.
    #[must_use]
    pub fn images(&self) -> &[ContainerImage] {
        &self.images
    }

    /// The same template without the names of its containers and images.
    #[must_use]
    pub fn without_images(&self) -> Self {
        Self { fingerprint: self.fingerprint, images: Arc::default() }
    }

    /// Bytes that it holds beside itself.
    #[must_use]
    pub fn heap(&self) -> usize {
        let of =
            |image: &ContainerImage| size_of::<ContainerImage>() + image.container.len() + image.image.len();
        self.images.iter().map(of).sum()
    }
}

impl AsRef<TemplateSummary> for Template {
    fn as_ref(&self) -> &TemplateSummary {
        &self.summary
    }
}

impl AsRef<TemplateSummary> for TemplateSummary {
    fn as_ref(&self) -> &TemplateSummary {
        self
    }
}

impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        self.summary == other.summary
    }
}

impl Eq for Template {}

impl PartialEq for TemplateSummary {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for TemplateSummary {}

impl Fingerprint {
    fn of(canonical: &str) -> Self {
        Self(Sha256::digest(canonical.as_bytes()).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected 64 hexadecimal digits";
        let mut digest = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(EXPECTED);
        }
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| EXPECTED)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| EXPECTED)?;
        }
        Ok(Self(digest))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Drops nulls in objects, writes whole floats as integers and sorts keys.
fn canonicalize(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(canonicalize);
            // A no-op unless some crate in the tree switches serde_json's `preserve_order` on.
            map.sort_keys();
        }
        Value::Array(items) => items.iter_mut().for_each(canonicalize),
        Value::Number(number) => {
            // 2^53: up to there a float holds every integer exactly.
            const EXACT: f64 = 9_007_199_254_740_992.0;
            let whole = number
                .as_f64()
                .filter(|float| number.is_f64() && float.fract() == 0.0 && float.abs() <= EXACT);
            if let Some(float) = whole {
                #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
                let integer = float as i64;
                *value = integer.into();
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Finds a key that a strategic merge would take for a directive. The keys of maps of strings are data: what is
/// wrong with those is the API server's to say.
fn directive(value: &Value, path: &str) -> Option<String> {
    match value {
        Value::Object(map) => map.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            if key.starts_with('$') {
                return Some(path);
            }
            let free = ["csi.volumeAttributes", "flexVolume.options"];
            if matches!(key.as_str(), "labels" | "annotations") || free.iter().any(|map| path.ends_with(map))
            {
                return None;
            }
            directive(value, &path)
        }),
        Value::Array(items) => items.iter().find_map(|item| directive(item, path)),
        _ => None,
    }
}

fn images(template: &Value) -> Vec<ContainerImage> {
    let of = |field: &str, init: bool| {
        let containers = template["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default();
        containers
            .iter()
            .map(|container| ContainerImage {
                container: text(container.as_object(), "name"),
                image: text(container.as_object(), "image"),
                init,
            })
            .collect::<Vec<_>>()
    };
    [of("initContainers", true), of("containers", false)].concat()
}

fn text(object: Option<&Map<String, Value>>, key: &str) -> String {
    object.and_then(|map| map.get(key)?.as_str()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn data(template: Value) -> Option<Value> {
        Some(json!({"spec": {"template": template}}))
    }

    #[test]
    fn bytes_of_1_33_and_of_1_37_are_the_same_template() {
        let old = json!({"$patch": "replace", "metadata": {"creationTimestamp": null, "labels": {"app": "a"}}, "spec": {"containers": []}});
        let new = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": []}});
        assert_eq!(Template::from_revision_data(data(old)).unwrap(), Template::new(new));
    }

    #[test]
    fn whole_numbers_are_one_number_however_they_are_written() {
        let read = |text: &str| Template::new(serde_json::from_str(text).unwrap());
        assert_eq!(read(r#"{"p": 1000}"#), read(r#"{"p": 1.0e3}"#));
        assert_ne!(read(r#"{"p": 1.5}"#), read(r#"{"p": 1}"#));
        assert_ne!(read(r#"{"p": 9223372036854775807}"#), read(r#"{"p": 9223372036854775806}"#));
    }

    #[test]
    fn html_escapes_and_emoji_compare_as_characters() {
        let read = |text: &str| Template::new(serde_json::from_str(text).unwrap());
        assert_eq!(read(r#"{"a":"\u003c\u0026\u2028"}"#), read("{\"a\":\"<&\u{2028}\"}"));
    }

    #[test]
    fn hostile_data_is_not_restorable_and_says_why() {
        let reason = |data| Template::from_revision_data(data).unwrap_err();
        assert_eq!(reason(None), NotRestorable::NotAnObject);
        assert_eq!(reason(Some(json!([]))), NotRestorable::NotAnObject);
        assert_eq!(reason(Some(json!({"a": 1}))), NotRestorable::NoTemplate);
        assert_eq!(reason(Some(json!({"spec": {"template": 3}}))), NotRestorable::NoTemplate);
        assert_eq!(reason(data(json!({}))), NotRestorable::NotReplacing);
        assert_eq!(reason(data(json!({"$patch": "delete"}))), NotRestorable::NotReplacing);
        assert_eq!(
            reason(Some(json!({"spec": {"template": {"$patch": "replace"}, "minReadySeconds": 9}}))),
            NotRestorable::ForeignKey { path: "spec.minReadySeconds".into() }
        );
        assert_eq!(
            reason(Some(json!({"metadata": {}, "spec": {"template": {"$patch": "replace"}}}))),
            NotRestorable::ForeignKey { path: "metadata".into() }
        );
        assert_eq!(
            reason(data(json!({"$patch": "replace", "spec": {"containers": [{"$patch": "delete"}]}}))),
            NotRestorable::Directive { path: "spec.containers.$patch".into() }
        );
        assert_eq!(
            reason(data(
                json!({"$patch": "replace", "spec": {"dnsConfig": {"options": [{"$patch": "delete"}]}}})
            )),
            NotRestorable::Directive { path: "spec.dnsConfig.options.$patch".into() }
        );
    }

    #[test]
    fn keys_of_maps_of_strings_are_no_directives() {
        let volumes = json!([
            {"csi": {"driver": "d", "volumeAttributes": {"$schema": "x"}}},
            {"flexVolume": {"driver": "d", "options": {"$patch": "x"}}},
        ]);
        let template = json!({"$patch": "replace", "metadata": {"annotations": {"$a": ""}}, "spec": {"volumes": volumes}});
        assert_eq!(Template::from_revision_data(data(template)).unwrap().value()["spec"]["volumes"], volumes);
    }

    #[test]
    fn images_are_listed_init_containers_first() {
        let template = Template::new(json!({"spec": {
            "containers": [{"name": "main", "image": "a:1"}, {"image": 3}],
            "initContainers": [{"name": "setup", "image": "b:1"}],
        }}));
        let shown: Vec<_> = template.images().iter().map(|i| (&*i.container, &*i.image, i.init)).collect();
        assert_eq!(shown, [("setup", "b:1", true), ("main", "a:1", false), ("", "", false)]);
    }

    #[test]
    fn a_fingerprint_reads_back_from_its_text() {
        let fingerprint = Template::new(json!({})).fingerprint();
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        assert!("xyz".parse::<Fingerprint>().is_err());
        assert!("é".repeat(32).parse::<Fingerprint>().is_err());
    }
}
