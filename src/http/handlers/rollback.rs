//! `POST …/rollback`.

use std::collections::BTreeSet;

use axum::{
    Extension, Json as JsonAnswer,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use super::{
    super::{
        App, Depth, Writes,
        caller::Source,
        edge::Id,
        etag::{etag, precondition},
        extract::{At, Json, Query, Target},
        idempotency,
        negotiate::{Form, negotiate},
        prefer,
        problem::{Kind, Problem, ProblemBody},
    },
    daemonsets::{NoQuery, link},
    rollbacks::{RollbackView, shown},
};
use crate::{
    domain::{
        actor::Actor,
        diff::TemplateDiff,
        key::Key,
        kubectl::{self, Undo},
        revision::{RevisionNumber, RevisionRef},
        rollback::{
            Mode, OnWarning, Origin, Precondition, RevisionInfo, Rollback, RollbackRequest, RollbackState,
            Target as Revision, Warning, WarningCode,
        },
        text::escape,
    },
    kubernetes::ClusterError,
    rollbacks::{Answer, Outcome, Preview, RollbackError, Terms, Told},
};

/// Longest reason, in characters.
pub const MAX_REASON: usize = 1024;

/// What to roll back to, and why. Every field may be left out.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = RollbackRequest)]
pub struct Body {
    /// A revision's number, or the name of its ControllerRevision; left out, 0 or "previous": the
    /// revision before the running one.
    #[serde(default, deserialize_with = "to_revision")]
    #[schema(value_type = Option<ToRevision>)]
    to_revision: Option<Revision>,
    /// Why; kept in the audit.
    #[serde(default)]
    #[schema(max_length = 1024, examples("image 1.4.3 crashes on arm64"))]
    reason: Option<String>,
    /// Only try: asks the API server, admission included, and changes nothing.
    #[serde(default)]
    dry_run: Option<bool>,
    /// The number of the revision that the caller believes to be running; if another one is, 412.
    #[serde(default)]
    #[schema(examples(3))]
    expected_revision: Option<i64>,
    /// Refuse the rollback (422) if there is a warning of severity `warning` or `blocking`.
    #[serde(default)]
    fail_on_warning: Option<bool>,
    /// Codes of warnings that do not refuse it; only with `failOnWarning`.
    #[serde(default)]
    ignore_warnings: Option<Vec<WarningCode>>,
}

/// A number, a ControllerRevision's name, or "previous".
#[derive(utoipa::ToSchema)]
#[serde(untagged)]
pub enum ToRevision {
    Number(i64),
    Name(String),
}

fn to_revision<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Revision>, D::Error> {
    struct Visitor;

    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Option<Revision>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a revision number, the name of a ControllerRevision, or \"previous\"")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
            Ok(Some(match number {
                0 => Revision::Previous,
                // A negative number is well-formed; that there is no such revision is the plan's answer.
                number => Revision::Revision(RevisionRef::Number(RevisionNumber(number))),
            }))
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
            let number = i64::try_from(number);
            number
                .map_err(|_| E::invalid_value(serde::de::Unexpected::Other("a number beyond 2^63"), &self))
                .and_then(|number| self.visit_i64(number))
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            match text {
                "previous" => Ok(Some(Revision::Previous)),
                text => text
                    .parse::<i64>()
                    .map_or_else(
                        |_| text.parse().map(|revision| Some(Revision::Revision(revision))).map_err(|_| ()),
                        |number| self.visit_i64::<E>(number).map_err(|_| ()),
                    )
                    .map_err(|()| E::invalid_value(serde::de::Unexpected::Str(text), &Visitor)),
            }
        }
    }

    deserializer.deserialize_any(Visitor)
}

/// What a dry run found: the rollback that would be made.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollbackPreview {
    /// Id of the dry run, also in the audit.
    pub id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Always true.
    pub dry_run: bool,
    /// Whether nothing would be sent, as the template is already the one asked for.
    pub skipped: bool,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The generation that the rollback would make.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// The revision that runs now; absent until the controller has recorded it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<RevisionInfo>,
    /// The revision that would be restored.
    pub to: RevisionInfo,
    pub warnings: Vec<Warning>,
    pub message: String,
    /// What would change in the pod template, after admission; only for who may read ControllerRevisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<TemplateDiff>,
    pub requested_by: Actor,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<Actor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub requested_at: Timestamp,
    /// Entity tag of the DaemonSet that the dry run was made for.
    pub etag: String,
    pub links: PreviewLinks,
}

/// Where a dry run leads on, relative to the server's root.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PreviewLinks {
    #[schema(examples("daemonsets/monitoring/agent/rollback"))]
    pub rollback: String,
}

impl RollbackPreview {
    fn of(app: &App, preview: Preview, depth: Depth) -> Self {
        let etag = etag(&preview.uid, preview.live_generation, preview.id.as_bytes());
        Self {
            id: preview.id,
            cluster: app.cluster_name.clone(),
            dry_run: true,
            skipped: preview.skipped.is_some(),
            namespace: preview.key.namespace.to_string(),
            name: preview.key.name.to_string(),
            uid: preview.uid,
            generation: preview.generation,
            from: preview.from.map(|from| shown(from, depth)),
            to: shown(preview.to, depth),
            warnings: preview.warnings,
            message: preview.message,
            diff: (depth == Depth::Whole).then_some(preview.diff),
            requested_by: preview.origin.requested_by,
            on_behalf_of: preview.origin.on_behalf_of,
            reason: preview.origin.reason,
            requested_at: preview.requested_at,
            etag,
            links: PreviewLinks { rollback: format!("{}/rollback", link(&preview.key)) },
        }
    }
}

/// A rollback, or what a dry run found.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum RollbackResult {
    Rollback(RollbackView),
    Preview(RollbackPreview),
}

/// Roll back a DaemonSet
///
/// What `kubectl rollout undo` does, recorded before it is made and pinned to the DaemonSet that was
/// planned on: a change in between is refused, never overwritten. The rollout goes on after the
/// answer; `links.status` and `links.self` follow it.
#[utoipa::path(
    post, path = "/daemonsets/{namespace}/{name}/rollback", tag = "rollbacks",
    params(
        ("namespace" = String, Path, description = "Name of a namespace", example = "monitoring"),
        ("name" = String, Path, description = "Name of a DaemonSet", example = "agent"),
        ("Idempotency-Key" = Option<String>, Header, description = "What the caller calls this request, to send it again: a quoted string (the bare form is taken too) of at most 255 characters. The same caller, key, path and body get the first answer again, for 24 hours at least. What was refused before it was recorded, or failed in passing and changed nothing, is made when it is sent again; a dry run always is", example = "\"8e03978e-40d5-43e8-bc93-6894a57f9324\""),
        ("If-Match" = Option<String>, Header, description = "Entity tags, of the DaemonSet or of a dry run: if it has another uid or generation by now, 412. A change of its status alone fails nothing; a weak tag never matches", example = "\"7f9c2ba4-e88f-4d3a-9c55-0f2d1b6a7e10.3.5d41402abc4b2a76\""),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: answer when the rollback has ended, or after N seconds, at most 60. Other preferences are left alone", example = "wait=30"),
    ),
    request_body(content = Body, description = "May be empty; the content type may not", example = json!({"toRevision": 2, "reason": "image 1.4.3 crashes on arm64"})),
    responses(
        (status = 202, description = "The rollback is made, or its patch is `unsettled`", content(
            (RollbackView = "application/json"),
            (String = "text/plain", example = "daemonset.apps/agent rolled back\n"),
        ), headers(
            ("Location" = String, description = "The rollback"),
            ("Idempotent-Replayed" = String, description = "`true`, where this is the first answer to the key again"),
            ("Preference-Applied" = String, description = "`wait=N`, where the caller preferred to wait"),
        )),
        (status = 200, description = "Nothing was sent: a dry run, or the template is already the one asked for. Or the rollback has ended already, as the caller preferred to wait, or as another replica went on with it: `state` tells how", content(
            (RollbackResult = "application/json"),
            (String = "text/plain", example = "daemonset.apps/agent skipped rollback (current template already matches revision 3)\n"),
        ), headers(("Idempotent-Replayed" = String, description = "`true`, where this is the first answer to the key again"), ("Preference-Applied" = String, description = "`wait=N`, where the caller preferred to wait"))),
        (status = 400, description = "Malformed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such DaemonSet", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "Another rollback is being made, the first request with the same `Idempotency-Key` has no answer yet, the DaemonSet was changed in between, or the controller has not recorded the running template", body = ProblemBody, content_type = "application/problem+json"),
        (status = 412, description = "`expectedRevision` is not the running one, or `If-Match` does not hold", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "It makes no sense, the `Idempotency-Key` belongs to another request, there are warnings of severity `warning` or `blocking` and `failOnWarning` is set, or the API server refused it", body = ProblemBody, content_type = "application/problem+json", example = json!({"type": "https://rollbackd.dev/problems/unknown-revision", "title": "No such revision", "status": 422, "detail": "unable to find specified revision 99 in history", "instance": "/daemonsets/monitoring/agent/rollback", "requestId": "01936b5e-7d0a-7f43-9c7e-2f3f6a0b1c2d", "errors": [{"pointer": "/toRevision", "detail": "unable to find specified revision 99 in history"}]})),
        (status = "4XX", description = "The request can't be answered", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The API server or the audit store is out of reach; nothing was changed", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
#[expect(clippy::too_many_arguments, reason = "each is a part of the request")]
pub async fn roll_back(
    State(app): State<App>,
    At(arrival): At,
    Extension(Id(request_id)): Extension<Id>,
    Source(source): Source,
    Target(key): Target,
    Query(NoQuery {}): Query<NoQuery>,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Result<Response, Problem> {
    if app.writes == Writes::Refused {
        return Err(Problem::new(Kind::ReadOnly, "this rollbackd is read-only: it makes no rollbacks"));
    }
    let form = negotiate(&headers, &[Form::Json, Form::Text])?;
    let wait = prefer::wait(&headers)?;
    let terms = Terms { key: idempotency::key(&headers)?, wait };
    let request = body.check(app.require_reason, precondition(&headers)?)?;
    let origin = Origin {
        requested_by: arrival.actor().for_record(),
        on_behalf_of: arrival.on_behalf_of().map(Actor::for_record),
        reason: request.reason.clone(),
        request_id,
        source: Some(source.to_string()),
    };
    let meanwhile = kubectl::undo_command(&key, &request);
    let authorized = app.rollbacks.authorize(arrival, &key, &origin, request.mode).await;
    let (caller, grant) = authorized.map_err(|error| Problem::from(error).or_type(meanwhile.clone()))?;
    let Answer { result, told } = app.rollbacks.roll_back(grant, origin, request, terms).await;
    let mut response = match result {
        Ok(outcome) => {
            let depth = app.depth(&caller, &key.namespace).await;
            answer(&app, &key, form, depth, outcome)
        }
        Err(RollbackError::Cluster(ClusterError::NotFound)) => return Err(Problem::no_daemonset(&key)),
        Err(error) => Problem::from(error).or_type(meanwhile).into_response(),
    };
    let headers = response.headers_mut();
    match (told, wait) {
        (Told::Again, _) => drop(headers.insert(idempotency::REPLAYED, HeaderValue::from_static("true"))),
        (Told::First, Some(wait)) => drop(headers.insert(prefer::APPLIED, prefer::applied(wait))),
        (Told::First, None) => {}
    }
    Ok(response)
}

impl Body {
    fn check(self, require_reason: bool, precondition: Precondition) -> Result<RollbackRequest, Problem> {
        let reason = self.reason.map(|reason| reason.trim().to_owned()).filter(|reason| !reason.is_empty());
        if reason.as_ref().is_some_and(|reason| reason.chars().count() > MAX_REASON) {
            let detail = format!("reason: expected at most {MAX_REASON} characters");
            return Err(Problem::pointer(Kind::InvalidRequest, "/reason", detail));
        }
        if require_reason && reason.is_none() {
            let detail = "reason: expected some text: this rollbackd makes no rollback without a reason";
            return Err(Problem::pointer(Kind::ReasonRequired, "/reason", detail));
        }
        if self.expected_revision.is_some_and(|number| number < 1) {
            let detail = "expectedRevision: expected a number from 1";
            return Err(Problem::pointer(Kind::InvalidRequest, "/expectedRevision", detail));
        }
        let ignore: BTreeSet<WarningCode> = self.ignore_warnings.into_iter().flatten().collect();
        let on_warning = match self.fail_on_warning {
            Some(true) => OnWarning::Refuse { ignore },
            Some(false) | None if ignore.is_empty() => OnWarning::Proceed,
            Some(false) | None => {
                let detail = "ignoreWarnings: expected none without failOnWarning: true";
                return Err(Problem::pointer(Kind::InvalidRequest, "/ignoreWarnings", detail));
            }
        };
        Ok(RollbackRequest {
            to: self.to_revision.unwrap_or(Revision::Previous),
            reason,
            mode: if self.dry_run == Some(true) { Mode::DryRun } else { Mode::Apply },
            expected_revision: self.expected_revision.map(RevisionNumber),
            precondition,
            on_warning,
        })
    }
}

/// Whether kubectl's sentence tells the whole of a state.
fn went_well(rollback: &Rollback) -> bool {
    matches!(rollback.state, RollbackState::Progressing | RollbackState::Succeeded | RollbackState::Applied)
}

fn answer(app: &App, key: &Key, form: Form, depth: Depth, outcome: Outcome) -> Response {
    let (status, undo, dry_run) = match &outcome {
        Outcome::Made(_) => (StatusCode::ACCEPTED, Undo::RolledBack, false),
        Outcome::Ended(_) => (StatusCode::OK, Undo::RolledBack, false),
        Outcome::Skipped { number, .. } => (StatusCode::OK, Undo::Skipped(number.0), false),
        Outcome::Previewed(preview) => {
            let undo = preview.skipped.map_or(Undo::RolledBack, |number| Undo::Skipped(number.0));
            (StatusCode::OK, undo, true)
        }
    };
    let (warnings, location) = match &outcome {
        Outcome::Made(rollback) | Outcome::Ended(rollback) | Outcome::Skipped { rollback, .. } => {
            (rollback.warnings.clone(), Some(format!("/rollbacks/{}", rollback.id)))
        }
        Outcome::Previewed(preview) => (preview.warnings.clone(), None),
    };
    let mut response = match (form, outcome) {
        (Form::Text, Outcome::Made(rollback) | Outcome::Ended(rollback)) if !went_well(&rollback) => (
            [(header::CONTENT_TYPE, Form::Text.content_type())],
            format!(
                "daemonset.apps/{} rollback {}: {}\n",
                key.name,
                rollback.state.as_str(),
                escape(&rollback.message)
            ),
        )
            .into_response(),
        (Form::Text, _) => {
            let body = kubectl::undo(&key.name, undo, dry_run);
            ([(header::CONTENT_TYPE, Form::Text.content_type())], body).into_response()
        }
        (_, Outcome::Made(rollback) | Outcome::Ended(rollback) | Outcome::Skipped { rollback, .. }) => {
            JsonAnswer(RollbackView::of(app, &rollback, depth)).into_response()
        }
        (_, Outcome::Previewed(preview)) => {
            JsonAnswer(RollbackPreview::of(app, preview, depth)).into_response()
        }
    };
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Some(location) = location.and_then(|location| HeaderValue::from_str(&location).ok()) {
        headers.insert(header::LOCATION, location);
    }
    // As the API server sends warnings to kubectl.
    for warning in warnings {
        if let Ok(value) = HeaderValue::from_str(&format!("299 - {:?}", warning.message)) {
            headers.append(header::WARNING, value);
        }
    }
    response
}
