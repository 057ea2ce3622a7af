//! What handlers take from a request. Each extractor answers bad input with a [`Problem`] that names
//! the field and what was expected.

use std::{collections::HashSet, fmt::Display, ops::RangeInclusive, str::FromStr};

use axum::{
    body::{Bytes, HttpBody},
    extract::{FromRequest, FromRequestParts, RawPathParams, Request},
};
use http::{HeaderMap, StatusCode, header, request::Parts};
use jiff::{Timestamp, civil::date, fmt::temporal::Pieces};
use serde::de::DeserializeOwned;

use super::{
    App, MAX_BODY, caller,
    problem::{Kind, Problem},
};
use crate::{
    auth::{Age, Arrival, Caller},
    domain::key::{Key, Name, Namespace},
};

/// Whoever sent the request, admitted.
pub struct From(pub Caller);

/// Whoever sent the request; whether they may act for whom they say is for the handler to ask.
pub struct At(pub Arrival);

/// `{namespace}` of the path, which is served here.
pub struct InNamespace(pub Namespace);

/// `{namespace}/{name}` of the path, whose namespace is served here.
pub struct Target(pub Key);

/// The query, of which every parameter is known.
pub struct Query<T>(pub T);

/// A JSON object as body. An empty body counts as `{}`; the content type is asked for in any case, so
/// that a web page can't send it without the browser asking first.
pub struct Json<T>(pub T);

/// The parameters of the path, decoded.
pub struct PathParams(RawPathParams);

impl PathParams {
    /// The value of one of them.
    pub fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value).unwrap_or_default()
    }
}

impl FromRequestParts<App> for From {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let arrival = caller::arrival(parts, app, Age::Remembered).await?;
        Ok(Self(app.authority.admit(arrival, Age::Remembered).await?))
    }
}

impl FromRequestParts<App> for At {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        caller::arrival(parts, app, Age::Fresh).await.map(Self)
    }
}

impl FromRequestParts<App> for PathParams {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        RawPathParams::from_request_parts(parts, app).await.map(Self).map_err(|_| {
            Problem::new(Kind::InvalidRequest, "the path holds a percent-encoded part that is not UTF-8")
        })
    }
}

fn served(params: &PathParams, app: &App) -> Result<Namespace, Problem> {
    let namespace = Namespace::parse(params.get("namespace"))
        .map_err(|error| Problem::parameter("namespace", error.to_string()))?;
    app.serves(&namespace)?;
    Ok(namespace)
}

impl FromRequestParts<App> for InNamespace {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let params = PathParams::from_request_parts(parts, app).await?;
        Ok(Self(served(&params, app)?))
    }
}

impl FromRequestParts<App> for Target {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let params = PathParams::from_request_parts(parts, app).await?;
        let name =
            Name::parse(params.get("name")).map_err(|error| Problem::parameter("name", error.to_string()))?;
        Ok(Self(Key::new(served(&params, app)?, name)))
    }
}

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let mut names = HashSet::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            // No name and no text has it, and PostgreSQL can't even compare with it.
            if value.contains('\0') {
                return Err(Problem::parameter(&name, "expected text without NUL"));
            }
            if names.contains(&name) {
                return Err(Problem::parameter(&name, "expected it once"));
            }
            names.insert(name);
        }
        let pairs = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
        serde_path_to_error::deserialize(pairs).map(Self).map_err(|error| {
            let parameter = error.path().to_string();
            Problem::parameter(
                if parameter == "." { "query" } else { &parameter },
                error.into_inner().to_string(),
            )
        })
    }
}

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::header(
                Kind::UnsupportedMediaType,
                "Content-Type",
                "expected application/json, also where the body is empty",
            ));
        }
        let body = whole_body(request, app).await?;
        let text = match body.trim_ascii_start().first() {
            None => b"{}".as_slice(),
            Some(b'{') => &body,
            // serde would take an array as the fields in their order.
            Some(_) => return Err(Problem::pointer(Kind::InvalidRequest, "", "expected a JSON object")),
        };
        let mut json = serde_json::Deserializer::from_slice(text);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let pointer = pointer(error.path());
            let detail = expected(&error.into_inner());
            let name = pointer.trim_start_matches('/');
            let detail = if name.is_empty() { detail } else { format!("{name}: {detail}") };
            Problem::pointer(Kind::InvalidRequest, &pointer, detail)
        })?;
        json.end().map_err(|error| Problem::pointer(Kind::InvalidRequest, "", error.to_string()))?;
        Ok(Self(value))
    }
}

/// Reads an optional whole number of the query, from `range`.
///
/// # Errors
/// 400 that names the parameter and the range.
pub fn number<T>(parameter: &str, text: Option<&str>, range: RangeInclusive<T>) -> Result<Option<T>, Problem>
where
    T: FromStr + PartialOrd + Display,
{
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => {
            let (first, last) = range.into_inner();
            Err(Problem::parameter(parameter, format!("expected a whole number from {first} to {last}")))
        }
    }
}

/// Reads an optional time of the query.
///
/// # Errors
/// 400 that names the parameter.
pub fn time(parameter: &str, text: Option<&str>) -> Result<Option<Timestamp>, Problem> {
    let expected = || Problem::parameter(parameter, "expected an RFC 3339 time such as 2026-11-23T03:00:00Z");
    // The end of what RFC 3339 can write, which some take for "no end", is beyond the last `Timestamp`.
    let last = |text: &str| {
        let pieces = Pieces::parse(text).ok()?;
        let whole = pieces.time().is_some() && pieces.offset().is_some();
        (whole && pieces.date() >= date(9999, 12, 30)).then_some(Timestamp::MAX)
    };
    let read = |text: &str| text.parse().ok().or_else(|| last(text)).ok_or_else(expected);
    text.map(read).transpose()
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|text| mediatype::MediaType::parse(text).ok());
    media_type.is_some_and(|media_type| {
        media_type.ty == mediatype::names::APPLICATION && media_type.subty == mediatype::names::JSON
    })
}

/// Reads the body, for which there is a limit and a deadline.
async fn whole_body(request: Request, app: &App) -> Result<Bytes, Problem> {
    let too_large =
        || Problem::new(Kind::BodyTooLarge, format!("expected a body of at most {MAX_BODY} bytes"));
    // What is announced is refused before it is sent.
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(app.limits.body, Bytes::from_request(request, app)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large()),
        // Chunks that are none, or a connection that broke: nobody may be there to read this.
        Ok(Err(_)) => Err(Problem::new(Kind::InvalidRequest, "the body can't be read")),
        Err(_) => Err(Problem::new(Kind::RequestTimeout, "the body did not arrive in whole")),
    }
}

/// What serde expected, without the place in the text: the pointer says where.
fn expected(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.replace("expected i64", "expected a whole number");
    match text.find(" at line ") {
        Some(place) if error.is_data() => text[..place].to_owned(),
        _ => text,
    }
}

/// The RFC 6901 pointer of a field that serde could not read.
fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(format!("/{index}")),
            Segment::Map { key } => Some(format!("/{}", key.replace('~', "~0").replace('/', "~1"))),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_reach_to_the_end_of_rfc_3339() {
        let read = |text| time("until", Some(text)).ok().flatten();
        assert_eq!(read("9999-12-31T23:59:59Z"), Some(Timestamp::MAX));
        assert_eq!(read("1970-01-01T00:00:01Z"), Some(Timestamp::from_second(1).unwrap()));
        for text in ["", "9999-12-31", "9999-12-31T23:59:59", "9999-12-32T00:00:00Z", "soon"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
