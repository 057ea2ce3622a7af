//! What a next version of rollbackd would do to the store.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::Context;
use serde_json::{Value, json};
use sqlx::{AnyConnection, Connection as _, any::install_default_drivers, raw_sql};
use tokio::time::timeout;

/// It adds, and takes nothing away: that is the rule.
const NEXT: &str = "
    BEGIN;
    SET LOCAL lock_timeout = '5s';
    ALTER TABLE rollbacks ADD COLUMN later TEXT NOT NULL DEFAULT 'not yet';
    ALTER TABLE audit ADD COLUMN later BIGINT;
    CREATE TABLE later (id TEXT NOT NULL PRIMARY KEY);
    INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        SELECT max(version) + 1, 'later', true, '\\x00', 0 FROM _sqlx_migrations;
    COMMIT";
/// What this version writes is no longer understood.
const TOO_NEW: &str = "UPDATE schema_support SET oldest = (SELECT max(version) FROM _sqlx_migrations)";

async fn run(store: &str, sql: &'static str) -> anyhow::Result<()> {
    install_default_drivers();
    let mut connection = AnyConnection::connect(store).await?;
    raw_sql(sql).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// Brings the schema to the next version, under those that run.
pub async fn migrate(store: &str) -> anyhow::Result<()> {
    run(store, NEXT).await.context("the next version's migration")
}

/// Makes the store one that this version may not use, and tells how it takes that.
pub async fn refuse(store: &str, program: &Path, kubeconfig: &Path) -> anyhow::Result<Value> {
    run(store, TOO_NEW).await?;
    let mut command = tokio::process::Command::new(program);
    command.args(["serve", "--auth", "none", "--listen", "127.0.0.1:0", "--store", store]);
    command.arg("--kubeconfig").arg(kubeconfig).stdin(Stdio::null()).kill_on_drop(true);
    let Ok(output) = timeout(Duration::from_secs(20), command.output()).await else {
        return Ok(json!({"code": null, "said": ["it went on"]}));
    };
    let output = output?;
    let said: Vec<_> = String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
    Ok(json!({"code": output.status.code(), "said": said}))
}
