//! The second write of a rollback: it returns the fields of the template to the manager that applies it, whatever
//! happens to it.

use serde_json::{Value, json};

use crate::support::{
    controlplane::ControlPlane,
    faults::Fault,
    rollbackd::{Rollbackd, Setup},
    space::{Space, daemonset},
    wait::until,
};

type Request = http::Request<kube::client::Body>;

/// Matches the write of field ownership.
fn ownership_write(request: &Request) -> bool {
    request.headers().get("content-type").is_some_and(|kind| kind == "application/merge-patch+json")
}

/// A namespace with a DaemonSet `agent` whose manifest was applied twice, server-side.
async fn applied() -> Space {
    let space = Space::new(ControlPlane::shared()).await;
    for image in ["img:1", "img:2"] {
        let manifest = daemonset("agent", image);
        space.kubectl.feed(&["apply", "--server-side", "-f", "-"], &manifest).await;
        space.observed("agent").await;
    }
    space.rolled_out("agent").await;
    space
}

/// The managers that own fields of the template.
async fn owners(space: &Space) -> Vec<String> {
    let shown = ["get", "daemonset", "agent", "-o", "json", "--show-managed-fields"];
    let daemonset: Value = serde_json::from_str(&space.kubectl.ok(&shown).await).unwrap();
    let entries = daemonset["metadata"]["managedFields"].as_array().unwrap().iter();
    let owning = entries.filter(|entry| !entry["fieldsV1"]["f:spec"]["f:template"].is_null());
    owning.map(|entry| entry["manager"].as_str().unwrap().to_owned()).collect()
}

async fn returned(space: &Space) {
    until("the fields to be returned", async || match owners(space).await {
        owners if owners == ["kubectl"] => Ok(()),
        owners => Err(owners),
    })
    .await;
}

fn codes(rollback: &Value) -> Vec<&str> {
    let warnings = rollback["warnings"].as_array().map(Vec::as_slice).unwrap_or_default();
    warnings.iter().map(|warning| warning["code"].as_str().unwrap()).collect()
}

async fn warned(rollbackd: &Rollbackd, location: &str, expected: bool) -> Value {
    until("the warning of the rollback to be as expected", async || {
        let rollback = rollbackd.api.get(location).await.expect(200);
        let warned = codes(&rollback).contains(&"ownership-not-returned");
        if warned == expected { Ok(rollback) } else { Err(rollback) }
    })
    .await
}

#[tokio::test]
#[ignore = "needs the field ownership of a real API server"]
async fn ownership_that_could_not_be_written_is_a_warning_until_it_is() {
    let space = applied().await;
    let rollbackd = Rollbackd::start().await;
    for fault in [
        Fault::Answer { status: 500, headers: vec![], body: "RAW-TEXT" },
        Fault::CutBefore,
        Fault::AnswerAfter { status: 504, body: "RAW-TEXT" },
    ] {
        rollbackd.faults.inject(1, fault.clone(), ownership_write);
        let answer = rollbackd.api.post(&format!("{}/rollback", space.path("agent")), &json!({})).await;
        answer.expect(202);
        let rollback = warned(&rollbackd, answer.header("location"), true).await;
        assert!(!rollback.to_string().contains("RAW-TEXT"), "{rollback}");
        returned(&space).await;
        let rollback = warned(&rollbackd, answer.header("location"), false).await;
        assert_ne!(rollback["state"], "failed", "{fault:?}: {rollback}");
    }
    let metrics = rollbackd.api.get("/metrics").await.text;
    for expected in ["{outcome=\"failed\"} 3", "{outcome=\"returned\"} 3"] {
        let line = format!("rollbackd_ownership_returns_total{expected}");
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
#[ignore = "needs the field ownership of a real API server"]
async fn ownership_is_returned_by_the_next_process() {
    let space = applied().await;
    let mut first = Rollbackd::start().await;
    first.faults.inject(usize::MAX, Fault::CutBefore, ownership_write);
    let answer = first.api.post(&format!("{}/rollback", space.path("agent")), &json!({})).await;
    let id = answer.expect(202)["id"].clone();
    warned(&first, answer.header("location"), true).await;
    first.api.rollback_at(answer.header("location"), &["succeeded"]).await;
    first.stop().await;
    let store = first.store.clone();
    let second =
        Rollbackd::start_with(Setup { store: Some(&store), ..Setup::new(ControlPlane::shared()) }).await;
    returned(&space).await;
    let rollback = warned(&second, answer.header("location"), false).await;
    assert_eq!((&rollback["id"], &rollback["state"]), (&id, &json!("succeeded")));
}

#[tokio::test]
#[ignore = "needs the field ownership of a real API server"]
async fn ownership_is_not_returned_once_the_template_was_changed() {
    let space = applied().await;
    let rollbackd = Rollbackd::start().await;
    rollbackd.faults.inject(1, Fault::CutBefore, ownership_write);
    let answer = rollbackd.api.post(&format!("{}/rollback", space.path("agent")), &json!({})).await;
    answer.expect(202);
    warned(&rollbackd, answer.header("location"), true).await;
    space.set_image("agent", "img:3").await;
    let said = "the DaemonSet was changed before they were returned";
    until("the warning to say that it is given up", async || {
        let rollback = rollbackd.api.get(answer.header("location")).await.expect(200);
        if rollback["warnings"].to_string().contains(said) { Ok(()) } else { Err(rollback) }
    })
    .await;
    let listed = rollbackd.api.get(&format!("/rollbacks?namespace={}", space.namespace)).await.expect(200);
    assert!(codes(&listed["items"][0]).contains(&"ownership-not-returned"), "{listed}");
}
