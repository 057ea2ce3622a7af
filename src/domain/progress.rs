//! Whether a rollout moves: what is left of it, and when that last became less than ever before.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    daemonset::{Counts, DaemonSet},
    rollout::{Phase, progress},
};

/// Follows one DaemonSet and tells since when its rollout has not made progress.
///
/// Progress is a new minimum of what is left, in one generation. A pod that crashes again and again
/// toggles between the same two counts and makes none. Nodes that leave or join change what is left
/// although the rollout does nothing: the minimum moves with them, and that is no progress.
#[derive(Clone, Debug)]
pub struct ProgressTracker {
    generation: i64,
    /// The newest counts of this generation; `None` until the controller has observed it. Its counts speak
    /// of the generation before until then.
    counts: Option<Counts>,
    least: Left,
    moved_at: Timestamp,
    steps: u64,
}

/// What is left of a rollout, in nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Left {
    /// Nodes without a pod of the current template.
    to_update: i32,
    /// Nodes that may still lack a pod that is of the current template and available. An upper bound: the
    /// status counts updated and available pods apart, and of the nodes with a pod those that are both are at
    /// least `updated + available - current`.
    to_become_available: i32,
}

impl Left {
    fn of(counts: &Counts) -> Self {
        let desired = counts.desired_number_scheduled;
        let updated = counts.updated_number_scheduled;
        let both = updated
            .saturating_add(counts.number_available)
            .saturating_sub(counts.current_number_scheduled)
            .max(0);
        Self { to_update: desired.saturating_sub(updated), to_become_available: desired.saturating_sub(both) }
    }

    /// What `joined` nodes have added between two counts. The controller gives a node without a pod one of
    /// the current template at once, so that only those count as left to update that brought an old pod.
    fn added(before: &Counts, after: &Counts, joined: i32) -> Self {
        let old =
            |counts: &Counts| counts.current_number_scheduled.saturating_sub(counts.updated_number_scheduled);
        let unavailable = |counts| Self::of(counts).to_become_available;
        let rise = |before: i32, after: i32| after.saturating_sub(before).clamp(0, joined);
        Self {
            to_update: rise(old(before), old(after)),
            to_become_available: rise(unavailable(before), unavailable(after)),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            to_update: self.to_update.saturating_add(other.to_update),
            to_become_available: self.to_become_available.saturating_add(other.to_become_available),
        }
    }

    fn min(self, other: Self) -> Self {
        Self {
            to_update: self.to_update.min(other.to_update),
            to_become_available: self.to_become_available.min(other.to_become_available),
        }
    }
}

impl ProgressTracker {
    /// Starts the clock.
    #[must_use]
    pub fn new<T>(daemonset: &DaemonSet<T>, now: Timestamp) -> Self {
        let counts = observed(daemonset);
        let least = counts.as_ref().map(Left::of).unwrap_or_default();
        Self { generation: daemonset.generation, counts, least, moved_at: now, steps: 0 }
    }

    /// Takes the next state of the same DaemonSet.
    pub fn observe<T>(&mut self, daemonset: &DaemonSet<T>, now: Timestamp) {
        if daemonset.generation != self.generation || progress(daemonset) == Phase::Complete {
            *self = Self { steps: self.steps + 1, ..Self::new(daemonset, now) };
            return;
        }
        let Some(counts) = observed(daemonset) else { return };
        let left = Left::of(&counts);
        let moved = match self.counts.replace(counts) {
            None => {
                self.least = left;
                true
            }
            Some(before) => self.advance(&before, &counts, left),
        };
        if moved {
            self.moved_at = now;
            self.steps += 1;
        }
    }

    /// Lowers the minimum to what is left, and says whether that is progress.
    fn advance(&mut self, before: &Counts, counts: &Counts, left: Left) -> bool {
        let joined = counts.desired_number_scheduled.saturating_sub(before.desired_number_scheduled);
        if joined > 0 {
            self.least = self.least.plus(Left::added(before, counts, joined));
        }
        let least = self.least.min(left);
        let less = least != self.least;
        self.least = least;
        // What left with its nodes was not done.
        less && joined >= 0
    }

    /// When it last made progress.
    #[must_use]
    pub fn moved_at(&self) -> Timestamp {
        self.moved_at
    }

    /// How often it has made progress since the clock was started.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Whether a rollout in this phase has made no progress for `limit`.
    #[must_use]
    pub fn is_stalled(&self, phase: Phase, limit: Duration, now: Timestamp) -> bool {
        let waiting = matches!(phase, Phase::Pending | Phase::Updating | Phase::WaitingForPods);
        let still = Duration::try_from(now.duration_since(self.moved_at)).unwrap_or_default();
        waiting && still >= limit
    }
}

/// The counts, if they speak of the newest generation.
fn observed<T>(daemonset: &DaemonSet<T>) -> Option<Counts> {
    (daemonset.generation <= daemonset.status.observed_generation).then_some(daemonset.status)
}

#[cfg(test)]
mod tests;
