//! What stands in front of a server without authentication (`--auth none`), and which headers no
//! request may carry, or not there.
//!
//! Such a server holds somebody's kubeconfig. It listens on loopback only, but every web page that
//! this somebody opens can send requests there: so the host must be a loopback name (DNS
//! rebinding), a foreign page is refused, and a POST must have a content type that a page can't
//! send without asking first ([`super::extract::Json`]).

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri, Version,
    header::{self, CONTENT_TYPE, HOST, TRANSFER_ENCODING},
    uri,
};

use super::{
    App, MAX_HEADER, MAX_TARGET,
    caller::{IMPERSONATE_GROUP, IMPERSONATE_USER},
    extract::From,
    problem::{Kind, Problem},
};
use crate::auth::Authority;

/// Headers that only `POST …/rollback` knows. Elsewhere they are refused, never ignored.
const OF_ROLLBACKS: [&str; 3] = ["idempotency-key", "if-match", "prefer"];

/// Refuses what could be understood in two ways, or not at all: RFC 9112, 3.2 and 6.1; RFC 9110, 8.3.
///
/// # Errors
/// As a response: 400, 414, 431, 501.
pub async fn well_formed(request: Request, next: Next) -> Result<Response, Problem> {
    let headers = request.headers();
    let times = |name: &HeaderName| headers.get_all(name).iter().count();
    let least_hosts = usize::from(request.version() >= Version::HTTP_11);
    if !(least_hosts..=1).contains(&times(&HOST)) {
        return Err(Problem::header(Kind::InvalidRequest, "Host", "expected it once"));
    }
    if times(&CONTENT_TYPE) > 1 {
        return Err(Problem::header(Kind::InvalidRequest, "Content-Type", "expected it at most once"));
    }
    let is_chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if times(&TRANSFER_ENCODING) > 1 || !codings.all(is_chunked) {
        return Err(Problem::unknown_coding());
    }
    // hyper's limit is one of what it reads at once.
    let lines = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    if lines.sum::<usize>() > MAX_HEADER {
        return Err(Problem::large_header());
    }
    let target = request.uri();
    let authority = target.authority().map_or(0, |authority| authority.as_str().len());
    if authority + target.path_and_query().map_or(0, |path| path.as_str().len()) > MAX_TARGET {
        return Err(Problem::long_target());
    }
    Ok(next.run(request).await)
}

/// Refuses headers that would be ignored.
///
/// # Errors
/// As a response: 400.
pub async fn supported_headers(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let refused = |name: &str, why: &str| Err(Problem::header(Kind::UnsupportedHeader, name, why));
    if !is_rollback(&request)
        && let Some(name) = OF_ROLLBACKS.iter().find(|name| request.headers().contains_key(**name))
    {
        return refused(name, "only POST …/rollback takes it");
    }
    if is_rollback(&request) && request.headers().contains_key(header::IF_NONE_MATCH) {
        return refused("if-none-match", "a rollback takes If-Match");
    }
    for name in request.headers().keys().filter(|name| name.as_str().starts_with("impersonate-")) {
        let known = [IMPERSONATE_USER, IMPERSONATE_GROUP].contains(name);
        match app.authority {
            Authority::None | Authority::Sandbox => {
                let why = "acting for somebody else needs authentication, which is switched off here";
                return refused(name.as_str(), why);
            }
            Authority::Kubernetes(_) if !known => {
                return refused(name.as_str(), "only Impersonate-User and Impersonate-Group are supported");
            }
            Authority::Kubernetes(_) => {}
        }
    }
    Ok(next.run(request).await)
}

fn is_rollback(request: &Request) -> bool {
    let path = request.extensions().get::<MatchedPath>();
    request.method() == Method::POST && path.is_some_and(|path| path.as_str().ends_with("/rollback"))
}

/// Lets nobody in without a good token.
///
/// # Errors
/// As a response: 401.
pub async fn known_callers(_: From, request: Request, next: Next) -> Response {
    next.run(request).await
}

/// Refuses what a web page of another origin, or another machine, could have sent.
///
/// # Errors
/// As a response: 403.
pub async fn loopback_only(request: Request, next: Next) -> Result<Response, Problem> {
    let headers = request.headers();
    let asked_for = request.uri().authority();
    if !host(headers).as_ref().is_some_and(is_loopback) || !asked_for.is_none_or(is_loopback) {
        return Err(refuse("Host", "expected a loopback name such as localhost or 127.0.0.1"));
    }
    let ours = |origin: &HeaderValue| {
        let uri = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        uri.as_ref().and_then(Uri::authority).is_some_and(is_loopback)
    };
    if !headers.get_all(header::ORIGIN).iter().all(ours) {
        return Err(refuse("Origin", "expected the origin of a page served from this machine"));
    }
    let near = |site: &HeaderValue| matches!(site.as_bytes(), b"same-origin" | b"none");
    if !headers.get_all("sec-fetch-site").iter().all(near) {
        return Err(refuse("Sec-Fetch-Site", "expected same-origin or none"));
    }
    Ok(next.run(request).await)
}

fn refuse(header: &str, detail: &str) -> Problem {
    Problem::header(Kind::ForbiddenOrigin, header, detail)
}

/// The only `Host`.
fn host(headers: &HeaderMap) -> Option<uri::Authority> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok()?.parse().ok(),
        _ => None,
    }
}

fn is_loopback(authority: &uri::Authority) -> bool {
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_loopback() {
        for name in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.9.9.9:1", "[::1]:8080"] {
            assert!(is_loopback(&name.parse().unwrap()), "{name}");
        }
        for name in
            ["localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", "evil:80", "localhost."]
        {
            assert!(!is_loopback(&name.parse().unwrap()), "{name}");
        }
    }
}
