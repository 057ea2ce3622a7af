//! `Prefer: wait=N`: the answer comes with the end of the rollback, or after N seconds.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    errors::named,
    support::{
        api::{Answer, Api},
        controlplane::ControlPlane,
        rollbackd::{Rollbackd, agent},
        space::Space,
        wait::until,
    },
};

async fn post_preferring(api: &Api, path: &str, prefer: &str, body: &Value) -> Answer {
    api.send(api.request(Method::POST, path).json(body).header("prefer", prefer)).await
}

#[tokio::test]
async fn who_waits_long_enough_is_told_the_end() {
    let (_space, rollbackd, path) = agent().await;
    let api = &rollbackd.api;
    let answer = post_preferring(api, &path, "wait=600", &json!({"toRevision": 1})).await;
    let ended = answer.expect(200);
    assert_eq!((&ended["state"], &ended["newRevision"]), (&json!("succeeded"), &json!(4)));
    assert_eq!(answer.header("preference-applied"), "wait=60");
    assert_eq!(ended, api.get(answer.header("location")).await.expect(200));
    // As text it is kubectl's sentence.
    let request = api.request(Method::POST, &path).json(&json!({"toRevision": 2}));
    let request = request.header("prefer", "wait=60").header("accept", "text/plain");
    let text = api.send(request).await;
    assert_eq!((text.status, text.text.as_str()), (200, "daemonset.apps/agent rolled back\n"));
    // What ends at once is told at once.
    for body in [json!({"toRevision": 5}), json!({"dryRun": true})] {
        let answer = post_preferring(api, &path, "respond-async, wait=60", &body).await;
        answer.expect(200);
        assert_eq!(answer.header("preference-applied"), "wait=60");
    }
}

/// As [`agent`], but the pods of `img:1-unready` never become ready, so that a rollback to it has no end.
async fn agent_that_gets_stuck() -> (Space, Rollbackd, String) {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1-unready", "img:2"]).await;
    let path = format!("{}/rollback", space.path("agent"));
    (space, Rollbackd::start().await, path)
}

#[tokio::test]
async fn an_end_that_is_not_success_is_told_too() {
    let (space, rollbackd, path) = agent_that_gets_stuck().await;
    let api = &rollbackd.api;
    let waiting = tokio::spawn({
        let (api, path) = (api.clone(), path.clone());
        async move {
            let request = api.request(Method::POST, &path).json(&json!({"toRevision": 1}));
            api.send(request.header("prefer", "wait=60").header("accept", "text/plain")).await
        }
    });
    until("the rollback to be made", async || {
        let made = api.get(&format!("/rollbacks?namespace={}", space.namespace)).await.expect(200);
        if made["items"][0]["state"] == "progressing" { Ok(()) } else { Err(made) }
    })
    .await;
    // Who waits is in nobody's way.
    api.post(&path, &json!({"dryRun": true})).await.expect(200);
    space.kubectl.ok(&["delete", "daemonset", "agent", "--wait=false"]).await;
    let answer = waiting.await.unwrap();
    let deleted = "daemonset.apps/agent rollback deleted: the DaemonSet was deleted\n";
    assert_eq!((answer.status, answer.text.as_str()), (200, deleted));
}

#[tokio::test]
async fn who_does_not_is_told_where_it_goes_on() {
    let (_space, rollbackd, path) = agent_that_gets_stuck().await;
    let api = &rollbackd.api;
    let answer = post_preferring(api, &path, "wait=1", &json!({"toRevision": 1})).await;
    let made = answer.expect(202);
    assert_eq!((&made["state"], answer.header("preference-applied")), (&json!("progressing"), "wait=1"));
    assert_eq!(api.get(answer.header("location")).await.expect(200)["state"], "progressing");
    // Not to wait can be said too, and what nobody knows is left alone.
    for (prefer, applied) in [("wait=0", "wait=0"), ("return=minimal", "")] {
        let answer = post_preferring(api, &path, prefer, &json!({"dryRun": true})).await;
        answer.expect(200);
        assert_eq!(answer.header("preference-applied"), applied);
    }
}

#[tokio::test]
async fn a_wait_that_is_no_number_of_seconds_is_refused() {
    let (space, rollbackd, path) = agent().await;
    for prefer in ["wait", "wait=", "wait=-1", "wait=1.5", "wait=soon", "respond-async, wait=5s"] {
        let answer = post_preferring(&rollbackd.api, &path, prefer, &json!({})).await;
        assert_eq!(named(&answer.problem(400, "invalid-request")), "header Prefer", "{prefer}");
    }
    assert_eq!(rollbackd.api.actions(&space.namespace).await, [""; 0]);
}
