//! Kubernetes Events: `kubectl describe daemonset` shows who rolled it back, why, and what came of it. They hold
//! nothing up.

use http::Method;
use kube::client::Body;
use serde_json::{Value, json};

use crate::support::{
    controlplane::ControlPlane,
    faults::Fault,
    people::Right,
    rollbackd::{Rollbackd, Setup, agent},
    space::Space,
    wait::until,
};

/// Matches the creation of an Event.
fn event(request: &http::Request<Body>) -> bool {
    request.method() == Method::POST && request.uri().path().ends_with("/events")
}

/// Waits until the rollbacks of a namespace have so many Events, and returns them, oldest first.
async fn events(space: &Space, count: usize) -> Vec<Value> {
    until(&format!("{count} Events"), async || {
        let mut events = space.kubectl.list("events.events.k8s.io").await;
        events.retain(|event| event["reportingController"] == "rollbackd");
        events.sort_by_key(|event| event["eventTime"].as_str().map(ToOwned::to_owned));
        if events.len() == count { Ok(events) } else { Err(events) }
    })
    .await
}

fn told(events: &[Value]) -> Vec<(&str, &str)> {
    events.iter().map(|event| (event["type"].as_str().unwrap(), event["reason"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn a_rollback_is_told_at_its_request_and_at_its_end() {
    let (space, rollbackd, path) = agent().await;
    let reason = "it \"crashes\"\n\u{1b}[2J\u{202e}";
    // Nothing is told of what changes nothing.
    rollbackd.api.post(&path, &json!({"dryRun": true})).await.expect(200);
    rollbackd.api.post(&path, &json!({"toRevision": 3})).await.expect(200);
    let made = rollbackd.api.post(&path, &json!({"toRevision": 1, "reason": reason})).await.expect(202);
    let id = made["id"].as_str().unwrap();
    rollbackd.api.rollback_in(id, &["succeeded"]).await;

    let events = events(&space, 2).await;
    assert_eq!(told(&events), [("Normal", "RollbackRequested"), ("Normal", "RollbackSucceeded")]);
    let who = r#"requested by local: it "crashes"\n\u{1b}[2J\u{202e}"#;
    let notes = [
        format!("rollback {id} from revision 3 to revision 1 {who}"),
        format!(
            "rollback {id} to revision 1, now revision 4: daemon set \"agent\" successfully rolled out; {who}"
        ),
    ];
    let daemonset = space.kubectl.get("daemonset", "agent").await;
    for (event, note) in events.iter().zip(&notes) {
        assert_eq!(event["note"], *note);
        assert_eq!(event["action"], "Rollback");
        let regarding = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "namespace": space.namespace, "name": "agent",
            "uid": daemonset["metadata"]["uid"],
        });
        assert_eq!(event["regarding"], regarding);
    }
    // As the README finds them.
    let ours =
        ["get", "events.events.k8s.io", "--field-selector", "reportingController=rollbackd", "-o", "name"];
    if let Some(found) = space.kubectl.beside(&ours).await {
        assert_eq!(found.stdout.lines().count(), 2, "{found:?}");
    }
    if let Some(described) = space.kubectl.beside(&["describe", "daemonset", "agent"]).await {
        for (reason, note) in ["RollbackRequested", "RollbackSucceeded"].iter().zip(&notes) {
            let words = |line: &str| line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
            let mut lines = described.stdout.lines().map(words);
            let line = lines.find(|line| line.get(1).is_some_and(|word| word == reason));
            let line = line.unwrap_or_else(|| panic!("{reason} is not in {}", described.stdout)).join(" ");
            assert!(line.ends_with(&format!(" rollbackd {note}")), "{line}");
        }
    }
}

#[tokio::test]
async fn a_warning_says_that_it_stalls_and_that_it_was_undone() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:missing", "img:2"]).await;
    let flags = ["--stall-after", "1s"];
    let rollbackd =
        Rollbackd::start_with(Setup { flags: &flags, ..Setup::new(ControlPlane::shared()) }).await;
    let path = format!("{}/rollback", space.path("agent"));
    let made = rollbackd.api.post(&path, &json!({})).await.expect(202);
    let id = made["id"].as_str().unwrap();
    rollbackd.api.rollback_in(id, &["stalled"]).await;
    space.kubectl.ok(&["set", "image", "daemonset/agent", "main=img:3"]).await;
    rollbackd.api.rollback_in(id, &["superseded"]).await;

    let events = events(&space, 3).await;
    assert_eq!(
        told(&events),
        [("Normal", "RollbackRequested"), ("Warning", "RollbackStalled"), ("Warning", "RollbackSuperseded")]
    );
    assert!(events[1]["note"].as_str().unwrap().contains(": no progress since "), "{events:?}");
    let note = format!(
        "rollback {id} to revision 1: superseded: kubectl-set changed the pod template; requested by local"
    );
    assert_eq!(events[2]["note"], note);
}

#[tokio::test]
async fn the_end_is_told_by_whoever_has_followed_it() {
    let control_plane = ControlPlane::shared();
    let space = Space::new(control_plane).await;
    space.recorded(&["img:missing", "img:2"]).await;
    let mut first = Rollbackd::start().await;
    let path = format!("{}/rollback", space.path("agent"));
    let made = first.api.post(&path, &json!({})).await.expect(202);
    let id = made["id"].as_str().unwrap();
    first.stop().await;
    let second =
        Rollbackd::start_with(Setup { store: Some(&first.store), ..Setup::new(control_plane) }).await;
    space.kubectl.ok(&["set", "image", "daemonset/agent", "main=img:3"]).await;
    second.api.rollback_in(id, &["superseded"]).await;
    let events = events(&space, 2).await;
    assert_eq!(told(&events), [("Normal", "RollbackRequested"), ("Warning", "RollbackSuperseded")]);
    // Taking it up again is not a request.
    assert_eq!(second.faults.requests().iter().filter(|request| request.contains("/events")).count(), 1);
}

#[tokio::test]
async fn a_rollback_goes_its_way_while_no_event_gets_through() {
    let (space, rollbackd, path) = agent().await;
    let unavailable = Fault::Answer { status: 503, headers: Vec::new(), body: "{}" };
    for (before, fault) in [0, 2, 4].into_iter().zip([Fault::Silence, Fault::CutBefore, unavailable]) {
        rollbackd.faults.inject(usize::MAX, fault, event);
        let made = rollbackd.api.post(&path, &json!({})).await.expect(202);
        rollbackd.api.rollback_in(made["id"].as_str().unwrap(), &["succeeded"]).await;
        until("both Events to be tried, once", async || {
            let requests = rollbackd.faults.requests();
            let tried = requests.iter().filter(|request| request.ends_with("/events?")).count();
            if tried == before + 2 { Ok(()) } else { Err(requests) }
        })
        .await;
        rollbackd.faults.clear();
    }
    assert_eq!(events(&space, 0).await, Vec::<Value>::new());
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn the_one_on_whose_behalf_it_was_made_is_named() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    let rollbackd = Rollbackd::guarded().await;
    let token = space.person("portal", &[Right::RollBack, Right::Impersonate, Right::View]).await;
    space.person("jane", &[Right::RollBack]).await;
    let portal = format!("system:serviceaccount:{}:portal", space.namespace);
    let jane = format!("system:serviceaccount:{}:jane", space.namespace);
    let headers = [("authorization", format!("Bearer {token}")), ("impersonate-user", jane.clone())];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let api = rollbackd.api.with_headers(&headers);
    let made = api.post(&format!("{}/rollback", space.path("agent")), &json!({})).await.expect(202);
    let note = format!(
        "rollback {} from revision 2 to revision 1 requested by {portal} on behalf of {jane}",
        made["id"].as_str().unwrap()
    );
    assert_eq!(events(&space, 2).await[0]["note"], note);
}
