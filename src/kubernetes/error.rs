//! What can go wrong between rollbackd and the API server, by what the caller of a request can do
//! about it.

use std::{error::Error as StdError, time::Duration};

use hyper_util::client::legacy;

use super::transport::{NoStatus, Silent};
use crate::domain::text::cut;

/// Bytes of the API server's words that are kept: far more than a person reads, and little in a record.
const WORDS: usize = 4096;

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
    /// Too many reads of the same caller wait for the API server. Try later.
    #[error("too many requests of yours wait for the Kubernetes API server")]
    TooManyReads,
    /// What was asked for is there, and larger than rollbackd reads. Nothing to retry.
    #[error("{what} are too large to be read")]
    TooLarge { what: &'static str },
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
                Problem::Garbled { retry_after } => Self::Unavailable {
                    problem: "gave an answer that can't be read",
                    delivery: Delivery::Unknown,
                    retry_after,
                },
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
        403 => ClusterError::Forbidden { message: words(&status) },
        429 => ClusterError::Busy { retry_after },
        // Webhooks are called before anything is stored (`admission/plugin/webhook`, `NewInternalError`).
        500 if status.message.contains("failed calling webhook") => ClusterError::Unavailable {
            problem: "can't call an admission webhook that has to agree",
            delivery: Delivery::NotCarriedOut,
            retry_after,
        },
        400..=499 => ClusterError::Refused { message: words(&status) },
        _ => ClusterError::Unavailable {
            problem: "failed to carry out the request",
            delivery: Delivery::Unknown,
            retry_after,
        },
    }
}

/// What the API server says, without the pod template: of a patch that does not fit the object's type it
/// repeats the whole (`patch: Invalid value: "map[…]": …` in `endpoints/handlers/patch.go`).
fn words(status: &kube::core::Status) -> String {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let undecodable = causes.into_iter().find(|cause| cause.field == "patch");
    let message = match undecodable {
        Some(cause) => {
            let why = cause.message.rsplit_once("]\": ").map(|(_, why)| why);
            format!(
                "the template does not have the form of a DaemonSet's: {}",
                why.unwrap_or("it can't be read")
            )
        }
        None => status.message.clone(),
    };
    cut(&message, WORDS).into_owned()
}

enum Problem {
    Refused,
    Silent,
    Broken,
    Garbled { retry_after: Option<Duration> },
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
        if let Some(NoStatus { retry_after, .. }) = error.downcast_ref() {
            return Problem::Garbled { retry_after: *retry_after };
        }
        if error.is::<serde_json::Error>() {
            return Problem::Garbled { retry_after: None };
        }
        cause = error.source();
    }
    Problem::Broken
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(status: &serde_json::Value) -> ClusterError {
        from_status(serde_json::from_value(status.clone()).unwrap())
    }

    #[test]
    fn of_a_patch_that_can_not_be_read_the_template_is_left_out() {
        let value = r#"map[spec:map[template:map[env:S3CRET said:\"]\": S3CRET]]]"#;
        let message = format!("Invalid value: \"{value}\": unrecognized type: int32");
        let status = json!({
            "code": 422, "reason": "Invalid", "message": format!(" \"\" is invalid: patch: {message}"),
            "details": {"causes": [{"field": "patch", "reason": "FieldValueInvalid", "message": message}]},
        });
        let ClusterError::Refused { message } = error(&status) else { panic!() };
        assert_eq!(message, "the template does not have the form of a DaemonSet's: unrecognized type: int32");
        let status = json!({"code": 403, "reason": "Forbidden", "message": "x".repeat(100_000)});
        let ClusterError::Forbidden { message } = error(&status) else { panic!() };
        assert_eq!(message.len(), WORDS);
    }

    #[test]
    fn what_the_api_server_says_of_objects_and_of_itself_is_believed() {
        assert!(matches!(error(&json!({"code": 429})), ClusterError::Busy { .. }));
        assert!(matches!(error(&json!({"code": 404, "reason": "NotFound"})), ClusterError::NotFound));
    }
}
