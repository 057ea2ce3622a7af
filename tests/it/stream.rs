//! The stream of a rollout, beside `kubectl rollout status` and every version of the object.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    controlplane::{ControlPlane, kubernetes},
    following::{Following, Recorder},
    rollbackd::{Rollbackd, Setup},
    space::{Space, daemonset, updated},
    sse::Event,
    told::{assert_told, assert_whole},
    wait::until,
};

async fn start() -> (Space, Rollbackd) {
    (Space::new(ControlPlane::shared()).await, Rollbackd::start().await)
}

/// A rollout that stands still on a bad image, with all who follow it from there to the end.
async fn roll_out_beside_kubectl(space: &Space, rollbackd: &Rollbackd, name: &str, strategy: &Value) {
    let mut object = daemonset(name, "img:1");
    object["spec"]["updateStrategy"] = json!({"rollingUpdate": strategy});
    space.kubectl.create(&object).await;
    space.rolled_out(name).await;
    space.set_image(name, "x:unready").await;
    space.observed(name).await;

    let recorder = Recorder::start(space, name).await;
    let path = format!("{}/status", space.path(name));
    recorder.joined_by(&rollbackd.api, &path).await;
    let mut events = rollbackd.api.events(&path).await;
    let first = events.next().await.expect("the state now");
    assert_eq!((first.name.as_str(), &first.data["generation"]), ("progress", &json!(2)), "{strategy}");
    assert_eq!(events.retry, Some(2000));

    let kubectl = Following::rollout(space, name).await;

    space.set_image(name, "img:3").await;
    let mut told = vec![first];
    told.extend(events.into_all().await);
    let last = told.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["generation"]), ("complete", &json!(3)), "{strategy}");
    let versions = recorder.up_to(last.data["resourceVersion"].as_str().unwrap()).await;
    assert_told(&told, &versions);
    assert_whole(&told, &versions);

    let Some(kubectl) = kubectl else { return };
    let (code, printed, _) = kubectl.end().await;
    assert_eq!(code, 0, "{strategy}");
    let mut ours = told.iter().map(|event| event.data["message"].as_str().unwrap());
    let mut theirs: Vec<&str> = printed.lines().collect();
    theirs.dedup();
    for line in theirs {
        assert!(ours.any(|our| our == line), "{strategy}: kubectl said {line:?}, we did not: {told:#?}");
    }
}

#[tokio::test]
async fn a_rollout_is_told_change_by_change_and_never_less_than_kubectl_tells() {
    let (space, rollbackd) = start().await;
    let strategies = [
        json!({"maxUnavailable": 1}),
        json!({"maxUnavailable": 3}),
        json!({"maxUnavailable": "25%"}),
        json!({"maxUnavailable": "100%"}),
        json!({"maxUnavailable": 0, "maxSurge": 1}),
        json!({"maxUnavailable": 0, "maxSurge": "50%"}),
    ];
    // The sandbox does not surge.
    let surges = |strategy: &&Value| !strategy["maxSurge"].is_null();
    let strategies = strategies.iter().filter(|it| kubernetes().is_some() || !surges(it));
    let rollouts = strategies.enumerate().map(async |(number, strategy)| {
        roll_out_beside_kubectl(&space, &rollbackd, &format!("agent-{number}"), strategy).await;
    });
    join_all(rollouts).await;
}

/// Opens a stream and reads it to its end in the background: what came, without heartbeats.
async fn listen(rollbackd: &Rollbackd, path: &str) -> tokio::task::JoinHandle<String> {
    let request = rollbackd.api.request(http::Method::GET, path).header("accept", "text/event-stream");
    let response = request.send().await.expect("rollbackd answers");
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache, no-transform"),
        ("x-accel-buffering", "no"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    assert!(!response.headers().contains_key("content-encoding"));
    tokio::spawn(async move {
        let text = response.text().await.expect("the stream ends in order");
        text.replace(": heartbeat\n\n", "")
    })
}

#[tokio::test]
async fn all_listeners_get_the_same_bytes_and_one_that_joins_late_the_rest_of_them() {
    let (space, rollbackd) = start().await;
    space.agent(&["img:1"]).await;
    space.set_image("agent", "x:unready").await;
    let path = format!("{}/status", space.path("agent"));
    rollbackd.api.shows(&path, "the bad image", updated(2, 1)).await;
    let mut early = Vec::new();
    for _ in 0..20 {
        early.push(listen(&rollbackd, &path).await);
    }
    space.set_image("agent", "y:unready").await;
    rollbackd.api.shows(&path, "the next bad image", |status| status["observedGeneration"] == 3).await;
    let late = listen(&rollbackd, &path).await;
    space.set_image("agent", "img:2").await;

    let early: Vec<String> = join_all(early).await.into_iter().map(|text| text.unwrap()).collect();
    let late = late.await.unwrap();
    assert!(early[0].starts_with("retry: 2000\n\nid: "), "{}", early[0]);
    assert!(early[0].contains("\nevent: complete\n"), "{}", early[0]);
    for text in &early {
        assert_eq!(*text, early[0]);
    }
    // Its first event may be of a newer version that changed nothing.
    let (_, rest) = late.strip_prefix("retry: 2000\n\n").unwrap().split_once("\n\n").unwrap();
    assert!(!rest.is_empty() && early[0].ends_with(rest), "{late}\n\n{}", early[0]);
    let first = late.lines().find(|line| line.starts_with("id: ")).unwrap();
    assert!(early[0].lines().any(|line| line == first), "{late}\n\n{}", early[0]);
}

#[tokio::test]
async fn min_ready_seconds_are_waited_for() {
    let (space, rollbackd) = start().await;
    let mut agent = daemonset("agent", "x:unready");
    agent["spec"]["minReadySeconds"] = json!(600);
    agent["spec"]["updateStrategy"] = json!({"rollingUpdate": {"maxUnavailable": "100%"}});
    space.kubectl.create(&agent).await;
    space.observed("agent").await;
    let path = format!("{}/status", space.path("agent"));
    let mut events = rollbackd.api.events(&path).await;
    events.next().await.unwrap();
    let kubectl = Following::rollout(&space, "agent").await;
    space.set_image("agent", "img:1").await;
    let waiting = |event: &Event| {
        let count = |name: &str| event.data[name].as_i64().unwrap();
        count("numberReady") > count("numberAvailable") && count("updatedNumberScheduled") == 5
    };
    let told = events.through("pods that are ready and not yet available", waiting).await;
    assert_eq!(told.last().unwrap().data["phase"], "waitingForPods");
    // The template is as it was: still the same rollout.
    space.patch("agent", &json!({"spec": {"minReadySeconds": 1}})).await;
    let told = events.into_all().await;
    let last = told.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["numberAvailable"]), ("complete", &json!(5)));
    if let Some(kubectl) = kubectl {
        let (code, printed, _) = kubectl.end().await;
        assert_eq!((code, printed.lines().last()), (0, last.data["message"].as_str()));
    }
}

/// K: kubectl refuses to follow.
#[tokio::test]
async fn on_delete_is_followed_while_somebody_deletes_the_pods() {
    let (space, rollbackd) = start().await;
    let mut agent = daemonset("agent", "img:1");
    agent["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
    space.kubectl.create(&agent).await;
    let path = format!("{}/status", space.path("agent"));
    rollbackd.api.shows(&path, "the first pods", |status| status["phase"] == "complete").await;
    space.set_image("agent", "img:2").await;
    rollbackd.api.shows(&path, "the change", |status| status["observedGeneration"] == 2).await;
    let mut events = rollbackd.api.events(&path).await;
    let first = events.next().await.unwrap();
    assert_eq!(first.name, "progress");
    assert_eq!(
        first.data["note"],
        "updateStrategy is OnDelete: each pod is updated when somebody deletes it"
    );
    let pods = space.kubectl.list("pods").await;
    let names: Vec<&str> = pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();
    space.kubectl.ok(&["delete", "pod", names[0]]).await;
    let told = events.through("one pod is new", |event| event.data["updatedNumberScheduled"] == 1).await;
    assert!(told.iter().all(|event| event.name == "progress"), "{told:#?}");
    space.kubectl.ok(&[&["delete", "pod"], &names[1..]].concat()).await;
    let last = events.into_all().await.pop().unwrap();
    assert_eq!((last.name.as_str(), &last.data["updatedNumberScheduled"]), ("complete", &json!(5)));
}

#[tokio::test]
async fn nodes_may_come_and_go_and_be_tainted_in_the_middle() {
    let (space, rollbackd) = start().await;
    let name = |number: usize| space.node(number);
    for number in 0..3 {
        space.add_node(number).await;
    }
    let mut agent = space.on_own_nodes(daemonset("agent", "img:1"));
    // A pod left behind by a node that is gone counts as unavailable, and would hold up the others.
    agent["spec"]["updateStrategy"] = json!({"rollingUpdate": {"maxUnavailable": "100%"}});
    space.kubectl.create(&agent).await;
    let path = format!("{}/status", space.path("agent"));
    let complete = |status: &Value| status["phase"] == "complete" && status["desiredNumberScheduled"] == 3;
    rollbackd.api.shows(&path, "the first rollout", complete).await;
    space.set_image("agent", "x:unready").await;
    rollbackd.api.shows(&path, "the bad image", updated(2, 3)).await;

    let recorder = Recorder::start(&space, "agent").await;
    recorder.joined_by(&rollbackd.api, &path).await;
    let mut events = rollbackd.api.events(&path).await;
    let mut told = vec![events.next().await.unwrap()];
    space.add_node(3).await;
    told.extend(events.through("a fourth node", |event| event.data["desiredNumberScheduled"] == 4).await);
    space.kubectl.ok(&["delete", "node", &name(0)]).await;
    // Its pod stays, misscheduled, until the next rollout deletes it for good.
    space.kubectl.ok(&["taint", "node", &name(1), "other=taint:NoSchedule"]).await;
    let left = |event: &Event| {
        (&event.data["desiredNumberScheduled"], &event.data["numberMisscheduled"]) == (&json!(2), &json!(1))
    };
    told.extend(events.through("two nodes that are left", left).await);
    space.set_image("agent", "img:2").await;
    told.extend(events.into_all().await);
    let last = told.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["desiredNumberScheduled"]), ("complete", &json!(2)));
    let versions = recorder.up_to(last.data["resourceVersion"].as_str().unwrap()).await;
    assert_told(&told, &versions);
    assert_whole(&told, &versions);
    space.kubectl.ok(&["delete", "node", &name(1), &name(2), &name(3)]).await;
}

#[tokio::test]
async fn a_rollout_that_stands_still_is_called_stalled_until_it_moves() {
    let space = Space::new(ControlPlane::shared()).await;
    let flags = ["--stall-after", "2s", "--namespace", &space.namespace];
    let setup = Setup { flags: &flags, ..Setup::new(ControlPlane::shared()) };
    let rollbackd = Rollbackd::start_with(setup).await;
    space.agent(&["img:1"]).await;
    space.set_image("agent", "x:unready").await;
    let path = format!("{}/status", space.path("agent"));
    rollbackd.api.shows(&path, "the bad image", updated(2, 1)).await;
    let mut events = rollbackd.api.events(&path).await;
    let told = events.through("the stall", |event| event.data["stalledSince"].is_string()).await;
    let stalled = told.last().unwrap();
    let since = &stalled.data["stalledSince"];
    let line = "Waiting for daemon set \"agent\" rollout to finish: 1 out of 5 new pods have been updated...";
    assert_eq!(stalled.data["message"], line);
    let status = rollbackd.api.get(&path).await.expect(200);
    assert_eq!((&status["stalledSince"], &status["phase"]), (since, &json!("updating")));
    until("the metric", async || {
        let metrics = rollbackd.api.get("/metrics").await.text;
        if metrics.contains("\nrollbackd_rollouts_stalled 1\n") { Ok(()) } else { Err(metrics) }
    })
    .await;

    // Who joins now is told the state, which says since when.
    let now = rollbackd.api.events(&path).await.next().await.unwrap();
    assert_eq!(&now.data["stalledSince"], since);
    space.set_image("agent", "img:2").await;
    let rest = events.into_all().await;
    assert!(rest[0].data["stalledSince"].is_null(), "{:#?}", rest[0]);
    assert_eq!(rest.last().unwrap().name, "complete");
    let of_the_bad = |event: &&Event| event.name == "stalled" && event.data["generation"] == 2;
    let named: Vec<_> = told.iter().chain(&rest).filter(of_the_bad).collect();
    assert!(named.len() <= 1, "{named:#?}");
}
