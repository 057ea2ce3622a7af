//! What is answered to a request that can't be answered: a problem that says what is wrong and where.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    api::{Answer, Api},
    controlplane::ControlPlane,
    raw,
    rollbackd::Rollbackd,
    space::Space,
};

/// Every path of the API, of a DaemonSet that need not exist; all but the last know GET.
pub const PATHS: [&str; 15] = [
    "/daemonsets",
    "/daemonsets/a",
    "/daemonsets/a/b",
    "/daemonsets/a/b/revisions",
    "/daemonsets/a/b/revisions/1",
    "/daemonsets/a/b/status",
    "/rollbacks",
    "/rollbacks/x",
    "/audit",
    "/audit/head",
    "/version",
    "/livez",
    "/readyz",
    "/metrics",
    "/daemonsets/a/b/rollback",
];

async fn send(api: &Api, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let method: Method = method.parse().unwrap();
    let mut request = api.request(method, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.send(request).await
}

/// What `errors` of a problem names, as `parameter limit`.
pub fn named(problem: &Value) -> String {
    let errors = problem["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |error: &Value| {
        let (key, value) = error.as_object()?.iter().find(|(key, _)| *key != "detail")?;
        assert!(!error["detail"].as_str().unwrap_or_default().is_empty(), "{error}");
        Some(format!("{key} {}", value.as_str()?))
    };
    errors.iter().filter_map(name).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn an_unknown_path_is_a_404_problem() {
    let rollbackd = Rollbackd::start().await;
    for path in [
        "/nothing",
        "//",
        "/daemonsets/",
        "/daemonsets/a/b/",
        "/daemonsets/a/b/nothing",
        "/daemonsets/a/b/revisions/1/2",
        "/rollbacks/a/b",
        "/version/",
        "/openapi.yaml",
        "/api/v1/namespaces",
        "/.git/config",
        "/daemonsets%2Fa",
        "/\u{1f98a}",
    ] {
        for method in ["GET", "POST", "DELETE", "OPTIONS", "FOO"] {
            let problem = send(&rollbackd.api, method, path, &[]).await.problem(404, "unknown-path");
            assert!(problem["instance"].as_str().unwrap().starts_with('/'), "{problem}");
        }
        let head = send(&rollbackd.api, "HEAD", path, &[]).await;
        assert_eq!((head.status, head.text.as_str()), (404, ""), "{path}");
    }
}

#[tokio::test]
async fn a_method_that_a_path_does_not_know_is_a_405_problem_with_allow() {
    let rollbackd = Rollbackd::start().await;
    let documents = ["/openapi.json", "/docs", "/docs/", "/docs/swagger-ui.css"];
    for path in PATHS.iter().chain(&documents) {
        let knows: &[&str] = if path.ends_with("/rollback") { &["POST"] } else { &["GET", "HEAD"] };
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FOO"] {
            if knows.contains(&method) {
                continue;
            }
            let answer = send(&rollbackd.api, method, path, &[]).await;
            answer.problem(405, "method-not-allowed");
            let allowed: Vec<&str> = answer.header("allow").split(',').map(str::trim).collect();
            assert_eq!(allowed, knows, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_bad_path_value_is_a_400_problem_that_names_it() {
    let rollbackd = Rollbackd::start().await;
    let long = "a".repeat(254);
    for (path, name) in [
        ("/daemonsets/A".to_owned(), "namespace"),
        ("/daemonsets/a.b/agent".to_owned(), "namespace"),
        ("/daemonsets/a%2Fb/agent".to_owned(), "namespace"),
        ("/daemonsets/a%00/agent".to_owned(), "namespace"),
        ("/daemonsets/a%0d%0aSet-Cookie:%20x/agent".to_owned(), "namespace"),
        (format!("/daemonsets/{}/agent", "a".repeat(64)), "namespace"),
        ("/daemonsets/a/-".to_owned(), "name"),
        ("/daemonsets/a/b%20c/revisions".to_owned(), "name"),
        ("/daemonsets/a/ä/status".to_owned(), "name"),
        (format!("/daemonsets/a/{long}/status"), "name"),
        ("/daemonsets/a/b/revisions/1.5.".to_owned(), "revision"),
        ("/daemonsets/a/b/revisions/99999999999999999999".to_owned(), "revision"),
        ("/daemonsets/a/b/revisions/%20".to_owned(), "revision"),
        ("/rollbacks/1".to_owned(), "id"),
        ("/rollbacks/0193-".to_owned(), "id"),
    ] {
        let problem = rollbackd.api.get(&path).await.problem(400, "invalid-request");
        assert_eq!(named(&problem), format!("parameter {name}"), "{path}");
    }
    for path in ["/daemonsets/%ff", "/daemonsets/a/%c3%28", "/daemonsets/a/b/revisions/%ff", "/rollbacks/%ff"]
    {
        rollbackd.api.get(path).await.problem(400, "invalid-request");
    }
    // A part that says "up" is a bad name, not a way out.
    let up = raw::request("GET /daemonsets/%2e%2e/agent HTTP/1.1", &[], "");
    raw::send(rollbackd.address, &up).await.unwrap().problem(400, "invalid-request");
}

#[tokio::test]
async fn a_bad_query_is_a_400_problem_that_names_the_parameter() {
    let rollbackd = Rollbackd::start().await;
    for (path, name) in [
        ("/daemonsets?limit=0", "limit"),
        ("/daemonsets?limit=1001", "limit"),
        ("/daemonsets?limit=-1", "limit"),
        ("/daemonsets?limit=1e3", "limit"),
        ("/daemonsets?limit=", "limit"),
        ("/daemonsets?limit", "limit"),
        ("/daemonsets?limit=4294967296", "limit"),
        ("/daemonsets?labelSelector=a%20b", "labelSelector"),
        ("/daemonsets?labelSelector=%00", "labelSelector"),
        ("/daemonsets?continue=x", "continue"),
        ("/daemonsets?continue=e30", "continue"),
        ("/daemonsets?labelselector=a", "labelselector"),
        ("/daemonsets/a?fieldSelector=a", "fieldSelector"),
        ("/daemonsets/a/b?watch=true", "watch"),
        ("/daemonsets/a/b/revisions?limit=1", "limit"),
        ("/daemonsets/a/b/revisions/1?output=yaml", "output"),
        ("/daemonsets/a/b/status?generation=0", "generation"),
        ("/daemonsets/a/b/status?generation=-1", "generation"),
        ("/daemonsets/a/b/status?generation=x", "generation"),
        ("/daemonsets/a/b/status?generation=9223372036854775808", "generation"),
        ("/rollbacks?state=done", "state"),
        ("/rollbacks?namespace=A", "namespace"),
        ("/rollbacks?name=-", "name"),
        ("/rollbacks?since=yesterday", "since"),
        ("/rollbacks?since=2026-11-23", "since"),
        ("/rollbacks?limit=2000", "limit"),
        ("/rollbacks/01936b5e-7d0a-7f43-9c7e-2f3f6a0b1c2d?x=1", "x"),
        ("/audit?action=rollback", "action"),
        ("/audit?outcome=ok", "outcome"),
        ("/audit?until=2026-13-01T00:00:00Z", "until"),
        ("/audit?actor=a%00b", "actor"),
        ("/rollbacks?actor=%00", "actor"),
        ("/audit?after=-1", "after"),
        ("/audit?after=x", "after"),
        ("/audit?limit=1001", "limit"),
        ("/audit?order=asc", "order"),
        ("/readyz?format=json", "format"),
        ("/version?x=1", "x"),
        // Given twice, it can't be told which one is meant.
        ("/daemonsets?limit=1&limit=2", "limit"),
        ("/rollbacks?namespace=a&name=b&namespace=a", "namespace"),
        ("/audit?x=1&x=2", "x"),
    ] {
        let problem = rollbackd.api.get(path).await.problem(400, "invalid-request");
        assert_eq!(named(&problem), format!("parameter {name}"), "{path}: {problem}");
    }
}

#[tokio::test]
async fn a_form_that_can_not_be_made_is_a_406_problem() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1"]).await;
    let rollbackd = Rollbackd::start().await;
    let path = space.path("agent");
    rollbackd.api.shows(&path, "the DaemonSet", |_| true).await;
    let of = |end: &str| format!("{path}{end}");
    for (path, offered) in [
        ("/daemonsets".to_owned(), vec!["application/json"]),
        (format!("/daemonsets/{}", space.namespace), vec!["application/json"]),
        (path.clone(), vec!["application/json"]),
        (of("/revisions"), vec!["application/json", "text/plain"]),
        (of("/revisions/1"), vec!["application/json", "application/yaml", "text/plain"]),
        (of("/status"), vec!["application/json", "text/plain", "text/event-stream"]),
        ("/rollbacks".to_owned(), vec!["application/json"]),
        ("/audit".to_owned(), vec!["application/json", "application/x-ndjson"]),
        ("/audit/head".to_owned(), vec!["application/json"]),
    ] {
        for accept in ["image/png", "application/xml, text/html;q=0.9", "application/json;q=0", "*/*;q=0"] {
            let answer = rollbackd.api.get_as(&path, accept).await;
            assert_eq!(named(&answer.problem(406, "not-acceptable")), "header Accept", "{path} {accept}");
        }
        for form in offered {
            for accept in [form.to_owned(), format!("{form}; charset=utf-8")] {
                let answer = rollbackd.api.get_as(&path, &accept).await;
                assert_eq!(answer.status, 200, "{path} {accept}: {answer:?}");
                assert!(answer.header("content-type").starts_with(form), "{path} {accept}: {answer:?}");
            }
        }
        // What java.net.HttpURLConnection sends: `*` is no media range, and no reason to refuse.
        let java = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2";
        for accept in ["*/*", "", " ", "application/*", "text/html, */*;q=0.1", java, "APPLICATION/JSON"] {
            let answer = rollbackd.api.get_as(&path, accept).await;
            assert_eq!(
                (answer.status, answer.header("content-type")),
                (200, "application/json"),
                "{path} {accept}"
            );
        }
    }
    let answer = rollbackd.api.get_as("/rollbacks", ";;;").await;
    assert_eq!(named(&answer.problem(400, "invalid-request")), "header Accept");
}

#[tokio::test]
async fn a_header_that_would_be_ignored_is_refused_by_name() {
    let rollbackd = Rollbackd::start().await;
    for (header, value) in [
        ("Impersonate-User", "alice"),
        ("Impersonate-Group", "system:masters"),
        ("Impersonate-Uid", "1"),
        ("Impersonate-Extra-Scopes", "view"),
    ] {
        for (method, path) in
            [("POST", "/daemonsets/a/b/rollback"), ("GET", "/daemonsets"), ("GET", "/version")]
        {
            let json = ("content-type", "application/json");
            let answer = send(&rollbackd.api, method, path, &[json, (header, value)]).await;
            let problem = answer.problem(400, "unsupported-header");
            assert_eq!(named(&problem), format!("header {}", header.to_lowercase()), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_header_that_only_a_rollback_knows_is_refused_elsewhere() {
    let rollbackd = Rollbackd::start().await;
    let of_reads = [("content-type", "application/json"), ("If-None-Match", "*")];
    let answer = send(&rollbackd.api, "POST", "/daemonsets/a/b/rollback", &of_reads).await;
    assert_eq!(named(&answer.problem(400, "unsupported-header")), "header if-none-match");
    for (header, value) in [("Idempotency-Key", "\"1\""), ("If-Match", "\"x\""), ("Prefer", "wait=5")] {
        for (method, path) in
            [("GET", "/daemonsets"), ("GET", "/daemonsets/a/b/rollback"), ("GET", "/version")]
        {
            let answer = send(&rollbackd.api, method, path, &[(header, value)]).await;
            let problem = answer.problem(400, "unsupported-header");
            assert_eq!(named(&problem), format!("header {}", header.to_lowercase()), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_request_id_is_taken_if_it_is_well_formed_and_replaced_if_not() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1"]).await;
    let rollbackd = Rollbackd::start().await;
    let long = "a".repeat(128);
    for id in ["a", "portal-7:2026.11_x", &long] {
        let answer = send(&rollbackd.api, "GET", "/nothing", &[("x-request-id", id)]).await;
        answer.problem(404, "unknown-path");
        assert_eq!(answer.header("x-request-id"), id);
    }
    let too_long = "a".repeat(129);
    for id in ["", "a b", "{\"x\":1}", "a,b", "a/b", "a\tb", "\u{e4}", &too_long] {
        let answer = send(&rollbackd.api, "GET", "/nothing", &[("x-request-id", id)]).await;
        answer.problem(404, "unknown-path");
        let given = answer.header("x-request-id");
        assert!(uuid::Uuid::try_parse(given).is_ok(), "{id:?}: {given}");
    }

    // It leads from the answer to the audit.
    let rollback = format!("{}/rollback", space.path("agent"));
    let request = rollbackd.api.request(Method::POST, &rollback).header("x-request-id", "shift-42");
    let skipped = rollbackd.api.send(request.json(&json!({"toRevision": 1}))).await;
    assert_eq!(skipped.expect(200)["requestId"], "shift-42");
    let entries = rollbackd.api.get(&format!("/audit?namespace={}", space.namespace)).await.expect(200);
    assert_eq!(entries["items"][0]["requestId"], "shift-42");
}

#[tokio::test]
#[ignore = "compares with the real kubectl"]
async fn errors_as_text_are_the_line_that_kubectl_prints() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1"]).await;
    let rollbackd = Rollbackd::start().await;
    let (api, path) = (&rollbackd.api, space.path("agent"));
    let line = |answer: &Answer, status: u16| {
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        answer.text.clone()
    };

    let missing = api.get_as(&format!("{}/revisions", space.path("nobody")), "text/plain").await;
    let printed = space.kubectl.run(&["rollout", "history", "daemonset/nobody"]).await;
    assert_eq!(line(&missing, 404), printed.stderr);
    let missing = api.get_as(&format!("{}/status", space.path("nobody")), "text/plain").await;
    let printed = space.kubectl.run(&["rollout", "status", "daemonset/nobody"]).await;
    assert_eq!(line(&missing, 404), printed.stderr);
    let missing = api.get_as(&format!("{path}/revisions/99"), "text/plain").await;
    let printed = space.kubectl.run(&["rollout", "history", "daemonset/agent", "--revision=99"]).await;
    assert_eq!(line(&missing, 404), printed.stderr);
    let missing = api.post_as(&format!("{path}/rollback"), &json!({"toRevision": 99}), "text/plain").await;
    let printed = space.kubectl.run(&["rollout", "undo", "daemonset/agent", "--to-revision=99"]).await;
    assert_eq!(line(&missing, 422), printed.stderr);
    let none = api.post_as(&format!("{path}/rollback"), &json!({}), "text/plain").await;
    let printed = space.kubectl.run(&["rollout", "undo", "daemonset/agent"]).await;
    assert_eq!(line(&none, 422), printed.stderr);

    // One line, whatever the caller put into it.
    for path in ["/%0aerror:%20forged", "/daemonsets/a%0a%1b[2J/b", "/audit?x%0ay=1", "/a\u{202e}b"] {
        let text = api.get_as(path, "text/plain").await.text;
        assert_eq!((text.lines().count(), text.starts_with("error: ")), (1, true), "{text:?}");
        assert!(!text.trim_end().contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
    }
}

#[tokio::test]
async fn a_request_that_can_not_be_parsed_is_a_problem_too() {
    let rollbackd = Rollbackd::start().await;
    let header = |header: &str| raw::request("GET /version HTTP/1.1", &[header], "");
    let target = |length: usize| raw::request(&format!("GET /{} HTTP/1.1", "a".repeat(length)), &[], "");
    for (request, status, kind) in [
        (b"garbage\r\n\r\n".to_vec(), 400, "invalid-request"),
        (raw::request("GET /a\0b HTTP/1.1", &[], ""), 400, "invalid-request"),
        (raw::request("GET / HTTP/9.9", &[], ""), 400, "invalid-request"),
        (header("X y: 1"), 400, "invalid-request"),
        (header("X-Request-Id: a\x1b[31m"), 400, "invalid-request"),
        (header("X-Request-Id: a\0"), 400, "invalid-request"),
        (target(70_000), 414, "target-too-long"),
        (target(20_000), 414, "target-too-long"),
        (target(8192), 414, "target-too-long"),
        (target(8191), 404, "unknown-path"),
        (raw::request("GET /version HTTP/1.1", &["X: 1"; 200], ""), 431, "header-too-large"),
        (header(&format!("X: {}", "a".repeat(40_000))), 431, "header-too-large"),
    ] {
        let answer = raw::send(rollbackd.address, &request).await.expect("an answer");
        let problem = answer.problem(status, kind);
        assert_eq!(problem["status"], status, "{answer:?}");
    }
    // A token may have 16 KiB.
    let token = header(&format!("Authorization: Bearer {}", "a".repeat(16 * 1024)));
    assert_eq!(raw::send(rollbackd.address, &token).await.unwrap().status, 200);
    // A header ends where its line ends; what follows is a header of its own, not a part of the answer.
    let split = raw::send(rollbackd.address, &header("X-Request-Id: a\r\nSet-Cookie: b=c")).await.unwrap();
    assert_eq!((split.header("x-request-id"), split.header("set-cookie")), (Some("a"), None));
}

#[tokio::test]
async fn what_could_be_understood_in_two_ways_is_refused() {
    let rollbackd = Rollbackd::start().await;
    let send = async |line: &str, headers: &[&str]| {
        let lines: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let request = format!("{line}\r\n{lines}Connection: close\r\n\r\n");
        raw::send(rollbackd.address, request.as_bytes()).await.expect("an answer")
    };
    let host = "Host: localhost";
    for headers in [&[][..], &[host, host], &[host, "Host: a"], &["Host: a", host]] {
        let answer = send("GET /livez HTTP/1.1", headers).await;
        assert_eq!(named(&answer.problem(400, "invalid-request")), "header Host", "{headers:?}");
    }
    send("GET /livez HTTP/1.0", &[host, host]).await.problem(400, "invalid-request");
    let post = "POST /daemonsets/a/b/rollback HTTP/1.1";
    let json = "Content-Type: application/json";
    for second in [json, "Content-Type: text/plain", "content-type: "] {
        let answer = send(post, &[host, json, second]).await;
        assert_eq!(named(&answer.problem(400, "invalid-request")), "header Content-Type", "{second}");
    }
    let chunked = "Transfer-Encoding: chunked";
    for codings in [
        &["Transfer-Encoding: gzip"][..],
        &["Transfer-Encoding: identity"],
        &["Transfer-Encoding: gzip, chunked"],
        &["Transfer-Encoding: chunked, gzip"],
        &["Transfer-Encoding: gzip", chunked],
        &[chunked, chunked],
        &["transfer-encoding: x-chunked"],
    ] {
        for line in [post, "GET /livez HTTP/1.1"] {
            let answer = send(line, &[&[host, json], codings].concat()).await;
            let problem = answer.problem(501, "unsupported-transfer-encoding");
            assert_eq!(named(&problem), "header Transfer-Encoding", "{codings:?}");
        }
    }
}
