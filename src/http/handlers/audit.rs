//! `GET /audit` and `GET /audit/head`: who did what, and why, and what holds all of it.

use std::collections::HashSet;

use axum::{
    Json as JsonAnswer,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};

use super::{
    super::{
        App,
        extract::{From, Query, number, time},
        negotiate::{Form, negotiate},
        page,
        problem::{Problem, ProblemBody},
    },
    daemonsets::NoQuery,
    entries::Reading,
};
use crate::{
    audit::{Action, Entry, EntryFilter, Head, Order, Outcome, Sequence},
    auth::{Caller, Seen},
    domain::{
        access::Access,
        key::{Name, Namespace},
    },
};

/// Namespaces that are looked up for a caller without a right to all: more than one request asks about.
const CANDIDATES: u32 = 1000;

/// Entries that one NDJSON answer holds at most.
const EXPORT: u32 = 10_000;

/// One entry of the audit.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AuditEntry {
    /// Place in the audit, starting at 1.
    #[schema(value_type = i64, examples(42))]
    pub sequence: Sequence,
    #[serde(flatten)]
    pub entry: Entry,
}

/// A page of entries.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AuditList {
    pub items: Vec<AuditEntry>,
    /// Leads to the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    namespace: Option<Namespace>,
    name: Option<Name>,
    actor: Option<String>,
    action: Option<Action>,
    outcome: Option<Outcome>,
    since: Option<String>,
    until: Option<String>,
    after: Option<String>,
    #[serde(skip_serializing)]
    limit: Option<String>,
    #[serde(skip_serializing)]
    r#continue: Option<String>,
}

/// Read the audit
///
/// Newest first; with `after`, ascending from there. As `application/x-ndjson` it is one entry a line,
/// ascending, at most 10,000 of them; the last line's `sequence` as `after` leads on, until nothing comes.
#[utoipa::path(
    get, path = "/audit", tag = "audit",
    params(
        ("namespace" = Option<String>, Query, description = "Only of this namespace"),
        ("name" = Option<String>, Query, description = "Only of DaemonSets of this name"),
        ("actor" = Option<String>, Query, description = "Only asked for by this user"),
        ("action" = Option<Action>, Query, description = "Only about this"),
        ("outcome" = Option<Outcome>, Query, description = "Only with this outcome"),
        ("since" = Option<String>, Query, format = DateTime, description = "Only at or after this RFC 3339 time", example = "2026-11-23T03:00:00Z"),
        ("until" = Option<String>, Query, format = DateTime, description = "Only before this RFC 3339 time"),
        ("after" = Option<i64>, Query, description = "Only after this sequence number, ascending", minimum = 0),
        ("limit" = Option<u32>, Query, description = "Items on a page, 1 to 1000 (100 if not given); as NDJSON, 1 to 10000 (10000 if not given)", minimum = 1, maximum = 10000),
        ("continue" = Option<String>, Query, description = "Value of `continue` of the page before"),
    ),
    responses(
        (status = 200, description = "A page of entries", content(
            (AuditList = "application/json"),
            (String = "application/x-ndjson"),
        )),
        (status = "4XX", description = "The request can't be answered", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The audit store is out of reach", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn list_audit_entries(
    State(app): State<App>,
    From(caller): From,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let form = negotiate(&headers, &[Form::Json, Form::NdJson])?;
    let after: Option<Sequence> = number("after", query.after.as_deref(), 0..=Sequence::MAX)?;
    let export = form == Form::NdJson;
    if export && query.r#continue.is_some() {
        return Err(Problem::parameter("continue", "expected after instead: an export has no pages"));
    }
    let limit = if export {
        page::limit(query.limit.as_deref(), EXPORT, EXPORT)?
    } else {
        page::limit(query.limit.as_deref(), 100, 1000)?
    };
    let last: Option<Sequence> = page::after(query.r#continue.as_deref(), &query)?;
    let order = match (after, export) {
        (None, false) => Order::NewestFirst { before: last },
        (after, _) => Order::OldestFirst { after: last.or(after).unwrap_or_default() },
    };
    let filter = EntryFilter { within: within(&app, &caller, &query).await?, ..query.filter()? };
    if export {
        let reading = Reading::begin(app.store.clone(), filter, order, limit).await?;
        let content_type = Form::NdJson.content_type();
        return Ok(([(header::CONTENT_TYPE, content_type)], reading.into_lines()).into_response());
    }
    let reading = Reading::begin(app.store.clone(), filter, order, limit + 1).await?;
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    Ok((content_type, reading.into_list(limit, query)).into_response())
}

/// Get the audit's head
///
/// The hash of the last entry, and with it of all before it. Kept where rollbackd's store is out of reach, it
/// is what `rollbackd audit verify --anchor` holds the store to. Needs the right to read the whole audit.
#[utoipa::path(
    get, path = "/audit/head", tag = "audit",
    responses(
        (status = 200, description = "Where the audit ends", body = Head),
        (status = "4XX", description = "The request can't be answered", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The audit store is out of reach", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn get_audit_head(
    State(app): State<App>,
    From(caller): From,
    headers: HeaderMap,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<JsonAnswer<Head>, Problem> {
    negotiate(&headers, &[Form::Json])?;
    app.authority.require(&caller, Access::read_audit(None)).await?;
    Ok(JsonAnswer(app.store.head().await?))
}

/// The namespaces whose entries the caller may read, if not all of those asked for.
async fn within(app: &App, caller: &Caller, query: &ListQuery) -> Result<Option<Vec<Namespace>>, Problem> {
    if let Some(namespace) = &query.namespace {
        app.authority.require(caller, Access::read_audit(Some(namespace))).await?;
        return Ok(None);
    }
    if app.authority.may(caller, &Access::read_audit(None)).await? {
        return Ok(None);
    }
    // Who is denied names a namespace that need not exist: too many of those to ask about must keep nobody out.
    let served: HashSet<Namespace> = app.cache.index().namespaces();
    let audited = app.store.audited_namespaces(&served, CANDIDATES).await?;
    match app.authority.seen_by(caller, Access::read_audit, audited).await? {
        Seen::All => Ok(None),
        Seen::Only(namespaces) => Ok(Some(namespaces.into_iter().collect())),
    }
}

impl ListQuery {
    fn filter(&self) -> Result<EntryFilter, Problem> {
        Ok(EntryFilter {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            actor: self.actor.clone(),
            action: self.action,
            outcome: self.outcome,
            since: time("since", self.since.as_deref())?,
            until: time("until", self.until.as_deref())?,
            within: None,
        })
    }
}
