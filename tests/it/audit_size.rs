//! How much of the audit is held and kept: long entries, long names, floods of many callers.

use rollbackd::audit::{Store, StoreUrl};
use rollbackd::telemetry::Metrics;
use serde_json::{Value, json};
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _, Executor as _, any::install_default_drivers};

use crate::{
    chain::entry,
    support::{
        api::Api,
        controlplane::ControlPlane,
        people::Right,
        program::{Running, free_port},
        rollbackd::{Rollbackd, Setup},
        space::Space,
        store::Place,
    },
};

/// What the manifest gives to the container, in bytes.
const MEMORY_LIMIT: usize = 256 * 1024 * 1024;

/// A store with entries that were written through rollbackd.
async fn written(path: &std::path::Path, entries: i64) -> Place {
    let place = Place::File(path.to_owned());
    let url: StoreUrl = place.url().parse().unwrap();
    let store = Store::open(&url, Metrics::new(), None).await.unwrap();
    for number in 1..=entries {
        store.append(&entry(number)).await.unwrap();
    }
    store.close().await;
    place
}

fn sequences(items: &[Value]) -> Vec<i64> {
    items.iter().map(|item| item["sequence"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn page_of_any_length_is_a_whole_list_that_leads_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = written(&folder.path().join("rollbackd.db"), 60).await;
    let setup = Setup { store: Some(&store), ..Setup::new(ControlPlane::shared()) };
    let rollbackd = Rollbackd::start_with(setup).await;
    let api = &rollbackd.api;
    // On both sides of what is read at once.
    for limit in [1, 19, 20, 21, 39, 40, 41, 59, 60, 61, 1000] {
        for (query, expected) in
            [("", (1..=60).rev().collect::<Vec<_>>()), ("after=0&", (1..=60).collect::<Vec<_>>())]
        {
            let mut shown = Vec::new();
            let mut next = String::new();
            loop {
                let answer = api.get(&format!("/audit?{query}limit={limit}{next}")).await;
                assert_eq!(answer.header("content-type"), "application/json");
                let page = answer.expect(200);
                let items = page["items"].as_array().unwrap();
                assert!(items.len() <= limit && !items.is_empty(), "{page}");
                shown.extend(sequences(items));
                let Some(token) = page["continue"].as_str() else { break };
                assert_eq!(items.len(), limit, "only a full page leads on");
                next = format!("&continue={token}");
            }
            assert_eq!(shown, expected, "{query} {limit}");
            let lines =
                api.get_as(&format!("/audit?after=0&limit={limit}"), "application/x-ndjson").await.text;
            let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(sequences(&lines), (1..=60.min(limit as i64)).collect::<Vec<_>>());
        }
    }
    assert_eq!(api.get("/audit?actor=nobody").await.expect(200), json!({"items": []}));
    assert_eq!(api.get_as("/audit?actor=nobody", "application/x-ndjson").await.text, "");
}

/// As an earlier version let callers write them: nobody may make of them an answer that takes all memory.
#[tokio::test]
async fn long_entries_are_answered_within_the_memory_limit() {
    const ENTRIES: usize = 1000;
    let folder = tempfile::tempdir().unwrap();
    let place = written(&folder.path().join("rollbackd.db"), 1).await;
    install_default_drivers();
    let mut raw = AnyConnection::connect(&place.url()).await.unwrap();
    let long = format!(
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {ENTRIES})
         INSERT INTO audit (sequence, time, action, outcome, namespace, name, actor, entry, previous, hash)
         SELECT i, time, action, outcome, namespace, name, actor, replace(entry, 'message 1', '{}'), '', '' FROM audit, n",
        "long ".repeat(25_000)
    );
    raw.execute(AssertSqlSafe(long)).await.unwrap();
    raw.execute(AssertSqlSafe(format!("UPDATE audit_head SET sequence = {ENTRIES}"))).await.unwrap();
    raw.close().await.unwrap();

    let listen = format!("127.0.0.1:{}", free_port());
    let url = place.url();
    let args = ["sandbox", "--listen", &listen, "--store", &url];
    let mut running = Running::start(env!("CARGO_BIN_EXE_rollbackd").as_ref(), &args);
    running.says("Ctrl-C").await;
    let api = Api::new(listen.parse().unwrap());
    let read = async |path: &str, accept: &str| {
        let request = api.request(reqwest::Method::GET, path).header("accept", accept);
        let mut response = request.send().await.unwrap();
        let mut length = 0;
        while let Some(piece) = response.chunk().await.unwrap() {
            length += piece.len();
        }
        assert!(length > (ENTRIES - 1) * 125_000, "{path}: {length}");
    };
    tokio::join!(
        read("/audit?limit=1000", "application/json"),
        read("/audit?limit=1000&after=0", "application/json"),
        read("/audit", "application/x-ndjson"),
        read("/audit?limit=1000", "application/json"),
    );
    let peak = running.peak_memory();
    assert!(peak < MEMORY_LIMIT, "{peak} bytes");
    assert!(running.stop(), "it ends in order");
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn long_names_are_refused_and_many_groups_are_truncated_on_record() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    let portal = space.person("portal", &[Right::Impersonate]).await;
    let auditor = space.person("auditor", &[Right::Audit]).await;
    let rollbackd = Rollbackd::guarded().await;
    let bearer = format!("Bearer {portal}");
    let path = format!("{}/rollback", space.path("agent"));
    let (longest, longer) = ("a".repeat(512), "a".repeat(513));
    let post = async |user: &str, groups: &[&str]| {
        let mut headers = vec![("authorization", bearer.as_str()), ("impersonate-user", user)];
        headers.extend(groups.iter().map(|group| ("impersonate-group", *group)));
        rollbackd.api.with_headers(&headers).post(&path, &json!({})).await
    };
    for (user, groups, header) in [
        (longer.as_str(), vec![], "impersonate-user"),
        ("alice", vec![longer.as_str()], "impersonate-group"),
        ("alice", vec![longest.as_str(); 9], "impersonate-group"),
    ] {
        let problem = post(user, &groups).await.problem(400, "invalid-request");
        assert_eq!(problem["errors"][0]["header"], header, "{problem}");
    }
    let groups: Vec<String> = (0..8).map(|number| format!("{number}{}", "g".repeat(511))).collect();
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    // The group of all who are authenticated comes to those named.
    post(&longest, &groups).await.problem(403, "forbidden");
    let entries = rollbackd.api.with_token(&auditor).audit(&space.namespace).await;
    assert_eq!(entries.len(), 1, "what was refused for its form is not recorded: {entries:#?}");
    let person = &entries[0]["onBehalfOf"];
    assert_eq!((&person["user"], &person["groupsOmitted"]), (&json!(longest), &json!(1)), "{person}");
    assert_eq!(person["groups"].as_array().unwrap().len(), 8);
    assert!(entries[0].to_string().len() < 10_000);
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn flood_of_many_callers_is_summed_up() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    let auditor = space.person("auditor", &[Right::Audit]).await;
    let mut setup = Setup::guarded(ControlPlane::shared());
    setup.flags = &["--audit-limit-per-caller", "2", "--audit-limit", "3"];
    setup.timing.audit_window = std::time::Duration::from_secs(3600);
    let mut rollbackd = Rollbackd::start_with(setup).await;
    let path = format!("{}/rollback", space.path("agent"));
    for name in ["a", "b", "c", "d"] {
        let caller = rollbackd.api.with_token(&space.person(name, &[]).await);
        for _ in 0..3 {
            caller.post(&path, &json!({})).await.problem(403, "forbidden");
        }
    }
    rollbackd.stop().await;
    let setup = Setup { store: Some(&rollbackd.store), ..Setup::guarded(ControlPlane::shared()) };
    let next = Rollbackd::start_with(setup).await;
    let entries = next.api.with_token(&auditor).audit(&space.namespace).await;
    let count = |entry: &Value| entry["count"].as_u64().unwrap_or(1);
    assert_eq!(entries.iter().map(count).sum::<u64>(), 12, "all are counted: {entries:#?}");
    // Three one by one; then the callers with the most, and the others together.
    assert_eq!(entries.iter().filter(|entry| entry["count"].is_null()).count(), 3);
    assert!(entries.len() <= 3 + 2 + 1 + 3, "{entries:#?}");
}
