//! The record's own coherence: chain, paths, writers, turns.

use std::collections::{BTreeMap, HashMap, HashSet};

use sha2::{Digest, Sha256};

use super::{
    Facts,
    history::text,
    model::{is_open, is_undecided, may_follow, states_after},
};

/// For how long a rollback was undecided.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    daemonset: String,
    begin: u64,
    end: u64,
    id: String,
}

impl Facts<'_> {
    /// The export is one whole chain, and holds every line that rollbackd has printed.
    pub fn chain(&mut self) {
        let (mut previous, mut links) = ("0".repeat(64), HashSet::new());
        for (index, line) in self.history.export.iter().enumerate() {
            let sequence = index + 1;
            let entry = text(&line["entry"]);
            let digest = Sha256::digest(format!("rollbackd audit 1\n{sequence}\n{previous}\n{entry}"));
            let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let whole = line["sequence"] == sequence && line["previous"] == previous.as_str();
            if !whole || line["hash"] != hash.as_str() {
                self.findings.push(format!("the chain is broken at entry {sequence}"));
            }
            links.insert((sequence as u64, hash.clone()));
            previous = hash;
        }
        for printed in &self.history.printed {
            let link = (printed["sequence"].as_u64().unwrap_or_default(), text(&printed["hash"]).to_owned());
            if !links.contains(&link) {
                self.findings.push(format!("entry {} was printed and is not in the audit", link.0));
            }
        }
    }

    /// Each rollback has a legal path of entries, which ends where its record says it is; none is open.
    pub fn paths(&mut self) {
        let mut findings = Vec::new();
        for (id, rollback) in &self.rollbacks {
            let state = text(&rollback["state"]);
            if is_open(state) {
                findings.push(format!("{id} is still {state}"));
            }
            let Some(entries) = self.entries.get(*id) else {
                findings.push(format!("{id} is on record without an entry"));
                continue;
            };
            let mut last = "";
            for (sequence, entry) in entries {
                let action = text(&entry["action"]);
                if !may_follow(last).0.contains(&action) {
                    findings.push(format!("{id}: {action} (entry {sequence}) may not follow {last:?}"));
                }
                last = action;
                for field in ["namespace", "name", "uid", "requestId", "reason"] {
                    if entry[field] != rollback[field] {
                        findings.push(format!("{id}: entry {sequence} has another {field} than the record"));
                    }
                }
            }
            if !may_follow(last).1 || !states_after(last).contains(&state) {
                findings.push(format!("{id} is {state}, and its last entry is {last}"));
            }
        }
        for id in self.entries.keys() {
            if !self.rollbacks.contains_key(id.as_str()) {
                findings.push(format!("{id} has entries and no record"));
            }
        }
        self.findings.append(&mut findings);
    }

    /// Each entry was written by one process. Who goes on with another one's rollback has taken it up; who wakes
    /// up late writes nothing.
    pub fn writers(&mut self) {
        let mut written: BTreeMap<u64, u64> = BTreeMap::new();
        for printed in &self.history.printed {
            // Printed for another process, which has written it.
            if printed["takenOver"] == true {
                continue;
            }
            let (sequence, life) = (printed["sequence"].as_u64(), printed["life"].as_u64());
            let (Some(sequence), Some(life)) = (sequence, life) else { continue };
            if written.insert(sequence, life).is_some_and(|other| other != life) {
                self.findings.push(format!("entry {sequence} was written by two processes"));
            }
        }
        let mut taken: HashMap<(&str, u64), usize> = HashMap::new();
        for claim in &self.history.claims {
            if let (Some(id), Some(life)) = (claim["took"].as_str(), claim["life"].as_u64()) {
                *taken.entry((id, life)).or_default() += 1;
            }
        }
        for (id, entries) in &self.entries {
            let mut turns: HashMap<u64, usize> = HashMap::new();
            let mut last = None;
            for (index, (sequence, _)) in entries.iter().enumerate() {
                // Of the last entries of a process that was killed it isn't known.
                let Some(life) = written.get(sequence).copied() else { continue };
                if last != Some(life) && index > 0 {
                    *turns.entry(life).or_default() += 1;
                }
                last = Some(life);
            }
            for (life, turns) in turns {
                let taken = taken.get(&(id.as_str(), life)).copied().unwrap_or_default();
                // It may have begun it, without our knowing.
                let begun = entries.first().is_some_and(|(first, _)| !written.contains_key(first));
                if turns > taken + usize::from(begun) {
                    self.findings.push(format!("{id}: process {life} went on with it, and never took it up"));
                }
            }
        }
    }
    /// Never two undecided rollbacks of one DaemonSet at once.
    pub fn turns(&mut self) {
        // From the request to the decision, by sequence.
        let mut turns: Vec<Turn> = Vec::new();
        for (id, entries) in &self.entries {
            let Some((begin, first)) =
                entries.first().filter(|(_, entry)| is_undecided(text(&entry["action"])))
            else {
                continue;
            };
            let decided = entries.iter().find(|(_, entry)| !is_undecided(text(&entry["action"])));
            let end = decided.map_or(u64::MAX, |(sequence, _)| *sequence);
            let daemonset = format!("{}/{}", text(&first["namespace"]), text(&first["name"]));
            turns.push(Turn { daemonset, begin: *begin, end, id: id.clone() });
        }
        turns.sort_unstable();
        for pair in turns.windows(2) {
            let [first, second] = [&pair[0], &pair[1]];
            if first.daemonset == second.daemonset && second.begin < first.end {
                let (a, b, daemonset) = (&first.id, &second.id, &first.daemonset);
                self.findings.push(format!("{a} and {b} of {daemonset} were undecided at once"));
            }
        }
    }
}
