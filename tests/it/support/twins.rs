//! Two namespaces in the same state: kubectl acts in one, rollbackd in the other, and what they print
//! and leave behind is compared.

use serde_json::{Value, json};

use super::{
    api::Answer,
    controlplane::{ControlPlane, kubernetes},
    rollbackd::{Rollbackd, Setup},
    space::Space,
    wait::until,
};

/// Annotation of client-side apply.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Two namespaces, and a rollbackd.
pub struct Twins {
    pub theirs: Space,
    pub ours: Space,
    pub rollbackd: Rollbackd,
}

impl Twins {
    /// Makes both namespaces on the shared control plane.
    pub async fn new() -> Self {
        Self::with(Setup::new(ControlPlane::shared())).await
    }

    /// Makes both namespaces where rollbackd is to run.
    pub async fn with(setup: Setup<'_>) -> Self {
        let space = || Space::new(setup.control_plane);
        let (theirs, ours) = tokio::join!(space(), space());
        Self { theirs, ours, rollbackd: Rollbackd::start_with(setup).await }
    }

    /// Path of the rollback of rollbackd's `agent`.
    pub fn path(&self) -> String {
        format!("{}/rollback", self.ours.path("agent"))
    }

    /// Does the same in both.
    pub async fn both(&self, prepare: impl AsyncFn(&Space)) {
        tokio::join!(prepare(&self.theirs), prepare(&self.ours));
    }

    /// Does the same wherever something was rolled back: in the sandbox that is only rollbackd's namespace.
    pub async fn each(&self, look: impl AsyncFn(&Space)) {
        if kubernetes().is_some() { self.both(look).await } else { look(&self.ours).await }
    }

    /// Both with a DaemonSet `agent` that has a recorded revision for each image.
    pub async fn of(images: &[&str]) -> Self {
        let twins = Self::new().await;
        twins.both(async |space| space.recorded(images).await).await;
        twins
    }

    /// Rolls back on both sides: kubectl with these flags, rollbackd with this body. Texts and objects must
    /// be the same, and rollbackd must give each of kubectl's warnings, or a better one. Returns rollbackd's answer; in the
    /// sandbox it is all that there is.
    pub async fn undo(&self, flags: &[&str], body: Value) -> Answer {
        let answer = self.undo_texts(flags, body).await;
        self.same_objects().await;
        answer
    }

    /// As [`Twins::undo`], but of the objects nothing is said.
    pub async fn undo_texts(&self, flags: &[&str], body: Value) -> Answer {
        let args = [&["rollout", "undo", "daemonset/agent"], flags].concat();
        let path = self.path();
        let rolled_back = self.rollbackd.api.post_as(&path, &body, "text/plain");
        let (printed, answer) = tokio::join!(self.theirs.kubectl.beside(&args), rolled_back);
        let Some(printed) = printed else { return answer };
        if printed.code == 0 {
            assert!([200, 202].contains(&answer.status), "{printed:?}\n{answer:?}");
            assert_eq!(answer.text, printed.stdout);
            let warnings = answer.headers.get_all("warning").iter().map(|value| {
                let text = value.to_str().expect("a warning is ASCII").strip_prefix("299 - \"");
                let text = text.and_then(|text| text.strip_suffix('"')).expect("a warning is quoted");
                text.replace("\\\"", "\"").replace("\\\\", "\\")
            });
            let warnings: Vec<_> = warnings.collect();
            for line in printed.stderr.lines() {
                let warning = line.strip_prefix("Warning: ").expect("kubectl only warns").to_owned();
                // With rollbackd the annotation goes back with the template.
                if warning.contains("was previously managed with 'kubectl apply'") {
                    assert!(warnings.iter().any(|it| it.contains("'kubectl apply'")), "{warnings:?}");
                    continue;
                }
                assert!(warnings.contains(&warning), "{warning}\n{warnings:?}");
            }
        } else {
            assert!((400..500).contains(&answer.status), "{printed:?}\n{answer:?}");
            assert_eq!(answer.text, printed.stderr);
        }
        answer
    }

    /// Compares what is in the two namespaces, once the controller has acted on it.
    pub async fn same_objects(&self) {
        // In the sandbox nobody has acted in the other one.
        if kubernetes().is_some() {
            let (theirs, ours) = tokio::join!(state(&self.theirs), state(&self.ours));
            assert_eq!(ours, theirs);
        } else {
            self.ours.observed("agent").await;
        }
    }

    /// The record of the rollback that an answer tells of.
    pub async fn record(&self, answer: &Answer) -> Value {
        self.rollbackd.api.get(answer.header("location")).await.expect(200)
    }
}

/// The DaemonSet `agent` and all ControllerRevisions, without what differs between any two objects, without
/// rollbackd's own annotation, and without the template of the last applied manifest: kubectl leaves that as it is.
async fn state(space: &Space) -> Value {
    let daemonset = space.observed("agent").await;
    let revisions: Vec<Value> = space.revisions().await.into_iter().map(|it| bare(it, space)).collect();
    let mut daemonset = bare(daemonset, space);
    daemonset.as_object_mut().expect("an object").remove("status");
    if let Some(Value::String(text)) = daemonset["metadata"]["annotations"].get_mut(LAST_APPLIED) {
        let mut manifest: Value = serde_json::from_str(text).expect("a manifest");
        manifest["spec"]["template"] = Value::Null;
        *text = manifest.to_string();
    }
    json!({"daemonset": daemonset, "revisions": revisions})
}

/// Gives a DaemonSet `agent` a ControllerRevision that somebody made by hand, from its first one, and
/// waits until the controller has adopted it and numbered the running one above it.
pub async fn plant(space: &Space, name: &str, number: i64, edit: impl Fn(&mut Value)) {
    let mut orphan = space.revisions().await.remove(0);
    orphan["metadata"] = json!({"name": name, "labels": {"app": "agent"}});
    orphan["revision"] = json!(number);
    edit(&mut orphan["data"]);
    space.kubectl.create(&orphan).await;
    until("the planted revision to be adopted, and the running one to be numbered above it", async || {
        let revisions = space.revisions().await;
        let adopted = revisions.iter().all(|it| it["metadata"]["ownerReferences"].is_array());
        let highest = revisions.last().expect("there is one")["revision"].as_i64();
        if adopted && highest > Some(number) { Ok(()) } else { Err(revisions) }
    })
    .await;
}

fn bare(object: Value, space: &Space) -> Value {
    // The namespace's name also stands in annotations.
    let text = object.to_string().replace(&space.namespace, "twin");
    let mut object: Value = serde_json::from_str(&text).expect("it is still JSON");
    let metadata = object["metadata"].as_object_mut().expect("an object has metadata");
    for key in ["managedFields", "resourceVersion", "uid", "creationTimestamp"] {
        metadata.remove(key);
    }
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove("rollbackd.dev/rollback");
    }
    if let Some(owner) = metadata.get_mut("ownerReferences").and_then(|owners| owners.get_mut(0)) {
        owner["uid"] = Value::Null;
    }
    object
}
