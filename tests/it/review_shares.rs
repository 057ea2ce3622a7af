//! How much callers can make the API server review: their share, so that others are still reviewed.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use reqwest::Method;
use serde_json::json;

use crate::{
    rights::reviews,
    support::{
        account,
        api::{Answer, Api},
        controlplane::ControlPlane,
        people::Right,
        program::{MEMORY_LIMIT, Running, free_port},
        rollbackd::{Rollbackd, Setup},
        space::Space,
        wait::until,
    },
};

const LONG: Duration = Duration::from_secs(3600);

async fn space() -> Space {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    space
}

fn rollback(space: &Space) -> String {
    format!("{}/rollback", space.path("agent"))
}

/// Answers are remembered for as long as the test takes.
fn remembering<'a>(flags: &'a [&'a str]) -> Setup<'a> {
    let mut setup = Setup { flags, ..Setup::guarded(ControlPlane::shared()) };
    (setup.timing.reviews.yes, setup.timing.reviews.no) = (LONG, LONG);
    setup
}

async fn try_to_roll_back(api: &Api, space: &Space) -> Answer {
    api.post(&rollback(space), &json!({"toRevision": 1, "dryRun": true})).await
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn an_invalid_token_is_refused_from_memory_for_writes_too() {
    let space = space().await;
    let rollbackd = Rollbackd::start_with(remembering(&[])).await;
    let bogus = rollbackd.api.with_token("bogus");
    for _ in 0..20 {
        try_to_roll_back(&bogus, &space).await.problem(401, "invalid-token");
        bogus.get("/daemonsets").await.problem(401, "invalid-token");
    }
    assert_eq!(reviews(&rollbackd.faults), (1, 0));
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_service_account_token_for_another_audience_is_refused_without_a_review() {
    let space = space().await;
    space.person("viewer", &[Right::View]).await;
    let rollbackd = Rollbackd::start_with(remembering(&[])).await;
    let mut number = 0;
    // From when on the issuer is known.
    until("a refusal without a review", async || {
        number += 1;
        let token = space.token("viewer", &format!("vault-{number}")).await;
        let before = reviews(&rollbackd.faults);
        rollbackd.api.with_token(&token).get("/daemonsets").await.problem(401, "invalid-token");
        let after = reviews(&rollbackd.faults);
        if before == after { Ok(()) } else { Err(after) }
    })
    .await;
    let ours = space.token("viewer", "rollbackd").await;
    rollbackd.api.with_token(&ours).get(&space.path("agent")).await.expect(200);

    let lenient = Rollbackd::start_with(remembering(&["--accept-api-server-audience"])).await;
    let for_the_server = space.token("viewer", "https://kubernetes.default.svc").await;
    lenient.api.with_token(&for_the_server).get(&space.path("agent")).await.expect(200);
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn unknown_tokens_use_up_the_share_of_their_address_alone() {
    let space = space().await;
    let viewer = space.person("viewer", &[Right::View]).await;
    let flags = ["--max-reviews-per-address", "1", "--trusted-proxy", "127.0.0.1"];
    let rollbackd = Rollbackd::start_with(remembering(&flags)).await;
    let from = |address: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        rollbackd.api.with_headers(&[("x-forwarded-for", address), ("authorization", &bearer)])
    };
    // A token that is known is not one of those.
    from("203.0.113.9", &viewer).get(&space.path("agent")).await.expect(200);
    let mut number = 0;
    let refused = until("the share to be used up", async || {
        number += 1;
        let answer = from("203.0.113.9", &format!("made-up-{number}")).get("/daemonsets").await;
        if answer.status == 429 { Ok(answer) } else { Err(answer.problem(401, "invalid-token")) }
    })
    .await;
    assert!(number >= 9, "{number}");
    refused.problem(429, "too-many-requests");
    assert!(refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds >= 1), "{refused:?}");
    from("203.0.113.10", "made-up").get("/daemonsets").await.problem(401, "invalid-token");
    let known = from("203.0.113.9", &viewer);
    known.get(&space.path("agent")).await.expect(200);
    try_to_roll_back(&known, &space).await.problem(403, "forbidden");
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_user_without_rights_uses_up_no_share_but_their_own() {
    let space = space().await;
    let stranger = space.person("stranger", &[]).await;
    let roller = space.person("roller", &[Right::RollBack]).await;
    let portal = space.person("portal", &[Right::Impersonate]).await;
    let rollbackd = Rollbackd::start_with(remembering(&["--max-reviews-per-user", "1"])).await;
    let bearer = format!("Bearer {portal}");
    let through_portal = |name: &str| {
        let user = space.user(name);
        rollbackd.api.with_headers(&[("authorization", &bearer), ("impersonate-user", &user)])
    };
    for api in [rollbackd.api.with_token(&stranger), through_portal("stranger-of-the-portal")] {
        let refused = until("the share to be used up", async || {
            let answer = try_to_roll_back(&api, &space).await;
            if answer.status == 429 { Ok(answer) } else { Err(answer.problem(403, "forbidden")) }
        })
        .await;
        refused.problem(429, "too-many-requests");
    }
    try_to_roll_back(&rollbackd.api.with_token(&roller), &space).await.expect(200);
    try_to_roll_back(&through_portal("roller"), &space).await.expect(200);
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_list_without_rights_asks_about_each_namespace_once_in_a_while() {
    let (first, second, third) = tokio::join!(space(), space(), space());
    let stranger = first.person("stranger", &[]).await;
    let namespaces = [&first, &second, &third].map(|space| space.namespace.as_str()).join(",");
    let flags = ["--namespace", &namespaces];
    let mut setup = remembering(&flags);
    setup.timing.reviews.no = Duration::from_millis(1);
    let rollbackd = Rollbackd::start_with(setup).await;
    let stranger = rollbackd.api.with_token(&stranger);
    for asked in 1..=5 {
        stranger.get("/daemonsets").await.problem(403, "forbidden");
        // The right to all is asked about each time, as a no is forgotten at once.
        assert_eq!(reviews(&rollbackd.faults), (1, 3 + asked));
    }
}

/// The program itself, with the cluster's authentication.
async fn program(folder: &std::path::Path) -> (Running, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let store = format!("sqlite:{}", folder.join("rollbackd.db").display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollbackd"));
    command.args(["serve", "--store", &store, "--listen", &address.to_string(), "--drain-delay", "0s"]);
    command.arg("--kubeconfig").arg(ControlPlane::shared().kubeconfig(account::USER));
    let program = Running::spawn_with(&mut command, Stdio::null());
    let ready = format!("http://{address}/readyz");
    until("the program to be ready", async || match reqwest::get(&ready).await {
        Ok(answer) if answer.status() == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    (program, address)
}

/// One of the requests of a flood, by its number.
fn hostile(number: usize, stranger: &str, other_audience: &str, path: &str) -> (Method, String, String) {
    let read = |token: &str, path: &str| (Method::GET, token.to_owned(), path.to_owned());
    match number % 6 {
        0 => (Method::POST, "bogus".into(), path.to_owned()),
        1 => read(&format!("made-up-{number}"), "/daemonsets"),
        2 => (Method::POST, stranger.to_owned(), path.to_owned()),
        3 => read(stranger, &format!("/daemonsets/made-up-{number}/agent")),
        4 => read(stranger, "/daemonsets"),
        _ => read(other_audience, "/daemonsets"),
    }
}

#[tokio::test]
#[cfg(target_os = "linux")]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn rollbacks_succeed_while_others_flood_reviews() {
    let space = space().await;
    let roller = space.person("roller", &[Right::RollBack]).await;
    let stranger = space.person("stranger", &[]).await;
    let other_audience = space.token("stranger", "vault").await;
    let folder = tempfile::tempdir().unwrap();
    let (program, address) = program(folder.path()).await;
    let (done, sent, refused) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    // As fast as it answers, on 48 connections of 12 addresses, and at most 30,000 requests.
    let flood = (0..48_usize).map(|task| {
        let (done, sent, refused) = (done.clone(), sent.clone(), refused.clone());
        let (stranger, other_audience, path) = (stranger.clone(), other_audience.clone(), rollback(&space));
        let source = Ipv4Addr::new(127, 3, 0, 1 + (task % 12) as u8);
        tokio::spawn(async move {
            let http = reqwest::Client::builder().local_address(Some(source.into())).build().unwrap();
            while !done.load(Ordering::Relaxed) && sent.load(Ordering::Relaxed) < 30_000 {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                let (method, token, path) = hostile(number, &stranger, &other_audience, &path);
                let request = http.request(method, format!("http://{address}{path}")).bearer_auth(token);
                let Ok(answer) = request.json(&json!({})).send().await else { continue };
                assert!(answer.status() != 200 && answer.status() != 202, "{answer:?}");
                refused.fetch_add(usize::from(answer.status() == 429), Ordering::Relaxed);
                let _ = answer.bytes().await;
            }
        })
    });
    let flood: Vec<_> = flood.collect();
    until("the flood to be well under way", async || {
        let sent = sent.load(Ordering::Relaxed);
        if sent > 1000 { Ok(()) } else { Err(sent) }
    })
    .await;
    let api = Api::new(address).with_token(&roller);
    for _ in 0..5 {
        // What has not been recorded by the controller yet is a 409, and nothing of the flood's.
        until("the rollback to be made", async || {
            let answer = api.post(&rollback(&space), &json!({"toRevision": "previous"})).await;
            assert!([202, 409].contains(&answer.status), "{answer:?}");
            if answer.status == 202 { Ok(()) } else { Err(answer.text) }
        })
        .await;
    }
    done.store(true, Ordering::Relaxed);
    for task in flood {
        task.await.expect("nothing is allowed");
    }
    let refused = refused.load(Ordering::Relaxed);
    assert!(refused > 100, "{refused} of {} got 429", sent.load(Ordering::Relaxed));
    let peak = program.peak_memory();
    assert!(peak < MEMORY_LIMIT, "{} MiB", peak / 1024 / 1024);
}
