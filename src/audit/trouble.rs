//! What is wrong with the store, in few words: for whoever looks at the probes, who may be anybody. The log has
//! the database's own.

use std::fmt;

use super::StoreError;

/// What is wrong with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Full,
    ReadOnly,
    Damaged,
    Gone,
    Altered,
    OutOfReach,
    Silent,
    Failing,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the disk is full",
            Self::ReadOnly => "it can only be read",
            Self::Damaged => "its file is damaged",
            Self::Gone => "its file was removed or replaced",
            Self::Altered => "its tables are not what rollbackd made",
            Self::OutOfReach => "it can't be reached",
            Self::Silent => "it does not answer",
            Self::Failing => "it fails",
        })
    }
}

impl From<&StoreError> for Trouble {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Gone => Self::Gone,
            StoreError::Altered => Self::Altered,
            StoreError::Silent => Self::Silent,
            StoreError::Database(
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed,
            ) => Self::OutOfReach,
            StoreError::Database(sqlx::Error::Database(error)) => {
                of_engine(error.code().as_deref().unwrap_or_default())
            }
            _ => Self::Failing,
        }
    }
}

/// By SQLite's result codes, whose lowest byte is the primary one, and PostgreSQL's SQLSTATEs, which have five
/// characters.
fn of_engine(code: &str) -> Trouble {
    if code.len() == 5 {
        return match code {
            "53100" => Trouble::Full,
            "25006" => Trouble::ReadOnly,
            "XX001" | "XX002" => Trouble::Damaged,
            _ if ["08", "28", "53", "57"].iter().any(|class| code.starts_with(class)) => Trouble::OutOfReach,
            _ => Trouble::Failing,
        };
    }
    match code.parse::<u32>().map(|code| code & 0xff) {
        Ok(13) => Trouble::Full,
        Ok(8) => Trouble::ReadOnly,
        Ok(11 | 26) => Trouble::Damaged,
        Ok(14) => Trouble::OutOfReach,
        _ => Trouble::Failing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_engines_codes_are_told_apart() {
        for (code, trouble) in [
            ("13", Trouble::Full),
            ("8", Trouble::ReadOnly),
            ("1032", Trouble::ReadOnly),
            ("11", Trouble::Damaged),
            ("26", Trouble::Damaged),
            ("14", Trouble::OutOfReach),
            ("778", Trouble::Failing),
            ("53100", Trouble::Full),
            ("53300", Trouble::OutOfReach),
            ("25006", Trouble::ReadOnly),
            ("57P03", Trouble::OutOfReach),
            ("28P01", Trouble::OutOfReach),
            ("42P01", Trouble::Failing),
            ("22024", Trouble::Failing),
            ("", Trouble::Failing),
        ] {
            assert_eq!(of_engine(code), trouble, "{code}");
        }
    }
}
