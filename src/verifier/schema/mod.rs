//! Whether the tables of a store are what rollbackd made: a view, a rule, a policy or a trigger in their place can
//! show one text to a verifier and another one to everybody else.
//!
//! Columns that a later version has added are no finding, as long as they are ordinary ones: nothing here reads them.

pub(super) mod postgres;
pub(super) mod sqlite;

/// A column, and the names of its type in SQLite and in PostgreSQL.
type Column = (&'static str, &'static str, &'static str);

const fn text(name: &'static str) -> Column {
    (name, "TEXT", "text")
}

const fn integer(name: &'static str) -> Column {
    (name, "INTEGER", "bigint")
}

/// A row number of a table with one row.
const ID: Column = ("id", "INTEGER", "integer");

/// A table, its columns, and whether a store of an earlier version lacks it.
struct Table {
    name: &'static str,
    columns: &'static [Column],
    added_later: bool,
}

const fn table(name: &'static str, columns: &'static [Column]) -> Table {
    Table { name, columns, added_later: false }
}

const TABLES: [Table; 9] = [
    table(
        "audit",
        &[
            integer("sequence"),
            text("time"),
            text("action"),
            text("outcome"),
            text("namespace"),
            text("name"),
            text("actor"),
            text("entry"),
            text("previous"),
            text("hash"),
        ],
    ),
    table("audit_head", &[ID, integer("sequence"), text("hash")]),
    Table { added_later: true, ..table("audit_start", &[ID, integer("sequence"), text("hash")]) },
    Table {
        added_later: true,
        ..table("audit_outbox", &[integer("sequence"), text("writer"), integer("lease")])
    },
    table(
        "rollbacks",
        &[
            text("id"),
            text("state"),
            ("open", "INTEGER", "boolean"),
            text("namespace"),
            text("name"),
            text("actor"),
            text("requested_at"),
            text("record"),
        ],
    ),
    Table {
        added_later: true,
        ..table(
            "idempotency_keys",
            &[text("id"), text("request"), text("rollback"), text("used_at"), text("answer")],
        )
    },
    Table {
        added_later: true,
        ..table(
            "ownership_returns",
            &[text("rollback"), text("ownership"), integer("retry_at"), integer("attempts"), text("warning")],
        )
    },
    table("probe", &[integer("written")]),
    Table { added_later: true, ..table("schema_support", &[ID, integer("oldest")]) },
];

/// Tables without which nothing can be verified.
const NEEDED: [&str; 2] = ["audit", "audit_head"];

/// What is wrong with a store's tables.
pub(super) struct Looked {
    pub findings: Vec<String>,
    /// Whether the entries can be read all the same.
    pub readable: bool,
}

impl Looked {
    fn at_nothing() -> Self {
        Self { findings: Vec::new(), readable: true }
    }

    /// Something is wrong with a table.
    fn find(&mut self, table: &str, what: &str) {
        self.findings.push(format!("the table {table} {what}"));
    }

    /// A table is none, so that nothing of it is evidence.
    fn replaced(&mut self, table: &Table, what: &str) {
        self.find(table.name, what);
        if NEEDED.contains(&table.name) {
            self.readable = false;
        }
    }

    fn column(&mut self, table: &Table, column: &str, found: Option<&str>, expected: &str) {
        match found {
            Some(found) if found == expected => {}
            Some(found) => {
                self.find(
                    table.name,
                    &format!("has a column {column} of type {found} instead of {expected}"),
                );
            }
            None => self.replaced(table, &format!("has no column {column}")),
        }
    }
}

/// A text in which only words and signs count, not how they are set apart.
fn squeezed(sql: &str) -> String {
    let mut squeezed = String::new();
    let mut apart = false;
    for character in sql.chars() {
        if character.is_whitespace() {
            apart = true;
            continue;
        }
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        if apart && word(character) && squeezed.chars().next_back().is_some_and(word) {
            squeezed.push(' ');
        }
        apart = false;
        squeezed.push(character);
    }
    squeezed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_and_signs_count() {
        assert_eq!(
            squeezed("CREATE TABLE a (\n  b TEXT ,c INTEGER\n) STRICT"),
            "CREATE TABLE a(b TEXT,c INTEGER)STRICT"
        );
        assert_ne!(squeezed("a b"), squeezed("ab"));
    }
}
