//! The cluster: the only room that names `kube::`.
//!
//! Reads come from watches ([`cache`]), what a rollback plans on is read fresh ([`live`]), what a caller
//! may do is asked ([`review`]), and every request goes through [`transport`], which gives it a deadline.
//!
//! Absent on purpose: a trait over the API. The seam for tests and for the sandbox is the
//! `tower::Service` under `kube::Client`.

pub mod cache;
pub mod clock;
pub mod connect;
mod duplicates;
pub mod error;
pub mod events;
mod grant;
pub mod live;
pub mod liveness;
mod objects;
mod provenance;
pub mod review;
pub mod rollouts;
pub mod selector;
mod transport;

pub use cache::{Cache, Scope};
pub use error::{ClusterError, Delivery};
pub use events::Events;
pub use grant::Grant;
pub use live::Live;
pub use objects::FreshDaemonSet;
pub use review::Reviewer;
pub use rollouts::{Frame, FrameEvent, Rollouts};
