//! Which namespaces are watched.

use crate::domain::key::Namespace;

/// Which namespaces rollbackd serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    Namespaces(Vec<Namespace>),
}

impl Scope {
    /// These namespaces, or all if none is named. Naming one twice is naming it once.
    #[must_use]
    pub fn of(mut namespaces: Vec<Namespace>) -> Self {
        namespaces.sort();
        namespaces.dedup();
        if namespaces.is_empty() { Self::All } else { Self::Namespaces(namespaces) }
    }

    /// Whether a namespace is served.
    #[must_use]
    pub fn contains(&self, namespace: &Namespace) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(served) => served.contains(namespace),
        }
    }

    /// One entry for each watch of a kind.
    pub(super) fn watches(&self) -> Vec<Option<Namespace>> {
        match self {
            Self::All => vec![None],
            Self::Namespaces(served) => served.iter().cloned().map(Some).collect(),
        }
    }

    /// How many watches each kind has.
    #[must_use]
    pub fn watches_per_kind(&self) -> usize {
        match self {
            Self::All => 1,
            Self::Namespaces(served) => served.len(),
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all namespaces"),
            Self::Namespaces(served) => {
                let names: Vec<&str> = served.iter().map(Namespace::as_str).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}
