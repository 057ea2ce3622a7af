//! Version, probes and metrics.

use axum::{
    Json as JsonAnswer,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};

use super::{
    super::{
        App, MAX_BODY, Open, Writes,
        extract::{From, Query},
        problem::Problem,
    },
    daemonsets::NoQuery,
};

/// Versions and limits.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// Version of rollbackd.
    #[schema(examples("0.1.0"))]
    pub version: &'static str,
    /// `--cluster-name`.
    #[schema(required)]
    pub cluster: Option<String>,
    /// Version of the API server; null until it has answered.
    #[schema(required, examples("v1.37.2"))]
    pub kubernetes_version: Option<String>,
    /// Whether every rollback is refused: `--read-only`.
    pub read_only: bool,
    pub limits: VersionLimits,
}

/// What requests are held to.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionLimits {
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Longest reason, in characters.
    pub max_reason_characters: usize,
    /// Whether a rollback needs a reason.
    pub reason_required: bool,
}

/// Get versions and limits
#[utoipa::path(get, path = "/version", tag = "operations", responses(
    (status = 200, description = "Versions and limits", body = Version),
    (status = "4XX", description = "The request can't be answered", body = super::super::problem::ProblemBody, content_type = "application/problem+json"),
))]
pub async fn get_version(
    State(app): State<App>,
    _: From,
    Query(NoQuery {}): Query<NoQuery>,
) -> JsonAnswer<Version> {
    JsonAnswer(Version {
        version: env!("CARGO_PKG_VERSION"),
        cluster: app.cluster_name.clone(),
        kubernetes_version: app.health.version(),
        read_only: app.writes == Writes::Refused,
        limits: VersionLimits {
            max_body_bytes: MAX_BODY,
            max_reason_characters: super::rollback::MAX_REASON,
            reason_required: app.require_reason,
        },
    })
}

/// Tell whether the process works
#[utoipa::path(get, path = "/livez", tag = "operations", security(()), responses(
    (status = 200, description = "It does", body = String, content_type = "text/plain", example = "ok"),
    (status = "4XX", description = "The request can't be answered", body = super::super::problem::ProblemBody, content_type = "application/problem+json"),
))]
pub async fn get_liveness() -> &'static str {
    "ok"
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeQuery {
    verbose: Option<String>,
}

/// Tell whether requests should be sent here
///
/// Ready once the cluster has been read and the audit store is open; not ready any more when stopping.
/// A store that fails later is told by `verbose`, and does not make it unready: reads and streams go on.
#[utoipa::path(get, path = "/readyz", tag = "operations", security(()),
    params(("verbose" = Option<String>, Query, description = "Tell each check")),
    responses(
        (status = 200, description = "They should", body = String, content_type = "text/plain", example = "ok"),
        (status = 503, description = "They should not; each check is told", body = String, content_type = "text/plain", example = "[-]watches not synced\n[+]store ok\n[+]shutdown ok\nreadyz check failed\n"),
        (status = "4XX", description = "The request can't be answered", body = super::super::problem::ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn get_readiness(
    State(app): State<App>,
    Query(query): Query<ProbeQuery>,
) -> Result<Response, Problem> {
    let synced = app.cache.is_ready();
    let draining = app.draining.is_cancelled();
    let ready = synced && !draining;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let plain = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    if ready && query.verbose.is_none() {
        return Ok((status, plain, "ok").into_response());
    }
    let staleness = app.cache.liveness().worst();
    let watches = match (synced, staleness >= app.limits.stale_after) {
        (false, _) => "[-]watches not synced".to_owned(),
        (true, true) => format!("[+]watches stale for {} s", staleness.as_secs()),
        (true, false) => "[+]watches ok".to_owned(),
    };
    let store = match app.store.trouble().await {
        None => "[+]store ok".to_owned(),
        Some(trouble) => format!("[+]store degraded: no rollback can be recorded: {trouble}"),
    };
    let shutdown = if draining { "[-]shutdown in progress" } else { "[+]shutdown ok" };
    let verdict = if ready { "readyz check passed" } else { "readyz check failed" };
    Ok((status, plain, format!("{watches}\n{store}\n{shutdown}\n{verdict}\n")).into_response())
}

/// Get metrics
///
/// Without a token only if rollbackd was started with `--anonymous metrics`.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses(
    (status = 200, description = "All metrics, in the OpenMetrics text format", body = String, content_type = "application/openmetrics-text"),
    (status = "4XX", description = "The request can't be answered", body = super::super::problem::ProblemBody, content_type = "application/problem+json"),
))]
pub async fn get_metrics(State(app): State<App>, from: Result<From, Problem>) -> Result<Response, Problem> {
    if !app.open.contains(&Open::Metrics) {
        from?;
    }
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], app.metrics.render()).into_response())
}
