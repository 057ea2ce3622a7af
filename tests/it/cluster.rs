//! What rollbackd relies on in a cluster. The same of the sandbox as of the real one: what holds only there
//! would be no test of anything.

use http::Request;
use kube::Client;
use serde_json::{Value, json};

use crate::support::{
    controlplane::{ControlPlane, NODES},
    following::Recorder,
    space::{Space, daemonset},
    wait::until,
};

/// A client, and the DaemonSet `agent` that it writes to, with all its pods.
async fn agent() -> (Space, Client, Value) {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1"]).await;
    space.rolled_out("agent").await;
    let client = ControlPlane::shared().client().await;
    let live = get(&client, &path(&space, "daemonsets/agent")).await.unwrap();
    (space, client, live)
}

fn path(space: &Space, rest: &str) -> String {
    format!("/apis/apps/v1/namespaces/{}/{rest}", space.namespace)
}

type Answer = Result<Value, Box<kube::core::Status>>;

async fn send(client: &Client, request: http::request::Builder, body: Value) -> Answer {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    match client.request(request.body(body).unwrap()).await {
        Ok(value) => Ok(value),
        Err(kube::Error::Api(status)) => Err(status),
        Err(error) => panic!("{error}"),
    }
}

async fn get(client: &Client, path: &str) -> Answer {
    send(client, Request::get(path), Value::Null).await
}

async fn patch(client: &Client, space: &Space, name: &str, flags: &str, body: Value) -> Answer {
    let path = path(space, &format!("daemonsets/{name}?fieldManager=rollbackd{flags}"));
    let request = Request::patch(path).header("content-type", "application/strategic-merge-patch+json");
    send(client, request, body).await
}

/// A patch as rollbackd sends it.
fn body(live: &Value, template: Option<&Value>) -> Value {
    let mut body = json!({"metadata": {
        "uid": live["metadata"]["uid"],
        "resourceVersion": live["metadata"]["resourceVersion"],
        "annotations": {"rollbackd.dev/rollback": "id"},
    }});
    if let Some(template) = template {
        body["spec"]["template"] = template.clone();
        body["spec"]["template"]["$patch"] = json!("replace");
    }
    body
}

fn with_image(live: &Value, image: &str) -> Value {
    let mut template = live["spec"]["template"].clone();
    template["spec"]["containers"][0]["image"] = json!(image);
    template
}

#[tokio::test]
async fn a_patch_holds_to_its_preconditions() {
    let (space, client, live) = agent().await;
    let template = with_image(&live, "img:2");
    let with = |key: &str, value: &str| {
        let mut body = body(&live, Some(&template));
        body["metadata"][key] = json!(value);
        body
    };
    let old = with("resourceVersion", "1");
    let mut both = old.clone();
    both["metadata"]["uid"] = json!("00000000-0000-4000-8000-000000000000");
    for body in [old, both] {
        let refused = patch(&client, &space, "agent", "", body).await.unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (409, "Conflict"));
        let words = "Operation cannot be fulfilled on daemonsets.apps \"agent\": the object has been modified; please apply your changes to the latest version and try again";
        assert_eq!(refused.message, words);
    }
    let another = with("uid", "00000000-0000-4000-8000-000000000000");
    let refused = patch(&client, &space, "agent", "", another).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
    assert_eq!(refused.details.as_ref().unwrap().causes[0].field, "metadata.uid");

    let nobody = patch(&client, &space, "nobody", "", body(&live, Some(&template))).await.unwrap_err();
    assert_eq!((nobody.code, nobody.reason.as_str()), (404, "NotFound"));
    assert_eq!(nobody.message, "daemonsets.apps \"nobody\" not found");
    let read = get(&client, &path(&space, "daemonsets/nobody")).await.unwrap_err();
    assert_eq!((read.code, read.message), (404, nobody.message));

    let mut foreign = template.clone();
    foreign["metadata"]["labels"] = json!({"app": "other"});
    let refused = patch(&client, &space, "agent", "", body(&live, Some(&foreign))).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
    let words = "`selector` does not match template `labels`";
    assert!(refused.message.contains(words), "{}", refused.message);
    assert_eq!(get(&client, &path(&space, "daemonsets/agent")).await.unwrap(), live);
}

#[tokio::test]
async fn a_patch_moves_the_generation_only_if_it_changes_the_spec() {
    let (space, client, live) = agent().await;
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    let generation = |object: &Value| object["metadata"]["generation"].as_i64().unwrap();
    let template = with_image(&live, "img:2");

    let tried = patch(&client, &space, "agent", "&dryRun=All", body(&live, Some(&template))).await.unwrap();
    assert_eq!((generation(&tried), version(&tried)), (generation(&live) + 1, version(&live)));
    assert_eq!(tried["spec"]["template"]["spec"]["containers"][0]["image"], "img:2");
    assert_eq!(get(&client, &path(&space, "daemonsets/agent")).await.unwrap(), live);

    let marked = patch(&client, &space, "agent", "", body(&live, None)).await.unwrap();
    assert_eq!(generation(&marked), generation(&live));
    assert_ne!(version(&marked), version(&live));
    // What is there already changes nothing, not even the version.
    let again = patch(&client, &space, "agent", "", body(&marked, Some(&live["spec"]["template"]))).await;
    assert_eq!(version(&again.unwrap()), version(&marked));

    let changed = patch(&client, &space, "agent", "", body(&marked, Some(&template))).await.unwrap();
    assert_eq!(generation(&changed), generation(&live) + 1);
    let annotations = &changed["metadata"]["annotations"];
    assert_eq!(annotations["rollbackd.dev/rollback"], "id");
    assert_eq!(annotations["deprecated.daemonset.template.generation"], "2");
    let managers = changed["metadata"]["managedFields"].as_array().unwrap();
    let ours = managers.iter().find(|entry| entry["manager"] == "rollbackd").expect("it is named");
    assert_eq!(ours["operation"], "Update");
    assert!(ours["fieldsV1"]["f:spec"]["f:template"].is_object(), "{ours}");
}

#[tokio::test]
async fn a_list_comes_in_pages_and_a_watch_goes_on_from_it() {
    let space = Space::new(ControlPlane::shared()).await;
    let client = ControlPlane::shared().client().await;
    for name in ["a", "b", "c"] {
        space.kubectl.create(&daemonset(name, "img:1")).await;
    }
    let names = |list: &Value| {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let first = get(&client, &path(&space, "daemonsets?limit=2")).await.unwrap();
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["kind"], "DaemonSetList");
    assert_eq!(first["metadata"]["remainingItemCount"], 1);
    let token: String =
        form_urlencoded::byte_serialize(first["metadata"]["continue"].as_str().unwrap().as_bytes()).collect();
    let second = get(&client, &path(&space, &format!("daemonsets?limit=2&continue={token}"))).await.unwrap();
    assert_eq!(names(&second), ["c"]);
    assert!(second["metadata"]["continue"].as_str().unwrap_or_default().is_empty());
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let rubbish = get(&client, &path(&space, "daemonsets?limit=2&continue=rubbish")).await.unwrap_err();
    assert_eq!(rubbish.code, 400);

    let mine = "controllerrevisions?labelSelector=app%20in%20(b,x),!old";
    until("the revision of b", async || {
        let list = get(&client, &path(&space, mine)).await.unwrap();
        let found = names(&list);
        if found.len() == 1 && found[0].starts_with("b-") { Ok(()) } else { Err(found) }
    })
    .await;

    let api: kube::Api<kube::core::DynamicObject> = kube::Api::namespaced_with(
        client.clone(),
        &space.namespace,
        &kube::core::ApiResource::erase::<k8s_openapi::api::apps::v1::DaemonSet>(&()),
    );
    // Versions are kept for a while only.
    let now = get(&client, &path(&space, "daemonsets?limit=1")).await.unwrap();
    let version = now["metadata"]["resourceVersion"].as_str().unwrap();
    let params = kube::api::WatchParams::default().timeout(60);
    let events = api.watch(&params, version).await.unwrap();
    space.kubectl.ok(&["delete", "daemonset", "b"]).await;
    futures_util::pin_mut!(events);
    let mut before: u64 = version.parse().unwrap();
    loop {
        use futures_util::TryStreamExt;
        use kube::core::WatchEvent;
        let event = events.try_next().await.unwrap().expect("the watch goes on");
        let object = match &event {
            WatchEvent::Added(object) => panic!("{object:?} was there already"),
            WatchEvent::Modified(object) | WatchEvent::Deleted(object) => object,
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => panic!("{status:?}"),
        };
        let now: u64 = object.metadata.resource_version.as_ref().unwrap().parse().unwrap();
        assert!(now > before, "{now} after {before}");
        before = now;
        if matches!(event, WatchEvent::Deleted(_)) {
            assert_eq!(object.metadata.name.as_deref(), Some("b"));
            break;
        }
    }
}

/// Reference §1.9: what is written of a rollout, in which order.
#[tokio::test]
async fn a_rollout_is_written_down_one_step_behind_what_is_done() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1"]).await;
    space.rolled_out("agent").await;
    let recorder = Recorder::start(&space, "agent").await;
    space.set_image("agent", "img:2").await;
    space.rolled_out("agent").await;
    let end = space.kubectl.get("daemonset", "agent").await;
    let versions = recorder.up_to(end["metadata"]["resourceVersion"].as_str().unwrap()).await;

    let nodes = i64::try_from(NODES).unwrap();
    let number = |version: &Value, field: &str| version["status"][field].as_i64().unwrap_or_default();
    let counts = |version: &Value| {
        ["observedGeneration", "updatedNumberScheduled", "numberReady", "numberAvailable"]
            .map(|field| number(version, field))
    };
    let changed = versions.iter().position(|it| it["metadata"]["generation"] == 2).expect("the change");
    let rollout = &versions[changed..];
    // The counters of before; then, the pods of before; at the end, all new.
    assert_eq!(counts(&rollout[0]), [1, nodes, nodes, nodes]);
    let [observed, new, ready, available] = counts(&rollout[1]);
    assert_eq!((observed, new), (2, 0));
    // The first one may have gone between its deletion and the count.
    assert!(
        [ready, available].iter().all(|old| (nodes - 1..=nodes).contains(old)),
        "{}",
        rollout[1]["status"]
    );
    assert_eq!(counts(rollout.last().unwrap()), [2, nodes, nodes, nodes]);
    let mut updated = 0;
    for version in &rollout[1..] {
        let now = number(version, "updatedNumberScheduled");
        assert!((updated..=updated + 1).contains(&now), "{}", version["status"]);
        updated = now;
        assert!(number(version, "numberUnavailable") <= 1, "{}", version["status"]);
        assert_eq!(number(version, "desiredNumberScheduled"), nodes);
        let available = number(version, "numberAvailable");
        assert_eq!(available + number(version, "numberUnavailable"), nodes);
        // Zeros are left out.
        for field in ["updatedNumberScheduled", "numberUnavailable"] {
            assert_ne!(version["status"][field], json!(0));
        }
    }
}
