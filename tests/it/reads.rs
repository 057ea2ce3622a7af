//! Where reads come from: the watches, or, for what those do not show yet, the API server, asked once.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    api::Api,
    controlplane::ControlPlane,
    faults::{Fault, Faults, watch},
    history::{by_hand, current, numbers, same_history},
    rollbackd::{Rollbackd, Setup},
    space::{Space, daemonset},
    wait::until,
};

/// The requests so far that were about a namespace: not the probe's, nor those of the watches.
fn asked(faults: &Faults, space: &Space) -> Vec<String> {
    let part = format!("/namespaces/{}/", space.namespace);
    faults.requests().into_iter().filter(|request| request.contains(&part)).collect()
}

/// kubectl prints the same, where there is one.
async fn kubectl_agrees(space: &Space, args: &[&str], ours: &str) {
    space.kubectl.prints_too(&[&["rollout", "history", "daemonset", "agent"], args].concat(), ours).await;
}

#[tokio::test]
async fn reads_cost_the_api_server_nothing() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    let revisions = same_history(&space, api, "agent", |all| current(all) == Some(2)).await;
    let path = space.path("agent");
    for read in [
        "/daemonsets".to_owned(),
        format!("/daemonsets/{}", space.namespace),
        path.clone(),
        format!("{path}/revisions"),
        format!("{path}/revisions/1"),
        format!("/{}", revisions[1]["links"]["self"].as_str().unwrap()),
        format!("{path}/status"),
    ] {
        for _ in 0..10 {
            api.get(&read).await.expect(200);
        }
    }
    assert_eq!(asked(&rollbackd.faults, &space), Vec::<String>::new());

    // What is not there is asked for once, by each who asks.
    api.get(&format!("{path}/revisions/9")).await.problem(404, "revision-not-found");
    api.get(&space.path("x")).await.problem(404, "daemonset-not-found");
    let paths: Vec<String> = asked(&rollbackd.faults, &space)
        .into_iter()
        .map(|request| request.split_once('?').map_or(request.clone(), |(path, _)| path.to_owned()))
        .collect();
    let root = format!("GET /apis/apps/v1/namespaces/{}", space.namespace);
    assert_eq!(paths, [format!("{root}/controllerrevisions"), format!("{root}/daemonsets/x")]);
}

/// `kubectl apply && curl`: the watches are so slow here that they never show anything.
#[tokio::test]
async fn what_the_watches_do_not_show_yet_is_asked_for() {
    let space = Space::new(ControlPlane::shared()).await;
    let setup = Setup::new(ControlPlane::shared());
    setup.faults.no_streamed_lists();
    for kind in ["daemonsets", "controllerrevisions"] {
        setup.faults.inject(usize::MAX, Fault::SlowBody(Duration::from_secs(3_600)), watch(kind));
    }
    let rollbackd = Rollbackd::start_with(setup).await;
    let api = &rollbackd.api;
    let path = space.path("agent");
    space.kubectl.apply(&daemonset("agent", "img:1")).await;
    api.get(&path).await.expect(200);
    space.rolled_out("agent").await;

    kubectl_agrees(&space, &[], &api.text(&format!("{path}/revisions")).await).await;
    kubectl_agrees(&space, &["--revision=1"], &api.text(&format!("{path}/revisions/1")).await).await;
    let summary = api.get(&path).await.expect(200);
    assert_eq!((&summary["currentRevision"], &summary["phase"]), (&json!(1), &json!("complete")));
    assert_eq!(summary["changeCause"], "image img:1");
    let list = api.get(&format!("{path}/revisions")).await.expect(200);
    assert_eq!(current(list["items"].as_array().unwrap()), Some(1));

    // Lists are of the watches alone.
    let listed = api.get(&format!("/daemonsets/{}", space.namespace)).await.expect(200);
    assert_eq!(listed["items"], json!([]));
    space.kubectl.ok(&["delete", "daemonset", "agent"]).await;
    api.get(&path).await.problem(404, "daemonset-not-found");
}

/// `kubectl rollout status && curl`: the DaemonSet says that its template is recorded, and the watch of the
/// revisions does not show it yet.
#[tokio::test]
async fn a_revision_that_must_be_there_is_asked_for() {
    let space = Space::new(ControlPlane::shared()).await;
    let setup = Setup::new(ControlPlane::shared());
    setup.faults.no_streamed_lists();
    let slow = Fault::SlowBody(Duration::from_secs(3_600));
    setup.faults.inject(usize::MAX, slow, watch("controllerrevisions"));
    let rollbackd = Rollbackd::start_with(setup).await;
    let api = &rollbackd.api;
    let path = space.path("agent");
    space.agent(&["img:1", "img:2"]).await;
    let rolled_out = |summary: &Value| summary["generation"] == 2 && summary["phase"] == "complete";

    let summary = api.shows(&path, "the end of the rollout", rolled_out).await;
    assert_eq!((&summary["currentRevision"], &summary["changeCause"]), (&json!(2), &json!("image img:2")));
    kubectl_agrees(&space, &[], &api.text(&format!("{path}/revisions")).await).await;
    let list = api.get(&format!("{path}/revisions")).await.expect(200);
    assert_eq!(current(list["items"].as_array().unwrap()), Some(2));
}

/// As [`same_history`], where rollbackd and kubectl agree that nothing is current.
async fn unrecorded(space: &Space, api: &Api, known: &[i64]) -> Vec<Value> {
    let is = |all: &[Value]| numbers(all) == known && current(all).is_none();
    same_history(space, api, "agent", is).await
}

/// The controller stands still: between a change and its record kubectl's list says nothing, and
/// rollbackd's marks no revision as current.
#[tokio::test]
#[ignore = "freezes the controller"]
async fn what_the_controller_has_not_done_yet_is_not_told() {
    let control_plane = ControlPlane::private("lag");
    let space = Space::new(&control_plane).await;
    let rollbackd = Rollbackd::start_on(&control_plane).await;
    let api = &rollbackd.api;
    let path = space.path("agent");

    // No revisions yet.
    control_plane.signal("kube-controller-manager", "STOP");
    space.kubectl.create(&daemonset("agent", "img:1")).await;
    assert_eq!(unrecorded(&space, api, &[]).await, Vec::<Value>::new());
    kubectl_agrees(&space, &[], "daemonset.apps/agent \nNo rollout history found.\n").await;
    let summary = api.get(&path).await.expect(200);
    assert_eq!((summary.get("currentRevision"), &summary["observedGeneration"]), (None, &json!(0)));
    let waiting = "Waiting for daemon set spec update to be observed...";
    assert_eq!(summary["message"], waiting);
    api.get(&format!("{path}/revisions/1")).await.problem(404, "revision-not-found");
    control_plane.signal("kube-controller-manager", "CONT");
    same_history(&space, api, "agent", |all| current(all) == Some(1)).await;
    space.rolled_out("agent").await;

    // A template that is not recorded yet, and an orphan that is not adopted yet.
    control_plane.signal("kube-controller-manager", "STOP");
    space.set_image("agent", "img:2").await;
    let data = &space.revisions().await[0]["data"];
    space.kubectl.create(&by_hand("orphan", "agent", None, 7, data)).await;
    unrecorded(&space, api, &[1]).await;
    let summary = api.shows(&path, "the new image", |summary| summary["images"][0]["image"] == "img:2").await;
    assert_eq!((summary.get("currentRevision"), summary.get("changeCause")), (None, None));
    assert_eq!(summary["message"], waiting);
    api.get(&format!("{path}/revisions/orphan")).await.problem(404, "revision-not-found");
    control_plane.signal("kube-controller-manager", "CONT");
    let revisions = same_history(&space, api, "agent", |all| current(all).is_some() && all.len() == 3).await;
    let orphan = revisions.iter().find(|one| one["controllerRevision"] == "orphan").unwrap();
    assert_eq!((&orphan["revision"], &orphan["restorable"]), (&json!(7), &json!(true)));

    // The namespace is being deleted, and nobody collects what is in it.
    control_plane.signal("kube-controller-manager", "STOP");
    space.kubectl.ok(&["delete", "namespace", &space.namespace, "--wait=false"]).await;
    same_history(&space, api, "agent", |all| all.len() == 3).await;
    control_plane.signal("kube-controller-manager", "CONT");
    until("the DaemonSet to be gone", async || {
        let answer = api.get(&format!("{path}/revisions")).await;
        if answer.status == 404 { Ok(()) } else { Err(answer) }
    })
    .await;
}
