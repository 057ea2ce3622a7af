//! One file for each resource: its views and its handlers.

pub mod audit;
pub mod daemonsets;
mod entries;
pub mod operations;
pub mod revisions;
pub mod rollback;
pub mod rollbacks;
pub mod status;
