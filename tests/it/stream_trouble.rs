//! Streams when something goes wrong: listeners that go away and come back, a DaemonSet that is deleted or
//! changed again, a watch that lags, an API server that is frozen or killed.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::{
    controlplane::ControlPlane,
    faults::{self, Fault},
    rollbackd::{Rollbackd, Setup},
    space::{Space, updated},
    sse::Event,
    wait::until,
};

/// A rollout that stands still on a bad image, and the path of its status.
async fn stuck() -> (Space, Rollbackd, String) {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    space.agent(&["img:1"]).await;
    space.set_image("agent", "x:unready").await;
    let path = format!("{}/status", space.path("agent"));
    rollbackd.api.shows(&path, "the bad image", updated(2, 1)).await;
    (space, rollbackd, path)
}

fn last(events: &[Event]) -> (&str, &Value) {
    let last = events.last().expect("an event");
    (last.name.as_str(), &last.data["generation"])
}

#[tokio::test]
async fn who_comes_back_goes_on_and_after_the_end_is_told_to_stop() {
    let (space, rollbackd, path) = stuck().await;
    let api = &rollbackd.api;
    let mut events = api.events(&path).await;
    let first = events.next().await.unwrap();
    drop(events);

    // Nothing has happened since: the state now is told all the same.
    let mut again = api.events_after(&path, Some(&first.id)).await;
    assert_eq!(again.next().await.unwrap().id, first.id);
    space.set_image("agent", "img:2").await;
    let told = again.into_all().await;
    assert_eq!(last(&told), ("complete", &json!(3)));
    let end = &told.last().unwrap().id;
    assert!(end.ends_with(".complete"), "{end}");

    let stream = |last: &str| {
        let request = api.request(reqwest::Method::GET, &path).header("accept", "text/event-stream");
        api.send(request.header("last-event-id", last.to_owned()))
    };
    let over = stream(end).await;
    assert_eq!((over.status, over.text.as_str()), (204, ""));
    // An id of another life, or none at all, is no reason to stop.
    for unknown in [first.id.as_str(), "", "x", "a.b.c.complete", &end.replace(".3.", ".2.")] {
        let told = stream(unknown).await;
        assert_eq!(told.status, 200, "{unknown}");
        assert!(told.text.contains("\nevent: complete\n"), "{unknown}: {}", told.text);
    }
    // The next rollout is news.
    space.set_image("agent", "img:3").await;
    api.shows(&path, "the next image", |status| status["observedGeneration"] == 4).await;
    assert_eq!(last(&api.events_after(&path, Some(end)).await.into_all().await), ("complete", &json!(4)));
}

#[tokio::test]
async fn a_listener_who_reads_nothing_for_a_while_misses_nothing_that_counts() {
    let (space, rollbackd, path) = stuck().await;
    let mut sleeper = rollbackd.api.events(&path).await;
    let awake = tokio::spawn(rollbackd.api.events(&path).await.into_all());
    for turn in 0..70 {
        let patch = json!({"spec": {"minReadySeconds": turn % 2}});
        space.patch("agent", &patch).await;
    }
    space.set_image("agent", "img:2").await;
    let awake = awake.await.expect("it does not panic");
    let first = sleeper.next().await.expect("the state at the beginning");
    let slept = sleeper.into_all().await;
    assert_eq!(first.id, awake[0].id);
    assert_eq!(last(&slept), last(&awake));
    let sequence = |event: &Event| event.id.split('.').nth(2).unwrap().parse::<u64>().unwrap();
    assert!(slept.is_sorted_by_key(sequence), "{slept:#?}");
}

#[tokio::test]
async fn a_deletion_ends_the_stream_and_one_of_the_same_name_is_not_followed() {
    let (space, rollbackd, path) = stuck().await;
    let events = rollbackd.api.events(&path).await;
    space.kubectl.ok(&["delete", "daemonset", "agent"]).await;
    space.recorded(&["img:7"]).await;
    let told = events.into_all().await;
    let end = told.last().unwrap();
    assert_eq!((end.name.as_str(), &end.data["message"]), ("deleted", &json!("object has been deleted")));
    assert_eq!(end.data["uid"], told[0].data["uid"]);
    let now = rollbackd.api.shows(&path, "the new one", |status| status["phase"] == "complete").await;
    assert_ne!(now["uid"], end.data["uid"]);
}

/// K: kubectl ignores `--revision` and follows whatever comes.
#[tokio::test]
async fn who_asks_for_one_generation_is_told_that_it_was_superseded() {
    let (space, rollbackd, path) = stuck().await;
    let pinned = rollbackd.api.events(&format!("{path}?generation=2")).await;
    let any = rollbackd.api.events(&path).await;
    // Not a change of the template: still the same rollout.
    space.patch("agent", &json!({"spec": {"minReadySeconds": 1}})).await;
    rollbackd.api.shows(&path, "the next generation", |status| status["observedGeneration"] == 3).await;
    space.set_image("agent", "img:2").await;
    let told = pinned.into_all().await;
    assert_eq!(last(&told), ("superseded", &json!(4)));
    assert_eq!(
        told.last().unwrap().data["message"],
        "generation 2 is superseded: the pod template was changed again"
    );
    assert!(told.iter().any(|event| event.name == "progress" && event.data["generation"] == 3));
    assert_eq!(last(&any.into_all().await), ("complete", &json!(4)));

    // Who polls is told the same: what is rolled out is not what they asked for.
    let words = told.last().unwrap().data["message"].as_str().unwrap();
    let link = format!("{path}?generation=2");
    let now = rollbackd.api.get(&link).await.expect(200);
    assert_eq!((&now["superseded"], &now["message"]), (&json!(true), &json!(words)));
    assert_eq!(rollbackd.api.text(&link).await, format!("{words}\n"));
    assert_eq!(rollbackd.api.get(&path).await.expect(200).get("superseded"), None);
}

#[tokio::test]
async fn after_a_rollback_nobody_is_told_of_the_old_template_however_late_the_watch_is() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let (open, held) = watch::channel(false);
    let mut setup = Setup::new(ControlPlane::shared());
    setup.timing.limits.generation = Duration::from_millis(500);
    setup.faults.no_streamed_lists();
    setup.faults.inject(usize::MAX, Fault::HeldBody(held), faults::watch("daemonsets"));
    let rollbackd = Rollbackd::start_with(setup).await;
    let api = &rollbackd.api;
    let path = space.path("agent");
    let made = api.post(&format!("{path}/rollback"), &json!({"toRevision": 1})).await.expect(202);
    let link = format!("/{}", made["links"]["status"].as_str().unwrap());
    assert!(link.ends_with("?generation=3"), "{link}");

    // The watch still shows generation 2: to say so would be to say that the old template is rolled out.
    for (path, accept) in [
        (link.as_str(), "application/json"),
        (&link, "text/event-stream"),
        (&link, "text/plain"),
        (&format!("{path}/status"), "application/json"),
    ] {
        let answer = api.get_as(path, accept).await;
        assert_eq!(answer.status, 503, "{path} {accept}: {answer:?}");
        assert_eq!(answer.header("retry-after"), "1");
    }
    // Who waits is answered as soon as the watch shows it.
    rollbackd.faults.clear();
    let waiting = until("the new generation", async || {
        let answer = api.get(&link).await;
        if answer.status == 200 { Ok(answer) } else { Err(answer) }
    });
    let (answer, _) = tokio::join!(waiting, async { open.send_replace(true) });
    assert_eq!(answer.json()["generation"], 3);
    let told = api.events(&link).await.into_all().await;
    assert!(told.iter().all(|event| event.data["generation"] == 3), "{told:#?}");
    assert_eq!(last(&told), ("complete", &json!(3)));
    // What nobody has made is not waited for.
    let unknown = api.get(&format!("{path}/status?generation=99")).await;
    assert_eq!(unknown.problem(422, "unknown-generation")["errors"][0]["parameter"], "generation");
}

#[tokio::test]
async fn a_watch_that_breaks_leaves_no_gap() {
    let space = Space::new(ControlPlane::shared()).await;
    let cut = tokio_util::sync::CancellationToken::new();
    let setup = Setup::new(ControlPlane::shared());
    setup.faults.no_streamed_lists();
    setup.faults.inject(1, Fault::CutBody(cut.clone()), faults::watch("daemonsets"));
    // Busy, then gone from its memory: the version from which the watch would go on.
    const BUSY: &str = "Too many requests, please try again later.";
    const GONE: &str = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","message":"too old resource version","code":410}"#;
    let rollbackd = Rollbackd::start_with(setup).await;
    space.agent(&["img:1"]).await;
    space.set_image("agent", "x:unready").await;
    let path = format!("{}/status", space.path("agent"));
    rollbackd.api.shows(&path, "the bad image", updated(2, 1)).await;
    let events = rollbackd.api.events(&path).await;

    let answer = |status, headers, body| Fault::Answer { status, headers, body };
    rollbackd.faults.inject(1, answer(429, vec![("retry-after", "1")], BUSY), faults::watch("daemonsets"));
    rollbackd.faults.inject(1, answer(410, vec![], GONE), faults::watch("daemonsets"));
    rollbackd.faults.inject(1, Fault::CutBefore, faults::list("daemonsets"));
    cut.cancel();
    space.set_image("agent", "img:2").await;
    space.rolled_out("agent").await;
    let told = events.into_all().await;
    assert_eq!(last(&told), ("complete", &json!(3)));
    assert!(told.iter().all(|event| event.name != "deleted"), "{told:#?}");
}

#[tokio::test]
async fn a_silent_stream_shows_that_it_lives() {
    let space = Space::new(ControlPlane::shared()).await;
    let mut setup = Setup::new(ControlPlane::shared());
    setup.timing.limits.heartbeat = Duration::from_millis(100);
    let rollbackd = Rollbackd::start_with(setup).await;
    space.agent(&["img:1"]).await;
    space.set_image("agent", "x:unready").await;
    let path = format!("{}/status", space.path("agent"));
    rollbackd.api.shows(&path, "the bad image", updated(2, 1)).await;
    let mut events = rollbackd.api.events(&path).await;
    events.next().await.expect("the state now");
    for _ in 0..3 {
        events.comment().await;
    }
}

/// The watch stays open and silent while the API server is frozen, and breaks when it is killed.
#[tokio::test]
#[ignore = "freezes and kills the API server"]
async fn a_frozen_or_killed_api_server_is_told_and_then_the_rollout_goes_on() {
    let control_plane = ControlPlane::private("stream-trouble");
    let space = Space::new(&control_plane).await;
    let mut setup = Setup::new(&control_plane);
    setup.timing.api = Duration::from_secs(2);
    setup.timing.probe = Duration::from_millis(500);
    setup.timing.limits.stale_after = Duration::from_secs(4);
    let rollbackd = Rollbackd::start_with(setup).await;
    let api = &rollbackd.api;
    let path = format!("{}/status", space.path("agent"));
    space.agent(&["img:1"]).await;

    for (number, kill) in [(2, false), (3, true)] {
        space.set_image("agent", "x:unready").await;
        api.shows(&path, "the bad image", updated(2 * (number - 1), 1)).await;
        let mut events = api.events(&path).await;
        control_plane.signal("kube-apiserver", if kill { "KILL" } else { "STOP" });
        let told = events.through("the watch to be called stale", |event| event.name == "stale").await;
        assert_eq!(told.last().unwrap().data, json!({"stale": true}));
        let now = api.shows(&path, "what it knew", |status| status["stale"] == true).await;
        assert_eq!(now["phase"], "updating");
        // Who joins now is told first.
        assert_eq!(api.events(&path).await.next().await.unwrap().name, "stale");
        if kill {
            control_plane.restart("kube-apiserver");
        } else {
            control_plane.signal("kube-apiserver", "CONT");
        }
        let told = events.through("the watch to be back", |event| event.name == "stale").await;
        assert_eq!(told.last().unwrap().data, json!({"stale": false}));
        space.set_image("agent", &format!("img:{number}")).await;
        let told = events.into_all().await;
        assert_eq!(told.last().unwrap().name, "complete");
        assert!(told.iter().all(|event| event.name != "deleted"), "{told:#?}");
        // The other watches come back in their own time.
        api.shows(&path, "every watch to be back", |status| status["stale"].is_null()).await;
    }
}
