//! A namespace of a test's own, and what tests put into it.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::{controlplane::ControlPlane, kubectl::Kubectl, wait::until};

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A namespace of a test's own.
pub struct Space {
    pub namespace: String,
    pub kubectl: Kubectl,
}

impl Space {
    /// Makes a namespace.
    pub async fn new(control_plane: &ControlPlane) -> Self {
        let namespace = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let kubectl = Kubectl::new(control_plane, "admin", &namespace);
        kubectl.ok(&["create", "namespace", &namespace]).await;
        Self { namespace, kubectl }
    }

    /// Path of a DaemonSet in rollbackd's API.
    pub fn path(&self, name: &str) -> String {
        format!("/daemonsets/{}/{name}", self.namespace)
    }

    /// Makes a DaemonSet `agent` with a revision for each image, each with a change-cause, and waits until
    /// the last one is rolled out.
    pub async fn agent(&self, images: &[&str]) {
        self.kubectl.create(&daemonset("agent", images[0])).await;
        self.rolled_out("agent").await;
        for image in &images[1..] {
            self.set_image("agent", image).await;
            self.rolled_out("agent").await;
        }
    }

    /// Makes a DaemonSet `agent` as [`Space::agent`] does, but waits only until each revision is recorded.
    pub async fn recorded(&self, images: &[&str]) {
        self.kubectl.create(&daemonset("agent", images[0])).await;
        self.observed("agent").await;
        for image in &images[1..] {
            self.set_image("agent", image).await;
            self.observed("agent").await;
        }
    }

    /// Changes image and change-cause in one write.
    pub async fn set_image(&self, name: &str, image: &str) {
        let patch = json!({
            "metadata": {"annotations": {"kubernetes.io/change-cause": format!("image {image}")}},
            "spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}},
        });
        self.patch(name, &patch).await;
    }

    /// Patches a DaemonSet by strategic merge.
    pub async fn patch(&self, name: &str, patch: &Value) {
        self.kubectl.ok(&["patch", "daemonset", name, "-p", &patch.to_string()]).await;
    }

    /// Waits with kubectl until a rollout is complete.
    pub async fn rolled_out(&self, name: &str) {
        self.kubectl.ok(&["rollout", "status", &format!("daemonset/{name}"), "--timeout=180s"]).await;
    }

    /// Waits until the controller has acted on the newest spec of a DaemonSet.
    pub async fn observed(&self, name: &str) -> Value {
        until("the controller to observe the newest spec", async || {
            let daemonset = self.kubectl.get("daemonset", name).await;
            let seen = daemonset["status"]["observedGeneration"] == daemonset["metadata"]["generation"];
            if seen { Ok(daemonset) } else { Err(daemonset["status"].clone()) }
        })
        .await
    }

    /// Waits until the controller has recorded a DaemonSet's template as the revision of this number,
    /// and has a pod for each node that it wants; what `OnDelete` does not update may be old.
    pub async fn recorded_revision(&self, name: &str, number: i64) {
        until(&format!("revision {number} of {name}"), async || {
            let daemonset = self.observed(name).await;
            let revisions = self.revisions().await;
            let owned = revisions.iter().filter(|one| one["metadata"]["ownerReferences"][0]["name"] == name);
            let newest = owned.filter_map(|one| one["revision"].as_i64()).max();
            let status = &daemonset["status"];
            let ready = status["numberAvailable"] == status["desiredNumberScheduled"];
            if newest == Some(number) && ready { Ok(()) } else { Err((newest, status.clone())) }
        })
        .await;
    }

    /// The name of a node of the namespace's own.
    pub fn node(&self, number: usize) -> String {
        format!("{}-{number}", self.namespace)
    }

    /// Makes a node that only the DaemonSets of this namespace tolerate. The test deletes it at its end.
    pub async fn add_node(&self, number: usize) {
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.node(number),
                "annotations": {"kwok.x-k8s.io/node": "fake"},
                "labels": {"own": self.namespace},
            },
            "spec": {"taints": [{"key": "own", "value": self.namespace, "effect": "NoSchedule"}]},
        });
        self.kubectl.create(&node).await;
    }

    /// The same DaemonSet, on the namespace's own nodes and no other.
    pub fn on_own_nodes(&self, mut daemonset: Value) -> Value {
        let spec = &mut daemonset["spec"]["template"]["spec"];
        spec["nodeSelector"] = json!({"own": self.namespace});
        spec["tolerations"] = json!([{"key": "own", "operator": "Exists"}]);
        daemonset
    }

    /// The ControllerRevisions of the namespace, ascending by number.
    pub async fn revisions(&self) -> Vec<Value> {
        let mut revisions = self.kubectl.list("controllerrevisions").await;
        revisions.sort_by_key(|revision| revision["revision"].as_i64());
        revisions
    }
}

/// Whether a status is that of a generation of a DaemonSet, of whose pods so many are updated. With an image that never
/// gets ready it goes no further.
pub fn updated(generation: i64, pods: i64) -> impl Fn(&Value) -> bool {
    move |status| status["observedGeneration"] == generation && status["updatedNumberScheduled"] == pods
}

/// A small DaemonSet with one container `main`, on all nodes.
pub fn daemonset(name: &str, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "annotations": {"kubernetes.io/change-cause": format!("image {image}")}},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "main", "image": image}],
                },
            },
        },
    })
}
