//! The checker finds what is wrong: an honest history, doctored.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{check, history::History};

const TEMPLATES: [&str; 2] = ["{old}", "{new}"];

/// A version of the DaemonSet `agent`.
fn version(resource_version: u64, generation: i64, template: usize, rollback: Option<&str>) -> Value {
    json!({
        "change": "MODIFIED", "name": "agent", "uid": "u1", "resourceVersion": resource_version.to_string(),
        "generation": generation, "rollback": rollback, "image": format!("img:{template}"),
        "template": TEMPLATES[template],
        "status": {"observedGeneration": generation, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 2},
    })
}

fn rollback(id: &str, state: &str, generation: Option<i64>) -> Value {
    json!({
        "id": id, "state": state, "namespace": "crash", "name": "agent", "uid": "u1", "generation": generation,
        "from": {"images": [{"image": "img:0"}]}, "to": {"images": [{"image": "img:1"}]},
        "requestId": format!("request-{id}"), "reason": "r", "requestedAt": at(1), "endedAt": at(9),
    })
}

fn at(second: u32) -> String {
    format!("2026-01-01T00:00:{second:02}Z")
}

/// The two lines that the API server logs of a patch.
fn patch(id: &str, annotation: &str, pinned_to: u64, status: u64, made: u64, second: u32) -> [Value; 2] {
    let mut body = json!({"metadata": {"uid": "u1", "resourceVersion": pinned_to.to_string(), "annotations": {format!("rollbackd.dev/{annotation}"): id}}});
    if annotation == "rollback" {
        body["spec"] = json!({"template": {}});
    }
    let received = json!({
        "auditID": format!("{annotation}-{id}-{pinned_to}"), "stage": "RequestReceived", "verb": "patch",
        "requestURI": "/apis/apps/v1/namespaces/crash/daemonsets/agent?fieldManager=rollbackd",
        "requestReceivedTimestamp": at(second),
    });
    let mut complete = received.clone();
    complete["stage"] = "ResponseComplete".into();
    complete["requestObject"] = body;
    complete["responseStatus"] = json!({"code": status});
    complete["responseObject"] = json!({"metadata": {"resourceVersion": made.to_string()}});
    [received, complete]
}

/// Entries as they are exported, chained.
fn export(entries: &[(&str, &str, u32)]) -> Vec<Value> {
    let mut previous = "0".repeat(64);
    let chained = entries.iter().enumerate().map(|(index, (id, action, second))| {
        let entry = json!({
            "time": at(*second), "action": action, "namespace": "crash", "name": "agent", "uid": "u1",
            "requestId": format!("request-{id}"), "reason": "r", "rollback": id,
        });
        let (entry, sequence) = (entry.to_string(), index + 1);
        let digest = Sha256::digest(format!("rollbackd audit 1\n{sequence}\n{previous}\n{entry}"));
        let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = json!({"sequence": sequence, "previous": previous, "hash": hash, "entry": entry});
        previous = hash;
        line
    });
    chained.collect()
}

const ENTRIES: [(&str, &str, u32); 5] = [
    ("lost", "rollback.requested", 1),
    ("lost", "rollback.failed", 3),
    ("made", "rollback.requested", 4),
    ("made", "rollback.applied", 6),
    ("made", "rollout.completed", 7),
];

/// One rollback whose patch was killed on its way and met a conflict late, and one that was made.
fn honest() -> History {
    let mut api_server = Vec::new();
    api_server.extend(patch("lost", "settled", 10, 200, 11, 2));
    api_server.extend(patch("lost", "rollback", 10, 409, 0, 3));
    api_server.extend(patch("made", "rollback", 11, 200, 12, 5));
    let export = export(&ENTRIES);
    History {
        api_server,
        seen: vec![version(10, 1, 0, None), version(11, 1, 0, None), version(12, 2, 1, Some("made"))],
        told: vec![
            json!({"requestId": "request-lost", "key": "k", "status": null, "lost": "killed"}),
            json!({"requestId": "request-made", "key": "l", "status": 202, "answer": {"id": "made", "state": "progressing"}}),
            json!({"ask": "made", "sent": at(20), "status": 200, "answer": {"id": "made", "state": "succeeded"}}),
        ],
        printed: vec![json!({"log": "audit", "sequence": 1, "hash": export[0]["hash"]})],
        export,
        claims: vec![],
        rollbacks: vec![rollback("made", "succeeded", Some(2)), rollback("lost", "abandoned", None)],
        harness: json!({"rounds": 1, "points": ["recorded"], "kills": {"recorded": 1}}),
    }
}

/// Doctors the honest history, and expects a finding with a text.
#[track_caller]
fn found(text: &str, doctor: impl FnOnce(&mut History)) {
    let mut history = honest();
    doctor(&mut history);
    let findings = check(&history);
    assert!(findings.iter().any(|finding| finding.contains(text)), "{text}: {findings:#?}");
}

#[test]
fn an_honest_history_has_no_findings() {
    assert_eq!(check(&honest()), Vec::<String>::new());
}

#[test]
fn a_patch_without_an_entry_is_found() {
    found("which is on no record", |history| {
        history.api_server.extend(patch("ghost", "rollback", 12, 409, 0, 8));
    });
    found("took effect, which is on no record", |history| {
        history.seen.push(version(13, 3, 0, Some("ghost")));
    });
    found("before it was on record", |history| {
        let mut entries = ENTRIES;
        entries[2].2 = 6;
        history.export = export(&entries);
    });
}

#[test]
fn an_abandoned_one_that_took_effect_is_found() {
    found("lost is abandoned, and its patch took effect", |history| {
        history.seen.push(version(13, 3, 1, Some("lost")));
    });
}

#[test]
fn an_abandoned_one_that_does_not_say_why_is_found() {
    found("lost is abandoned, and its message does not say why", |history| {
        history.rollbacks[1]["message"] = "requested; the patch was not carried out".into();
    });
}

#[test]
fn an_unknown_one_that_the_versions_decide_is_found() {
    let unknown = |history: &mut History, last: Value| {
        history.rollbacks[1]["state"] = "unknown".into();
        history.api_server.drain(..2);
        history.seen = vec![version(10, 1, 0, Some("before")), last];
        history.seen.iter_mut().for_each(|version| version["at"] = at(2).into());
    };
    found("the generation is the pinned one", |history| unknown(history, version(11, 1, 0, None)));
    found("the id of the rollback before is still there", |history| {
        unknown(history, version(11, 5, 1, Some("before")));
    });
    found("the spec was changed once, to another template", |history| {
        unknown(history, version(11, 2, 0, None));
    });
    let mut history = honest();
    unknown(&mut history, version(11, 2, 1, None));
    assert!(!check(&history).iter().any(|finding| finding.contains("could have been decided")));
}

#[test]
fn a_deleted_one_may_have_left_the_spec_alone_unless_it_says_otherwise() {
    let deleted = |history: &mut History, generation: Value| {
        history.seen[2] = version(12, 1, 0, Some("made"));
        let mut last = history.seen[2].clone();
        last["change"] = "DELETED".into();
        history.seen.push(last);
        history.rollbacks[0]["state"] = "deleted".into();
        history.rollbacks[0]["generation"] = generation;
    };
    let said = "its patch did not change the spec";
    found(said, |history| deleted(history, json!(2)));
    let mut history = honest();
    deleted(&mut history, Value::Null);
    assert!(!check(&history).iter().any(|finding| finding.contains(said)));
}

#[test]
fn an_abandoned_one_may_have_left_the_spec_alone_only_if_it_says_so() {
    let harmless = |history: &mut History| {
        history.seen = vec![version(10, 1, 0, None), version(11, 1, 0, Some("lost"))];
        history.api_server.truncate(0);
        history.api_server.extend(patch("lost", "rollback", 10, 200, 11, 2));
    };
    found("lost is abandoned, and its patch took effect", harmless);
    let mut history = honest();
    harmless(&mut history);
    history.rollbacks[1]["message"] = "silent; the patch did not change the DaemonSet's spec".into();
    assert!(!check(&history).iter().any(|finding| finding.starts_with("lost is abandoned")));
}

#[test]
fn a_success_that_never_was_is_found() {
    found("made is succeeded, and its patch never took effect", |history| {
        history.seen[2]["rollback"] = Value::Null;
    });
    found("the rollout was never complete", |history| {
        history.seen[2]["status"]["numberAvailable"] = 1.into();
    });
    found("nobody has changed the template since", |history| {
        history.rollbacks[0]["state"] = "superseded".into();
    });
    // It changed nothing, and somebody's change after it was taken for its own.
    found("its patch did not change the spec", |history| {
        history.seen[2] = version(12, 1, 0, Some("made"));
        history.seen.push(version(13, 2, 1, Some("made")));
    });
    found("took effect 2 times", |history| {
        history.seen.extend([version(13, 3, 0, None), version(14, 4, 1, Some("made"))]);
    });
}

#[test]
fn an_open_one_is_found() {
    found("made is still progressing", |history| {
        history.rollbacks[0]["state"] = "progressing".into();
        history.export = export(&ENTRIES[..4]);
    });
}

#[test]
fn a_wrong_transition_is_found() {
    found("rollback.failed (entry 6) may not follow \"rollout.completed\"", |history| {
        let mut entries = ENTRIES.to_vec();
        entries.push(("made", "rollback.failed", 8));
        history.export = export(&entries);
    });
    found("its last entry is rollback.applied", |history| history.export = export(&ENTRIES[..4]));
    found("on record without an entry", |history| history.export = export(&ENTRIES[..2]));
}

#[test]
fn a_lost_acknowledged_one_is_found() {
    found("gone was acknowledged (progressing), and is on no record", |history| {
        let answer = json!({"id": "gone", "state": "progressing"});
        history.told.push(json!({"requestId": "request-gone", "status": 202, "answer": answer}));
    });
    found("made was acknowledged, and then it was not there", |history| {
        history.told.push(json!({"ask": "made", "sent": at(20), "status": 404, "answer": {}}));
    });
}

#[test]
fn a_lie_to_a_caller_is_found() {
    found("its caller was told 503", |history| {
        history.told[1] = json!({"requestId": "request-made", "status": 503, "answer": {}})
    });
    found("told to be superseded", |history| history.told[2]["answer"]["state"] = "superseded".into());
    found("told to be progressing after its end", |history| {
        history.told[2]["answer"]["state"] = "progressing".into()
    });
}

/// PostgreSQL was away when the rollout was complete.
#[test]
fn an_end_that_was_put_on_record_late_is_no_lie() {
    let mut history = honest();
    let mut entries = ENTRIES;
    entries[4].2 = 19;
    history.export = export(&entries);
    history.printed.clear();
    history.told[2]["answer"]["state"] = "progressing".into();
    assert_eq!(check(&history), Vec::<String>::new());
    found("told to be progressing after its end", |history| {
        entries[4].2 = 17;
        history.export = export(&entries);
        history.printed.clear();
        history.told[2]["answer"]["state"] = "progressing".into();
    });
}

#[test]
fn a_key_that_made_two_is_found() {
    found("k made 2 rollbacks", |history| {
        history.told[1]["key"] = "k".into();
        history.seen.push(version(13, 3, 1, Some("lost")));
    });
    found("k was answered with 2 rollbacks", |history| {
        history.told[1]["key"] = "k".into();
        let answer = json!({"id": "lost", "state": "abandoned"});
        history.told.push(json!({"requestId": "request-x", "key": "k", "status": 200, "answer": answer}));
    });
}

#[test]
fn two_undecided_at_once_are_found() {
    found("were undecided at once", |history| {
        let mut entries = ENTRIES;
        entries.swap(1, 2);
        history.export = export(&entries);
    });
}

#[test]
fn a_patch_that_was_not_pinned_is_found() {
    found("a version that it was not pinned to", |history| {
        history.api_server[5]["requestObject"]["metadata"]["resourceVersion"] = "10".into();
    });
    found("it overwrote", |history| history.seen[1]["image"] = "img:9".into());
    found("settling it changed more than an annotation", |history| {
        history.seen[1]["generation"] = 2.into();
    });
}

/// The two lines of a write of field ownership.
fn ownership(pinned_to: u64, made: u64, second: u32) -> [Value; 2] {
    let mut lines = patch("made", "rollback", pinned_to, 200, made, second);
    lines.iter_mut().for_each(|line| line["auditID"] = "ownership".into());
    lines[1]["requestObject"] = json!({
        "metadata": {"uid": "u1", "resourceVersion": pinned_to.to_string(), "managedFields": []},
    });
    lines
}

#[test]
fn a_write_of_field_ownership_is_one_of_a_rollback_on_record_as_applied() {
    let returned = |history: &mut History, second| {
        history.api_server.extend(ownership(12, 13, second));
        history.seen.push(version(13, 2, 1, Some("made")));
    };
    let mut history = honest();
    returned(&mut history, 7);
    assert_eq!(check(&history), Vec::<String>::new());
    found("before the rollback was on record as applied", |history| returned(history, 5));
    found("changed more than that", |history| {
        returned(history, 7);
        history.seen[3]["generation"] = 3.into();
    });
    found("holds more than that", |history| {
        returned(history, 7);
        history.api_server[7]["requestObject"]["spec"] = json!({});
    });
}

#[test]
fn field_ownership_that_is_not_returned_is_found_unless_it_is_said() {
    let kept = |history: &mut History| {
        let entry =
            |manager, operation| json!({"manager": manager, "operation": operation, "template": true});
        history.seen[1]["managers"] = json!([entry("kubectl", "Apply")]);
        history.seen[2]["managers"] = json!([entry("kubectl", "Apply"), entry("rollbackd", "Update")]);
    };
    found("the field ownership of the template was not returned", kept);
    let mut history = honest();
    kept(&mut history);
    history.rollbacks[0]["warnings"] = json!([{"code": "ownership-not-returned"}]);
    assert_eq!(check(&history), Vec::<String>::new());
}

#[test]
fn a_write_that_is_no_rollback_is_found() {
    found("something that is no rollback", |history| {
        history.api_server[5]["requestObject"]["metadata"]["annotations"] = json!({"a": "b"});
    });
}

#[test]
fn a_broken_chain_and_an_entry_that_was_only_printed_are_found() {
    found("the chain is broken at entry 2", |history| drop(history.export.remove(1)));
    found("was printed and is not in the audit", |history| history.printed[0]["hash"] = "0".into());
}

#[test]
fn a_write_without_an_answer_is_found_unless_the_api_server_died() {
    let died_at = |second: u32| {
        move |history: &mut History| {
            history.api_server.truncate(5);
            history.harness["apiServerKilled"] = json!([at(second)]);
        }
    };
    found("never said what came of", |history| drop(history.api_server.pop()));
    found("never said what came of", died_at(4));
    let mut history = honest();
    died_at(6)(&mut history);
    assert_eq!(check(&history), Vec::<String>::new());
}

#[test]
fn one_who_wakes_up_late_and_writes_is_found() {
    let line = |history: &History, entry: usize, life: u64| {
        let hash = &history.export[entry - 1]["hash"];
        json!({"log": "audit", "sequence": entry, "hash": hash, "life": life})
    };
    let lives = |history: &mut History, lives: [u64; 3]| {
        history.printed = (3..).zip(lives).map(|(entry, life)| line(history, entry, life)).collect();
    };
    found("process 2 went on with it, and never took it up", |history| lives(history, [1, 1, 2]));
    found("process 1 went on with it, and never took it up", |history| {
        lives(history, [1, 2, 1]);
        history.claims = vec![json!({"life": 2, "took": "made"})];
    });
    found("entry 3 was written by two processes", |history| {
        history.printed = vec![line(history, 3, 1), line(history, 3, 2)];
    });
    let mut history = honest();
    lives(&mut history, [1, 2, 2]);
    history.claims = vec![json!({"life": 2, "took": "made"})];
    assert_eq!(check(&history), Vec::<String>::new());
}

#[test]
fn a_start_on_a_store_that_is_too_new_is_found() {
    let mut history = honest();
    let said = "error: --store: a newer rollbackd has brought its schema to 5";
    history.harness["tooNew"] = json!({"code": 1, "said": [said]});
    assert_eq!(check(&history), Vec::<String>::new());
    found("did not stop with one line", |history| {
        history.harness["tooNew"] = json!({"code": null, "said": ["it went on"]});
    });
    found("did not stop with one line", |history| {
        history.harness["tooNew"] = json!({"code": 1, "said": [said, said]});
    });
}

#[test]
fn a_fault_that_never_happened_is_found() {
    found("no PostgreSQL killed", |history| {
        history.harness["faultKinds"] = json!(["PostgreSQL killed"]);
    });
}

#[test]
fn a_point_that_was_never_come_to_is_found() {
    found("it never died at recorded", |history| history.harness["kills"] = json!({}));
}
