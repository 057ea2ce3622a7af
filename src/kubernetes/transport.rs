//! What every request to the API server passes through.
//!
//! - A deadline: kube has none, and a silent API server would hang its caller for ever. It covers
//!   the whole answer; of a watch and of a list that is read as it comes, only the headers.
//! - A 429 or 5xx that is not a Kubernetes `Status` (a proxy's HTML, the plain text of API Priority
//!   and Fairness) becomes one without its text, with `Retry-After` kept; any other 4xx becomes [`NoStatus`].
//! - Bytes that are not UTF-8 become U+FFFD, as in Go: the API server stores such bytes in a
//!   ControllerRevision's `data`, and kube would give up the watch of all.
//! - What the API server warns of ([`Warnings`]) is kept for a request that asks for it.
//! - Watches report to [`Liveness`] that they are open and what they deliver, and each answer what time it is.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, Request, Response,
    header::{RETRY_AFTER, WARNING},
};
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use serde_json::{Value, json};
use tower::{BoxError, Service};

use super::liveness::{Kind, Liveness};

/// The API server did not answer before the deadline.
#[derive(Debug, thiserror::Error)]
#[error("no answer before the deadline")]
pub struct Silent;

/// A 4xx but 429 that is no Kubernetes `Status`, so of a proxy: it does not know which objects and versions there
/// are, nor whether the API server saw the request.
#[derive(Debug, thiserror::Error)]
#[error("{code}, not of the API server")]
pub(super) struct NoStatus {
    code: u16,
    pub retry_after: Option<Duration>,
}

/// As an extension of a request: its answer, if it is good, is handed on as it comes, and the deadline covers its
/// headers alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streamed;

/// Warnings that are kept of one answer.
const WARNINGS: usize = 20;

/// As an extension of a request: gets what the API server, or a policy or webhook of its admission, warns of in
/// the headers of its answer (KEP-1693; kubectl prints them).
#[derive(Clone, Debug, Default)]
pub(super) struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// Takes them out.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn keep(&self, headers: &HeaderMap) {
        let values = headers.get_all(WARNING).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let texts: Vec<String> = values.filter_map(|value| warning_text(&value)).take(WARNINGS).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = texts;
    }
}

/// The text of a header as Kubernetes writes it: `299 - "text"`, with a backslash before a quote or backslash
/// (RFC 7234, 5.5; `NewWarningHeader` in apimachinery).
fn warning_text(value: &str) -> Option<String> {
    let (_, quoted) = value.strip_prefix("299 ")?.split_once('"')?;
    let mut text = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' => text.push(characters.next()?),
            character => text.push(character),
        }
    }
}

/// Wraps a client's requests; made into the client that the rest of this room uses.
#[derive(Clone)]
pub struct Transport {
    inner: kube::Client,
    liveness: Arc<Liveness>,
    deadline: Duration,
}

impl Transport {
    /// Puts itself between `inner` and whoever uses the returned client.
    pub fn around(inner: kube::Client, liveness: Arc<Liveness>, deadline: Duration) -> kube::Client {
        let namespace = inner.default_namespace().to_owned();
        kube::Client::new(Self { inner, liveness, deadline }, namespace)
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { inner, liveness, deadline } = self.clone();
        Box::pin(async move {
            let watched = watched(&request);
            let warnings = request.extensions().get::<Warnings>().cloned();
            let streamed = request.extensions().get::<Streamed>().is_some();
            let answer = async {
                let response = inner.send(request).await?;
                liveness.server_clock().saw(response.headers());
                if let (Some(kind), true) = (watched, response.status().is_success()) {
                    return Ok::<_, BoxError>(response.map(|body| observed(body, kind, liveness)));
                }
                if streamed && response.status().is_success() {
                    return Ok(response.map(decoded));
                }
                let (parts, body) = response.into_parts();
                if let Some(warnings) = warnings {
                    warnings.keep(&parts.headers);
                }
                let body = body.collect().await?.to_bytes();
                Ok(whole(Response::from_parts(parts, body))?)
            };
            tokio::time::timeout(deadline, answer).await.map_err(|_| Silent)?
        })
    }
}

/// The kind that a request watches. One that selects an object by its field is no watch of a kind: it ends
/// by itself, in no time ([`super::live::Live::after`]).
fn watched(request: &Request<Body>) -> Option<Kind> {
    let query = request.uri().query()?;
    if query.contains("fieldSelector=") {
        return None;
    }
    if !query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")) {
        return None;
    }
    Kind::ALL.into_iter().find(|kind| request.uri().path().ends_with(kind.plural()))
}

struct OpenWatch(Kind, Arc<Liveness>);

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.1.closed(self.0);
    }
}

fn observed(
    body: Body,
    kind: Kind,
    liveness: Arc<Liveness>,
) -> http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError> {
    liveness.opened(kind);
    let open = OpenWatch(kind, liveness);
    let mut decoder = Decoder::default();
    let body = body.map_frame(move |frame| {
        open.1.delivered(open.0);
        frame.map_data(|data| decoder.decode(data))
    });
    body.map_err(Into::into).boxed_unsync()
}

/// Hands a body on as it comes, as UTF-8.
fn decoded(body: Body) -> http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError> {
    let mut decoder = Decoder::default();
    let body = body.map_frame(move |frame| frame.map_data(|data| decoder.decode(data)));
    body.map_err(Into::into).boxed_unsync()
}

fn whole(
    response: Response<Bytes>,
) -> Result<Response<http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>>, NoStatus> {
    let (parts, body) = response.into_parts();
    let body = if parts.status.is_success() {
        Decoder::default().decode(body)
    } else {
        let retry_after = parts.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        status(parts.status.as_u16(), retry_after, &body)?
    };
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    Ok(Response::from_parts(parts, body))
}

/// Makes UTF-8 of a body that comes in pieces. A character that a piece ends inside goes to the
/// next one.
#[derive(Default)]
struct Decoder {
    begun: Vec<u8>,
}

impl Decoder {
    fn decode(&mut self, piece: Bytes) -> Bytes {
        if self.begun.is_empty() && std::str::from_utf8(&piece).is_ok() {
            return piece;
        }
        let mut bytes = std::mem::take(&mut self.begun);
        bytes.extend_from_slice(&piece);
        let mut text = String::with_capacity(bytes.len());
        let mut rest = bytes.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, after) = rest.split_at(error.valid_up_to());
            text.push_str(std::str::from_utf8(valid).unwrap_or_default());
            let Some(invalid) = error.error_len() else {
                self.begun = after.to_vec();
                return text.into();
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &after[invalid..];
        }
        text.push_str(std::str::from_utf8(rest).unwrap_or_default());
        text.into()
    }
}

/// The answer as a `Status` that can be trusted in form: its code is the HTTP one, and its text is
/// the API server's own or none.
fn status(code: u16, retry_after: Option<u32>, body: &[u8]) -> Result<Bytes, NoStatus> {
    let sent = serde_json::from_slice::<Value>(body).ok();
    let mut status = match sent.filter(|value| value["kind"] == "Status" && value["apiVersion"] == "v1") {
        Some(sent) => sent,
        None if (400..500).contains(&code) && code != 429 => {
            let retry_after = retry_after.map(|seconds| Duration::from_secs(u64::from(seconds)));
            return Err(NoStatus { code, retry_after });
        }
        None => json!({"kind": "Status", "apiVersion": "v1", "status": "Failure"}),
    };
    status["code"] = code.into();
    if !status["message"].is_string() {
        status["message"] = format!("the API server answered {code}").into();
    }
    if let Some(seconds) = retry_after {
        if !status["details"].is_object() {
            status["details"] = json!({});
        }
        status["details"]["retryAfterSeconds"] = seconds.into();
    }
    Ok(status.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_no_status_loses_its_text_and_keeps_retry_after() {
        let bytes = status(429, Some(7), b"Too many requests, please try again later.\n").unwrap();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["code"], 429);
        assert_eq!(value["details"]["retryAfterSeconds"], 7);
        assert!(!value.to_string().contains("Too many"));
        let value: Value =
            serde_json::from_slice(&status(502, None, b"<html>secret</html>").unwrap()).unwrap();
        assert!(!value.to_string().contains("secret"));
        let value: Value = serde_json::from_slice(&status(500, None, b"{}").unwrap()).unwrap();
        assert_eq!(value["code"], 500);
    }

    #[test]
    fn a_warning_is_read_as_kubernetes_writes_it() {
        let text = |value: &str| warning_text(value);
        assert_eq!(text(r#"299 - "say \"no\" \\ x""#).as_deref(), Some(r#"say "no" \ x"#));
        assert_eq!(text("299 kube \"größe\" \"Fri, 27 Nov 2026 10:00:00 GMT\"").as_deref(), Some("größe"));
        for other in ["199 - \"x\"", "299 - \"open", "299 -", ""] {
            assert_eq!(text(other), None, "{other}");
        }
    }

    #[test]
    fn a_proxys_4xx_tells_nothing_of_objects_and_rights() {
        use crate::kubernetes::{ClusterError, Delivery};
        for code in [400, 401, 403, 404, 409, 410, 422] {
            for body in ["<html>secret</html>", "{}", ""] {
                let error = status(code, Some(7), body.as_bytes()).unwrap_err();
                let told = ClusterError::from(kube::Error::Service(error.into()));
                let ClusterError::Unavailable { delivery: Delivery::Unknown, retry_after, .. } = told else {
                    panic!("{code}: {told:?}");
                };
                assert_eq!(retry_after, Some(Duration::from_secs(7)));
            }
        }
    }

    #[test]
    fn what_is_not_utf8_is_replaced_wherever_the_pieces_end() {
        let text = b"a\xff\xe2\x80\xa8\xe2\x80\"\xf0\x9f\x9a\x80\xc3\x28\n";
        let expected = String::from_utf8_lossy(text);
        for (first, second) in (0..text.len()).flat_map(|i| (i..text.len()).map(move |j| (i, j))) {
            let mut decoder = Decoder::default();
            let pieces = [&text[..first], &text[first..second], &text[second..]];
            let decoded = pieces.map(|piece| decoder.decode(Bytes::copy_from_slice(piece))).concat();
            assert_eq!(decoded, expected.as_bytes(), "{first} {second}");
        }
    }

    #[test]
    fn a_status_keeps_its_words_and_gets_the_http_code() {
        let sent =
            json!({"kind": "Status", "apiVersion": "v1", "message": "no", "details": {"kind": "daemonsets"}});
        let value: Value =
            serde_json::from_slice(&status(422, None, sent.to_string().as_bytes()).unwrap()).unwrap();
        assert_eq!((&value["message"], &value["code"]), (&json!("no"), &json!(422)));
        assert_eq!(value["details"]["kind"], "daemonsets");
    }
}
