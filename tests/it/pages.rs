//! The lists of the record: `/audit` and `/rollbacks`, their filters, pages and export.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    errors::named,
    support::{
        api::Api,
        controlplane::ControlPlane,
        rollbackd::{Rollbackd, Setup},
        space::{Space, daemonset},
    },
};

/// Encodes a value for a query.
fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

async fn items(api: &Api, path: &str) -> Vec<Value> {
    api.get(path).await.expect(200)["items"].as_array().unwrap().clone()
}

/// All pages, each with so many items.
async fn pages(api: &Api, path: &str, limit: usize) -> Vec<Vec<Value>> {
    let (mut pages, mut next) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("{path}&limit={limit}{next}")).await.expect(200);
        pages.push(page["items"].as_array().unwrap().clone());
        match page["continue"].as_str() {
            Some(token) => next = format!("&continue={token}"),
            None => return pages,
        }
        assert_eq!(pages.last().map(Vec::len), Some(limit), "only the last page may be short");
    }
}

fn sequences(entries: &[Value]) -> Vec<i64> {
    entries.iter().map(|entry| entry["sequence"].as_i64().unwrap()).collect()
}

/// A namespace with history, and with rollbacks of every outcome that needs no fault.
async fn history(api: &Api) -> Space {
    let space = Space::new(ControlPlane::shared()).await;
    space.agent(&["img:1", "img:2"]).await;
    let mut other = daemonset("other", "img:1");
    other["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
    space.kubectl.create(&other).await;
    space.recorded_revision("other", 1).await;
    space.set_image("other", "img:2").await;
    space.recorded_revision("other", 2).await;
    let rollback = |name: &str| format!("{}/rollback", space.path(name));
    api.post(&rollback("agent"), &json!({"toRevision": 99})).await.problem(422, "unknown-revision");
    api.post(&rollback("agent"), &json!({"dryRun": true})).await.expect(200);
    api.post(&rollback("agent"), &json!({"toRevision": 2})).await.expect(200);
    let made = api.post(&rollback("agent"), &json!({})).await.expect(202);
    api.rollback_in(made["id"].as_str().unwrap(), &["succeeded"]).await;
    let made = api.post(&rollback("other"), &json!({})).await.expect(202);
    api.rollback_in(made["id"].as_str().unwrap(), &["applied"]).await;
    space
}

#[tokio::test]
async fn the_audit_tells_everything_newest_first_and_each_filter_narrows_it() {
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    let space = history(api).await;
    let all = items(api, "/audit").await;
    let told: Vec<&str> = all.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(
        told,
        [
            "rollback.applied",
            "rollback.requested",
            "rollout.completed",
            "rollback.applied",
            "rollback.requested",
            "rollback.skipped",
            "rollback.dryRun",
            "rollback.refused",
        ]
    );
    assert_eq!(sequences(&all), [8, 7, 6, 5, 4, 3, 2, 1]);
    for entry in &all {
        assert_eq!((&entry["actor"]["user"], &entry["source"]), (&json!("local"), &json!("127.0.0.1")));
        assert_eq!((&entry["namespace"], &entry["version"]), (&json!(space.namespace), &json!(1)));
        assert_eq!(entry["dryRun"], entry["action"] == "rollback.dryRun", "{entry}");
        assert!(entry["requestId"].is_string() && entry["message"].is_string(), "{entry}");
    }

    let middle = encoded(all[3]["time"].as_str().unwrap());
    for (query, expected) in [
        (format!("namespace={}", space.namespace), vec![8, 7, 6, 5, 4, 3, 2, 1]),
        ("namespace=elsewhere".into(), vec![]),
        ("name=other".into(), vec![8, 7]),
        ("name=nobody".into(), vec![]),
        ("actor=local".into(), vec![8, 7, 6, 5, 4, 3, 2, 1]),
        ("actor=alice".into(), vec![]),
        (format!("actor={}", encoded("local' OR '1'='1")), vec![]),
        ("action=rollback.requested".into(), vec![7, 4]),
        ("action=rollout.completed".into(), vec![6]),
        ("action=rollout.stalled".into(), vec![]),
        ("outcome=refused".into(), vec![1]),
        ("outcome=pending".into(), vec![7, 5, 4]),
        ("outcome=success".into(), vec![8, 6, 3, 2]),
        ("outcome=failure".into(), vec![]),
        (format!("since={middle}"), vec![8, 7, 6, 5]),
        (format!("until={middle}"), vec![4, 3, 2, 1]),
        ("since=2100-01-01T00:00:00Z".into(), vec![]),
        ("until=2000-01-01T00:00:00%2B09:00".into(), vec![]),
        ("name=agent&outcome=success&action=rollback.skipped".into(), vec![3]),
        // With `after`, ascending.
        ("after=0".into(), vec![1, 2, 3, 4, 5, 6, 7, 8]),
        ("after=5".into(), vec![6, 7, 8]),
        ("after=8".into(), vec![]),
        (format!("after={}", i64::MAX), vec![]),
        ("after=1&action=rollback.requested".into(), vec![4, 7]),
    ] {
        let found = items(api, &format!("/audit?{query}")).await;
        assert_eq!(sequences(&found), expected, "{query}");
    }
}

#[tokio::test]
async fn the_rollbacks_are_listed_newest_first_and_each_filter_narrows_them() {
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    let space = history(api).await;
    let all = items(api, "/rollbacks").await;
    let states = |items: &[Value]| -> Vec<String> {
        items.iter().map(|item| item["state"].as_str().unwrap().to_owned()).collect()
    };
    // A refusal and a dry run are in the audit; a rollback is what was recorded to be made.
    assert_eq!(states(&all), ["applied", "succeeded", "skipped"]);
    let middle = encoded(all[1]["requestedAt"].as_str().unwrap());
    for (query, expected) in [
        (format!("namespace={}", space.namespace), vec!["applied", "succeeded", "skipped"]),
        ("namespace=elsewhere".into(), vec![]),
        ("name=other".into(), vec!["applied"]),
        ("state=succeeded".into(), vec!["succeeded"]),
        ("state=progressing".into(), vec![]),
        ("actor=local&name=agent".into(), vec!["succeeded", "skipped"]),
        ("actor=alice".into(), vec![]),
        (format!("since={middle}"), vec!["applied", "succeeded"]),
        ("since=2100-01-01T00:00:00Z".into(), vec![]),
    ] {
        assert_eq!(states(&items(api, &format!("/rollbacks?{query}")).await), expected, "{query}");
    }
    for listed in all {
        let id = listed["id"].as_str().unwrap();
        assert_eq!(api.get(&format!("/rollbacks/{id}")).await.expect(200), listed);
    }
    let unknown = api.get("/rollbacks/01936b5e-7d0a-7f43-9c7e-2f3f6a0b1c2d").await;
    unknown.problem(404, "rollback-not-found");
}

/// Makes so many entries, each a rollback that is skipped.
async fn skip(api: &Api, space: &Space, times: usize) {
    for _ in 0..times {
        api.post(&format!("{}/rollback", space.path("agent")), &json!({"toRevision": 1})).await.expect(200);
    }
}

#[tokio::test]
async fn pages_hold_everything_exactly_once_also_while_new_entries_come() {
    let rollbackd = Rollbackd::start().await;
    let (api, space) = (&rollbackd.api, Space::new(ControlPlane::shared()).await);
    space.agent(&["img:1"]).await;
    skip(api, &space, 23).await;
    let whole: Vec<i64> = (1..=23).rev().collect();
    for limit in [1, 5, 22, 23, 24] {
        let found = pages(api, "/audit?actor=local", limit).await;
        assert_eq!(sequences(&found.concat()), whole, "limit {limit}");
        let found = pages(api, "/rollbacks?actor=local", limit).await.concat();
        let ids: BTreeSet<&str> = found.iter().map(|item| item["id"].as_str().unwrap()).collect();
        assert_eq!((found.len(), ids.len()), (23, 23), "limit {limit}");
        assert!(found.is_sorted_by(|a, b| a["id"].as_str() > b["id"].as_str()));
    }
    let found = pages(api, "/audit?after=3", 4).await;
    assert_eq!(sequences(&found.concat()), (4..=23).collect::<Vec<_>>());

    // New entries between the pages: those that were there are told once each, downwards; upwards the
    // new ones follow.
    let first = api.get("/audit?limit=10").await.expect(200);
    let first_rollbacks = api.get("/rollbacks?limit=10").await.expect(200);
    let ascending = api.get("/audit?after=0&limit=10").await.expect(200);
    skip(api, &space, 4).await;
    let rest = |from: &Value, path: &str| {
        let token = from["continue"].as_str().unwrap().to_owned();
        format!("{path}limit=1000&continue={token}")
    };
    let second = items(api, &rest(&first, "/audit?")).await;
    assert_eq!(sequences(&[first["items"].as_array().unwrap().clone(), second].concat()), whole);
    let second = items(api, &rest(&first_rollbacks, "/rollbacks?")).await;
    assert_eq!(second.len(), 13);
    let second = items(api, &rest(&ascending, "/audit?after=0&")).await;
    let both = [ascending["items"].as_array().unwrap().clone(), second].concat();
    assert_eq!(sequences(&both), (1..=27).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_continue_is_bound_to_what_it_was_made_for() {
    let rollbackd = Rollbackd::start().await;
    let (api, space) = (&rollbackd.api, Space::new(ControlPlane::shared()).await);
    space.agent(&["img:1"]).await;
    space.kubectl.create(&daemonset("b", "img:1")).await;
    space.rolled_out("b").await;
    skip(api, &space, 3).await;
    let token = async |path: &str| api.get(path).await.expect(200)["continue"].as_str().unwrap().to_owned();
    let audit = token("/audit?limit=1").await;
    let rollbacks = token("/rollbacks?limit=1").await;
    let list = format!("/daemonsets/{}", space.namespace);
    api.shows(&list, "both DaemonSets", |list| list["items"].as_array().map(Vec::len) == Some(2)).await;
    let daemonsets = token(&format!("{list}?limit=1")).await;
    for path in [
        format!("/audit?continue={audit}x"),
        format!("/audit?continue={}", &audit[1..]),
        format!("/audit?continue={audit}&actor=local"),
        format!("/audit?continue={audit}&after=0"),
        format!("/audit?continue={rollbacks}"),
        format!("/rollbacks?continue={audit}"),
        format!("/rollbacks?continue={rollbacks}&state=skipped"),
        format!("/daemonsets?continue={daemonsets}"),
        format!("{list}?continue={daemonsets}&labelSelector=a"),
        "/daemonsets/elsewhere?continue=".to_owned() + &daemonsets,
    ] {
        let problem = api.get(&path).await.problem(400, "invalid-request");
        assert_eq!(named(&problem), "parameter continue", "{path}");
    }
    // Another limit is not another question.
    assert_eq!(items(api, &format!("/audit?limit=2&continue={audit}")).await.len(), 2);
    let second = items(api, &format!("{list}?continue={daemonsets}")).await;
    assert_eq!(second.iter().map(|one| &one["name"]).collect::<Vec<_>>(), ["b"]);
    let export = api.get_as(&format!("/audit?continue={audit}"), "application/x-ndjson").await;
    assert_eq!(named(&export.problem(400, "invalid-request")), "parameter continue");
}

#[tokio::test]
async fn an_export_is_one_entry_a_line_and_goes_on_where_it_was_left() {
    let setup = Setup { flags: &["--cluster-name", "blue"], ..Setup::new(ControlPlane::shared()) };
    let rollbackd = Rollbackd::start_with(setup).await;
    let (api, space) = (&rollbackd.api, Space::new(ControlPlane::shared()).await);
    space.agent(&["img:1"]).await;
    let path = format!("{}/rollback", space.path("agent"));
    for reason in ["two\nlines", "\u{2028}\u{85}\r", "\"quoted\"\\", "\u{0}", "größe 🚀"] {
        api.post(&path, &json!({"toRevision": 1, "reason": reason})).await.expect(200);
    }
    skip(api, &space, 6).await;
    let export = async |query: &str| {
        let answer = api.get_as(&format!("/audit{query}"), "application/x-ndjson").await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/x-ndjson"));
        assert!(answer.text.is_empty() || answer.text.ends_with('\n'));
        let lines =
            answer.text.split_terminator('\n').map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.collect::<Vec<_>>()
    };
    let all = export("").await;
    assert_eq!(sequences(&all), (1..=11).collect::<Vec<_>>());
    assert_eq!(all[0]["reason"], "two\nlines");
    // The same entries as on a page.
    assert_eq!(all, items(api, "/audit?after=0").await);
    let (mut resumed, mut after) = (Vec::new(), 0);
    loop {
        let part = export(&format!("?after={after}&limit=4&action=rollback.skipped")).await;
        assert!(part.len() <= 4);
        let Some(last) = part.last() else { break };
        after = last["sequence"].as_i64().unwrap();
        resumed.extend(part);
    }
    assert_eq!(resumed, all);
    assert_eq!(sequences(&export("?limit=10000&after=10").await), [11]);
    let many = api.get_as("/audit?limit=10001", "application/x-ndjson").await;
    assert_eq!(named(&many.problem(400, "invalid-request")), "parameter limit");
}
