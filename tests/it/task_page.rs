//! Kubernetes' own task page "Perform a Rollback on a DaemonSet", with HTTP instead of kubectl.

use serde_json::json;

use crate::support::{controlplane::ControlPlane, rollbackd::Rollbackd, space::Space};

#[tokio::test]
async fn the_task_page_works_step_by_step() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let rollbackd = Rollbackd::start().await;
    let (api, path) = (&rollbackd.api, space.path("agent"));

    // Step 1: find the revision to roll back to.
    let listed = api.text(&format!("{path}/revisions")).await;
    let history = ["rollout", "history", "daemonset", "agent"];
    space.kubectl.prints_too(&history, &listed).await;
    assert!(listed.contains("\n1         image img:1\n2         image img:2\n"), "{listed}");
    let one = api.text(&format!("{path}/revisions/1")).await;
    assert!(one.contains("\n    Image:\timg:1\n"), "{one}");
    space.kubectl.prints_too(&[&history[..], &["--revision=1"]].concat(), &one).await;

    // Step 2: roll back to it.
    let body = json!({"toRevision": 1, "reason": "the second image is bad"});
    let made = api.post(&format!("{path}/rollback"), &body).await;
    let rollback = made.expect(202);
    assert_eq!(made.header("location"), format!("/rollbacks/{}", rollback["id"].as_str().unwrap()));
    assert_eq!((&rollback["from"]["revision"], &rollback["to"]["revision"]), (&json!(2), &json!(1)));

    // Step 3: watch the progress.
    let status = format!("/{}", rollback["links"]["status"].as_str().unwrap());
    let events = api.events(&status).await.into_all().await;
    let last = events.last().unwrap();
    assert_eq!(
        (last.name.as_str(), &last.data["message"]),
        ("complete", &json!("daemon set \"agent\" successfully rolled out"))
    );

    // Understanding revisions: 1 has become 3.
    let listed = api.text(&format!("{path}/revisions")).await;
    assert_eq!(
        listed,
        "daemonset.apps/agent \nREVISION  CHANGE-CAUSE\n2         image img:2\n3         image img:1\n\n"
    );
    space.kubectl.prints_too(&history, &listed).await;
    let ended = api.rollback_in(rollback["id"].as_str().unwrap(), &["succeeded"]).await;
    assert_eq!(ended["newRevision"], 3);
    let audit =
        api.get(&format!("/audit?namespace={}&action=rollout.completed", space.namespace)).await.expect(200);
    assert_eq!(audit["items"][0]["reason"], "the second image is bad");
}
