//! How far a rollout has got, in kubectl's sentences.

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
    pub fn of<T>(daemonset: &DaemonSet<T>) -> Self {
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
pub(super) fn progress<T>(daemonset: &DaemonSet<T>) -> Phase {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{daemonset::Counts, fixtures::daemonset};

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
}
