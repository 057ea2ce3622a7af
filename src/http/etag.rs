//! Entity tags: `"<uid>.<generation>.<hash of the representation>"`.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::domain::daemonset::DaemonSet;

/// The entity tag of one representation of a DaemonSet.
#[must_use]
pub fn etag(uid: &str, generation: i64, representation: &[u8]) -> String {
    let digest = Sha256::digest(representation);
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{uid}.{generation}.{hash}\"")
}

/// Answers with JSON and an entity tag; with 304 if the caller has it already (`If-None-Match`).
pub fn json(request: &HeaderMap, daemonset: &DaemonSet, view: &impl Serialize) -> Response {
    let body = serde_json::to_vec(view).expect("a view has string keys");
    let tag = etag(&daemonset.uid, daemonset.generation, &body);
    let known = known(request, &tag);
    let value = HeaderValue::from_str(&tag).expect("a uid is printable");
    let headers = [
        (header::ETAG, value),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
    ];
    if known { (StatusCode::NOT_MODIFIED, headers).into_response() } else { (headers, body).into_response() }
}

/// Weak comparison, as RFC 9110, 13.1.2 asks for.
fn known(request: &HeaderMap, tag: &str) -> bool {
    let values = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}
