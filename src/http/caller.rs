//! Who a request comes from, as its headers and its connection say.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
};

use axum::extract::{ConnectInfo, FromRequestParts};
use http::{Extensions, HeaderMap, HeaderName, header, request::Parts};
use ipnet::IpNet;

use super::{
    App,
    connections::network,
    problem::{Kind, Problem},
};
use crate::auth::{Age, Arrival, Authority, Claim, Payer, Token};

/// For whom a caller says to act.
pub const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
/// As a member of which groups.
pub const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");

/// Each of them is asked about.
const MOST_GROUPS: usize = 64;
/// Most characters of a name. Each is asked about, and recorded.
const LONGEST_NAME: usize = 512;
/// Most bytes of all groups together.
const GROUPS: usize = 4096;

/// Finds out who sent a request.
///
/// # Errors
/// 401 without a good token, 400 for headers that make no sense, 429 beyond the share of reviews.
pub async fn arrival(parts: &Parts, app: &App, age: Age) -> Result<Arrival, Problem> {
    let headers = &parts.headers;
    let (token, claim) = match app.authority {
        // A token that is sent all the same is not looked at.
        Authority::None | Authority::Sandbox => (None, None),
        Authority::Kubernetes(_) => (token(headers)?, claim(headers)?),
    };
    let payer = Payer::Address(network(Source::of(&parts.extensions, headers, app).0));
    Ok(app.authority.authenticate(token, claim, age, payer).await?)
}

fn token(headers: &HeaderMap) -> Result<Option<Token>, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), more) = (values.next(), values.next()) else { return Ok(None) };
    let token = value.to_str().ok().and_then(Token::from_header).filter(|_| more.is_none());
    token
        .map(Some)
        .ok_or_else(|| Problem::new(Kind::InvalidToken, "Authorization: expected one bearer token: Bearer …"))
}

fn claim(headers: &HeaderMap) -> Result<Option<Claim>, Problem> {
    let user = texts(headers, &IMPERSONATE_USER)?;
    let groups = texts(headers, &IMPERSONATE_GROUP)?;
    if groups.len() > MOST_GROUPS {
        let detail = format!("expected at most {MOST_GROUPS} groups");
        return Err(Problem::header(Kind::InvalidRequest, IMPERSONATE_GROUP.as_str(), detail));
    }
    if groups.iter().map(String::len).sum::<usize>() > GROUPS {
        let detail = format!("expected at most {GROUPS} characters in all groups together");
        return Err(Problem::header(Kind::InvalidRequest, IMPERSONATE_GROUP.as_str(), detail));
    }
    match <[String; 1]>::try_from(user) {
        Ok([user]) => Ok(Some(Claim::new(user, groups))),
        Err(user) if user.is_empty() && groups.is_empty() => Ok(None),
        Err(_) => {
            let detail = "expected once, wherever somebody acts for somebody else";
            Err(Problem::header(Kind::InvalidRequest, IMPERSONATE_USER.as_str(), detail))
        }
    }
}

/// All values of a header, each a name.
fn texts(headers: &HeaderMap, name: &HeaderName) -> Result<Vec<String>, Problem> {
    let text = |value: &http::HeaderValue| {
        let text = value.to_str().ok().filter(|text| !text.trim().is_empty() && text.len() <= LONGEST_NAME);
        text.map(ToOwned::to_owned)
    };
    let values: Option<Vec<String>> = headers.get_all(name).iter().map(text).collect();
    let expected = || {
        let detail = format!("expected some ASCII text of at most {LONGEST_NAME} characters");
        Problem::header(Kind::InvalidRequest, name.as_str(), detail)
    };
    values.ok_or_else(expected)
}

/// The address that a request comes from: of the TCP peer, or, behind a trusted proxy, as it says.
pub struct Source(pub IpAddr);

impl FromRequestParts<App> for Source {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions, &parts.headers, app))
    }
}

impl Source {
    /// Reads it off a request.
    pub fn of(extensions: &Extensions, headers: &HeaderMap, app: &App) -> Self {
        let peer = extensions.get::<ConnectInfo<SocketAddr>>();
        let peer = peer.map_or(IpAddr::from([0, 0, 0, 0]), |ConnectInfo(peer)| peer.ip());
        Self(source(peer, headers, &app.trusted_proxies))
    }
}

/// Follows `X-Forwarded-For` from its end, as far as each address is a trusted proxy's: what stands
/// before the first that is not could have been written by anybody.
fn source(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
    let mut address = peer.to_canonical();
    let values = headers.get_all("x-forwarded-for").iter().rev();
    let hops = values.flat_map(|value| value.to_str().unwrap_or_default().rsplit(','));
    for hop in hops {
        let Some(before) = forwarded(hop).filter(|_| is_trusted(&address)) else { break };
        address = before;
    }
    address
}

/// One entry of the header: an address, perhaps with a port.
fn forwarded(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let address = hop.parse::<IpAddr>().ok();
    let address = address.or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()));
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_trusted_proxy_is_believed_and_only_as_far_as_it_is_trusted() {
        let trusted: Vec<IpNet> =
            ["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"].map(|net| net.parse().unwrap()).to_vec();
        for (peer, forwarded, expected) in [
            ("203.0.113.7", &["198.51.100.1"][..], "203.0.113.7"),
            ("10.1.1.1", &[], "10.1.1.1"),
            ("10.1.1.1", &["198.51.100.1"], "198.51.100.1"),
            ("::ffff:10.1.1.1", &["198.51.100.1:4711"], "198.51.100.1"),
            ("10.1.1.1", &["1.2.3.4, 198.51.100.1, 192.0.2.1"], "198.51.100.1"),
            ("10.1.1.1", &["1.2.3.4", "198.51.100.1", "192.0.2.1"], "198.51.100.1"),
            ("10.1.1.1", &["1.2.3.4, unknown"], "10.1.1.1"),
            ("10.1.1.1", &["unknown, 192.0.2.1"], "192.0.2.1"),
            ("fd00::1", &["[2001:db8::1]:80"], "2001:db8::1"),
            ("fd00::1", &["[2001:db8::1]"], "2001:db8::1"),
            ("10.1.1.1", &[""], "10.1.1.1"),
        ] {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", value.parse().unwrap());
            }
            let found = source(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(found, expected.parse::<IpAddr>().unwrap(), "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn groups_without_a_user_and_two_users_make_no_sense() {
        let claim = |pairs: &[(HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(name, value.parse().unwrap());
            }
            claim(&headers).map(|claim| claim.is_some()).map_err(|problem| problem.kind)
        };
        assert_eq!(claim(&[]), Ok(false));
        assert_eq!(claim(&[(IMPERSONATE_USER, "alice")]), Ok(true));
        let groups = [(IMPERSONATE_USER, "alice"), (IMPERSONATE_GROUP, "a"), (IMPERSONATE_GROUP, "b")];
        assert_eq!(claim(&groups), Ok(true));
        assert_eq!(claim(&[(IMPERSONATE_GROUP, "a")]), Err(Kind::InvalidRequest));
        let two = [(IMPERSONATE_USER, "alice"), (IMPERSONATE_USER, "bob")];
        assert_eq!(claim(&two), Err(Kind::InvalidRequest));
        assert_eq!(claim(&[(IMPERSONATE_USER, " ")]), Err(Kind::InvalidRequest));
        let mut many = vec![(IMPERSONATE_GROUP, "a"); MOST_GROUPS];
        many.push((IMPERSONATE_USER, "alice"));
        assert_eq!(claim(&many), Ok(true));
        many.push((IMPERSONATE_GROUP, "a"));
        assert_eq!(claim(&many), Err(Kind::InvalidRequest));
        let (longest, longer) = ("a".repeat(LONGEST_NAME), "a".repeat(LONGEST_NAME + 1));
        assert_eq!(claim(&[(IMPERSONATE_USER, &longest)]), Ok(true));
        assert_eq!(claim(&[(IMPERSONATE_USER, &longer)]), Err(Kind::InvalidRequest));
        let user = (IMPERSONATE_USER, "alice");
        assert_eq!(claim(&[user.clone(), (IMPERSONATE_GROUP, &longer)]), Err(Kind::InvalidRequest));
        let mut groups = vec![(IMPERSONATE_GROUP, longest.as_str()); GROUPS / LONGEST_NAME];
        groups.push(user);
        assert_eq!(claim(&groups), Ok(true));
        groups.push((IMPERSONATE_GROUP, "a"));
        assert_eq!(claim(&groups), Err(Kind::InvalidRequest));
    }
}
