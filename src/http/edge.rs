//! What every request passes through, outermost: it gets an id, its answer is logged and counted, and a
//! [`Problem`] is written in the form that the caller accepts.

use std::{any::Any, net::IpAddr, sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use tracing::Instrument;
use uuid::Uuid;

use super::{
    App,
    caller::Source,
    connections::{Held, UnderWay},
    negotiate,
    problem::{Kind, Problem},
    refusals::Refusals,
};
use crate::{
    domain::text::{cut, escape},
    telemetry::Metrics,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Of a path, so many bytes are logged, and are in a problem.
pub const LONGEST_PATH: usize = 256;
/// Of a method, so many bytes are logged.
pub const LONGEST_METHOD: usize = 32;
/// What the metrics count for a caller who went away before the answer; no status that is ever sent.
const GONE_AWAY: u16 = 499;

/// The request's id, for handlers.
#[derive(Clone, Debug)]
pub struct Id(pub String);

/// Takes a request in and lets its answer out.
pub async fn edge(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let path = cut(request.uri().path(), LONGEST_PATH).into_owned();
    let plain = negotiate::wants_plain_errors(request.headers());
    let span = tracing::info_span!(
        "request",
        request_id = %id,
        traceparent = traceparent(&request).map(tracing::field::display),
    );
    let mut access = Access {
        metrics: app.metrics.clone(),
        refusals: app.refusals.clone(),
        address: Source::of(request.extensions(), request.headers(), &app).0,
        span: span.clone(),
        method: cut(request.method().as_str(), LONGEST_METHOD).into_owned(),
        path: path.clone(),
        route: request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()),
        started: Instant::now(),
        status: None,
    };
    request.extensions_mut().insert(Id(id.clone()));

    let under_way = request.extensions_mut().remove::<Arc<UnderWay>>();

    let mut response = next.run(request).instrument(span).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let mut headers = std::mem::take(response.headers_mut());
        headers.remove(header::CONTENT_LENGTH);
        response = problem.render(headers, &path, &id, plain);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    // Answers and errors alike take the form that `Accept` asks for.
    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept"));
    access.status = Some(response.status());
    response.map(|body| Body::new(Held::new(body, under_way)))
}

/// Logs and counts one request when it ends, also if its caller went away before the answer.
struct Access {
    metrics: Metrics,
    refusals: Refusals,
    address: IpAddr,
    span: tracing::Span,
    method: String,
    path: String,
    route: Option<String>,
    started: Instant,
    status: Option<StatusCode>,
}

impl Drop for Access {
    fn drop(&mut self) {
        let _in_span = self.span.enter();
        let taken = self.started.elapsed();
        let milliseconds = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
        // A bounded set: whatever was not matched is one route.
        let route = self.route.as_deref().unwrap_or("unmatched");
        let (method, path) = (&self.method, escape(&self.path));
        let status = self.status.map_or(GONE_AWAY, |status| status.as_u16());
        self.metrics.request(route, status, taken);
        let failed = status >= 500 && !matches!(status, 501 | 503);
        let probe = status < 400 && matches!(route, "/livez" | "/readyz" | "/metrics");
        // What needs no token must not fill the log.
        let open =
            status >= 400 || route.starts_with("/docs") || matches!(route, "/openapi.json" | "unmatched");
        if probe || (open && !failed && !self.refusals.log(self.address)) {
            return;
        }
        if failed {
            tracing::error!(%method, %path, status, milliseconds, "request failed");
        } else if self.status.is_none() {
            tracing::info!(%method, %path, milliseconds, "the caller went away");
        } else {
            tracing::info!(%method, %path, status, milliseconds, "request");
        }
    }
}

/// A handler has panicked: a bug, told as one.
pub fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unknown");
    tracing::error!(panic = %escape(message), "a handler panicked");
    Problem::new(Kind::Internal, "rollbackd failed to answer; its log has more under the request id")
        .into_response()
}

/// The caller's own id if it can stand in a log and a header, else a new one.
fn request_id(request: &Request) -> String {
    let fits = |id: &&str| {
        (1..=128).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
    };
    let sent = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(fits);
    sent.map_or_else(|| Uuid::now_v7().to_string(), ToOwned::to_owned)
}

/// The caller's trace, if it is well-formed (W3C Trace Context, version 00).
fn traceparent(request: &Request) -> Option<&str> {
    let value = request.headers().get("traceparent")?.to_str().ok()?;
    let hex = |text: &str, length| {
        text.len() == length
            && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let parts: Vec<&str> = value.split('-').collect();
    let fits = matches!(parts.as_slice(), ["00", trace, parent, flags] if hex(trace, 32) && hex(parent, 16) && hex(flags, 2));
    fits.then_some(value)
}
