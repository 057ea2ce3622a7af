//! How much of what changed nothing one caller may leave in the audit: denials, refusals, dry runs.
//!
//! Of each kind the first few are told one by one, and what comes after them within a while is summed
//! up in one entry for each DaemonSet and each person for whom it was tried, up to a bound. So a flood of
//! them neither fills the store, nor holds up a real rollback, nor hides what else was tried.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Inner, now};
use crate::{
    audit::{Action, Entry, StoreError},
    domain::{
        actor::Actor,
        key::{Name, Namespace},
    },
    telemetry::causes,
};

/// How many entries of one kind a caller may have.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    /// One by one, and as many that sum up.
    pub entries: usize,
    /// Counted from the first of them.
    pub window: Duration,
}

impl Default for Quota {
    fn default() -> Self {
        Self { entries: 30, window: Duration::from_secs(600) }
    }
}

/// User, and what was recorded.
type Kind = (String, Action);
/// For whom, and to which DaemonSet.
type Target = (Option<Actor>, Option<Namespace>, Option<Name>);

/// What callers have had within their windows.
#[derive(Debug, Default)]
pub(super) struct Used {
    windows: Mutex<HashMap<Kind, Window>>,
}

#[derive(Debug, Default)]
struct Window {
    recorded: usize,
    /// What is to be summed up; of no target of its own is what came up when there were enough of those.
    sums: HashMap<Option<Target>, Sum>,
}

#[derive(Debug)]
struct Sum {
    count: u64,
    last: Entry,
}

impl Window {
    fn count(&mut self, entry: Entry, most: usize) {
        let mut target = Some((entry.on_behalf_of.clone(), entry.namespace.clone(), entry.name.clone()));
        if self.sums.len() >= most && !self.sums.contains_key(&target) {
            target = None;
        }
        let count = self.sums.get(&target).map_or(1, |sum| sum.count + 1);
        self.sums.insert(target, Sum { count, last: entry });
    }

    /// An entry for each sum, in the order of their last requests.
    fn summaries(self) -> Vec<Entry> {
        let mut sums: Vec<_> = self.sums.into_iter().collect();
        sums.sort_by_key(|(_, sum)| sum.last.time);
        let told = sums.into_iter().map(|(target, Sum { count, last })| {
            let what = match target {
                Some(_) => "like this one",
                None => "of this caller, of which many DaemonSets or persons were named",
            };
            let message = format!("{count} more {what}; the last: {}", last.message);
            Entry { count: Some(count), message, time: now(), ..last }
        });
        told.collect()
    }
}

impl Used {
    fn windows(&self) -> MutexGuard<'_, HashMap<Kind, Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Records something that changed nothing, or counts it if its caller has had enough of that.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn record_harmless(self: &Arc<Self>, entry: Entry) -> Result<(), StoreError> {
        let quota = self.parts.quota;
        let kind = (entry.actor.user.clone(), entry.action);
        let opened = {
            let mut windows = self.used.windows();
            let window = windows.entry(kind.clone()).or_default();
            if window.recorded >= quota.entries {
                window.count(entry, quota.entries);
                return Ok(());
            }
            window.recorded += 1;
            window.recorded == 1
        };
        if opened {
            self.parts.tasks.spawn(self.clone().sum_up(kind));
        }
        self.parts.store.append(&entry).await
    }

    /// When the window is over, or rollbackd stops, records what was only counted.
    async fn sum_up(self: Arc<Self>, kind: Kind) {
        let window = self.parts.quota.window;
        self.parts.stop.run_until_cancelled(tokio::time::sleep(window)).await;
        let closed = self.used.windows().remove(&kind);
        for summary in closed.map(Window::summaries).unwrap_or_default() {
            if let Err(error) = self.parts.store.append(&summary).await {
                tracing::warn!(
                    error = %causes(&error),
                    count = summary.count,
                    "a flood of requests is not on record"
                );
            }
        }
    }
}
