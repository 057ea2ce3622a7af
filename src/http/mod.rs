//! The HTTP API: extract, one call, one view.
//!
//! [`router`] is the map of all routes; [`problem`] is the only place that knows the status of an
//! error; [`edge`] is what every request passes through.

mod caller;
pub mod connections;
mod cors;
mod edge;
mod etag;
mod extract;
mod guard;
pub mod handlers;
mod idempotency;
mod negotiate;
pub mod openapi;
mod page;
mod prefer;
pub mod problem;
pub mod refusals;
mod router;
mod sse;
pub mod streams;
pub mod tls;

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

pub use router::router;

use crate::{
    audit::Store,
    auth::{Authority, Caller},
    domain::{
        access::Access,
        daemonset::WatchedDaemonSet,
        key::{Key, Namespace},
    },
    kubernetes::{Cache, ClusterError, Live, Reader, liveness::Health, watch::KnownHistory},
    rollbacks::Rollbacks,
    telemetry::Metrics,
};
use problem::{Kind, Problem};
use refusals::Refusals;
use streams::Streams;

/// Largest request header, in bytes: a token may have 16 KiB.
pub const MAX_HEADER: usize = 32 * 1024;

/// Longest request target, in bytes.
pub const MAX_TARGET: usize = 8 * 1024;

/// Largest request body, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// What the handlers work with. Clones share it.
#[derive(Clone)]
pub struct App {
    inner: Arc<Parts>,
}

/// The rooms behind the handlers, and what the flags say.
pub struct Parts {
    pub live: Live,
    pub cache: Arc<Cache>,
    pub reader: Reader,
    pub health: Arc<Health>,
    pub store: Store,
    pub rollbacks: Rollbacks,
    pub authority: Authority,
    pub metrics: Metrics,
    pub cluster_name: Option<String>,
    pub require_reason: bool,
    /// `--anonymous`.
    pub open: Vec<Open>,
    /// `--trusted-proxy`.
    pub trusted_proxies: Vec<IpNet>,
    /// `--cors-origin`.
    pub cors_origins: Vec<HeaderValue>,
    pub limits: Limits,
    pub streams: Streams,
    pub refusals: Refusals,
    /// Whether rollbacks are made: `--read-only`.
    pub writes: Writes,
    /// Readiness fails from here on.
    pub draining: CancellationToken,
    /// Streams end here.
    pub stop: CancellationToken,
}

/// Times that the contract names.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From here on answers say that they are stale.
    pub stale_after: Duration,
    /// From here on nothing is answered from the watches.
    pub dead_after: Duration,
    /// For how long a read waits for a generation to be seen.
    pub generation: Duration,
    /// Between two comments on a silent stream.
    pub heartbeat: Duration,
    /// For a request body to arrive in whole.
    pub body: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stale_after: Duration::from_secs(15),
            dead_after: Duration::from_secs(300),
            generation: Duration::from_secs(5),
            heartbeat: Duration::from_secs(15),
            body: Duration::from_secs(10),
        }
    }
}

/// What can be read without a token if so configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// `/openapi.json` and `/docs`.
    Docs,
    /// `/metrics`.
    Metrics,
}

/// Whether rollbacks are made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    Allowed,
    /// `--read-only`: every rollback and dry run is refused.
    Refused,
}

/// How much of a rollback a caller sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// All of it.
    Whole,
    /// Without what stands in pod templates: images and the diff.
    Numbers,
}

/// Whether an answer from the watches may be behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    Current,
    Stale,
}

impl Freshness {
    /// As the field `stale` of an answer, which is there only if it is true.
    #[must_use]
    pub fn is_stale(self) -> bool {
        self == Self::Stale
    }
}

impl std::ops::Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.inner
    }
}

impl App {
    /// Puts the handlers on top of the rooms.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(parts) }
    }

    /// Whether a namespace is served.
    fn serves(&self, namespace: &Namespace) -> Result<(), Problem> {
        let scope = self.cache.scope();
        if scope.contains(namespace) {
            return Ok(());
        }
        let detail = format!("namespace {namespace} is not served by this rollbackd, which serves {scope}");
        Err(Problem::new(Kind::NamespaceNotServed, detail))
    }

    /// How good answers from the watches are now.
    fn freshness(&self) -> Result<Freshness, Problem> {
        if !self.cache.is_ready() {
            let detail = "the DaemonSets of the cluster have not been read yet";
            return Err(Problem::new(Kind::NotReady, detail).retry_after(Duration::from_secs(1)));
        }
        let staleness = self.cache.liveness().worst();
        if staleness >= self.limits.dead_after {
            let detail = format!("the cluster has not been seen for {} s", staleness.as_secs());
            return Err(Problem::new(Kind::Stale, detail).retry_after(Duration::from_secs(10)));
        }
        if staleness >= self.limits.stale_after { Ok(Freshness::Stale) } else { Ok(Freshness::Current) }
    }

    /// How much a caller sees of the rollbacks in a namespace. What can't be asked is not shown.
    async fn depth(&self, caller: &Caller, namespace: &Namespace) -> Depth {
        match self.authority.may(caller, &Access::get_revisions(namespace)).await {
            Ok(true) => Depth::Whole,
            Ok(false) | Err(_) => Depth::Numbers,
        }
    }

    /// One DaemonSet.
    async fn daemonset(&self, caller: &Caller, key: &Key) -> Result<Arc<WatchedDaemonSet>, Problem> {
        self.reader.daemonset(caller.asker(), key).await.map_err(|error| match error {
            ClusterError::NotFound => Problem::no_daemonset(key),
            error => error.into(),
        })
    }

    /// The revisions of a DaemonSet.
    async fn history(
        &self,
        caller: &Caller,
        daemonset: &WatchedDaemonSet,
    ) -> Result<Arc<KnownHistory>, Problem> {
        Ok(self.reader.history(caller.asker(), daemonset).await?)
    }
}
