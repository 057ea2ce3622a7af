//! How much of what changed nothing one caller may leave in the audit: denials, refusals, dry runs.
//!
//! Of each kind the first few are told one by one, and what comes after them within a while is summed
//! up in one entry. So a flood of them neither fills the store nor holds up a real rollback.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Inner, now};
use crate::{
    audit::{Action, Entry, StoreError},
    telemetry::causes,
};

/// How many entries of one kind a caller may have.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    pub entries: u64,
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

/// What callers have had within their windows.
#[derive(Debug, Default)]
pub(super) struct Used {
    windows: Mutex<HashMap<Kind, Window>>,
}

#[derive(Debug, Default)]
struct Window {
    recorded: u64,
    /// What is to be summed up, and the last of it.
    rest: Option<(u64, Entry)>,
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
                let count = window.rest.as_ref().map_or(0, |(count, _)| *count);
                window.rest = Some((count + 1, entry));
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
        let Some((count, last)) = closed.and_then(|window| window.rest) else { return };
        let message = format!("{count} more like this one; the last: {}", last.message);
        let summary = Entry { count: Some(count), message, time: now(), ..last };
        if let Err(error) = self.parts.store.append(&summary).await {
            tracing::warn!(
                error = %causes(&error),
                count,
                "a flood of requests is not on record"
            );
        }
    }
}
