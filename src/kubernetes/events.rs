//! Kubernetes Events of rollbacks, on the DaemonSet.
//!
//! A courtesy, which holds nobody up: an Event is sent by a task of its own, once, and what does not get through is
//! dropped with a line in the log. The audit is the truth.
//!
//! Not kube's `Recorder`: it takes a second rollback of a DaemonSet within six minutes for a repetition of the first
//! and keeps the first one's note, so that who and why would be wrong; and it needs `patch` for that.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, api::PostParams};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::Live;
use crate::{
    domain::{daemonset::FIELD_MANAGER, event::Event, rollback::Rollback, text::cut},
    telemetry::causes,
};

/// Events that may be on their way at a time. What comes while so many are is dropped.
const ON_THEIR_WAY: usize = 64;
/// Longest `reportingInstance` that the API server takes, in bytes.
const INSTANCE: usize = 128;
/// What the reported reasons are about.
const ACTION: &str = "Rollback";

/// Sends Events. Clones share what may be on its way.
#[derive(Clone)]
pub struct Events {
    client: kube::Client,
    /// Host name, which in a cluster is the pod's name.
    instance: String,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Events {
    /// Sends with rollbackd's own account, on tasks that `tasks` keeps.
    #[must_use]
    pub fn new(live: &Live, tasks: TaskTracker) -> Self {
        let host =
            hostname::get().ok().and_then(|name| name.into_string().ok()).filter(|name| !name.is_empty());
        let instance = cut(host.as_deref().unwrap_or(FIELD_MANAGER), INSTANCE).into_owned();
        let places = Arc::new(Semaphore::new(ON_THEIR_WAY));
        Self { client: live.client().clone(), instance, places, tasks }
    }

    /// Sends the Event of the state that a rollback has come to at `time`, if there is one. Returns at once.
    pub fn tell(&self, rollback: &Rollback, time: Timestamp) {
        let Some(event) = Event::of(rollback) else { return };
        let (id, reason) = (rollback.id, event.reason);
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            tracing::warn!(rollback = %id, reason, "an Event was dropped: too many are on their way");
            return;
        };
        let api: Api<v1::Event> = Api::namespaced(self.client.clone(), rollback.key.namespace.as_str());
        let object = self.object(rollback, event, time);
        self.tasks.spawn(async move {
            let sent = api.create(&PostParams::default(), &object).await;
            drop(place);
            match sent {
                Err(error) if !is_of_no_use(&error) => {
                    tracing::warn!(rollback = %id, reason, error = %causes(&error), "an Event could not be sent");
                }
                Ok(_) | Err(_) => {}
            }
        });
    }

    fn object(&self, rollback: &Rollback, event: Event, time: Timestamp) -> v1::Event {
        let namespace = Some(rollback.key.namespace.to_string());
        v1::Event {
            metadata: ObjectMeta {
                // The same whoever sends it: a state that is recorded twice is told once.
                name: Some(format!("rollback-{}.{}", rollback.id, rollback.state.as_str())),
                namespace: namespace.clone(),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(time)),
            type_: Some(event.severity.as_str().to_owned()),
            reason: Some(event.reason.to_owned()),
            action: Some(ACTION.to_owned()),
            note: Some(event.note),
            regarding: Some(ObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: Some("DaemonSet".to_owned()),
                namespace,
                name: Some(rollback.key.name.to_string()),
                uid: Some(rollback.uid.clone()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(FIELD_MANAGER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..v1::Event::default()
        }
    }
}

/// Whether nobody would miss the Event: it is there already, or its namespace is going or gone.
fn is_of_no_use(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    match status.code {
        404 | 409 => true,
        403 => causes.any(|cause| cause.reason == "NamespaceTerminating"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use http::{Request, Response};
    use kube::{client::Body, core::Status};
    use serde_json::json;
    use tower::BoxError;

    use super::*;
    use crate::{domain::fixtures, kubernetes::liveness::Liveness};

    #[tokio::test]
    async fn what_an_api_server_that_is_silent_does_not_take_is_dropped() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let silent = tower::service_fn(move |_: Request<Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<Result<Response<Body>, BoxError>>()
        });
        let client = kube::Client::new(silent, "default");
        let live = Live::new(client, Arc::new(Liveness::new(1)), Duration::from_secs(3600));
        let tasks = TaskTracker::new();
        let events = Events::new(&live, tasks.clone());
        for _ in 0..3 * ON_THEIR_WAY {
            events.tell(&fixtures::rollback(), Timestamp::UNIX_EPOCH);
        }
        assert_eq!(tasks.len(), ON_THEIR_WAY);
        while asked.load(Ordering::Relaxed) < ON_THEIR_WAY {
            tokio::task::yield_now().await;
        }
        // A place that gets free is used again.
        events.places.add_permits(1);
        events.tell(&fixtures::rollback(), Timestamp::UNIX_EPOCH);
        assert_eq!(tasks.len(), ON_THEIR_WAY + 1);
    }

    #[test]
    fn an_event_that_nobody_would_miss_makes_no_noise() {
        let refused = |code: u16, cause: &str| {
            let status = json!({
                "status": "Failure", "message": "no", "code": code,
                "details": {"causes": [{"reason": cause, "message": "no", "field": ""}]},
            });
            let status: Status = serde_json::from_value(status).unwrap();
            is_of_no_use(&kube::Error::Api(Box::new(status)))
        };
        assert!(refused(403, "NamespaceTerminating") && refused(404, "") && refused(409, ""));
        assert!(!refused(403, "") && !refused(422, "") && !refused(500, ""));
    }
}
