//! Rollbacks that the cluster shows and the record lacks.
//!
//! A rollback is on record before it is made, so its id on a DaemonSet, or on one of its ControllerRevisions, is one
//! that the store knows. If not, the store is older than the rollback, somebody copied the annotation, or somebody
//! other than this rollbackd made it. Which of these can't be told from here; that there is something to look at can.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use uuid::Uuid;

use super::{Inner, Rollbacks, now};
use crate::{
    audit::{Action, Entry, Outcome, StoreError},
    domain::{
        actor::Actor,
        key::Key,
        rollback::{Mode, Origin},
    },
    telemetry::causes,
};

/// Entries that one look makes at most: who may write DaemonSets must not be able to fill the store. What
/// is left comes with the next looks.
const ENTRIES: usize = 200;
/// Until the store is asked again after it failed.
const AGAIN: Duration = Duration::from_secs(60);

/// A rollback, and uid and key of the DaemonSet that shows it.
type Shown = BTreeMap<(Uuid, String), Key>;

/// What earlier looks have found out. Neither changes: a record stays, and so does an entry.
#[derive(Debug, Default)]
struct Known {
    recorded: HashSet<Uuid>,
    reported: HashSet<(Uuid, String)>,
}

impl Rollbacks {
    /// Looks once the watches have shown everything, and then each `period`, for ever.
    pub async fn report_unrecorded(self, period: Duration) {
        self.inner.parts.cache.ready().await;
        let mut known = Known::default();
        loop {
            let wait = match self.inner.look_for_unrecorded(&mut known).await {
                Ok(()) => period,
                Err(error) => {
                    tracing::warn!(
                        error = %causes(&error),
                        "whether all rollbacks that the cluster shows are on record can't be told"
                    );
                    AGAIN
                }
            };
            tokio::time::sleep(wait).await;
        }
    }
}

impl Inner {
    async fn look_for_unrecorded(&self, known: &mut Known) -> Result<(), StoreError> {
        let shown = self.shown();
        known
            .recorded
            .retain(|id| shown.range((*id, String::new())..).next().is_some_and(|((it, _), _)| it == id));
        known.reported.retain(|place| shown.contains_key(place));
        // One for all that a look finds, since an entry has to have one.
        let request = Uuid::now_v7();
        let (mut unrecorded, mut written) = (0, 0);
        for (place @ (id, uid), key) in &shown {
            if known.recorded.contains(id) {
                continue;
            }
            if self.parts.store.has_rollback(*id).await? {
                known.recorded.insert(*id);
                continue;
            }
            unrecorded += 1;
            if known.reported.contains(place) || written == ENTRIES {
                continue;
            }
            // Another process, or an earlier one, over the same store.
            if !self.parts.store.has_reported(*id, key, uid).await? {
                let entry = self.unrecorded(*id, key, uid, request);
                self.parts.store.append(&entry).await?;
                tracing::warn!(rollback = %id, daemonset = %key, "{}", entry.message);
                written += 1;
            }
            known.reported.insert(place.clone());
        }
        if written == ENTRIES {
            tracing::warn!(
                unrecorded,
                "there may be more rollbacks that are not on record; they come with the next look"
            );
        }
        self.parts.metrics.unrecorded_rollbacks(unrecorded);
        Ok(())
    }

    /// What the watches show. The annotation is anybody's text: what is no id is nobody's rollback.
    fn shown(&self) -> Shown {
        let id = |text: &str| Uuid::try_parse(text).ok();
        let shown = self.parts.cache.index().shown_rollbacks();
        shown.into_iter().filter_map(|(key, uid, text)| Some(((id(&text)?, uid), key))).collect()
    }

    fn unrecorded(&self, id: Uuid, key: &Key, uid: &str, request: Uuid) -> Entry {
        let message = format!(
            "the cluster shows rollback {id} of {key}, which is not on record here: the record is older than it (restored from a backup?), it was made by somebody else, or its id was copied"
        );
        let origin = Origin {
            requested_by: Actor::rollbackd(),
            on_behalf_of: None,
            reason: None,
            request_id: request.to_string(),
            source: None,
        };
        let what = (Action::Unrecorded, Outcome::Failure);
        let cluster = self.parts.cluster.clone();
        Entry {
            uid: Some(uid.to_owned()),
            rollback: Some(id),
            ..Entry::of_request(what, key, &origin, cluster, Mode::Apply, message, now())
        }
    }
}
