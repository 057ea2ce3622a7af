//! The API server misbehaves. What was done is found out and told truly, what was not done stays undone,
//! and the caller never reads the API server's raw text.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rollbackd::{rollbacks::Patience, server::Timing};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::{
    api::Answer,
    controlplane::{ControlPlane, kubernetes},
    faults::{self, Fault},
    rollbackd::{Rollbackd, Setup, timing},
    space::Space,
    wait::until,
};

/// What a proxy would say. Nobody may ever read it.
const HTML: &str = "<html><body>RAW-TEXT of a proxy at 10.0.0.7</body></html>";
const CONFLICT: &str = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"RAW-TEXT","reason":"Conflict","code":409}"#;

async fn rollbackd(control_plane: &ControlPlane, settling: Duration) -> Rollbackd {
    let patience = Patience { settling, ..timing().patience };
    // Some wait for it. Real API servers may be slow.
    let api = Duration::from_secs(if kubernetes().is_some() { 10 } else { 2 });
    let timing = Timing { api, patience, ..timing() };
    Rollbackd::start_with(Setup { timing, ..Setup::new(control_plane) }).await
}

/// A DaemonSet `agent` with the recorded revisions `img:1` and `img:2`, a rollbackd, and the path of the
/// rollback.
async fn agent() -> (Space, Rollbackd, String) {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    space.rolled_out("agent").await;
    let path = format!("{}/rollback", space.path("agent"));
    (space, rollbackd(ControlPlane::shared(), Duration::from_secs(30)).await, path)
}

async fn image(space: &Space) -> String {
    let daemonset = space.kubectl.get("daemonset", "agent").await;
    daemonset["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
}

/// The newest rollback of a namespace.
async fn newest(rollbackd: &Rollbackd, space: &Space) -> Value {
    let listed = rollbackd.api.get(&format!("/rollbacks?namespace={}", space.namespace)).await.expect(200);
    listed["items"][0].clone()
}

/// A 503 that says that nothing was changed and what to type meanwhile.
fn unavailable(answer: &Answer, space: &Space) -> Value {
    let problem = answer.problem(503, "cluster-unavailable");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("the Kubernetes API server ") && detail.ends_with("; nothing was changed"),
        "{detail}"
    );
    let command =
        format!("kubectl rollout undo daemonset/agent --namespace={} --to-revision=1", space.namespace);
    assert_eq!(problem["command"], command);
    assert!(!answer.header("retry-after").is_empty());
    assert!(!answer.text.contains("RAW-TEXT"), "{answer:?}");
    problem
}

#[tokio::test]
#[ignore = "runs the kubectl command that the answer names"]
async fn a_busy_api_server_is_told_with_its_own_retry_after() {
    let (space, rollbackd, path) = agent().await;
    let busy = || Fault::Answer {
        status: 429,
        headers: vec![("retry-after", "7"), ("content-type", "text/plain")],
        body: "RAW-TEXT: Too many requests, please try again later.",
    };
    rollbackd.faults.inject(1, busy(), faults::patch);
    let answer = rollbackd.api.post(&path, &json!({"toRevision": 1})).await;
    let problem = unavailable(&answer, &space);
    assert_eq!((answer.header("retry-after"), &problem["retryAfter"]), ("7", &json!(7)));
    assert_eq!(rollbackd.faults.patches(), 1);
    assert_eq!(image(&space).await, "img:2");
    assert_eq!(newest(&rollbackd, &space).await["state"], "failed");
    assert_eq!(rollbackd.api.actions(&space.namespace).await, ["rollback.requested", "rollback.failed"]);

    rollbackd.faults.inject(1, busy(), faults::patch);
    let plain = rollbackd.api.post_as(&path, &json!({"toRevision": 1}), "text/plain").await;
    assert_eq!(plain.text.lines().count(), 1);
    let (error, command) = plain.text.trim_end().split_once("; meanwhile: ").expect("what to type");
    assert_eq!(error, "error: the Kubernetes API server is busy; nothing was changed");

    // The command does what it says.
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    assert_eq!(space.kubectl.ok(&words).await, "daemonset.apps/agent rolled back\n");
    assert_eq!(image(&space).await, "img:1");
}

#[tokio::test]
async fn reads_that_fail_before_the_plan_are_told_and_leave_nothing() {
    let (space, rollbackd, path) = agent().await;
    let on = |plural: &'static str, name: &'static str| {
        let namespace = space.namespace.clone();
        move |request: &http::Request<kube::client::Body>| {
            request.method() == http::Method::GET
                && request.uri().path().ends_with(&format!("/namespaces/{namespace}/{plural}{name}"))
        }
    };
    for fault in [
        Fault::Answer { status: 500, headers: vec![], body: HTML },
        // Of a proxy, which knows of no DaemonSets.
        Fault::Answer { status: 404, headers: vec![("content-type", "text/html")], body: HTML },
        Fault::Answer { status: 403, headers: vec![("content-type", "text/html")], body: HTML },
        Fault::Answer { status: 200, headers: vec![], body: HTML },
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::Silence,
    ] {
        for (plural, name) in [("daemonsets", "/agent"), ("controllerrevisions", "")] {
            rollbackd.faults.inject(1, fault.clone(), on(plural, name));
            let answer = rollbackd.api.post(&path, &json!({"toRevision": 1})).await;
            unavailable(&answer, &space);
        }
    }
    assert_eq!(rollbackd.faults.patches(), 0);
    assert_eq!(newest(&rollbackd, &space).await, Value::Null);
    rollbackd.api.post(&path, &json!({"toRevision": 1})).await.expect(202);
}

#[tokio::test]
async fn a_patch_that_was_not_carried_out_is_abandoned() {
    let (space, rollbackd, path) = agent().await;
    for fault in [
        Fault::Answer { status: 500, headers: vec![], body: HTML },
        Fault::Answer { status: 502, headers: vec![("content-type", "text/html")], body: HTML },
        Fault::Answer { status: 404, headers: vec![("content-type", "text/html")], body: HTML },
        Fault::Answer { status: 504, headers: vec![("retry-after", "3")], body: "RAW-TEXT" },
        Fault::CutBefore,
        Fault::Silence,
    ] {
        let before = rollbackd.faults.patches();
        rollbackd.faults.inject(1, fault.clone(), faults::patch);
        let answer = rollbackd.api.post(&path, &json!({"toRevision": 1})).await;
        unavailable(&answer, &space);
        assert_eq!(image(&space).await, "img:2");
        let record = newest(&rollbackd, &space).await;
        assert_eq!(record["state"], "abandoned", "{fault:?}: {record}");
        let message = record["message"].as_str().unwrap();
        assert!(
            message.ends_with("; the patch was not carried out") && !message.contains("RAW"),
            "{message}"
        );
        // The patch, and the write that keeps it from being carried out later.
        assert_eq!(rollbackd.faults.patches() - before, 2, "{fault:?}");
    }
    assert_eq!(
        rollbackd.api.actions(&space.namespace).await,
        ["rollback.requested", "rollback.failed"].repeat(6)
    );
    rollbackd.api.post(&path, &json!({"toRevision": 1})).await.expect(202);
}

#[tokio::test]
async fn a_patch_that_was_carried_out_is_made_whatever_was_answered() {
    let (space, rollbackd, path) = agent().await;
    for (turn, fault) in [
        Fault::AnswerAfter { status: 500, body: HTML },
        Fault::AnswerAfter { status: 502, body: HTML },
        Fault::AnswerAfter { status: 504, body: "RAW-TEXT" },
        Fault::AnswerAfter { status: 200, body: HTML },
        // A proxy that sends a request twice: the second one meets what the first has made.
        Fault::AnswerAfter { status: 409, body: CONFLICT },
        Fault::CutAfter,
    ]
    .into_iter()
    .enumerate()
    {
        let before = rollbackd.faults.patches();
        rollbackd.faults.inject(1, fault.clone(), faults::patch);
        let answer = rollbackd.api.post(&path, &json!({"toRevision": "previous"})).await;
        let made = answer.expect(202);
        assert_eq!(made["state"], "progressing", "{fault:?}");
        assert!(!answer.text.contains("RAW-TEXT"), "{answer:?}");
        let ended = rollbackd.api.rollback_at(answer.header("location"), &["succeeded"]).await;
        assert_eq!(ended["newRevision"], 3 + turn, "{fault:?}");
        assert_eq!(
            ended["generation"],
            space.kubectl.get("daemonset", "agent").await["metadata"]["generation"]
        );
        assert_eq!(image(&space).await, ended["to"]["images"][0]["image"].as_str().unwrap());
        assert_eq!(rollbackd.faults.patches() - before, 1, "{fault:?}");
    }
    let made = ["rollback.requested", "rollback.applied", "rollout.completed"];
    assert_eq!(rollbackd.api.actions(&space.namespace).await, made.repeat(6));
}

#[tokio::test]
async fn a_patch_that_comes_late_meets_a_conflict() {
    let (space, rollbackd, path) = agent().await;
    let (open, late) = watch::channel(false);
    rollbackd.faults.inject(1, Fault::Late(late), faults::patch);
    let answer = rollbackd.api.post(&path, &json!({"toRevision": 1})).await;
    unavailable(&answer, &space);
    open.send_replace(true);
    assert_eq!(newest(&rollbackd, &space).await["state"], "abandoned");
    assert_eq!(rollbackd.faults.late_answer().await, 409);
    assert_eq!(image(&space).await, "img:2");
}

#[tokio::test]
async fn a_patch_that_comes_while_it_is_being_settled_is_made() {
    let (space, rollbackd, path) = agent().await;
    // The late patch arrives between the look that did not find it and the write that would stop it.
    let (open, late) = watch::channel(false);
    rollbackd.faults.inject(1, Fault::Late(late), faults::patch);
    let (faults, mut sent) = (rollbackd.faults.clone(), 0);
    rollbackd.faults.before(move |request| {
        sent += usize::from(faults::patch(request));
        let (faults, open) = (faults.clone(), open.clone());
        (sent >= 2 && faults::patch(request)).then(|| {
            Box::pin(async move {
                open.send_replace(true);
                faults.late_answer().await;
            }) as _
        })
    });
    let answer = rollbackd.api.post(&path, &json!({"toRevision": 1})).await;
    answer.expect(202);
    assert_eq!(rollbackd.faults.late_answer().await, 200);
    let ended = rollbackd.api.rollback_at(answer.header("location"), &["succeeded"]).await;
    assert_eq!((ended["newRevision"].as_i64(), image(&space).await), (Some(3), "img:1".to_owned()));
}

/// From the patch on, the API server is out of reach.
fn gone_from_the_patch_on(rollbackd: &Rollbackd, patch: Fault) {
    let gone = Arc::new(AtomicBool::new(false));
    rollbackd.faults.inject(1, patch, faults::patch);
    let now = gone.clone();
    rollbackd.faults.inject(usize::MAX, Fault::CutBefore, move |_| now.load(Ordering::Relaxed));
    rollbackd.faults.before(move |request| {
        gone.fetch_or(faults::patch(request), Ordering::Relaxed);
        None
    });
}

#[tokio::test]
async fn while_the_api_server_is_gone_a_rollback_is_unsettled_and_then_settled() {
    for (fault, state, entry) in [
        (Fault::CutAfter, "succeeded", "rollback.applied"),
        (Fault::CutBefore, "abandoned", "rollback.failed"),
    ] {
        let space = Space::new(ControlPlane::shared()).await;
        space.recorded(&["img:1", "img:2"]).await;
        // A status that is written in between would make the patch a conflict, whose answer is lost as well.
        space.rolled_out("agent").await;
        let rollbackd = rollbackd(ControlPlane::shared(), Duration::from_millis(300)).await;
        let (api, path) = (&rollbackd.api, format!("{}/rollback", space.path("agent")));
        gone_from_the_patch_on(&rollbackd, fault);
        let answer = api.post_as(&path, &json!({"toRevision": 1}), "text/plain").await;
        let text =
            "daemonset.apps/agent rollback unsettled: the Kubernetes API server broke off its answer\n";
        assert_eq!((answer.status, answer.text.as_str()), (202, text));
        let location = answer.header("location");
        let record = api.get(location).await.expect(200);
        assert_eq!(record["state"], "unsettled");
        assert_eq!(record["message"], "the Kubernetes API server broke off its answer");
        let second = api.post(&path, &json!({"toRevision": 2})).await;
        second.problem(409, "rollback-in-progress");
        let mut states = api.events(location).await;
        assert_eq!(states.next().await.unwrap().data["state"], "unsettled");

        rollbackd.faults.clear();
        let ended = states.into_all().await.pop().unwrap();
        assert_eq!((ended.name.as_str(), &ended.data["state"]), ("ended", &json!(state)));
        assert_eq!(image(&space).await, if state == "succeeded" { "img:1" } else { "img:2" });
        let actions = api.actions(&space.namespace).await;
        let expected = ["rollback.requested", "rollback.unsettled", "rollback.refused", entry];
        assert_eq!(actions[..4], expected);
        // Settled, it is in nobody's way.
        assert!([200, 202].contains(&api.post(&path, &json!({"toRevision": 2})).await.status));
    }
}

#[tokio::test]
async fn a_right_that_rollbackd_lacks_is_not_the_callers_fault() {
    let (space, rollbackd, path) = agent().await;
    const DENIED: &str = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"daemonsets.apps \"agent\" is forbidden: User \"rollbackd\" cannot patch resource \"daemonsets\"","reason":"Forbidden","code":403}"#;
    const NO: &str = r#"{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{},"spec":{},"status":{"allowed":false}}"#;
    let denied = || Fault::Answer { status: 403, headers: vec![], body: DENIED };
    let review = |request: &http::Request<kube::client::Body>| {
        request.uri().path().ends_with("/selfsubjectaccessreviews")
    };
    rollbackd.faults.inject(1, denied(), faults::patch);
    rollbackd.faults.inject(1, Fault::Answer { status: 201, headers: vec![], body: NO }, review);
    let answer = rollbackd.api.post(&path, &json!({"toRevision": 1})).await;
    let problem = answer.problem(503, "missing-right");
    assert!(
        problem["detail"].as_str().unwrap().contains("cannot patch resource \"daemonsets\""),
        "{problem}"
    );
    assert!(problem["command"].as_str().unwrap().starts_with("kubectl rollout undo daemonset/agent "));
    // The same answer, and rollbackd may patch: then it was admission.
    rollbackd.faults.inject(1, denied(), faults::patch);
    let answer = rollbackd.api.post(&path, &json!({"toRevision": 1})).await;
    answer.problem(422, "refused-by-api-server");
    assert_eq!(image(&space).await, "img:2");
    let made = ["rollback.requested", "rollback.failed"];
    assert_eq!(rollbackd.api.actions(&space.namespace).await, made.repeat(2));
}

#[tokio::test]
#[ignore = "freezes and kills the API server"]
async fn an_api_server_that_is_frozen_or_killed_in_the_middle_is_told_truly() {
    let control_plane = Arc::new(ControlPlane::private("lost-answers"));
    let space = Space::new(&control_plane).await;
    space.recorded(&["img:1", "img:2"]).await;
    space.rolled_out("agent").await;
    let rollbackd = rollbackd(&control_plane, Duration::from_millis(500)).await;
    let (api, path) = (&rollbackd.api, format!("{}/rollback", space.path("agent")));
    let signal_before_patch = |signal: &'static str| {
        let (control_plane, mut done) = (control_plane.clone(), false);
        rollbackd.faults.before(move |request| {
            if faults::patch(request) && !std::mem::replace(&mut done, true) {
                control_plane.signal("kube-apiserver", signal);
            }
            None
        });
    };

    // Frozen when the patch comes: it may carry it out when it thaws, or find that nobody waits for it.
    signal_before_patch("STOP");
    let answer = api.post(&path, &json!({"toRevision": 1})).await;
    assert_eq!(answer.expect(202)["state"], "unsettled");
    api.post(&path, &json!({"toRevision": 1})).await.problem(409, "rollback-in-progress");
    control_plane.signal("kube-apiserver", "CONT");
    let ended = api.rollback_at(answer.header("location"), &["succeeded", "abandoned"]).await;
    let made = ended["state"] == "succeeded";
    assert_eq!(image(&space).await, if made { "img:1" } else { "img:2" }, "{ended}");

    // Killed when the patch comes: it was not carried out.
    space.rolled_out("agent").await;
    let running = image(&space).await;
    signal_before_patch("KILL");
    let other = if made { json!("previous") } else { json!(1) };
    let answer = api.post(&path, &json!({"toRevision": other})).await;
    let problem = api.post(&path, &json!({"toRevision": other})).await;
    match answer.status {
        202 => drop(problem.problem(409, "rollback-in-progress")),
        _ => {
            // No connection was made, so that it certainly was not sent.
            answer.problem(503, "cluster-unavailable");
            problem.problem(503, "cluster-unavailable");
        }
    }
    let restarting = control_plane.clone();
    tokio::task::spawn_blocking(move || restarting.restart("kube-apiserver")).await.unwrap();
    until("the rollback to be settled", async || {
        let rollback = newest(&rollbackd, &space).await;
        if ["abandoned", "failed"].contains(&rollback["state"].as_str().unwrap()) {
            Ok(())
        } else {
            Err(rollback)
        }
    })
    .await;
    assert_eq!(image(&space).await, running);
    let answer = until("a rollback after it", async || {
        let answer = api.post(&path, &json!({"toRevision": other})).await;
        if answer.status == 202 { Ok(answer) } else { Err(answer) }
    })
    .await;
    api.rollback_at(answer.header("location"), &["succeeded"]).await;
}

/// kube's own retry would send a patch again after a 504, below what other tests can see.
#[tokio::test]
async fn on_the_wire_each_request_is_sent_once() {
    let counted = Arc::new(AtomicUsize::new(0));
    let count = counted.clone();
    let server = axum::Router::new().fallback(move || {
        count.fetch_add(1, Ordering::Relaxed);
        async { http::StatusCode::GATEWAY_TIMEOUT }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, server).await });
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "x", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let client = rollbackd::kubernetes::connect::client(Some(&kubeconfig)).await.unwrap();
    let api: kube::Api<k8s_openapi::api::apps::v1::DaemonSet> = kube::Api::namespaced(client, "default");
    let patch = kube::api::Patch::Strategic(json!({"metadata": {"labels": {"a": "b"}}}));
    let error = api.patch("agent", &kube::api::PatchParams::default(), &patch).await.unwrap_err();
    assert!(matches!(&error, kube::Error::Api(status) if status.code == 504), "{error:?}");
    assert_eq!(counted.load(Ordering::Relaxed), 1);
}
