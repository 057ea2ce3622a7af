//! rollbackd stays within the memory that its manifest gives it, whatever is in the cluster.
//!
//! What counts is the most that it ever had, as the kernel tells it (`VmHWM`). A container's limit also counts pages of
//! files, which the kernel takes back before it kills.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{
    api::Api,
    controlplane::ControlPlane,
    large_cluster::{LargeCluster, Lists},
    program::{Running, free_port},
    wait::{until, until_within},
};

/// The limit in `deploy/base/deployment.yaml`, in bytes.
const LIMIT: usize = 256 * 1024 * 1024;

/// The binary: an optimised one takes as much memory as any other, and less time.
fn binary() -> PathBuf {
    std::env::var("ROLLBACKD_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_rollbackd").into()).into()
}

struct Started {
    running: Running,
    api: Api,
}

/// Starts it and waits until it has read the cluster.
async fn start(folder: &Path, kubeconfig: &Path, flags: &[&str]) -> Started {
    let (port, store) = (free_port(), format!("sqlite:{}/rollbackd.db", folder.display()));
    let (listen, kubeconfig) = (format!("127.0.0.1:{port}"), kubeconfig.display().to_string());
    let args = ["serve", "--auth", "none", "--drain-delay", "0s"];
    let more = ["--listen", &listen, "--store", &store, "--kubeconfig", &kubeconfig];
    let running = Running::start(&binary(), &[&args, more.as_slice(), flags].concat());
    let api = Api::new(([127, 0, 0, 1], port).into());
    until_within(std::time::Duration::from_secs(1200), "rollbackd to be ready", async || {
        let answer = api.try_get("/readyz").await;
        if answer.as_ref().is_some_and(|answer| answer.status == 200) { Ok(()) } else { Err(answer) }
    })
    .await;
    Started { running, api }
}

impl Started {
    fn is_within_the_limit(&self) {
        let peak = self.running.peak_memory();
        println!("peak of rollbackd: {} MiB", peak / 1024 / 1024);
        assert!(peak < LIMIT, "{peak} bytes of {LIMIT}");
    }

    async fn gauge(&self, name: &str) -> f64 {
        let metrics = self.api.get("/metrics").await.text;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} is not in {metrics}")).trim().parse().unwrap()
    }
}

/// All that can be read of some DaemonSets is as it is in the cluster.
async fn reads_well(started: &Started, cluster: LargeCluster) {
    let api = &started.api;
    let all = api.get("/daemonsets?limit=1000").await.expect(200);
    assert_eq!(all["items"].as_array().unwrap().len(), cluster.daemonsets.min(1000));
    assert!(all.get("partial").is_none());
    for number in [0, cluster.daemonsets / 2, cluster.daemonsets - 1] {
        let path = format!("/daemonsets/tenant-{}/agent-{number:05}", number / 100);
        let one = api.get(&path).await.expect(200);
        assert_eq!(one["currentRevision"], cluster.revisions);
        let revisions = api.get(&format!("{path}/revisions")).await.expect(200);
        assert_eq!(revisions["items"].as_array().unwrap().len(), cluster.revisions);
        for revision in 1..=cluster.revisions {
            let detail = api.get(&format!("{path}/revisions/{revision}")).await.expect(200);
            assert_eq!(detail["template"], cluster.template(number, revision), "{path} {revision}");
        }
    }
}

async fn within_the_limit(cluster: LargeCluster, flags: &[&str]) -> (Started, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = cluster.serve(folder.path()).await;
    let started = start(folder.path(), &kubeconfig, flags).await;
    reads_well(&started, cluster).await;
    started.is_within_the_limit();
    (started, folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_hold_and_what_does_not_fit_is_read_from_the_api_server() {
    for lists in [Lists::Streamed, Lists::OnePage] {
        let cluster = LargeCluster { daemonsets: 40, revisions: 10, template: 40_000, lists };
        let flags = ["--index-memory", "1Mi", "--template-memory", "1Mi"];
        let (started, _folder) = within_the_limit(cluster, &flags).await;
        let templates = started.gauge("rollbackd_index_bytes{part=\"templates\"}").await;
        assert!(templates <= 1_048_576.0 && templates > 100_000.0, "{templates}");
        assert_eq!(started.gauge("rollbackd_index_not_kept{kind=\"controllerrevisions\"}").await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --long"]
async fn long_10_000_revisions_of_20_kib_fit_into_the_limit() {
    for lists in [Lists::Streamed, Lists::OnePage] {
        within_the_limit(LargeCluster { daemonsets: 1_000, revisions: 10, template: 20 * 1024, lists }, &[])
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --long"]
async fn long_50_000_revisions_of_20_kib_fit_into_the_limit() {
    let lists = Lists::Streamed;
    let cluster = LargeCluster { daemonsets: 5_000, revisions: 10, template: 20 * 1024, lists };
    let (started, _folder) = within_the_limit(cluster, &[]).await;
    assert_eq!(started.gauge("rollbackd_index_not_kept{kind=\"controllerrevisions\"}").await, 0.0);
}

/// One who may edit DaemonSets in one namespace: no pod of them ever runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes, and needs a controller of the real size: tests/run --long"]
async fn long_revisions_of_a_megabyte_stop_nothing() {
    let control_plane = ControlPlane::private("memory");
    let client = control_plane.client().await;
    let kubeconfig = control_plane.kubeconfig("admin");
    let folder = tempfile::tempdir().unwrap();
    let watching = start(folder.path(), &kubeconfig, &[]).await;
    let api: kube::Api<k8s_openapi::api::apps::v1::DaemonSet> = kube::Api::namespaced(client, "default");
    for number in 0..14 {
        for revision in 1..=10 {
            let object = huge(number, revision);
            let name = object["metadata"]["name"].as_str().unwrap();
            let params = kube::api::PatchParams::apply("tenant").force();
            let applied = api.patch(name, &params, &kube::api::Patch::Apply(&object)).await.unwrap();
            let generation = applied.metadata.generation;
            until("the controller to record it", async || {
                let status = api.get_status(name).await.unwrap().status.unwrap_or_default();
                if status.observed_generation == generation { Ok(()) } else { Err(status) }
            })
            .await;
        }
    }
    is_served(&watching).await;
    // The first list has it all at once.
    let folder = tempfile::tempdir().unwrap();
    is_served(&start(folder.path(), &kubeconfig, &[]).await).await;
}

fn huge(number: u64, revision: u64) -> Value {
    // Bytes that do not compress: each revision is another megabyte.
    let mut random = fastrand::Rng::with_seed(number * 100 + revision);
    let text: String = std::iter::repeat_with(|| random.alphanumeric()).take(1_300_000).collect();
    let name = format!("huge-{number}");
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "nodeSelector": {"runs": "nowhere"},
                    "containers": [{"name": "main", "image": format!("img:{revision}"), "args": [text]}],
                },
            },
        },
    })
}

async fn is_served(started: &Started) {
    let api = &started.api;
    for number in 0..14 {
        let path = format!("/daemonsets/default/huge-{number}");
        api.shows(&path, "the last revision", |one| one["currentRevision"] == 10).await;
        for revision in [1, 10] {
            let detail = api.get(&format!("{path}/revisions/{revision}")).await.expect(200);
            assert_eq!(detail["template"]["spec"]["containers"][0]["image"], format!("img:{revision}"));
        }
        let back = api.post(&format!("{path}/rollback"), &json!({"dryRun": true})).await;
        assert_eq!(back.expect(200)["to"]["revision"], 9);
    }
    started.is_within_the_limit();
}
