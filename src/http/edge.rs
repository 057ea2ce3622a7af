//! What every request passes through, outermost: it gets an id, its answer is logged and counted, and a
//! [`Problem`] is written in the form that the caller accepts.

use std::{any::Any, sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use tracing::Instrument;
use uuid::Uuid;

use super::{
    App,
    connections::{Held, UnderWay},
    negotiate,
    problem::{Kind, Problem},
};
use crate::{domain::text::escape, telemetry::Metrics};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What the metrics count for a caller who went away before the answer; no status that is ever sent.
const GONE_AWAY: u16 = 499;

/// The request's id, for handlers.
#[derive(Clone, Debug)]
pub struct Id(pub String);

/// Takes a request in and lets its answer out.
pub async fn edge(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let path = request.uri().path().to_owned();
    let plain = negotiate::wants_plain_errors(request.headers());
    let span = tracing::info_span!(
        "request",
        request_id = %id,
        traceparent = traceparent(&request).map(tracing::field::display),
    );
    let mut access = Access {
        metrics: app.metrics.clone(),
        span: span.clone(),
        method: request.method().clone(),
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
    span: tracing::Span,
    method: Method,
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
        let Some(status) = self.status else {
            self.metrics.request(route, GONE_AWAY, taken);
            tracing::info!(%method, %path, milliseconds, "the caller went away");
            return;
        };
        self.metrics.request(route, status.as_u16(), taken);
        if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
            tracing::error!(%method, %path, status = status.as_u16(), milliseconds, "request failed");
        } else if !matches!(route, "/livez" | "/readyz" | "/metrics") {
            tracing::info!(%method, %path, status = status.as_u16(), milliseconds, "request");
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
