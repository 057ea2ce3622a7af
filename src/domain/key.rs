//! Names as Kubernetes defines them: a DaemonSet is named by namespace and name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of a namespace: an RFC 1123 label, 1 to 63 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Namespace(String);

/// The name of an object in the `apps` group: an RFC 1123 subdomain, 1 to 253 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Namespace and name of one DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub namespace: Namespace,
    pub name: Name,
}

/// A text that cannot be the name of a Kubernetes object.
///
/// `Display` says what was expected, in the words of `apimachinery`'s validation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not an RFC 1123 label.
    #[error(
        "expected an RFC 1123 label: 1 to 63 lower case alphanumeric characters or '-', starting and ending with an alphanumeric character"
    )]
    Label,
    /// Not an RFC 1123 subdomain.
    #[error(
        "expected an RFC 1123 subdomain: 1 to 253 lower case alphanumeric characters, '-' or '.', each part starting and ending with an alphanumeric character"
    )]
    Subdomain,
}

impl Namespace {
    /// Parses a namespace's name.
    ///
    /// # Errors
    /// [`InvalidName::Label`] when it is not an RFC 1123 label.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        if text.len() <= 63 && is_label(text) { Ok(Self(text.to_owned())) } else { Err(InvalidName::Label) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Name {
    /// Parses an object's name.
    ///
    /// # Errors
    /// [`InvalidName::Subdomain`] when it is not an RFC 1123 subdomain.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        if text.len() <= 253 && text.split('.').all(is_label) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Subdomain)
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_label(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

impl Key {
    /// Joins the two parts of a key.
    #[must_use]
    pub fn new(namespace: Namespace, name: Name) -> Self {
        Self { namespace, name }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace.0, self.name.0)
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Namespace {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::parse(&text)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::parse(&text)
    }
}

impl From<Namespace> for String {
    fn from(namespace: Namespace) -> Self {
        namespace.0
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_rfc_1123() {
        for good in ["a", "a-b", "0", "kube-system", &"a".repeat(63)] {
            assert!(Namespace::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "a b", "ä", &"a".repeat(64)] {
            assert!(Namespace::parse(bad).is_err(), "{bad}");
        }
        for good in ["a.b", "web-6d9", "1.0", &"a".repeat(253)] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a..b", "a.", "a/b", "a\n", "%", &"a".repeat(254)] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }
}
