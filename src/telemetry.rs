//! What rollbackd tells about itself: logs and metrics.
//!
//! Absent on purpose: names of objects and users as metric labels, and tokens and pod templates
//! anywhere.

mod standard_error;

use std::{
    fmt::Write as _,
    io::{IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
pub use standard_error::print_last;
use tokio::sync::oneshot;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// Lines of the audit log that may wait for standard output.
const AUDIT_LINES: usize = 4096;

/// Starts logging to standard error: readable on a terminal, else one JSON object a line.
///
/// `RUST_LOG` sets the levels. kube's client is silent unless asked for: it logs whole answers.
pub fn start_logging() {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=off,kube_runtime=off,sqlx=warn"));
    let registry = tracing_subscriber::registry().with(filter);
    let queue = standard_error::LogQueue::start();
    let layer = tracing_subscriber::fmt::layer().with_writer(queue).with_target(false);
    if std::io::stderr().is_terminal() {
        registry.with(layer.compact()).init();
    } else {
        let layer = layer.json().flatten_event(true).with_span_list(false).with_ansi(false);
        registry.with(layer).init();
    }
    std::panic::set_hook(Box::new(log_panic));
}

/// Logs a panic as anything else. The standard library's own hook writes to standard error itself, and waits for it.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("unknown");
    let place = panic.location().map(tracing::field::display);
    tracing::error!(panic = %crate::domain::text::escape(message), place, "panicked");
}

/// The audit log: each entry as a line of JSON on standard output. Clones share it.
///
/// A thread of its own writes, so that a reader of standard output that falls behind holds up nothing else.
#[derive(Clone, Debug)]
pub struct AuditLog(SyncSender<Line>);

enum Line {
    Entry(String),
    /// Answered once all lines before it are written.
    Flush(SyncSender<()>),
    /// The same, for a task.
    Written(oneshot::Sender<()>),
}

impl AuditLog {
    /// Starts the thread, which writes to standard output.
    #[must_use]
    pub fn start() -> Self {
        Self::to(std::io::stdout())
    }

    /// Starts the thread, which writes to `output`.
    #[must_use]
    pub fn to(mut output: impl Write + Send + 'static) -> Self {
        let (sender, lines) = sync_channel(AUDIT_LINES);
        std::thread::spawn(move || {
            let mut failing = false;
            for line in lines {
                match line {
                    // A closed pipe is no reason to stop: the store has every entry. But it is said, once.
                    Line::Entry(text) => {
                        let written = output.write_all(format!("{text}\n").as_bytes());
                        let failed = written.is_err();
                        if failed && !std::mem::replace(&mut failing, failed) {
                            tracing::error!(
                                "audit entries can't be written to standard output; the store has them"
                            );
                        }
                        failing = failed;
                    }
                    Line::Flush(done) => drop(done.try_send(())),
                    Line::Written(done) => drop(done.send(())),
                }
            }
        });
        Self(sender)
    }

    /// Hands in one entry; false if the log can't keep up.
    #[must_use]
    pub fn write(&self, entry: &serde_json::Value) -> bool {
        self.0.try_send(Line::Entry(ascii_controls(&entry.to_string()))).is_ok()
    }

    /// Waits until all entries so far are written, however long standard output is not read.
    pub async fn written(&self) {
        let (done, written) = oneshot::channel();
        if self.0.try_send(Line::Written(done)).is_ok() {
            let _ = written.await;
        }
    }

    /// Waits until all entries so far are written, but not for long.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.0.try_send(Line::Flush(done)).is_ok() {
            let _ = written.recv_timeout(Duration::from_secs(1));
        }
    }
}

/// JSON escapes only what is below U+0020; what a terminal obeys beyond that must not get there raw.
fn ascii_controls(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if crate::domain::text::escape(character.encode_utf8(&mut [0; 4])).len() > character.len_utf8() {
            // All of them are in the basic plane.
            let _ = write!(text, "\\u{:04x}", u32::from(character));
        } else {
            text.push(character);
        }
    }
    text
}

/// An error and what caused it, for a log: `outer: inner`. A cause that stands in the text before it, as some
/// libraries write it, is not said twice.
pub fn causes(error: &dyn std::error::Error) -> impl std::fmt::Display + use<> {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    crate::domain::text::escape(&text).into_owned()
}

/// All metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    rollbacks: Family<Outcome, Counter>,
    open: Gauge,
    stalled: Gauge,
    index: Family<Part, Gauge>,
    not_kept: Family<Kind, Gauge>,
    unrecorded: Gauge,
    duration: Histogram,
    staleness: Family<Kind, Gauge<f64, AtomicU64>>,
    store_errors: Counter,
    schema_findings: Gauge,
    store_write: Histogram,
    ownership: Family<Outcome, Counter>,
    ownership_pending: Gauge,
    entries: Family<Action, Counter>,
    reviews: Family<Review, Counter>,
    listeners: Gauge<i64, AtomicI64>,
    connections: Gauge<i64, AtomicI64>,
    connections_closed: Family<Limit, Counter>,
    requests: Family<Request, Counter>,
    request_duration: Family<Route, Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Part {
    part: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Action {
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Review {
    kind: &'static str,
    result: &'static str,
    cached: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limit {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers all metrics in a registry of their own.
    #[must_use]
    pub fn new() -> Self {
        let milliseconds = || Histogram::new(exponential_buckets(0.001, 2.0, 14));
        let mut registry = Registry::with_prefix("rollbackd");
        let metrics = Self {
            rollbacks: Family::default(),
            open: Gauge::default(),
            stalled: Gauge::default(),
            index: Family::default(),
            not_kept: Family::default(),
            unrecorded: Gauge::default(),
            duration: Histogram::new(exponential_buckets(0.5, 2.0, 14)),
            staleness: Family::default(),
            store_errors: Counter::default(),
            schema_findings: Gauge::default(),
            store_write: milliseconds(),
            ownership: Family::default(),
            ownership_pending: Gauge::default(),
            entries: Family::default(),
            reviews: Family::default(),
            listeners: Gauge::default(),
            connections: Gauge::default(),
            connections_closed: Family::default(),
            requests: Family::default(),
            request_duration: Family::new_with_constructor(milliseconds),
            registry: Arc::default(),
        };
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of rollbackd", build);
        registry.register("rollbacks", "Rollbacks that have ended, by outcome", metrics.rollbacks.clone());
        registry.register(
            "ownership_returns",
            "Attempts to return the field ownership of a restored template, by outcome",
            metrics.ownership.clone(),
        );
        registry.register(
            "ownership_returns_pending",
            "Rollbacks whose field ownership is yet to be returned",
            metrics.ownership_pending.clone(),
        );
        registry.register("rollbacks_open", "Rollbacks that have not ended", metrics.open.clone());
        registry.register("rollouts_stalled", "Rollouts that stand still", metrics.stalled.clone());
        registry.register_with_unit(
            "index",
            "Memory that the index of the cluster takes, by part",
            Unit::Bytes,
            metrics.index.clone(),
        );
        registry.register(
            "index_not_kept",
            "DaemonSets for which the index has no room (daemonsets), or no room for their revisions (controllerrevisions)",
            metrics.not_kept.clone(),
        );
        registry.register(
            "rollbacks_unrecorded",
            "Rollbacks that the cluster shows and that are not on record",
            metrics.unrecorded.clone(),
        );
        registry.register_with_unit(
            "rollback_duration",
            "Time from the request of a rollback to its end",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register_with_unit(
            "watch_staleness",
            "For how long what a watch says has not been known to be true",
            Unit::Seconds,
            metrics.staleness.clone(),
        );
        registry.register(
            "store_errors",
            "Writes that the audit store did not take",
            metrics.store_errors.clone(),
        );
        registry.register(
            "store_schema_findings",
            "Differences between the audit store's tables and those that rollbackd makes",
            metrics.schema_findings.clone(),
        );
        registry.register_with_unit(
            "store_write",
            "Time that a write to the audit store took",
            Unit::Seconds,
            metrics.store_write.clone(),
        );
        registry.register(
            "audit_entries",
            "Entries written to the audit, by action",
            metrics.entries.clone(),
        );
        registry.register(
            "reviews",
            "Answers to whose token it is and what its owner may do",
            metrics.reviews.clone(),
        );
        registry.register("sse_listeners", "Open server-sent event streams", metrics.listeners.clone());
        registry.register(
            "log_lines_dropped",
            "Lines of the log that standard error did not take in time",
            standard_error::DROPPED.clone(),
        );
        registry.register("http_connections", "Open connections", metrics.connections.clone());
        registry.register(
            "http_connections_closed",
            "Connections that were closed or refused at a limit",
            metrics.connections_closed.clone(),
        );
        registry.register(
            "http_requests",
            "Answered requests, by route and status",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "http_request_duration",
            "Time until the headers of an answer",
            Unit::Seconds,
            metrics.request_duration.clone(),
        );
        Self { registry: Arc::new(registry), ..metrics }
    }

    /// All metrics in the OpenMetrics text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes all");
        text
    }

    /// A rollback has ended in a state.
    pub fn rollback_ended(&self, outcome: &'static str, taken: Duration) {
        self.rollbacks.get_or_create(&Outcome { outcome }).inc();
        self.duration.observe(taken.as_secs_f64());
    }

    /// The field ownership of a restored template was returned, or not: `returned`, `failed`, `skipped`.
    pub fn ownership_return(&self, outcome: &'static str) {
        self.ownership.get_or_create(&Outcome { outcome }).inc();
    }

    /// How many rollbacks have field ownership to return, on all replicas.
    pub fn pending_ownership_returns(&self, count: i64) {
        self.ownership_pending.set(count);
    }

    /// How many rollbacks have not ended.
    pub fn open_rollbacks(&self, count: usize) {
        self.open.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// How many rollouts stand still.
    pub fn stalled_rollouts(&self, count: usize) {
        self.stalled.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// Bytes that the index of the cluster takes, without and of templates.
    pub fn index_bytes(&self, objects: usize, templates: usize) {
        for (part, bytes) in [("objects", objects), ("templates", templates)] {
            self.index.get_or_create(&Part { part }).set(bytes.try_into().unwrap_or(i64::MAX));
        }
    }

    /// Of how many DaemonSets the index has nothing of a kind, for lack of room.
    pub fn not_kept(&self, kind: &'static str, daemonsets: usize) {
        self.not_kept.get_or_create(&Kind { kind }).set(daemonsets.try_into().unwrap_or(i64::MAX));
    }

    /// How many rollbacks the cluster shows that are not on record.
    pub fn unrecorded_rollbacks(&self, count: usize) {
        self.unrecorded.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// For how long what the watches of a kind say has not been known to be true.
    pub fn watch_staleness(&self, kind: &'static str, staleness: Duration) {
        self.staleness.get_or_create(&Kind { kind }).set(staleness.as_secs_f64());
    }

    /// The store has taken a write, or not.
    pub fn store_write(&self, taken: Duration, failed: bool) {
        self.store_write.observe(taken.as_secs_f64());
        if failed {
            self.store_errors.inc();
        }
    }

    /// How much of the store's tables is not as rollbackd made it.
    pub fn schema_findings(&self, count: usize) {
        self.schema_findings.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// An entry was written to the audit.
    pub fn audit_entry(&self, action: &'static str) {
        self.entries.get_or_create(&Action { action }).inc();
    }

    /// It was answered whose token it is (`token`) or what somebody may do (`access`), from memory or not.
    pub fn review(&self, kind: &'static str, result: &'static str, cached: bool) {
        let cached = if cached { "true" } else { "false" };
        self.reviews.get_or_create(&Review { kind, result, cached }).inc();
    }

    /// Counts a server-sent event stream as open until the returned guard is dropped.
    #[must_use]
    pub fn sse_listener(&self) -> SseListener {
        self.listeners.inc();
        SseListener(self.listeners.clone())
    }

    /// So many connections are open.
    pub fn connections(&self, count: usize) {
        self.connections.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// A connection was closed or refused because of a limit.
    pub fn connection_closed(&self, limit: &'static str) {
        self.connections_closed.get_or_create(&Limit { limit }).inc();
    }

    /// A request was answered.
    pub fn request(&self, route: &str, status: u16, taken: Duration) {
        let route = route.to_owned();
        self.requests.get_or_create(&Request { route: route.clone(), status }).inc();
        self.request_duration.get_or_create(&Route { route }).observe(taken.as_secs_f64());
    }
}

/// Counts one open stream.
#[derive(Debug)]
pub struct SseListener(Gauge<i64, AtomicI64>);

impl Drop for SseListener {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_reads_back() {
        let value = serde_json::json!({"reason": "a\u{202e}b\u{9b}c\u{7f}\n\u{e9}"});
        let line = ascii_controls(&value.to_string());
        assert!(!line.contains(['\u{202e}', '\u{9b}', '\u{7f}']) && line.contains('\u{e9}'), "{line}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), value);
    }
}
