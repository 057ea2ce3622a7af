//! ControllerRevisions that somebody made by hand: who may roll back, and nothing else, may not run them.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{
    api::Api,
    controlplane::ControlPlane,
    faults::{Fault, Faults, watch},
    people::Right,
    rollbackd::{Rollbackd, Setup},
    space::Space,
    twins::plant,
};

const PLANTED: &str = "agent-planted";

fn rollback(space: &Space) -> String {
    format!("{}/rollback", space.path("agent"))
}

fn evil(data: &mut Value) {
    data["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:1".into();
}

async fn space() -> Space {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    // A status that is written while it is looked for makes a planted revision one that is not seen.
    space.rolled_out("agent").await;
    space
}

/// One who may roll back, and one who may patch.
async fn two(space: &Space, rollbackd: &Rollbackd) -> (Api, Api) {
    let roller = space.person("roller", &[Right::RollBack, Right::View]).await;
    let patcher = space.person("patcher", &[Right::Patch, Right::View]).await;
    (rollbackd.api.with_token(&roller), rollbackd.api.with_token(&patcher))
}

fn codes(answer: &Value) -> Vec<&str> {
    let warnings = answer["warnings"].as_array().unwrap().iter();
    warnings.map(|warning| warning["code"].as_str().unwrap()).collect()
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_planted_revision_is_for_those_who_may_patch() {
    let space = space().await;
    let rollbackd = Rollbackd::guarded().await;
    let (roller, patcher) = two(&space, &rollbackd).await;
    plant(&space, PLANTED, 7, evil).await;

    for body in [json!({"toRevision": PLANTED}), json!({"toRevision": 7})] {
        for dry_run in [true, false] {
            let mut body = body.clone();
            body["dryRun"] = dry_run.into();
            let answer = roller.post(&rollback(&space), &body).await;
            let problem = answer.problem(403, "planted-revision");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains(PLANTED) && detail.contains("patch daemonsets"), "{detail}");
        }
    }
    assert_eq!(rollbackd.faults.requests().iter().filter(|it| it.starts_with("PATCH")).count(), 0);
    // The previous one is that of the controller.
    let previous = roller.post(&rollback(&space), &json!({"dryRun": true})).await.expect(200);
    assert_eq!((&previous["to"]["revision"], codes(&previous)), (&json!(1), vec!["revisions-skipped"]));
    let warning = &previous["warnings"][0];
    let message = "the previous revision is taken to be revision 1; skipped, because its template was never the running one and the caller may not patch daemonsets: agent-planted (revision 7)";
    assert_eq!((&warning["message"], &warning["severity"]), (&json!(message), &json!("warning")));
    let previous = patcher.post(&rollback(&space), &json!({"dryRun": true})).await.expect(200);
    assert_eq!(previous["to"]["revision"], 7);
    // What the controller recorded is not touched by that.
    let tried = roller.post(&rollback(&space), &json!({"toRevision": 1, "dryRun": true})).await;
    assert_eq!(codes(&tried.expect(200)), Vec::<&str>::new());

    let refused = json!({"toRevision": PLANTED, "failOnWarning": true});
    patcher.post(&rollback(&space), &refused).await.problem(422, "warned");
    let made = patcher.post(&rollback(&space), &json!({"toRevision": PLANTED})).await.expect(202);
    assert_eq!(codes(&made), ["never-running"]);
    patcher.rollback_in(made["id"].as_str().unwrap(), &["succeeded", "progressing"]).await;

    // Now it has been the running one.
    space.set_image("agent", "img:2").await;
    space.observed("agent").await;
    let again = roller.post(&rollback(&space), &json!({"toRevision": PLANTED, "dryRun": true})).await;
    assert_eq!(codes(&again.expect(200)), Vec::<&str>::new());
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_revision_made_again_under_a_trusted_name_is_not_trusted() {
    let space = space().await;
    let rollbackd = Rollbackd::guarded().await;
    let (roller, _) = two(&space, &rollbackd).await;
    let mut first = space.revisions().await.remove(0);
    let name = first["metadata"]["name"].as_str().unwrap().to_owned();
    space.kubectl.ok(&["delete", "controllerrevision", &name]).await;
    let owner = first["metadata"]["ownerReferences"].clone();
    first["metadata"] = json!({"name": name, "labels": {"app": "agent"}, "ownerReferences": owner});
    evil(&mut first["data"]);
    space.kubectl.create(&first).await;
    let answer = roller.post(&rollback(&space), &json!({"toRevision": name, "dryRun": true})).await;
    answer.problem(403, "planted-revision");
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn what_was_there_before_rollbackd_watched_is_taken_on_trust() {
    let space = space().await;
    plant(&space, PLANTED, 7, evil).await;
    let rollbackd = Rollbackd::guarded().await;
    let (roller, _) = two(&space, &rollbackd).await;
    let tried = roller.post(&rollback(&space), &json!({"toRevision": PLANTED, "dryRun": true})).await;
    assert_eq!(codes(&tried.expect(200)), Vec::<&str>::new());
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn what_came_up_in_a_gap_of_the_watch_is_allowed_with_a_warning() {
    // As API servers answer a watch whose version they have no history of any more.
    const GONE: &str = "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"status\":\"Failure\",\"message\":\"too old resource version\",\"reason\":\"Expired\",\"code\":410}}\n";
    let space = space().await;
    let (faults, cut) = (Faults::default(), CancellationToken::new());
    faults.no_streamed_lists();
    faults.inject(1, Fault::CutBody(cut.clone()), watch("controllerrevisions"));
    let mut setup = Setup { faults, ..Setup::guarded(ControlPlane::shared()) };
    setup.timing.patience.recording = Duration::from_secs(1);
    let rollbackd = Rollbackd::start_with(setup).await;
    let (roller, patcher) = two(&space, &rollbackd).await;
    // Refused, whenever it is tried again, until this is over.
    let gone = Fault::Answer { status: 200, headers: Vec::new(), body: GONE };
    let silent = Fault::Answer { status: 503, headers: Vec::new(), body: "{}" };
    rollbackd.faults.inject(usize::MAX, silent, watch("controllerrevisions"));
    cut.cancel();
    plant(&space, PLANTED, 7, evil).await;
    let early = roller.post(&rollback(&space), &json!({"toRevision": PLANTED, "dryRun": true})).await;
    early.problem(409, "not-recorded");
    rollbackd.faults.clear();
    rollbackd.faults.inject(1, gone, watch("controllerrevisions"));
    crate::support::wait::until("the list after the gap", async || {
        let answer = roller.post(&rollback(&space), &json!({"toRevision": PLANTED, "dryRun": true})).await;
        if answer.status == 200 { Ok(answer.json()) } else { Err(answer) }
    })
    .await;
    for api in [&roller, &patcher] {
        let tried = api.post(&rollback(&space), &json!({"toRevision": PLANTED, "dryRun": true})).await;
        assert_eq!(codes(&tried.expect(200)), ["not-watched"]);
    }
    // The watch goes on: what comes up now is seen as it does.
    plant(&space, "agent-later", 20, |data| {
        data["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:2".into();
    })
    .await;
    crate::support::wait::until("the one that is planted later", async || {
        let body = json!({"toRevision": "agent-later", "dryRun": true});
        let later = roller.post(&rollback(&space), &body).await;
        if later.status == 403 { Ok(later.problem(403, "planted-revision")) } else { Err(later) }
    })
    .await;
}
