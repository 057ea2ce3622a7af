//! Whatever is sent: no 5xx, a problem for each error, and nothing changed but by a rollback that was
//! answered as one.

use std::{cell::RefCell, fmt::Write, net::SocketAddr, time::Duration};

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::Value;

use crate::support::{
    controlplane::ControlPlane,
    raw::{self, RawAnswer},
    rollbackd::{Rollbackd, Setup},
    space::Space,
};

const REQUESTS: u32 = 400;

#[derive(Clone, Debug)]
struct Sent {
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Sent {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes =
            format!("{} {} HTTP/1.1\r\nHost: localhost\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(format!("{name}: ").as_bytes());
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        let rest = format!("Content-Length: {}\r\nConnection: close\r\n\r\n", self.body.len());
        bytes.extend_from_slice(rest.as_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// Mostly what a caller would send, and anything else in its place.
fn requests(namespace: String) -> impl Strategy<Value = Sent> {
    let part = prop_oneof![
        4 => Just(namespace),
        4 => Just("agent".to_owned()),
        2 => prop::sample::select(vec!["daemonsets", "revisions", "status", "rollback", "rollbacks", "audit", "1", "2", "docs"]).prop_map(str::to_owned),
        1 => any::<String>().prop_map(|text| encoded(text.as_bytes())),
        1 => vec(any::<u8>(), 0..12).prop_map(|bytes| encoded(&bytes)),
        1 => "[!-~&&[^?# ]]{0,300}",
    ];
    let known = prop::sample::select(vec![
        "/daemonsets",
        "/daemonsets/@/agent",
        "/daemonsets/@",
        "/daemonsets/@/agent/revisions",
        "/daemonsets/@/agent/revisions/1",
        "/daemonsets/@/agent/status",
        "/rollbacks",
        "/audit",
        "/audit/head",
        "/version",
        "/livez",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs/",
    ]);
    let name = prop_oneof![
        4 => prop::sample::select(vec!["limit", "continue", "labelSelector", "namespace", "name", "state", "actor",
            "action", "outcome", "since", "until", "after", "generation", "verbose", "dryRun"]).prop_map(str::to_owned),
        1 => any::<String>().prop_map(|text| encoded(text.as_bytes())),
    ];
    let value = prop_oneof![
        2 => any::<i64>().prop_map(|number| number.to_string()),
        2 => (0..2000i32).prop_map(|number| number.to_string()),
        2 => any::<String>().prop_map(|text| encoded(text.as_bytes())),
        1 => vec(any::<u8>(), 0..20).prop_map(|bytes| encoded(&bytes)),
        1 => prop::sample::select(vec!["", "a=b", "a%20in%20(b,c)", "2026-11-23T03:00:00Z", "-009999-01-02T01:59:59Z",
            "9999-12-30T22:00:00.999999999Z", "succeeded", "rollback.requested", "eyJsYXN0IjoxfQ",
            "eyJsYXN0IjotOTIyMzM3MjAzNjg1NDc3NTgwOCwiZmlsdGVycyI6IiJ9"]).prop_map(str::to_owned),
    ];
    let query = vec((name, value), 0..4);
    let text = "[\\t -~]{0,60}".prop_map(String::into_bytes);
    let bytes = vec(prop_oneof![Just(b'\t'), 0x20..0x7fu8, 0x80..=0xffu8], 0..60);
    let header = prop_oneof![
        3 => prop::sample::select(vec![("Accept", "text/plain"), ("Accept", "*/*"), ("Accept", "application/yaml"),
            ("Accept", "application/x-ndjson"), ("If-None-Match", "*"), ("Prefer", "wait=5"),
            ("Authorization", "Bearer x"), ("Accept-Encoding", "gzip"), ("Range", "bytes=0-1"), ("Upgrade", "h2c"),
            ("Expect", "100-continue"), ("Content-Encoding", "gzip"), ("X-HTTP-Method-Override", "POST")])
            .prop_map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())),
        2 => (prop::sample::select(vec!["Accept", "If-None-Match", "Last-Event-ID", "X-Request-Id", "traceparent",
            "Origin", "Content-Type", "Cookie", "Forwarded", "Sec-Fetch-Site", "Impersonate-User", "Idempotency-Key",
            "If-Match", "Prefer"]),
            prop_oneof![text, bytes]).prop_map(|(name, value)| (name.to_owned(), value)),
        1 => ("[A-Za-z][A-Za-z0-9-]{0,30}", "[ -~]{0,30}").prop_map(|(name, value)| (format!("X-{name}"), value.into_bytes())),
    ];
    let json = prop_oneof![4 => Just(true), 1 => Just(false)];
    let method = prop_oneof![
        4 => prop::sample::select(vec!["GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
            .prop_map(str::to_owned),
        1 => "[A-Z]{1,10}".prop_filter("opens a tunnel", |method| method != "CONNECT"),
    ];
    let anywhere = (method, vec(part, 0..6).prop_map(|parts| format!("/{}", parts.join("/"))));
    let line = prop_oneof![
        4 => Just(("POST".to_owned(), "/daemonsets/@/agent/rollback".to_owned())),
        4 => known.prop_map(|path| ("GET".to_owned(), path.to_owned())),
        4 => anywhere,
    ];
    let query = prop_oneof![3 => Just(Vec::new()), 2 => query];
    let headers = prop_oneof![3 => Just(Vec::new()), 2 => vec(header, 1..4)];
    (line, query, headers, json, bodies()).prop_map(|((method, path), query, mut headers, json, body)| {
        if json {
            headers.push(("Content-Type".to_owned(), b"application/json".to_vec()));
        }
        let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let body = if method == "POST" { body } else { Vec::new() };
        Sent { method, target: path + &query, headers, body }
    })
}

/// Bodies that begin as a rollback's and go wrong somewhere, or nowhere.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3..4i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(vec!["previous", "0", "1", "agent-1", "All", ""]).prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((any::<String>(), inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    });
    let field = prop::sample::select(vec![
        "toRevision",
        "reason",
        "dryRun",
        "expectedRevision",
        "failOnWarning",
        "ignoreWarnings",
        "x",
    ]);
    let object = vec((field.prop_map(str::to_owned), value.clone()), 0..3)
        .prop_map(|fields| Value::Object(fields.into_iter().collect()).to_string().into_bytes());
    let cut = (object.clone(), any::<prop::sample::Index>()).prop_map(|(mut text, at)| {
        text.truncate(at.index(text.len() + 1));
        text
    });
    let right = prop::sample::select(vec!["", "{}", "{\"toRevision\":\"previous\"}", "{\"dryRun\":true}"]);
    prop_oneof![
        3 => right.prop_map(|text| text.as_bytes().to_vec()),
        5 => object,
        1 => value.prop_map(|value| value.to_string().into_bytes()),
        1 => cut,
        1 => vec(any::<u8>(), 0..200),
        1 => (0..140_000usize).prop_map(|length| vec![b' '; length]),
    ]
}

fn encoded(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "%{byte:02X}");
        text
    })
}

/// What the answer shows to be wrong.
fn judge(sent: &Sent, answer: Option<&RawAnswer>) -> Result<(), String> {
    let Some(answer) = answer else { return Err("there is no answer".into()) };
    if answer.header("x-request-id").is_none() {
        return Err(format!("no request id: {answer:?}"));
    }
    // A generation that a rollback has just made may not have been seen yet, and this one waits for it for a second.
    let behind = answer.status == 503 && answer.body.contains("/problems/behind");
    if answer.status >= 500 && !behind {
        return Err(format!("{answer:?}"));
    }
    let plain = answer.header("content-type") == Some("text/plain; charset=utf-8");
    if answer.status >= 400 && plain {
        return if answer.body.lines().count() == 1 || sent.method == "HEAD" {
            Ok(())
        } else {
            Err(format!("{answer:?}"))
        };
    }
    if answer.status >= 400 && sent.method != "HEAD" {
        let problem: Value =
            serde_json::from_str(&answer.body).map_err(|error| format!("{error}: {answer:?}"))?;
        let whole = problem["status"] == answer.status
            && problem["type"]
                .as_str()
                .is_some_and(|kind| kind.starts_with("https://rollbackd.dev/problems/"))
            && answer.header("content-type") == Some("application/problem+json")
            && problem["requestId"].as_str() == answer.header("x-request-id");
        return if whole { Ok(()) } else { Err(format!("{answer:?}")) };
    }
    Ok(())
}

/// Generation and spec, which is what a rollback changes.
async fn state(client: &kube::Client, namespace: &str) -> Value {
    let request = http::Request::get(format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/agent"));
    let daemonset: Value = client.request(request.body(Vec::new()).unwrap()).await.unwrap();
    serde_json::json!([daemonset["metadata"]["generation"], daemonset["spec"]])
}

#[test]
fn nothing_that_a_caller_can_send_breaks_it_or_changes_what_it_was_not_asked_to() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (space, rollbackd, client) = runtime.block_on(async {
        let space = Space::new(ControlPlane::shared()).await;
        space.agent(&["img:1", "img:2"]).await;
        let mut setup = Setup::new(ControlPlane::shared());
        setup.timing.limits.generation = Duration::from_secs(1);
        (space, Rollbackd::start_with(setup).await, ControlPlane::shared().client().await)
    });
    let _inside = runtime.enter();
    let address: SocketAddr = rollbackd.address;
    let before = RefCell::new(runtime.block_on(state(&client, &space.namespace)));
    let seen = RefCell::new(std::collections::BTreeMap::<u16, usize>::new());
    let config =
        Config { cases: REQUESTS, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let outcome = TestRunner::new(config).run(&requests(space.namespace.clone()), |mut sent| {
        sent.target = sent.target.replace('@', &space.namespace);
        let answer = runtime.block_on(raw::send(address, &sent.bytes()));
        judge(&sent, answer.as_ref()).map_err(TestCaseError::fail)?;
        let status = answer.map_or(0, |answer| answer.status);
        *seen.borrow_mut().entry(status).or_default() += 1;
        let after = runtime.block_on(state(&client, &space.namespace));
        // Who prefers to wait is told 200 at the end.
        let waited = status == 200 && sent.headers.iter().any(|(name, _)| name == "Prefer");
        let made = status == 202 || waited;
        let asked = sent.method == "POST" && sent.target.ends_with("/rollback") && made;
        if !asked && after != *before.borrow() {
            return Err(TestCaseError::fail(format!("the DaemonSet has changed after {status}")));
        }
        before.replace(after);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let seen = seen.into_inner();
    for status in [200, 202, 400, 404, 415] {
        assert!(
            seen.contains_key(&status),
            "never {status}, so that the requests are not what they should be: {seen:?}"
        );
    }
}
