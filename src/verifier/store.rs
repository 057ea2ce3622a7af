//! Reads a store. It may be in use: what is read is one state of it, and nothing is written.

use futures_util::TryStreamExt as _;
use sqlx::{
    AnyConnection, AssertSqlSafe, Connection as _, Row as _,
    any::{AnyRow, install_default_drivers},
    raw_sql,
};

use super::{
    Checks, Report, VerifyError,
    chain::{Chain, Link, Text},
    schema,
};

/// The columns that repeat what the text says.
const COLUMNS: [&str; 6] = ["time", "action", "outcome", "namespace", "name", "actor"];

/// Verifies the audit of a store, `sqlite:PATH` or `postgres://…`.
///
/// # Errors
/// When it can't be opened or read.
pub async fn verify_store(url: &str, checks: &Checks) -> Result<Report, VerifyError> {
    install_default_drivers();
    let on_sqlite = url.starts_with("sqlite:");
    let only_read = match (on_sqlite, url.contains('?')) {
        (true, false) => format!("{url}?mode=ro"),
        (true, true) => format!("{url}&mode=ro"),
        (false, _) => url.to_owned(),
    };
    let mut connection = AnyConnection::connect(&only_read).await?;
    let mut chain = Chain::new(checks);
    if !on_sqlite {
        for finding in schema::postgres::settle_names(&mut connection).await? {
            chain.find(None, finding);
        }
    }
    let begin = if on_sqlite { "BEGIN" } else { "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" };
    let mut transaction = connection.begin_with(begin).await?;
    let looked = if on_sqlite {
        refuse_unchained(&mut transaction).await?;
        schema::sqlite::look(&mut transaction, &checks.known_triggers).await?
    } else {
        schema::postgres::hold(&mut transaction).await?;
        schema::postgres::look(&mut transaction, &checks.known_triggers).await?
    };
    for finding in looked.findings {
        chain.find(None, finding);
    }
    if !looked.readable {
        chain.find(None, "its entries were not read: what they are read from is not what was written to");
        return Ok(chain.end());
    }
    if on_sqlite {
        refuse_not_yet_chained(&mut transaction).await?;
        // Indexes that say something else than the table.
        let damage: Vec<String> =
            sqlx::query_scalar("PRAGMA integrity_check(10)").fetch_all(&mut *transaction).await?;
        for damage in damage.iter().filter(|damage| *damage != "ok") {
            chain.find(None, format!("the file is damaged: {damage:?}"));
        }
    } else {
        // The same: what the entries are read by below is the table, not an index of it.
        raw_sql("SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off")
            .execute(&mut *transaction)
            .await?;
    }
    read_entries(&mut transaction, on_sqlite, &mut chain).await?;
    hold_to_head(&mut transaction, on_sqlite, &mut chain).await?;
    Ok(chain.end())
}

/// Whether entries have hashes; PostgreSQL is known since they do.
async fn refuse_unchained(connection: &mut AnyConnection) -> Result<(), VerifyError> {
    let columns = sqlx::query("PRAGMA main.table_info('audit')").fetch_all(connection).await?;
    let is_hash = |row: &AnyRow| row.try_get::<String, _>("name").is_ok_and(|name| name == "hash");
    if !columns.is_empty() && !columns.iter().any(is_hash) {
        return Err(VerifyError::NotChained);
    }
    Ok(())
}

/// Whether the entries are still to be chained. Where the head's hash was taken away, those of the entries are there.
async fn refuse_not_yet_chained(connection: &mut AnyConnection) -> Result<(), VerifyError> {
    let blank: i64 = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM audit_head) = 1 AND (SELECT count(*) FROM audit_head WHERE sequence = 0 AND hash IS NULL) = 1 AND (SELECT count(hash) FROM audit) = 0",
    )
    .fetch_one(connection)
    .await?;
    if blank == 1 { Err(VerifyError::NotChained) } else { Ok(()) }
}

/// A column as bytes: a text that is not UTF-8 must not end the reading.
fn as_bytes(column: &str, on_sqlite: bool) -> String {
    if on_sqlite {
        format!("CAST({column} AS BLOB) AS {column}")
    } else {
        // `textsend` converts to the client's encoding. What has no encoding can't be converted.
        format!(
            "CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN convert_to({column}, 'SQL_ASCII') ELSE textsend({column}) END AS {column}"
        )
    }
}

/// Reads a text, or returns what is wrong with it.
fn text(row: &AnyRow, column: &str) -> Result<String, &'static str> {
    match row.try_get::<Option<Vec<u8>>, _>(column) {
        Ok(Some(bytes)) => String::from_utf8(bytes).map_err(|_| "is not UTF-8"),
        Ok(None) => Err("is NULL"),
        Err(_) => Err("is no text"),
    }
}

async fn read_entries(
    connection: &mut AnyConnection,
    on_sqlite: bool,
    chain: &mut Chain,
) -> sqlx::Result<()> {
    let table = if on_sqlite { "audit NOT INDEXED" } else { "audit" };
    let texts = ["previous", "hash", "entry"].into_iter().chain(COLUMNS);
    let texts: Vec<_> = texts.map(|column| as_bytes(column, on_sqlite)).collect();
    let sql = format!(
        "SELECT CAST(sequence AS BIGINT) AS sequence, {} FROM {table} ORDER BY audit.sequence",
        texts.join(", ")
    );
    let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let Ok(Some(sequence)) = row.try_get::<Option<i64>, _>("sequence") else {
            chain.find(None, "an entry has no number");
            continue;
        };
        let mut read = |column: &'static str| {
            text(&row, column).map_err(|what| {
                chain.find(Some(sequence), format!("its column {column} {what}"));
            })
        };
        let [previous, hash, entry] =
            ["previous", "hash", "entry"].map(&mut read).map(Result::unwrap_or_default);
        let found = COLUMNS.map(read);
        let Some(said) = chain.take(Link { sequence, previous, hash, entry }) else { continue };
        for ((column, found), said) in COLUMNS.into_iter().zip(found).zip(repeated(said)) {
            // What can't be read is a finding already.
            if let Ok(found) = found
                && found != said
            {
                let what = format!("its column {column} is {found:?}, its text says {said:?}");
                chain.find(Some(sequence), what);
            }
        }
    }
    Ok(())
}

async fn hold_to_head(
    connection: &mut AnyConnection,
    on_sqlite: bool,
    chain: &mut Chain,
) -> sqlx::Result<()> {
    let sql = format!(
        "SELECT CAST(sequence AS BIGINT) AS sequence, {} FROM audit_head",
        as_bytes("hash", on_sqlite)
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(connection).await?;
    let heads: Vec<(i64, Option<String>)> = rows
        .iter()
        .map(|row| (row.try_get("sequence").unwrap_or_default(), text(row, "hash").ok()))
        .collect();
    let (sequence, hash) = chain.head();
    let (sequence, hash) = (sequence, hash.to_owned());
    match &heads[..] {
        [(at, Some(kept))] if (*at, kept) == (sequence, &hash) => {}
        [(at, _)] if *at > sequence => {
            let what = format!("the end was cut off: the last entry is {sequence}, the store's head is {at}");
            chain.find(None, what);
        }
        [(at, _)] if *at < sequence => {
            let what = format!("the store's head is {at}, and entries up to {sequence} were put in after it");
            chain.find(None, what);
        }
        [_] => chain.find(None, format!("the store's head is not entry {sequence}: either was changed")),
        heads => chain.find(None, format!("the store has {} heads instead of one", heads.len())),
    }
    Ok(())
}

/// What the columns must say, in the order of [`COLUMNS`].
fn repeated(text: Text) -> [String; 6] {
    [microseconds(&text.time), text.action, text.outcome, text.namespace, text.name, text.actor.user]
}

/// A time in UTC with exactly six digits after the second, so that texts sort as times do.
fn microseconds(time: &str) -> String {
    let whole = time.trim_end_matches('Z');
    let (seconds, fraction) = whole.split_once('.').unwrap_or((whole, ""));
    format!("{seconds}.{fraction:0<6.6}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_six_digits() {
        for (text, column) in [
            ("2026-11-24T01:02:03Z", "2026-11-24T01:02:03.000000Z"),
            ("2026-11-24T01:02:03.5Z", "2026-11-24T01:02:03.500000Z"),
            ("2026-11-24T01:02:03.123456789Z", "2026-11-24T01:02:03.123456Z"),
        ] {
            assert_eq!(microseconds(text), column);
        }
    }
}
