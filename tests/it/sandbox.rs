//! `rollbackd sandbox`, as a user starts it, and what the sandbox has to tell its tests.

use std::{net::TcpListener, process::Stdio};

use http::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use rollbackd::sandbox::{Id, Kind, STORY, Sandbox, Unsimulated};

use crate::support::controlplane::ControlPlane;
use crate::support::{
    api::Api,
    faults::{self, Fault},
    program::{Running, free_port, shell},
    rollbackd::{Rollbackd, Setup},
    space::Space,
};

fn start(args: &[&str]) -> (Running, Api, String) {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let args = [&["sandbox", "--listen", &listen], args].concat();
    let running = Running::start(env!("CARGO_BIN_EXE_rollbackd").as_ref(), &args);
    (running, Api::new(listen.parse().unwrap()), listen)
}

#[tokio::test]
async fn its_story_is_there_and_the_lines_that_it_prints_work() {
    let (mut running, api, listen) = start(&["--speed", "10"]);
    let said = running.says("Ctrl-C ends it").await;
    let text = said.join("\n");
    assert!(!text.contains('\u{1b}'), "it is no terminal: {text}");
    let listed = api.get("/daemonsets").await.expect(200);
    let shown: Vec<String> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| format!("{}/{}", item["namespace"].as_str().unwrap(), item["name"].as_str().unwrap()))
        .collect();
    for (name, what) in STORY {
        assert!(text.contains(name) && text.contains(what), "{name}: {text}");
        assert!(shown.iter().any(|shown| shown == name), "{name}: {shown:?}");
    }
    assert_eq!(shown.len(), STORY.len());

    let lines: Vec<&str> =
        said.iter().map(|line| line.trim()).filter(|line| line.starts_with("curl")).collect();
    assert_eq!(lines.len(), 4, "{text}");
    let mut printed = Vec::new();
    for line in lines {
        printed.push(shell(&format!("set -e; {line}")).await);
    }
    assert!(printed[0].contains("REVISION  CHANGE-CAUSE"), "{printed:?}");
    assert!(printed[1].contains("\"state\":\"progressing\""), "{printed:?}");
    assert!(printed[2].contains("event: complete"), "{printed:?}");
    assert!(printed[3].contains("rollback.requested"), "{printed:?}");
    assert!(running.stop(), "it ends in order");
    assert!(TcpListener::bind(&listen).is_ok(), "the port is free again");
}

#[tokio::test]
async fn its_size_is_what_was_asked_for_and_its_store_may_be_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", folder.path().join("kept.db").display());
    let args = ["--nodes", "12", "--speed", "100", "--store", &store];
    let (mut first, api, _) = start(&args);
    first.says("Ctrl-C").await;
    let agent = api.get("/daemonsets/monitoring/log-agent").await.expect(200);
    assert_eq!(agent["desiredNumberScheduled"], 12);
    let path = "/daemonsets/monitoring/log-agent/rollback";
    let id = api.post(path, &json!({"reason": "kept"})).await.expect(202)["id"].clone();
    assert!(first.stop());
    let (mut second, api, _) = start(&args);
    second.says("Ctrl-C").await;
    let kept = api.get("/rollbacks").await.expect(200);
    assert_eq!((&kept["items"][0]["id"], &kept["items"][0]["reason"]), (&id, &json!("kept")));
}

/// It holds no credentials, so that a web page or another machine may use it.
#[tokio::test]
async fn it_listens_anywhere_and_answers_any_host() {
    let port = free_port();
    let args = ["sandbox", "--listen", &format!("0.0.0.0:{port}")];
    let mut running = Running::start(env!("CARGO_BIN_EXE_rollbackd").as_ref(), &args);
    running.says("Ctrl-C").await;
    let api = Api::new(([127, 0, 0, 1], port).into());
    let request = api.request(reqwest::Method::GET, "/daemonsets/platform/gpu-driver");
    let answer =
        api.send(request.header("host", "rollbackd.example").header("origin", "http://portal.example")).await;
    assert_eq!(answer.expect(200)["updateStrategy"], "OnDelete");
}

#[tokio::test]
async fn logs_are_json_lines_with_the_request_id_and_hold_no_secrets() {
    let port = free_port();
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollbackd"))
        .args(["sandbox", "--listen", &format!("127.0.0.1:{port}")])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let started = lines.next_line().await.unwrap().unwrap();
    assert!(started.contains("listening"), "{started}");
    let api = Api::new(([127, 0, 0, 1], port).into());
    let request = |path: &str| {
        let request = api.request(reqwest::Method::GET, path).header("x-request-id", "marker-id");
        api.send(request.header("authorization", "Bearer marker-token"))
    };
    request("/daemonsets/monitoring/log-agent/revisions/1").await.expect(200);
    request("/%1b%5b31mred%0a").await.problem(404, "unknown-path");
    let body = json!({"reason": "a\u{1b}[31m reason"});
    api.post("/daemonsets/monitoring/log-agent/rollback", &body).await.expect(202);
    request("/livez").await;
    request("/the-end").await.problem(404, "unknown-path");
    let mut logged = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        let entry: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry["timestamp"].is_string() && entry["level"].is_string(), "{line}");
        logged.push_str(&line);
        logged.push('\n');
        // The head is logged by a task of its own.
        if logged.contains("/the-end") && logged.contains("\"message\":\"the audit's head\"") {
            break;
        }
    }
    assert!(logged.contains("\"request_id\":\"marker-id\""), "{logged}");
    for secret in ["marker-token", "registry.example", "containerPort"] {
        assert!(!logged.contains(secret), "{secret}: {logged}");
    }
    assert!(!logged.chars().any(|c| c.is_control() && c != '\n'), "{logged:?}");
    assert!(!logged.contains("\\u001b"), "{logged}");
}

#[tokio::test]
async fn a_watch_that_asks_for_what_is_forgotten_is_told_so_and_rollbackd_lists_again() {
    let control_plane = ControlPlane::shared();
    let Some(sandbox) = control_plane.sandbox() else { return };
    let space = Space::new(control_plane).await;
    let cut = tokio_util::sync::CancellationToken::new();
    let setup = Setup::new(control_plane);
    setup.faults.inject(1, Fault::CutBody(cut.clone()), faults::watch("daemonsets"));
    // The watch that follows is held up until its version is forgotten.
    let (open, late) = tokio::sync::watch::channel(false);
    setup.faults.inject(1, Fault::Late(late), faults::watch("daemonsets"));
    let rollbackd = Rollbackd::start_with(setup).await;
    space.agent(&["img:1"]).await;
    let path = space.path("agent");
    rollbackd.api.shows(&path, "the first revision", |one| one["currentRevision"] == 1).await;
    cut.cancel();
    space.set_image("agent", "img:2").await;
    space.rolled_out("agent").await;
    sandbox.compact();
    open.send_replace(true);
    let shown = rollbackd.api.shows(&path, "the second revision", |one| one["currentRevision"] == 2).await;
    assert_eq!(shown["generation"], 2);
    let lists = rollbackd
        .faults
        .requests()
        .iter()
        .filter(|it| it.starts_with("GET /apis/apps/v1/daemonsets?&limit=500"))
        .count();
    assert!(lists >= 2, "{:?}", rollbackd.faults.requests());
}

#[tokio::test]
async fn what_it_does_not_simulate_is_a_404_and_remembered() {
    let unsimulated = Unsimulated::default();
    let client = kube::Client::new(Sandbox::empty(1, 1.0).router(unsimulated.clone()), "default");
    let asked = [
        ("GET", "/api/v1/pods"),
        ("GET", "/apis/apps/v1/deployments"),
        ("GET", "/apis/apps/v1/daemonsets?fieldSelector=a"),
        ("DELETE", "/apis/apps/v1/namespaces/a/daemonsets/b"),
        ("PATCH", "/apis/apps/v1/namespaces/a/daemonsets/b?fieldManager=x"),
        ("POST", "/apis/apps/v1/namespaces/a/daemonsets"),
    ];
    for (method, path) in asked {
        let request = Request::builder().method(method).uri(path).body(b"{}".to_vec()).unwrap();
        let error = client.request::<Value>(request).await.unwrap_err();
        assert!(
            matches!(&error, kube::Error::Api(status) if status.code == 404),
            "{method} {path}: {error:?}"
        );
    }
    let remembered = unsimulated.requests();
    assert_eq!(remembered.len(), asked.len(), "{remembered:?}");
    for ((method, path), told) in asked.iter().zip(&remembered) {
        assert!(told.starts_with(&format!("{method} {path}: ")), "{told}");
    }
}

#[tokio::test]
async fn time_passes_as_fast_as_it_is_told_to() {
    let slow = Sandbox::empty(1, 0.1);
    let fast = Sandbox::empty(1, 100.0);
    let mut object = crate::support::space::daemonset("agent", "img:1");
    object["metadata"]["namespace"] = json!("n");
    for sandbox in [&slow, &fast] {
        drop(sandbox.create(Kind::DaemonSet, "kubectl-create", object.clone()));
        tokio::spawn(sandbox.clone().run());
    }
    let ready = |sandbox: &Sandbox| {
        let id = Id::new(Kind::DaemonSet, "n", "agent");
        sandbox.get(&id).unwrap()["status"]["numberReady"].as_i64()
    };
    crate::support::wait::until("the fast one to be ready", async || {
        if ready(&fast) == Some(1) { Ok(()) } else { Err(ready(&fast)) }
    })
    .await;
    assert_eq!(ready(&slow), Some(0));
}
