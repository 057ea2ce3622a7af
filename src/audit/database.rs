//! The two engines, and what differs between them: how they are opened, and a few words of SQL. Placeholders are
//! `$1`, which both know.
//!
//! SQLite is one file and belongs to one process. PostgreSQL serves several replicas, none of which may hold up
//! the others: who sleeps in the middle of a transaction loses it.

use std::{
    fs::{File, TryLockError},
    path::Path,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use sqlx::{
    Any, AnyConnection, AnyPool, Connection as _, Transaction,
    any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers},
    pool::PoolOptions,
    raw_sql,
    sqlite::SqliteConnectOptions,
};

use super::{StoreError, StoreUrl, place::Place, schema};

/// How long a write may wait for its turn before the store counts as failed.
pub(super) const TURN: Duration = Duration::from_secs(5);

/// Most connections for writing, and as many for reading.
const CONNECTIONS: u32 = 4;

/// Each write durable when it is answered.
const SQLITE_WRITER: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000";
const SQLITE_READER: &str = "PRAGMA busy_timeout = 5000";
/// A replica that hangs in a transaction, or whose statement does, must not keep the others from the chain's
/// head. A server set up to lose the last commits in a crash is asked not to, for these sessions; a stricter
/// setting stays.
const POSTGRES_SESSION: &str = "
    SET application_name = 'rollbackd';
    SET statement_timeout = '10s';
    SET lock_timeout = '5s';
    SET idle_in_transaction_session_timeout = '5s';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Sqlite,
    Postgres,
}

/// An open store.
#[derive(Clone, Debug)]
pub(super) struct Database {
    pub engine: Engine,
    pub write: AnyPool,
    pub read: AnyPool,
    /// For signs of life, which must not wait behind anything else.
    pub pulse: AnyPool,
    /// The file, if there is one.
    place: Option<Place>,
    /// Keeps other processes off the file while it lives.
    _lock: Arc<Option<File>>,
}

impl Engine {
    /// Begins a transaction that writes.
    fn begin(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN",
        }
    }

    /// Reads the chain's head so that nobody else moves it before the transaction ends. SQLite has only one
    /// writer anyway.
    pub fn lock_head(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT sequence, hash FROM audit_head",
            Self::Postgres => "SELECT sequence, hash FROM audit_head FOR UPDATE",
        }
    }

    /// Milliseconds since 1970 by the one clock that all replicas share.
    pub fn now(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
            Self::Postgres => "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }
}

impl Database {
    /// Opens it, makes it if there is none, and brings its schema up to date.
    pub async fn open(url: &StoreUrl) -> Result<Self, StoreError> {
        install_default_drivers();
        match url {
            StoreUrl::Sqlite(text) => sqlite(text, url.is_in_memory()).await,
            StoreUrl::Postgres(_) => postgres(url.secret()).await,
        }
    }

    /// Whether what is written now will be found again.
    pub async fn holds_its_place(&self) -> Result<(), StoreError> {
        match &self.place {
            Some(place) if !place.is_held().await => Err(StoreError::Gone),
            _ => Ok(()),
        }
    }

    /// Whether what failed with this error may have been written all the same. SQLite says so when it has not;
    /// PostgreSQL may have committed before the connection broke.
    pub fn may_have_written(&self, error: &StoreError) -> bool {
        match error {
            StoreError::Silent => true,
            StoreError::Database(sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) => false,
            StoreError::Database(_) => self.engine == Engine::Postgres,
            _ => false,
        }
    }

    pub async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        Ok(self.write.begin_with(self.engine.begin()).await?)
    }

    /// Uses another password for connections that are made from now on.
    pub fn use_password_of(&self, url: &StoreUrl) -> Result<(), StoreError> {
        let options = AnyConnectOptions::from_str(url.secret())?;
        for pool in [&self.write, &self.read, &self.pulse] {
            pool.set_connect_options(options.clone());
        }
        Ok(())
    }

    pub async fn close(&self) {
        // Last the one that writes: it brings what is in SQLite's log into the file.
        self.read.close().await;
        self.pulse.close().await;
        self.write.close().await;
    }
}

/// A connection that only reads.
pub(super) async fn reader(url: &StoreUrl) -> sqlx::Result<AnyConnection> {
    install_default_drivers();
    match url {
        StoreUrl::Sqlite(text) => AnyConnection::connect(&with_mode(text, "ro")).await,
        StoreUrl::Postgres(_) => {
            let mut connection = AnyConnection::connect(url.secret()).await?;
            raw_sql("SET default_transaction_read_only = on").execute(&mut connection).await?;
            Ok(connection)
        }
    }
}

fn with_mode(text: &str, mode: &str) -> String {
    let separator = if text.contains('?') { '&' } else { '?' };
    format!("{text}{separator}mode={mode}")
}

async fn sqlite(text: &str, in_memory: bool) -> Result<Database, StoreError> {
    let options = SqliteConnectOptions::from_str(text).map_err(|_| StoreError::Url)?;
    let file = (!in_memory).then(|| options.get_filename().to_owned());
    let lock = file.as_deref().map(lock).transpose()?;
    let with_mode = |mode| if in_memory { text.to_owned() } else { with_mode(text, mode) };
    // One writer: a transaction that reads first and then writes can't meet another's write.
    let write = pool(1).min_connections(1).idle_timeout(None).max_lifetime(None);
    let write = in_each_session(write, SQLITE_WRITER).connect(&with_mode("rwc")).await?;
    schema::bring_up_to_date(Engine::Sqlite, &mut *write.acquire().await?).await?;
    let read = if in_memory {
        // Another connection to it would meet the locks of a shared cache.
        write.clone()
    } else {
        in_each_session(pool(2), SQLITE_READER).connect(&with_mode("ro")).await?
    };
    let place = file.as_deref().map(Place::of).transpose().map_err(sqlx::Error::Io)?;
    let pulse = write.clone();
    Ok(Database { engine: Engine::Sqlite, write, read, pulse, place, _lock: Arc::new(lock) })
}

async fn postgres(url: &str) -> Result<Database, StoreError> {
    // A connection of its own: no deadline of a session, and what the migration locks ends with it.
    let connect = tokio::time::timeout(TURN, AnyConnection::connect(url)).await;
    let mut connection = connect.map_err(|_| StoreError::Silent)??;
    schema::bring_up_to_date(Engine::Postgres, &mut connection).await?;
    connection.close().await?;
    let connect = |connections| {
        let pool = pool(connections).test_before_acquire(false).before_acquire(|connection, _| {
            // After a failover an old connection may lead to a server that only reads.
            let primary =
                sqlx::query_scalar::<_, bool>("SELECT NOT pg_is_in_recovery()").fetch_one(connection);
            Box::pin(primary)
        });
        in_each_session(pool, POSTGRES_SESSION).connect(url)
    };
    let (write, read, pulse) = (connect(CONNECTIONS).await?, connect(CONNECTIONS).await?, connect(1).await?);
    Ok(Database { engine: Engine::Postgres, write, read, pulse, place: None, _lock: Arc::default() })
}

fn pool(connections: u32) -> AnyPoolOptions {
    PoolOptions::new().max_connections(connections).acquire_timeout(TURN)
}

fn in_each_session(pool: AnyPoolOptions, sql: &'static str) -> AnyPoolOptions {
    pool.after_connect(move |connection, _| {
        Box::pin(async move { raw_sql(sql).execute(connection).await.map(drop) })
    })
}

/// Keeps a second process off the file: each would settle what the other is still making. The lock
/// goes with the process, however that ends.
fn lock(file: &Path) -> Result<File, StoreError> {
    let mut name = file.as_os_str().to_owned();
    name.push(".lock");
    let lock = File::create(name).map_err(sqlx::Error::Io)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse),
        Err(TryLockError::Error(error)) => Err(sqlx::Error::Io(error).into()),
    }
}
