//! How far a rollout has got: kubectl's sentences, and whether it still moves.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::daemonset::{DaemonSet, UpdateStrategy};

/// Where a rollout stands. Computed as kubectl's `DaemonSetStatusViewer.Status` does, except that
/// it answers for `OnDelete` too, which kubectl refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = RolloutPhase)]
pub enum Phase {
    /// The controller has not acted on the newest spec yet.
    Pending,
    /// Some nodes still lack a pod of the current template.
    Updating,
    /// All pods are of the current template, some are not available yet.
    WaitingForPods,
    /// All pods are of the current template and available.
    Complete,
    /// The DaemonSet is being deleted; its controller does nothing more.
    Deleting,
}

/// Phase and sentence of one DaemonSet at one resource version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    pub phase: Phase,
    /// kubectl's sentence, without the newline.
    pub message: String,
    /// What kubectl's sentence leaves out, where that could mislead.
    pub note: Option<&'static str>,
}

impl Rollout {
    /// Reads the rollout off a DaemonSet's status.
    #[must_use]
    pub fn of(daemonset: &DaemonSet) -> Self {
        let counts = &daemonset.status;
        let name = daemonset.key.name.as_str();
        let progress = progress(daemonset);
        let message = match progress {
            Phase::Pending => "Waiting for daemon set spec update to be observed...".to_owned(),
            Phase::Updating => format!(
                "Waiting for daemon set \"{name}\" rollout to finish: {} out of {} new pods have been updated...",
                counts.updated_number_scheduled, counts.desired_number_scheduled
            ),
            Phase::WaitingForPods => format!(
                "Waiting for daemon set \"{name}\" rollout to finish: {} of {} updated pods are available...",
                counts.number_available, counts.desired_number_scheduled
            ),
            Phase::Complete | Phase::Deleting => format!("daemon set \"{name}\" successfully rolled out"),
        };
        let phase = if daemonset.being_deleted { Phase::Deleting } else { progress };
        let note = match phase {
            Phase::Deleting => Some("it is being deleted: its controller does nothing more"),
            Phase::Pending | Phase::Updating if daemonset.strategy == UpdateStrategy::OnDelete => {
                Some("updateStrategy is OnDelete: each pod is updated when somebody deletes it")
            }
            Phase::Complete if counts.desired_number_scheduled == 0 => {
                Some("0 nodes should run a pod of it: nothing runs")
            }
            Phase::Pending | Phase::Updating | Phase::WaitingForPods | Phase::Complete => None,
        };
        Self { phase, message, note }
    }
}

/// What kubectl looks at, in its order; it knows nothing of a deletion.
fn progress(daemonset: &DaemonSet) -> Phase {
    let counts = &daemonset.status;
    if daemonset.generation > counts.observed_generation {
        Phase::Pending
    } else if counts.updated_number_scheduled < counts.desired_number_scheduled {
        Phase::Updating
    } else if counts.number_available < counts.desired_number_scheduled {
        Phase::WaitingForPods
    } else {
        Phase::Complete
    }
}

/// Since when a rollout has not moved.
///
/// It moves when it gets further than it ever was in this generation. Less is not progress: a pod
/// that crashes again and again toggles between the same two counts for ever.
#[derive(Clone, Debug)]
pub struct Pace {
    generation: i64,
    furthest: (i64, i32, i32),
    moved_at: Timestamp,
}

impl Pace {
    /// Starts the clock.
    #[must_use]
    pub fn new(daemonset: &DaemonSet, now: Timestamp) -> Self {
        Self { generation: daemonset.generation, furthest: reach(daemonset), moved_at: now }
    }

    /// Takes the next state of the same DaemonSet.
    pub fn observe(&mut self, daemonset: &DaemonSet, now: Timestamp) {
        let reached = reach(daemonset);
        if daemonset.generation != self.generation || progress(daemonset) == Phase::Complete {
            *self = Self { generation: daemonset.generation, furthest: reached, moved_at: now };
            return;
        }
        let furthest =
            (reached.0.max(self.furthest.0), reached.1.max(self.furthest.1), reached.2.max(self.furthest.2));
        if furthest != self.furthest {
            self.furthest = furthest;
            self.moved_at = now;
        }
    }

    /// When it last moved.
    #[must_use]
    pub fn moved_at(&self) -> Timestamp {
        self.moved_at
    }

    /// Whether a rollout in this phase has stood still for `limit`.
    #[must_use]
    pub fn is_stalled(&self, phase: Phase, limit: Duration, now: Timestamp) -> bool {
        let waiting = matches!(phase, Phase::Pending | Phase::Updating | Phase::WaitingForPods);
        let still = Duration::try_from(now.duration_since(self.moved_at)).unwrap_or_default();
        waiting && still >= limit
    }
}

/// Observed generation, pods updated, and pods at least that are both updated and available.
///
/// Until the controller has observed the generation, its counts speak of the one before, whose rollout
/// may be complete: further than this one gets before its own end.
fn reach(daemonset: &DaemonSet) -> (i64, i32, i32) {
    let counts = &daemonset.status;
    if daemonset.generation > counts.observed_generation {
        return (counts.observed_generation, 0, 0);
    }
    let both = counts
        .updated_number_scheduled
        .saturating_add(counts.number_available)
        .saturating_sub(counts.desired_number_scheduled);
    (counts.observed_generation, counts.updated_number_scheduled, both.max(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{daemonset::Counts, fixtures::daemonset};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn the_sentences_are_those_of_kubectl_in_its_order() {
        let mut live = daemonset("a");
        let says = |live: &DaemonSet| Rollout::of(live).message;
        assert_eq!(says(&live), "daemon set \"web\" successfully rolled out");
        live.status.number_available = 1;
        assert_eq!(
            says(&live),
            "Waiting for daemon set \"web\" rollout to finish: 1 of 3 updated pods are available..."
        );
        live.status.updated_number_scheduled = 2;
        assert_eq!(
            says(&live),
            "Waiting for daemon set \"web\" rollout to finish: 2 out of 3 new pods have been updated..."
        );
        live.generation = 2;
        assert_eq!(says(&live), "Waiting for daemon set spec update to be observed...");
    }

    #[test]
    fn no_nodes_and_on_delete_and_deletion_are_noted() {
        let mut live = daemonset("a");
        live.status = Counts { observed_generation: 1, ..Counts::default() };
        assert!(Rollout::of(&live).note.unwrap().contains("0 nodes"));
        live.status.desired_number_scheduled = 3;
        live.strategy = UpdateStrategy::OnDelete;
        assert!(Rollout::of(&live).note.unwrap().contains("OnDelete"));
        live.being_deleted = true;
        assert_eq!(Rollout::of(&live).phase, Phase::Deleting);
    }

    #[test]
    fn counts_of_the_generation_before_are_no_progress_of_this_one() {
        let mut live = daemonset("a");
        live.generation = 2;
        let mut pace = Pace::new(&live, at(0));
        live.status.observed_generation = 2;
        for (second, updated) in [(1, 0), (10, 1), (20, 2)] {
            live.status.updated_number_scheduled = updated;
            pace.observe(&live, at(second));
            assert_eq!(pace.moved_at(), at(second));
        }
    }

    #[test]
    fn a_pod_that_comes_and_goes_is_no_progress() {
        let mut live = daemonset("a");
        live.status.updated_number_scheduled = 1;
        live.status.number_available = 2;
        let mut pace = Pace::new(&live, at(0));
        for (second, available) in [(10, 3), (20, 2), (30, 3)] {
            live.status.number_available = available;
            pace.observe(&live, at(second));
        }
        assert_eq!(pace.moved_at(), at(10));
        assert!(pace.is_stalled(Phase::Updating, Duration::from_secs(20), at(30)));
        assert!(!pace.is_stalled(Phase::Updating, Duration::from_secs(21), at(30)));
        assert!(!pace.is_stalled(Phase::Complete, Duration::from_secs(1), at(30)));
        live.status.updated_number_scheduled = 2;
        pace.observe(&live, at(40));
        assert_eq!(pace.moved_at(), at(40));
        live.generation = 2;
        pace.observe(&live, at(50));
        assert_eq!(pace.moved_at(), at(50));
    }
}
