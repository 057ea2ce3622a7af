//! `GET …/status`: the rollout now, or as it goes on.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;

use super::{
    super::{
        App,
        extract::{From, Query, Target, number},
        negotiate::{Form, negotiate},
        problem::{Kind, Problem, ProblemBody},
        sse::{self, Pinned, StaleEvent},
    },
    revisions::text,
};
use crate::{
    audit::RollbackFilter,
    auth::Caller,
    domain::{
        access::Access,
        daemonset::{Counts, UpdateStrategy, WatchedDaemonSet},
        key::Key,
        rollout::Phase,
        text::escape,
    },
    kubernetes::{ClusterError, Frame, FrameEvent, rollouts::Listener},
};

/// The state of a rollout; data of the events `progress`, `stalled`, `complete`, `deleted` and
/// `superseded`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    pub phase: Phase,
    /// kubectl's sentence.
    #[schema(examples(
        "Waiting for daemon set \"agent\" rollout to finish: 1 out of 3 new pods have been updated..."
    ))]
    pub message: String,
    /// What kubectl's sentence leaves out, where that could mislead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub generation: i64,
    /// Version of the DaemonSet that this was read from.
    pub resource_version: String,
    pub update_strategy: UpdateStrategy,
    #[serde(flatten)]
    pub counts: Counts,
    /// When rollbackd saw it.
    pub observed_at: Timestamp,
    /// Since when the rollout has stood still, if for longer than `--stall-after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stalled_since: Option<Timestamp>,
    /// Present and true when one generation was asked for and its pod template has been changed again: the
    /// rest speaks of what came after it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub superseded: bool,
    /// Present and true when the watch is dead and this may be old.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

impl RolloutStatus {
    /// Reads it off a frame.
    #[must_use]
    pub fn of(frame: &Frame) -> Self {
        Self::read(frame, frame.event == FrameEvent::Deleted)
    }

    /// Reads it off the last frame of a DaemonSet that is gone.
    #[must_use]
    pub fn of_gone(frame: &Frame) -> Self {
        Self::read(frame, true)
    }

    fn read(frame: &Frame, gone: bool) -> Self {
        let daemonset = &frame.daemonset;
        Self {
            phase: frame.rollout.phase,
            // kubectl's words for a deletion, from `rollout_status.go`.
            message: if gone { "object has been deleted".into() } else { frame.rollout.message.clone() },
            note: frame.rollout.note.filter(|_| !gone),
            namespace: daemonset.key.namespace.to_string(),
            name: daemonset.key.name.to_string(),
            uid: daemonset.uid.clone(),
            generation: daemonset.generation,
            resource_version: daemonset.resource_version.clone(),
            update_strategy: daemonset.strategy,
            counts: daemonset.status,
            observed_at: frame.observed_at,
            stalled_since: frame.stalled_since,
            superseded: false,
            stale: false,
        }
    }

    /// Said to whom asked for a generation that is none of it any more.
    #[must_use]
    pub fn superseding(self, generation: i64) -> Self {
        let message = format!("generation {generation} is superseded: the pod template was changed again");
        Self { superseded: true, message, note: None, ..self }
    }
}

/// Rollbacks of one DaemonSet in which the one that made a generation is looked for.
const RECENT: u32 = 100;

/// Data of an event of a rollout: of `stale` a StaleEvent, else the state of the rollout.
#[derive(utoipa::ToSchema)]
#[serde(untagged)]
pub enum RolloutEvent {
    Status(Box<RolloutStatus>),
    Stale(StaleEvent),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusQuery {
    generation: Option<String>,
}

/// Get or follow the status of a rollout
///
/// With `Accept: text/event-stream` it is a stream of server-sent events: first the state now, then
/// one event for each change, each with a RolloutStatus as data:
/// `progress`, `stalled` (it has not moved for `--stall-after`), and finally `complete`, `deleted`, or
/// `superseded` (with `generation`: the pod template was changed again), after which the stream ends.
/// `stale` (data: StaleEvent) says that the watch of the cluster has
/// died, or is back. A comment comes every 15 s. A reconnect whose `Last-Event-ID` names the final event
/// is answered 204. An event looks like this:
///
/// ```text
/// id: 5f1c….4.17
/// event: progress
/// data: {"phase":"updating","message":"Waiting for daemon set \"agent\" rollout to finish: 1 out of 3 new pods have been updated...", …}
/// ```
#[utoipa::path(
    get, path = "/daemonsets/{namespace}/{name}/status", tag = "status",
    params(
        ("namespace" = String, Path, description = "Name of a namespace", example = "monitoring"),
        ("name" = String, Path, description = "Name of a DaemonSet", example = "agent"),
        ("generation" = Option<i64>, Query, description = "Wait until this generation is seen, as the answer to a rollback names it: nothing older is told", minimum = 1),
        ("If-None-Match" = Option<String>, Header, description = "Entity tags that the caller has"),
        ("Last-Event-ID" = Option<String>, Header, description = "Id of the last event that was received"),
    ),
    responses(
        (status = 200, description = "The rollout; as text, the output of `kubectl rollout status --watch=false`; as a stream, the schema is that of each event's data", headers(("ETag" = String, description = "uid.generation.hash; of JSON only")), content(
            (RolloutStatus = "application/json"),
            (String = "text/plain", example = "daemon set \"agent\" successfully rolled out\n"),
            (RolloutEvent = "text/event-stream"),
        )),
        (status = 304, description = "The caller has this already"),
        (status = 204, description = "The stream that `Last-Event-ID` speaks of has ended"),
        (status = 404, description = "No such DaemonSet", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "The generation has not been made", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "Too many event streams are open, in total or of this user, or the share of reviews is used up", body = ProblemBody, content_type = "application/problem+json"),
        (status = "4XX", description = "The request can't be answered", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The cluster has not been seen yet, or not for long, or the generation not yet", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn get_rollout_status(
    State(app): State<App>,
    From(caller): From,
    Target(key): Target,
    headers: HeaderMap,
    Query(query): Query<StatusQuery>,
) -> Result<Response, Problem> {
    let form = negotiate(&headers, &[Form::Json, Form::Text, Form::EventStream])?;
    let generation = number("generation", query.generation.as_deref(), 1..=i64::MAX)?;
    let right = Access::get_daemonset(&key);
    app.authority.require(&caller, right.clone()).await?;
    let freshness = app.freshness()?;
    // Who asks right after a rollback was made here is not told of the template before it.
    let made = app.rollbacks.open(&key).and_then(|rollback| rollback.generation);
    let listener = join(&app, &caller, &key, generation.max(made)).await?;
    let frame = snapshot(&listener)?;
    let pinned = match generation {
        Some(generation) => Some(pin(&app, &frame.daemonset, generation).await),
        None => None,
    };
    let view = || {
        let view = RolloutStatus { stale: freshness.is_stale(), ..RolloutStatus::of(&frame) };
        let overtaken = pinned.filter(|pinned| pinned.clone().is_superseded_by(&frame.daemonset));
        match overtaken {
            Some(pinned) => view.superseding(pinned.generation),
            None => view,
        }
    };
    match form {
        Form::EventStream if sse::has_ended(&headers, &frame.daemonset) => {
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Form::EventStream => {
            let permit = app.streams.open(caller.user())?;
            Ok(sse::response(sse::rollout(app, key, listener, pinned, (caller, permit), right)))
        }
        Form::Text => {
            let view = view();
            let note = view.note.filter(|_| view.update_strategy == UpdateStrategy::OnDelete);
            let note = note.map(|note| format!(" ({note})")).unwrap_or_default();
            Ok(text(format!("{}{note}\n", escape(&view.message)), freshness))
        }
        Form::Json | Form::Yaml | Form::NdJson => {
            Ok(super::super::etag::json(&headers, &frame.daemonset, &view()))
        }
    }
}

/// The template of a generation: as the watch showed it, or, if this process has not seen it, as a
/// rollback that made the generation recorded it.
async fn pin(app: &App, daemonset: &WatchedDaemonSet, generation: i64) -> Pinned {
    let seen = app.cache.index().template_at(&daemonset.key, generation);
    if seen.is_some() {
        return Pinned { generation, template: seen };
    }
    let filter = RollbackFilter {
        namespace: Some(daemonset.key.namespace.clone()),
        name: Some(daemonset.key.name.clone()),
        ..RollbackFilter::default()
    };
    // A store that fails must not end reads and streams.
    let recorded = app.store.rollbacks(&filter, RECENT).await.unwrap_or_default().into_iter();
    let mut made =
        recorded.filter(|rollback| rollback.uid == daemonset.uid && rollback.generation == Some(generation));
    Pinned { generation, template: made.next().map(|rollback| rollback.template) }
}

fn snapshot(listener: &Listener) -> Result<Arc<Frame>, Problem> {
    listener.snapshot.clone().ok_or_else(behind)
}

fn behind() -> Problem {
    Problem::new(Kind::Behind, "this rollbackd has not seen the change yet")
        .retry_after(Duration::from_secs(1))
}

/// Joins the DaemonSet's listeners at a state of at least `generation`.
async fn join(app: &App, caller: &Caller, key: &Key, generation: Option<i64>) -> Result<Listener, Problem> {
    let mut listener = app.cache.index().listen(key);
    let reached = |frame: &Frame| {
        frame.event != FrameEvent::Deleted
            && generation.is_none_or(|generation| frame.daemonset.generation >= generation)
    };
    if listener.snapshot.as_deref().is_some_and(reached) {
        return Ok(listener);
    }
    if listener.snapshot.is_none() {
        // 404 at once, not after a wait, if there is no such DaemonSet.
        app.daemonset(caller, key).await?;
    }
    let waiting = async {
        loop {
            match listener.ring.recv().await {
                Ok(frame) if reached(&frame) => return Some(frame),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => {
                    let latest = app.cache.index().latest(key);
                    if latest.as_deref().is_some_and(reached) {
                        return latest;
                    }
                }
                Err(RecvError::Closed) => return None,
            }
        }
    };
    match tokio::time::timeout(app.limits.generation, waiting).await {
        Ok(Some(frame)) => Ok(Listener { snapshot: Some(frame), ring: listener.ring }),
        Ok(None) => Err(behind()),
        Err(_) => Err(unseen(app, key, generation).await),
    }
}

/// Why a generation has not been seen: not made yet, or this rollbackd is behind.
async fn unseen(app: &App, key: &Key, generation: Option<i64>) -> Problem {
    match app.live.daemonset(key).await {
        Ok(daemonset) => match generation {
            Some(generation) if daemonset.generation < generation => {
                let now = daemonset.generation;
                let detail =
                    format!("the DaemonSet is at generation {now}, and {generation} has not been made");
                Problem::parameter("generation", detail).of_kind(Kind::UnknownGeneration)
            }
            _ => behind(),
        },
        Err(ClusterError::NotFound) => Problem::no_daemonset(key),
        Err(error) => error.into(),
    }
}
