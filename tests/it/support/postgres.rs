//! PostgreSQL servers: one that all tests share, each with a database of its own, and those of tests that disturb
//! one.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use rollbackd::audit::StoreUrl;
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _, Executor as _, any::install_default_drivers};
use url::Url;

/// The URL of the database `postgres` of the server that all tests share; `tests/run` starts it.
const SHARED: &str = "ROLLBACKD_TEST_POSTGRES";

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A server.
pub struct Postgres {
    admin: Url,
    /// Of a private one: where it lives.
    folder: Option<PathBuf>,
}

/// A new database with a user of its own, who owns it. It is dropped in the end.
#[derive(Debug)]
pub struct Database {
    pub name: String,
    /// Who owns it.
    user: String,
    admin: Url,
}

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/postgres").join(name))
}

impl Postgres {
    /// The one that all tests share. Nobody may disturb it.
    pub fn shared() -> Self {
        let url = std::env::var(SHARED).unwrap_or_else(|_| {
            panic!(
                "{SHARED} is not set: run the test with tests/run, or start a server with tests/postgres/up"
            )
        });
        Self { admin: url.parse().expect("a URL"), folder: None }
    }

    /// One for a test that disturbs it. It ends with the test.
    pub fn private() -> Self {
        let output = script("up").output().expect("bash runs tests/postgres/up");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tests/postgres/up: {complaint}");
        let said = String::from_utf8(output.stdout).expect("it prints UTF-8");
        let (folder, url) = said.trim().split_once('\n').expect("it prints two lines");
        Self { admin: url.parse().expect("a URL"), folder: Some(folder.into()) }
    }

    /// Makes a database.
    pub async fn database(&self) -> Database {
        self.database_with("").await
    }

    /// Makes a database that takes any bytes for text.
    pub async fn database_without_encoding(&self) -> Database {
        self.database_with("ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0").await
    }

    async fn database_with(&self, options: &str) -> Database {
        let name = format!("t{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let database = Database { user: name.clone(), name, admin: self.admin.clone() };
        let name = &database.name;
        let mut admin = self.admin().await;
        for sql in [
            format!("CREATE ROLE {name} LOGIN PASSWORD 'right'"),
            format!("CREATE DATABASE {name} OWNER {name} {options}"),
        ] {
            run(&mut admin, &sql).await;
        }
        database
    }

    /// Makes a copy of a database that nobody uses.
    pub async fn copy_of(&self, original: &Database) -> Database {
        let name = format!("{}_{}", original.name, COUNT.fetch_add(1, Ordering::Relaxed));
        let copy = Database { name, user: original.user.clone(), admin: self.admin.clone() };
        let sql = format!("CREATE DATABASE {} TEMPLATE {} OWNER {}", copy.name, original.name, copy.user);
        run(&mut self.admin().await, &sql).await;
        copy
    }

    /// A connection with all rights.
    pub async fn admin(&self) -> AnyConnection {
        connect(self.admin.as_str()).await
    }

    /// Ends all sessions of a database, as a failover does.
    pub async fn end_sessions(&self, database: &Database) {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = ";
        run(&mut self.admin().await, &format!("{end}'{}'", database.name)).await;
    }

    /// From now on everybody but the administrator is asked for a password.
    pub async fn asks_for_passwords(&self) {
        let rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(self.folder().join("data/pg_hba.conf"), rules).expect("it can be written");
        run(&mut self.admin().await, "SELECT pg_reload_conf()").await;
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        let port = self.admin.port().expect("the URL names the port");
        ([127, 0, 0, 1], port).into()
    }

    fn folder(&self) -> &Path {
        self.folder.as_deref().expect("nobody may disturb the shared server")
    }

    /// Sends a signal, such as `STOP`, to the server: to each of its processes, as each is a group of its own.
    pub fn signal(&self, signal: &str) {
        let signalled = script("stop").arg(self.folder()).arg(signal).status().expect("bash runs");
        assert!(signalled.success(), "tests/postgres/stop {signal}");
    }

    /// Starts it again after `KILL`, on the same port and data.
    pub fn restart(&self) {
        let restarted = script("start").arg(self.folder()).status().expect("bash runs");
        assert!(restarted.success(), "tests/postgres/start");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _ = script("down").arg(folder).status();
        }
    }
}

impl Database {
    /// Its URL, as its owner.
    pub fn url(&self) -> Url {
        let mut url = self.admin.clone();
        url.set_path(&self.name);
        url.set_username(&self.user).expect("it has a host");
        url.set_password(Some("right")).expect("it has a host");
        url
    }

    /// Its URL by way of another port.
    pub fn url_by(&self, port: u16) -> Url {
        let mut url = self.url();
        url.set_port(Some(port)).expect("it has a host");
        url
    }

    pub fn store_url(&self) -> StoreUrl {
        self.url().as_str().parse().expect("a store's URL")
    }

    /// A connection as its owner.
    pub async fn connect(&self) -> AnyConnection {
        connect(self.url().as_str()).await
    }

    /// A connection with all rights, which triggers can be taken away with.
    pub async fn tamper(&self) -> AnyConnection {
        let mut url = self.admin.clone();
        url.set_path(&self.name);
        let mut connection = connect(url.as_str()).await;
        run(&mut connection, "SET session_replication_role = replica").await;
        connection
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (admin, name, user) = (self.admin.clone(), self.name.clone(), self.user.clone());
        // A test's runtime can't wait here. If the server is gone, so is the database.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let dropping = async {
                    let mut admin = AnyConnection::connect(admin.as_str()).await?;
                    admin.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await?;
                    if user == name {
                        admin.execute(AssertSqlSafe(format!("DROP ROLE {name}"))).await?;
                    }
                    Ok::<_, sqlx::Error>(())
                };
                let _ = tokio::time::timeout(std::time::Duration::from_secs(5), dropping).await;
            });
            Ok::<_, std::io::Error>(())
        });
        let _ = dropping.join();
    }
}

async fn connect(url: &str) -> AnyConnection {
    install_default_drivers();
    AnyConnection::connect(url).await.unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// Runs statements that must succeed.
pub async fn run(connection: &mut AnyConnection, sql: &str) {
    let ran = connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await;
    ran.unwrap_or_else(|error| panic!("{sql}: {error}"));
}
