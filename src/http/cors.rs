//! Which web pages of other origins may read answers (`--cors-origin`): none, unless they are named.
//!
//! A browser sends no token by itself, so that a page can only use one that it holds. Cookies and
//! other credentials that a browser would add are not allowed.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::{
    caller::{IMPERSONATE_GROUP, IMPERSONATE_USER},
    idempotency::{KEY, REPLAYED},
    prefer::{APPLIED, PREFER},
};

/// For how long a browser may remember the answer to its question before a request.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What these origins' pages may send and read.
pub fn layer(origins: &[HeaderValue]) -> CorsLayer {
    let named = HeaderName::from_static;
    let sent = [
        header::ACCEPT,
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        KEY,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        IMPERSONATE_GROUP,
        IMPERSONATE_USER,
        named("last-event-id"),
        PREFER,
        named("traceparent"),
        named("x-request-id"),
    ];
    let read = [
        header::ETAG,
        header::LOCATION,
        APPLIED,
        REPLAYED,
        header::RETRY_AFTER,
        header::WARNING,
        header::WWW_AUTHENTICATE,
        named("x-request-id"),
    ];
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.iter().cloned()))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(sent)
        .expose_headers(read)
        .max_age(REMEMBERED)
}
