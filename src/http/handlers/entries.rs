//! The body of `GET /audit`: entries as they are read from the store, batch by batch. A page or an export is never
//! held whole, however long its entries are.

use axum::body::{Body, Bytes};
use futures_util::{Stream, stream::try_unfold};

use super::{
    super::{page, problem::Problem},
    audit::{AuditEntry, ListQuery},
};
use crate::{
    audit::{EntryFilter, Order, Sequence, Store, StoreError},
    telemetry::causes,
};

/// Entries that are read at once.
const BATCH: u32 = 20;

/// Entries that are still to be read.
pub(super) struct Reading {
    store: Store,
    filter: EntryFilter,
    order: Order,
    left: u32,
    /// The first batch, so that a store that fails is a problem and no broken answer.
    first: Option<Vec<AuditEntry>>,
}

impl Reading {
    /// Begins to read at most `limit` entries.
    pub async fn begin(store: Store, filter: EntryFilter, order: Order, limit: u32) -> Result<Self, Problem> {
        let mut reading = Self { store, filter, order, left: limit, first: None };
        reading.first = Some(reading.batch().await?);
        Ok(reading)
    }

    /// The next entries; none when all are read.
    async fn next(&mut self) -> Result<Vec<AuditEntry>, StoreError> {
        match self.first.take() {
            Some(first) => Ok(first),
            None => self.batch().await,
        }
    }

    async fn batch(&mut self) -> Result<Vec<AuditEntry>, StoreError> {
        let most = self.left.min(BATCH);
        if most == 0 {
            return Ok(Vec::new());
        }
        let entries = self.store.entries(&self.filter, self.order, most).await?;
        let read = u32::try_from(entries.len()).unwrap_or(most);
        self.left = if read < most { 0 } else { self.left - read };
        if let Some((sequence, _)) = entries.last() {
            self.order = match self.order {
                Order::NewestFirst { .. } => Order::NewestFirst { before: Some(*sequence) },
                Order::OldestFirst { .. } => Order::OldestFirst { after: *sequence },
            };
        }
        Ok(entries.into_iter().map(|(sequence, entry)| AuditEntry { sequence, entry }).collect())
    }

    /// One entry a line.
    pub fn into_lines(self) -> Body {
        let lines = try_unfold(self, async |mut reading| {
            let batch = reading.next().await?;
            let mut text = String::new();
            for entry in &batch {
                text.push_str(&json(entry));
                text.push('\n');
            }
            Ok((!batch.is_empty()).then(|| (Bytes::from(text), reading)))
        });
        body(lines)
    }

    /// An [`AuditList`](super::audit::AuditList). One entry more than `limit` is to be read: where there is one, the
    /// list leads on.
    pub fn into_list(self, limit: u32, query: ListQuery) -> Body {
        let list = List { reading: self, query, room: limit, last: None, part: Part::Begin };
        body(try_unfold(list, List::next))
    }
}

/// A list that is being written.
struct List {
    reading: Reading,
    query: ListQuery,
    /// How many more items it may have.
    room: u32,
    last: Option<Sequence>,
    part: Part,
}

enum Part {
    Begin,
    Items,
    Done,
}

impl List {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, StoreError> {
        let mut text = match self.part {
            Part::Begin => "{\"items\":[".to_owned(),
            Part::Items => String::new(),
            Part::Done => return Ok(None),
        };
        self.part = Part::Items;
        let batch = self.reading.next().await?;
        let ended = batch.is_empty();
        let mut more = false;
        for entry in batch {
            if self.room == 0 {
                more = true;
                break;
            }
            self.room -= 1;
            if self.last.replace(entry.sequence).is_some() {
                text.push(',');
            }
            text.push_str(&json(&entry));
        }
        if more || ended {
            self.part = Part::Done;
            text.push(']');
            if let Some(last) = self.last.filter(|_| more) {
                text.push_str(",\"continue\":");
                text.push_str(&json(&page::token(&last, &self.query)));
            }
            text.push('}');
        }
        Ok(Some((text.into(), self)))
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("an entry has string keys")
}

/// A store that fails half-way breaks the answer off, so that nothing takes it for whole.
fn body(pieces: impl Stream<Item = Result<Bytes, StoreError>> + Send + 'static) -> Body {
    use futures_util::TryStreamExt as _;
    Body::from_stream(pieces.inspect_err(|error| {
        tracing::error!(error = %causes(error), "reading the audit failed half-way");
    }))
}
