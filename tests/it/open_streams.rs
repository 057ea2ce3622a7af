//! A stream does not outlive its caller's token or right.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{
    controlplane::ControlPlane,
    faults::Fault,
    people::{Right, short_token},
    rollbackd::{Rollbackd, Setup},
    space::Space,
    sse::Events,
};

/// A rollout that never ends: its pods never become ready.
async fn endless() -> Space {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:unready"]).await;
    space
}

/// Waits for the end of a stream that has not said that the rollout ended.
async fn cut_off(events: Events) {
    let events = events.into_all().await;
    assert!(events.iter().all(|event| event.name == "progress"), "{events:?}");
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_stream_ends_when_the_right_is_taken_away() {
    let space = endless().await;
    let token = space.person("viewer", &[Right::View]).await;
    let rollbackd = Rollbackd::guarded().await;
    let api = rollbackd.api.with_token(&token);
    let mut events = api.events(&format!("{}/status", space.path("agent"))).await;
    assert_eq!(events.next().await.unwrap().name, "progress");
    // It goes on over several reviews.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    space.take("viewer", Right::View).await;
    cut_off(events).await;
    api.get(&space.path("agent")).await.problem(403, "forbidden");
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_stream_ends_when_its_token_expires() {
    let space = endless().await;
    space.person("viewer", &[Right::View]).await;
    let mut setup = Setup::guarded(ControlPlane::shared());
    // Only the time in the token ends it.
    setup.timing.reviews.again = Duration::from_secs(3600);
    let rollbackd = Rollbackd::start_with(setup).await;
    let expires = jiff::Timestamp::now().as_second() + 15;
    let token = short_token(ControlPlane::shared(), &space, "viewer", "rollbackd", expires).await;
    let api = rollbackd.api.with_token(&token);
    let events = api.events(&format!("{}/status", space.path("agent"))).await;
    cut_off(events).await;
    assert!(jiff::Timestamp::now().as_second() >= expires, "it ended early");
    // Also what is remembered of the token.
    api.get(&space.path("agent")).await.problem(401, "invalid-token");
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_stream_ends_when_its_account_is_gone() {
    let space = endless().await;
    let token = space.person("viewer", &[]).await;
    space.give_everywhere("viewer", &Right::View.rules()).await;
    let rollbackd = Rollbackd::guarded().await;
    let events = rollbackd.api.with_token(&token).events(&format!("{}/status", space.path("agent"))).await;
    space.kubectl.ok(&["delete", "serviceaccount", "viewer"]).await;
    // Which the API server takes some seconds for: it remembers tokens.
    cut_off(events).await;
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_review_that_can_not_be_asked_is_tried_again_for_a_while() {
    let space = endless().await;
    let token = space.person("viewer", &[Right::View]).await;
    let mut setup = Setup::guarded(ControlPlane::shared());
    setup.timing.reviews.patience = Duration::from_secs(10);
    let rollbackd = Rollbackd::start_with(setup).await;
    let path = format!("{}/status", space.path("agent"));
    let mut events = rollbackd.api.with_token(&token).events(&path).await;
    events.next().await.unwrap();
    let reviews = |request: &http::Request<kube::client::Body>| request.uri().path().ends_with("reviews");
    rollbackd.faults.inject(4, Fault::CutBefore, reviews);
    let ended = tokio::time::timeout(Duration::from_secs(4), async {
        while let Some(event) = events.next().await {
            assert_eq!(event.name, "progress");
        }
    });
    assert!(ended.await.is_err(), "it ended at once");
    rollbackd.faults.inject(usize::MAX, Fault::CutBefore, reviews);
    cut_off(events).await;
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn the_stream_of_ones_own_rollback_needs_no_other_right() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:unready", "img:2"]).await;
    let token = space.person("roller", &[Right::RollBack]).await;
    let rollbackd = Rollbackd::guarded().await;
    let api = rollbackd.api.with_token(&token);
    let path = format!("{}/rollback", space.path("agent"));
    let made = api.post(&path, &json!({"toRevision": 1})).await.expect(202);
    let events = api.events(&format!("/{}", made["links"]["self"].as_str().unwrap())).await;
    // The right to roll back is not what it stands on; the account is.
    space.take("roller", Right::RollBack).await;
    let mut events = events;
    assert_eq!(events.next().await.unwrap().name, "state");
    let more = tokio::time::timeout(Duration::from_secs(2), events.next()).await;
    assert!(more.is_err(), "{more:?}");
    space.kubectl.ok(&["delete", "serviceaccount", "roller"]).await;
    let rest = events.into_all().await;
    assert!(rest.iter().all(|event| event.name == "state"), "{rest:?}");
}
