//! What callers may do: by name, across namespaces, their own, in time, and what is recorded of a no.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    api::Api,
    controlplane::ControlPlane,
    faults::{Fault, Faults},
    people::Right,
    rollbackd::{Rollbackd, Setup},
    space::{Space, daemonset},
    wait::until,
};

async fn space() -> Space {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    space
}

fn rollback(space: &Space) -> String {
    format!("{}/rollback", space.path("agent"))
}

/// How often the cluster was asked whose token it is, and what somebody may do.
pub fn reviews(faults: &Faults) -> (usize, usize) {
    let requests = faults.requests();
    let asked = |what: &str| requests.iter().filter(|request| request.ends_with(what)).count();
    (asked("/tokenreviews?"), asked("/subjectaccessreviews?"))
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_right_can_be_for_one_daemonset() {
    let space = space().await;
    space.kubectl.create(&daemonset("other", "img:1")).await;
    space.observed("other").await;
    let token = space.person("bot", &[]).await;
    for (verb, resource) in [("create", "daemonsets.apps/rollback"), ("get", "daemonsets.apps")] {
        let role = format!("agent-{verb}");
        let (verb, resource) = (format!("--verb={verb}"), format!("--resource={resource}"));
        space.kubectl.ok(&["create", "role", &role, &verb, &resource, "--resource-name=agent"]).await;
        let account = format!("--serviceaccount={}:bot", space.namespace);
        space.kubectl.ok(&["create", "rolebinding", &role, "--role", &role, &account]).await;
    }
    let rollbackd = Rollbackd::guarded().await;
    let bot = rollbackd.api.with_token(&token);
    bot.get(&space.path("agent")).await.expect(200);
    bot.post(&rollback(&space), &json!({"toRevision": 1})).await.expect(202);
    bot.get(&space.path("other")).await.problem(403, "forbidden");
    bot.post(&format!("{}/rollback", space.path("other")), &json!({})).await.problem(403, "forbidden");
    bot.get(&format!("/daemonsets/{}", space.namespace)).await.problem(403, "forbidden");
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_list_across_namespaces_shows_what_the_caller_may_list() {
    let (first, second, third) = tokio::join!(space(), space(), space());
    let token = first.person("viewer", &[Right::View]).await;
    // The same person, in a second namespace.
    let viewer = json!({"kind": "ServiceAccount", "name": "viewer", "namespace": first.namespace});
    second.bind("viewer", &Right::View.rules(), viewer).await;
    let everywhere = third.person("viewer", &[]).await;
    third.give_everywhere("viewer", &Right::View.rules()).await;
    let rollbackd = Rollbackd::guarded().await;

    let namespaces = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["namespace"].as_str().unwrap().to_owned()).collect()
    };
    let mut mine = vec![first.namespace.clone(), second.namespace.clone()];
    mine.sort();
    let some = rollbackd.api.with_token(&token);
    let list = until("both namespaces", async || {
        let list = some.get("/daemonsets").await.expect(200);
        if namespaces(&list) == mine { Ok(list) } else { Err(list) }
    })
    .await;
    assert_eq!(list["continue"], Value::Null);
    let page = some.get("/daemonsets?limit=1").await.expect(200);
    assert_eq!(namespaces(&page), mine[..1]);
    let next = format!("/daemonsets?limit=1&continue={}", page["continue"].as_str().unwrap());
    assert_eq!(namespaces(&some.get(&next).await.expect(200)), mine[1..]);

    let all = rollbackd.api.with_token(&everywhere).get("/daemonsets?limit=1000").await.expect(200);
    let all = namespaces(&all);
    for space in [&first, &second, &third] {
        assert!(all.contains(&space.namespace), "{all:?}");
    }
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn who_asked_for_a_rollback_reads_it_without_images_and_others_by_their_rights() {
    let space = space().await;
    let roller = space.person("roller", &[Right::RollBack]).await;
    let half = space.person("half", &[Right::ViewDaemonSets]).await;
    let viewer = space.person("viewer", &[Right::View]).await;
    let nobody = space.person("nobody", &[Right::Audit]).await;
    let rollbackd = Rollbackd::guarded().await;
    let [roller, half, viewer, nobody] =
        [roller, half, viewer, nobody].map(|token| rollbackd.api.with_token(&token));

    let tried = roller.post(&rollback(&space), &json!({"toRevision": 1, "dryRun": true})).await.expect(200);
    assert_eq!((&tried["diff"], &tried["to"]["images"]), (&Value::Null, &Value::Null));
    assert_eq!((&tried["from"]["revision"], &tried["to"]["revision"]), (&json!(2), &json!(1)));
    let made = roller.post(&rollback(&space), &json!({"toRevision": 1})).await.expect(202);
    assert_eq!(made["to"]["images"], Value::Null);
    let path = format!("/rollbacks/{}", made["id"].as_str().unwrap());
    let list = format!("/rollbacks?namespace={}", space.namespace);

    let shown = async |api: &Api| {
        let one = api.get(&path).await.expect(200);
        let all = api.get(&list).await.expect(200);
        assert_eq!(all["items"][0]["to"], one["to"]);
        one
    };
    assert_eq!(shown(&roller).await["to"]["images"], Value::Null);
    assert_eq!(shown(&half).await["to"]["images"], Value::Null);
    assert_eq!(shown(&viewer).await["to"]["images"][0]["image"], "img:1");
    nobody.get(&path).await.problem(404, "rollback-not-found");
    assert_eq!(nobody.get(&list).await.expect(200)["items"], json!([]));

    // Its stream, too.
    let events = roller.events(&path).await.into_all().await;
    let last = events.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["to"]["images"]), ("ended", &Value::Null));
    let events = viewer.events(&path).await.into_all().await;
    assert_eq!(events.last().unwrap().data["to"]["images"][0]["image"], "img:1");
    half.get(&format!("{}/revisions", space.path("agent"))).await.problem(403, "forbidden");

    // Nor do pages tell of what is not shown.
    roller.post(&rollback(&space), &json!({"toRevision": 2})).await.expect(202);
    for query in ["&limit=1", "&limit=1&name=agent", "&limit=1&name=none", "&limit=2"] {
        assert_eq!(nobody.get(&format!("{list}{query}")).await.expect(200), json!({"items": []}), "{query}");
    }
    let first = viewer.get(&format!("{list}&limit=1")).await.expect(200);
    let next = format!("{list}&limit=1&continue={}", first["continue"].as_str().unwrap());
    let second = viewer.get(&next).await.expect(200);
    assert_eq!((&second["items"][0]["id"], &second["continue"]), (&made["id"], &Value::Null));
    assert_ne!(first["items"][0]["id"], made["id"]);
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_portal_is_told_what_its_user_may_do() {
    let space = space().await;
    let rollbackd = Rollbackd::guarded().await;
    for (name, rights, may) in [
        ("viewer", &[Right::View][..], [false, false, true, true, false]),
        ("oncall", &[Right::ViewDaemonSets, Right::RollBack], [true, false, false, false, false]),
        ("admin", &[Right::View, Right::Patch, Right::Audit], [true, true, true, true, true]),
    ] {
        let token = space.person(name, rights).await;
        let path = format!("{}?include=permissions", space.path("agent"));
        let summary = rollbackd.api.with_token(&token).get(&path).await.expect(200);
        let [roll_back, patch, list_revisions, read_revisions, read_audit] = may;
        let expected = json!({
            "rollBack": roll_back, "patch": patch, "listRevisions": list_revisions,
            "readRevisions": read_revisions, "readAudit": read_audit,
        });
        assert_eq!(summary["permissions"], expected, "{name}");
    }
    let open = Rollbackd::start().await;
    let summary = open.api.get(&format!("{}?include=permissions", space.path("agent"))).await.expect(200);
    assert_eq!(summary["permissions"]["rollBack"], true);
    assert_eq!(open.api.get(&space.path("agent")).await.expect(200)["permissions"], Value::Null);
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn the_audit_is_read_by_namespace_or_everywhere() {
    let (first, second) = tokio::join!(space(), space());
    let rollbackd = Rollbackd::guarded().await;
    for space in [&first, &second] {
        let token = space.person("roller", &[Right::RollBack]).await;
        let tried = json!({"toRevision": 1, "dryRun": true});
        rollbackd.api.with_token(&token).post(&rollback(space), &tried).await.expect(200);
    }
    let one = first.person("auditor", &[Right::Audit]).await;
    let all = second.person("chief", &[]).await;
    second.give_everywhere("chief", &Right::Audit.rules()).await;
    let (one, all) = (rollbackd.api.with_token(&one), rollbackd.api.with_token(&all));

    let namespaces = |list: Value| -> Vec<Value> {
        list["items"].as_array().unwrap().iter().map(|entry| entry["namespace"].clone()).collect()
    };
    assert_eq!(namespaces(one.get("/audit").await.expect(200)), [json!(first.namespace)]);
    one.get(&format!("/audit?namespace={}", second.namespace)).await.problem(403, "forbidden");
    assert_eq!(namespaces(all.get("/audit").await.expect(200)).len(), 2);
    let export = one.get_as("/audit", "application/x-ndjson").await;
    assert_eq!(export.text.lines().count(), 1, "{export:?}");
    // The head tells how much there is of everybody's.
    one.get("/audit/head").await.problem(403, "forbidden");
    assert_eq!(all.get("/audit/head").await.expect(200)["sequence"], 2);
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn denied_rollbacks_are_on_record_and_a_flood_of_them_is_summed_up() {
    let space = space().await;
    let stranger = space.person("stranger", &[]).await;
    let auditor = space.person("auditor", &[Right::Audit]).await;
    let mut setup = Setup::guarded(ControlPlane::shared());
    setup.flags = &["--audit-limit-per-caller", "2"];
    setup.timing.audit_window = Duration::from_secs(3600);
    let mut rollbackd = Rollbackd::start_with(setup).await;
    let stranger = rollbackd.api.with_token(&stranger);
    for _ in 0..7 {
        let body = json!({"toRevision": 1, "reason": "let me"});
        stranger.post(&rollback(&space), &body).await.problem(403, "forbidden");
    }
    stranger.get(&space.path("agent")).await.problem(403, "forbidden");
    // In between, and no more hidden for that.
    let elsewhere = json!({"toRevision": 2, "dryRun": true});
    stranger.post(&format!("{}/rollback", space.path("other")), &elsewhere).await.problem(403, "forbidden");
    stranger
        .post(&rollback(&space), &json!({"toRevision": 1, "reason": "let me"}))
        .await
        .problem(403, "forbidden");
    // At the end of a window, or of the process.
    rollbackd.stop().await;
    let setup = Setup { store: Some(&rollbackd.store), ..Setup::guarded(ControlPlane::shared()) };
    let next = Rollbackd::start_with(setup).await;
    let entries = next.api.with_token(&auditor).audit(&space.namespace).await;
    assert_eq!(entries.len(), 4, "{entries:#?}");
    assert_eq!((&entries[2]["name"], &entries[2]["count"]), (&json!("other"), &json!(1)));
    for entry in entries.iter().filter(|entry| entry["name"] == "agent") {
        assert_eq!((&entry["action"], &entry["outcome"]), (&json!("rollback.denied"), &json!("denied")));
        assert_eq!(entry["actor"]["user"], space.user("stranger"));
        assert_eq!((&entry["reason"], &entry["source"]), (&json!("let me"), &json!("127.0.0.1")));
        assert!(entry["message"].as_str().unwrap().contains("cannot create resource"), "{entry}");
    }
    assert_eq!((&entries[0]["count"], &entries[3]["count"]), (&Value::Null, &json!(6)));
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn denials_in_namespaces_that_are_made_up_keep_nobody_from_the_audit() {
    let space = space().await;
    let stranger = space.person("stranger", &[]).await;
    let auditor = space.person("auditor", &[Right::Audit]).await;
    let mut setup = Setup::guarded(ControlPlane::shared());
    setup.flags =
        &["--audit-limit-per-caller", "1000", "--audit-limit", "1000", "--max-reviews-per-user", "1000"];
    let rollbackd = Rollbackd::start_with(setup).await;
    let stranger = rollbackd.api.with_token(&stranger);
    stranger.post(&rollback(&space), &json!({})).await.problem(403, "forbidden");
    // More than one is asked about.
    for number in 0..257 {
        let path = format!("/daemonsets/made-up-{number}/agent/rollback");
        stranger.post(&path, &json!({})).await.problem(403, "forbidden");
    }
    let seen = rollbackd.api.with_token(&auditor).get("/audit").await.expect(200);
    let items = seen["items"].as_array().unwrap();
    assert_eq!((items.len(), &items[0]["namespace"]), (1, &json!(space.namespace)), "{seen}");
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn equal_reads_ask_once_and_a_rollback_asks_each_time() {
    let space = space().await;
    let token = space.person("admin", &[Right::View, Right::RollBack]).await;
    let mut setup = Setup::guarded(ControlPlane::shared());
    setup.timing.reviews.yes = Duration::from_secs(3600);
    let rollbackd = Rollbackd::start_with(setup).await;
    let api = rollbackd.api.with_token(&token);
    let path = space.path("agent");
    let reads = futures_util::future::join_all((0..40).map(|_| api.get(&path))).await;
    assert!(reads.iter().all(|answer| answer.status == 200));
    assert_eq!(reviews(&rollbackd.faults), (1, 1));
    for asked in 1..=3 {
        api.post(&rollback(&space), &json!({"toRevision": 1, "dryRun": true})).await.expect(200);
        // The token, the right to patch and the right to roll back; whether images are shown is remembered.
        assert_eq!(reviews(&rollbackd.faults), (1 + asked, 1 + 2 * asked + 1));
    }
    let metrics = rollbackd.api.with_token(&token).get("/metrics").await.text;
    for line in [
        "rollbackd_reviews_total{kind=\"token\",result=\"yes\",cached=\"false\"} 4",
        "rollbackd_reviews_total{kind=\"access\",result=\"yes\",cached=\"true\"}",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_revoked_right_is_gone_at_once_for_a_rollback_and_in_time_for_a_read() {
    let space = space().await;
    let token = space.person("oncall", &[Right::View, Right::RollBack]).await;
    let mut setup = Setup::guarded(ControlPlane::shared());
    setup.timing.reviews.yes = Duration::from_secs(5);
    let rollbackd = Rollbackd::start_with(setup).await;
    let api = rollbackd.api.with_token(&token);
    let tried = json!({"toRevision": 1, "dryRun": true});
    api.get(&space.path("agent")).await.expect(200);
    api.post(&rollback(&space), &tried).await.expect(200);
    space.take("oncall", Right::View).await;
    space.take("oncall", Right::RollBack).await;
    // The API server's own view of RBAC is moments behind.
    until("the rollback to be denied", async || {
        let answer = api.post(&rollback(&space), &tried).await;
        if answer.status == 403 { Ok(()) } else { Err(answer) }
    })
    .await;
    until("the read to be denied", async || {
        let answer = api.get(&space.path("agent")).await;
        if answer.status == 403 { Ok(()) } else { Err(answer) }
    })
    .await;

    // And a new one is there in the time of a no.
    space.give("oncall", Right::View).await;
    until("the read to be allowed", async || {
        let answer = api.get(&space.path("agent")).await;
        if answer.status == 200 { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn what_can_not_be_asked_is_never_allowed() {
    let space = space().await;
    let token = space.person("admin", &[Right::View, Right::RollBack]).await;
    let rollbackd = Rollbackd::guarded().await;
    let api = rollbackd.api.with_token(&token);
    for review in ["tokenreviews", "subjectaccessreviews"] {
        for fault in [
            Fault::CutBefore,
            Fault::CutAfter,
            Fault::Answer { status: 500, headers: Vec::new(), body: "oops" },
            Fault::Answer { status: 429, headers: vec![("retry-after", "3")], body: "Too many requests" },
            Fault::Answer { status: 404, headers: Vec::new(), body: "404 page not found" },
            Fault::Answer { status: 403, headers: Vec::new(), body: "{}" },
            Fault::Answer { status: 201, headers: Vec::new(), body: "{}" },
            Fault::Answer { status: 201, headers: Vec::new(), body: "<html>" },
        ] {
            // What is remembered is forgotten.
            tokio::time::sleep(Duration::from_millis(300)).await;
            rollbackd.faults.inject(10, fault.clone(), move |request| request.uri().path().ends_with(review));
            let read = api.get(&space.path("agent")).await;
            let written = api.post(&rollback(&space), &json!({"toRevision": 1})).await;
            rollbackd.faults.clear();
            let empty = matches!(fault, Fault::Answer { status: 201, body: "{}", .. });
            for answer in [read, written] {
                let status = match (empty, review) {
                    (true, "tokenreviews") => 401,
                    (true, _) => 403,
                    (false, _) => 503,
                };
                assert_eq!(answer.status, status, "{review} {fault:?}: {answer:?}");
            }
        }
    }
    assert_eq!(rollbackd.faults.patches(), 0);
    api.get(&space.path("agent")).await.expect(200);
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn strangers_wait_for_each_other_and_nobody_waits_for_them() {
    let space = space().await;
    let token = space.person("admin", &[Right::View, Right::RollBack]).await;
    let mut setup = Setup::guarded(ControlPlane::shared());
    setup.timing.reviews.yes = Duration::from_secs(30);
    setup.timing.reviews.turn = Duration::from_millis(300);
    let rollbackd = Rollbackd::start_with(setup).await;
    let known = rollbackd.api.with_token(&token);
    known.get(&space.path("agent")).await.expect(200);

    // The reviews of sixteen made-up tokens hang.
    let of_a_token =
        |request: &http::Request<kube::client::Body>| request.uri().path().ends_with("tokenreviews");
    rollbackd.faults.inject(16, Fault::Silence, of_a_token);
    let path = space.path("agent");
    let strangers = (0..17).map(|number| rollbackd.api.with_token(&format!("made-up-{number}")));
    let asking: Vec<_> = strangers
        .map(|stranger| {
            let path = path.clone();
            tokio::spawn(async move { stranger.get(&path).await })
        })
        .collect();
    let turned_away = async {
        let (first, _, rest) = futures_util::future::select_all(asking).await;
        (first.unwrap(), rest)
    };
    let (turned_away, rest) = turned_away.await;
    turned_away.problem(503, "cluster-unavailable");
    assert_eq!(turned_away.header("retry-after"), "1");

    // Whose token has been good is heard all the same, also for a review of it that is fresh.
    known.get(&path).await.expect(200);
    known.post(&rollback(&space), &json!({"toRevision": 1, "dryRun": true})).await.expect(200);
    rest.iter().for_each(tokio::task::JoinHandle::abort);
}
