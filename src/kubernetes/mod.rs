//! The cluster: the only room that names `kube::`.
//!
//! Reads come from watches ([`watch`]), and from the API server where these do not have what is asked for
//! ([`reader`]). What a rollback plans on is read fresh ([`live`]), what a caller may do is asked ([`review`]), and
//! every request goes through [`transport`], which gives it a deadline.
//!
//! Absent on purpose: a trait over the API. The seam for tests and for the sandbox is the
//! `tower::Service` under `kube::Client`.

pub mod clock;
pub mod connect;
mod duplicates;
pub mod error;
pub mod events;
mod grant;
mod list;
pub mod live;
pub mod liveness;
mod objects;
mod provenance;
pub mod reader;
pub mod review;
pub mod rollouts;
pub mod selector;
mod transport;
pub mod watch;

pub use error::{ClusterError, Delivery};
pub use events::Events;
pub use grant::Grant;
pub use live::Live;
pub use objects::FreshDaemonSet;
pub use reader::Reader;
pub use review::Reviewer;
pub use rollouts::{Frame, FrameEvent};
pub use watch::{Cache, Index, Scope};
