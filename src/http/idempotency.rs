//! `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07): a quoted string of RFC 9651. The bare
//! form, as many clients send it, means the same.

use http::{HeaderMap, HeaderName};

use super::problem::{Kind, Problem};
use crate::rollbacks::IdempotencyKey;

pub const KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The key that the caller has given the request.
///
/// # Errors
/// 400 when it can't be read, is too long, or there are several.
pub fn key(request: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let wrong = |detail: String| Problem::header(Kind::InvalidRequest, "Idempotency-Key", detail);
    let mut values = request.get_all(KEY).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value,
        (Some(_), Some(_)) => return Err(wrong("expected it once".to_owned())),
    };
    let text = value.to_str().ok().map(str::trim);
    let malformed = || wrong("expected printable ASCII in double quotes".to_owned());
    let text = text.and_then(|text| if text.starts_with('"') { quoted(text) } else { bare(text) });
    let key = IdempotencyKey::new(text.ok_or_else(malformed)?);
    key.map(Some).map_err(|error| wrong(error.to_string()))
}

fn quoted(text: &str) -> Option<String> {
    let inside = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut key = String::new();
    let mut characters = inside.chars();
    while let Some(c) = characters.next() {
        key.push(match c {
            '\\' => characters.next().filter(|c| ['"', '\\'].contains(c))?,
            ' '..='!' | '#'..='~' => c,
            _ => return None,
        });
    }
    Some(key)
}

/// A separator would make it a list, or give it parameters: that it is not meant so can't be told.
fn bare(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_graphic() && !['"', '\\', ',', ';'].contains(&c);
    text.chars().all(plain).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Option<IdempotencyKey>, Kind> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(KEY, line.parse().unwrap());
        }
        key(&headers).map_err(|problem| problem.kind)
    }

    #[test]
    fn a_key_is_a_quoted_string_or_a_bare_one() {
        let longest = "k".repeat(255);
        for (line, text) in [
            ("\"8e03978e-40d5\"", "8e03978e-40d5"),
            ("8e03978e-40d5", "8e03978e-40d5"),
            ("  \"a b, c; d\" ", "a b, c; d"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            ("YWJj+/=", "YWJj+/="),
            (&longest, &longest),
            (&format!("\"{longest}\""), &longest),
        ] {
            assert_eq!(read(&[line]), Ok(Some(IdempotencyKey::new(text).unwrap())), "{line}");
        }
        assert_eq!(read(&[]), Ok(None));
        let long = "k".repeat(256);
        for line in [
            "",
            "\"\"",
            "\"",
            "\"a",
            "a\"",
            "a b",
            "a,b",
            "a;b=c",
            "\"a\";b=c",
            r#""a\b""#,
            "\"a\"b\"",
            &long,
        ] {
            assert_eq!(read(&[line]), Err(Kind::InvalidRequest), "{line}");
        }
        assert_eq!(read(&["a", "a"]), Err(Kind::InvalidRequest));
    }
}
