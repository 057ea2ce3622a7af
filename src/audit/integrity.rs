//! Whether the tables are those that the migrations make. A view in a table's place, a rule, a policy or a trigger
//! lets a write look as if it was made, or shows other entries than were written.
//!
//! Absent on purpose: whether the entries are what was written, which is the verifier's affair.

use std::collections::BTreeSet;

use sqlx::{AnyConnection, AssertSqlSafe, Connection as _, Row as _, any::AnyRow};

use super::{Store, StoreError, database::Engine, reads::in_time, schema};

/// The tables that rollbackd reads and writes.
const TABLES: [&str; 9] = [
    "audit",
    "audit_head",
    "audit_outbox",
    "audit_start",
    "idempotency_keys",
    "ownership_returns",
    "probe",
    "rollbacks",
    "schema_support",
];

/// What a fresh store shows in PostgreSQL, one fact a line. [`schema`]'s migrations make it; a test holds it current.
const POSTGRES: &str = include_str!("integrity/postgres.txt");

/// What PostgreSQL's catalog has of the tables. Each row is a fact: of which kind, of what name, and in words.
const POSTGRES_FACTS: &str = r"
    WITH ours AS (
        SELECT c.* FROM pg_class c
        WHERE c.relname::text = ANY (string_to_array($1, ' '))
            AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('audit'))
    )
    SELECT 'table', relname::text, format('%s is a relation of kind %s %s %s', relname, relkind, relpersistence, amname)
        FROM ours LEFT JOIN pg_am ON pg_am.oid = relam
    UNION ALL SELECT CASE WHEN attgenerated = '' THEN 'column' ELSE 'generated' END, attname::text,
            format('%s has the column %s %s %s', relname, attname, format_type(atttypid, atttypmod), attgenerated)
        FROM ours JOIN pg_attribute ON attrelid = ours.oid WHERE attnum > 0 AND NOT attisdropped
    UNION ALL SELECT 'trigger', tgname::text, format('%s has the trigger %s of kind %s %s: %s %s', relname, tgname, tgtype, tgenabled,
            CASE WHEN tgqual IS NULL AND tgattr::text = '' THEN 'always' ELSE 'sometimes' END,
            trim(regexp_replace(prosrc, '\s+', ' ', 'g')))
        FROM ours JOIN pg_trigger ON tgrelid = ours.oid JOIN pg_proc ON pg_proc.oid = tgfoid WHERE NOT tgisinternal
    UNION ALL SELECT 'rule', rulename::text, format('%s has the rule %s', relname, rulename)
        FROM ours JOIN pg_rewrite ON ev_class = ours.oid
    UNION ALL SELECT 'policy', polname::text, format('%s has the policy %s', relname, polname)
        FROM ours JOIN pg_policy ON polrelid = ours.oid
    UNION ALL SELECT 'policy', relname::text, format('%s has row security', relname) FROM ours WHERE relrowsecurity
    UNION ALL SELECT 'inheritance', relname::text, format('%s inherits, or is inherited from', relname)
        FROM ours JOIN pg_inherits ON inhparent = ours.oid OR inhrelid = ours.oid";

/// What a store shows of its tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fact {
    kind: Kind,
    /// Of the column, trigger, rule or policy, or of the table itself.
    name: String,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A column that keeps what is written to it. A later version may have more of them.
    Column,
    Trigger,
    /// What is there or not, and nothing else will do.
    Other,
}

/// What the tables show as the migrations make them.
pub(super) async fn expected(engine: Engine) -> Result<BTreeSet<String>, StoreError> {
    match engine {
        Engine::Sqlite => {
            let mut fresh = AnyConnection::connect("sqlite::memory:").await?;
            schema::bring_up_to_date(engine, &mut fresh).await?;
            let facts = of_sqlite(&mut fresh).await?;
            fresh.close().await?;
            Ok(facts.into_iter().map(|fact| fact.text).collect())
        }
        Engine::Postgres => Ok(POSTGRES.lines().map(ToOwned::to_owned).collect()),
    }
}

impl Store {
    /// Looks whether the tables are what the migrations made; returns what is not. `known` are triggers of others,
    /// such as those of replication. Until the next look without a finding no rollback begins.
    ///
    /// # Errors
    /// When the database fails. What was found before stands.
    pub async fn check_schema(&self, known: &[String]) -> Result<Vec<String>, StoreError> {
        let mut connection = in_time(self.database.read.acquire()).await?;
        let actual = match self.database.engine {
            Engine::Sqlite => in_time(of_sqlite(&mut connection)).await?,
            Engine::Postgres => in_time(of_postgres(&mut connection)).await?,
        };
        let findings = findings(&actual, &self.expected, known);
        self.alteration.set(!findings.is_empty());
        // What was known of the store before may be wrong now.
        *self.checked.lock().await = None;
        self.metrics.schema_findings(findings.len());
        Ok(findings)
    }
}

fn findings(actual: &BTreeSet<Fact>, expected: &BTreeSet<String>, known: &[String]) -> Vec<String> {
    let shown: BTreeSet<&String> = actual.iter().map(|fact| &fact.text).collect();
    let missing = expected.iter().filter(|text| !shown.contains(text));
    let missing: Vec<_> = missing.map(|text| format!("not so any more: {text}")).collect();
    let foreign = actual.iter().filter(|fact| match fact.kind {
        Kind::Column => false,
        Kind::Trigger => !expected.contains(&fact.text) && !known.contains(&fact.name),
        Kind::Other => !expected.contains(&fact.text),
    });
    missing.into_iter().chain(foreign.map(|fact| format!("not made by rollbackd: {}", fact.text))).collect()
}

async fn of_postgres(connection: &mut AnyConnection) -> sqlx::Result<BTreeSet<Fact>> {
    let rows: Vec<(String, String, String)> =
        sqlx::query_as(POSTGRES_FACTS).bind(TABLES.join(" ")).fetch_all(connection).await?;
    let fact = |(kind, name, text): (String, String, String)| {
        let kind = match kind.as_str() {
            "column" => Kind::Column,
            "trigger" => Kind::Trigger,
            _ => Kind::Other,
        };
        Fact { kind, name, text: text.trim_end().to_owned() }
    };
    Ok(rows.into_iter().map(fact).collect())
}

async fn of_sqlite(connection: &mut AnyConnection) -> sqlx::Result<BTreeSet<Fact>> {
    let mut facts = BTreeSet::new();
    let word = |row: &AnyRow, column: &str| row.try_get::<String, _>(column).unwrap_or_default();
    for table in TABLES {
        let mut note = |kind, name: String, text: String| {
            facts.insert(Fact { kind, name, text: format!("{table} {text}") });
        };
        // Statements: a view can take the place of the functions of the same names.
        let pragma = |what: &str| AssertSqlSafe(format!("PRAGMA main.{what}('{table}')"));
        for row in sqlx::query(pragma("table_list")).fetch_all(&mut *connection).await? {
            note(Kind::Other, table.to_owned(), format!("is a {}", word(&row, "type")));
        }
        for row in sqlx::query(pragma("table_xinfo")).fetch_all(&mut *connection).await? {
            let hidden: i64 = row.try_get("hidden").unwrap_or(-1);
            let kind = if hidden == 0 { Kind::Column } else { Kind::Other };
            let name = word(&row, "name");
            note(kind, name.clone(), format!("has the column {name} {} {hidden}", word(&row, "type")));
        }
        let sql = "SELECT type, name, sql FROM main.sqlite_schema WHERE tbl_name = $1 COLLATE NOCASE AND type IN ('table', 'trigger')";
        for row in sqlx::query(sql).bind(table).fetch_all(&mut *connection).await? {
            let (name, sql) = (word(&row, "name"), word(&row, "sql"));
            let sql = sql.split_whitespace().collect::<Vec<_>>().join(" ");
            if word(&row, "type") == "trigger" {
                note(Kind::Trigger, name, format!("has the trigger {sql}"));
            } else if sql.to_ascii_uppercase().contains("CONFLICT") {
                note(Kind::Other, name, "has a constraint that removes rows".to_owned());
            }
        }
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_columns_and_known_triggers_may_come_to_what_is_expected() {
        let fact = |kind, name: &str| Fact { kind, name: name.into(), text: format!("t has {name}") };
        let actual = BTreeSet::from([
            fact(Kind::Column, "added"),
            fact(Kind::Trigger, "replicate"),
            fact(Kind::Trigger, "forge"),
            fact(Kind::Other, "rule"),
            fact(Kind::Trigger, "ours"),
        ]);
        let expected = BTreeSet::from(["t has ours".to_owned(), "t has gone".to_owned()]);
        let found = findings(&actual, &expected, &["replicate".to_owned()]);
        assert_eq!(
            found,
            [
                "not so any more: t has gone",
                "not made by rollbackd: t has forge",
                "not made by rollbackd: t has rule"
            ]
        );
    }
}
