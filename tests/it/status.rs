//! `GET …/status` beside `kubectl rollout status --watch=false`.

use serde_json::{Value, json};

use crate::support::{
    api::Api,
    controlplane::ControlPlane,
    rollbackd::Rollbackd,
    space::{Space, daemonset},
    told::COUNTS,
    wait::until,
};

async fn start() -> (Space, Rollbackd) {
    (Space::new(ControlPlane::shared()).await, Rollbackd::start().await)
}

/// Waits until kubectl says this of `agent`, and rollbackd the same, byte for byte; returns rollbackd's
/// JSON of the same version, whose counters are those of the object.
async fn both_say(space: &Space, api: &Api, line: &str) -> Value {
    let path = format!("{}/status", space.path("agent"));
    let args = ["rollout", "status", "daemonset/agent", "--watch=false"];
    let status = until(&format!("both to say {line:?}"), async || {
        let object = space.kubectl.get("daemonset", "agent").await;
        let theirs = space.kubectl.beside(&args).await.map(|printed| printed.stdout);
        let ours = api.text(&path).await;
        let status = api.get(&path).await.expect(200);
        let said = ours == format!("{line}\n") && theirs.as_ref().is_none_or(|theirs| *theirs == ours);
        let same = status["resourceVersion"] == object["metadata"]["resourceVersion"];
        let unchanged = space.kubectl.get("daemonset", "agent").await == object;
        if said && same && unchanged { Ok((status, object)) } else { Err((theirs, ours, status)) }
    })
    .await;
    let (status, object) = status;
    for count in COUNTS {
        assert_eq!(status[count], object["status"][count].as_i64().unwrap_or_default(), "{count}");
    }
    assert_eq!(status["message"], line);
    assert_eq!(
        (&status["uid"], &status["generation"]),
        (&object["metadata"]["uid"], &object["metadata"]["generation"])
    );
    status
}

#[tokio::test]
async fn a_rollout_is_told_in_kubectls_words_from_its_middle_to_its_end() {
    let (space, rollbackd) = start().await;
    space.agent(&["img:1"]).await;
    let done = both_say(&space, &rollbackd.api, "daemon set \"agent\" successfully rolled out").await;
    assert_eq!((&done["phase"], &done["note"]), (&json!("complete"), &Value::Null));

    space.set_image("agent", "x:unready").await;
    let line = "Waiting for daemon set \"agent\" rollout to finish: 1 out of 5 new pods have been updated...";
    let updating = both_say(&space, &rollbackd.api, line).await;
    assert_eq!((&updating["phase"], &updating["numberAvailable"]), (&json!("updating"), &json!(4)));

    let all = json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}}}});
    space.patch("agent", &all).await;
    let line = "Waiting for daemon set \"agent\" rollout to finish: 0 of 5 updated pods are available...";
    assert_eq!(both_say(&space, &rollbackd.api, line).await["phase"], "waitingForPods");

    space.set_image("agent", "img:2").await;
    both_say(&space, &rollbackd.api, "daemon set \"agent\" successfully rolled out").await;
}

#[tokio::test]
async fn a_pod_that_fails_after_the_success_is_told_by_later_reads() {
    let (space, rollbackd) = start().await;
    space.agent(&["img:1"]).await;
    both_say(&space, &rollbackd.api, "daemon set \"agent\" successfully rolled out").await;
    let pods = space.kubectl.list("pods").await;
    let pod = pods[0]["metadata"]["name"].as_str().unwrap();
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    space.kubectl.ok(&["patch", "pod", pod, "--subresource=status", "-p", &unready.to_string()]).await;
    let line = "Waiting for daemon set \"agent\" rollout to finish: 4 of 5 updated pods are available...";
    let status = both_say(&space, &rollbackd.api, line).await;
    assert_eq!((&status["phase"], &status["numberUnavailable"]), (&json!("waitingForPods"), &json!(1)));
}

#[tokio::test]
async fn no_node_at_all_is_success_as_kubectl_says_and_said_to_be_nothing() {
    let (space, rollbackd) = start().await;
    let mut agent = daemonset("agent", "img:1");
    agent["spec"]["template"]["spec"]["nodeSelector"] = json!({"nobody-has": "this"});
    space.kubectl.create(&agent).await;
    let done = both_say(&space, &rollbackd.api, "daemon set \"agent\" successfully rolled out").await;
    assert_eq!(
        (&done["phase"], &done["note"]),
        (&json!("complete"), &json!("0 nodes should run a pod of it: nothing runs"))
    );
}

/// K: kubectl refuses to tell.
#[tokio::test]
async fn on_delete_is_told_though_kubectl_refuses() {
    let (space, rollbackd) = start().await;
    let mut agent = daemonset("agent", "img:1");
    agent["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
    space.kubectl.create(&agent).await;
    let path = format!("{}/status", space.path("agent"));
    rollbackd.api.shows(&path, "the first pods", |status| status["phase"] == "complete").await;
    space.set_image("agent", "img:2").await;
    let args = ["rollout", "status", "daemonset/agent", "--watch=false"];
    if let Some(refused) = space.kubectl.beside(&args).await {
        let words = "error: rollout status is only available for RollingUpdate strategy type\n";
        assert_eq!((refused.code, refused.stderr.as_str()), (1, words));
    }
    let what = "the new template to be observed";
    let status = rollbackd.api.shows(&path, what, |status| status["observedGeneration"] == 2).await;
    assert_eq!((&status["phase"], &status["updateStrategy"]), (&json!("updating"), &json!("OnDelete")));
    assert_eq!(
        rollbackd.api.text(&path).await,
        "Waiting for daemon set \"agent\" rollout to finish: 0 out of 5 new pods have been updated... \
         (updateStrategy is OnDelete: each pod is updated when somebody deletes it)\n"
    );
}

#[tokio::test]
async fn one_being_deleted_is_told_as_kubectl_does_and_noted_and_then_not_found() {
    let (space, rollbackd) = start().await;
    let mut agent = daemonset("agent", "img:1");
    agent["metadata"]["finalizers"] = json!(["rollbackd.dev/test"]);
    space.kubectl.create(&agent).await;
    space.rolled_out("agent").await;
    space.kubectl.ok(&["delete", "daemonset", "agent", "--wait=false"]).await;
    let path = format!("{}/status", space.path("agent"));
    rollbackd.api.shows(&path, "the deletion", |status| status["phase"] == "deleting").await;
    let line = "Waiting for daemon set spec update to be observed...";
    let status = both_say(&space, &rollbackd.api, line).await;
    assert_eq!(status["note"], "it is being deleted: its controller does nothing more");

    space.patch("agent", &json!({"metadata": {"finalizers": null}})).await;
    until("it to be gone", async || {
        let answer = rollbackd.api.get(&path).await;
        if answer.status == 404 { Ok(()) } else { Err(answer) }
    })
    .await;
    not_found(&space, &rollbackd.api, "agent").await;
}

/// kubectl and rollbackd say in the same words that there is no such DaemonSet.
async fn not_found(space: &Space, api: &Api, name: &str) {
    let path = format!("{}/status", space.path(name));
    let problem = api.get(&path).await.problem(404, "daemonset-not-found");
    let words = problem["detail"].as_str().unwrap();
    let line = format!("Error from server (NotFound): {words}\n");
    let plain = api.get_as(&path, "text/plain").await;
    assert_eq!((plain.status, &plain.text), (404, &line));
    if let Some(printed) = space.kubectl.beside(&["rollout", "status", &format!("daemonset/{name}")]).await {
        assert_eq!((printed.code, printed.stderr), (1, line));
    }
    api.get_as(&path, "text/event-stream").await.problem(404, "daemonset-not-found");
}

#[tokio::test]
async fn one_that_never_was_is_not_found() {
    let (space, rollbackd) = start().await;
    not_found(&space, &rollbackd.api, "nobody").await;
}

#[tokio::test]
async fn a_generation_that_is_no_number_from_1_is_refused() {
    let (space, rollbackd) = start().await;
    space.agent(&["img:1"]).await;
    for bad in
        ["0", "-1", "abc", "", "1.0", "1e0", "%201", "9223372036854775808", "1&generation=1", "1&since=2"]
    {
        let path = format!("{}/status?generation={bad}", space.path("agent"));
        for accept in ["application/json", "text/event-stream"] {
            let answer = rollbackd.api.get_as(&path, accept).await;
            assert_eq!(answer.status, 400, "{path} {answer:?}");
            assert_eq!(answer.header("content-type"), "application/problem+json", "{path}");
        }
    }
    let path = format!("{}/status", space.path("agent"));
    rollbackd.api.shows(&path, "the rollout", |status| status["phase"] == "complete").await;
    let status = rollbackd.api.get(&format!("{path}?generation=1")).await.expect(200);
    assert_eq!(status["generation"], 1);
}
