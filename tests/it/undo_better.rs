//! Where rollbackd does better than `kubectl rollout undo` on purpose. Each test shows both.

use serde_json::{Value, json};

use crate::support::{
    controlplane::{ControlPlane, NODES},
    rollbackd::{Rollbackd, Setup},
    space::{Space, daemonset},
    twins::{Twins, plant},
    wait::until,
};

async fn undone(space: &Space, flags: &[&str]) -> Value {
    let args = [&["rollout", "undo", "daemonset/agent"], flags].concat();
    assert_eq!(space.kubectl.ok(&args).await, "daemonset.apps/agent rolled back\n");
    space.observed("agent").await
}

fn image(daemonset: &Value) -> &Value {
    &daemonset["spec"]["template"]["spec"]["containers"][0]["image"]
}

#[tokio::test]
#[ignore = "needs adoption by the controller"]
async fn hostile_data_is_not_written_into_the_daemonset() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    twins
        .both(async |space| {
            plant(space, "agent-planted", 5, |data| data["spec"]["minReadySeconds"] = json!(600)).await;
        })
        .await;
    let before = twins.ours.kubectl.get("daemonset", "agent").await;
    // kubectl patches whatever the revision holds.
    let theirs = undone(&twins.theirs, &["--to-revision=5"]).await;
    assert_eq!(theirs["spec"]["minReadySeconds"], 600);

    let api = &twins.rollbackd.api;
    for to in [json!(5), json!("agent-planted"), json!("previous")] {
        let problem = api.post(&twins.path(), &json!({"toRevision": to})).await;
        let detail = "ControllerRevision agent-planted can't be restored: its data holds \"spec.minReadySeconds\", which is not part of spec.template";
        assert_eq!(problem.problem(422, "not-restorable")["detail"], detail);
    }
    assert_eq!(twins.ours.kubectl.get("daemonset", "agent").await["spec"], before["spec"]);
    let audit = api.audit(&twins.ours.namespace).await;
    assert!(audit.iter().all(|entry| entry["action"] == "rollback.refused"), "{audit:?}");
    assert_eq!((audit.len(), &audit[0]["outcome"]), (3, &json!("refused")));

    // Without the marker kubectl mixes two templates.
    twins
        .both(async |space| {
            plant(space, "agent-mixing", 15, |data| {
                *data = json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "img:3"}]}}}});
            })
            .await;
        })
        .await;
    let theirs = undone(&twins.theirs, &["--to-revision=15"]).await;
    assert_eq!(theirs["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 2);
    let problem = api.post(&twins.path(), &json!({"toRevision": 15, "dryRun": true})).await;
    let problem = problem.problem(422, "not-restorable");
    assert!(problem["detail"].as_str().unwrap().contains("is not marked \"$patch\": \"replace\""));
}

#[tokio::test]
#[ignore = "needs adoption by the controller"]
async fn of_two_revisions_with_one_number_one_has_to_be_named() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    twins
        .both(async |space| {
            for name in ["agent-a", "agent-b"] {
                plant(space, name, 5, |data| {
                    data["spec"]["template"]["spec"]["containers"][0]["image"] = json!(format!("img:{name}"));
                })
                .await;
            }
        })
        .await;
    // kubectl takes the first by name.
    let theirs = undone(&twins.theirs, &["--to-revision=5"]).await;
    assert_eq!(image(&theirs), "img:agent-a");

    let api = &twins.rollbackd.api;
    for body in [json!({"toRevision": 5}), json!({})] {
        let problem = api.post(&twins.path(), &body).await.problem(422, "ambiguous-revision");
        let detail =
            "revision 5 is ambiguous: agent-a, agent-b have this number; name one of them as toRevision";
        assert_eq!(problem["detail"], detail);
    }
    let made = api.post(&twins.path(), &json!({"toRevision": "agent-b"})).await.expect(202);
    assert_eq!(made["to"]["controllerRevision"], "agent-b");
    assert_eq!(image(&twins.ours.observed("agent").await), "img:agent-b");
}

#[tokio::test]
async fn a_controller_revision_keeps_its_name_when_its_number_moves_on() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    let name = twins.ours.revisions().await[0]["metadata"]["name"].clone();
    let api = &twins.rollbackd.api;
    let path = twins.path();
    api.post(&path, &json!({"toRevision": name})).await.expect(202);
    twins.ours.observed("agent").await;
    api.post(&path, &json!({"toRevision": "previous"})).await.expect(202);
    twins.ours.observed("agent").await;
    // 1 has become 3 and is gone; the name still says what it said.
    api.post(&path, &json!({"toRevision": 1})).await.problem(422, "unknown-revision");
    let made = api.post(&path, &json!({"toRevision": name})).await.expect(202);
    assert_eq!((&made["to"]["revision"], &made["to"]["images"][0]["image"]), (&json!(3), &json!("img:1")));
    let problem = api.post(&path, &json!({"toRevision": "agent-none"})).await;
    let problem = problem.problem(422, "unknown-revision");
    assert_eq!(problem["detail"], "unable to find specified revision agent-none in history");
    for malformed in
        [json!("No Name"), json!(1.5), json!(9_223_372_036_854_775_808_u64), json!([1]), json!("")]
    {
        api.post(&path, &json!({"toRevision": malformed})).await.problem(400, "invalid-request");
    }
}

#[tokio::test]
#[ignore = "needs adoption by the controller"]
async fn bytes_of_another_kubernetes_are_no_other_template() {
    let twins = Twins::of(&["img:0", "img:1"]).await;
    // What an upgrade leaves behind: the running template twice, once as another Kubernetes writes it. Up to
    // 1.33 there is a creationTimestamp in it, since 1.34 there is none.
    twins
        .both(async |space| {
            plant(space, "agent-of-another", 5, |data| {
                let template = &mut data["spec"]["template"];
                let metadata = template["metadata"].as_object_mut().unwrap();
                if metadata.remove("creationTimestamp").is_none() {
                    metadata.insert("creationTimestamp".into(), Value::Null);
                }
                template["spec"]["containers"][0]["image"] = json!("img:1");
            })
            .await;
        })
        .await;
    let before = twins.theirs.kubectl.get("daemonset", "agent").await;
    // kubectl says that it has rolled back, by number and to the previous one, and nothing has changed.
    for flags in [&["--to-revision=5"][..], &[]] {
        let theirs = undone(&twins.theirs, flags).await;
        assert_eq!(theirs["metadata"]["generation"], before["metadata"]["generation"]);
    }
    let api = &twins.rollbackd.api;
    let skipped = api.post_as(&twins.path(), &json!({"toRevision": 5}), "text/plain").await;
    let text = "daemonset.apps/agent skipped rollback (current template already matches revision 5)\n";
    assert_eq!((skipped.status, skipped.text.as_str()), (200, text));
    let answer = api.post(&twins.path(), &json!({"expectedRevision": 6})).await;
    let made = answer.expect(202);
    assert_eq!((&made["from"]["revision"], &made["to"]["revision"]), (&json!(6), &json!(1)));
    assert_eq!(image(&twins.ours.observed("agent").await), "img:0");
    api.rollback_at(answer.header("location"), &["succeeded"]).await;
    let pods = twins.ours.kubectl.list("pods").await;
    let running = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let images: Vec<_> = running.map(|pod| &pod["spec"]["containers"][0]["image"]).collect();
    assert_eq!(images, ["img:0"; NODES]);
}

#[tokio::test]
#[ignore = "compares with the real kubectl"]
async fn of_a_daemonset_that_is_being_deleted_it_is_refused() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    twins
        .both(async |space| {
            space.patch("agent", &json!({"metadata": {"finalizers": ["rollbackd.test/hold"]}})).await;
            space.kubectl.ok(&["delete", "daemonset", "agent", "--wait=false"]).await;
        })
        .await;
    // kubectl says that it has rolled back; the controller never looks at it again.
    let args = ["rollout", "undo", "daemonset/agent"];
    assert_eq!(twins.theirs.kubectl.ok(&args).await, "daemonset.apps/agent rolled back\n");
    for body in [json!({}), json!({"dryRun": true}), json!({"toRevision": 2})] {
        let problem = twins.rollbackd.api.post(&twins.path(), &body).await.problem(422, "being-deleted");
        assert_eq!(problem["detail"], "the DaemonSet is being deleted");
    }
    twins.both(async |space| space.patch("agent", &json!({"metadata": {"finalizers": null}})).await).await;
}

#[tokio::test]
#[ignore = "needs the API server's limit of names"]
async fn name_that_leaves_no_room_for_a_revision_is_said_to_be_the_cause() {
    let space = Space::new(ControlPlane::shared()).await;
    let longest = format!("{}{}", "long.".repeat(50), "end");
    let mut object = daemonset(&longest, "img:1");
    object["spec"]["selector"]["matchLabels"]["app"] = "agent".into();
    object["spec"]["template"]["metadata"]["labels"]["app"] = "agent".into();
    space.kubectl.create(&object).await;
    let rollbackd = Rollbackd::start().await;
    let path = format!("{}/rollback", space.path(&longest));
    let answer = rollbackd.api.post(&path, &json!({})).await;
    let problem = answer.problem(422, "not-recordable");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("never will: ") && detail.contains("takes 253"), "{detail}");
    assert_eq!(answer.header("retry-after"), "");
}

#[tokio::test]
async fn pods_inside_min_ready_seconds_are_warned_about() {
    let twins = Twins::new().await;
    twins
        .both(async |space| {
            let mut object = daemonset("agent", "img:1");
            object["spec"]["minReadySeconds"] = json!(600);
            space.kubectl.create(&object).await;
            space.observed("agent").await;
            space.set_image("agent", "img:2").await;
            until("all pods to be ready and none to be available", async || {
                let status = space.observed("agent").await["status"].clone();
                let counts = ["updatedNumberScheduled", "numberReady", "numberAvailable"];
                let counts = counts.map(|count| status[count].as_u64().unwrap_or_default());
                if counts == [NODES as u64, NODES as u64, 0] { Ok(()) } else { Err(status) }
            })
            .await;
        })
        .await;
    let api = &twins.rollbackd.api;
    let problem = api.post(&twins.path(), &json!({"failOnWarning": true})).await.problem(422, "warned");
    let warning = &problem["warnings"][0];
    assert_eq!(warning["code"], "min-ready-seconds");
    let message = "5 ready pods of daemonsets/agent have not been ready for minReadySeconds (600 s): they count as unavailable, and the controller will replace all of them at once, whatever maxUnavailable says";
    assert_eq!((warning["message"].as_str(), problem["detail"].as_str()), (Some(message), Some(message)));
    twins.same_objects().await;
    // kubectl keeps silent about it.
    let answer = twins.undo(&[], json!({})).await;
    assert_eq!(answer.header("warning"), format!("299 - {message:?}"));
}

#[tokio::test]
async fn sync_of_argo_cd_is_warned_about() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    let tracking = "argocd.argoproj.io/tracking-id=shop:apps/DaemonSet:shop/agent";
    space.kubectl.ok(&["annotate", "daemonset", "agent", tracking]).await;
    let rollbackd = Rollbackd::start().await;
    let path = format!("{}/rollback", space.path("agent"));
    let refused = rollbackd.api.post(&path, &json!({"failOnWarning": true})).await.problem(422, "warned");
    let expected = json!([{
        "code": "managed",
        "severity": "warning",
        "message": "daemonsets/agent is managed by Argo CD (shop:apps/DaemonSet:shop/agent): its next sync, which it may start by itself, will probably restore its own pod template",
        "fix": "revert the change in the repository that it syncs from, or switch its automatic sync off before",
    }]);
    assert_eq!(refused["warnings"], expected);
    let ignoring = json!({"failOnWarning": true, "ignoreWarnings": ["managed"]});
    let made = rollbackd.api.post(&path, &ignoring).await.expect(202);
    assert_eq!(made["warnings"], expected);
}

#[tokio::test]
async fn operator_that_owns_the_object_blocks_a_careful_rollback() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    space.kubectl.create(&daemonset("fleet", "img:1")).await;
    let fleet = space.kubectl.get("daemonset", "fleet").await;
    let reference = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "fleet", "uid": fleet["metadata"]["uid"],
        "controller": true,
    });
    space.patch("agent", &json!({"metadata": {"ownerReferences": [reference]}})).await;
    let rollbackd = Rollbackd::start().await;
    let managed_by = json!([{"tool": "operator", "id": "DaemonSet/fleet"}]);
    let is = |summary: &Value| summary["managedBy"] == managed_by;
    rollbackd.api.shows(&space.path("agent"), "the operator", is).await;
    let path = format!("{}/rollback", space.path("agent"));
    let refused = rollbackd.api.post(&path, &json!({"failOnWarning": true})).await.problem(422, "warned");
    let warning = &refused["warnings"][0];
    assert_eq!((&warning["code"], &warning["severity"]), (&json!("managed"), &json!("blocking")));
    assert_eq!(warning["fix"], "change DaemonSet/fleet instead");
    let made = rollbackd.api.post(&path, &json!({})).await.expect(202);
    assert_eq!(made["warnings"], refused["warnings"]);
}

#[tokio::test]
async fn what_the_caller_believes_to_run_is_checked() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    let api = &twins.rollbackd.api;
    let path = twins.path();
    let before = twins.ours.revisions().await;
    let body = json!({"toRevision": 1, "expectedRevision": 1});
    let problem = api.post(&path, &body).await.problem(412, "unexpected-revision");
    assert_eq!(problem["detail"], "expected revision 1 to be running, but revision 2 is");
    assert_eq!(problem["errors"][0]["pointer"], "/expectedRevision");
    assert_eq!(twins.ours.revisions().await, before);
    api.post(&path, &json!({"expectedRevision": 0})).await.problem(400, "invalid-request");
    let body = json!({"toRevision": 1, "expectedRevision": 2});
    let made = api.post(&path, &body).await.expect(202);
    twins.ours.observed("agent").await;
    // Sent again by a caller who has not heard: it is not made twice.
    api.post(&path, &body).await.problem(412, "unexpected-revision");
    assert_eq!(made["state"], "progressing");
}

#[tokio::test]
async fn who_did_it_and_why_is_kept() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    let flags = ["--require-reason", "--cluster-name", "blue"];
    let rollbackd =
        Rollbackd::start_with(Setup { flags: &flags, ..Setup::new(ControlPlane::shared()) }).await;
    let (api, path) = (&rollbackd.api, format!("{}/rollback", space.path("agent")));
    for none in [json!({}), json!({"reason": ""}), json!({"reason": " \n"}), json!({"dryRun": true})] {
        let problem = api.post(&path, &none).await.problem(422, "reason-required");
        assert_eq!(problem["errors"][0]["pointer"], "/reason");
    }
    let long = "ü".repeat(1024);
    let problem = api.post(&path, &json!({"reason": format!("{long}.")})).await;
    assert_eq!(problem.problem(400, "invalid-request")["errors"][0]["pointer"], "/reason");
    assert_eq!(api.actions(&space.namespace).await, [""; 0]);

    let answer = api.post(&path, &json!({"reason": format!(" {long}\n")})).await;
    let made = answer.expect(202);
    assert_eq!((&made["reason"], &made["cluster"]), (&json!(long), &json!("blue")));
    assert_eq!(made["requestId"], answer.header("x-request-id"));
    let ended = api.rollback_at(answer.header("location"), &["succeeded"]).await;
    assert_eq!(
        api.actions(&space.namespace).await,
        ["rollback.requested", "rollback.applied", "rollout.completed"]
    );
    for entry in api.audit(&space.namespace).await {
        for key in ["reason", "cluster", "requestId", "from", "to", "uid", "name", "namespace"] {
            assert_eq!(entry[key], ended[key], "{key}: {entry}");
        }
        assert_eq!((&entry["actor"]["user"], &entry["source"]), (&json!("local"), &json!("127.0.0.1")));
        assert_eq!((&entry["rollback"], &entry["dryRun"]), (&ended["id"], &json!(false)));
        let last = entry["action"] == "rollout.completed";
        assert_eq!(entry["newRevision"], if last { json!(3) } else { Value::Null });
        assert_eq!(entry["outcome"], if last { "success" } else { "pending" });
    }
    // On the DaemonSet itself stands which rollback it was.
    let annotations = &space.kubectl.get("daemonset", "agent").await["metadata"]["annotations"];
    assert_eq!(annotations["rollbackd.dev/rollback"], ended["id"]);
}
