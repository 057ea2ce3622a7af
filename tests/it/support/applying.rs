//! The tools that apply manifests, by what kubectl does with their flags, and a DaemonSet that one of them manages.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    kubectl::Printed,
    rollbackd::Rollbackd,
    space::Space,
    wait::{PATIENCE, until, until_within},
};

/// Annotation of client-side apply.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Name of the DaemonSet.
pub const AGENT: &str = "agent";

/// What `kubectl rollout restart` writes, as [`template_fields`] names it.
pub const RESTARTED_AT: &str = "f:metadata f:annotations f:kubectl.kubernetes.io/restartedAt";

/// A tool and its way to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    KubectlApply,
    ServerSideApply,
    ForcedServerSideApply,
    ArgoCdClientSide,
    ArgoCdServerSide,
    Flux,
    Helm4,
}

impl Tool {
    /// kubectl's flags that make the same requests as the tool.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Self::KubectlApply => &[],
            Self::ServerSideApply => &["--server-side"],
            Self::ForcedServerSideApply => &["--server-side", "--force-conflicts"],
            Self::ArgoCdClientSide => &["--field-manager=argocd-controller"],
            Self::ArgoCdServerSide => {
                &["--server-side", "--field-manager=argocd-controller", "--force-conflicts"]
            }
            Self::Flux => &["--server-side", "--field-manager=kustomize-controller", "--force-conflicts"],
            Self::Helm4 => &["--server-side", "--field-manager=helm"],
        }
    }

    /// Whether it keeps the last-applied annotation.
    pub fn is_client_side(self) -> bool {
        matches!(self, Self::KubectlApply | Self::ArgoCdClientSide)
    }

    /// The labels and annotations that the tool puts on what it applies.
    fn marks(self) -> Value {
        match self {
            Self::KubectlApply | Self::ServerSideApply | Self::ForcedServerSideApply => json!({}),
            Self::ArgoCdClientSide | Self::ArgoCdServerSide => json!({"annotations": {
                "argocd.argoproj.io/tracking-id": "shop:apps/DaemonSet:shop/agent",
            }}),
            Self::Flux => json!({"labels": {
                "kustomize.toolkit.fluxcd.io/name": "shop", "kustomize.toolkit.fluxcd.io/namespace": "flux-system",
            }}),
            Self::Helm4 => json!({
                "labels": {"app.kubernetes.io/managed-by": "Helm"},
                "annotations": {"meta.helm.sh/release-name": "shop", "meta.helm.sh/release-namespace": "shop"},
            }),
        }
    }

    fn mark(self, manifest: &Value) -> Value {
        let mut manifest = manifest.clone();
        for (field, entries) in self.marks().as_object().expect("an object") {
            for (key, value) in entries.as_object().expect("an object") {
                manifest["metadata"][field][key] = value.clone();
            }
        }
        manifest
    }
}

/// The manifest of one version of a DaemonSet. Two versions share no container but `main`, and in it no environment
/// variable, port or mount.
fn manifest(image: &str, era: &str, port: u16) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": AGENT},
        "spec": {
            "selector": {"matchLabels": {"app": AGENT}},
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}},
            "template": {
                "metadata": {"labels": {"app": AGENT, (format!("label-{era}")): era}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    // Pods then have the containers and volumes of the template and no others.
                    "automountServiceAccountToken": false,
                    "tolerations": [{"key": era, "operator": "Exists"}],
                    "containers": [
                        {
                            "name": "main",
                            "image": image,
                            "env": [{"name": era.to_uppercase(), "value": era}],
                            "ports": [{"containerPort": port}],
                            "volumeMounts": [{"name": era, "mountPath": format!("/{era}")}],
                        },
                        {"name": format!("helper-{era}"), "image": "helper:1"},
                    ],
                    "volumes": [{"name": era, "emptyDir": {}}],
                },
            },
        },
    })
}

/// The first version: `agent:1`, `OLD`, `helper-old`, volume `old`.
pub fn v1() -> Value {
    manifest("agent:1", "old", 8081)
}

/// The second version: `agent:2`, `NEW`, `helper-new`, volume `new`.
pub fn v2() -> Value {
    manifest("agent:2", "new", 8082)
}

/// A manifest with another value at a JSON pointer.
pub fn with(mut manifest: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    manifest.pointer_mut(parent).expect("the parent is there")[key] = value;
    manifest
}

/// A DaemonSet whose manifest a tool applies.
pub struct Workload<'a> {
    pub space: &'a Space,
    pub tool: Tool,
}

impl<'a> Workload<'a> {
    /// The DaemonSet [`AGENT`] of a namespace; it need not be there yet.
    pub fn new(space: &'a Space, tool: Tool) -> Self {
        Self { space, tool }
    }

    /// Applies a manifest, which must succeed, and returns what the controller then has observed.
    pub async fn apply(&self, manifest: &Value) -> Value {
        let printed = self.try_apply(manifest).await;
        assert_eq!(printed.code, 0, "{:?}: {}", self.tool, printed.stderr);
        self.observed().await
    }

    /// Applies a manifest, and returns what kubectl says.
    pub async fn try_apply(&self, manifest: &Value) -> Printed {
        self.try_apply_as(self.tool, manifest).await
    }

    /// As [`Workload::try_apply`], with the flags of another tool.
    pub async fn try_apply_as(&self, tool: Tool, manifest: &Value) -> Printed {
        let args = [&["apply", "-f", "-"], tool.flags()].concat();
        let manifest = self.tool.mark(manifest).to_string();
        self.space.kubectl.run_with_input(&args, manifest.as_bytes()).await
    }

    /// The DaemonSet now, with its managed fields.
    pub async fn live(&self) -> Value {
        let args = ["get", "daemonset", AGENT, "-o", "json", "--show-managed-fields"];
        serde_json::from_str(&self.space.kubectl.ok(&args).await).expect("kubectl prints JSON")
    }

    /// The DaemonSet once the controller has acted on its newest spec, with its managed fields.
    pub async fn observed(&self) -> Value {
        self.space.observed(AGENT).await;
        self.live().await
    }

    /// Rolls back, and returns the path of the record.
    pub async fn roll_back(&self, rollbackd: &Rollbackd, body: &Value) -> String {
        let path = format!("{}/rollback", self.space.path(AGENT));
        let answer = rollbackd.api.post(&path, body).await;
        answer.expect(202);
        answer.header("location").to_owned()
    }

    /// Rolls back, waits until rollbackd owns no field of the template and not the last-applied annotation, and
    /// returns the DaemonSet and the record's path.
    pub async fn roll_back_and_return(&self, rollbackd: &Rollbackd, body: &Value) -> (Value, String) {
        let record = self.roll_back(rollbackd, body).await;
        let live = self.returned_but(rollbackd, &record, &[]).await;
        (live, record)
    }

    /// Waits until rollbackd owns these fields of the template and no others, as [`template_fields`] names them, and
    /// not the last-applied annotation.
    pub async fn returned_but(&self, rollbackd: &Rollbackd, record: &str, kept: &[&str]) -> Value {
        let what = format!("{record} to leave rollbackd the fields {kept:?} of {}", AGENT);
        until_within(PATIENCE, &what, async || {
            let live = self.observed().await;
            let owned = template_fields(&live, "rollbackd", "Update");
            let annotation = owners(&live, &["f:metadata", "f:annotations", &format!("f:{LAST_APPLIED}")]);
            let owns_annotation = annotation.iter().any(|owner| owner.starts_with("rollbackd/"));
            if owned == kept && !owns_annotation {
                return Ok(live);
            }
            let warnings = rollbackd.api.get(record).await.expect(200)["warnings"].take();
            Err((owned, annotation, warnings))
        })
        .await
    }

    /// Waits until the pods are those of a template and no others.
    pub async fn pods_run(&self, template: &Value) {
        self.space.rolled_out(AGENT).await;
        let parts = |spec: &Value| (spec["containers"].clone(), spec["volumes"].clone());
        until("the pods to be those of the template", async || {
            let pods = self.space.kubectl.list("pods").await;
            let mine = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == AGENT);
            let found: Vec<_> = mine.map(|pod| parts(&pod["spec"])).collect();
            let right = !found.is_empty() && found.iter().all(|it| *it == parts(&template["spec"]));
            if right { Ok(()) } else { Err(found) }
        })
        .await;
    }
}

/// Waits until the record has a warning of this code, and returns its message.
pub async fn warned(rollbackd: &Rollbackd, record: &str, code: &str) -> String {
    until(&format!("{record} to warn of {code}"), async || {
        let rollback = rollbackd.api.get(record).await.expect(200);
        warning(&rollback, code).ok_or(rollback)
    })
    .await
}

/// The message of the record's warning of this code.
pub fn warning(rollback: &Value, code: &str) -> Option<String> {
    let warning = rollback["warnings"].as_array()?.iter().find(|warning| warning["code"] == code)?;
    Some(warning["message"].as_str().expect("a message").to_owned())
}

/// The pod template of a DaemonSet.
pub fn template(daemonset: &Value) -> &Value {
    &daemonset["spec"]["template"]
}

/// What client-side apply keeps on a DaemonSet.
pub fn last_applied(daemonset: &Value) -> Option<Value> {
    let text = daemonset["metadata"]["annotations"][LAST_APPLIED].as_str()?;
    Some(serde_json::from_str(text).expect("it is JSON"))
}

/// The entries of `managedFields` without those of the status.
pub fn managed_fields(daemonset: &Value) -> Vec<Value> {
    let entries = daemonset["metadata"]["managedFields"].as_array().expect("they are shown");
    entries.iter().filter(|entry| entry["subresource"].is_null()).cloned().collect()
}

/// When each manager last wrote, by `manager/operation`.
pub fn times(daemonset: &Value) -> BTreeMap<String, Value> {
    managed_fields(daemonset).into_iter().map(|entry| (identity(&entry), entry["time"].clone())).collect()
}

fn identity(entry: &Value) -> String {
    let text = |field: &str| entry[field].as_str().expect("each entry has it").to_owned();
    format!("{}/{}", text("manager"), text("operation"))
}

/// Who owns a field, as `manager/operation`.
pub fn owners(daemonset: &Value, path: &[&str]) -> Vec<String> {
    let owns =
        |entry: &Value| path.iter().try_fold(&entry["fieldsV1"], |fields, step| fields.get(step)).is_some();
    let mut names: Vec<_> = managed_fields(daemonset).iter().filter(|it| owns(it)).map(identity).collect();
    names.sort();
    names
}

/// The paths of the template's fields that a manager owns, their steps with spaces between, as
/// `f:spec f:containers k:{"name":"main"} f:image`: leaves only, and `.` for an item of a list itself.
pub fn template_fields(daemonset: &Value, manager: &str, operation: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in managed_fields(daemonset) {
        if entry["manager"] == manager && entry["operation"] == operation {
            leaves(&entry["fieldsV1"]["f:spec"]["f:template"], "", &mut found);
        }
    }
    // That a map is there says nothing of its entries.
    found.retain(|path| !path.ends_with(" .") || path.ends_with("} ."));
    found.sort();
    found
}

fn leaves(fields: &Value, path: &str, found: &mut Vec<String>) {
    for (step, below) in fields.as_object().into_iter().flatten() {
        let path = if path.is_empty() { step.clone() } else { format!("{path} {step}") };
        if below.as_object().is_none_or(serde_json::Map::is_empty) {
            found.push(path);
        } else {
            leaves(below, &path, found);
        }
    }
}
