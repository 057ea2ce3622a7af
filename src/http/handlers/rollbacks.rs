//! `GET /rollbacks…`: the rollbacks made here, as long-running operations.

use std::collections::HashSet;

use axum::{
    Json as JsonAnswer,
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, TryStreamExt};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    super::{
        App, Depth,
        etag::etag,
        extract::{From, PathParams, Query, time},
        negotiate::{Form, negotiate},
        page,
        problem::{Kind, Problem, ProblemBody},
        sse,
    },
    daemonsets::{NoQuery, link},
};
use crate::{
    audit::{RollbackFilter, RollbackScope},
    auth::{AuthError, Caller, Seen},
    domain::{
        access::Access,
        actor::Actor,
        key::{Name, Namespace},
        revision::RevisionNumber,
        rollback::{RevisionInfo, Rollback, RollbackState, Warning},
    },
};

/// One rollback, from its request to its end.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Rollback)]
pub struct RollbackView {
    pub id: Uuid,
    /// `--cluster-name` of this rollbackd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    pub state: RollbackState,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The generation that the rollback made; `links.status` speaks of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// The revision that ran before; absent where none was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<RevisionInfo>,
    /// The revision that was restored, by its number at that time.
    pub to: RevisionInfo,
    /// The number that the restored revision got.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_revision: Option<RevisionNumber>,
    pub warnings: Vec<Warning>,
    /// What happened last, in one sentence.
    pub message: String,
    pub requested_by: Actor,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<Actor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Id of the request that asked for it.
    pub request_id: String,
    pub requested_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Entity tag: uid, generation, and a hash that changes with the state.
    pub etag: String,
    pub links: RollbackLinks,
}

/// Where a rollback and its DaemonSet are, relative to the server's root.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollbackLinks {
    #[serde(rename = "self")]
    #[schema(examples("rollbacks/01936b5e-7d0a-7f43-9c7e-2f3f6a0b1c2d"))]
    pub this: String,
    #[serde(rename = "daemonset")]
    pub daemon_set: String,
    /// The rollout of the generation that the rollback made.
    #[schema(examples("daemonsets/monitoring/agent/status?generation=4"))]
    pub status: String,
}

/// A page of rollbacks, newest first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct RollbackList {
    pub items: Vec<RollbackView>,
    /// Leads to the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl RollbackView {
    /// Takes what callers see of a rollback.
    #[must_use]
    pub fn of(app: &App, rollback: &Rollback, depth: Depth) -> Self {
        let daemon_set = link(&rollback.key);
        let generation = rollback.generation.map(|generation| format!("?generation={generation}"));
        let state = format!("{}{}", rollback.id, rollback.state.as_str());
        Self {
            id: rollback.id,
            cluster: app.cluster_name.clone(),
            state: rollback.state,
            namespace: rollback.key.namespace.to_string(),
            name: rollback.key.name.to_string(),
            uid: rollback.uid.clone(),
            generation: rollback.generation,
            from: rollback.from.clone().map(|from| shown(from, depth)),
            to: shown(rollback.to.clone(), depth),
            new_revision: rollback.new_revision,
            warnings: rollback.warnings.clone(),
            message: rollback.message.clone(),
            requested_by: rollback.origin.requested_by.clone(),
            on_behalf_of: rollback.origin.on_behalf_of.clone(),
            reason: rollback.origin.reason.clone(),
            request_id: rollback.origin.request_id.clone(),
            requested_at: rollback.requested_at,
            ended_at: rollback.ended_at,
            etag: etag(&rollback.uid, rollback.generation.unwrap_or_default(), state.as_bytes()),
            links: RollbackLinks {
                this: format!("rollbacks/{}", rollback.id),
                status: format!("{daemon_set}/status{}", generation.unwrap_or_default()),
                daemon_set,
            },
        }
    }
}

/// A revision as a caller sees it.
#[must_use]
pub fn shown(mut revision: RevisionInfo, depth: Depth) -> RevisionInfo {
    if depth == Depth::Numbers {
        revision.images.clear();
    }
    revision
}

/// Whether a caller sees a rollback: their own, and those of DaemonSets that they may read.
async fn sees(app: &App, caller: &Caller, rollback: &Rollback) -> Result<bool, Problem> {
    if caller.asked_for(rollback) {
        return Ok(true);
    }
    let (key, namespace) = (&rollback.key, &rollback.key.namespace);
    let rights =
        [Access::get_daemonsets(None), Access::get_daemonsets(Some(namespace)), Access::get_daemonset(key)];
    for right in rights {
        if app.authority.may(caller, &right).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// DaemonSets that one request may ask about by name.
const UNSEEN: usize = 1000;
/// Of those, so many at once.
const AT_ONCE: usize = 8;
/// DaemonSets that are looked up for a caller without a right to all.
const CANDIDATES: u32 = 10_000;

/// How many rollbacks are read at once where some on the way can't be shown.
const LATER_BATCH: u32 = 1000;

/// The rollbacks that the caller sees, if not all: their own, and those of DaemonSets that they may read.
async fn scope(
    app: &App,
    caller: &Caller,
    filter: &RollbackFilter,
) -> Result<Option<RollbackScope>, Problem> {
    let may = async |right| app.authority.may(caller, &right).await;
    if may(Access::get_daemonsets(None)).await? {
        return Ok(None);
    }
    let too_many = || AuthError::TooManyNamespaces(caller.denied(Access::get_daemonsets(None)));
    let (namespace, name) = (filter.namespace.as_ref(), filter.name.as_ref());
    let recorded = app.store.rolled_back(namespace, name, CANDIDATES).await?;
    if recorded.len() == CANDIDATES as usize {
        return Err(too_many().into());
    }
    let namespaces = recorded.iter().map(|key| key.namespace.clone()).collect();
    let whole = match app.authority.seen_by(caller, Access::get_daemonsets, namespaces).await {
        Ok(Seen::All) => return Ok(None),
        Ok(Seen::Only(namespaces)) => namespaces,
        Err(AuthError::Denied(_)) => HashSet::new(),
        Err(error) => return Err(error.into()),
    };
    let others: Vec<_> = recorded.into_iter().filter(|key| !whole.contains(&key.namespace)).collect();
    if others.len() > UNSEEN {
        return Err(too_many().into());
    }
    let asking = others.into_iter().map(async |key| {
        let allowed = may(Access::get_daemonset(&key)).await?;
        Ok::<_, Problem>(allowed.then_some(key))
    });
    let answers = futures_util::stream::iter(asking).buffer_unordered(AT_ONCE);
    let daemonsets = answers.try_filter_map(async |allowed| Ok(allowed)).try_collect().await?;
    let asker = caller.user().map(ToOwned::to_owned);
    Ok(Some(RollbackScope { namespaces: whole.into_iter().collect(), daemonsets, asker }))
}

/// The first rollbacks that the caller sees, at most `limit`: on until they are found or all are read, since where
/// the reading ends must not tell of what the caller may not see.
async fn visible(
    app: &App,
    caller: &Caller,
    mut filter: RollbackFilter,
    limit: u32,
) -> Result<Vec<Rollback>, Problem> {
    filter.within = scope(app, caller, &filter).await?;
    let mut seen = Vec::new();
    let mut batch = limit;
    loop {
        let found = app.store.rollbacks(&filter, batch).await?;
        let all = found.len() < batch as usize;
        filter.before = found.last().map(|rollback| rollback.id);
        for rollback in found {
            // One by a user of the same name and another uid is not the caller's.
            if sees(app, caller, &rollback).await? {
                seen.push(rollback);
                if seen.len() == limit as usize {
                    return Ok(seen);
                }
            }
        }
        if all {
            return Ok(seen);
        }
        batch = LATER_BATCH;
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    namespace: Option<Namespace>,
    name: Option<Name>,
    state: Option<RollbackState>,
    actor: Option<String>,
    since: Option<String>,
    #[serde(skip_serializing)]
    limit: Option<String>,
    #[serde(skip_serializing)]
    r#continue: Option<String>,
}

/// List the rollbacks made here
///
/// Those of DaemonSets that the caller may `get`, and the caller's own. Nothing tells of others.
#[utoipa::path(
    get, path = "/rollbacks", tag = "rollbacks",
    params(
        ("namespace" = Option<String>, Query, description = "Only of this namespace"),
        ("name" = Option<String>, Query, description = "Only of DaemonSets of this name"),
        ("state" = Option<RollbackState>, Query, description = "Only in this state"),
        ("actor" = Option<String>, Query, description = "Only asked for by this user"),
        ("since" = Option<String>, Query, format = DateTime, description = "Only requested at or after this RFC 3339 time", example = "2026-11-23T03:00:00Z"),
        ("limit" = Option<u32>, Query, description = "Items on a page, 1 to 1000; 100 if not given", minimum = 1, maximum = 1000),
        ("continue" = Option<String>, Query, description = "Value of `continue` of the page before"),
    ),
    responses(
        (status = 200, description = "A page of rollbacks, newest first", body = RollbackList),
        (status = "4XX", description = "The request can't be answered", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The audit store is out of reach", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn list_rollbacks(
    State(app): State<App>,
    From(caller): From,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<RollbackList>, Problem> {
    negotiate(&headers, &[Form::Json])?;
    let limit = page::limit(query.limit.as_deref(), 100, 1000)?;
    let before = page::after(query.r#continue.as_deref(), &query)?;
    let filter = RollbackFilter {
        namespace: query.namespace.clone(),
        name: query.name.clone(),
        state: query.state,
        actor: query.actor.clone(),
        since: time("since", query.since.as_deref())?,
        before,
        within: None,
    };
    let most = limit as usize;
    let mut seen = visible(&app, &caller, filter, limit + 1).await?;
    let more = seen.len() > most;
    seen.truncate(most);
    let next = seen.last().filter(|_| more).map(|rollback| page::token(&rollback.id, &query));
    let mut items = Vec::new();
    for rollback in seen {
        let depth = app.depth(&caller, &rollback.key.namespace).await;
        items.push(RollbackView::of(&app, &rollback, depth));
    }
    Ok(JsonAnswer(RollbackList { items, next }))
}

/// Get or follow a rollback
///
/// With `Accept: text/event-stream` it is a stream of server-sent events, each with the
/// rollback as data: `state` now and at each change, and `ended` at
/// the end of the rollback, after which the stream ends. A reconnect whose `Last-Event-ID` names that
/// event is answered 204.
#[utoipa::path(
    get, path = "/rollbacks/{id}", tag = "rollbacks",
    params(
        ("id" = Uuid, Path, description = "Id of a rollback"),
        ("Last-Event-ID" = Option<String>, Header, description = "Id of the last event that was received"),
    ),
    responses(
        (status = 200, description = "The rollback", content(
            (RollbackView = "application/json"),
            (RollbackView = "text/event-stream"),
        )),
        (status = 204, description = "The stream that `Last-Event-ID` speaks of has ended"),
        (status = 404, description = "No such rollback, or none that the caller may see", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "Too many event streams are open, in total or of this user, or the share of reviews is used up", body = ProblemBody, content_type = "application/problem+json"),
        (status = "4XX", description = "The request can't be answered", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The audit store is out of reach", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn get_rollback(
    State(app): State<App>,
    From(caller): From,
    params: PathParams,
    headers: HeaderMap,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Response, Problem> {
    let form = negotiate(&headers, &[Form::Json, Form::EventStream])?;
    let id = Uuid::try_parse(params.get("id")).map_err(|_| Problem::parameter("id", "expected a UUID"))?;
    // The open one is watched before the store is read: it can't end unseen in between.
    let states = app.rollbacks.watch(id).await?;
    let recorded = match (app.store.rollback(id).await, &states) {
        (Ok(recorded), _) => recorded.ok_or_else(|| no_rollback(id))?,
        // What is open here is known without the store.
        (Err(_), Some(states)) => states.borrow().as_ref().clone(),
        (Err(error), None) => return Err(error.into()),
    };
    if !sees(&app, &caller, &recorded).await? {
        return Err(no_rollback(id));
    }
    let depth = app.depth(&caller, &recorded.key.namespace).await;
    if form == Form::Json {
        let headers = [(header::CACHE_CONTROL, "no-cache")];
        return Ok((headers, JsonAnswer(RollbackView::of(&app, &recorded, depth))).into_response());
    }
    let right = (!caller.asked_for(&recorded)).then(|| Access::get_daemonset(&recorded.key));
    Ok(match states {
        Some(states) => {
            let permit = app.streams.open(caller.user())?;
            sse::response(sse::rollback(app, states, depth, (caller, permit), right))
        }
        None if sse::last_event_id(&headers) == Some(&sse::rollback_event_id(&recorded)) => {
            StatusCode::NO_CONTENT.into_response()
        }
        None => sse::response(sse::ended(&app, &recorded, depth)),
    })
}

/// Also where there is one that the caller may not see.
fn no_rollback(id: Uuid) -> Problem {
    Problem::new(Kind::RollbackNotFound, format!("no rollback {id} was made here"))
}
