//! Pages of a list: `limit`, and `continue`, which is the last key, opaque, and bound to the filters
//! that it was made for.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{extract::number, problem::Problem};

#[derive(Serialize, Deserialize)]
struct Token<K> {
    last: K,
    filters: String,
}

/// How many items a page holds.
///
/// # Errors
/// 400 when `limit` is not from 1 to `most`.
pub fn limit(text: Option<&str>, usual: u32, most: u32) -> Result<u32, Problem> {
    Ok(number("limit", text, 1..=most)?.unwrap_or(usual))
}

/// The `continue` that leads on from `last`.
#[must_use]
pub fn token(last: &impl Serialize, filters: &impl Serialize) -> String {
    let token = Token { last, filters: digest(filters) };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("a token has string keys"))
}

/// The key after which the page starts.
///
/// # Errors
/// 400 when the text is no token of ours, or was made for other filters.
pub fn after<K: DeserializeOwned>(
    text: Option<&str>,
    filters: &impl Serialize,
) -> Result<Option<K>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    let token: Option<Token<K>> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match token {
        Some(token) if token.filters == digest(filters) => Ok(Some(token.last)),
        Some(_) => Err(Problem::parameter(
            "continue",
            "it was made for other filters: send those again, or leave it out",
        )),
        None => Err(Problem::parameter("continue", "expected the value of continue from the page before")),
    }
}

fn digest(filters: &impl Serialize) -> String {
    let json = serde_json::to_vec(filters).expect("filters have string keys");
    URL_SAFE_NO_PAD.encode(&Sha256::digest(json)[..9])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_on_and_is_bound_to_its_filters() {
        let text = token(&7, &("a", None::<u32>));
        assert_eq!(after::<i64>(Some(&text), &("a", None::<u32>)).unwrap(), Some(7));
        assert!(after::<i64>(Some(&text), &("b", None::<u32>)).is_err());
        for text in ["", "7", "é", "e30"] {
            assert!(after::<i64>(Some(text), &()).is_err(), "{text}");
        }
        assert_eq!(after::<i64>(None, &()).unwrap(), None);
    }
}
