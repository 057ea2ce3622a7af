//! `rollbackd audit export`: the whole audit as lines of JSON, which can be verified without the store.
//!
//! The entry stands in its line as a text, not as an object: whatever reads and writes the line again
//! keeps it byte for byte, so that it hashes to the same.

use std::io::Write;

use futures_util::TryStreamExt as _;
use serde::Serialize;
use sqlx::Connection as _;

use super::{Head, Sequence, StoreUrl, database};

/// Why it could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("it can't be read")]
    Database(#[from] sqlx::Error),
    #[error("it can't be written")]
    Output(#[from] std::io::Error),
}

#[derive(Debug, Serialize)]
struct Line {
    sequence: Sequence,
    previous: String,
    hash: String,
    entry: String,
}

/// Writes all entries of a store, oldest first; returns where they end. The store may be in
/// use: what is written is one state of it.
///
/// # Errors
/// When the store can't be read, or `output` takes no more.
pub async fn export(url: &StoreUrl, output: impl Write) -> Result<Head, ExportError> {
    let mut output = std::io::BufWriter::new(output);
    let mut connection = database::reader(url).await?;
    let mut entries = sqlx::query_as("SELECT sequence, previous, hash, entry FROM audit ORDER BY sequence")
        .fetch(&mut connection);
    let mut head = Head::start();
    while let Some((sequence, previous, hash, entry)) = entries.try_next().await? {
        let line = Line { sequence, previous, hash, entry };
        serde_json::to_writer(&mut output, &line).map_err(std::io::Error::from)?;
        output.write_all(b"\n")?;
        head = Head { sequence: line.sequence, hash: line.hash };
    }
    drop(entries);
    output.flush()?;
    connection.close().await?;
    Ok(head)
}
