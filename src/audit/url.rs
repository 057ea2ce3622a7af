//! Where the store is.

use std::{fmt, str::FromStr};

use url::Url;

const IN_MEMORY: &str = "sqlite::memory:";

/// Where the store is: `sqlite:PATH` or `postgres://…`. Shown without its password.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// A file, or memory; the text as SQLite's driver takes it.
    Sqlite(String),
    /// A database of a PostgreSQL server.
    Postgres(Url),
}

/// A text that is no store's URL.
#[derive(Debug, thiserror::Error)]
#[error("expected sqlite:PATH, the path of a file, or postgres://USER@HOST/DATABASE")]
pub struct InvalidStoreUrl;

impl FromStr for StoreUrl {
    type Err = InvalidStoreUrl;

    fn from_str(text: &str) -> Result<Self, InvalidStoreUrl> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            let is_path = !path.is_empty() && !path.starts_with(":memory:");
            return if is_path || text == IN_MEMORY {
                Ok(Self::Sqlite(text.to_owned()))
            } else {
                Err(InvalidStoreUrl)
            };
        }
        let url = Url::parse(text).map_err(|_| InvalidStoreUrl)?;
        let named = url.has_host() && url.path().len() > 1;
        match url.scheme() {
            "postgres" | "postgresql" if named => Ok(Self::Postgres(url)),
            _ => Err(InvalidStoreUrl),
        }
    }
}

impl StoreUrl {
    /// A store that is gone when the process ends.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::Sqlite(IN_MEMORY.to_owned())
    }

    /// Whether it is gone when the process ends.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        matches!(self, Self::Sqlite(text) if text == IN_MEMORY)
    }

    /// The same with a password, which SQLite has no use for.
    #[must_use]
    pub fn with_password(self, password: &str) -> Self {
        match self {
            Self::Postgres(mut url) => {
                // Only a URL without a host takes none.
                let _ = url.set_password(Some(password));
                Self::Postgres(url)
            }
            sqlite @ Self::Sqlite(_) => sqlite,
        }
    }

    /// The whole text, with the password.
    #[must_use]
    pub fn secret(&self) -> &str {
        match self {
            Self::Sqlite(text) => text,
            Self::Postgres(url) => url.as_str(),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(text) => f.write_str(text),
            Self::Postgres(url) => {
                let mut shown = url.clone();
                let _ = shown.set_password(None);
                // Parameters may hold a password, too.
                shown.set_query(None);
                write!(f, "{shown}")
            }
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let url: StoreUrl = "postgres://rollbackd:s3cr%2Ft@db:5432/rollbackd?password=s3cr".parse().unwrap();
        assert_eq!(url.to_string(), "postgres://rollbackd@db:5432/rollbackd");
        assert!(!format!("{url:?}").contains("s3cr"));
        let url = "postgres://rollbackd@db/rollbackd".parse::<StoreUrl>().unwrap().with_password("a/b@c");
        assert_eq!(url.secret(), "postgres://rollbackd:a%2Fb%40c@db/rollbackd");
        assert!(!format!("{url:?}").contains("a%2F"));
    }

    #[test]
    fn only_two_forms_are_taken() {
        for text in [
            "",
            "x",
            "sqlite:",
            "sqlite::memory:?cache=private",
            "postgres://db",
            "mysql://u@h/d",
            "postgres:/db",
        ] {
            assert!(text.parse::<StoreUrl>().is_err(), "{text}");
        }
    }
}
