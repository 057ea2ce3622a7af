//! A patch whose answer was lost, and others who write before it is settled. What the crash harness has found
//! (`tests/crash`) stands here by name.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rollbackd::{rollbacks::Patience, server::Timing};
use serde_json::{Value, json};

use crate::support::{
    controlplane::ControlPlane,
    faults::{self, Fault},
    rollbackd::{Rollbackd, Setup, timing},
    space::Space,
    twins::plant,
};

/// A DaemonSet `agent` that runs `img:2` after `img:1`, and a rollbackd that loses sight of the API server
/// when it has been asked to roll back.
struct Lost {
    space: Space,
    rollbackd: Rollbackd,
    gone: Arc<AtomicBool>,
}

impl Lost {
    async fn new() -> Self {
        let space = Space::new(ControlPlane::shared()).await;
        space.recorded(&["img:1", "img:2"]).await;
        space.rolled_out("agent").await;
        let patience = Patience { settling: Duration::from_millis(200), ..timing().patience };
        let timing = Timing { patience, ..timing() };
        let rollbackd = Rollbackd::start_with(Setup { timing, ..Setup::new(ControlPlane::shared()) }).await;
        Self { space, rollbackd, gone: Arc::default() }
    }

    fn path(&self) -> String {
        format!("{}/rollback", self.space.path("agent"))
    }

    /// Asks for a rollback whose patch meets a fault, with the API server out of reach from then on. Returns
    /// where it is.
    async fn roll_back(&self, to: &str, patch: Fault) -> String {
        self.rollbackd.faults.inject(1, patch, faults::patch);
        let now = self.gone.clone();
        self.rollbackd.faults.inject(usize::MAX, Fault::CutBefore, move |_| now.load(Ordering::Relaxed));
        let gone = self.gone.clone();
        // From the patch on, which is let through to its own fault.
        self.rollbackd.faults.before(move |request| {
            gone.fetch_or(faults::patch(request), Ordering::Relaxed);
            None
        });
        let answer = self.rollbackd.api.post(&self.path(), &json!({"toRevision": to})).await;
        assert_eq!(answer.expect(202)["state"], "unsettled");
        answer.header("location").to_owned()
    }

    /// Gives the API server back, and waits for one of these ends.
    async fn ends(&self, location: &str, states: &[&str]) -> Value {
        self.rollbackd.faults.before(|_| None);
        self.gone.store(false, Ordering::Relaxed);
        self.rollbackd.api.rollback_at(location, states).await
    }

    async fn set_image(&self, image: &str) {
        self.space.kubectl.ok(&["set", "image", "daemonset/agent", &format!("main={image}")]).await;
    }

    /// Takes the rollback's id away, as `kubectl replace` does with a manifest that knows nothing of it.
    async fn unmark(&self) {
        let patch = json!([{"op": "remove", "path": "/metadata/annotations/rollbackd.dev~1rollback"}]);
        let patch = patch.to_string();
        self.space.kubectl.ok(&["patch", "daemonset", "agent", "--type=json", "-p", &patch]).await;
    }

    /// The API server has forgotten what was written since the patch.
    fn forgets(&self) {
        const GONE: &str = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old resource version","reason":"Expired","code":410}"#;
        let gone = Fault::Answer { status: 410, headers: vec![], body: GONE };
        self.rollbackd.faults.inject(usize::MAX, gone, |request| {
            let query = request.uri().query().unwrap_or_default();
            query.contains("fieldSelector=") && query.contains("watch=")
        });
    }
}

#[tokio::test]
async fn the_same_template_by_somebody_else_is_not_taken_for_ours() {
    let lost = Lost::new().await;
    let location = lost.roll_back("previous", Fault::CutBefore).await;
    lost.set_image("img:1").await;
    let ended = lost.ends(&location, &["abandoned", "succeeded", "superseded"]).await;
    assert_eq!((&ended["state"], ended.get("generation")), (&json!("abandoned"), None), "{ended}");
}

#[tokio::test]
async fn a_change_beside_the_template_after_an_earlier_rollback_is_not_taken_for_ours() {
    let lost = Lost::new().await;
    let earlier = lost.rollbackd.api.post(&lost.path(), &json!({})).await;
    lost.rollbackd.api.rollback_at(earlier.header("location"), &["succeeded"]).await;
    lost.space.rolled_out("agent").await;
    let location = lost.roll_back("previous", Fault::CutBefore).await;
    let faster = json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}}}});
    // By somebody who never wrote to the template.
    let args = ["patch", "daemonset", "agent", "--field-manager=somebody", "-p", &faster.to_string()];
    lost.space.kubectl.ok(&args).await;
    let ended = lost.ends(&location, &["abandoned", "succeeded", "superseded"]).await;
    assert_eq!(ended["state"], "abandoned", "{ended}");
}

#[tokio::test]
async fn an_id_that_was_taken_away_is_found_in_what_was_written_first() {
    let lost = Lost::new().await;
    let location = lost.roll_back("previous", Fault::CutAfter).await;
    lost.unmark().await;
    lost.set_image("img:3").await;
    // Before that the rollout is that of the rollback, which may be complete.
    let path = lost.space.path("agent");
    lost.rollbackd.api.shows(&path, "the third image", |agent| agent["generation"] == 4).await;
    let ended = lost.ends(&location, &["abandoned", "superseded", "unknown"]).await;
    assert_eq!(ended["state"], "superseded", "{ended}");
    let now = lost.space.kubectl.get("daemonset", "agent").await;
    assert_eq!(ended["generation"].as_i64().map(|made| made + 1), now["metadata"]["generation"].as_i64());
}

#[tokio::test]
async fn a_patch_that_several_changes_came_before_is_abandoned() {
    let lost = Lost::new().await;
    let location = lost.roll_back("previous", Fault::CutBefore).await;
    lost.set_image("img:1").await;
    lost.set_image("img:3").await;
    let ended = lost.ends(&location, &["abandoned", "superseded", "unknown"]).await;
    assert_eq!(ended["state"], "abandoned", "{ended}");
}

#[tokio::test]
async fn what_the_api_server_has_forgotten_is_decided_only_by_proof() {
    // One change by somebody who wrote to the template last: the patch would have left another trace.
    let lost = Lost::new().await;
    let location = lost.roll_back("previous", Fault::CutBefore).await;
    lost.set_image("img:3").await;
    lost.forgets();
    let ended = lost.ends(&location, &["abandoned", "superseded", "unknown"]).await;
    assert_eq!(ended["state"], "abandoned", "{ended}");

    // Two changes, and the id is gone: nothing is left that tells.
    for patch in [Fault::CutBefore, Fault::CutAfter] {
        let lost = Lost::new().await;
        let carried_out = matches!(patch, Fault::CutAfter);
        let location = lost.roll_back("previous", patch).await;
        if carried_out {
            lost.unmark().await;
        } else {
            lost.set_image("img:1").await;
        }
        lost.set_image("img:3").await;
        lost.forgets();
        let ended = lost.ends(&location, &["abandoned", "superseded", "unknown"]).await;
        assert_eq!(ended["state"], "unknown", "{ended}");
        assert!(ended["message"].as_str().unwrap().ends_with("have left no proof either way"), "{ended}");
    }
}

#[tokio::test]
async fn an_earlier_rollback_id_proves_that_a_forgotten_patch_was_not_carried_out() {
    let earlier = async || {
        let lost = Lost::new().await;
        let earlier = lost.rollbackd.api.post(&lost.path(), &json!({})).await;
        lost.rollbackd.api.rollback_at(earlier.header("location"), &["succeeded"]).await;
        lost.space.rolled_out("agent").await;
        lost
    };
    // It is still on the DaemonSet after two changes by others.
    let lost = earlier().await;
    let location = lost.roll_back("previous", Fault::CutBefore).await;
    lost.set_image("img:3").await;
    lost.set_image("img:4").await;
    lost.forgets();
    let ended = lost.ends(&location, &["abandoned", "superseded", "unknown"]).await;
    assert_eq!(ended["state"], "abandoned", "{ended}");
    assert!(ended["message"].as_str().unwrap().ends_with("; the patch was not carried out"), "{ended}");

    // It is gone, and the revision of a template that came in between has kept it.
    let lost = earlier().await;
    // Creation times have a precision of one second.
    let newest = async || {
        let revisions = lost.space.revisions().await;
        let times = revisions.iter().map(|revision| revision["metadata"]["creationTimestamp"].to_string());
        times.max().unwrap()
    };
    let before = newest().await;
    let location = lost.roll_back("previous", Fault::CutBefore).await;
    for number in 3.. {
        lost.set_image(&format!("img:{number}")).await;
        lost.space.observed("agent").await;
        if newest().await > before {
            break;
        }
    }
    lost.unmark().await;
    lost.set_image("img:2").await;
    lost.forgets();
    let ended = lost.ends(&location, &["abandoned", "superseded", "unknown"]).await;
    assert_eq!(ended["state"], "abandoned", "{ended}");
}

#[tokio::test]
async fn one_change_to_another_template_proves_that_a_forgotten_patch_changed_nothing() {
    let lost = Lost::new().await;
    let location = lost.roll_back("previous", Fault::CutBefore).await;
    // Under the name of rollbackd, so that the field managers prove nothing.
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "img:3"}]}}}});
    let image = image.to_string();
    lost.space.kubectl.ok(&["patch", "daemonset", "agent", "--field-manager=rollbackd", "-p", &image]).await;
    lost.forgets();
    let ended = lost.ends(&location, &["abandoned", "superseded", "unknown"]).await;
    let message = ended["message"].as_str().unwrap();
    assert!(
        ended["state"] == "abandoned" && message.ends_with("; the patch did not change the DaemonSet's spec"),
        "{ended}"
    );
}

#[tokio::test]
#[ignore = "needs the API server's defaults"]
async fn a_patch_without_effect_is_skipped_though_its_answer_is_lost() {
    let lost = Lost::new().await;
    // A revision as an older Kubernetes wrote it: a default is missing, so that the patch changes nothing.
    plant(&lost.space, "agent-of-old", 5, |data| {
        let container = &mut data["spec"]["template"]["spec"]["containers"][0];
        container.as_object_mut().unwrap().remove("terminationMessagePolicy");
        container["image"] = json!("img:2");
    })
    .await;
    let before = lost.space.kubectl.get("daemonset", "agent").await;
    // While the caller waits, and later.
    let patient = Rollbackd::start().await;
    patient.faults.inject(1, Fault::CutAfter, faults::patch);
    let answer = patient.api.post(&lost.path(), &json!({"toRevision": "agent-of-old"})).await;
    assert_eq!(answer.expect(200)["state"], "skipped");
    let location = lost.roll_back("agent-of-old", Fault::CutAfter).await;
    let ended = lost.ends(&location, &["skipped", "succeeded", "abandoned"]).await;
    assert_eq!(ended["state"], "skipped", "{ended}");
    let after = lost.space.kubectl.get("daemonset", "agent").await;
    assert_eq!(after["metadata"]["generation"], before["metadata"]["generation"]);

    // It was carried out, though nothing shows it any more.
    let location = lost.roll_back("agent-of-old", Fault::CutAfter).await;
    lost.unmark().await;
    let ended = lost.ends(&location, &["skipped", "succeeded", "abandoned"]).await;
    assert_eq!(ended["state"], "skipped", "{ended}");
    // Where the API server has forgotten it, too, what is said is true either way.
    let location = lost.roll_back("agent-of-old", Fault::CutAfter).await;
    lost.unmark().await;
    lost.forgets();
    let ended = lost.ends(&location, &["skipped", "succeeded", "abandoned"]).await;
    let message = ended["message"].as_str().unwrap();
    assert!(
        ended["state"] == "abandoned" && message.ends_with("; the patch did not change the DaemonSet's spec"),
        "{ended}"
    );
    lost.rollbackd.faults.clear();

    // Somebody's change after it, which keeps the id, is not ours.
    let location = lost.roll_back("agent-of-old", Fault::CutAfter).await;
    lost.set_image("img:3").await;
    let ended = lost.ends(&location, &["skipped", "succeeded", "superseded", "abandoned"]).await;
    assert_eq!(ended["state"], "skipped", "{ended}");
}
