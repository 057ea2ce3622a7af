//! The two engines, and what differs between them: how they are opened, and a few words of SQL. Placeholders are
//! `$1`, which both know.
//!
//! SQLite is one file and belongs to one process. PostgreSQL serves several replicas, none of which may hold up
//! the others: who sleeps in the middle of a transaction loses it.

use std::{
    fs::{File, TryLockError},
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::Path,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use sqlx::{
    Any, AnyConnection, AnyPool, Connection as _, Transaction,
    any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers},
    raw_sql,
    sqlite::SqliteConnectOptions,
};

use super::{StoreError, StoreUrl, place::Place, schema};

/// How long a write may wait for its turn before the store counts as failed.
pub(super) const TURN: Duration = Duration::from_secs(5);

/// How long a connection that was idle may take to show that it is alive.
const ALIVE: Duration = Duration::from_secs(1);

/// Most connections for writing, and as many for reading.
const CONNECTIONS: u32 = 4;
/// Most connections for lists.
const LISTS: u32 = 2;

/// Each write durable when it is answered. While the disk can only be read SQLite opens the file all the same, and
/// that connection could never write, so that it is no use.
const SQLITE_WRITER: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE; ROLLBACK";
const SQLITE_READER: &str = "PRAGMA busy_timeout = 5000";
/// A replica that hangs in a transaction, or whose statement does, must not keep the others from the chain's
/// head. A server set up to lose the last commits in a crash is asked not to, for these sessions; a stricter
/// setting stays. Names mean what PostgreSQL means by them, then the tables beside `audit`, however `search_path` is
/// set.
const POSTGRES_SESSION: &str = "
    SET application_name = 'rollbackd';
    SET statement_timeout = '10s';
    SET lock_timeout = '5s';
    SET idle_in_transaction_session_timeout = '5s';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
    SELECT pg_catalog.set_config('search_path', pg_catalog.concat('pg_catalog, ', pg_catalog.quote_ident(n.nspname::pg_catalog.text), ', pg_temp'), false)
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('audit')";

/// After a failover an old connection may lead to a server that has become a standby.
const IS_PRIMARY: &str = "SELECT NOT pg_is_in_recovery()";
/// A session that was begun while the database could only be read stays so when it can be written again.
const WRITES: &str = "SELECT current_setting('transaction_read_only') = 'off'";

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
    /// For one record or one number, which rollbacks wait for.
    pub read: AnyPool,
    /// For lists, which callers may ask for as often as they like: they wait for each other, and nothing else waits
    /// for them.
    pub lists: AnyPool,
    /// For signs of life, which must not wait behind anything else.
    pub pulse: AnyPool,
    /// The files, if there are any.
    place: Option<Place>,
    /// Keeps other processes off the file while it lives.
    _locks: Arc<Vec<File>>,
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

    pub async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        Ok(self.write.begin_with(self.engine.begin()).await?)
    }

    /// Uses another password for connections that are made from now on.
    pub fn use_password_of(&self, url: &StoreUrl) -> Result<(), StoreError> {
        let options = AnyConnectOptions::from_str(url.secret())?;
        for pool in [&self.write, &self.read, &self.lists, &self.pulse] {
            pool.set_connect_options(options.clone());
        }
        Ok(())
    }

    /// Closes all connections, or leaves those behind that do not answer.
    pub async fn close(&self) {
        let closing = async {
            self.lists.close().await;
            self.read.close().await;
            // The last connection to SQLite's file puts all into it that stands beside it; one that only reads can't.
            self.pulse.close().await;
            self.write.close().await;
        };
        let _ = tokio::time::timeout(TURN, closing).await;
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
    let locks = file.as_deref().map(lock).transpose()?.map(Vec::from).unwrap_or_default();
    let with_mode = |mode| if in_memory { text.to_owned() } else { with_mode(text, mode) };
    if !in_memory {
        // Once by itself, so that it is told what is wrong; a pool would try again, and then tell that it took long.
        let mut alone = AnyConnection::connect(&with_mode("rwc")).await?;
        raw_sql(SQLITE_WRITER).execute(&mut alone).await?;
        alone.close().await?;
    }
    // One writer: a transaction that reads first and then writes can't meet another's write. Connections that are
    // kept open need no room on the disk to be opened again.
    let kept = |most| pool(most).min_connections(1).idle_timeout(None).max_lifetime(None);
    let write = in_each_session(kept(1), SQLITE_WRITER).connect(&with_mode("rwc")).await?;
    schema::bring_up_to_date(Engine::Sqlite, &mut *write.acquire().await?).await?;
    let (read, lists) = if in_memory {
        // Another connection to it would meet the locks of a shared cache.
        (write.clone(), write.clone())
    } else {
        let reader = |most| in_each_session(kept(most), SQLITE_READER);
        (reader(2).connect(&with_mode("ro")).await?, reader(LISTS).connect(&with_mode("ro")).await?)
    };
    let place = file.as_deref().map(Place::of).transpose().map_err(sqlx::Error::Io)?;
    let pulse = write.clone();
    Ok(Database { engine: Engine::Sqlite, write, read, lists, pulse, place, _locks: Arc::new(locks) })
}

async fn postgres(url: &str) -> Result<Database, StoreError> {
    // A connection of its own: no deadline of a session, and what the migration locks ends with it.
    let connect = tokio::time::timeout(TURN, AnyConnection::connect(url)).await;
    let mut connection = connect.map_err(|_| StoreError::Silent)??;
    schema::bring_up_to_date(Engine::Postgres, &mut connection).await?;
    connection.close().await?;
    let connect = |connections, still_good: &'static str| {
        let pool = pool(connections).test_before_acquire(false).before_acquire(move |connection, _| {
            let asking = sqlx::query_scalar::<_, bool>(still_good).fetch_one(connection);
            // A new one is opened instead of one that is silent, while there is still time for it.
            let answer = tokio::time::timeout(ALIVE, asking);
            Box::pin(async move { answer.await.map_err(|_| sqlx::Error::PoolTimedOut)? })
        });
        in_each_session(pool, POSTGRES_SESSION).connect(url)
    };
    let write = connect(CONNECTIONS, WRITES).await?;
    let read = connect(CONNECTIONS, IS_PRIMARY).await?;
    let lists = connect(LISTS, IS_PRIMARY).await?;
    let pulse = connect(1, WRITES).await?;
    Ok(Database { engine: Engine::Postgres, write, read, lists, pulse, place: None, _locks: Arc::default() })
}

fn pool(connections: u32) -> AnyPoolOptions {
    let pool = AnyPoolOptions::new().max_connections(connections).acquire_timeout(TURN);
    pool.after_release(|connection, _| {
        Box::pin(async move {
            // One whose server has gone without a word would be waited for until TCP gives it up, and there are only
            // a few.
            tokio::time::timeout(TURN, connection.ping()).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
            // When the disk fails SQLite itself ends a transaction, which sqlx goes on counting as begun: no other
            // one could ever be begun on this connection.
            Ok(!connection.is_in_transaction())
        })
    })
}

fn in_each_session(pool: AnyPoolOptions, sql: &'static str) -> AnyPoolOptions {
    pool.after_connect(move |connection, _| {
        Box::pin(async move { raw_sql(sql).execute(connection).await.map(drop) })
    })
}

/// Keeps a second process off the file: each would settle what the other is still making. The lock
/// goes with the process, however that ends. The file itself is locked, too: it may be mounted under several paths. A
/// file with several names is refused, as each of them would have a write-ahead log of its own.
fn lock(file: &Path) -> Result<[File; 2], StoreError> {
    // By whatever symbolic link it is named. What is missing is made: SQLite takes an empty file.
    let real = match file.canonicalize() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            File::options().create(true).append(true).open(file).and_then(|_| file.canonicalize())
        }
        found => found,
    };
    let real = real.map_err(sqlx::Error::Io)?;
    let mut name = real.clone().into_os_string();
    name.push(".lock");
    let beside = exclusive(File::create(name).map_err(sqlx::Error::Io)?)?;
    // Opened only by the process that has the other lock, and never closed while it uses the store: SQLite's own
    // locks end with any descriptor of the file that a process closes.
    let itself = exclusive(File::open(&real).map_err(sqlx::Error::Io)?)?;
    let names = itself.metadata().map_err(sqlx::Error::Io)?.nlink();
    if names > 1 { Err(StoreError::HardLinks { names }) } else { Ok([beside, itself]) }
}

fn exclusive(file: File) -> Result<File, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse),
        Err(TryLockError::Error(error)) => Err(sqlx::Error::Io(error).into()),
    }
}
