//! Where a rollbackd of a test keeps its record: in a file, or, with `ROLLBACKD_TEST_STORE=postgres`, in a database
//! of its own on the shared PostgreSQL server.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::postgres::{Database, Postgres};

#[derive(Clone, Debug)]
pub enum Place {
    File(PathBuf),
    Database(Arc<Database>),
    /// A URL, of whatever the test has made.
    Url(String),
}

impl Place {
    /// A new one; a file goes into a folder.
    pub async fn new(folder: &Path) -> Self {
        match std::env::var("ROLLBACKD_TEST_STORE").as_deref() {
            Ok("postgres") => Self::Database(Arc::new(Postgres::shared().database().await)),
            Ok("sqlite" | "") | Err(_) => Self::File(folder.join("rollbackd.db")),
            Ok(other) => panic!("ROLLBACKD_TEST_STORE={other}: expected sqlite or postgres"),
        }
    }

    /// SQLite's file, for tests that reach into it.
    pub fn file(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Database(_) | Self::Url(_) => {
                panic!(
                    "this test reaches into SQLite's file, and can't run with ROLLBACKD_TEST_STORE=postgres"
                )
            }
        }
    }

    /// What `--store` is told.
    pub fn url(&self) -> String {
        match self {
            Self::File(path) => format!("sqlite:{}", path.display()),
            Self::Database(database) => database.url().to_string(),
            Self::Url(url) => url.clone(),
        }
    }
}
