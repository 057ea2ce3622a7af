//! The tables in an SQLite file.

use sqlx::{AnyConnection, AssertSqlSafe, Row as _, any::AnyRow};

use super::{Looked, TABLES, Table, squeezed};

/// How the tables of the chain begin that SQLite keeps as the text of their statements. What stands after it are
/// columns that were added since.
const BEGINNINGS: [(&str, &str); 3] = [
    (
        "audit",
        "CREATE TABLE audit (sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, action TEXT NOT NULL, outcome TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, actor TEXT NOT NULL, entry TEXT NOT NULL",
    ),
    (
        "audit_head",
        "CREATE TABLE audit_head (id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1), sequence INTEGER NOT NULL, hash TEXT",
    ),
    (
        "audit_start",
        "CREATE TABLE audit_start (id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1), sequence INTEGER NOT NULL, hash TEXT NOT NULL",
    ),
];

/// The triggers that keep the audit append-only: name, statement, and whether it came with `audit_start`.
const TRIGGERS: [(&str, &str, bool); 5] = [
    (
        "audit_is_append_only_update",
        "CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE OF sequence, time, action, outcome, namespace, name, actor, entry ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END",
        false,
    ),
    (
        "audit_is_chained_once",
        "CREATE TRIGGER audit_is_chained_once BEFORE UPDATE OF previous, hash ON audit WHEN OLD.previous IS NOT NULL OR OLD.hash IS NOT NULL BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END",
        false,
    ),
    (
        "audit_is_chained",
        "CREATE TRIGGER audit_is_chained BEFORE INSERT ON audit WHEN NEW.previous IS NULL OR NEW.hash IS NULL BEGIN SELECT RAISE(ABORT, 'an audit entry is chained'); END",
        false,
    ),
    (
        "audit_is_append_only_delete",
        "CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit WHEN OLD.sequence > (SELECT sequence FROM audit_start) BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END",
        true,
    ),
    (
        "audit_start_moves_on",
        "CREATE TRIGGER audit_start_moves_on BEFORE UPDATE ON audit_start WHEN NEW.sequence <= OLD.sequence BEGIN SELECT RAISE(ABORT, 'what was cut stays cut'); END",
        true,
    ),
];

/// Looks at the tables, their columns and their triggers; `known` are triggers of others that are no finding.
pub async fn look(connection: &mut AnyConnection, known: &[String]) -> sqlx::Result<Looked> {
    let mut looked = Looked::at_nothing();
    for table in &TABLES {
        look_at(connection, table, &mut looked).await?;
    }
    look_at_triggers(connection, known, &mut looked).await?;
    Ok(looked)
}

async fn look_at(connection: &mut AnyConnection, table: &Table, looked: &mut Looked) -> sqlx::Result<()> {
    // A statement, and not the function of the same name, which a view could take the place of.
    let sql = format!("PRAGMA main.table_list('{}')", table.name);
    let found = sqlx::query(AssertSqlSafe(sql)).fetch_optional(&mut *connection).await?;
    let Some(found) = found else {
        if !table.added_later {
            looked.replaced(table, "is missing");
        }
        return Ok(());
    };
    match word(&found, "type").as_str() {
        "table" => {}
        other => {
            looked.replaced(table, &format!("is a {other} and no ordinary table"));
            return Ok(());
        }
    }
    let sql = format!("PRAGMA main.table_xinfo('{}')", table.name);
    let columns = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut *connection).await?;
    for column in &columns {
        if column.try_get::<i64, _>("hidden").unwrap_or_default() != 0 {
            looked.replaced(table, &format!("computes its column {:?}", word(column, "name")));
        }
    }
    for (name, kind, _) in table.columns {
        let found = columns.iter().find(|column| word(column, "name") == *name);
        looked.column(table, name, found.map(|found| word(found, "type")).as_deref(), kind);
    }
    if let Some((_, beginning)) = BEGINNINGS.iter().find(|(name, _)| *name == table.name) {
        let sql = "SELECT sql FROM main.sqlite_schema WHERE type = 'table' AND name = $1";
        let text: Option<String> =
            sqlx::query_scalar(sql).bind(table.name).fetch_optional(&mut *connection).await?;
        let text = squeezed(&text.unwrap_or_default());
        let added = text.strip_prefix(&squeezed(beginning)).and_then(|rest| rest.strip_suffix(")STRICT"));
        // No constraint may remove other entries.
        if added.is_none_or(|added| added.to_ascii_uppercase().contains("CONFLICT")) {
            looked.find(table.name, "was not made by rollbackd: its definition is another one");
        }
    }
    Ok(())
}

async fn look_at_triggers(
    connection: &mut AnyConnection,
    known: &[String],
    looked: &mut Looked,
) -> sqlx::Result<()> {
    let sql = "SELECT name, tbl_name, sql FROM main.sqlite_schema WHERE type = 'trigger' ORDER BY name";
    let triggers = sqlx::query(sql).fetch_all(&mut *connection).await?;
    let sql = "SELECT count(*) FROM main.sqlite_schema WHERE name = 'audit_start'";
    let has_start = sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut *connection).await? > 0;
    for trigger in &triggers {
        let (name, on) = (word(trigger, "name"), word(trigger, "tbl_name"));
        let Some(table) = TABLES.iter().find(|table| table.name.eq_ignore_ascii_case(&on)) else { continue };
        match TRIGGERS.iter().find(|(ours, _, _)| *ours == name) {
            None if known.contains(&name) => {}
            None => looked.find(table.name, &format!("has a trigger {name:?} that rollbackd did not make")),
            // Before there was a start, nothing could be deleted.
            Some((_, _, true)) if !has_start => {}
            Some((_, sql, _)) if squeezed(sql) == squeezed(&word(trigger, "sql")) => {}
            Some(_) => looked.find(table.name, &format!("has a trigger {name:?} that was changed")),
        }
    }
    for (name, sql, with_start) in TRIGGERS {
        if (has_start || !with_start) && !triggers.iter().any(|trigger| word(trigger, "name") == name) {
            let table = if sql.contains(" ON audit_start") { "audit_start" } else { "audit" };
            looked.find(table, &format!("lacks the trigger {name:?}"));
        }
    }
    Ok(())
}

/// A column as text; what is no text is none of ours.
fn word(row: &AnyRow, column: &str) -> String {
    row.try_get::<Option<String>, _>(column).ok().flatten().unwrap_or_default()
}
