//! Rollbacks that the cluster shows and the record lacks, as after an older backup was restored, are reported, once.

use std::{path::Path, time::Duration};

use rollbackd::verifier::{Anchor, Checks, verify_store};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, sqlite::SqliteConnectOptions};

use crate::support::{
    controlplane::ControlPlane,
    rollbackd::{Rollbackd, Setup},
    space::{Space, daemonset},
    store::Place,
    wait::until,
};

/// One that looks in this namespace, at its start and then each `period`.
async fn looking(space: &Space, store: Option<&Place>, period: Duration) -> Rollbackd {
    let flags = ["--namespace", space.namespace.as_str()];
    let mut setup = Setup { flags: &flags, store, ..Setup::new(ControlPlane::shared()) };
    setup.timing.unrecorded = Some(period);
    Rollbackd::start_with(setup).await
}

const RARELY: Duration = Duration::from_secs(3600);
const ALL_THE_TIME: Duration = Duration::from_millis(20);

/// Waits until a look has found so many; its entries are written by then.
async fn found(rollbackd: &Rollbackd, count: usize) {
    let sample = format!("rollbackd_rollbacks_unrecorded {count}");
    until(&sample, async || {
        let metrics = rollbackd.api.get("/metrics").await.text;
        if metrics.lines().any(|line| line == sample) { Ok(()) } else { Err(metrics) }
    })
    .await;
}

/// The entries about it: rollback, and name and uid of the DaemonSet.
async fn reported(rollbackd: &Rollbackd, space: &Space) -> Vec<(Value, Value, Value)> {
    let path = format!("/audit?namespace={}&action=rollback.unrecorded&after=0", space.namespace);
    let audit = rollbackd.api.get(&path).await.expect(200);
    let of = |entry: &Value| (entry["rollback"].clone(), entry["name"].clone(), entry["uid"].clone());
    audit["items"].as_array().unwrap().iter().map(of).collect()
}

/// What the README tells to let SQLite do, with another place for the copy.
fn backup_statement(copy: &Path) -> String {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let line = readme.lines().find(|line| line.contains("VACUUM INTO")).expect("the README tells how");
    let (_, statement) = line.split_once('"').unwrap();
    let (statement, _) = statement.split_once('"').unwrap();
    assert!(statement.contains("'/tmp/rollbackd.db'"), "{statement}");
    statement.replace("/tmp/rollbackd.db", copy.to_str().unwrap())
}

fn anchored(anchor: Anchor) -> Checks {
    Checks { anchor: Some(anchor), ..Checks::default() }
}

#[tokio::test]
async fn after_an_older_backup_is_restored_the_rollbacks_since_are_reported_once() {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let mut first = looking(&space, None, ALL_THE_TIME).await;
    let path = format!("{}/rollback", space.path("agent"));
    let roll_back = async |rollbackd: &Rollbackd| {
        let made = rollbackd.api.post(&path, &json!({})).await.expect(202);
        let ended = rollbackd.api.rollback_in(made["id"].as_str().unwrap(), &["succeeded"]).await;
        let head = rollbackd.api.get("/audit/head").await.expect(200);
        (ended["id"].clone(), head["hash"].as_str().unwrap().parse::<Anchor>().unwrap())
    };
    let (known, before) = roll_back(&first).await;

    // In use.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("rollbackd.db");
    let restored = Place::File(copy.clone());
    let mut store = SqliteConnectOptions::new().filename(first.store.file()).connect().await.unwrap();
    store.execute(AssertSqlSafe(backup_statement(&copy))).await.unwrap();
    let (lost, after) = roll_back(&first).await;
    assert_eq!(reported(&first, &space).await, []);
    first.stop().await;

    let mut second = looking(&space, Some(&restored), RARELY).await;
    found(&second, 1).await;
    let uid = space.kubectl.get("daemonset", "agent").await["metadata"]["uid"].clone();
    let expected = [(lost.clone(), json!("agent"), uid)];
    assert_eq!(reported(&second, &space).await, expected);
    let entry = second.api.audit(&space.namespace).await.pop().unwrap();
    let message = format!(
        "the cluster shows rollback {} of {}/agent, which is not on record here: the record is older than it (restored from a backup?), it was made by somebody else, or its id was copied",
        lost.as_str().unwrap(),
        space.namespace
    );
    assert_eq!(
        (&entry["message"], &entry["actor"], &entry["outcome"]),
        (&json!(message), &json!({"user": "rollbackd"}), &json!("failure"))
    );
    second.api.get(&format!("/rollbacks/{}", known.as_str().unwrap())).await.expect(200);
    second
        .api
        .get(&format!("/rollbacks/{}", lost.as_str().unwrap()))
        .await
        .problem(404, "rollback-not-found");
    second.stop().await;

    // Whole, and as old as the backup.
    let url = format!("sqlite:{}", copy.display());
    assert_eq!(verify_store(&url, &anchored(before)).await.unwrap().findings, []);
    assert_eq!(verify_store(&url, &anchored(after)).await.unwrap().found, 1);

    let third = looking(&space, Some(&restored), ALL_THE_TIME).await;
    found(&third, 1).await;
    assert_eq!(reported(&third, &space).await, expected);
}

#[tokio::test]
async fn what_the_annotation_says_is_anybodys_text() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    space.kubectl.create(&daemonset("other", "img:1")).await;
    space.observed("other").await;
    let rollbackd = looking(&space, None, ALL_THE_TIME).await;
    let annotate = async |name: &str, value: Value| {
        space.patch(name, &json!({"metadata": {"annotations": {"rollbackd.dev/rollback": value}}})).await;
    };
    // A copy, as of a manifest that was read from the cluster, is on record all the same.
    let path = format!("{}/rollback", space.path("agent"));
    let made = rollbackd.api.post(&path, &json!({})).await.expect(202);
    rollbackd.api.rollback_in(made["id"].as_str().unwrap(), &["succeeded"]).await;
    annotate("other", made["id"].clone()).await;
    annotate("agent", json!("me\n\u{1b}[2J")).await;
    let forged = "01936b5e-7d0a-7f43-9c7e-000000000001";
    let revision = space.revisions().await.remove(0);
    let name = revision["metadata"]["name"].as_str().unwrap();
    let owner = revision["metadata"]["ownerReferences"][0].clone();
    let pair = format!("rollbackd.dev/rollback={forged}");
    space.kubectl.ok(&["annotate", "controllerrevision", name, &pair, "--overwrite"]).await;
    found(&rollbackd, 1).await;
    let first = (json!(forged), owner["name"].clone(), owner["uid"].clone());
    assert_eq!(reported(&rollbackd, &space).await, std::slice::from_ref(&first));

    // The same of another DaemonSet is another finding, and one that is gone is none.
    let other = space.kubectl.get("daemonset", "other").await["metadata"]["uid"].clone();
    let another = if owner["uid"] == other { "agent" } else { "other" };
    annotate(another, json!(forged.to_uppercase())).await;
    found(&rollbackd, 2).await;
    let reports = reported(&rollbackd, &space).await;
    assert_eq!((reports.len(), &reports[0]), (2, &first));
    assert_eq!((&reports[1].0, &reports[1].1), (&json!(forged), &json!(another)));
    annotate(another, Value::Null).await;
    found(&rollbackd, 1).await;
    assert_eq!(reported(&rollbackd, &space).await, reports);
}

#[tokio::test]
async fn a_flood_of_ids_does_not_fill_the_store() {
    let space = Space::new(ControlPlane::shared()).await;
    for number in 0..203 {
        let mut planted = daemonset(&format!("agent-{number}"), "img:1");
        planted["metadata"]["annotations"]["rollbackd.dev/rollback"] =
            json!(format!("01936b5e-7d0a-7f43-9c7e-{number:012}"));
        planted["spec"]["template"]["spec"]["nodeSelector"] = json!({"nowhere": "x"});
        space.kubectl.create(&planted).await;
    }
    let entries = async |rollbackd: &Rollbackd| {
        let metrics = rollbackd.api.get("/metrics").await.text;
        let name = r#"rollbackd_audit_entries_total{action="rollback.unrecorded"} "#;
        metrics.lines().find_map(|line| line.strip_prefix(name)).map(ToOwned::to_owned)
    };
    let mut first = looking(&space, None, RARELY).await;
    found(&first, 203).await;
    assert_eq!(entries(&first).await.as_deref(), Some("200"));
    first.stop().await;
    let second = looking(&space, Some(&first.store), RARELY).await;
    found(&second, 203).await;
    assert_eq!(entries(&second).await.as_deref(), Some("3"));
}
