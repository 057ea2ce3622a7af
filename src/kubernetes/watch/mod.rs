//! The watches, and the index of what they show.

mod budget;
pub mod cache;
mod entries;
mod entry;
pub mod index;
mod scope;
mod source;
mod templates;

pub use cache::{Cache, Watched};
pub use entry::{Extent, KnownHistory, KnownRevision};
pub use index::{Budgets, Index, Shown, Usage};
pub use scope::Scope;
