//! Entity tags: `"<uid>.<generation>.<hash of the representation>"`.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::problem::{Kind, Problem};
use crate::domain::{
    daemonset::WatchedDaemonSet,
    rollback::{Precondition, Version},
};

/// The entity tag of one representation of a DaemonSet.
#[must_use]
pub fn etag(uid: &str, generation: i64, representation: &[u8]) -> String {
    let digest = Sha256::digest(representation);
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{uid}.{generation}.{hash}\"")
}

/// Answers with JSON and an entity tag; with 304 if the caller has it already (`If-None-Match`).
pub fn json(request: &HeaderMap, daemonset: &WatchedDaemonSet, view: &impl Serialize) -> Response {
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

/// What `If-Match` asks to hold. Of a tag of ours uid and generation count and the hash does not, so that
/// a change of status fails nobody's precondition. A weak tag never matches (RFC 9110, 13.1.1).
///
/// # Errors
/// 400 when it is no list of entity tags.
pub fn precondition(request: &HeaderMap) -> Result<Precondition, Problem> {
    let malformed = || {
        let detail = "expected \"*\", or entity tags in double quotes, such as an answer's etag";
        Problem::header(Kind::InvalidRequest, "If-Match", detail)
    };
    let mut lines = Vec::new();
    for value in request.get_all(header::IF_MATCH) {
        lines.push(value.to_str().map_err(|_| malformed())?);
    }
    if lines.is_empty() {
        return Ok(Precondition::Unconditional);
    }
    let list = lines.join(",");
    if list.trim() == "*" {
        return Ok(Precondition::Exists);
    }
    let tags = tags(&list).filter(|tags| !tags.is_empty()).ok_or_else(malformed)?;
    let strong = tags.into_iter().filter_map(|(weak, tag)| (!weak).then_some(tag));
    Ok(Precondition::OneOf(strong.filter_map(version).collect()))
}

/// The tags of a list, each with whether it is weak; `None` if it is no such list.
fn tags(list: &str) -> Option<Vec<(bool, &str)>> {
    let mut tags = Vec::new();
    let mut rest = list;
    loop {
        // Empty elements are allowed (RFC 9110, 5.6.1).
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return Some(tags);
        }
        let (weak, opened) = match rest.strip_prefix("W/") {
            Some(opened) => (true, opened),
            None => (false, rest),
        };
        let (tag, after) = opened.strip_prefix('"')?.split_once('"')?;
        if !tag.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x7e)) {
            return None;
        }
        tags.push((weak, tag));
        rest = after.trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with(',') {
            return None;
        }
    }
}

/// What a tag of ours names; `None` if it is not ours.
fn version(tag: &str) -> Option<Version> {
    let (rest, _hash) = tag.rsplit_once('.')?;
    let (uid, generation) = rest.rsplit_once('.')?;
    Some(Version { uid: uid.to_owned(), generation: generation.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Precondition, Kind> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::IF_MATCH, line.parse().unwrap());
        }
        precondition(&headers).map_err(|problem| problem.kind)
    }

    #[test]
    fn if_match_is_a_star_or_a_list_of_tags_of_which_the_strong_ones_of_ours_count() {
        let one = |uid: &str, generation| Version { uid: uid.into(), generation };
        assert_eq!(read(&[]), Ok(Precondition::Unconditional));
        assert_eq!(read(&[" * "]), Ok(Precondition::Exists));
        let of = |versions| Ok(Precondition::OneOf(versions));
        assert_eq!(read(&["\"u-1.4.ab\""]), of(vec![one("u-1", 4)]));
        assert_eq!(
            read(&["\"a.1.x\" ,, \"b.2.y\"", "\"c.3.z\""]),
            of(vec![one("a", 1), one("b", 2), one("c", 3)])
        );
        assert_eq!(read(&["W/\"a.1.x\", \"x,y\", \"\", \"a.b.c\""]), of(Vec::new()));
        for malformed in
            ["", ",", "a.1.x", "\"a.1.x", "\"a.1.x\" \"b.2.y\"", "*, \"a.1.x\"", "w/\"a.1.x\"", "\"a b\""]
        {
            assert_eq!(read(&[malformed]), Err(Kind::InvalidRequest), "{malformed}");
        }
    }

    #[test]
    fn a_tag_of_ours_names_its_version() {
        let tag = etag("7f9c2ba4-e88f", 12, b"anything");
        assert_eq!(
            read(&[&tag]),
            Ok(Precondition::OneOf(vec![Version { uid: "7f9c2ba4-e88f".into(), generation: 12 }]))
        );
    }
}
