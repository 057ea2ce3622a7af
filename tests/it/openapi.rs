//! The OpenAPI document: current, complete, and true of real answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use boon::{Compiler, Draft, Schemas};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    errors::PATHS,
    support::{
        api::{Answer, Api},
        controlplane::ControlPlane,
        rollbackd::{Rollbackd, Setup},
        space::{Space, daemonset},
    },
};

const HERE: &str = "https://rollbackd.invalid/openapi.json";

fn document() -> Value {
    serde_json::from_str(&rollbackd::http::openapi::document()).unwrap()
}

/// Each operation as path, method and object.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    let all = paths.flat_map(|(path, item)| {
        let item = item.as_object().unwrap().iter();
        item.map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    });
    all.collect()
}

/// Makes a pointer's part of a text, percent-encoded where a URL needs it.
fn part(text: &str) -> String {
    text.replace('~', "~0").replace('/', "~1").replace('{', "%7B").replace('}', "%7D")
}

/// The schemas of the document, closed: an answer's field that is not documented is an error.
struct Judge {
    compiler: Compiler,
    schemas: Schemas,
}

impl Judge {
    fn new(mut document: Value) -> Self {
        let mut joined = BTreeSet::new();
        names_of_joined(&document, &mut joined);
        for (name, schema) in document["components"]["schemas"].as_object_mut().unwrap() {
            close(schema, !joined.contains(name));
        }
        let mut compiler = Compiler::new();
        compiler.set_default_draft(Draft::V2020_12);
        compiler.enable_format_assertions();
        compiler.add_resource(HERE, document).unwrap();
        Self { compiler, schemas: Schemas::new() }
    }

    fn check(&mut self, pointer: &str, value: &Value) -> Result<(), String> {
        let schema = self
            .compiler
            .compile(&format!("{HERE}#{pointer}"), &mut self.schemas)
            .map_err(|error| format!("{pointer}: {error:#}"))?;
        self.schemas.validate(value, schema).map_err(|error| format!("{pointer}: {error:#}\n{value:#}"))
    }

    /// Checks one answer against what the document says of its operation, status and media type.
    fn judge(&mut self, document: &Value, path: &str, answer: &Answer) {
        let method = if path.ends_with("/rollback") { "post" } else { "get" };
        let responses = &document["paths"][path][method]["responses"];
        let exact = answer.status.to_string();
        let status = if responses[&exact].is_object() { exact } else { format!("{}XX", answer.status / 100) };
        let media_type = answer.header("content-type").split(';').next().unwrap();
        let content = &responses[&status]["content"][media_type];
        assert!(content.is_object(), "{path}: {status} {media_type} is not documented: {answer:?}");
        let parts = ["paths", path, method, "responses", &status, "content", media_type, "schema"];
        let pointer: String = parts.iter().map(|name| format!("/{}", part(name))).collect();
        let values = match media_type {
            "application/json" | "application/problem+json" => vec![answer.json()],
            _ => vec![Value::from(answer.text.clone())],
        };
        for value in values {
            self.check(&pointer, &value).unwrap_or_else(|error| panic!("{path} {status}: {error}"));
        }
        let headers = responses[&status]["headers"].as_object().filter(|_| media_type == "application/json");
        // Those are there only for who asked for them.
        let always = |name: &&String| !["Idempotent-Replayed", "Preference-Applied"].contains(&name.as_str());
        for name in headers.into_iter().flat_map(serde_json::Map::keys).filter(always) {
            assert!(answer.headers.contains_key(name), "{path}: {name} is documented: {answer:?}");
        }
    }
}

/// Schemas that others take in by `allOf`: those can't be closed by themselves.
fn names_of_joined(value: &Value, names: &mut BTreeSet<String>) {
    for part in value["allOf"].as_array().into_iter().flatten() {
        names.extend(part["$ref"].as_str().and_then(|name| name.rsplit('/').next()).map(str::to_owned));
    }
    match value {
        Value::Object(fields) => fields.values().for_each(|value| names_of_joined(value, names)),
        Value::Array(items) => items.iter().for_each(|value| names_of_joined(value, names)),
        _ => {}
    }
}

fn close(schema: &mut Value, whole: bool) {
    if whole && (schema["properties"].is_object() || schema["allOf"].is_array()) {
        schema["unevaluatedProperties"] = false.into();
    }
    for key in ["oneOf", "anyOf"] {
        schema[key].as_array_mut().into_iter().flatten().for_each(|one| close(one, true));
    }
    if let Some(schema) = schema.as_object_mut() {
        schema.retain(|_, value| !value.is_null());
    }
}

#[tokio::test]
async fn the_committed_document_is_current() {
    let printed = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollbackd")).arg("openapi").output().await;
    let printed = printed.unwrap();
    assert!(printed.status.success());
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
    let committed = std::fs::read_to_string(committed).unwrap();
    let same = committed == String::from_utf8(printed.stdout).unwrap();
    assert!(same, "run: cargo run -- openapi > openapi/openapi.json");
    let rollbackd = Rollbackd::start().await;
    let served = rollbackd.api.get("/openapi.json").await;
    assert_eq!(served.expect(200), serde_json::from_str::<Value>(&committed).unwrap());
}

#[test]
fn every_operation_has_what_a_client_generator_and_a_reader_need() {
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    let tags: Vec<&Value> = document["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap();
        assert!(ids.insert(id), "{id} is there twice");
        assert!(id.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{id}");
        assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{id}");
        assert!(tags.contains(&&operation["tags"][0]), "{id}");
        assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{id}");
        let in_path: BTreeSet<&str> =
            path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        let parameters = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
        let documented = parameters.iter().filter(|parameter| parameter["in"] == "path");
        assert_eq!(documented.map(|one| one["name"].as_str().unwrap()).collect::<BTreeSet<_>>(), in_path);
        assert!(
            parameters.iter().all(|one| one["description"].is_string() && one["schema"].is_object()),
            "{id}"
        );
        // Whatever goes wrong has the form of a problem.
        let responses = operation["responses"].as_object().unwrap();
        let local = ["/version", "/livez", "/readyz", "/metrics"].contains(&path);
        for status in ["4XX", "500", "503"].iter().take(if local { 2 } else { 3 }) {
            assert!(responses.contains_key(*status), "{method} {path} has no {status}");
        }
        for (status, response) in responses {
            assert!(!response["description"].as_str().unwrap_or_default().is_empty(), "{id} {status}");
            if status.starts_with(['4', '5']) && !(path == "/readyz" && status == "503") {
                let schema = &response["content"]["application/problem+json"]["schema"];
                assert_eq!(schema["$ref"], "#/components/schemas/Problem", "{id} {status}");
            }
        }
    }
    let names = document["components"]["schemas"].as_object().unwrap().keys();
    for name in names {
        assert!(name.starts_with(|c: char| c.is_ascii_uppercase()), "{name} is no name for a type");
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = document();
    let mut walk = vec![&document];
    while let Some(value) = walk.pop() {
        if let Some(reference) = value["$ref"].as_str() {
            let pointer = reference.strip_prefix('#').expect("a reference into the document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        match value {
            Value::Object(fields) => walk.extend(fields.values()),
            Value::Array(items) => walk.extend(items),
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_is_documented_is_what_is_served() {
    let document = document();
    let paths: BTreeMap<String, BTreeSet<String>> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, item)| (path.clone(), item.as_object().unwrap().keys().cloned().collect()))
        .collect();
    let fill = |path: &str| {
        let path = path.replace("{namespace}", "a").replace("{name}", "b").replace("{revision}", "1");
        path.replace("{id}", "x")
    };
    let walked: BTreeSet<String> = PATHS.iter().map(|path| (*path).to_owned()).collect();
    assert_eq!(paths.keys().map(|path| fill(path)).collect::<BTreeSet<_>>(), walked);

    let rollbackd = Rollbackd::start().await;
    for (path, documented) in &paths {
        for method in ["get", "post", "put", "patch", "delete", "options", "trace"] {
            let request: Method = method.to_uppercase().parse().unwrap();
            let answer = rollbackd.api.send(rollbackd.api.request(request, &fill(path))).await;
            assert_eq!(answer.status != 405, documented.contains(method), "{method} {path}: {answer:?}");
            assert!(!answer.text.contains("problems/unknown-path"), "{method} {path}: {answer:?}");
        }
    }
}

#[test]
fn every_example_is_of_the_form_that_it_is_an_example_of() {
    let document = document();
    let mut judge = Judge::new(document.clone());
    let mut seen = 0;
    let mut walk: Vec<(String, &Value)> = vec![(String::new(), &document)];
    while let Some((pointer, value)) = walk.pop() {
        // A media type or a parameter has a schema beside its example; a schema has examples of itself.
        let of = if value["schema"].is_object() { format!("{pointer}/schema") } else { pointer.clone() };
        let several = value["examples"].as_array().into_iter().flatten();
        for example in several.chain(value.get("example")) {
            judge.check(&of, example).unwrap_or_else(|error| panic!("the example at {pointer}: {error}"));
            seen += 1;
        }
        let parts: Vec<(String, &Value)> = match value {
            Value::Object(fields) => fields.iter().map(|(name, value)| (part(name), value)).collect(),
            Value::Array(items) => {
                items.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect()
            }
            _ => Vec::new(),
        };
        walk.extend(parts.into_iter().map(|(name, value)| (format!("{pointer}/{name}"), value)));
    }
    assert!(seen > 40, "{seen} examples");
}

/// Answers of all kinds, each with the path in the document that they belong to.
async fn answers(api: &Api, space: &Space) -> Vec<(&'static str, Answer)> {
    const ONE: &str = "/daemonsets/{namespace}/{name}";
    const ROLLBACK: &str = "/daemonsets/{namespace}/{name}/rollback";
    let path = space.path("agent");
    let rollback = format!("{path}/rollback");
    let mut answers = vec![
        (ROLLBACK, api.post(&rollback, &json!({"toRevision": 1, "dryRun": true, "reason": "to see"})).await),
        (ROLLBACK, api.post(&rollback, &json!({"dryRun": true, "toRevision": 2})).await),
        (ROLLBACK, api.post(&rollback, &json!({"toRevision": 2})).await),
        (ROLLBACK, api.post(&rollback, &json!({"toRevision": 1, "reason": "it crashes"})).await),
        (ROLLBACK, api.post(&rollback, &json!({"toRevision": 99})).await),
        (ROLLBACK, api.post(&rollback, &json!({"expectedRevision": 99})).await),
        (ROLLBACK, api.post(&rollback, &json!({"x": 1})).await),
        (
            ROLLBACK,
            api.post(&format!("{}/rollback", space.path("applied")), &json!({"failOnWarning": true})).await,
        ),
        (ROLLBACK, api.post(&format!("{}/rollback", space.path("nobody")), &json!({})).await),
        (ROLLBACK, api.post_as(&rollback, &json!({"dryRun": true}), "text/plain").await),
    ];
    let statuses: Vec<u16> = answers.iter().map(|(_, answer)| answer.status).collect();
    assert_eq!(statuses, [200, 200, 200, 202, 422, 412, 400, 422, 404, 200], "{answers:#?}");
    let id = answers[3].1.json()["id"].as_str().unwrap().to_owned();
    for (name, path) in [
        ("/daemonsets", "/daemonsets?limit=1".to_owned()),
        ("/daemonsets/{namespace}", format!("/daemonsets/{}", space.namespace)),
        (ONE, path.clone()),
        (ONE, format!("{path}?include=permissions")),
        (ONE, space.path("applied")),
        (ONE, space.path("nobody")),
        ("/daemonsets/{namespace}/{name}/revisions", format!("{path}/revisions")),
        ("/daemonsets/{namespace}/{name}/revisions/{revision}", format!("{path}/revisions/2")),
        ("/daemonsets/{namespace}/{name}/revisions/{revision}", format!("{path}/revisions/99")),
        ("/daemonsets/{namespace}/{name}/status", format!("{path}/status")),
        ("/daemonsets/{namespace}/{name}/status", format!("{path}/status?generation=9000")),
        ("/rollbacks", format!("/rollbacks?namespace={}&limit=1", space.namespace)),
        ("/rollbacks", "/rollbacks?limit=0".to_owned()),
        ("/rollbacks/{id}", format!("/rollbacks/{id}")),
        ("/audit", format!("/audit?namespace={}", space.namespace)),
        ("/audit/head", "/audit/head".to_owned()),
        ("/version", "/version".to_owned()),
        ("/livez", "/livez".to_owned()),
        ("/readyz", "/readyz?verbose".to_owned()),
        ("/metrics", "/metrics".to_owned()),
    ] {
        answers.push((name, api.get(&path).await));
    }
    for (name, path, accept) in [
        ("/daemonsets/{namespace}/{name}/revisions", format!("{path}/revisions"), "text/plain"),
        (
            "/daemonsets/{namespace}/{name}/revisions/{revision}",
            format!("{path}/revisions/2"),
            "application/yaml",
        ),
        ("/daemonsets/{namespace}/{name}/revisions/{revision}", format!("{path}/revisions/2"), "text/plain"),
        ("/daemonsets/{namespace}/{name}/status", format!("{path}/status"), "text/plain"),
        ("/daemonsets", "/daemonsets".to_owned(), "image/png"),
        ("/audit", "/audit?limit=5".to_owned(), "application/x-ndjson"),
    ] {
        answers.push((name, api.get_as(&path, accept).await));
    }
    answers
}

#[tokio::test]
async fn real_answers_are_of_the_documented_form() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let mut applied = daemonset("applied", "img:1");
    space.kubectl.apply(&applied).await;
    applied["spec"]["template"]["spec"]["containers"][0]["image"] = "img:2".into();
    space.kubectl.apply(&applied).await;
    space.rolled_out("applied").await;
    let mut setup = Setup::new(ControlPlane::shared());
    // A generation is asked for that there will never be.
    setup.timing.limits.generation = std::time::Duration::from_secs(2);
    let rollbackd = Rollbackd::start_with(setup).await;
    let document = document();
    let mut judge = Judge::new(document.clone());
    for (path, answer) in answers(&rollbackd.api, &space).await {
        judge.judge(&document, path, &answer);
    }

    // The data of events.
    let path = space.path("agent");
    let made = rollbackd.api.post(&format!("{path}/rollback"), &json!({})).await.expect(202);
    let schema = "/components/schemas/";
    for event in rollbackd.api.events(&format!("{path}/status")).await.into_all().await {
        judge.check(&format!("{schema}RolloutEvent"), &event.data).unwrap();
    }
    let states = format!("/{}", made["links"]["self"].as_str().unwrap());
    for event in rollbackd.api.events(&states).await.into_all().await {
        judge.check(&format!("{schema}Rollback"), &event.data).unwrap();
    }
    // Each line of an export.
    let export = rollbackd.api.get_as("/audit?limit=20", "application/x-ndjson").await;
    for line in export.text.lines() {
        judge.check(&format!("{schema}AuditEntry"), &serde_json::from_str(line).unwrap()).unwrap();
    }
    // Bodies that are documented as wrong are those that are refused.
    for (body, right) in [
        (json!({}), true),
        (json!({"toRevision": null}), true),
        (json!({"toRevision": "previous", "dryRun": true}), true),
        (json!({"toRevision": 1.5}), false),
        (json!({"toRevision": []}), false),
        (json!({"x": 1}), false),
        (json!([]), false),
        (json!({"dryRun": "All"}), false),
    ] {
        assert_eq!(judge.check(&format!("{schema}RollbackRequest"), &body).is_ok(), right, "{body}");
    }
    // The judge does see what is not documented.
    let mut version = rollbackd.api.get("/version").await.json();
    version["limits"]["new"] = 1.into();
    judge.check(&format!("{schema}Version"), &version).unwrap_err();
    let mut summary = rollbackd.api.get(&path).await.json();
    summary["new"] = 1.into();
    judge.check(&format!("{schema}DaemonSetSummary"), &summary).unwrap_err();
}
