//! A caller who wants to hear the end.

use std::time::Duration;

use super::{Inner, Outcome};

/// For how long a caller wants to wait for the end of a rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(pub Duration);

impl Inner {
    /// Waits for the end of a rollback that was made; what did not end in time, or not before rollbackd
    /// stops, stays [`Outcome::Made`].
    pub(super) async fn wait_for_end(&self, outcome: Outcome, wait: Option<Wait>) -> Outcome {
        let (rollback, Wait(wait)) = match (outcome, wait) {
            (Outcome::Made(rollback), Some(wait)) => (rollback, wait),
            (outcome, _) => return outcome,
        };
        let feed = self.open().get(&rollback.id).map(|feed| feed.states.subscribe());
        let latest = match feed {
            Some(mut states) => {
                let end = async {
                    // The feed goes when the rollback has ended, and its last state can still be read.
                    let _ = states.wait_for(|rollback| rollback.state.is_final()).await;
                };
                let _ = self.parts.stop.run_until_cancelled(tokio::time::timeout(wait, end)).await;
                Some(states.borrow().as_ref().clone())
            }
            None => self.parts.store.rollback(rollback.id).await.ok().flatten(),
        };
        match latest {
            Some(latest) if latest.state.is_final() => Outcome::Ended(latest),
            Some(latest) => Outcome::Made(latest),
            None => Outcome::Made(rollback),
        }
    }
}
