//! The tables in a PostgreSQL database.

use sqlx::{AnyConnection, AssertSqlSafe};

use super::{Looked, NEEDED, TABLES, Table, squeezed};

/// A trigger that keeps the audit append-only.
struct Trigger {
    name: &'static str,
    table: &'static str,
    /// `tgtype` of `pg_trigger`: 1 each row, 2 before, 8 delete, 16 update, 32 truncate.
    kind: i32,
    function: &'static str,
}

const TRIGGERS: [Trigger; 3] = [
    Trigger { name: "audit_is_append_only", table: "audit", kind: 27, function: APPEND_ONLY },
    Trigger { name: "audit_is_not_truncated", table: "audit", kind: 34, function: APPEND_ONLY },
    Trigger { name: "audit_start_moves_on", table: "audit_start", kind: 19, function: MOVES_ON },
];

const APPEND_ONLY: &str = "BEGIN IF TG_OP = 'DELETE' AND OLD.sequence <= (SELECT sequence FROM audit_start) THEN RETURN OLD; END IF; RAISE EXCEPTION 'audit is append-only'; END";
const MOVES_ON: &str = "BEGIN IF NEW.sequence <= OLD.sequence THEN RAISE EXCEPTION 'what was cut stays cut'; END IF; RETURN NEW; END";

/// Finds the schema that the tables are in, and makes names mean what PostgreSQL itself means by them, then the
/// tables of that schema: whoever sets `search_path` must not choose what is verified. What was set otherwise is a
/// finding.
pub async fn settle_names(connection: &mut AnyConnection) -> sqlx::Result<Vec<String>> {
    let path: String = sqlx::query_scalar("SELECT pg_catalog.current_schemas(true)::pg_catalog.text")
        .fetch_one(&mut *connection)
        .await?;
    let set = "SELECT pg_catalog.set_config('search_path', pg_catalog.concat('pg_catalog, ', pg_catalog.quote_ident(n.nspname::pg_catalog.text), ', pg_temp'), false)
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('audit')";
    sqlx::query(set).execute(&mut *connection).await?;
    let mut schemas = path.trim_matches(['{', '}']).split(',').filter(|name| !name.starts_with("pg_temp"));
    Ok(match schemas.next() {
        Some("pg_catalog") => Vec::new(),
        _ => vec![format!("search_path puts other names before those of PostgreSQL itself: {path}")],
    })
}

/// Keeps the tables from being replaced while they are read.
pub async fn hold(connection: &mut AnyConnection) -> sqlx::Result<()> {
    for table in NEEDED {
        let sql = format!("LOCK TABLE {table} IN ACCESS SHARE MODE");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Looks at the tables, their columns, rules, policies and triggers; `known` are triggers of others that are no
/// finding.
pub async fn look(connection: &mut AnyConnection, known: &[String]) -> sqlx::Result<Looked> {
    let mut looked = Looked::at_nothing();
    for table in &TABLES {
        let oid: Option<i64> = sqlx::query_scalar("SELECT to_regclass($1)::oid::bigint")
            .bind(table.name)
            .fetch_one(&mut *connection)
            .await?;
        match oid {
            Some(oid) => {
                look_at(connection, table, oid, &mut looked).await?;
                look_at_triggers(connection, table, oid, known, &mut looked).await?;
            }
            None if table.added_later => {}
            None => looked.replaced(table, "is missing"),
        }
    }
    Ok(looked)
}

async fn look_at(
    connection: &mut AnyConnection,
    table: &Table,
    oid: i64,
    looked: &mut Looked,
) -> sqlx::Result<()> {
    let sql =
        "SELECT c.relkind::text, c.relpersistence::text, coalesce(m.amname::text, ''), c.relrowsecurity,
            (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid),
            (SELECT count(*) FROM pg_rewrite WHERE ev_class = c.oid),
            (SELECT count(*) FROM pg_inherits WHERE inhparent = c.oid OR inhrelid = c.oid)
        FROM pg_class c LEFT JOIN pg_am m ON m.oid = c.relam WHERE c.oid = $1::oid";
    let (kind, persistence, storage, row_security, policies, rules, relatives): (
        String,
        String,
        String,
        bool,
        i64,
        i64,
        i64,
    ) = sqlx::query_as(sql).bind(oid).fetch_one(&mut *connection).await?;
    if kind != "r" {
        looked.replaced(table, &format!("is {} and no ordinary table", kind_of(&kind)));
        return Ok(());
    }
    for (is, what) in [
        (persistence != "p", "is lost in a crash: it is unlogged or temporary"),
        (storage != "heap", "is not stored as PostgreSQL stores tables"),
        (row_security || policies > 0, "has row security: it shows rows to some and not to others"),
        (rules > 0, "has a rule: it does not do what it is asked"),
        (relatives > 0, "inherits from another table, or another one from it"),
    ] {
        if is {
            looked.find(table.name, what);
        }
    }
    let sql = "SELECT attname::text, format_type(atttypid, atttypmod), attgenerated::text FROM pg_attribute WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped";
    let columns: Vec<(String, String, String)> =
        sqlx::query_as(sql).bind(oid).fetch_all(&mut *connection).await?;
    for (name, _, generated) in &columns {
        if !generated.is_empty() {
            looked.replaced(table, &format!("computes its column {name:?}"));
        }
    }
    for (name, _, kind) in table.columns {
        let found = columns.iter().find(|(found, _, _)| found == name);
        looked.column(table, name, found.map(|(_, kind, _)| kind.as_str()), kind);
    }
    Ok(())
}

async fn look_at_triggers(
    connection: &mut AnyConnection,
    table: &Table,
    oid: i64,
    known: &[String],
    looked: &mut Looked,
) -> sqlx::Result<()> {
    let sql = "SELECT t.tgname::text, t.tgenabled::text, t.tgtype::int, t.tgqual IS NULL AND t.tgattr::text = '', p.prosrc, l.lanname::text
        FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_language l ON l.oid = p.prolang
        WHERE t.tgrelid = $1::oid AND NOT t.tgisinternal ORDER BY t.tgname";
    let triggers: Vec<(String, String, i32, bool, String, String)> =
        sqlx::query_as(sql).bind(oid).fetch_all(&mut *connection).await?;
    let ours = || TRIGGERS.iter().filter(|trigger| trigger.table == table.name);
    for (name, enabled, kind, always, source, language) in &triggers {
        match ours().find(|trigger| trigger.name == name) {
            None if known.contains(name) => {}
            None => looked.find(table.name, &format!("has a trigger {name:?} that rollbackd did not make")),
            Some(_) if !["O", "A"].contains(&enabled.as_str()) => {
                looked.find(table.name, &format!("has a trigger {name:?} that is switched off"));
            }
            Some(trigger) => {
                let same = squeezed(source).trim_end_matches(';')
                    == squeezed(trigger.function).trim_end_matches(';');
                if !same || *kind != trigger.kind || !always || language != "plpgsql" {
                    looked.find(table.name, &format!("has a trigger {name:?} that was changed"));
                }
            }
        }
    }
    for trigger in ours().filter(|ours| !triggers.iter().any(|(name, ..)| name == ours.name)) {
        looked.find(table.name, &format!("lacks the trigger {:?}", trigger.name));
    }
    Ok(())
}

fn kind_of(kind: &str) -> &'static str {
    match kind {
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        "p" => "a partitioned table",
        _ => "something else",
    }
}
