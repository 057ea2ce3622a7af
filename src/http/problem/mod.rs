//! Errors as callers see them: RFC 9457 problem details, or one plain line for `Accept: text/plain`.
//!
//! The only place that knows which status an error has. A handler returns a [`Problem`]; the edge
//! ([`super::edge`]) gives it the request's id and writes it in the form that the caller accepts.

mod kind;

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;

pub use kind::Kind;

use super::{MAX_HEADER, MAX_TARGET};
use crate::{
    audit::StoreError,
    auth::AuthError,
    domain::{
        key::Key,
        kubectl,
        rollback::{Refusal, Warning},
        text::escape,
    },
    kubernetes::ClusterError,
    rollbacks::{Failure, RollbackError},
    telemetry::causes,
};

/// An error on its way to the caller.
#[derive(Clone, Debug)]
pub struct Problem {
    pub kind: Kind,
    pub detail: String,
    pub errors: Vec<FieldError>,
    pub warnings: Vec<Warning>,
    retry_after: Option<Duration>,
    command: Option<String>,
}

/// What is wrong with one part of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// RFC 6901 pointer into the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(examples("/toRevision"))]
    pub pointer: Option<String>,
    /// Name of a query or path parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// Name of a header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// What was expected.
    pub detail: String,
}

/// RFC 9457 problem details.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// Stable URI of the kind of problem.
    #[schema(value_type = super::openapi::ProblemType, examples("https://rollbackd.dev/problems/unknown-revision"))]
    pub r#type: String,
    /// The kind of problem in words.
    pub title: String,
    /// The HTTP status.
    #[schema(examples(422))]
    pub status: u16,
    /// What went wrong this time, in kubectl's words where it has them.
    #[schema(examples("unable to find specified revision 99 in history"))]
    pub detail: String,
    /// Path of the request, its beginning if it is long; empty if the request could not be parsed.
    pub instance: String,
    /// Id of the request, also in the header `X-Request-Id` and in the logs.
    pub request_id: String,
    /// What is wrong with the request, part by part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// The warnings for which `failOnWarning` refused the rollback.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
    /// Seconds after which to try again, also in the header `Retry-After`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// What to type meanwhile, if rollbackd can't do it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(examples("kubectl rollout undo daemonset/agent --namespace=monitoring --to-revision=2"))]
    pub command: Option<String>,
}

impl Problem {
    /// A problem of a kind, with what went wrong this time.
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            warnings: Vec::new(),
            retry_after: None,
            command: None,
        }
    }

    /// A query or path parameter is wrong.
    #[must_use]
    pub fn parameter(parameter: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let mut problem = Self::new(Kind::InvalidRequest, format!("{parameter}: {detail}"));
        let parameter = Some(parameter.to_owned());
        problem.errors = vec![FieldError { pointer: None, parameter, header: None, detail }];
        problem
    }

    /// A field of the body is wrong; `pointer` is empty for the body as a whole.
    #[must_use]
    pub fn pointer(kind: Kind, pointer: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let mut problem = Self::new(kind, detail.clone());
        let pointer = Some(pointer.to_owned());
        problem.errors = vec![FieldError { pointer, parameter: None, header: None, detail }];
        problem
    }

    /// A header is wrong.
    #[must_use]
    pub fn header(kind: Kind, header: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let mut problem = Self::new(kind, format!("{header}: {detail}"));
        let header = Some(header.to_owned());
        problem.errors = vec![FieldError { pointer: None, parameter: None, header, detail }];
        problem
    }

    /// The request target is longer than [`MAX_TARGET`].
    #[must_use]
    pub fn long_target() -> Self {
        Self::new(Kind::TargetTooLong, format!("expected a request target of at most {MAX_TARGET} bytes"))
    }

    /// The request header is larger than [`MAX_HEADER`], or has too many lines.
    #[must_use]
    pub fn large_header() -> Self {
        let detail = format!("expected a request header of at most {MAX_HEADER} bytes and 100 lines");
        Self::new(Kind::HeaderTooLarge, detail)
    }

    /// The body is sent in a transfer coding that is not supported.
    #[must_use]
    pub fn unknown_coding() -> Self {
        Self::header(Kind::UnsupportedTransferEncoding, "Transfer-Encoding", "expected chunked, or none")
    }

    /// The DaemonSet does not exist; kubectl's words.
    #[must_use]
    pub fn no_daemonset(key: &Key) -> Self {
        Self::new(Kind::DaemonSetNotFound, kubectl::not_found(&key.name))
    }

    /// Whether the caller may can't be asked, so that the answer is not yes.
    fn unanswered_review(error: ClusterError) -> Self {
        match error {
            ClusterError::Busy { .. }
            | ClusterError::Unavailable { .. }
            | ClusterError::Unauthenticated
            | ClusterError::Forbidden { .. } => error.into(),
            ClusterError::NotFound
            | ClusterError::Conflict
            | ClusterError::Replaced
            | ClusterError::TooManyReads
            | ClusterError::TooLarge { .. }
            | ClusterError::Refused { .. } => {
                Self::new(Kind::ClusterUnavailable, "the Kubernetes API server does not review requests")
            }
        }
    }

    /// The same, as a problem of another kind.
    #[must_use]
    pub fn of_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Names the command that does meanwhile what rollbackd can't.
    #[must_use]
    pub fn or_type(mut self, command: String) -> Self {
        if self.kind.about().1 == StatusCode::SERVICE_UNAVAILABLE {
            self.command = Some(command);
        }
        self
    }

    /// Whole seconds, at least one.
    fn retry_seconds(&self) -> Option<u64> {
        let fallback =
            (self.kind.about().1 == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::from_secs(2));
        let wait = self.retry_after.or(fallback)?;
        Some(wait.as_secs().max(1))
    }

    /// Writes the problem for one request. `headers` are those that the answer has already, such as
    /// `Allow`.
    #[must_use]
    pub fn render(self, mut headers: HeaderMap, instance: &str, request_id: &str, plain: bool) -> Response {
        let (_, status, _) = self.kind.about();
        let (retry_after, challenge) = (self.retry_seconds(), self.kind.challenge());
        let body = if plain {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            self.line()
        } else {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
            self.document(instance, request_id)
        };
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(challenge) = challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        (status, headers, body).into_response()
    }

    /// The problem as JSON. `instance` is the path of the request, empty if it could not be parsed.
    #[must_use]
    pub fn document(self, instance: &str, request_id: &str) -> String {
        let (_, status, title) = self.kind.about();
        let body = ProblemBody {
            r#type: self.kind.uri(),
            title: title.to_owned(),
            status: status.as_u16(),
            instance: instance.to_owned(),
            request_id: request_id.to_owned(),
            retry_after: self.retry_seconds(),
            detail: self.detail,
            errors: self.errors,
            warnings: self.warnings,
            command: self.command,
        };
        serde_json::to_string(&body).expect("a problem has string keys")
    }

    /// The problem as kubectl prints an error.
    fn line(&self) -> String {
        let detail = escape(&self.detail);
        let command = self.command.as_ref().map(|command| format!("; meanwhile: {command}"));
        let command = command.unwrap_or_default();
        match self.kind {
            Kind::DaemonSetNotFound => format!("Error from server (NotFound): {detail}\n"),
            Kind::Forbidden => format!("Error from server (Forbidden): {detail}\n"),
            _ => format!("error: {detail}{command}\n"),
        }
    }
}

impl IntoResponse for Problem {
    /// Leaves the problem for the edge to write.
    fn into_response(self) -> Response {
        let mut response = self.kind.about().1.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            Refusal::UnknownRevision(_) => Self::pointer(Kind::UnknownRevision, "/toRevision", detail),
            Refusal::NoPreviousRevision => Self::new(Kind::NoPreviousRevision, detail),
            Refusal::Ambiguous { .. } => Self::pointer(Kind::AmbiguousRevision, "/toRevision", detail),
            Refusal::NotRecordable { .. } => Self::new(Kind::NotRecordable, detail),
            Refusal::DuplicateRevision(_) => Self::new(Kind::DuplicateRevision, detail),
            Refusal::NotRestorable { .. } => Self::new(Kind::NotRestorable, detail),
            Refusal::BeingDeleted => Self::new(Kind::BeingDeleted, detail),
            Refusal::NotRecorded => Self::new(Kind::NotRecorded, detail).retry_after(Duration::from_secs(1)),
            Refusal::UnexpectedRevision { .. } => {
                Self::pointer(Kind::UnexpectedRevision, "/expectedRevision", detail)
            }
            Refusal::PreconditionFailed { .. } => Self::header(Kind::PreconditionFailed, "If-Match", detail),
            Refusal::Planted { .. } => Self::pointer(Kind::PlantedRevision, "/toRevision", detail),
            Refusal::NotSeen { .. } => {
                Self::new(Kind::NotRecorded, detail).retry_after(Duration::from_secs(1))
            }
            Refusal::Warned { warnings } => Self { warnings, ..Self::new(Kind::Warned, detail) },
        }
    }
}

impl From<ClusterError> for Problem {
    fn from(error: ClusterError) -> Self {
        let detail = error.to_string();
        match error {
            // Whoever reads one object handles these with its name in hand.
            ClusterError::NotFound => Self::new(Kind::DaemonSetNotFound, detail),
            ClusterError::Conflict | ClusterError::Replaced => Self::new(Kind::Modified, detail),
            ClusterError::Forbidden { .. } | ClusterError::Unauthenticated => {
                Self::new(Kind::MissingRight, detail)
            }
            ClusterError::Refused { .. } => Self::new(Kind::RefusedByApiServer, detail),
            ClusterError::TooManyReads => {
                Self::new(Kind::TooManyReads, detail).retry_after(Duration::from_secs(1))
            }
            ClusterError::TooLarge { .. } => Self::new(Kind::TooLarge, detail),
            ClusterError::Busy { retry_after } | ClusterError::Unavailable { retry_after, .. } => {
                let problem = Self::new(Kind::ClusterUnavailable, detail);
                match retry_after {
                    Some(wait) => problem.retry_after(wait),
                    None => problem,
                }
            }
        }
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        let detail = error.to_string();
        match error {
            AuthError::NoToken => Self::new(Kind::NoToken, detail),
            AuthError::InvalidToken => Self::new(Kind::InvalidToken, detail),
            AuthError::Denied(_) | AuthError::TooManyNamespaces(_) => Self::new(Kind::Forbidden, detail),
            AuthError::NeverImpersonated(_) => Self::new(Kind::NeverImpersonated, detail),
            AuthError::TooManyRequests { retry_after } => {
                // Rounded up: earlier there is no review.
                Self::new(Kind::TooManyRequests, detail).retry_after(retry_after + Duration::from_millis(999))
            }
            AuthError::Cluster(error) => Self::unanswered_review(error),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = %causes(&error), "a request failed by the audit store");
        match error {
            StoreError::Altered => Self::new(
                Kind::StoreUnavailable,
                "the audit store's tables are not what rollbackd made; its log says what was found",
            ),
            StoreError::Url
            | StoreError::Database(_)
            | StoreError::Migration(_)
            | StoreError::InUse
            | StoreError::HardLinks { .. }
            | StoreError::Gone
            | StoreError::Silent
            | StoreError::Record(_)
            | StoreError::TooNew { .. }
            | StoreError::Busy { .. }
            | StoreError::KeyTaken
            | StoreError::Moved { .. } => {
                Self::new(Kind::StoreUnavailable, "the audit store is not available")
            }
        }
    }
}

impl From<RollbackError> for Problem {
    fn from(error: RollbackError) -> Self {
        let detail = error.to_string();
        match error {
            RollbackError::Refused(refusal) => refusal.into(),
            RollbackError::RefusedByServer { .. } => Self::new(Kind::RefusedByApiServer, detail),
            RollbackError::Busy { .. } => {
                Self::new(Kind::RollbackInProgress, detail).retry_after(Duration::from_secs(1))
            }
            RollbackError::Changed | RollbackError::Replaced | RollbackError::Deleted => {
                Self::new(Kind::Modified, detail)
            }
            RollbackError::Contended => Self::new(Kind::Modified, detail).retry_after(Duration::from_secs(1)),
            RollbackError::Undecidable => Self::new(Kind::ClusterUnavailable, detail),
            RollbackError::Cluster(error) => {
                let mut problem = Self::from(error);
                problem.detail.push_str("; nothing was changed");
                problem
            }
            RollbackError::Store(error) => {
                let mut problem = Self::from(error);
                problem.detail.push_str(", so that the rollback can't be recorded; nothing was changed");
                problem
            }
            RollbackError::KeyAtWork => {
                Self::header(Kind::KeyAtWork, "Idempotency-Key", detail).retry_after(Duration::from_secs(1))
            }
            RollbackError::KeyReused => Self::header(Kind::KeyReused, "Idempotency-Key", detail),
            RollbackError::Again { failure, .. } => match failure {
                Failure::BeingDeleted => Self::new(Kind::BeingDeleted, detail),
                Failure::PreconditionFailed => Self::header(Kind::PreconditionFailed, "If-Match", detail),
                Failure::RefusedByServer => Self::new(Kind::RefusedByApiServer, detail),
                Failure::Modified => Self::new(Kind::Modified, detail),
                Failure::Undecidable => Self::new(Kind::ClusterUnavailable, detail),
            },
            RollbackError::Auth(error) => error.into(),
            RollbackError::TakenOver => {
                Self::new(Kind::ClusterUnavailable, detail).retry_after(Duration::from_secs(1))
            }
            RollbackError::Interrupted => Self::new(Kind::Internal, detail),
        }
    }
}
