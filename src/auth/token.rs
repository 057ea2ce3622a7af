//! Bearer tokens. They are kept in memory only, and never shown.

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// SHA-256 of something that is remembered by its digest.
pub(super) type Digest = [u8; 32];

/// Longest token; those of Kubernetes have about 1,000 characters.
const LONGEST: usize = 16 * 1024;

/// A bearer token of a caller.
#[derive(Clone)]
pub struct Token(Arc<str>);

/// What a JSON Web Token says of itself. Nothing of it is believed before the token is reviewed.
#[derive(Default, Deserialize)]
struct Claims {
    exp: Option<f64>,
    iss: Option<String>,
    aud: Option<Audiences>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

impl Token {
    /// Takes the value of `Authorization`; `None` if it is no bearer token as RFC 6750 writes one.
    #[must_use]
    pub fn from_header(value: &str) -> Option<Self> {
        let (scheme, token) = value.split_once(' ')?;
        let token = token.trim();
        let in_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        let fits = (1..=LONGEST).contains(&token.len()) && token.bytes().all(in_token);
        (scheme.eq_ignore_ascii_case("bearer") && fits).then(|| Self(token.into()))
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }

    pub(super) fn digest(&self) -> Digest {
        Sha256::digest(self.0.as_bytes()).into()
    }

    /// When it expires, if it is a JSON Web Token that says so.
    pub(super) fn expires_at(&self) -> Option<Timestamp> {
        let seconds = self.claims()?.exp?;
        #[expect(clippy::cast_possible_truncation, reason = "a time beyond i64 is none")]
        Timestamp::from_second(seconds as i64).ok()
    }

    /// Whether it is a JSON Web Token that says it was made by this issuer.
    pub(super) fn names_issuer(&self, issuer: &str) -> bool {
        self.claims().and_then(|claims| claims.iss).is_some_and(|named| named == issuer)
    }

    /// Whether it is a JSON Web Token that says it was made for this audience.
    pub(super) fn names_audience(&self, audience: &str) -> bool {
        match self.claims().and_then(|claims| claims.aud) {
            Some(Audiences::One(one)) => one == audience,
            Some(Audiences::Several(several)) => several.iter().any(|one| one == audience),
            None => false,
        }
    }

    fn claims(&self) -> Option<Claims> {
        let mut parts = self.0.split('.');
        let (Some(_), Some(payload), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(payload: &str) -> Token {
        Token::from_header(&format!("Bearer e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))).unwrap()
    }

    #[test]
    fn a_bearer_token_is_read_as_rfc_6750_writes_it() {
        for value in ["Bearer a.b-c_d~e+f/g==", "bearer x", "BEARER  x"] {
            assert!(Token::from_header(value).is_some(), "{value}");
        }
        let long = format!("Bearer {}", "a".repeat(LONGEST + 1));
        for value in ["", "Bearer", "Bearer ", "Basic eDp5", "x", "Bearer a b", "Bearer \u{e9}", &long] {
            assert!(Token::from_header(value).is_none(), "{value}");
        }
        assert_eq!(format!("{:?}", jwt("{}")), "Token(…)");
    }

    #[test]
    fn a_jwt_says_when_it_expires_and_for_whom_it_is() {
        let token = jwt(r#"{"exp": 1000000000, "aud": ["rollbackd", "x"]}"#);
        assert_eq!(token.expires_at(), Timestamp::from_second(1_000_000_000).ok());
        assert!(token.names_audience("rollbackd") && !token.names_audience("y"));
        let token = jwt(r#"{"iss": "https://kubernetes.default.svc"}"#);
        assert!(token.names_issuer("https://kubernetes.default.svc") && !token.names_issuer(""));
        assert!(jwt(r#"{"aud": "rollbackd"}"#).names_audience("rollbackd"));
        for odd in
            [jwt("{}"), jwt("[]"), jwt(r#"{"exp": "soon"}"#), Token::from_header("Bearer opaque").unwrap()]
        {
            assert_eq!((odd.expires_at(), odd.names_audience("rollbackd")), (None, false));
        }
    }
}
