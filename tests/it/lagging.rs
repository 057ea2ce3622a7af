//! The controller lags: the running template is in no revision yet. kubectl loses it.

use std::{sync::Arc, time::Duration};

use rollbackd::{rollbacks::Patience, server::Timing};
use serde_json::{Value, json};

use crate::support::{
    controlplane::ControlPlane,
    rollbackd::{Rollbackd, Setup, timing},
    space::Space,
    twins::Twins,
    wait::until,
};

fn image(daemonset: &Value) -> &Value {
    &daemonset["spec"]["template"]["spec"]["containers"][0]["image"]
}

fn setup(control_plane: &ControlPlane, recording: Duration) -> Setup<'_> {
    let patience = Patience { recording, ..timing().patience };
    Setup { timing: Timing { patience, ..timing() }, ..Setup::new(control_plane) }
}

#[tokio::test]
#[ignore = "freezes the controller"]
async fn while_the_controller_lags_nothing_is_lost() {
    let control_plane = Arc::new(ControlPlane::private("lagging"));
    let twins = Twins::with(setup(&control_plane, Duration::from_millis(300))).await;
    twins.both(async |space| space.recorded(&["img:1", "img:2"]).await).await;
    let waiting = Space::new(&control_plane).await;
    waiting.recorded(&["img:1", "img:2"]).await;

    control_plane.signal("kube-controller-manager", "KILL");
    twins.both(async |space| space.set_image("agent", "img:3").await).await;
    waiting.set_image("agent", "img:3").await;

    // kubectl takes the second highest number, and the template that runs is in no revision any more.
    assert_eq!(
        twins.theirs.kubectl.ok(&["rollout", "undo", "daemonset/agent"]).await,
        "daemonset.apps/agent rolled back\n"
    );
    assert_eq!(image(&twins.theirs.kubectl.get("daemonset", "agent").await), "img:1");

    let api = &twins.rollbackd.api;
    for body in [json!({}), json!({"toRevision": 0}), json!({"dryRun": true})] {
        let answer = api.post(&twins.path(), &body).await;
        let problem = answer.problem(409, "not-recorded");
        let detail = "the controller has not recorded the running template as a revision yet; try again, or name a revision as toRevision";
        assert_eq!((problem["detail"].as_str(), answer.header("retry-after")), (Some(detail), "1"));
    }
    let expecting = json!({"toRevision": 1, "expectedRevision": 2});
    let problem = api.post(&twins.path(), &expecting).await.problem(412, "unexpected-revision");
    let detail = "expected revision 2 to be running, but no revision of the running template is recorded yet";
    assert_eq!(problem["detail"], detail);
    let careful = json!({"toRevision": 2, "failOnWarning": true});
    let problem = api.post(&twins.path(), &careful).await.problem(422, "warned");
    assert_eq!(problem["warnings"][0]["code"], "not-recorded");
    assert_eq!(image(&twins.ours.kubectl.get("daemonset", "agent").await), "img:3");

    // A number goes on, with a warning.
    let answer = api.post(&twins.path(), &json!({"toRevision": 2})).await;
    let made = answer.expect(202);
    assert_eq!((&made["from"], &made["to"]["revision"]), (&Value::Null, &json!(2)));
    assert_eq!(made["warnings"][0]["code"], "not-recorded");
    assert!(answer.header("warning").contains("it may not be in the history"), "{answer:?}");
    assert_eq!(image(&twins.ours.kubectl.get("daemonset", "agent").await), "img:2");

    // Who asks for the previous one is kept waiting while there is hope, and gets the right one.
    let patient = Rollbackd::start_with(setup(&control_plane, Duration::from_secs(120))).await;
    let (patient_api, path) = (patient.api.clone(), format!("{}/rollback", waiting.path("agent")));
    let asked = tokio::spawn(async move { patient_api.post(&path, &json!({})).await });
    let reads = format!("GET /apis/apps/v1/namespaces/{}/daemonsets/agent?", waiting.namespace);
    until("the rollback to wait", async || {
        let requests = patient.faults.requests();
        let looked = requests.iter().filter(|request| format!("{request}?").contains(&reads)).count();
        if looked >= 2 { Ok(()) } else { Err(requests) }
    })
    .await;
    let restarting = control_plane.clone();
    tokio::task::spawn_blocking(move || restarting.restart("kube-controller-manager")).await.unwrap();
    let asked = asked.await.expect("it does not panic");
    let made_late = asked.expect(202);
    let revisions = (&made_late["from"]["revision"], &made_late["to"]["revision"]);
    assert_eq!(revisions, (&json!(3), &json!(2)));
    assert_eq!(made_late["warnings"], json!([]));
    let ended = patient.api.rollback_at(asked.header("location"), &["succeeded"]).await;
    assert_eq!(ended["newRevision"], 4);

    // The one that went on ends well, too. What kubectl did is as it was: img:3 is nowhere.
    let ended = api.rollback_at(answer.header("location"), &["succeeded"]).await;
    assert_eq!(ended["newRevision"], 2);
    twins.theirs.observed("agent").await;
    let kept = twins.theirs.revisions().await;
    assert_eq!(kept.iter().map(|revision| image(&revision["data"])).collect::<Vec<_>>(), ["img:2", "img:1"]);
}
