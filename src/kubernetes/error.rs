//! What can go wrong between rollbackd and the API server, by what the caller of a request can do
//! about it.

use std::{error::Error as StdError, time::Duration};

use hyper_util::client::legacy;

use super::transport::Silent;

/// A request to the API server that brought no result.
///
/// `Display` never holds text of an answer that is no Kubernetes `Status`, nor anything of a 5xx.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    /// The object does not exist. Nothing to retry.
    #[error("not found")]
    NotFound,
    /// The object has changed since it was read: read again, plan again.
    #[error("the object has been modified")]
    Conflict,
    /// The object has been deleted and made again under the same name: give up.
    #[error("the object was deleted and created again")]
    Replaced,
    /// rollbackd's own account lacks a right. `message` is the API server's, and names it.
    #[error("{message}")]
    Forbidden { message: String },
    /// rollbackd's own credentials are not accepted: expired, or the account is gone. Nothing was done.
    #[error("rollbackd's own credentials are not accepted by the API server")]
    Unauthenticated,
    /// The API server understood the request and refused it: validation or admission. Give up.
    #[error("{message}")]
    Refused { message: String },
    /// The API server is busy; the request was not carried out. Try later.
    #[error("the Kubernetes API server is busy")]
    Busy { retry_after: Option<Duration> },
    /// The API server did not answer, or not sensibly.
    #[error("the Kubernetes API server {problem}")]
    Unavailable { problem: &'static str, delivery: Delivery, retry_after: Option<Duration> },
}

/// Whether a request without a usable answer may have been carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// No connection was made, or the API server gave up before it stored anything: certainly not.
    NotCarriedOut,
    /// It was sent: perhaps, and perhaps only later.
    Unknown,
}

impl From<kube::Error> for ClusterError {
    fn from(error: kube::Error) -> Self {
        let unavailable = |problem, delivery| Self::Unavailable { problem, delivery, retry_after: None };
        match error {
            kube::Error::Api(status) => from_status(*status),
            error => match problem(&error) {
                Problem::Refused => unavailable("can't be reached", Delivery::NotCarriedOut),
                Problem::Silent => unavailable("did not answer in time", Delivery::Unknown),
                Problem::Broken => unavailable("broke off its answer", Delivery::Unknown),
                Problem::Garbled => unavailable("gave an answer that can't be read", Delivery::Unknown),
            },
        }
    }
}

fn from_status(status: kube::core::Status) -> ClusterError {
    let retry_after = status
        .details
        .as_ref()
        .map(|details| details.retry_after_seconds)
        .filter(|seconds| *seconds > 0)
        .map(|seconds| Duration::from_secs(u64::from(seconds)));
    let uid_changed = || {
        let causes = status.details.iter().flat_map(|details| &details.causes);
        causes.into_iter().any(|cause| cause.field == "metadata.uid")
    };
    match status.code {
        404 => ClusterError::NotFound,
        409 => ClusterError::Conflict,
        422 if uid_changed() => ClusterError::Replaced,
        401 => ClusterError::Unauthenticated,
        403 => ClusterError::Forbidden { message: status.message },
        429 => ClusterError::Busy { retry_after },
        // Webhooks are called before anything is stored (`admission/plugin/webhook`, `NewInternalError`).
        500 if status.message.contains("failed calling webhook") => ClusterError::Unavailable {
            problem: "can't call an admission webhook that has to agree",
            delivery: Delivery::NotCarriedOut,
            retry_after,
        },
        400..=499 => ClusterError::Refused { message: status.message },
        _ => ClusterError::Unavailable {
            problem: "failed to carry out the request",
            delivery: Delivery::Unknown,
            retry_after,
        },
    }
}

enum Problem {
    Refused,
    Silent,
    Broken,
    Garbled,
}

fn problem(error: &kube::Error) -> Problem {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<Silent>() {
            return Problem::Silent;
        }
        if error.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect) {
            return Problem::Refused;
        }
        if error.is::<serde_json::Error>() {
            return Problem::Garbled;
        }
        cause = error.source();
    }
    Problem::Broken
}
