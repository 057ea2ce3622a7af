//! `GET …/revisions`: what `kubectl rollout history` shows, and more.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, header};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{
    super::{
        App, Freshness, etag,
        extract::{From, PathParams, Query, Target},
        negotiate::{Form, negotiate},
        problem::{Kind, Problem, ProblemBody},
    },
    daemonsets::{NoQuery, link},
};
use crate::{
    domain::{
        access::Access,
        diff::yaml,
        key::Key,
        kubectl,
        revision::{InvalidRevision, NoSuchRevision, RevisionNumber, RevisionRef},
        template::{ContainerImage, NotRestorable},
    },
    kubernetes::{
        ClusterError,
        watch::{KnownHistory, KnownRevision},
    },
};

/// One revision of a DaemonSet.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Revision)]
pub struct RevisionView {
    /// The number; it rises when the revision is rolled back to.
    pub revision: RevisionNumber,
    /// Name of the ControllerRevision; it stays.
    #[schema(examples("agent-854b6d86d"))]
    pub controller_revision: String,
    /// Value of the label `controller-revision-hash`, which its pods carry too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// Whether its template is the running one.
    pub current: bool,
    /// The DaemonSet's change-cause when the revision was new.
    #[schema(required)]
    pub change_cause: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    pub images: Vec<ContainerImage>,
    /// Whether it can be rolled back to.
    pub restorable: bool,
    /// Why it can't be rolled back to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_restorable_reason: Option<String>,
    pub links: RevisionLinks,
}

/// Where a revision is, relative to the server's root.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct RevisionLinks {
    /// By the ControllerRevision's name, so that the link stays right when the number rises.
    #[serde(rename = "self")]
    pub this: String,
    pub rollback: String,
}

/// The revisions of a DaemonSet, ascending by number.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = RevisionList)]
pub struct RevisionList {
    pub items: Vec<RevisionView>,
    /// Present and true when the watch is dead and this may be old.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

/// A revision with its pod template.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct RevisionDetail {
    #[serde(flatten)]
    pub revision: RevisionView,
    /// The pod template; null if it is not restorable.
    #[schema(required, value_type = Option<Object>)]
    pub template: Option<Value>,
    /// Present and true when the watch is dead and this may be old.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

impl RevisionView {
    fn of(key: &Key, history: &KnownHistory, revision: &KnownRevision) -> Self {
        let name = &revision.controller_revision;
        Self {
            revision: revision.number,
            controller_revision: name.clone(),
            hash: revision.hash.clone(),
            current: history.is_current(revision),
            change_cause: revision.change_cause.clone(),
            created_at: revision.created_at,
            images: revision.template.as_ref().map(|template| template.images().to_vec()).unwrap_or_default(),
            restorable: revision.template.is_ok(),
            not_restorable_reason: revision.template.as_ref().err().map(NotRestorable::to_string),
            links: RevisionLinks {
                this: format!("{}/revisions/{name}", link(key)),
                rollback: format!("{}/rollback", link(key)),
            },
        }
    }
}

/// List the revisions of a DaemonSet
///
/// What `kubectl rollout history` shows: same numbers, same change-causes.
#[utoipa::path(
    get, path = "/daemonsets/{namespace}/{name}/revisions", tag = "revisions",
    params(
        ("namespace" = String, Path, description = "Name of a namespace", example = "monitoring"),
        ("name" = String, Path, description = "Name of a DaemonSet", example = "agent"),
        ("If-None-Match" = Option<String>, Header, description = "Entity tags that the caller has"),
    ),
    responses(
        (status = 200, description = "The revisions, ascending; as text, the output of `kubectl rollout history`", headers(("ETag" = String, description = "uid.generation.hash; of JSON only")), content(
            (RevisionList = "application/json"),
            (String = "text/plain", example = "daemonset.apps/agent \nREVISION  CHANGE-CAUSE\n1         first image\n2         <none>\n\n"),
        )),
        (status = 304, description = "The caller has this already"),
        (status = "4XX", description = "The request can't be answered", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The cluster has not been seen yet, or not for long", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn list_revisions(
    State(app): State<App>,
    From(caller): From,
    Target(key): Target,
    headers: HeaderMap,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Response, Problem> {
    let form = negotiate(&headers, &[Form::Json, Form::Text])?;
    app.authority.require(&caller, Access::get_daemonset(&key)).await?;
    app.authority.require(&caller, Access::list_revisions(&key.namespace)).await?;
    let freshness = app.freshness()?;
    let daemonset = app.daemonset(&caller, &key).await?;
    let history = app.history(&caller, &daemonset).await?;
    if form == Form::Text {
        return Ok(text(kubectl::history(&key.name, &history), freshness));
    }
    let items =
        history.revisions().iter().map(|revision| RevisionView::of(&key, &history, revision)).collect();
    Ok(etag::json(&headers, &daemonset, &RevisionList { items, stale: freshness.is_stale() }))
}

/// Look into a revision
///
/// Its pod template, as JSON, as YAML, or as `kubectl rollout history --revision` prints it.
#[utoipa::path(
    get, path = "/daemonsets/{namespace}/{name}/revisions/{revision}", tag = "revisions",
    params(
        ("namespace" = String, Path, description = "Name of a namespace", example = "monitoring"),
        ("name" = String, Path, description = "Name of a DaemonSet", example = "agent"),
        ("revision" = String, Path, description = "A revision's number, or the name of its ControllerRevision, which does not change", example = "2"),
        ("If-None-Match" = Option<String>, Header, description = "Entity tags that the caller has"),
    ),
    responses(
        (status = 200, description = "The revision; as YAML, the pod template alone", headers(("ETag" = String, description = "uid.generation.hash; of JSON only")), content(
            (RevisionDetail = "application/json"),
            (String = "application/yaml"),
            (String = "text/plain"),
        )),
        (status = 304, description = "The caller has this already"),
        (status = 404, description = "No such DaemonSet or revision", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Several revisions have this number, or its data holds no pod template to show as YAML or text", body = ProblemBody, content_type = "application/problem+json"),
        (status = "4XX", description = "The request can't be answered", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The cluster has not been seen yet, or not for long", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn get_revision(
    State(app): State<App>,
    From(caller): From,
    Target(key): Target,
    params: PathParams,
    headers: HeaderMap,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Response, Problem> {
    let form = negotiate(&headers, &[Form::Json, Form::Yaml, Form::Text])?;
    let wanted: RevisionRef = params.get("revision").parse().map_err(malformed)?;
    app.authority.require(&caller, Access::get_daemonset(&key)).await?;
    app.authority.require(&caller, right(&key, &wanted)).await?;
    let freshness = app.freshness()?;
    let daemonset = app.daemonset(&caller, &key).await?;
    let history = app.reader.history_with(caller.asker(), &daemonset, &wanted).await?;
    let revision = history.find(&wanted).map_err(|missing| not_found(&wanted, missing))?;
    let template =
        app.reader.template(caller.asker(), &key, revision).await.map_err(|error| match error {
            ClusterError::NotFound => not_found(&wanted, NoSuchRevision::Unknown),
            error => error.into(),
        })?;
    match form {
        Form::Yaml => {
            let template = template.map_err(|reason| not_restorable(revision, &reason))?;
            Ok(answer(Form::Yaml, yaml(&template.value()), freshness))
        }
        Form::Text => {
            let template = template.map_err(|reason| not_restorable(revision, &reason))?;
            Ok(text(kubectl::revision(&key.name, revision.number, &template), freshness))
        }
        Form::Json | Form::EventStream | Form::NdJson => {
            let detail = RevisionDetail {
                revision: RevisionView::of(&key, &history, revision),
                template: template.ok().map(|template| template.value()),
                stale: freshness.is_stale(),
            };
            Ok(etag::json(&headers, &daemonset, &detail))
        }
    }
}

/// Which number a revision has is found out by a look at all of them, so that only a name is asked about
/// by name.
fn right(key: &Key, wanted: &RevisionRef) -> Access {
    match wanted {
        RevisionRef::Number(_) => Access::get_revisions(&key.namespace),
        RevisionRef::ControllerRevision(name) => Access::get_revision(&key.namespace, name),
    }
}

/// kubectl's words, which name the parameter already.
fn malformed(error: InvalidRevision) -> Problem {
    let mut problem = Problem::parameter("revision", error.to_string());
    problem.detail = error.to_string();
    problem
}

fn not_found(wanted: &RevisionRef, missing: NoSuchRevision) -> Problem {
    match missing {
        // kubectl's words, from `rollout_history.go`.
        NoSuchRevision::Unknown => {
            Problem::new(Kind::RevisionNotFound, "unable to find the specified revision")
        }
        NoSuchRevision::Ambiguous(names) => Problem::new(
            Kind::AmbiguousRevision,
            format!("revision {wanted} is ambiguous: ask for one of {}", names.join(", ")),
        ),
    }
}

fn not_restorable(revision: &KnownRevision, reason: &NotRestorable) -> Problem {
    let name = &revision.controller_revision;
    Problem::new(Kind::NotRestorable, format!("ControllerRevision {name} holds no pod template: {reason}"))
}

fn answer(form: Form, body: String, freshness: Freshness) -> Response {
    let mut response = ([(header::CONTENT_TYPE, form.content_type())], body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache"));
    if freshness.is_stale() {
        let warning = http::HeaderValue::from_static("299 - \"stale: the watch of the cluster is dead\"");
        response.headers_mut().insert(header::WARNING, warning);
    }
    response
}

/// An answer in kubectl's own output.
pub fn text(body: String, freshness: Freshness) -> Response {
    answer(Form::Text, body, freshness)
}
