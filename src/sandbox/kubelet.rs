//! The nodes' part: pods start, get ready, crash, and terminate. How, their images' tags say.

use serde_json::{Value, json};

use super::world::{Due, Id, PodStep, World};

/// Seconds until the first pod of a node has pulled its images; others take up to twice as long.
const PULL: f64 = 2.0;
/// Seconds that a pod takes to terminate.
const TERMINATE: f64 = 1.0;
/// Seconds until a container of an image `…:slow` gets ready.
const SLOW: f64 = 4.0;
/// Seconds that a container of an image `…:crash` runs, and until it is started again.
const CRASH: (f64, f64) = (0.5, 10.0);
/// Seconds from the first failed pull until the kubelet backs off.
const BACK_OFF: f64 = 2.0;

/// What becomes of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Behaviour {
    Ready,
    Slow,
    Unready,
    Crash,
    Missing,
}

/// By the tag of the image, as on the real control plane of the tests (`tests/controlplane/stages`).
fn behaviour(image: &str) -> Behaviour {
    let image = image.split('@').next().unwrap_or_default();
    let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
    match tag.rsplit('-').next().unwrap_or_default() {
        "missing" => Behaviour::Missing,
        "crash" => Behaviour::Crash,
        "unready" => Behaviour::Unready,
        "slow" => Behaviour::Slow,
        _ => Behaviour::Ready,
    }
}

/// A pod has been bound to its node.
pub fn take_in(world: &mut World, pod: &Id) {
    let spread = f64::from(pod.name.bytes().fold(0u8, u8::wrapping_add)) / 256.0;
    world.plan(PULL * (1.0 + spread), Due::Pod(pod.clone(), PodStep::Start));
}

/// Somebody deletes a pod.
pub fn terminate(world: &mut World, pod: &Id) {
    let now = super::world::whole_seconds(world.now());
    world.update(pod, |pod| pod["metadata"]["deletionTimestamp"] = json!(now));
    world.plan(TERMINATE, Due::Pod(pod.clone(), PodStep::Gone));
}

/// Takes a pod one step on.
pub fn act(world: &mut World, id: &Id, step: PodStep) {
    let Some(pod) = world.get(id) else { return };
    let terminating = !pod["metadata"]["deletionTimestamp"].is_null();
    match step {
        PodStep::Gone => world.remove(id),
        _ if terminating => {}
        PodStep::Start => start(world, id, &pod),
        PodStep::Ready => set_ready(world, id),
        PodStep::BackOff => wait_for(world, id, "ImagePullBackOff", 0),
        PodStep::Restart => {
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(0);
            wait_for(world, id, "CrashLoopBackOff", restarts + 1);
            world.plan(CRASH.1, Due::Pod(id.clone(), PodStep::Restart));
        }
    }
}

fn start(world: &mut World, id: &Id, pod: &Value) {
    let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let image = |container: &Value| behaviour(container["image"].as_str().unwrap_or_default());
    let probe = |container: &Value| container["readinessProbe"]["initialDelaySeconds"].as_f64();
    let delay = containers.iter().filter_map(probe).fold(0.0, f64::max);
    let (delay, step) = match containers.iter().map(image).max().unwrap_or(Behaviour::Ready) {
        Behaviour::Missing => {
            wait_for(world, id, "ErrImagePull", 0);
            (BACK_OFF, PodStep::BackOff)
        }
        Behaviour::Crash => (CRASH.0, PodStep::Restart),
        Behaviour::Unready => return run(world, id),
        Behaviour::Slow => (delay + SLOW, PodStep::Ready),
        Behaviour::Ready => (delay, PodStep::Ready),
    };
    if !matches!(step, PodStep::BackOff) {
        run(world, id);
    }
    world.plan(delay, Due::Pod(id.clone(), step));
}

fn run(world: &mut World, id: &Id) {
    set_status(world, id, "Running", &json!({"running": {}}), 0);
}

fn wait_for(world: &mut World, id: &Id, reason: &str, restarts: i64) {
    let phase = if restarts == 0 { "Pending" } else { "Running" };
    set_status(world, id, phase, &json!({"waiting": {"reason": reason}}), restarts);
}

fn set_status(world: &mut World, id: &Id, phase: &str, state: &Value, restarts: i64) {
    world.update(id, |pod| {
        let containers = pod["spec"]["containers"].as_array().cloned().unwrap_or_default();
        let status = |container: Value| {
            json!({
                "name": container["name"], "image": container["image"], "ready": false,
                "restartCount": restarts, "state": state,
            })
        };
        pod["status"] = json!({
            "phase": phase,
            "containerStatuses": containers.into_iter().map(status).collect::<Vec<_>>(),
        });
    });
}

fn set_ready(world: &mut World, id: &Id) {
    let now = world.now().to_string();
    world.update(id, |pod| {
        for status in pod["status"]["containerStatuses"].as_array_mut().into_iter().flatten() {
            status["ready"] = json!(true);
        }
        pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True", "lastTransitionTime": now}]);
    });
}
