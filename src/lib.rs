//! rollbackd: a safe HTTP API for DaemonSet revisions, rollbacks and rollout status.
//!
//! The rooms, and who may know whom (a test holds the arrows):
//!
//! ```text
//! http ──► rollbacks ──► auth ──► kubernetes ──► domain
//!   └────────┴──────────────────► audit ──────────┘
//! ```
//!
//! - [`domain`]: what is true about DaemonSets. Pure.
//! - [`kubernetes`]: watches, fresh reads, the patch. The only room that names `kube::`.
//! - [`audit`]: the record, in SQLite or PostgreSQL.
//! - [`auth`]: who asks, and what they may do.
//! - [`rollbacks`]: the write, from its request to its end.
//! - [`http`]: routes, views, problems, streams.
//! - [`server`] wires them; [`config`] and [`telemetry`] are what they say.
//! - `failpoint`: where a test build dies, for the crash harness; nothing in any other build.
//! - [`verifier`]: whether an audit is what was written. It knows nobody, so that it shares nothing with [`audit`].
//! - [`sandbox`]: a simulated cluster to put under them. Only [`server`] knows it, and it knows nobody.

pub mod audit;
pub mod auth;
pub mod config;
pub mod domain;
mod failpoint;
pub mod http;
pub mod kubernetes;
pub mod rollbacks;
pub mod sandbox;
pub mod server;
pub mod telemetry;
pub mod verifier;
