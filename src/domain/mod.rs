//! What is true about DaemonSets, their revisions and rollbacks.
//!
//! Functions from objects to values: no I/O, no clock, no async, no logging. Everything that
//! needs one of those lives in the rooms around this one and hands its findings in.

pub mod access;
pub mod actor;
pub mod admitted;
pub mod bookkeeping;
pub mod daemonset;
pub mod describe;
pub mod diff;
pub mod event;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod key;
pub mod kubectl;
pub mod managers;
pub mod progress;
pub mod revision;
pub mod revision_data;
pub mod rollback;
pub mod rollout;
pub mod template;
pub mod text;
