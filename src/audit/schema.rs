//! The schema: how it is brought up to date, and who may use which.
//!
//! Version N and the one before it run side by side while replicas are replaced. So a migration only adds what
//! the version before it can do without, and says in `schema_support` which schema a rollbackd must at least
//! know: an older one stops instead of writing what it does not understand.

use std::borrow::Cow;

use sqlx::{
    AnyConnection, Connection as _, SqlStr,
    migrate::{Migration, MigrationType, Migrator},
};

use super::{Head, Sequence, StoreError, chain, database::Engine};

/// The newest schema that this version knows.
const KNOWN: i64 = 6;

fn migrator(engine: Engine) -> Migrator {
    let migration = |version, about, sql| {
        let sql = SqlStr::from_static(sql);
        Migration::new(version, Cow::Borrowed(about), MigrationType::Simple, sql, false)
    };
    let all = match engine {
        Engine::Sqlite => vec![
            migration(
                1,
                "rollbacks and audit",
                include_str!("migrations/sqlite/0001_rollbacks_and_audit.sql"),
            ),
            migration(2, "audit chain", include_str!("migrations/sqlite/0002_audit_chain.sql")),
            migration(3, "idempotency keys", include_str!("migrations/sqlite/0003_idempotency_keys.sql")),
            migration(
                4,
                "claims and retention",
                include_str!("migrations/sqlite/0004_claims_and_retention.sql"),
            ),
            migration(5, "indexes and outbox", include_str!("migrations/sqlite/0005_indexes_and_outbox.sql")),
            migration(6, "ownership returns", include_str!("migrations/sqlite/0006_ownership_returns.sql")),
        ],
        Engine::Postgres => vec![
            migration(4, "store", include_str!("migrations/postgres/0004_store.sql")),
            migration(
                5,
                "indexes and outbox",
                include_str!("migrations/postgres/0005_indexes_and_outbox.sql"),
            ),
            migration(6, "ownership returns", include_str!("migrations/postgres/0006_ownership_returns.sql")),
        ],
    };
    // What a newer version has added is judged below.
    Migrator { migrations: all.into(), ignore_missing: true, ..Migrator::DEFAULT }
}

/// Makes or brings on the schema. Several may do so at once: on PostgreSQL one waits for the other, and SQLite's
/// file belongs to one process.
pub(super) async fn bring_up_to_date(
    engine: Engine,
    connection: &mut AnyConnection,
) -> Result<(), StoreError> {
    refuse_if_too_old(engine, connection).await?;
    migrator(engine).run(&mut *connection).await?;
    refuse_if_too_old(engine, connection).await?;
    if engine == Engine::Sqlite {
        chain_what_was_there(connection).await?;
    }
    Ok(())
}

async fn refuse_if_too_old(engine: Engine, connection: &mut AnyConnection) -> Result<(), StoreError> {
    let exists = match engine {
        Engine::Sqlite => "SELECT count(*) FROM sqlite_schema WHERE name = 'schema_support'",
        Engine::Postgres => {
            "SELECT count(*) FROM pg_catalog.pg_class WHERE oid = to_regclass('schema_support')"
        }
    };
    let exists: i64 = sqlx::query_scalar(exists).fetch_one(&mut *connection).await?;
    if exists == 0 {
        return Ok(());
    }
    let oldest: i64 =
        sqlx::query_scalar("SELECT oldest FROM schema_support").fetch_one(&mut *connection).await?;
    if oldest > KNOWN { Err(StoreError::TooNew { needed: oldest, known: KNOWN }) } else { Ok(()) }
}

/// Chains the entries of a store that was made before there was a chain, all or none of them.
///
/// Somebody who can write the store can bring this about again, and wins nothing by it: they could as
/// well have rewritten the chain themselves, which an anchor tells.
async fn chain_what_was_there(connection: &mut AnyConnection) -> Result<(), StoreError> {
    const BATCH: i64 = 1000;
    // Nothing is written where nothing is to be done: a start must not need that.
    let chained: Option<String> =
        sqlx::query_scalar("SELECT hash FROM audit_head").fetch_one(&mut *connection).await?;
    if chained.is_some() {
        return Ok(());
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut head = Head::start();
    loop {
        let entries: Vec<(Sequence, String)> = sqlx::query_as(
            "SELECT sequence, entry FROM audit WHERE sequence > $1 ORDER BY sequence LIMIT $2",
        )
        .bind(head.sequence)
        .bind(BATCH)
        .fetch_all(&mut *transaction)
        .await?;
        if entries.is_empty() {
            break;
        }
        for (sequence, text) in entries {
            // What was removed before stays missing, and verify names it.
            let next = Head { sequence: sequence - 1, ..head.clone() }.next(&text);
            sqlx::query("UPDATE audit SET previous = $1, hash = $2 WHERE sequence = $3")
                .bind(head.hash)
                .bind(next.hash.clone())
                .bind(sequence)
                .execute(&mut *transaction)
                .await?;
            head = next;
        }
    }
    chain::move_head(&mut transaction, &head).await?;
    transaction.commit().await?;
    if head.sequence > 0 {
        tracing::info!(
            sequence = head.sequence,
            hash = head.hash,
            "the audit's entries are chained from here on"
        );
    }
    Ok(())
}
