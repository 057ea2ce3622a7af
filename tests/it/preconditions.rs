//! `If-Match`: nothing is done to a DaemonSet that is not what the caller has seen.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    errors::named,
    support::{
        api::{Answer, Api},
        rollbackd::agent,
    },
};

async fn post_if(api: &Api, path: &str, tags: &[&str], body: &Value) -> Answer {
    let request = api.request(Method::POST, path).json(body);
    api.send(tags.iter().fold(request, |request, tag| request.header("if-match", *tag))).await
}

#[tokio::test]
async fn a_dry_runs_tag_holds_until_the_spec_is_changed() {
    let (space, rollbackd, path) = agent().await;
    let api = &rollbackd.api;
    let preview = api.post(&path, &json!({"toRevision": 1, "dryRun": true})).await.expect(200);
    let tag = preview["etag"].as_str().unwrap();
    // A status, a label and an annotation are not what a rollback is about.
    space.kubectl.ok(&["label", "daemonset", "agent", "theirs=kept"]).await;
    space.rolled_out("agent").await;
    let again = post_if(api, &path, &[tag], &json!({"toRevision": 1, "dryRun": true})).await;
    again.expect(200);
    let made = post_if(api, &path, &[tag], &json!({"toRevision": 1})).await.expect(202);
    // Sent again by a caller who has not heard, or by another who has seen the same: it is not made twice.
    let late = post_if(api, &path, &[tag], &json!({"toRevision": 2})).await;
    let problem = late.problem(412, "precondition-failed");
    assert_eq!(named(&problem), "header If-Match");
    let now = format!("it is {} at generation {} now", made["uid"].as_str().unwrap(), made["generation"]);
    assert!(problem["detail"].as_str().unwrap().ends_with(&now), "{problem}");
    post_if(api, &path, &[tag], &json!({"dryRun": true})).await.problem(412, "precondition-failed");
    // The rollback's own tag names the generation that it made.
    let ended = api.rollback_in(made["id"].as_str().unwrap(), &["succeeded"]).await;
    let back = post_if(api, &path, &[ended["etag"].as_str().unwrap()], &json!({"toRevision": 3})).await;
    back.expect(202);
    let refused = api.actions(&space.namespace).await;
    assert_eq!(refused.iter().filter(|action| *action == "rollback.refused").count(), 2);
}

#[tokio::test]
async fn tags_are_a_star_or_a_list_of_which_one_must_match_strongly() {
    let (space, rollbackd, path) = agent().await;
    let api = &rollbackd.api;
    let summary = api.get(&space.path("agent")).await;
    let tag = summary.header("etag");
    let same_version = format!("{}.another\"", &tag[..tag.rfind('.').unwrap()]);
    let dry_run = json!({"dryRun": true});
    let weak = format!("W/{tag}");
    let list = format!("\"x\", {tag}");
    for tags in [&["*"][..], &[tag], &[&same_version], &[&list], &["\"x\"", tag]] {
        post_if(api, &path, tags, &dry_run).await.expect(200);
    }
    let other = tag.replace('.', "0.");
    for tags in [&[weak.as_str()][..], &["\"x\""], &["\"\""], &[&other]] {
        post_if(api, &path, tags, &dry_run).await.problem(412, "precondition-failed");
    }
    for tags in [&[""][..], &["x"], &["\"x"], &["*, \"x\""], &["\"x\" \"y\""]] {
        let problem = post_if(api, &path, tags, &dry_run).await.problem(400, "invalid-request");
        assert_eq!(named(&problem), "header If-Match", "{tags:?}");
    }
    let nobody = format!("{}/rollback", space.path("nobody"));
    post_if(api, &nobody, &["*"], &dry_run).await.problem(404, "daemonset-not-found");
}

#[tokio::test]
async fn a_spec_changed_between_the_plan_and_the_patch_fails_the_precondition() {
    let (space, rollbackd, path) = agent().await;
    let api = &rollbackd.api;
    let preview = api.post(&path, &json!({"toRevision": 1, "dryRun": true})).await.expect(200);
    let (kubectl, mut changed) = (space.kubectl.clone(), false);
    rollbackd.faults.before(move |request| {
        let first = crate::support::faults::patch(request) && !std::mem::replace(&mut changed, true);
        let kubectl = kubectl.clone();
        first.then(|| -> futures_util::future::BoxFuture<'static, ()> {
            Box::pin(async move {
                let patch = r#"{"spec":{"minReadySeconds":1}}"#;
                kubectl.ok(&["patch", "daemonset", "agent", "-p", patch]).await;
            })
        })
    });
    let tag = preview["etag"].as_str().unwrap();
    let answer = post_if(api, &path, &[tag], &json!({"toRevision": 1})).await;
    answer.problem(412, "precondition-failed");
    assert_eq!(api.actions(&space.namespace).await.last().unwrap(), "rollback.failed");
    let daemonset = space.observed("agent").await;
    assert_eq!(daemonset["spec"]["template"]["spec"]["containers"][0]["image"], "img:3");
}
