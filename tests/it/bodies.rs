//! The body of a rollback: what is taken, what is refused, and how the refusal names what is wrong.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    errors::named,
    support::{
        api::{Answer, Api},
        controlplane::ControlPlane,
        raw,
        rollbackd::{Rollbackd, Setup, timing},
        space::Space,
    },
};

const MAX_BODY: usize = 64 * 1024;

async fn post(api: &Api, path: &str, content_type: Option<&str>, body: impl Into<reqwest::Body>) -> Answer {
    let mut request = api.request(Method::POST, path).body(body);
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    api.send(request).await
}

/// A DaemonSet with two revisions, and where its rollback is.
async fn two_revisions() -> (Space, String) {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let path = format!("{}/rollback", space.path("agent"));
    (space, path)
}

async fn spec(space: &Space) -> Value {
    space.kubectl.get("daemonset", "agent").await["spec"].clone()
}

#[tokio::test]
async fn a_body_that_makes_no_sense_is_refused_and_the_field_is_named() {
    let (space, path) = two_revisions().await;
    let rollbackd = Rollbackd::start().await;
    let before = spec(&space).await;
    let deep = format!("{{\"toRevision\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let deep_object = format!("{{\"reason\":{}1{}}}", "{\"a\":".repeat(5000), "}".repeat(5000));
    let long = json!({"reason": "x".repeat(1025)}).to_string();
    for (body, place) in [
        // Not JSON, or not one object.
        ("{", ""),
        ("}", ""),
        ("toRevision=1", ""),
        ("{'toRevision':1}", ""),
        ("{\"toRevision\":1,}", ""),
        ("{} {}", ""),
        ("{}\0", ""),
        ("\u{feff}{}", ""),
        ("null", ""),
        ("1", ""),
        ("\"previous\"", ""),
        ("[]", ""),
        ("[1]", ""),
        ("[1, \"why\", false, 2, false]", ""),
        // Unknown fields, and known ones in other words.
        ("{\"torevision\":1}", "/torevision"),
        ("{\"revision\":1}", "/revision"),
        ("{\"dry_run\":true}", "/dry_run"),
        ("{\"a/b~c\":1}", "/a~1b~0c"),
        ("{\"\":1}", "/"),
        ("{\"toRevision\":1,\"toRevision\":2}", ""),
        // toRevision of every type.
        ("{\"toRevision\":true}", "/toRevision"),
        ("{\"toRevision\":[]}", "/toRevision"),
        ("{\"toRevision\":[1]}", "/toRevision"),
        ("{\"toRevision\":{}}", "/toRevision"),
        ("{\"toRevision\":{\"name\":\"a\"}}", "/toRevision"),
        ("{\"toRevision\":1.0}", "/toRevision"),
        ("{\"toRevision\":1.5}", "/toRevision"),
        ("{\"toRevision\":1e2}", "/toRevision"),
        ("{\"toRevision\":1e400}", "/toRevision"),
        ("{\"toRevision\":-0}", "/toRevision"),
        ("{\"toRevision\":9223372036854775808}", "/toRevision"),
        ("{\"toRevision\":-9223372036854775809}", "/toRevision"),
        ("{\"toRevision\":01}", "/toRevision"),
        ("{\"toRevision\":NaN}", "/toRevision"),
        ("{\"toRevision\":\"\"}", "/toRevision"),
        ("{\"toRevision\":\" 1\"}", "/toRevision"),
        ("{\"toRevision\":\"1.0.\"}", "/toRevision"),
        ("{\"toRevision\":\"Previous\"}", "/toRevision"),
        ("{\"toRevision\":\"../x\"}", "/toRevision"),
        ("{\"toRevision\":\"99999999999999999999\"}", "/toRevision"),
        ("{\"toRevision\":\"\\ud800\"}", "/toRevision"),
        (&deep, "/toRevision"),
        // The other fields.
        ("{\"reason\":1}", "/reason"),
        ("{\"reason\":[\"why\"]}", "/reason"),
        ("{\"reason\":\"\\ud800\\u0061\"}", "/reason"),
        ("{\"reason\":\"a\nb\"}", "/reason"),
        (&deep_object, "/reason"),
        (&long, "/reason"),
        ("{\"dryRun\":\"All\"}", "/dryRun"),
        ("{\"dryRun\":1}", "/dryRun"),
        ("{\"failOnWarning\":\"yes\"}", "/failOnWarning"),
        ("{\"failOnWarning\":true,\"ignoreWarnings\":\"managed\"}", "/ignoreWarnings"),
        ("{\"failOnWarning\":true,\"ignoreWarnings\":[\"managed\",\"x\"]}", "/ignoreWarnings/1"),
        ("{\"failOnWarning\":true,\"ignoreWarnings\":[1]}", "/ignoreWarnings/0"),
        ("{\"failOnWarning\":false,\"ignoreWarnings\":[\"managed\"]}", "/ignoreWarnings"),
        ("{\"ignoreWarnings\":[\"managed\"]}", "/ignoreWarnings"),
        ("{\"expectedRevision\":\"2\"}", "/expectedRevision"),
        ("{\"expectedRevision\":0}", "/expectedRevision"),
        ("{\"expectedRevision\":-2}", "/expectedRevision"),
        ("{\"expectedRevision\":2.0}", "/expectedRevision"),
        ("{\"expectedRevision\":9223372036854775808}", "/expectedRevision"),
    ] {
        let answer = post(&rollbackd.api, &path, Some("application/json"), body.to_owned()).await;
        let problem = answer.problem(400, "invalid-request");
        assert_eq!(named(&problem), format!("pointer {place}"), "{}: {problem}", &body[..body.len().min(60)]);
        let detail = problem["detail"].as_str().unwrap();
        assert!(!detail.contains("struct") && !detail.contains("Visitor"), "{detail}");
    }
    let invalid =
        post(&rollbackd.api, &path, Some("application/json"), b"{\"reason\":\"\xff\"}".to_vec()).await;
    invalid.problem(400, "invalid-request");
    assert_eq!(spec(&space).await, before);
    // Nobody was refused by a plan: the audit has nothing to tell.
    let audit = rollbackd.api.get(&format!("/audit?namespace={}", space.namespace)).await.expect(200);
    assert_eq!(audit["items"], json!([]));
}

#[tokio::test]
async fn every_way_to_name_a_revision_is_understood() {
    let (space, path) = two_revisions().await;
    let rollbackd = Rollbackd::start().await;
    let first = space.revisions().await[0]["metadata"]["name"].clone();
    for to in [json!(null), json!(0), json!("0"), json!("previous"), json!(1), json!("1"), first] {
        let preview = rollbackd.api.post(&path, &json!({"toRevision": to, "dryRun": true})).await.expect(200);
        assert_eq!((&preview["to"]["revision"], &preview["skipped"]), (&json!(1), &json!(false)), "{to}");
    }
    for to in [json!(-1), json!(i64::MIN), json!(i64::MAX), json!("-1"), json!("no-such-revision")] {
        let refused = rollbackd.api.post(&path, &json!({"toRevision": to, "dryRun": true})).await;
        assert_eq!(named(&refused.problem(422, "unknown-revision")), "pointer /toRevision", "{to}");
    }
    let nulls = json!({"toRevision": null, "reason": null, "dryRun": true, "expectedRevision": null, "failOnWarning": null, "ignoreWarnings": null});
    rollbackd.api.post(&path, &nulls).await.expect(200);
    // What refuses nothing needs nothing to ignore.
    let none = json!({"dryRun": true, "ignoreWarnings": []});
    rollbackd.api.post(&path, &none).await.expect(200);
    let twice = json!({"dryRun": true, "failOnWarning": true, "ignoreWarnings": ["managed", "managed"]});
    rollbackd.api.post(&path, &twice).await.expect(200);
}

#[tokio::test]
async fn a_rollback_takes_no_query() {
    let (space, path) = two_revisions().await;
    let rollbackd = Rollbackd::start().await;
    let before = spec(&space).await;
    // Kubernetes' own way to ask for a dry run must not make a rollback.
    for (query, name) in [("dryRun=All", "dryRun"), ("toRevision=1", "toRevision"), ("x", "x")] {
        let answer = rollbackd.api.post(&format!("{path}?{query}"), &json!({})).await;
        assert_eq!(named(&answer.problem(400, "invalid-request")), format!("parameter {name}"));
    }
    assert_eq!(spec(&space).await, before);
}

#[tokio::test]
async fn only_json_is_taken_also_where_the_body_is_empty() {
    let (space, path) = two_revisions().await;
    let rollbackd = Rollbackd::start().await;
    let before = spec(&space).await;
    for content_type in [
        None,
        Some(""),
        Some("text/plain"),
        Some("text/plain;charset=UTF-8"),
        Some("application/x-www-form-urlencoded"),
        Some("multipart/form-data; boundary=x"),
        Some("application/problem+json"),
        Some("application/jsonp"),
        Some("application/yaml"),
        Some("text/json"),
        Some("json"),
        Some("text/plain; application/json"),
        Some("text/plain, application/json"),
        Some("application/json, text/plain"),
    ] {
        for body in ["", "{}", "{\"toRevision\":1}"] {
            let problem =
                post(&rollbackd.api, &path, content_type, body).await.problem(415, "unsupported-media-type");
            assert_eq!(named(&problem), "header Content-Type", "{content_type:?}");
        }
    }
    assert_eq!(spec(&space).await, before);

    // Reaches the plan: that this is a dry run can only be read from the body.
    for content_type in
        ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=\"UTF-8\""]
    {
        post(&rollbackd.api, &path, Some(content_type), "{\"dryRun\":true}").await.expect(200);
        post(&rollbackd.api, &path, Some(content_type), " \n{\"dryRun\":true}\r\n").await.expect(200);
    }
    assert_eq!(spec(&space).await, before);
    let made = post(&rollbackd.api, &path, Some("application/json"), "").await.expect(202);
    assert_eq!(made["to"]["revision"], 1);
    // An empty body means the same as `{}`: back to the revision before, which is 2.
    space.rolled_out("agent").await;
    let made = post(&rollbackd.api, &path, Some("application/json"), " \r\n").await.expect(202);
    assert_eq!(made["to"]["revision"], 2);
}

#[tokio::test]
async fn a_body_over_64_kib_is_refused_however_it_is_sent() {
    let (_space, path) = two_revisions().await;
    let rollbackd = Rollbackd::start().await;
    let dry_run = "{\"dryRun\":true}";
    let padded = |length: usize| dry_run.to_owned() + &" ".repeat(length - dry_run.len());
    post(&rollbackd.api, &path, Some("application/json"), padded(MAX_BODY)).await.expect(200);
    let answer = post(&rollbackd.api, &path, Some("application/json"), padded(MAX_BODY + 1)).await;
    answer.problem(413, "body-too-large");

    let chunks = |count: usize| {
        let chunks = std::iter::repeat_n(padded(1024), count).map(Ok::<_, std::io::Error>);
        reqwest::Body::wrap_stream(futures_util::stream::iter(chunks))
    };
    // Sixty-four objects in a row are not one.
    post(&rollbackd.api, &path, Some("application/json"), chunks(64)).await.problem(400, "invalid-request");
    post(&rollbackd.api, &path, Some("application/json"), chunks(65)).await.problem(413, "body-too-large");

    // What is only announced is refused before it comes.
    let line = format!("POST {path} HTTP/1.1");
    let headers = ["Content-Type: application/json", "Content-Length: 99999999999"];
    let announced = raw::send(rollbackd.address, &raw::request(&line, &headers, "")).await;
    announced.expect("an answer").problem(413, "body-too-large");
    let broken = ["Content-Type: application/json", "Transfer-Encoding: chunked"];
    let mut broken = raw::request(&line, &broken, "");
    broken.extend_from_slice(b"zz\r\n");
    raw::send(rollbackd.address, &broken).await.expect("an answer").problem(400, "invalid-request");
}

#[tokio::test]
async fn a_body_that_trickles_in_is_given_up() {
    let (space, path) = two_revisions().await;
    let mut timing = timing();
    timing.limits.body = Duration::from_secs(1);
    let rollbackd = Rollbackd::start_with(Setup { timing, ..Setup::new(ControlPlane::shared()) }).await;
    let before = spec(&space).await;
    let mut stream = TcpStream::connect(rollbackd.address).await.unwrap();
    let headers = ["Content-Type: application/json", "Content-Length: 60000"];
    stream.write_all(&raw::request(&format!("POST {path} HTTP/1.1"), &headers, "")).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    // A byte comes again and again, so that the connection is never silent for as long as the limit.
    let trickle = async {
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        while writing.write_all(b" ").await.is_ok() {
            pace.tick().await;
        }
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        () = trickle => unreachable!("it never ends"),
        answer = raw::answer(&mut reading) => answer.expect("an answer"),
    };
    answer.problem(408, "request-timeout");
    assert_eq!(spec(&space).await, before);
}
