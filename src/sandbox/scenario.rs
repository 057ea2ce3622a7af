//! The story that the sandbox starts with: six DaemonSets of two namespaces, months of history.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    advance, daemonset, kubelet,
    world::{Id, Kind, World},
};

const DAY: f64 = 86_400.0;

/// Each DaemonSet, and what about it is worth a look.
pub const STORY: [(&str, &str); 6] = [
    ("monitoring/log-agent", "stuck on a bad image on some of its nodes: roll it back"),
    ("monitoring/node-exporter", "healthy, with a history"),
    ("platform/storage-driver", "in the middle of a slow rollout"),
    ("platform/gpu-driver", "updateStrategy OnDelete, half of it updated by hand"),
    ("platform/ingress-proxy", "managed by Argo CD, which would undo a rollback"),
    ("platform/node-local-dns", "a single revision: nothing to go back to"),
];

/// What happened to a DaemonSet once.
enum Step {
    /// Its image was changed to this tag, for this reason.
    RollOut(&'static str, &'static str),
    /// Somebody deleted the pods of half of the nodes.
    DeleteHalf,
}

/// How many simulated seconds ago what happened to which DaemonSet.
type Past = (f64, &'static str, Step);

#[rustfmt::skip]
const TIMELINE: [Past; 15] = [
    (140.0 * DAY, "monitoring/node-exporter", Step::RollOut("1.9.0", "node-exporter 1.9.0")),
    (120.0 * DAY, "platform/node-local-dns", Step::RollOut("1.25.0", "node-local-dns 1.25.0")),
    (96.0 * DAY, "monitoring/log-agent", Step::RollOut("2.4.0", "log-agent 2.4.0")),
    (71.0 * DAY, "monitoring/node-exporter", Step::RollOut("1.9.1", "node-exporter 1.9.1: security fix")),
    (64.0 * DAY, "platform/storage-driver", Step::RollOut("3.1.0", "storage-driver 3.1.0")),
    (51.0 * DAY, "platform/gpu-driver", Step::RollOut("550.90", "gpu-driver 550.90")),
    (33.0 * DAY, "platform/ingress-proxy", Step::RollOut("0.27.0", "ingress-proxy 0.27.0")),
    (19.0 * DAY, "monitoring/log-agent", Step::RollOut("2.4.1", "log-agent 2.4.1: memory growth fixed (OPS-1387)")),
    (8.0 * DAY, "monitoring/node-exporter", Step::RollOut("1.10.0", "node-exporter 1.10.0: new collectors")),
    (7.9 * DAY, "monitoring/node-exporter", Step::RollOut("1.9.1", "node-exporter 1.9.1: collectors too slow")),
    (5.0 * DAY, "platform/ingress-proxy", Step::RollOut("0.28.1", "ingress-proxy 0.28.1: HTTP/3")),
    (2.0 * DAY, "platform/gpu-driver", Step::RollOut("560.35", "gpu-driver 560.35: drain, then delete")),
    (1.9 * DAY, "platform/gpu-driver", Step::DeleteHalf),
    (25.0 * 60.0, "monitoring/log-agent", Step::RollOut("2.5.0-missing", "log-agent 2.5.0: new backend (OPS-1432)")),
    (65.0, "platform/storage-driver", Step::RollOut("3.2.0", "storage-driver 3.2.0: volume expansion (PLAT-88)")),
];

/// Adds nodes that take any pod.
pub fn add_nodes(world: &mut World, count: usize) {
    for number in 1..=count {
        let name = format!("node-{number}");
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        });
        world.create(Kind::Node, node);
    }
}

/// Lets all of it happen, up to `now`.
pub fn tell(now: Timestamp, nodes: usize, speed: f64) -> World {
    let mut world = World::new(now, speed);
    let ago = |world: &World, seconds| now - world.wait(seconds);
    world = World::new(ago(&world, 200.0 * DAY), speed);
    add_nodes(&mut world, nodes);
    for (seconds, daemonset, step) in &TIMELINE {
        let at = ago(&world, *seconds);
        advance(&mut world, at);
        let (namespace, name) = daemonset.split_once('/').unwrap_or(("default", daemonset));
        let id = Id::new(Kind::DaemonSet, namespace, name);
        match step {
            Step::RollOut(tag, cause) => roll_out(&mut world, &id, tag, cause),
            Step::DeleteHalf => delete_half(&mut world, &id),
        }
        // How long a rollout of the past took shows nowhere, so all nodes take part at once.
        let limit = if *seconds > DAY { json!("100%") } else { json!(pace(name).max_unavailable) };
        limit_unavailable(&mut world, &id, &limit);
    }
    advance(&mut world, now);
    let all: Vec<Id> = world.list(Kind::DaemonSet).map(|(id, _)| id.clone()).collect();
    for id in all {
        limit_unavailable(&mut world, &id, &json!(pace(&id.name).max_unavailable));
    }
    world
}

/// Sets `maxUnavailable` as if it had always been so: no change that anybody made.
fn limit_unavailable(world: &mut World, id: &Id, limit: &Value) {
    world.update(id, |object| {
        if let Some(rolling) = object["spec"]["updateStrategy"].get_mut("rollingUpdate") {
            rolling["maxUnavailable"] = limit.clone();
        }
    });
}

/// Chosen so that a rollout is long enough to be watched.
struct Pace {
    max_unavailable: u32,
    /// Seconds until a pod passes its readiness probe.
    ready_after: u32,
    min_ready_seconds: u32,
}

fn pace(name: &str) -> Pace {
    let (max_unavailable, ready_after, min_ready_seconds) = match name {
        "log-agent" => (2, 7, 5),
        "storage-driver" => (1, 20, 5),
        _ => (1, 2, 0),
    };
    Pace { max_unavailable, ready_after, min_ready_seconds }
}

fn roll_out(world: &mut World, id: &Id, tag: &str, cause: &str) {
    let release = |object: &mut Value| {
        object["metadata"]["annotations"]["kubernetes.io/change-cause"] = json!(cause);
        let image = format!("registry.example/{}:{tag}", id.name);
        object["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
    };
    let mut wanted = manifest(id);
    release(&mut wanted);
    let manager = if id.name == "ingress-proxy" { "argocd-controller" } else { "kubectl-set" };
    if manager == "argocd-controller" {
        let applied = wanted.to_string();
        wanted["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] =
            json!(applied);
    }
    let annotations = wanted["metadata"]["annotations"].clone();
    let change = |object: &mut Value| {
        for (key, value) in annotations.as_object().into_iter().flatten() {
            object["metadata"]["annotations"][key] = value.clone();
        }
        release(object);
    };
    if daemonset::edit(world, id, manager, change).is_none() {
        daemonset::create(world, manager, wanted);
    }
}

fn delete_half(world: &mut World, daemonset: &Id) {
    let pods = world.get(daemonset).map(|daemonset| world.owned(Kind::Pod, &daemonset)).unwrap_or_default();
    for pod in &pods[..pods.len() / 2] {
        kubelet::terminate(world, &Id::of(Kind::Pod, pod));
    }
}

/// The DaemonSet without its image.
fn manifest(id: &Id) -> Value {
    let name = id.name.as_str();
    let Pace { max_unavailable, ready_after, min_ready_seconds } = pace(name);
    let mut manifest = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": id.namespace, "labels": {"app": name}, "annotations": {}},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "minReadySeconds": min_ready_seconds,
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": max_unavailable}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{
                        "name": name,
                        "ports": [{"name": "http", "containerPort": 9_100, "protocol": "TCP"}],
                        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http", "scheme": "HTTP"}, "initialDelaySeconds": ready_after, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
                    }],
                },
            },
        },
    });
    match name {
        "gpu-driver" => manifest["spec"]["updateStrategy"] = json!({"type": "OnDelete"}),
        "ingress-proxy" => {
            manifest["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] =
                json!("ingress:apps/DaemonSet:platform/ingress-proxy");
        }
        _ => {}
    }
    manifest
}

/// What is in it, and what to try, for whoever has just started it at `address`.
#[must_use]
pub fn welcome(address: SocketAddr, colour: bool) -> String {
    let (bold, plain) = if colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let story: String = STORY.iter().map(|(name, what)| format!("  {name:<27}{what}\n")).collect();
    let api = match address.ip().is_unspecified() {
        true => format!("http://127.0.0.1:{}", address.port()),
        false => format!("http://{address}"),
    };
    let log_agent = format!("{api}/daemonsets/monitoring/log-agent");
    format!(
        "{bold}rollbackd sandbox: a simulated cluster{plain}\n\n{story}\n\
         {bold}Try, in another terminal:{plain}\n\n  \
         curl -H 'Accept: text/plain' {log_agent}/revisions\n  \
         curl -H 'Content-Type: application/json' -d '{{\"reason\": \"2.5.0 can not be pulled\"}}' {log_agent}/rollback\n  \
         curl -N -H 'Accept: text/event-stream' {log_agent}/status\n  \
         curl {api}/audit\n\n\
         The API's document: {api}/docs/    Ctrl-C ends it.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(world: &World, name: &str, field: &str) -> i64 {
        let found = world.list(Kind::DaemonSet).find(|(id, _)| id.name == name);
        found.expect("it is in the story").1["status"][field].as_i64().unwrap_or(0)
    }

    #[test]
    fn the_story_is_as_it_is_told() {
        let now: Timestamp = "2026-11-24T03:00:00Z".parse().unwrap();
        for (nodes, speed) in [(5, 1.0), (1, 1.0), (5, 10.0), (40, 0.5)] {
            let world = tell(now, nodes, speed);
            let count = i64::try_from(nodes).unwrap();
            let told = |name, field| status(&world, name, field);
            assert_eq!(world.list(Kind::DaemonSet).count(), STORY.len());
            for (name, _) in STORY {
                let name = name.split_once('/').unwrap().1;
                assert_eq!(told(name, "desiredNumberScheduled"), count, "{name} {nodes} {speed}");
            }
            for healthy in ["node-exporter", "ingress-proxy", "node-local-dns"] {
                assert_eq!(told(healthy, "updatedNumberScheduled"), count);
                assert_eq!(told(healthy, "numberAvailable"), count);
            }
            let stuck = count.min(2);
            assert_eq!(told("log-agent", "updatedNumberScheduled"), stuck, "{nodes} {speed}");
            assert_eq!(told("log-agent", "numberUnavailable"), stuck);
            assert_eq!(told("gpu-driver", "updatedNumberScheduled"), count / 2);
            if nodes > 4 {
                let updated = told("storage-driver", "updatedNumberScheduled");
                assert!((1..count).contains(&updated), "{updated}");
            }
            let numbers = |name: &str| {
                let revisions = world.list(Kind::ControllerRevision);
                let mine = revisions.filter(|(_, it)| it["metadata"]["ownerReferences"][0]["name"] == name);
                let mut numbers: Vec<_> = mine.map(|(_, it)| it["revision"].as_i64().unwrap()).collect();
                numbers.sort_unstable();
                numbers
            };
            assert_eq!(numbers("log-agent"), [1, 2, 3]);
            assert_eq!(numbers("node-exporter"), [1, 3, 4]);
            assert_eq!(numbers("node-local-dns"), [1]);
            let late = world.list(Kind::Pod).all(|(_, pod)| {
                pod["metadata"]["creationTimestamp"].as_str() <= Some("2026-11-24T03:00:00Z")
            });
            assert!(late, "a pod is from the future");
        }
    }
}
