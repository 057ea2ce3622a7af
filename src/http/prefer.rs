//! `Prefer` (RFC 7240), of which `wait` is understood. A preference that nobody knows is, by that
//! standard, left alone; one that is known and makes no sense is refused.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::problem::{Kind, Problem};
use crate::rollbacks::Wait;

/// Longest wait, in seconds; a longer one is cut to it, and the answer says so.
pub const LONGEST: u64 = 60;

pub const PREFER: HeaderName = HeaderName::from_static("prefer");
pub const APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// For how long the caller wants to wait for the end.
///
/// # Errors
/// 400 when that is no number of seconds.
pub fn wait(request: &HeaderMap) -> Result<Option<Wait>, Problem> {
    let malformed = || {
        let detail = "expected wait=N, a whole number of seconds";
        Problem::header(Kind::InvalidRequest, "Prefer", detail)
    };
    for line in request.get_all(PREFER) {
        let line = line.to_str().map_err(|_| malformed())?;
        for preference in outside_quotes(line, ',') {
            let preference = outside_quotes(preference, ';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            if !name.trim().eq_ignore_ascii_case("wait") {
                continue;
            }
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(value);
            if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(malformed());
            }
            // Digits that are no number are more than there is. Of several the first counts.
            let seconds = value.parse().unwrap_or(LONGEST).min(LONGEST);
            return Ok(Some(Wait(Duration::from_secs(seconds))));
        }
    }
    Ok(None)
}

/// What `Preference-Applied` says of a wait.
pub fn applied(wait: Wait) -> HeaderValue {
    HeaderValue::from_str(&format!("wait={}", wait.0.as_secs())).expect("digits are a header's value")
}

/// The parts between the separators that stand in no quoted string.
fn outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        let separates = c == separator && !quoted;
        match c {
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = quoted && c == '\\' && !escaped;
        separates
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Option<u64>, Kind> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(PREFER, line.parse().unwrap());
        }
        wait(&headers).map(|wait| wait.map(|wait| wait.0.as_secs())).map_err(|problem| problem.kind)
    }

    #[test]
    fn wait_is_read_capped_and_refused_if_it_is_no_number() {
        for (lines, seconds) in [
            (&[][..], None),
            (&["respond-async, return=minimal"], None),
            (&[r#"x="a, wait=9""#], None),
            (&[r#"x="\", wait=9""#], None),
            (&["wait=5"], Some(5)),
            (&["wait=0"], Some(0)),
            (&["respond-async", "Wait = \"7\"; x=y"], Some(7)),
            (&["wait=5, wait=9", "wait=1"], Some(5)),
            (&["wait=61"], Some(60)),
            (&["wait=99999999999999999999999"], Some(60)),
        ] {
            assert_eq!(read(lines), Ok(seconds), "{lines:?}");
        }
        for malformed in ["wait", "wait=", "wait=-1", "wait=1.5", "wait=5s", "wait=+5", "wait=\"", "wait;x=5"]
        {
            assert_eq!(read(&[malformed]), Err(Kind::InvalidRequest), "{malformed}");
        }
    }
}
