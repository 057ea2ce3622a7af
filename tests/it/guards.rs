//! What stands between a server without authentication and a web page, or another machine.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    errors::named,
    support::{
        api::Answer,
        controlplane::ControlPlane,
        raw::{self, RawAnswer},
        rollbackd::Rollbackd,
        space::Space,
    },
};

/// A GET with these header lines and no others but `Connection`.
async fn get(rollbackd: &Rollbackd, target: &str, headers: &[&str]) -> RawAnswer {
    let lines: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let request = format!("GET {target} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n");
    raw::send(rollbackd.address, request.as_bytes()).await.expect("an answer")
}

async fn with(rollbackd: &Rollbackd, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = rollbackd.api.request(method, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    rollbackd.api.send(request).await
}

#[tokio::test]
async fn only_a_loopback_host_is_answered() {
    let rollbackd = Rollbackd::start().await;
    let port = rollbackd.address.port();
    for host in ["localhost", "LocalHost", "127.0.0.1", "127.1.2.3", "[::1]", "[0:0:0:0:0:0:0:1]"] {
        for host in [format!("Host: {host}"), format!("Host: {host}:{port}"), format!("Host: {host}:1")] {
            assert_eq!(get(&rollbackd, "/version", &[&host]).await.status, 200, "{host}");
        }
    }
    for host in [
        "rollbackd.example",
        "192.168.1.7",
        "0.0.0.0",
        "[::]",
        "[::ffff:10.0.0.1]",
        "169.254.169.254",
        // Names that resolve to loopback, or look as if: DNS rebinding.
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "localtest.me",
        "localhost.",
        "localhost@evil.example",
        "127.0.0.1 ",
        "127.1",
        "2130706433",
        "0x7f000001",
        "evil.example, localhost",
        "localhost, evil.example",
        "local\u{e4}host",
        "",
        ":8080",
        "[::1",
    ] {
        let host = format!("Host: {}", if host == "127.0.0.1 " { "127.0.0.1 evil" } else { host });
        let answer = get(&rollbackd, "/version", &[&host]).await;
        assert_eq!(named(&answer.problem(403, "forbidden-origin")), "header Host", "{host}");
    }
    for headers in [
        &[][..],
        &["Host: localhost", "Host: localhost"],
        &["Host: localhost", "Host: evil.example"],
        &["Host: evil.example", "Host: localhost"],
        &["X-Forwarded-Host: localhost"],
    ] {
        let answer = get(&rollbackd, "/version", headers).await;
        assert_eq!(named(&answer.problem(400, "invalid-request")), "header Host", "{headers:?}");
    }
    let forwarded = ["Host: evil.example", "X-Forwarded-Host: localhost", "Forwarded: host=localhost"];
    get(&rollbackd, "/version", &forwarded).await.problem(403, "forbidden-origin");
    let old = raw::send(rollbackd.address, b"GET /version HTTP/1.0\r\n\r\n").await.unwrap();
    old.problem(403, "forbidden-origin");
    // The host of an absolute target counts as well.
    let evil = get(&rollbackd, "http://evil.example/version", &["Host: localhost"]).await;
    evil.problem(403, "forbidden-origin");
    assert_eq!(get(&rollbackd, "http://localhost/version", &["Host: localhost"]).await.status, 200);
    // Also where there is nothing, and for the probes.
    for path in ["/nothing", "/livez", "/readyz", "/metrics", "/docs/", "/openapi.json"] {
        get(&rollbackd, path, &["Host: evil.example"]).await.problem(403, "forbidden-origin");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_and_one_of_ours_is_not() {
    let rollbackd = Rollbackd::start().await;
    let port = rollbackd.address.port();
    let ours = [format!("http://127.0.0.1:{port}"), format!("http://localhost:{port}")];
    let (first, second) = (ours[0].as_str(), ours[1].as_str());
    for headers in [
        &[("origin", first)][..],
        &[("origin", second)],
        &[("sec-fetch-site", "same-origin")],
        &[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")],
        &[("origin", first), ("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")],
    ] {
        assert_eq!(with(&rollbackd, Method::GET, "/version", headers).await.status, 200, "{headers:?}");
    }
    for (headers, name) in [
        (&[("origin", "https://evil.example")][..], "Origin"),
        (&[("origin", "http://localhost.evil.example")], "Origin"),
        (&[("origin", "http://127.0.0.1.evil.example:8080")], "Origin"),
        (&[("origin", "null")], "Origin"),
        (&[("origin", "")], "Origin"),
        (&[("origin", "file://")], "Origin"),
        (&[("origin", "chrome-extension://abcdef")], "Origin"),
        (&[("origin", "http://localhost http://evil.example")], "Origin"),
        (&[("origin", first), ("origin", "https://evil.example")], "Origin"),
        (&[("sec-fetch-site", "cross-site")], "Sec-Fetch-Site"),
        (&[("sec-fetch-site", "same-site")], "Sec-Fetch-Site"),
        (&[("sec-fetch-site", "anything")], "Sec-Fetch-Site"),
        (&[("sec-fetch-site", "")], "Sec-Fetch-Site"),
        (&[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")], "Sec-Fetch-Site"),
        (&[("origin", first), ("sec-fetch-site", "cross-site")], "Sec-Fetch-Site"),
    ] {
        for (method, path) in [(Method::GET, "/version"), (Method::POST, "/daemonsets/a/b/rollback")] {
            let answer = with(&rollbackd, method, path, headers).await;
            assert_eq!(
                named(&answer.problem(403, "forbidden-origin")),
                format!("header {name}"),
                "{headers:?}"
            );
        }
    }
}

#[tokio::test]
async fn what_a_page_can_send_without_asking_rolls_nothing_back() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let rollbackd = Rollbackd::start().await;
    let path = format!("{}/rollback", space.path("agent"));
    let before: Value = space.kubectl.get("daemonset", "agent").await["spec"].clone();
    // An old browser: no Sec-Fetch-Site, and no Origin where the method is a form's.
    for (content_type, body) in [
        ("text/plain", "{\"toRevision\":1}"),
        ("text/plain;charset=utf-8", "{\"toRevision\":1,\"reason\":\"=\"}"),
        ("application/x-www-form-urlencoded", "toRevision=1"),
        (
            "multipart/form-data; boundary=b",
            "--b\r\ncontent-disposition: form-data; name=\"toRevision\"\r\n\r\n1\r\n--b--",
        ),
    ] {
        let request = rollbackd.api.request(Method::POST, &path).header("content-type", content_type);
        let answer = rollbackd.api.send(request.body(body)).await;
        answer.problem(415, "unsupported-media-type");
    }
    let bare = rollbackd.api.send(rollbackd.api.request(Method::POST, &path)).await;
    bare.problem(415, "unsupported-media-type");
    // Nor by what a link or an image can ask for.
    for method in ["GET", "HEAD"] {
        let answer = with(&rollbackd, method.parse().unwrap(), &format!("{path}?toRevision=1"), &[]).await;
        assert_eq!(answer.status, 405);
    }
    // What the browser asks first (preflight) is not allowed, whoever asks.
    for origin in ["https://evil.example", "http://localhost:3000"] {
        let asked = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type"),
        ];
        let answer = with(&rollbackd, Method::OPTIONS, &path, &asked).await;
        assert!([403, 405].contains(&answer.status), "{answer:?}");
        let allowed = answer.headers.keys().find(|name| name.as_str().starts_with("access-control-"));
        assert_eq!(allowed, None);
    }
    let read = with(&rollbackd, Method::GET, "/daemonsets", &[("origin", "http://localhost:3000")]).await;
    assert!(!read.headers.keys().any(|name| name.as_str().starts_with("access-control-")), "{read:?}");
    assert_eq!(space.kubectl.get("daemonset", "agent").await["spec"], before);

    // The same body with the content type that a page must ask for first.
    rollbackd.api.post(&path, &json!({"toRevision": 1})).await.expect(202);
}
