//! `GET /daemonsets…`: summaries.

use std::cell::Cell;

use axum::{Json as JsonAnswer, extract::State, response::Response};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::{
    App, Freshness, Writes, etag,
    extract::{From, InNamespace, Query, Target},
    negotiate::{Form, negotiate},
    page,
    problem::{Problem, ProblemBody},
};
use crate::{
    auth::Caller,
    domain::{
        access::Access,
        daemonset::{Counts, UpdateStrategy, WatchedDaemonSet},
        key::{Key, Namespace},
        managers::ManagedBy,
        revision::RevisionNumber,
        rollout::{Phase, Rollout},
        template::ContainerImage,
    },
    kubernetes::{
        selector::LabelSelector,
        watch::{Extent, KnownHistory, Shown},
    },
};

/// One DaemonSet at a glance.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaemonSetSummary {
    #[schema(examples("monitoring"))]
    pub namespace: String,
    #[schema(examples("agent"))]
    pub name: String,
    /// `--cluster-name` of this rollbackd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    pub uid: String,
    pub generation: i64,
    /// The revision that equals the running template; absent until the controller has recorded it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<RevisionNumber>,
    /// The current revision's change-cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_cause: Option<String>,
    pub images: Vec<ContainerImage>,
    pub update_strategy: UpdateStrategy,
    pub phase: Phase,
    /// kubectl's sentence on the rollout.
    pub message: String,
    #[serde(flatten)]
    pub counts: Counts,
    /// The tools that keep its manifest and may bring their own pod template back after a rollback, the most
    /// decisive first.
    pub managed_by: Vec<ManagedBy>,
    /// Id of the newest rollback that has not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_rollback: Option<Uuid>,
    pub links: DaemonSetLinks,
    /// What the caller may do here; with `include=permissions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Permissions>,
    /// Present and true in a list when the DaemonSet or its revisions are too large to be kept in memory: images,
    /// what keeps its manifest, or the current revision may be left out. Get the DaemonSet by itself for all of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Present and true when the watch is dead and this may be old.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

/// What a caller may do with a DaemonSet: for a page that greys out what would be refused. Each request
/// is reviewed again.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Permissions {
    /// Roll it back, and try to.
    pub roll_back: bool,
    /// Change anything of it, so that also a revision that was put there by hand can be rolled back to.
    pub patch: bool,
    /// List its revisions.
    pub list_revisions: bool,
    /// Read their pod templates, and the images in rollbacks.
    pub read_revisions: bool,
    /// Read the audit of its namespace.
    pub read_audit: bool,
}

impl Permissions {
    async fn of(app: &App, caller: &Caller, key: &Key) -> Result<Self, Problem> {
        let may = async |access| app.authority.may(caller, &access).await;
        let patch = may(Access::patch_daemonset(key)).await?;
        Ok(Self {
            roll_back: app.writes == Writes::Allowed && (patch || may(Access::roll_back(key)).await?),
            patch,
            list_revisions: may(Access::list_revisions(&key.namespace)).await?,
            read_revisions: may(Access::get_revisions(&key.namespace)).await?,
            read_audit: may(Access::read_audit(Some(&key.namespace))).await?,
        })
    }
}

/// Where a DaemonSet's parts are, relative to the server's root.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaemonSetLinks {
    #[serde(rename = "self")]
    #[schema(examples("daemonsets/monitoring/agent"))]
    pub this: String,
    pub revisions: String,
    pub status: String,
    pub rollback: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_rollback: Option<String>,
}

/// A page of DaemonSets, ordered by namespace and name.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DaemonSetList {
    pub items: Vec<DaemonSetSummary>,
    /// Leads to the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Present and true when DaemonSets may be missing: there are more in the cluster than rollbackd has memory for
    /// (`--index-memory`), or the labels of one are too large to be kept and could not be selected by.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Present and true when the watch is dead and this may be old.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

/// Path of a DaemonSet, relative to the server's root, so that it survives a proxy's prefix.
#[must_use]
pub fn link(key: &Key) -> String {
    format!("daemonsets/{}/{}", key.namespace, key.name)
}

impl DaemonSetSummary {
    fn of(
        app: &App,
        daemonset: &WatchedDaemonSet,
        history: Option<&KnownHistory>,
        freshness: Freshness,
    ) -> Self {
        let rollout = Rollout::of(daemonset);
        let current = history.and_then(KnownHistory::current);
        let open_rollback = app.rollbacks.open(&daemonset.key).map(|rollback| rollback.id);
        let this = link(&daemonset.key);
        Self {
            namespace: daemonset.key.namespace.to_string(),
            name: daemonset.key.name.to_string(),
            cluster: app.cluster_name.clone(),
            uid: daemonset.uid.clone(),
            generation: daemonset.generation,
            current_revision: current.map(|revision| revision.number),
            change_cause: current.and_then(|revision| revision.change_cause.clone()),
            images: daemonset.template.images().to_vec(),
            update_strategy: daemonset.strategy,
            phase: rollout.phase,
            message: rollout.message,
            counts: daemonset.status,
            managed_by: daemonset.managed_by(),
            open_rollback,
            links: DaemonSetLinks {
                revisions: format!("{this}/revisions"),
                status: format!("{this}/status"),
                rollback: format!("{this}/rollback"),
                open_rollback: open_rollback.map(|id| format!("rollbacks/{id}")),
                this,
            },
            permissions: None,
            partial: history.is_none(),
            stale: freshness.is_stale(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListQuery {
    label_selector: Option<String>,
    limit: Option<String>,
    r#continue: Option<String>,
}

/// List the DaemonSets of all namespaces
#[utoipa::path(
    get, path = "/daemonsets", tag = "daemonsets",
    params(
        ("labelSelector" = Option<String>, Query, description = "Only DaemonSets with these labels, in Kubernetes' own syntax", example = "app=agent,tier in (edge,core)"),
        ("limit" = Option<u32>, Query, description = "Items on a page, 1 to 1000; 500 if not given", minimum = 1, maximum = 1000),
        ("continue" = Option<String>, Query, description = "Value of `continue` of the page before"),
    ),
    responses(
        (status = 200, description = "A page of DaemonSets", body = DaemonSetList),
        (status = "4XX", description = "The request can't be answered", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The cluster has not been seen yet, or not for long", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn list_daemon_sets(
    State(app): State<App>,
    From(caller): From,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<DaemonSetList>, Problem> {
    negotiate(&headers, &[Form::Json])?;
    let namespaces = app.cache.index().namespaces();
    let seen = app.authority.seen_by(&caller, Access::list_daemonsets, namespaces).await?;
    list(&app, None, |namespace| seen.contains(namespace), &query)
}

/// List the DaemonSets of one namespace
#[utoipa::path(
    get, path = "/daemonsets/{namespace}", tag = "daemonsets",
    params(
        ("namespace" = String, Path, description = "Name of a namespace", example = "monitoring"),
        ("labelSelector" = Option<String>, Query, description = "Only DaemonSets with these labels, in Kubernetes' own syntax", example = "app=agent,tier in (edge,core)"),
        ("limit" = Option<u32>, Query, description = "Items on a page, 1 to 1000; 500 if not given", minimum = 1, maximum = 1000),
        ("continue" = Option<String>, Query, description = "Value of `continue` of the page before"),
    ),
    responses(
        (status = 200, description = "A page of DaemonSets; empty, too, for a namespace that does not exist", body = DaemonSetList),
        (status = "4XX", description = "The request can't be answered", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The cluster has not been seen yet, or not for long", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn list_namespaced_daemon_sets(
    State(app): State<App>,
    From(caller): From,
    InNamespace(namespace): InNamespace,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<JsonAnswer<DaemonSetList>, Problem> {
    negotiate(&headers, &[Form::Json])?;
    app.authority.require(&caller, Access::list_daemonsets(Some(&namespace))).await?;
    list(&app, Some(&namespace), |it| *it == namespace, &query)
}

fn list(
    app: &App,
    namespace: Option<&Namespace>,
    visible: impl Fn(&Namespace) -> bool,
    query: &ListQuery,
) -> Result<JsonAnswer<DaemonSetList>, Problem> {
    let freshness = app.freshness()?;
    let limit = page::limit(query.limit.as_deref(), 500, 1000)?;
    let selector = query.label_selector.as_deref().unwrap_or_default();
    let labels = LabelSelector::parse(selector)
        .map_err(|error| Problem::parameter("labelSelector", error.to_string()))?;
    let filters = (namespace, selector);
    let after: Option<Key> = page::after(query.r#continue.as_deref(), &filters)?;
    let unlabelled = Cell::new(false);
    let selected = |daemonset: &WatchedDaemonSet, extent| match extent {
        Extent::Abridged if !selector.is_empty() => {
            unlabelled.set(true);
            false
        }
        Extent::Whole | Extent::Abridged => labels.matches(&daemonset.labels),
    };
    let index = app.cache.index();
    let (shown, more) = index.page(visible, after.as_ref(), limit as usize, selected);
    let last = shown.last().filter(|_| more);
    let next = last.map(|last| page::token(&last.daemonset.key, &filters));
    let summary = |Shown { daemonset, history, .. }: &Shown| {
        DaemonSetSummary::of(app, daemonset, history.as_deref(), Freshness::Current)
    };
    let items = shown.iter().map(summary).collect();
    let partial = unlabelled.get() || index.lacks_daemonsets();
    Ok(JsonAnswer(DaemonSetList { items, next, partial, stale: freshness.is_stale() }))
}

/// Get one DaemonSet at a glance
#[utoipa::path(
    get, path = "/daemonsets/{namespace}/{name}", tag = "daemonsets",
    params(
        ("namespace" = String, Path, description = "Name of a namespace", example = "monitoring"),
        ("name" = String, Path, description = "Name of a DaemonSet", example = "agent"),
        ("include" = Option<Include>, Query, description = "What to tell beside"),
        ("If-None-Match" = Option<String>, Header, description = "Entity tags that the caller has"),
    ),
    responses(
        (status = 200, description = "The DaemonSet", body = DaemonSetSummary, headers(("ETag" = String, description = "uid.generation.hash"))),
        (status = 304, description = "The caller has this already"),
        (status = "4XX", description = "The request can't be answered", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The cluster has not been seen yet, or not for long", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn get_daemon_set(
    State(app): State<App>,
    From(caller): From,
    Target(key): Target,
    headers: HeaderMap,
    Query(query): Query<GetQuery>,
) -> Result<Response, Problem> {
    negotiate(&headers, &[Form::Json])?;
    app.authority.require(&caller, Access::get_daemonset(&key)).await?;
    let freshness = app.freshness()?;
    let daemonset = app.daemonset(&caller, &key).await?;
    let history = app.history(&caller, &daemonset).await?;
    let mut summary = DaemonSetSummary::of(&app, &daemonset, Some(&history), freshness);
    if let Some(Include::Permissions) = query.include {
        summary.permissions = Some(Permissions::of(&app, &caller, &key).await?);
    }
    Ok(etag::json(&headers, &daemonset, &summary))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetQuery {
    include: Option<Include>,
}

/// What to tell of a DaemonSet beside itself.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Include {
    /// What the caller may do with it.
    Permissions,
}

/// No query parameter is known.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoQuery {}
