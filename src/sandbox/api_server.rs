//! The Kubernetes requests that rollbackd makes, and no others: get, list, watch, the strategic merge patch
//! of a rollback, the review of rollbackd's own rights, the creation of an Event. It stands under `kube::Client` and has no port.

use std::{sync::Arc, time::Duration};

use async_stream::stream;
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    Sandbox, Unsimulated, daemonset,
    selector::Selector,
    world::{Change, Due, Event, Id, Kind, TooOld, whole_seconds},
};

/// The Kubernetes version that it says it is: the oldest that rollbackd supports.
const VERSION: &str = "v1.33.0";
/// Between two bookmarks of a watch.
const BOOKMARK: Duration = Duration::from_secs(10);
/// For how many seconds an Event is kept (`--event-ttl`).
const EVENT_TTL: f64 = 3_600.0;
/// Longest note of an Event, in bytes.
const NOTE: usize = 1_024;

/// Issuer of the tokens of the cluster's service accounts.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// All routes.
pub fn router(sandbox: Sandbox, unsimulated: Unsimulated) -> Router {
    let apps = "/apis/apps/v1";
    Router::new()
        .route("/version", get(async || Json(json!({"major": "1", "minor": "33", "gitVersion": VERSION}))))
        .route("/.well-known/openid-configuration", get(async || Json(json!({"issuer": ISSUER}))))
        .route(&format!("{apps}/{{plural}}"), get(list_all))
        .route(&format!("{apps}/namespaces/{{namespace}}/{{plural}}"), get(list))
        .route(&format!("{apps}/namespaces/{{namespace}}/{{plural}}/{{name}}"), get(read).patch(patch))
        .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events", post(event))
        .route("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", post(review))
        .method_not_allowed_fallback(unknown)
        .fallback(unknown)
        .with_state(Served { sandbox, unsimulated })
        .layer(axum::middleware::map_response(dated))
}

/// Each answer says what time it is (RFC 9110, 6.6.1).
async fn dated(mut response: Response) -> Response {
    let now = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    if let Ok(now) = now.parse() {
        response.headers_mut().insert(header::DATE, now);
    }
    response
}

/// What the routes work with.
#[derive(Clone)]
struct Served {
    sandbox: Sandbox,
    unsimulated: Unsimulated,
}

impl Served {
    /// Says no to a request that rollbackd never makes.
    fn refuse(&self, method: &Method, uri: &Uri, why: &str) -> Failure {
        self.unsimulated.remember(format!("{method} {uri}: {why}"));
        Failure::new(StatusCode::NOT_FOUND, "NotFound", format!("the sandbox does not simulate this: {why}"))
    }
}

async fn unknown(State(served): State<Served>, request: Request) -> Failure {
    served.refuse(request.method(), request.uri(), "no such route")
}

/// An answer that is a Kubernetes `Status`.
pub struct Failure {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Value,
}

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: json!({}) }
    }

    fn of(id: &Id, code: StatusCode, reason: &'static str, what: &str) -> Self {
        let kind = plural(id.kind);
        let message = match code {
            StatusCode::CONFLICT => {
                format!("Operation cannot be fulfilled on {kind}.apps \"{}\": {what}", id.name)
            }
            StatusCode::NOT_FOUND => format!("{kind}.apps \"{}\" not found", id.name),
            _ => format!("DaemonSet.apps \"{}\" is invalid: {what}", id.name),
        };
        let details = json!({"name": id.name, "group": "apps", "kind": kind});
        Self { code, reason, message, details }
    }

    fn invalid(id: &Id, field: &str, what: &str) -> Self {
        let text = format!("{field}: Invalid value: {what}");
        let mut failure = Self::of(id, StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &text);
        failure.details["causes"] = json!([{"reason": "FieldValueInvalid", "message": format!("Invalid value: {what}"), "field": field}]);
        failure
    }

    fn not_found(id: &Id) -> Self {
        Self::of(id, StatusCode::NOT_FOUND, "NotFound", "")
    }

    fn expired() -> Self {
        let message = "The resourceVersion for the provided watch or list is too old.";
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// The feature gate WatchList is off by default up to Kubernetes 1.33.
    fn no_streamed_list() -> Self {
        let message = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    fn status(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "details": self.details,
            "code": self.code.as_u16(),
        })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.code, Json(self.status())).into_response()
    }
}

fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::DaemonSet => "daemonsets",
        Kind::ControllerRevision => "controllerrevisions",
        Kind::Pod => "pods",
        Kind::Node => "nodes",
        Kind::Event => "events",
    }
}

fn kind_of(plural: &str) -> Option<(Kind, &'static str)> {
    match plural {
        "daemonsets" => Some((Kind::DaemonSet, "DaemonSet")),
        "controllerrevisions" => Some((Kind::ControllerRevision, "ControllerRevision")),
        _ => None,
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListQuery {
    #[serde(default)]
    watch: bool,
    #[serde(default)]
    resource_version: String,
    label_selector: Option<String>,
    field_selector: Option<String>,
    limit: Option<usize>,
    r#continue: Option<String>,
    timeout_seconds: Option<u64>,
    #[serde(default)]
    allow_watch_bookmarks: bool,
    #[serde(default)]
    send_initial_events: bool,
    #[serde(rename = "resourceVersionMatch")]
    _resource_version_match: Option<String>,
}

async fn list_all(
    served: State<Served>,
    Path(plural): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Failure> {
    collection(&served, None, &plural, &headers, &uri)
}

async fn list(
    served: State<Served>,
    Path((namespace, plural)): Path<(String, String)>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Failure> {
    collection(&served, Some(namespace), &plural, &headers, &uri)
}

fn collection(
    served: &Served,
    namespace: Option<String>,
    plural: &str,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<Response, Failure> {
    let (kind, name) = kind_of(plural).ok_or_else(|| served.refuse(&Method::GET, uri, "no such kind"))?;
    let Query(query) = Query::<ListQuery>::try_from_uri(uri)
        .map_err(|error| served.refuse(&Method::GET, uri, &error.to_string()))?;
    let selector = match query.label_selector.as_deref().map(Selector::parse) {
        Some(None) => {
            return Err(Failure::new(StatusCode::BAD_REQUEST, "BadRequest", "unable to parse requirement"));
        }
        Some(Some(selector)) => selector,
        None => Selector::default(),
    };
    let name_of = |selector: &str| selector.strip_prefix("metadata.name=").map(str::to_owned);
    let name_wanted = match query.field_selector.as_deref().map(name_of) {
        Some(None) => return Err(served.refuse(&Method::GET, uri, "no such field selector")),
        other => other.flatten(),
    };
    let wanted = Wanted { kind, namespace, name: name_wanted, selector };
    if query.send_initial_events {
        return Err(Failure::no_streamed_list());
    }
    if query.watch {
        return Ok(watch(served.sandbox.clone(), wanted, name, &query));
    }
    let as_metadata = headers
        .get(header::ACCEPT)
        .is_some_and(|accept| accept.as_bytes().windows(25).any(|it| it == b"as=PartialObjectMetadataL"));
    page(&served.sandbox, &wanted, name, &query, as_metadata).map(|list| Json(list).into_response())
}

/// What a list or a watch is about.
struct Wanted {
    kind: Kind,
    namespace: Option<String>,
    name: Option<String>,
    selector: Selector,
}

impl Wanted {
    fn holds(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        self.namespace.as_deref().is_none_or(|namespace| metadata["namespace"] == namespace)
            && self.name.as_deref().is_none_or(|name| metadata["name"] == name)
            && self.selector.matches(&metadata["labels"])
    }
}

/// One page of a list. A token names the version of the first page and the last object of the page before.
fn page(
    sandbox: &Sandbox,
    wanted: &Wanted,
    kind: &str,
    query: &ListQuery,
    as_metadata: bool,
) -> Result<Value, Failure> {
    let bad_token = || Failure::new(StatusCode::BAD_REQUEST, "BadRequest", "continue key is not valid");
    let from = match query.r#continue.as_deref().filter(|token| !token.is_empty()) {
        None => None,
        Some(token) => {
            let mut parts = token.splitn(3, '/');
            let version = parts.next().and_then(|version| version.parse::<u64>().ok());
            let place = parts.next().zip(parts.next());
            Some(version.zip(place).ok_or_else(bad_token)?)
        }
    };
    sandbox.with(|world| {
        let (version, after) = match from {
            // What changed since the first page is shown by the watch that starts at its version.
            Some((version, (namespace, name))) => {
                if world.since(version).is_err() {
                    return Err(Failure::expired());
                }
                (version, Some(Id::new(wanted.kind, namespace, name)))
            }
            None => (world.version(), None),
        };
        let found: Vec<_> = world
            .list(wanted.kind)
            .filter(|(id, object)| after.as_ref().is_none_or(|after| *id > after) && wanted.holds(object))
            .collect();
        let size = query.limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if let Some((last, _)) = found.get(size - 1).filter(|_| found.len() > size) {
            metadata["continue"] = json!(format!("{version}/{}/{}", last.namespace, last.name));
            metadata["remainingItemCount"] = json!(found.len() - size);
        }
        let item = |object: &Arc<Value>| {
            if as_metadata { json!({"metadata": object["metadata"]}) } else { Value::clone(object) }
        };
        let items: Vec<Value> = found.iter().take(size).map(|(_, object)| item(object)).collect();
        let (kind, group) = match as_metadata {
            true => ("PartialObjectMetadata", "meta.k8s.io/v1"),
            false => (kind, "apps/v1"),
        };
        Ok(json!({"kind": format!("{kind}List"), "apiVersion": group, "metadata": metadata, "items": items}))
    })
}

fn watch(sandbox: Sandbox, wanted: Wanted, kind: &'static str, query: &ListQuery) -> Response {
    let mut seen: u64 = query.resource_version.parse().unwrap_or(0);
    let end = Instant::now() + Duration::from_secs(query.timeout_seconds.unwrap_or(1_800));
    let bookmarks = query.allow_watch_bookmarks;
    let lines = stream! {
        let mut changed = sandbox.changed();
        let mut bookmark = tokio::time::interval_at(Instant::now() + BOOKMARK, BOOKMARK);
        loop {
            changed.mark_unchanged();
            let news = sandbox.with(|world| {
                let events = world.since(seen)?.filter(|event| event.kind == wanted.kind);
                let lines: String = events.filter(|event| wanted.holds(&event.object)).map(change_line).collect();
                Ok((world.version(), lines))
            });
            match news {
                Ok((version, lines)) => {
                    seen = seen.max(version);
                    if !lines.is_empty() {
                        yield Ok::<_, std::convert::Infallible>(Bytes::from(lines));
                    }
                }
                Err(TooOld) => {
                    yield Ok(Bytes::from(line("ERROR", &Failure::expired().status())));
                    return;
                }
            }
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                _ = bookmark.tick(), if bookmarks => {
                    let metadata = json!({"resourceVersion": seen.to_string()});
                    let object = json!({"kind": kind, "apiVersion": "apps/v1", "metadata": metadata});
                    yield Ok(Bytes::from(line("BOOKMARK", &object)));
                }
                () = tokio::time::sleep_until(end) => return,
            }
        }
    };
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
}

/// One event of a watch. The type comes first, as from the real one: kube reads what follows by it.
fn line(kind: &str, object: &Value) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn change_line(event: &Event) -> String {
    let change = match event.change {
        Change::Added => "ADDED",
        Change::Modified => "MODIFIED",
        Change::Deleted => "DELETED",
    };
    line(change, &event.object)
}

async fn read(
    State(served): State<Served>,
    Path((namespace, plural, name)): Path<(String, String, String)>,
    uri: Uri,
) -> Result<Json<Value>, Failure> {
    let (kind, _) = kind_of(&plural).ok_or_else(|| served.refuse(&Method::GET, &uri, "no such kind"))?;
    let id = Id::new(kind, &namespace, &name);
    let found = served.sandbox.with(|world| world.get(&id));
    found.map(|object| Json(Value::clone(&object))).ok_or_else(|| Failure::not_found(&id))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PatchQuery {
    dry_run: Option<String>,
    field_manager: String,
}

/// The one shape that rollbackd sends: preconditions, annotations, and a template that replaces the live one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    metadata: PatchMetadata,
    spec: Option<PatchSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PatchMetadata {
    uid: String,
    resource_version: String,
    annotations: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchSpec {
    template: Map<String, Value>,
}

async fn patch(
    State(served): State<Served>,
    Path((namespace, plural, name)): Path<(String, String, String)>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Failure> {
    let refuse = |why: &str| served.refuse(&Method::PATCH, &uri, why);
    let strategic =
        headers.get(header::CONTENT_TYPE).is_some_and(|it| it == "application/strategic-merge-patch+json");
    if plural != "daemonsets" || !strategic {
        return Err(refuse("not a strategic merge patch of a DaemonSet"));
    }
    let Query(query) = Query::<PatchQuery>::try_from_uri(&uri).map_err(|error| refuse(&error.to_string()))?;
    let patch: Patch = serde_json::from_slice(&body).map_err(|error| refuse(&error.to_string()))?;
    let id = Id::new(Kind::DaemonSet, &namespace, &name);
    served.sandbox.with(|world| {
        let live = world.get(&id).ok_or_else(|| Failure::not_found(&id))?;
        if live["metadata"]["resourceVersion"] != patch.metadata.resource_version {
            let what =
                "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Failure::of(&id, StatusCode::CONFLICT, "Conflict", what));
        }
        if live["metadata"]["uid"] != patch.metadata.uid {
            let what = format!("{:?}: field is immutable", patch.metadata.uid);
            return Err(Failure::invalid(&id, "metadata.uid", &what));
        }
        let template =
            patch.spec.map(|spec| replaced(spec.template).ok_or_else(|| refuse("no $patch: replace")));
        let template = template.transpose()?;
        if let Some(template) = &template {
            let labels = &template["metadata"]["labels"];
            if !Selector::of(&live["spec"]["selector"]).matches(labels) {
                let what = format!("{labels}: `selector` does not match template `labels`");
                return Err(Failure::invalid(&id, "spec.template.metadata.labels", &what));
            }
        }
        let change = |object: &mut Value| {
            for (key, value) in patch.metadata.annotations {
                object["metadata"]["annotations"][key] = value;
            }
            if let Some(template) = template {
                object["spec"]["template"] = template;
            }
        };
        if query.dry_run.as_deref() == Some("All") {
            let mut object = Value::clone(&live);
            daemonset::edited(&mut object, &query.field_manager, &whole_seconds(world.now()), change);
            return Ok(Json(object));
        }
        let written = daemonset::edit(world, &id, &query.field_manager, change);
        Ok(Json(Value::clone(&written.unwrap_or(live))))
    })
}

/// The template of a patch that says that it replaces the live one.
fn replaced(mut template: Map<String, Value>) -> Option<Value> {
    (template.remove("$patch")? == "replace").then_some(Value::Object(template))
}

/// rollbackd may do everything here.
async fn review(Json(mut review): Json<Value>) -> (StatusCode, Json<Value>) {
    review["status"] = json!({"allowed": true});
    (StatusCode::CREATED, Json(review))
}

/// The fields that an Event of rollbackd's has; all are required.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewEvent {
    api_version: String,
    kind: String,
    metadata: EventMetadata,
    #[serde(rename = "eventTime")]
    _time: jiff::Timestamp,
    r#type: String,
    reason: String,
    action: String,
    note: String,
    regarding: Map<String, Value>,
    reporting_controller: String,
    reporting_instance: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventMetadata {
    name: String,
    namespace: String,
}

/// Takes an Event. Nobody acts on it.
async fn event(
    State(served): State<Served>,
    Path(namespace): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let refuse = |why: &str| served.refuse(&Method::POST, &uri, why);
    let object: Value = serde_json::from_slice(&body).map_err(|error| refuse(&error.to_string()))?;
    let new = NewEvent::deserialize(&object).map_err(|error| refuse(&error.to_string()))?;
    let short = [&new.reason, &new.action, &new.reporting_controller, &new.reporting_instance];
    let valid = (new.api_version.as_str(), new.kind.as_str()) == ("events.k8s.io/v1", "Event")
        && new.metadata.namespace == namespace
        && new.regarding["namespace"] == namespace
        && ["Normal", "Warning"].contains(&new.r#type.as_str())
        && short.iter().all(|text| (1..=128).contains(&text.len()))
        && new.note.len() <= NOTE;
    if !valid {
        let message = format!("Event \"{}\" is invalid", new.metadata.name);
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message));
    }
    let id = Id::new(Kind::Event, &namespace, &new.metadata.name);
    served.sandbox.with(|world| {
        if world.get(&id).is_some() {
            let message = format!("events.events.k8s.io \"{}\" already exists", id.name);
            return Err(Failure::new(StatusCode::CONFLICT, "AlreadyExists", message));
        }
        let created = world.create(Kind::Event, object);
        world.plan(EVENT_TTL, Due::Forget(id));
        Ok((StatusCode::CREATED, Json(Value::clone(&created))))
    })
}
