//! Whether a rollout is stalled, while nodes join and leave.

use serde_json::{Value, json};

use crate::support::{
    controlplane::{ControlPlane, kubernetes},
    rollbackd::{Rollbackd, Setup},
    space::{Space, daemonset},
    wait::until,
};

/// A rollback from `img:2` to an image that never gets ready, on nodes of the namespace's own.
struct Stuck {
    space: Space,
    rollbackd: Rollbackd,
    /// Path of the rollback.
    location: String,
    nodes: usize,
}

impl Stuck {
    /// Stalled, with the pods of so many nodes updated.
    async fn start(nodes: usize, max_unavailable: Value, updated: i64) -> Self {
        let space = Space::new(ControlPlane::shared()).await;
        for number in 0..nodes {
            space.add_node(number).await;
        }
        let mut agent = space.on_own_nodes(daemonset("agent", "img:missing"));
        agent["spec"]["updateStrategy"] = json!({"rollingUpdate": {"maxUnavailable": max_unavailable}});
        space.kubectl.create(&agent).await;
        space.observed("agent").await;
        space.set_image("agent", "img:2").await;
        space.rolled_out("agent").await;
        let flags = ["--stall-after", "2s"];
        let setup = Setup { flags: &flags, ..Setup::new(ControlPlane::shared()) };
        let rollbackd = Rollbackd::start_with(setup).await;
        let path = format!("{}/rollback", space.path("agent"));
        let answer = rollbackd.api.post(&path, &json!({"toRevision": 1})).await;
        answer.expect(202);
        let location = answer.header("location").to_owned();
        let stuck = Self { space, rollbackd, location, nodes };
        let counts = |status: &Value| status["updatedNumberScheduled"] == updated;
        stuck.shows("the rollout to be stuck", |status| counts(status) && is_stalled(status)).await;
        stuck.rollbackd.api.rollback_at(&stuck.location, &["stalled"]).await;
        stuck
    }

    /// Waits for a status.
    async fn shows(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        self.rollbackd.api.shows(&format!("{}/status", self.space.path("agent")), what, is).await
    }

    async fn resumptions(&self) -> usize {
        let actions = self.rollbackd.api.actions(&self.space.namespace).await;
        actions.iter().filter(|action| *action == "rollout.resumed").count()
    }

    async fn end(self) {
        for number in 0..self.nodes {
            self.space.kubectl.run(&["delete", "node", &self.space.node(number)]).await;
        }
    }
}

fn is_stalled(status: &Value) -> bool {
    status["stalledSince"].is_string()
}

#[tokio::test]
async fn rollout_that_goes_on_after_updated_nodes_have_left_is_not_stalled() {
    // 5 of 8 nodes at a time; of 4 nodes, 3.
    let stuck = Stuck::start(8, json!("62%"), 5).await;
    let before = stuck.resumptions().await;
    let pods = stuck.space.kubectl.list("pods").await;
    let updated = pods.iter().filter(|pod| pod["spec"]["containers"][0]["image"] == "img:missing");
    let node = |pod: &Value| pod["spec"]["nodeName"].as_str().unwrap().to_owned();
    let leaving: Vec<String> = updated.map(node).take(4).collect();
    let mut args = vec!["delete", "node"];
    args.extend(leaving.iter().map(String::as_str));
    stuck.space.kubectl.ok(&args).await;
    // What they ran is collected much later, and counts as unavailable until then.
    for pod in pods.iter().filter(|pod| leaving.contains(&node(pod))) {
        let delete = ["delete", "pod", pod["metadata"]["name"].as_str().unwrap()];
        // No kubelet is left there to confirm it.
        let force = if kubernetes().is_some() { &["--grace-period=0", "--force"][..] } else { &[] };
        stuck.space.kubectl.run(&[&delete[..], force].concat()).await;
    }
    let of_four = |status: &Value| {
        status["desiredNumberScheduled"] == 4 && status["updatedNumberScheduled"].as_i64() > Some(1)
    };
    stuck.shows("the rollout to go on", of_four).await;
    until("the rollback to be resumed", async || {
        let now = stuck.resumptions().await;
        if now > before { Ok(()) } else { Err(now) }
    })
    .await;
    stuck.end().await;
}

#[tokio::test]
async fn stuck_rollout_stays_stalled_while_nodes_join() {
    let mut stuck = Stuck::start(3, json!(1), 1).await;
    let before = stuck.resumptions().await;
    let first = stuck.shows("the stall", is_stalled).await;
    for joined in 1..=3 {
        stuck.space.add_node(stuck.nodes).await;
        stuck.nodes += 1;
        let status = stuck
            .shows("a broken pod on the new node", |status| status["updatedNumberScheduled"] == 1 + joined)
            .await;
        assert_eq!(status["stalledSince"], first["stalledSince"]);
    }
    assert_eq!(stuck.resumptions().await, before);
    let rollback = stuck.rollbackd.api.get(&stuck.location).await.expect(200);
    assert_eq!(rollback["state"], "stalled");
    stuck.end().await;
}
