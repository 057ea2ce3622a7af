//! Somebody else, who changes DaemonSets behind rollbackd's back.

use std::{process::Stdio, sync::Arc, time::Duration};

use fastrand::Rng;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{APPLIED, Harness, IMAGES, NAMES, NAMESPACE};

fn manifest(name: &str, image: &str) -> Value {
    let strategy = match name {
        "on-delete" => json!({"type": "OnDelete"}),
        _ => json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}}),
    };
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "updateStrategy": strategy,
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "main", "image": image}]},
            },
        },
    })
}

impl Harness {
    fn daemonsets(&self) -> Api<DaemonSet> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub async fn prepare(&self) -> anyhow::Result<()> {
        let namespace: Value = json!({"metadata": {"name": NAMESPACE}});
        let namespace = serde_json::from_value(namespace)?;
        Api::<k8s_openapi::api::core::v1::Namespace>::all(self.client.clone())
            .create(&PostParams::default(), &namespace)
            .await?;
        for name in NAMES {
            self.create(name, "img:1").await?;
        }
        for image in ["img:2", "img:3"] {
            sleep(Duration::from_millis(700)).await;
            for name in NAMES {
                self.set_image(name, image).await?;
            }
        }
        sleep(Duration::from_millis(700)).await;
        Ok(())
    }

    async fn create(&self, name: &str, image: &str) -> anyhow::Result<()> {
        let daemonset = manifest(name, image);
        if APPLIED.contains(&name) {
            self.apply(name, image).await?;
        } else {
            self.daemonsets().create(&PostParams::default(), &serde_json::from_value(daemonset)?).await?;
        }
        // A revision as another Kubernetes wrote it, without the defaults: where its image runs, a rollback to
        // it is sent and changes nothing. The controller adopts it.
        let old = json!({
            "metadata": {"generateName": format!("{name}-old-"), "labels": {"app": name}},
            "revision": 1,
            "data": {"spec": {"template": {
                "$patch": "replace",
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "main", "image": "img:1"}]},
            }}},
        });
        Api::<ControllerRevision>::namespaced(self.client.clone(), NAMESPACE)
            .create(&PostParams::default(), &serde_json::from_value(old)?)
            .await?;
        Ok(())
    }

    /// Applies a manifest by force, as Flux does.
    async fn apply(&self, name: &str, image: &str) -> anyhow::Result<()> {
        let params = PatchParams::apply("kustomize-controller").force();
        self.daemonsets().patch(name, &params, &Patch::Apply(manifest(name, image))).await?;
        Ok(())
    }

    async fn set_image(&self, name: &str, image: &str) -> anyhow::Result<()> {
        if APPLIED.contains(&name) {
            return self.apply(name, image).await;
        }
        let patch =
            json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}}});
        self.patch(name, "kubectl-set", &patch).await
    }

    async fn patch(&self, name: &str, manager: &str, patch: &Value) -> anyhow::Result<()> {
        let params = PatchParams { field_manager: Some(manager.into()), ..PatchParams::default() };
        self.daemonsets().patch(name, &params, &Patch::Strategic(patch)).await?;
        Ok(())
    }

    pub async fn meddle(self: Arc<Self>, mut rng: Rng, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            self.disturb(&mut rng).await;
            let pause = sleep(Duration::from_millis(rng.u64(200..900)));
            stop.run_until_cancelled(pause).await;
        }
        Ok(())
    }

    /// Changes a DaemonSet behind rollbackd's back. What fails because somebody else was there first is no
    /// matter.
    pub async fn disturb(&self, rng: &mut Rng) {
        let _others = self.quiet.read().await;
        let name = NAMES[rng.usize(..NAMES.len())];
        let image = IMAGES[rng.usize(..IMAGES.len())];
        let done = async {
            match rng.u8(..100) {
                ..20 => {
                    let mut command = tokio::process::Command::new(&self.kubectl);
                    command.args(["rollout", "undo", &format!("daemonset/{name}"), "-n", NAMESPACE]);
                    command.arg("--kubeconfig").arg(&self.kubeconfig).kill_on_drop(true);
                    command.stdout(Stdio::null()).stderr(Stdio::null()).status().await?;
                }
                20..55 => self.set_image(name, image).await?,
                55..70 => {
                    let percent = format!("{}%", rng.u8(50..=100));
                    let patch =
                        json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": percent}}}});
                    self.patch(name, "kubectl-patch", &patch).await?;
                }
                70..80 => {
                    let patch =
                        json!({"metadata": {"annotations": {"example.com/n": rng.u32(..).to_string()}}});
                    self.patch(name, "kubectl-annotate", &patch).await?;
                }
                80..92 => {
                    // `kubectl replace` of a manifest that knows nothing of our annotation.
                    let mut daemonset = self.daemonsets().get(name).await?;
                    daemonset.metadata.annotations = None;
                    daemonset.metadata.managed_fields = None;
                    daemonset.metadata.resource_version = None;
                    if rng.bool()
                        && let Some(spec) =
                            daemonset.spec.as_mut().and_then(|spec| spec.template.spec.as_mut())
                    {
                        spec.containers[0].image = Some(image.to_owned());
                    }
                    let params =
                        PostParams { field_manager: Some("kubectl-replace".into()), ..PostParams::default() };
                    self.daemonsets().replace(name, &params, &daemonset).await?;
                }
                _ => {
                    self.daemonsets().delete(name, &DeleteParams::background()).await?;
                    sleep(Duration::from_millis(rng.u64(..120))).await;
                    self.create(name, "img:1").await?;
                    sleep(Duration::from_millis(300)).await;
                    self.set_image(name, "img:2").await?;
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        let _ = timeout(Duration::from_secs(20), done).await;
    }
}
