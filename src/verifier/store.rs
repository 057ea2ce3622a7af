//! Reads a store. It may be in use: what is read is one state of it, and nothing is written.

use futures_util::TryStreamExt as _;
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _, Row as _, any::install_default_drivers, raw_sql};

use super::{
    Report, VerifyError,
    chain::{Anchor, Chain, Link, Text},
};

/// The columns that repeat what the text says.
const COLUMNS: [&str; 6] = ["time", "action", "outcome", "namespace", "name", "actor"];

/// Verifies the audit of a store, `sqlite:PATH` or `postgres://…`.
///
/// # Errors
/// When it can't be opened or read.
pub async fn verify_store(url: &str, anchor: Option<Anchor>) -> Result<Report, VerifyError> {
    install_default_drivers();
    let on_sqlite = url.starts_with("sqlite:");
    let only_read = match (on_sqlite, url.contains('?')) {
        (true, false) => format!("{url}?mode=ro"),
        (true, true) => format!("{url}&mode=ro"),
        (false, _) => url.to_owned(),
    };
    let mut connection = AnyConnection::connect(&only_read).await?;
    let begin = if on_sqlite { "BEGIN" } else { "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" };
    let mut transaction = connection.begin_with(begin).await?;
    let mut chain = Chain::new(anchor);
    // PostgreSQL is known since there is a chain.
    let chained: i64 = if on_sqlite {
        sqlx::query_scalar("SELECT count(*) FROM pragma_table_info('audit') WHERE name = 'hash'")
            .fetch_one(&mut *transaction)
            .await?
    } else {
        1
    };
    if chained == 0 {
        return Err(VerifyError::NotChained);
    }
    let heads: Vec<(i64, Option<String>)> =
        sqlx::query_as("SELECT sequence, hash FROM audit_head").fetch_all(&mut *transaction).await?;
    if let [(0, None)] = heads[..] {
        // Somebody may have taken the head's hash away; those of the entries are still there then.
        let hashes: i64 =
            sqlx::query_scalar("SELECT count(hash) FROM audit").fetch_one(&mut *transaction).await?;
        if hashes == 0 {
            return Err(VerifyError::NotChained);
        }
    }
    if on_sqlite {
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
    {
        let table = if on_sqlite { "audit NOT INDEXED" } else { "audit" };
        let mut rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT sequence, previous, hash, entry, time, action, outcome, namespace, name, actor FROM {table} ORDER BY sequence",
        )))
        .fetch(&mut *transaction);
        while let Some(row) = rows.try_next().await? {
            let sequence = row.try_get("sequence")?;
            let mut text = |column: &'static str| match row.try_get::<Option<String>, _>(column) {
                Ok(text) => text.unwrap_or_default(),
                Err(_) => {
                    chain.find(Some(sequence), format!("its column {column} is no text"));
                    String::new()
                }
            };
            let link =
                Link { sequence, previous: text("previous"), hash: text("hash"), entry: text("entry") };
            let found = COLUMNS.map(text);
            let Some(said) = chain.take(link) else { continue };
            for ((column, found), said) in COLUMNS.into_iter().zip(found).zip(repeated(said)) {
                if found != said {
                    let what = format!("its column {column} is {found:?}, its text says {said:?}");
                    chain.find(Some(sequence), what);
                }
            }
        }
    }
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
    Ok(chain.end())
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
