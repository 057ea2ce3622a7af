//! Version, probes, metrics, and the document's browser.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{
    api::Api,
    controlplane::ControlPlane,
    rollbackd::{Rollbackd, Setup},
    space::{Space, daemonset},
    wait::until,
};

#[tokio::test]
#[ignore = "compares with the real kubectl"]
async fn version_tells_versions_cluster_and_limits() {
    let flags = &["--cluster-name", "blue \u{1f98a}", "--require-reason"];
    let rollbackd = Rollbackd::start_with(Setup { flags, ..Setup::new(ControlPlane::shared()) }).await;
    let version = until("the API server's version", async || {
        let version = rollbackd.api.get("/version").await.expect(200);
        if version["kubernetesVersion"].is_string() { Ok(version) } else { Err(version) }
    })
    .await;
    let space = Space::new(ControlPlane::shared()).await;
    let kubectl: Value = serde_json::from_str(&space.kubectl.ok(&["version", "-o", "json"]).await).unwrap();
    assert_eq!(
        version,
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cluster": "blue \u{1f98a}",
            "kubernetesVersion": kubectl["serverVersion"]["gitVersion"],
            "readOnly": false,
            "limits": {"maxBodyBytes": 65536, "maxReasonCharacters": 1024, "reasonRequired": true},
        })
    );
    let refused = rollbackd.api.post("/daemonsets/a/b/rollback", &json!({"reason": " \n"})).await;
    refused.problem(422, "reason-required");
}

#[tokio::test]
async fn the_probes_answer_in_kubernetes_words() {
    let rollbackd = Rollbackd::start().await;
    for (path, text) in [
        ("/livez", "ok"),
        ("/readyz", "ok"),
        ("/readyz?verbose", "[+]watches ok\n[+]store ok\n[+]shutdown ok\nreadyz check passed\n"),
        ("/readyz?verbose=1", "[+]watches ok\n[+]store ok\n[+]shutdown ok\nreadyz check passed\n"),
    ] {
        // As a kubelet asks, and as a person does.
        for accept in ["*/*", "text/plain", "application/json"] {
            let answer = rollbackd.api.get_as(path, accept).await;
            assert_eq!((answer.status, answer.text.as_str()), (200, text), "{path}");
            assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8", "{path}");
        }
    }
}

/// All samples of the metrics by name and labels, after a check of the form.
async fn metrics(api: &Api) -> BTreeMap<String, f64> {
    let answer = api.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(answer.text.ends_with("# EOF\n"), "{}", answer.text);
    let (mut samples, mut families) = (BTreeMap::new(), Vec::new());
    for line in answer.text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["#", "HELP", ..] | ["#", "UNIT", _, _] | ["#", "EOF"] => {}
            ["#", "TYPE", name, "counter" | "gauge" | "histogram" | "info"] => {
                families.push((*name).to_owned())
            }
            _ => {
                let (name, value) = line.rsplit_once(' ').expect("a sample has a value");
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
                assert!(families.iter().any(|family| name.starts_with(family)), "{line} is of no family");
                assert_eq!(samples.insert(name.to_owned(), value), None, "{line} is there twice");
            }
        }
    }
    samples
}

fn sum(samples: &BTreeMap<String, f64>, name: &str) -> f64 {
    samples.iter().filter(|(sample, _)| sample.split('{').next() == Some(name)).map(|(_, value)| value).sum()
}

#[tokio::test]
async fn metrics_count_what_happens_and_name_no_object() {
    let flags = &["--cluster-name", "marker-cluster"];
    let rollbackd = Rollbackd::start_with(Setup { flags, ..Setup::new(ControlPlane::shared()) }).await;
    let api = &rollbackd.api;
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let path = space.path("agent");

    let before = metrics(api).await;
    assert_eq!(before["rollbackd_build_info{version=\"0.1.0\"}"], 1.0);
    assert_eq!((before["rollbackd_rollbacks_open"], before["rollbackd_sse_listeners"]), (0.0, 0.0));
    for kind in ["daemonsets", "controllerrevisions"] {
        let stale = before[&format!("rollbackd_watch_staleness_seconds{{kind=\"{kind}\"}}")];
        assert!((0.0..60.0).contains(&stale), "{stale}");
    }

    let rollback = format!("{path}/rollback");
    api.post(&rollback, &json!({"toRevision": 99, "reason": "marker-reason"}))
        .await
        .problem(422, "unknown-revision");
    api.post(&rollback, &json!({"dryRun": true})).await.expect(200);
    api.post(&rollback, &json!({"toRevision": 2})).await.expect(200);
    let made = api.post(&rollback, &json!({"toRevision": 1})).await.expect(202);
    api.rollback_in(made["id"].as_str().unwrap(), &["succeeded"]).await;
    api.get("/marker-path").await.problem(404, "unknown-path");
    api.get("/daemonsets/marker-namespace/marker-name").await.problem(404, "daemonset-not-found");
    api.get(&path).await.expect(200);
    space.kubectl.create(&daemonset("stuck", "img:unready")).await;
    let stream = api.events(&format!("{}/status", space.path("stuck"))).await;
    until("the stream to be counted", async || {
        let open = metrics(api).await["rollbackd_sse_listeners"];
        if open == 1.0 { Ok(()) } else { Err(open) }
    })
    .await;
    drop(stream);
    let after = until("the stream not to be counted any more", async || {
        let samples = metrics(api).await;
        if samples["rollbackd_sse_listeners"] == 0.0 { Ok(samples) } else { Err(samples) }
    })
    .await;

    let one = "/daemonsets/{namespace}/{name}";
    for (name, expected) in [
        ("rollbackd_rollbacks_total{outcome=\"succeeded\"}".to_owned(), 1.0),
        ("rollbackd_rollbacks_total{outcome=\"skipped\"}".to_owned(), 1.0),
        ("rollbackd_rollbacks_open".to_owned(), 0.0),
        ("rollbackd_rollouts_stalled".to_owned(), 0.0),
        ("rollbackd_rollback_duration_seconds_count".to_owned(), 2.0),
        ("rollbackd_store_errors_total".to_owned(), 0.0),
        ("rollbackd_audit_entries_total{action=\"rollback.refused\"}".to_owned(), 1.0),
        ("rollbackd_audit_entries_total{action=\"rollback.dryRun\"}".to_owned(), 1.0),
        ("rollbackd_audit_entries_total{action=\"rollback.skipped\"}".to_owned(), 1.0),
        ("rollbackd_audit_entries_total{action=\"rollback.requested\"}".to_owned(), 1.0),
        ("rollbackd_audit_entries_total{action=\"rollback.applied\"}".to_owned(), 1.0),
        ("rollbackd_audit_entries_total{action=\"rollout.completed\"}".to_owned(), 1.0),
        (format!("rollbackd_http_requests_total{{route=\"{one}/rollback\",status=\"202\"}}"), 1.0),
        (format!("rollbackd_http_requests_total{{route=\"{one}/rollback\",status=\"200\"}}"), 2.0),
        (format!("rollbackd_http_requests_total{{route=\"{one}\",status=\"404\"}}"), 1.0),
        (format!("rollbackd_http_requests_total{{route=\"{one}\",status=\"200\"}}"), 1.0),
        ("rollbackd_http_requests_total{route=\"unmatched\",status=\"404\"}".to_owned(), 1.0),
        (format!("rollbackd_http_request_duration_seconds_count{{route=\"{one}\"}}"), 2.0),
    ] {
        assert_eq!(after.get(&name), Some(&expected), "{name}: {after:#?}");
    }
    let writes = "rollbackd_store_write_seconds_count";
    assert!(
        after[writes] > before[writes] && sum(&after, "rollbackd_http_requests_total") > 10.0,
        "{after:#?}"
    );

    let labels = ["version", "outcome", "kind", "action", "part", "route", "status", "le"];
    for sample in after.keys() {
        for label in sample.split(['{', ',']).skip(1).filter_map(|pair| pair.split_once("=\"")) {
            assert!(labels.contains(&label.0) || label.0.contains('}'), "{sample}");
        }
        for name in [&space.namespace, "agent", "marker", "local", "img:"] {
            assert!(!sample.contains(name), "{sample} names {name}");
        }
    }
}

/// What a page or a stylesheet makes the browser load.
fn loads(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (before, end) in
        [("src=\"", '"'), ("href=\"", '"'), ("url(", ')'), ("@import \"", '"'), ("\"url\": \"", '"')]
    {
        let parts = text.split(before).skip(1).filter_map(|rest| rest.split(end).next());
        found.extend(parts.map(|part| part.trim_matches(['"', '\'']).to_owned()));
    }
    found.retain(|part| !part.starts_with("data:") && !part.starts_with('#'));
    found
}

#[tokio::test]
async fn the_document_can_be_browsed_without_the_internet() {
    let rollbackd = Rollbackd::start().await;
    let redirect = rollbackd.api.get("/docs").await;
    let page = rollbackd.api.get_as("/docs/", "text/html,application/xhtml+xml,*/*;q=0.8").await;
    assert_eq!((redirect.status, page.status), (200, 200), "{redirect:?}");
    assert!(page.header("content-type").starts_with("text/html"));
    let base = reqwest::Url::parse(&format!("http://{}/docs/", rollbackd.address)).unwrap();
    let (mut waiting, mut seen) = (loads(&page.text), Vec::new());
    assert!(waiting.len() >= 5, "{waiting:?}");
    while let Some(part) = waiting.pop() {
        let url = base.join(&part).unwrap();
        assert_eq!(url.origin(), base.origin(), "{part} is loaded from elsewhere");
        // Relative to the page, so that it is found behind a proxy's prefix too.
        assert!(!part.starts_with('/'), "{part}");
        if seen.contains(&part) {
            continue;
        }
        let asset = rollbackd.api.send(rollbackd.api.request(reqwest::Method::GET, url.path())).await;
        assert_eq!(asset.status, 200, "{part}");
        let kind = asset.header("content-type").to_owned();
        let right = match url.path().rsplit('.').next().unwrap() {
            "css" => "text/css",
            "js" => "text/javascript",
            "png" => "image/png",
            "json" => "application/json",
            other => panic!("{part}: what is {other}?"),
        };
        assert!(kind.starts_with(right), "{part}: {kind}");
        if part.ends_with(".css") || part.ends_with("initializer.js") {
            waiting.extend(loads(&asset.text));
        }
        seen.push(part);
    }
    assert!(seen.contains(&"../openapi.json".to_owned()), "{seen:?}");
    // Swagger UI would ask its makers' server to check the document, wherever the host is not localhost.
    let setup = rollbackd.api.get("/docs/swagger-initializer.js").await.text;
    assert!(setup.contains("\"validatorUrl\": \"none\""), "{setup}");
}
