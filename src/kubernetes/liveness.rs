//! Whether the watches still say what is true.
//!
//! A watch that is open and silent looks the same whether nothing happens or the API server is
//! frozen. So the clock of a kind is set back by each piece that its watch delivers (bookmarks
//! come once a minute) and, in between, by a small probe that the API server answers while all
//! watches of the kind are open.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use super::{Cache, Live, Scope, clock::ServerClock};
use crate::telemetry::Metrics;

/// Bookmarks come about once a minute; a watch that brings nothing for longer than two is dead,
/// whatever the probe says.
const SILENT_WATCH: Duration = Duration::from_secs(150);

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    DaemonSet,
    ControllerRevision,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::DaemonSet, Self::ControllerRevision];

    /// The plural name in API paths, which is the metric's label too.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::DaemonSet => "daemonsets",
            Self::ControllerRevision => "controllerrevisions",
        }
    }
}

/// Staleness clocks of all kinds.
#[derive(Debug)]
pub struct Liveness {
    watches: usize,
    clocks: [Clock; 2],
    server_clock: ServerClock,
}

#[derive(Debug)]
struct Clock {
    open: AtomicUsize,
    delivered: Mutex<Instant>,
    fresh: Mutex<Instant>,
}

impl Liveness {
    /// Starts the clocks; `watches` is how many watches each kind has when all is well.
    #[must_use]
    pub fn new(watches: usize) -> Self {
        let clock = || Clock {
            open: AtomicUsize::new(0),
            delivered: Mutex::new(Instant::now()),
            fresh: Mutex::new(Instant::now()),
        };
        Self { watches, clocks: [clock(), clock()], server_clock: ServerClock::default() }
    }

    /// The API server's clock, as its answers show it.
    #[must_use]
    pub fn server_clock(&self) -> &ServerClock {
        &self.server_clock
    }

    fn clock(&self, kind: Kind) -> &Clock {
        match kind {
            Kind::DaemonSet => &self.clocks[0],
            Kind::ControllerRevision => &self.clocks[1],
        }
    }

    /// A watch of this kind was opened.
    pub fn opened(&self, kind: Kind) {
        self.clock(kind).open.fetch_add(1, Ordering::Relaxed);
        self.delivered(kind);
    }

    /// A watch of this kind has ended.
    pub fn closed(&self, kind: Kind) {
        self.clock(kind).open.fetch_sub(1, Ordering::Relaxed);
    }

    /// A watch of this kind delivered something.
    pub fn delivered(&self, kind: Kind) {
        let now = Instant::now();
        let clock = self.clock(kind);
        set(&clock.delivered, now);
        // What one of several watches delivers says nothing of one that is closed.
        if clock.open.load(Ordering::Relaxed) >= self.watches {
            set(&clock.fresh, now);
        }
    }

    /// The API server answered a probe.
    pub fn probed(&self) {
        let now = Instant::now();
        for clock in &self.clocks {
            let open = clock.open.load(Ordering::Relaxed) >= self.watches;
            if open && now.duration_since(get(&clock.delivered)) < SILENT_WATCH {
                set(&clock.fresh, now);
            }
        }
    }

    /// For how long what this kind's watches say has not been known to be true.
    #[must_use]
    pub fn staleness(&self, kind: Kind) -> Duration {
        Instant::now().duration_since(get(&self.clock(kind).fresh))
    }

    /// The longest staleness of all kinds.
    #[must_use]
    pub fn worst(&self) -> Duration {
        Kind::ALL.into_iter().map(|kind| self.staleness(kind)).max().unwrap_or_default()
    }
}

/// What is known of the API server beside its objects.
#[derive(Debug)]
pub struct Health {
    stale: watch::Sender<bool>,
    version: Mutex<Option<String>>,
}

impl Default for Health {
    fn default() -> Self {
        Self { stale: watch::Sender::new(false), version: Mutex::default() }
    }
}

impl Health {
    /// Whether the watches are stale, and each change of it.
    #[must_use]
    pub fn stale(&self) -> watch::Receiver<bool> {
        self.stale.subscribe()
    }

    /// The API server's version, once it has told it.
    #[must_use]
    pub fn version(&self) -> Option<String> {
        self.version.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks the API server every `period`, and says when the watches become stale or current.
    pub async fn keep(self: Arc<Self>, live: Live, cache: Arc<Cache>, metrics: Metrics, pace: ProbePace) {
        let namespace = match cache.scope() {
            Scope::All => None,
            Scope::Namespaces(served) => served.first().map(ToString::to_string),
        };
        let probing = async {
            loop {
                if live.probe(namespace.as_deref()).await.is_ok() {
                    cache.liveness().probed();
                    if let Ok(version) = live.version().await {
                        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version);
                    }
                }
                tokio::time::sleep(pace.period).await;
            }
        };
        let telling = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(250));
            loop {
                ticks.tick().await;
                let stale = cache.liveness().worst() >= pace.stale_after;
                self.stale.send_if_modified(|told| std::mem::replace(told, stale) != stale);
                for kind in Kind::ALL {
                    metrics.watch_staleness(kind.plural(), cache.liveness().staleness(kind));
                }
                metrics.stalled_rollouts(cache.index().stalled());
                let usage = cache.index().usage();
                metrics.index_bytes(usage.index_bytes, usage.template_bytes);
                metrics.not_kept(Kind::DaemonSet.plural(), usage.daemonsets_not_kept);
                metrics.not_kept(Kind::ControllerRevision.plural(), usage.histories_not_kept);
            }
        };
        tokio::join!(probing, telling);
    }
}

/// How often the API server is asked, and from when on its silence counts.
#[derive(Clone, Copy, Debug)]
pub struct ProbePace {
    pub period: Duration,
    pub stale_after: Duration,
}

fn set(cell: &Mutex<Instant>, now: Instant) {
    *cell.lock().unwrap_or_else(PoisonError::into_inner) = now;
}

fn get(cell: &Mutex<Instant>) -> Instant {
    *cell.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_probe_counts_only_while_all_watches_are_open() {
        let liveness = Liveness::new(1);
        liveness.opened(Kind::DaemonSet);
        tokio::time::advance(Duration::from_secs(20)).await;
        liveness.probed();
        assert_eq!(liveness.staleness(Kind::DaemonSet), Duration::ZERO);
        assert_eq!(liveness.staleness(Kind::ControllerRevision), Duration::from_secs(20));
        liveness.closed(Kind::DaemonSet);
        tokio::time::advance(Duration::from_secs(5)).await;
        liveness.probed();
        assert_eq!(liveness.staleness(Kind::DaemonSet), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_without_bookmarks_is_dead_though_the_probe_is_answered() {
        let liveness = Liveness::new(1);
        liveness.opened(Kind::DaemonSet);
        tokio::time::advance(Duration::from_secs(149)).await;
        liveness.probed();
        assert_eq!(liveness.staleness(Kind::DaemonSet), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(6)).await;
        liveness.probed();
        assert_eq!(liveness.staleness(Kind::DaemonSet), Duration::from_secs(6));
    }
}
