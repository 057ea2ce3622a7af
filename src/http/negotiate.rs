//! Which of the forms that an answer can take the caller wants.

use headers_accept::Accept;
use http::{HeaderMap, header};
use mediatype::{MediaType, MediaTypeBuf};

use super::problem::{Kind, Problem};

/// A form that an answer can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Yaml,
    /// kubectl's own output.
    Text,
    EventStream,
    NdJson,
}

impl Form {
    /// The media type, as it stands in `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Text => "text/plain; charset=utf-8",
            Self::EventStream => "text/event-stream",
            Self::NdJson => "application/x-ndjson",
        }
    }

    fn media_type(self) -> &'static str {
        self.content_type().split(';').next().unwrap_or_default()
    }
}

/// Picks the form that the caller likes best; `offered` begins with the one for who has no wish.
///
/// # Errors
/// 406 when none is acceptable, 400 when `Accept` can't be read.
pub fn negotiate(headers: &HeaderMap, offered: &[Form]) -> Result<Form, Problem> {
    let Some(accept) = accept(headers)? else {
        return Ok(offered[0]);
    };
    let types: Vec<MediaTypeBuf> = offered
        .iter()
        .map(|form| form.media_type().parse().expect("our own media types are well-formed"))
        .collect();
    let types: Vec<MediaType<'_>> = types.iter().map(MediaTypeBuf::to_ref).collect();
    let chosen = accept.negotiate(&types);
    let index = chosen.and_then(|chosen| types.iter().position(|offer| offer == chosen));
    index.map(|index| offered[index]).ok_or_else(|| {
        let types: Vec<&str> = offered.iter().map(|form| form.media_type()).collect();
        Problem::header(Kind::NotAcceptable, "Accept", format!("expected one of {}", types.join(", ")))
    })
}

/// Whether errors are wanted as plain lines: the caller likes text better than JSON.
#[must_use]
pub fn wants_plain_errors(headers: &HeaderMap) -> bool {
    matches!(negotiate(headers, &[Form::Json, Form::Text]), Ok(Form::Text))
}

/// What the caller accepts. A range that can't be read is left out: `java.net.HttpURLConnection` sends
/// a bare `*` among others.
fn accept(headers: &HeaderMap) -> Result<Option<Accept>, Problem> {
    let values: Vec<&str> = headers
        .get_all(header::ACCEPT)
        .iter()
        .map(|value| value.to_str())
        .collect::<Result<_, _>>()
        .map_err(|_| unreadable())?;
    let ranges = || values.iter().flat_map(|value| value.split(',')).map(str::trim);
    if ranges().all(str::is_empty) {
        return Ok(None);
    }
    let readable: Vec<String> =
        ranges().filter(|range| range.parse::<Accept>().is_ok()).map(without_charset).collect();
    if readable.is_empty() {
        return Err(unreadable());
    }
    readable.join(",").parse().map(Some).map_err(|_| unreadable())
}

/// A range without a charset that every answer has.
fn without_charset(range: &str) -> String {
    let is_ours = |parameter: &str| {
        let parameter = parameter.trim().to_ascii_lowercase();
        parameter == "charset=utf-8" || parameter == "charset=\"utf-8\""
    };
    range.split(';').filter(|part| !is_ours(part)).collect::<Vec<_>>().join(";")
}

fn unreadable() -> Problem {
    Problem::header(Kind::InvalidRequest, "Accept", "expected media ranges such as application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(accept: &str, offered: &[Form]) -> Result<Form, Kind> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        negotiate(&headers, offered).map_err(|problem| problem.kind)
    }

    #[test]
    fn the_caller_gets_what_it_likes_best() {
        let all = [Form::Json, Form::Yaml, Form::Text];
        assert_eq!(negotiate(&HeaderMap::new(), &all).unwrap(), Form::Json);
        assert_eq!(pick("*/*", &all), Ok(Form::Json));
        assert_eq!(pick("text/plain", &all), Ok(Form::Text));
        assert_eq!(pick("text/*", &all), Ok(Form::Text));
        assert_eq!(pick("application/yaml;q=0.5, text/plain;q=0.9", &all), Ok(Form::Text));
        assert_eq!(pick("text/html, */*;q=0.1", &all), Ok(Form::Json));
        assert_eq!(pick("image/png", &all), Err(Kind::NotAcceptable));
        assert_eq!(pick("text/event-stream", &[Form::Json, Form::EventStream]), Ok(Form::EventStream));
        assert_eq!(pick("text/plain, *; q=.2", &all), Ok(Form::Text));
        assert_eq!(pick("text/plain; charset=UTF-8;q=0.9, application/yaml;q=0.5", &all), Ok(Form::Text));
        assert_eq!(pick("application/json;charset=\"utf-8\"", &all), Ok(Form::Json));
        assert_eq!(pick("text/plain; charset=latin1", &all), Err(Kind::NotAcceptable));
        assert_eq!(pick(";;;", &all), Err(Kind::InvalidRequest));
    }
}
