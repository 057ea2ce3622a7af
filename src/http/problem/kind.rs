//! The kinds of problems, each with its status.

use http::StatusCode;

/// Where the kinds of problems are documented.
const TYPE_BASE: &str = "https://rollbackd.dev/problems/";

/// Kind of a problem; its slug ends the `type` URI and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    InvalidRequest,
    UnsupportedHeader,
    NoToken,
    InvalidToken,
    ForbiddenOrigin,
    NamespaceNotServed,
    Forbidden,
    NeverImpersonated,
    PlantedRevision,
    DaemonSetNotFound,
    RevisionNotFound,
    RollbackNotFound,
    UnknownPath,
    MethodNotAllowed,
    NotAcceptable,
    RequestTimeout,
    TargetTooLong,
    HeaderTooLarge,
    TooManyStreams,
    TooManyRequests,
    UnsupportedTransferEncoding,
    ReadOnly,
    RollbackInProgress,
    KeyAtWork,
    Modified,
    NotRecorded,
    UnexpectedRevision,
    PreconditionFailed,
    BodyTooLarge,
    UnsupportedMediaType,
    KeyReused,
    ReasonRequired,
    UnknownRevision,
    NoPreviousRevision,
    AmbiguousRevision,
    DuplicateRevision,
    NotRecordable,
    NotRestorable,
    BeingDeleted,
    UnknownGeneration,
    Warned,
    TooLarge,
    RefusedByApiServer,
    TooManyReads,
    NotReady,
    Stale,
    Behind,
    ClusterUnavailable,
    MissingRight,
    StoreUnavailable,
    Internal,
}

impl Kind {
    /// All kinds, for the document.
    pub const ALL: [Self; 51] = [
        Self::InvalidRequest,
        Self::UnsupportedHeader,
        Self::NoToken,
        Self::InvalidToken,
        Self::ForbiddenOrigin,
        Self::NamespaceNotServed,
        Self::Forbidden,
        Self::NeverImpersonated,
        Self::PlantedRevision,
        Self::DaemonSetNotFound,
        Self::RevisionNotFound,
        Self::RollbackNotFound,
        Self::UnknownPath,
        Self::MethodNotAllowed,
        Self::NotAcceptable,
        Self::RequestTimeout,
        Self::TargetTooLong,
        Self::HeaderTooLarge,
        Self::TooManyStreams,
        Self::TooManyRequests,
        Self::UnsupportedTransferEncoding,
        Self::ReadOnly,
        Self::RollbackInProgress,
        Self::KeyAtWork,
        Self::Modified,
        Self::NotRecorded,
        Self::UnexpectedRevision,
        Self::PreconditionFailed,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::KeyReused,
        Self::ReasonRequired,
        Self::UnknownRevision,
        Self::NoPreviousRevision,
        Self::AmbiguousRevision,
        Self::DuplicateRevision,
        Self::NotRecordable,
        Self::NotRestorable,
        Self::BeingDeleted,
        Self::UnknownGeneration,
        Self::Warned,
        Self::TooLarge,
        Self::RefusedByApiServer,
        Self::TooManyReads,
        Self::NotReady,
        Self::Stale,
        Self::Behind,
        Self::ClusterUnavailable,
        Self::MissingRight,
        Self::StoreUnavailable,
        Self::Internal,
    ];

    /// Slug, status and title.
    #[must_use]
    pub fn about(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::InvalidRequest => ("invalid-request", StatusCode::BAD_REQUEST, "The request is malformed"),
            Self::UnsupportedHeader => {
                ("unsupported-header", StatusCode::BAD_REQUEST, "A header of the request is not supported")
            }
            Self::ForbiddenOrigin => {
                ("forbidden-origin", StatusCode::FORBIDDEN, "The request comes from where none may come from")
            }
            Self::NamespaceNotServed => {
                ("namespace-not-served", StatusCode::FORBIDDEN, "This namespace is not served here")
            }
            Self::NoToken => ("no-token", StatusCode::UNAUTHORIZED, "A bearer token is needed"),
            Self::InvalidToken => ("invalid-token", StatusCode::UNAUTHORIZED, "The token is not valid here"),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, "The cluster's RBAC does not allow it"),
            Self::NeverImpersonated => {
                ("never-impersonated", StatusCode::FORBIDDEN, "Nobody may act for this name here")
            }
            Self::PlantedRevision => {
                ("planted-revision", StatusCode::FORBIDDEN, "The revision was put there by hand")
            }
            Self::DaemonSetNotFound => ("daemonset-not-found", StatusCode::NOT_FOUND, "No such DaemonSet"),
            Self::RevisionNotFound => ("revision-not-found", StatusCode::NOT_FOUND, "No such revision"),
            Self::RollbackNotFound => ("rollback-not-found", StatusCode::NOT_FOUND, "No such rollback"),
            Self::UnknownPath => ("unknown-path", StatusCode::NOT_FOUND, "No such path"),
            Self::MethodNotAllowed => {
                ("method-not-allowed", StatusCode::METHOD_NOT_ALLOWED, "The path does not know this method")
            }
            Self::NotAcceptable => {
                ("not-acceptable", StatusCode::NOT_ACCEPTABLE, "No accepted media type can be made")
            }
            Self::RequestTimeout => {
                ("request-timeout", StatusCode::REQUEST_TIMEOUT, "The body did not arrive in time")
            }
            Self::TargetTooLong => {
                ("target-too-long", StatusCode::URI_TOO_LONG, "The request target is too long")
            }
            Self::HeaderTooLarge => (
                "header-too-large",
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "The request header is too large",
            ),
            Self::TooManyStreams => {
                ("too-many-streams", StatusCode::TOO_MANY_REQUESTS, "Too many event streams are open")
            }
            Self::TooManyRequests => {
                ("too-many-requests", StatusCode::TOO_MANY_REQUESTS, "The caller sends too many requests")
            }
            Self::UnsupportedTransferEncoding => (
                "unsupported-transfer-encoding",
                StatusCode::NOT_IMPLEMENTED,
                "The transfer encoding is not supported",
            ),
            Self::ReadOnly => ("read-only", StatusCode::FORBIDDEN, "This rollbackd makes no rollbacks"),
            Self::RollbackInProgress => {
                ("rollback-in-progress", StatusCode::CONFLICT, "Another rollback is being made")
            }
            Self::Modified => ("modified", StatusCode::CONFLICT, "The DaemonSet was changed in between"),
            Self::NotRecorded => {
                ("not-recorded", StatusCode::CONFLICT, "The running template is not a revision yet")
            }
            Self::UnexpectedRevision => {
                ("unexpected-revision", StatusCode::PRECONDITION_FAILED, "Another revision is running")
            }
            Self::PreconditionFailed => (
                "precondition-failed",
                StatusCode::PRECONDITION_FAILED,
                "The DaemonSet is not what the caller has seen",
            ),
            Self::BodyTooLarge => ("body-too-large", StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"),
            Self::UnsupportedMediaType => {
                ("unsupported-media-type", StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body is not JSON")
            }
            Self::KeyAtWork => {
                ("key-at-work", StatusCode::CONFLICT, "The first request with this key has no answer yet")
            }
            Self::KeyReused => {
                ("key-reused", StatusCode::UNPROCESSABLE_ENTITY, "The key belongs to another request")
            }
            Self::ReasonRequired => {
                ("reason-required", StatusCode::UNPROCESSABLE_ENTITY, "A rollback needs a reason here")
            }
            Self::UnknownRevision => {
                ("unknown-revision", StatusCode::UNPROCESSABLE_ENTITY, "No such revision")
            }
            Self::NoPreviousRevision => {
                ("no-previous-revision", StatusCode::UNPROCESSABLE_ENTITY, "There is no previous revision")
            }
            Self::AmbiguousRevision => {
                ("ambiguous-revision", StatusCode::UNPROCESSABLE_ENTITY, "Several revisions have this number")
            }
            Self::DuplicateRevision => (
                "duplicate-revision",
                StatusCode::UNPROCESSABLE_ENTITY,
                "Several revisions hold the same pod template",
            ),
            Self::NotRecordable => (
                "not-recordable",
                StatusCode::UNPROCESSABLE_ENTITY,
                "The running template can't become a revision",
            ),
            Self::NotRestorable => {
                ("not-restorable", StatusCode::UNPROCESSABLE_ENTITY, "The revision can't be restored")
            }
            Self::BeingDeleted => {
                ("being-deleted", StatusCode::UNPROCESSABLE_ENTITY, "The DaemonSet is being deleted")
            }
            Self::UnknownGeneration => {
                ("unknown-generation", StatusCode::UNPROCESSABLE_ENTITY, "No such generation yet")
            }
            Self::Warned => {
                ("warned", StatusCode::UNPROCESSABLE_ENTITY, "There are warnings and failOnWarning is set")
            }
            Self::RefusedByApiServer => (
                "refused-by-api-server",
                StatusCode::UNPROCESSABLE_ENTITY,
                "The API server refused the change",
            ),
            Self::TooLarge => (
                "too-large",
                StatusCode::UNPROCESSABLE_ENTITY,
                "The revisions of the DaemonSet are too large to be read",
            ),
            Self::TooManyReads => (
                "too-many-reads",
                StatusCode::TOO_MANY_REQUESTS,
                "Too many reads of the caller wait for the API server",
            ),
            Self::NotReady => ("not-ready", StatusCode::SERVICE_UNAVAILABLE, "rollbackd is still starting"),
            Self::Stale => {
                ("stale", StatusCode::SERVICE_UNAVAILABLE, "The cluster has not been seen for long")
            }
            Self::Behind => {
                ("behind", StatusCode::SERVICE_UNAVAILABLE, "The change has not been seen here yet")
            }
            Self::ClusterUnavailable => (
                "cluster-unavailable",
                StatusCode::SERVICE_UNAVAILABLE,
                "The Kubernetes API server is not available",
            ),
            Self::MissingRight => {
                ("missing-right", StatusCode::SERVICE_UNAVAILABLE, "rollbackd's own account lacks a right")
            }
            Self::StoreUnavailable => {
                ("store-unavailable", StatusCode::SERVICE_UNAVAILABLE, "The audit store is not available")
            }
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "rollbackd failed"),
        }
    }

    /// The `type` URI.
    #[must_use]
    pub fn uri(self) -> String {
        format!("{TYPE_BASE}{}", self.about().0)
    }

    /// What a 401 asks for, as RFC 6750, 3 writes it.
    #[must_use]
    pub fn challenge(self) -> Option<&'static str> {
        match self {
            Self::NoToken => Some("Bearer realm=\"rollbackd\""),
            Self::InvalidToken => Some("Bearer realm=\"rollbackd\", error=\"invalid_token\""),
            _ => None,
        }
    }
}
