//! The history checker: reads what the crash harness wrote down, and holds rollbackd's record to what the API
//! server and a watch have seen. `MODEL.md` is the model that it checks against.
//!
//! It shares no code with rollbackd, not even a type, so that a bug there can't hide here.
//!
//! `history` reads; `api_server` and `stored` are the two witnesses; `model` is what may follow what. What is held
//! against them is in `paths` (the record's own coherence), `outcomes` (the record and the cluster), `told` (what
//! callers heard) and `coverage` (whether the run was worth anything). `doctored` tests the checker.

mod api_server;
mod coverage;
#[cfg(test)]
mod doctored;
mod history;
mod model;
mod outcomes;
mod paths;
mod stored;
mod told;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    process::ExitCode,
};

use serde_json::Value;

use self::{
    api_server::{late, patches, sent},
    history::{History, text},
    stored::{Effect, effects, versions},
};

fn main() -> ExitCode {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("usage: crash-check DIRECTORY");
        return ExitCode::from(2);
    };
    let history = match History::read(Path::new(&folder)) {
        Ok(history) => history,
        Err(error) => {
            eprintln!("crash-check: {folder}: {error}");
            return ExitCode::from(2);
        }
    };
    let findings = check(&history);
    table(&history, findings.len());
    for finding in &findings {
        println!("finding: {finding}");
    }
    if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn table(history: &History, findings: usize) {
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for rollback in &history.rollbacks {
        *states.entry(text(&rollback["state"])).or_default() += 1;
    }
    let kills = history.harness["kills"].as_object();
    let row = |name: &str, count: u64| println!("{name:<34}{count:>8}");
    row("kills", kills.into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum());
    for (name, count) in kills.into_iter().flatten() {
        row(&format!("  {name}"), count.as_u64().unwrap_or_default());
    }
    for (name, count) in history.harness["faults"].as_object().into_iter().flatten() {
        row(name, count.as_u64().unwrap_or_default());
    }
    let claims = |what: &str| history.claims.iter().filter(|claim| !claim[what].is_null()).count() as u64;
    row("rollbacks taken up", claims("took"));
    row("rollbacks left to who took them", claims("left"));
    row("rollbacks on record", history.rollbacks.len() as u64);
    for (state, count) in &states {
        row(&format!("  {state}"), *count as u64);
    }
    row("versions of DaemonSets", history.seen.len() as u64);
    let patches = patches(history);
    row("patches that reached the API server", patches.len() as u64);
    row("  refused, as they were late", late(history, &patches) as u64);
    let unanswered = sent(history).iter().filter(|sent| sent.status.is_none()).count();
    row("writes cut by the API server's death", unanswered as u64);
    row("audit entries", history.export.len() as u64);
    row("answers", history.told.iter().filter(|told| !told["status"].is_null()).count() as u64);
    row("seconds", history.harness["seconds"].as_u64().unwrap_or_default());
    row("unknown", states.get("unknown").copied().unwrap_or_default() as u64);
    row("findings", findings as u64);
}

/// Everything that the parts of the check look at.
struct Facts<'a> {
    history: &'a History,
    rollbacks: HashMap<&'a str, &'a Value>,
    versions: HashMap<&'a str, Vec<&'a Value>>,
    effects: HashMap<&'a str, Vec<Effect<'a>>>,
    /// Entries with their sequence, by rollback.
    entries: HashMap<String, Vec<(u64, Value)>>,
    findings: Vec<String>,
}

fn check(history: &History) -> Vec<String> {
    let versions = versions(history);
    let mut entries: HashMap<String, Vec<(u64, Value)>> = HashMap::new();
    let mut findings = Vec::new();
    for line in &history.export {
        match serde_json::from_str::<Value>(text(&line["entry"])) {
            Ok(entry) => {
                if let Some(id) = entry["rollback"].as_str() {
                    let sequence = line["sequence"].as_u64().unwrap_or_default();
                    entries.entry(id.to_owned()).or_default().push((sequence, entry));
                }
            }
            Err(_) => findings.push(format!("entry {} can't be read", line["sequence"])),
        }
    }
    let rollbacks = history.rollbacks.iter().map(|rollback| (text(&rollback["id"]), rollback)).collect();
    let effects = effects(&versions);
    let mut facts = Facts { history, rollbacks, versions, effects, entries, findings };
    facts.chain();
    facts.paths();
    facts.writers();
    facts.patches();
    facts.outcomes();
    facts.ownership();
    facts.turns();
    facts.told();
    facts.keys();
    facts.coverage();
    facts.findings
}

impl Facts<'_> {
    fn find(&mut self, finding: String) {
        self.findings.push(finding);
    }

    fn state(&self, id: &str) -> &str {
        self.rollbacks.get(id).map_or("", |rollback| text(&rollback["state"]))
    }
}
