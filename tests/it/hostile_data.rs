//! ControllerRevisions and DaemonSets that somebody wrote to break whoever reads them.

use serde_json::{Value, json};

use crate::support::{
    api::Api,
    controlplane::ControlPlane,
    history::{by_hand, current, same_history},
    rollbackd::Rollbackd,
    space::{Space, daemonset},
    wait::until,
};

/// A DaemonSet `agent` of which no revision is pruned.
async fn agent(space: &Space) -> (String, Value) {
    let mut object = daemonset("agent", "img:1");
    object["spec"]["revisionHistoryLimit"] = 100.into();
    space.kubectl.create(&object).await;
    space.observed("agent").await;
    let uid = space.kubectl.get("daemonset", "agent").await["metadata"]["uid"].as_str().unwrap().to_owned();
    (uid, space.revisions().await[0]["data"].clone())
}

/// Makes an owned revision whose `data` is sent byte for byte.
async fn plant(space: &Space, uid: &str, name: &str, number: i64, data: &[u8]) {
    let object = by_hand(name, "agent", Some(uid), number, &json!("@")).to_string();
    let (before, after) = object.split_once("\"@\"").expect("a place for the data");
    let bytes = [before.as_bytes(), data, after.as_bytes()].concat();
    space.kubectl.create_raw("controllerrevisions", &bytes).await;
}

/// Makes the controller look at the DaemonSet, which revisions that are owned already do not, until it has raised the
/// current revision to this number: it may know a new revision only later.
async fn sync(space: &Space, api: &Api, raised: i64) {
    let mut looked = 0;
    until("the controller to raise the current revision", async || {
        looked += 1;
        let again = format!("looked-at={looked}");
        space.kubectl.ok(&["annotate", "daemonset", "agent", &again, "--overwrite"]).await;
        // What kubectl may be unable to read.
        let revisions = api.get(&format!("{}/revisions", space.path("agent"))).await.json();
        let newest = current(revisions["items"].as_array().map_or(&[][..], Vec::as_slice));
        if newest == Some(raised) { Ok(()) } else { Err(newest) }
    })
    .await;
}

fn named<'a>(revisions: &'a [Value], name: &str) -> &'a Value {
    revisions.iter().find(|one| one["controllerRevision"] == name).expect("it is listed")
}

/// What cannot be restored is listed with the reason; its template is shown in no form.
async fn not_restorable(space: &Space, api: &Api, revisions: &[Value], name: &str, reason: &str) {
    let one = named(revisions, name);
    assert_eq!((&one["restorable"], &one["notRestorableReason"]), (&json!(false), &json!(reason)), "{name}");
    assert_eq!((&one["current"], &one["images"]), (&json!(false), &json!([])), "{name}");
    let path = format!("{}/revisions/{name}", space.path("agent"));
    assert_eq!(api.get(&path).await.expect(200)["template"], Value::Null);
    let detail = format!("ControllerRevision {name} holds no pod template: {reason}");
    assert_eq!(
        api.get_as(&path, "application/yaml, */*;q=0.1").await.problem(422, "not-restorable")["detail"],
        detail
    );
    let plain = api.get_as(&path, "text/plain").await;
    assert_eq!((plain.status, plain.text), (422, format!("error: {detail}\n")));
}

#[tokio::test]
#[ignore = "needs what only a real API server stores"]
async fn foreign_data_is_listed_as_not_restorable_with_the_reason() {
    let space = Space::new(ControlPlane::shared()).await;
    let (uid, data) = agent(&space).await;
    let rollbackd = Rollbackd::start().await;
    let template = &data["spec"]["template"];
    let with = |pointer: &str, key: &str, value: Value| {
        let mut data = data.clone();
        data.pointer_mut(pointer).unwrap()[key] = value;
        data
    };
    let mut unmarked = data.clone();
    unmarked["spec"]["template"].as_object_mut().unwrap().remove("$patch");
    let cases = [
        ("empty", json!({}), "its data holds no spec.template"),
        ("one", json!({"a": 1}), "its data holds no spec.template"),
        ("null-template", json!({"spec": {"template": null}}), "its data holds no spec.template"),
        ("list-template", json!({"spec": {"template": [template]}}), "its data holds no spec.template"),
        ("unmarked", unmarked, "its spec.template is not marked \"$patch\": \"replace\""),
        (
            "deleting",
            with("/spec/template", "$patch", json!("delete")),
            "its spec.template is not marked \"$patch\": \"replace\"",
        ),
        (
            "beside-spec",
            with("", "metadata", json!({"finalizers": []})),
            "its data holds \"metadata\", which is not part of spec.template",
        ),
        (
            "beside-template",
            with("/spec", "minReadySeconds", json!(9)),
            "its data holds \"spec.minReadySeconds\", which is not part of spec.template",
        ),
        (
            "directive",
            with("/spec/template/spec", "$setElementOrder/containers", json!([])),
            "its spec.template holds the strategic merge directive \"spec.$setElementOrder/containers\"",
        ),
        (
            "hidden-directive",
            with("/spec/template/spec/containers/0", "$patch", json!("delete")),
            "its spec.template holds the strategic merge directive \"spec.containers.$patch\"",
        ),
        (
            "control",
            with("", "a\n\u{1b}[2Jb\u{202e}", json!(1)),
            "its data holds \"a\\n\\u{1b}[2Jb\\u{202e}\", which is not part of spec.template",
        ),
    ];
    for (index, (name, data, _)) in cases.iter().enumerate() {
        let number = i64::try_from(index).unwrap() + 2;
        space.kubectl.create(&by_hand(name, "agent", Some(&uid), number, data)).await;
    }
    let all = cases.len() + 1;
    let raised = i64::try_from(all).unwrap() + 1;
    sync(&space, &rollbackd.api, raised).await;
    let revisions = same_history(&space, &rollbackd.api, "agent", |seen| {
        seen.len() == all && current(seen) == Some(raised)
    })
    .await;
    for (name, _, reason) in &cases {
        not_restorable(&space, &rollbackd.api, &revisions, name, reason).await;
    }
}

/// Data that is odd, but is a pod template: shown, and equal to what it says.
#[tokio::test]
#[ignore = "needs what only a real API server stores"]
async fn a_template_is_compared_by_what_it_says_and_not_by_its_bytes() {
    let space = Space::new(ControlPlane::shared()).await;
    let mut object = daemonset("agent", "img:1");
    let odd = "<a href=\"x\">&amp; 🚀 größe \u{2028}\u{2029} \u{0}";
    object["spec"]["template"]["metadata"]["annotations"] = json!({"odd": odd, "number": "1.0e3"});
    space.kubectl.create(&object).await;
    space.rolled_out("agent").await;
    let uid = space.kubectl.get("daemonset", "agent").await["metadata"]["uid"].as_str().unwrap().to_owned();
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    let data = space.revisions().await[0]["data"].clone();

    // As Kubernetes up to 1.33 wrote it, with a null, a float and other escapes.
    let mut old = data.clone();
    old["spec"]["template"]["metadata"]["creationTimestamp"] = Value::Null;
    old["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(7_777);
    let old =
        old.to_string().replace("7777", "0.1e1").replace('🚀', "\\ud83d\\ude80").replace('<', "\\u003C");
    plant(&space, &uid, "old-bytes", 5, old.as_bytes()).await;
    let mut other = data.clone();
    other["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(1.5);
    plant(&space, &uid, "other", 6, other.to_string().as_bytes()).await;

    // Until the controller has looked, the highest of the equal ones counts as current. It may have looked already.
    let revisions = same_history(&space, api, "agent", |all| all.len() == 3).await;
    assert!([5, 6, 7].map(Some).contains(&current(&revisions)), "{revisions:#?}");
    sync(&space, api, 7).await;
    let revisions = same_history(&space, api, "agent", |all| current(all) == Some(7)).await;
    assert_eq!(revisions.len(), 3);
    assert!(revisions.iter().all(|one| one["restorable"] == true), "{revisions:#?}");
    let path = format!("{}/revisions", space.path("agent"));
    let template =
        async |name: &str| api.get(&format!("{path}/{name}")).await.expect(200)["template"].clone();
    let real = template("7").await;
    assert_eq!(real["metadata"]["annotations"]["odd"], odd);
    assert_eq!(template("old-bytes").await, real);
    assert_eq!(template("other").await["spec"]["terminationGracePeriodSeconds"], 1.5);
    let live = space.kubectl.get("daemonset", "agent").await["spec"]["template"].clone();
    assert_eq!(without_nulls(live), real);
}

/// Kubernetes up to 1.33 writes `creationTimestamp: null`.
fn without_nulls(mut template: Value) -> Value {
    template["metadata"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
    template
}

/// The API server stores a ControllerRevision's `data` and the entries of `managedFields` as they were
/// written. Whoever may write one in any namespace must not be able to end the watch of all.
#[tokio::test]
#[ignore = "needs what only a real API server stores"]
async fn no_object_can_end_the_watch_of_all() {
    let control_plane = ControlPlane::private("hostile");
    let space = Space::new(&control_plane).await;
    let (uid, data) = agent(&space).await;
    let rollbackd = Rollbackd::start_on(&control_plane).await;
    let api = &rollbackd.api;

    let unreadable = "its data can't be read";
    let no_template = "its data holds no spec.template";
    let mut large = data.clone();
    large["spec"]["template"]["metadata"]["annotations"] = json!({"large": "x".repeat(1_000_000)});
    let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels)).into_bytes();
    let cases: Vec<(&str, Vec<u8>, Option<&str>)> = vec![
        ("deep-map", nested(300), Some(unreadable)),
        (
            "deep-list",
            [b"{\"a\":", &*b"[".repeat(5_000), &b"]".repeat(5_000), b"}"].concat(),
            Some(unreadable),
        ),
        ("half-a-pair", br#"{"a":"\ud800"}"#.to_vec(), Some(unreadable)),
        ("not-utf8", b"{\"a\":\"\xff\xfe\xe2\x80\"}".to_vec(), Some(no_template)),
        ("nul", br#"{"a":"\u0000"}"#.to_vec(), Some(no_template)),
        ("spaced", b"{ \"a\"\t:\n 1.50e+3 }".to_vec(), Some(no_template)),
        ("twice", [b"{\"spec\":1,", &data.to_string().as_bytes()[1..]].concat(), None),
        ("large", large.to_string().into_bytes(), None),
    ];
    for (index, (name, data, _)) in cases.iter().enumerate() {
        plant(&space, &uid, name, i64::try_from(index).unwrap() + 2, data).await;
    }
    // Ownership of fields nested as deep, at a time that has no year of four digits.
    let fields = [b"{\"f:spec\":{\"f:template\":".to_vec(), nested(300), b"}}".to_vec()].concat();
    let fields = String::from_utf8(fields).unwrap().replace("\"a\"", "\"f:a\"").replace(":1}", ":{}}");
    let mut object = daemonset("owned", "img:1");
    object["metadata"]["managedFields"] = json!([{
        "manager": "deep", "operation": "Update", "apiVersion": "apps/v1",
        "time": "9999-12-31T23:59:59-14:00", "fieldsType": "FieldsV1", "fieldsV1": "@",
    }]);
    let object = object.to_string().replace("\"@\"", &fields);
    space.kubectl.create_raw("daemonsets", object.as_bytes()).await;

    let raised = i64::try_from(cases.len()).unwrap() + 2;
    sync(&space, api, raised).await;
    let watched = listed(&space, api, "agent", raised).await;
    // kubectl can't read the time.
    let owned = space.path("owned");
    api.shows(&owned, "the revision", |summary| summary["currentRevision"] == 1).await;
    let printed = space.kubectl.run(&["rollout", "history", "daemonset", "owned"]).await;
    assert!(printed.stderr.starts_with("error: parsing time"), "{printed:?}");
    // By a list as well as by a watch.
    let fresh = Rollbackd::start_on(&control_plane).await;
    let read = listed(&space, &fresh.api, "agent", raised).await;
    for (api, revisions) in [(api, &watched), (&fresh.api, &read)] {
        assert_eq!(revisions.len(), cases.len() + 1);
        for (name, _, reason) in &cases {
            match reason {
                Some(reason) => not_restorable(&space, api, revisions, name, reason).await,
                None => assert_eq!(named(revisions, name)["restorable"], true, "{name}"),
            }
        }
    }
    // The watches go on, and a rollback reads past all of it.
    space.set_image("agent", "img:2").await;
    listed(&space, api, "agent", raised + 1).await;
    let body = json!({"toRevision": raised});
    api.post(&format!("{}/rollback", space.path("agent")), &body).await.expect(202);
    listed(&space, api, "agent", raised + 2).await;
}

/// As [`same_history`], of objects that this test could not read itself.
async fn listed(space: &Space, api: &Api, name: &str, newest: i64) -> Vec<Value> {
    until(&format!("revision {newest} of {name}"), async || {
        let path = format!("{}/revisions", space.path(name));
        let list = api.get(&path).await.expect(200);
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let (text, shown) =
            (api.text(&path).await, space.kubectl.ok(&["rollout", "history", "daemonset", name]).await);
        if text == shown && current(&items) == Some(newest) { Ok(items) } else { Err((text, shown)) }
    })
    .await
}

#[tokio::test]
#[ignore = "needs what only a real API server stores"]
async fn what_the_api_server_repeats_of_a_template_it_can_not_read_goes_nowhere() {
    let space = Space::new(ControlPlane::shared()).await;
    let (uid, mut data) = agent(&space).await;
    let template = &mut data["spec"]["template"];
    template["metadata"]["annotations"] = json!({"big": "x".repeat(100_000)});
    template["spec"]["containers"][0]["env"] = json!([{"name": "PASSWORD", "value": "S3CRET"}]);
    template["spec"]["containers"][0]["ports"] = json!([{"containerPort": "http"}]);
    plant(&space, &uid, "agent-odd", 7, data.to_string().as_bytes()).await;
    let rollbackd = Rollbackd::start().await;
    let body = json!({"toRevision": "agent-odd"});
    let refused = until("the planted revision to be adopted", async || {
        let refused = rollbackd.api.post(&format!("{}/rollback", space.path("agent")), &body).await;
        if refused.text.contains("does not have the form") { Ok(refused) } else { Err(refused) }
    })
    .await;
    let problem = refused.problem(422, "refused-by-api-server");
    assert!(problem["detail"].as_str().unwrap().ends_with("unrecognized type: int32"), "{problem}");
    let query = format!("?namespace={}", space.namespace);
    for path in ["/rollbacks", "/audit"] {
        let told = rollbackd.api.get(&format!("{path}{query}")).await;
        assert!(told.text.contains("does not have the form of a DaemonSet's"), "{path}: {told:?}");
        assert!(!told.text.contains("S3CRET") && told.text.len() < 20_000, "{path}: {told:?}");
    }
    assert!(!refused.text.contains("S3CRET"));
}
