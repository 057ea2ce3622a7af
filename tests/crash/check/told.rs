//! What callers were told.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::{
    Facts,
    history::{text, time},
    model::{is_open, states_after},
};

impl Facts<'_> {
    /// What callers were told is true, and what was acknowledged is there.
    pub fn told(&mut self) {
        let by_request: HashMap<&str, &str> =
            self.rollbacks.iter().map(|(id, rollback)| (text(&rollback["requestId"]), *id)).collect();
        let printed = self.history.printed.iter();
        let printed: HashMap<u64, i128> =
            printed.map(|line| (line["sequence"].as_u64().unwrap_or_default(), time(&line["at"]))).collect();
        let mut findings = Vec::new();
        for told in &self.history.told {
            let (status, answer) = (told["status"].as_u64().unwrap_or_default(), &told["answer"]);
            let asked = told["ask"].as_str();
            if let Some(id) = asked
                && status == 404
            {
                findings.push(format!("{id} was acknowledged, and then it was not there"));
            }
            if matches!(status, 200 | 202) && answer["dryRun"].is_null() {
                let (id, state) = (text(&answer["id"]), text(&answer["state"]));
                let Some(rollback) = self.rollbacks.get(id) else {
                    findings.push(format!("{id} was acknowledged ({state}), and is on no record"));
                    continue;
                };
                let entries = self.entries.get(id).map_or(&[][..], Vec::as_slice);
                let passed =
                    |(_, entry): &(u64, Value)| states_after(text(&entry["action"])).contains(&state);
                if !entries.iter().any(passed) || (!is_open(state) && rollback["state"] != state) {
                    findings.push(format!("{id} was told to be {state}, and is {}", self.state(id)));
                }
                // From then on it was on record: without the store that may be long after the end. Two seconds:
                // the time is taken before it is written.
                let recorded = entries.last().map_or(0, |(sequence, entry)| {
                    let printed = printed.get(sequence).copied().unwrap_or_default();
                    printed.max(time(&entry["time"])).max(time(&rollback["endedAt"]))
                });
                let late = time(&told["sent"]) - recorded > 2_000_000_000;
                if asked.is_some() && is_open(state) && late && !rollback["endedAt"].is_null() {
                    findings.push(format!("{id} was told to be {state} after its end"));
                }
            }
            // A refusal says that nothing was changed, but for the two that say otherwise.
            if status >= 400
                && asked.is_none()
                && let Some(id) = by_request.get(text(&told["requestId"]))
                && self.effects.contains_key(id)
                && !matches!(self.state(id), "unknown" | "deleted" | "skipped")
            {
                findings.push(format!("{id}: its caller was told {status}, and its patch took effect"));
            }
        }
        self.findings.append(&mut findings);
    }

    /// A key makes one rollback, and all who send it are told of that one.
    pub fn keys(&mut self) {
        let mut keys: BTreeMap<&str, (HashSet<&str>, HashSet<&str>)> = BTreeMap::new();
        for told in &self.history.told {
            let Some(key) = told["key"].as_str() else { continue };
            let (requests, ids) = keys.entry(key).or_default();
            requests.insert(text(&told["requestId"]));
            let made =
                matches!(told["status"].as_u64(), Some(200 | 202)) && told["answer"]["dryRun"].is_null();
            if made {
                ids.insert(text(&told["answer"]["id"]));
            }
        }
        for (key, (requests, ids)) in keys {
            if ids.len() > 1 {
                self.findings.push(format!("{key} was answered with {} rollbacks", ids.len()));
            }
            let made = self.rollbacks.iter().filter(|(id, rollback)| {
                requests.contains(text(&rollback["requestId"])) && self.effects.contains_key(*id)
            });
            let made = made.count();
            if made > 1 {
                self.findings.push(format!("{key} made {made} rollbacks"));
            }
        }
    }
}
