//! The record: who rolled back what and why, and what became of it.
//!
//! [`Entry`] is one line of the audit, [`Store`] keeps entries and rollbacks durably. A rollback is
//! recorded before it is made; what the store does not take is not done. The entries are a chain, which ends
//! in its [`Head`].

mod chain;
mod claims;
mod database;
mod entry;
mod export;
mod integrity;
mod keys;
mod outbox;
mod ownership;
mod place;
mod query;
mod reads;
mod retention;
mod schema;
mod store;
mod trouble;
mod unrecorded;
mod url;

pub use chain::Head;
pub use claims::{Open, PULSE};
pub use entry::{Action, Entry, FORMAT_VERSION, MESSAGE, Outcome};
pub use export::{ExportError, export};
pub use keys::{NewKey, UsedKey};
pub use outbox::LogWriter;
pub use ownership::PendingReturn;
pub use query::{EntryFilter, Order, RollbackFilter, RollbackScope, Sequence};
pub use store::{Store, StoreError};
pub use trouble::Trouble;
pub use url::{InvalidStoreUrl, StoreUrl};

use jiff::{Timestamp, fmt::temporal::DateTimePrinter};

/// A time as it is stored: RFC 3339 in UTC, always six digits, so that text sorts as time does.
#[must_use]
pub fn time_text(time: Timestamp) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
    PRINTER.timestamp_to_string(&time)
}
