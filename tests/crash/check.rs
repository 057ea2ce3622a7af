//! The history checker: reads what the crash harness wrote down, and holds rollbackd's record to what the API
//! server and a watch have seen. `MODEL.md` is the model that it checks against.
//!
//! It shares no code with rollbackd, not even a type, so that a bug there can't hide here.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    process::ExitCode,
};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Everything that was written down.
#[derive(Clone, Default)]
struct History {
    /// The API server's audit log: each write to a DaemonSet, when it came and what came of it.
    api_server: Vec<Value>,
    /// Every version of every DaemonSet, in order.
    seen: Vec<Value>,
    /// What callers asked and were told.
    told: Vec<Value>,
    /// rollbackd's audit lines on its standard output.
    printed: Vec<Value>,
    /// `rollbackd audit export`.
    export: Vec<Value>,
    /// `GET /rollbacks`.
    rollbacks: Vec<Value>,
    /// Which process has taken up whose rollback, and which has left one to another.
    claims: Vec<Value>,
    harness: Value,
}

fn main() -> ExitCode {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("usage: crash-check DIRECTORY");
        return ExitCode::from(2);
    };
    let history = match read(Path::new(&folder)) {
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

fn read(folder: &Path) -> Result<History, Box<dyn std::error::Error>> {
    let lines = |name: &str| -> Result<Vec<Value>, Box<dyn std::error::Error>> {
        let text = std::fs::read_to_string(folder.join(name)).map_err(|error| format!("{name}: {error}"))?;
        let parsed: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
        Ok(parsed.map_err(|error| format!("{name}: {error}"))?)
    };
    let harness: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("harness.json"))?)?;
    // The API server's death may cut a line, which the next one goes on with.
    let log = std::fs::read_to_string(folder.join("api-server.ndjson"))?;
    let (mut api_server, mut cut) = (Vec::new(), 0);
    for line in log.lines() {
        match serde_json::from_str(line) {
            Ok(event) => api_server.push(event),
            Err(_) => {
                cut += 1;
                let rest = line.rfind(r#"{"kind":"Event""#).map(|at| serde_json::from_str(&line[at..]));
                api_server.extend(rest.and_then(Result::ok));
            }
        }
    }
    if cut > harness["apiServerKilled"].as_array().map_or(0, Vec::len) {
        return Err(format!("api-server.ndjson: {cut} lines can't be read").into());
    }
    Ok(History {
        api_server,
        seen: lines("seen.ndjson")?,
        told: lines("told.ndjson")?,
        printed: lines("printed.ndjson")?,
        export: lines("export.ndjson")?,
        rollbacks: lines("rollbacks.ndjson")?,
        claims: lines("claims.ndjson")?,
        harness,
    })
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

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A time as nanoseconds; 0 where there is none.
fn time(value: &Value) -> i128 {
    text(value).parse::<jiff::Timestamp>().map_or(0, |time| time.as_nanosecond())
}

// --- what rollbackd sent --------------------------------------------------------------------------------

/// A write by rollbackd that reached the API server.
#[derive(Debug, Default)]
struct Sent {
    received: i128,
    uri: String,
    verb: String,
    body: Value,
    /// `None` if the API server never said what came of it.
    status: Option<u64>,
    answer: Value,
}

impl Sent {
    fn annotation(&self, name: &str) -> Option<&str> {
        self.body["metadata"]["annotations"][name].as_str()
    }
}

/// What rollbackd sent, dry runs left out, as the API server has logged it.
fn sent(history: &History) -> Vec<Sent> {
    let mut all: BTreeMap<&str, Sent> = BTreeMap::new();
    for event in &history.api_server {
        let uri = text(&event["requestURI"]);
        if !uri.contains("fieldManager=rollbackd") || uri.contains("dryRun=") {
            continue;
        }
        let sent = all.entry(text(&event["auditID"])).or_default();
        uri.clone_into(&mut sent.uri);
        text(&event["verb"]).clone_into(&mut sent.verb);
        sent.received = time(&event["requestReceivedTimestamp"]);
        if event["stage"] != "RequestReceived" {
            sent.body = event["requestObject"].clone();
            sent.status = event["responseStatus"]["code"].as_u64();
            sent.answer = event["responseObject"].clone();
        }
    }
    all.into_values().collect()
}

fn patches(history: &History) -> Vec<Sent> {
    sent(history).into_iter().filter(|sent| sent.annotation("rollbackd.dev/rollback").is_some()).collect()
}

/// How many patches came after the decision on their rollback, and changed nothing.
fn late(history: &History, patches: &[Sent]) -> usize {
    let mut decided: HashMap<String, i128> = HashMap::new();
    for line in &history.export {
        let entry: Value = serde_json::from_str(text(&line["entry"])).unwrap_or_default();
        if let Some(id) = entry["rollback"].as_str()
            && !is_undecided(text(&entry["action"]))
        {
            decided.entry(id.to_owned()).or_insert(time(&entry["time"]));
        }
    }
    let late = |patch: &&Sent| {
        let decided = patch.annotation("rollbackd.dev/rollback").and_then(|id| decided.get(id));
        patch.status != Some(200) && decided.is_some_and(|decided| patch.received > *decided)
    };
    patches.iter().filter(late).count()
}

// --- what was stored ------------------------------------------------------------------------------------

/// A patch of a rollback that took effect: the version that it made, and the one before.
struct Effect<'a> {
    before: &'a Value,
    made: &'a Value,
    /// All versions of this DaemonSet from `made` on.
    since: Vec<&'a Value>,
}

impl Effect<'_> {
    fn changed_the_spec(&self) -> bool {
        self.made["generation"] != self.before["generation"]
    }
}

fn versions(history: &History) -> HashMap<&str, Vec<&Value>> {
    let mut versions: HashMap<&str, Vec<&Value>> = HashMap::new();
    for seen in &history.seen {
        versions.entry(text(&seen["uid"])).or_default().push(seen);
    }
    versions
}

/// By rollback.
fn effects<'a>(versions: &HashMap<&'a str, Vec<&'a Value>>) -> HashMap<&'a str, Vec<Effect<'a>>> {
    let mut effects: HashMap<&str, Vec<Effect>> = HashMap::new();
    for versions in versions.values() {
        for (index, pair) in versions.windows(2).enumerate() {
            let [before, made] = [pair[0], pair[1]];
            if made["rollback"] != before["rollback"]
                && let Some(id) = made["rollback"].as_str()
            {
                let since = versions[index + 1..].to_vec();
                effects.entry(id).or_default().push(Effect { before, made, since });
            }
        }
    }
    effects
}

// --- the check ------------------------------------------------------------------------------------------

/// What may follow an action in the audit of one rollback, and whether it may be the last. The empty text is
/// the beginning.
fn may_follow(action: &str) -> (&'static [&'static str], bool) {
    match action {
        "" => (&["rollback.requested", "rollback.skipped"], false),
        "rollback.requested" => (
            &[
                "rollback.unsettled",
                "rollback.applied",
                "rollback.skipped",
                "rollback.failed",
                "rollout.deleted",
            ],
            false,
        ),
        "rollback.unsettled" => {
            (&["rollback.applied", "rollback.skipped", "rollback.failed", "rollout.deleted"], false)
        }
        // The last one with updateStrategy OnDelete.
        "rollback.applied" => {
            (&["rollout.completed", "rollout.stalled", "rollout.superseded", "rollout.deleted"], true)
        }
        "rollout.stalled" => {
            (&["rollout.resumed", "rollout.completed", "rollout.superseded", "rollout.deleted"], false)
        }
        "rollout.resumed" => {
            (&["rollout.stalled", "rollout.completed", "rollout.superseded", "rollout.deleted"], false)
        }
        _ => (&[], true),
    }
}

/// The states in which an action leaves a rollback.
fn states_after(action: &str) -> &'static [&'static str] {
    match action {
        "rollback.requested" => &["requested"],
        "rollback.unsettled" => &["unsettled"],
        "rollback.applied" => &["progressing", "applied"],
        "rollback.skipped" => &["skipped"],
        "rollback.failed" => &["failed", "abandoned", "unknown"],
        "rollout.completed" => &["succeeded"],
        "rollout.stalled" => &["stalled"],
        "rollout.resumed" => &["progressing"],
        "rollout.superseded" => &["superseded"],
        "rollout.deleted" => &["deleted"],
        _ => &[],
    }
}

fn is_undecided(action: &str) -> bool {
    matches!(action, "rollback.requested" | "rollback.unsettled")
}

fn is_open(state: &str) -> bool {
    matches!(state, "requested" | "unsettled" | "progressing" | "stalled")
}

/// For how long a rollback was undecided.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    daemonset: String,
    begin: u64,
    end: u64,
    id: String,
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

    /// The export is one whole chain, and holds every line that rollbackd has printed.
    fn chain(&mut self) {
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
    fn paths(&mut self) {
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
    fn writers(&mut self) {
        let mut written: BTreeMap<u64, u64> = BTreeMap::new();
        for printed in &self.history.printed {
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

    /// Everything that rollbackd sent was on record before, and pinned; nothing else was sent.
    fn patches(&mut self) {
        for sent in sent(self.history) {
            let Some(status) = sent.status else {
                // What it was is not known either. If it took effect, the watch has seen it.
                if !self.died_with(sent.received) {
                    self.find(format!("the API server never said what came of {}", sent.uri));
                }
                continue;
            };
            let settled = sent.annotation("rollbackd.dev/settled");
            let Some(id) = sent.annotation("rollbackd.dev/rollback").or(settled) else {
                self.find(format!(
                    "rollbackd sent something that is no rollback: {} {}",
                    sent.verb, sent.uri
                ));
                continue;
            };
            let is_rollback = settled.is_none();
            if sent.verb != "patch" || (is_rollback == sent.body["spec"].is_null()) {
                self.find(format!("{id}: this is no patch of a rollback: {} {}", sent.verb, sent.uri));
            }
            let Some(rollback) = self.rollbacks.get(id).copied() else {
                self.find(format!("a patch for {id} reached the API server, which is on no record"));
                continue;
            };
            let entries = self.entries.get(id);
            let recorded = entries.and_then(|entries| entries.first()).map(|(_, entry)| time(&entry["time"]));
            if recorded.is_none_or(|recorded| recorded > sent.received) {
                self.find(format!("{id}: a patch reached the API server before it was on record"));
            }
            let metadata = &sent.body["metadata"];
            if metadata["uid"] != rollback["uid"] || metadata["resourceVersion"].as_str().is_none() {
                self.find(format!("{id}: a patch was not pinned to the DaemonSet of the record"));
            }
            if !sent.uri.contains(&format!("/daemonsets/{}?", text(&rollback["name"]))) {
                self.find(format!("{id}: a patch went to another DaemonSet: {}", sent.uri));
            }
            // The two witnesses agree.
            let version = &sent.answer["metadata"]["resourceVersion"];
            if status == 200 && is_rollback {
                let seen = self.effects.get(id).is_some_and(|effects| {
                    effects.iter().any(|effect| effect.made["resourceVersion"] == *version)
                });
                if !seen {
                    self.find(format!("{id}: the API server said 200, and the watch has not seen it"));
                }
            }
            if status == 200 && !is_rollback {
                let versions = self.versions.get(text(&rollback["uid"])).map_or(&[][..], Vec::as_slice);
                let pair = versions.windows(2).find(|pair| pair[1]["resourceVersion"] == *version);
                let harmless = |pair: &[&Value]| {
                    pair[0]["generation"] == pair[1]["generation"]
                        && pair[0]["rollback"] == pair[1]["rollback"]
                };
                if !pair.is_some_and(harmless) {
                    self.find(format!("{id}: settling it changed more than an annotation"));
                }
            }
        }
    }

    /// Whether the API server was killed while it had what came then.
    fn died_with(&self, received: i128) -> bool {
        /// It gives up by then.
        const LONGEST: i128 = 60_000_000_000;
        let killed = self.history.harness["apiServerKilled"].as_array().into_iter().flatten();
        killed.map(time).any(|killed| (received..received + LONGEST).contains(&killed))
    }

    /// What each record says is what the watch has seen.
    fn outcomes(&mut self) {
        let mut findings = Vec::new();
        for id in self.effects.keys() {
            if !self.rollbacks.contains_key(id) {
                findings.push(format!("a patch of {id} took effect, which is on no record"));
            }
        }
        for (id, rollback) in &self.rollbacks {
            let state = text(&rollback["state"]);
            let mut say = |what: String| findings.push(format!("{id} is {state}, and {what}"));
            let effects = self.effects.get(id).map_or(&[][..], Vec::as_slice);
            if state == "abandoned" && text(&rollback["message"]).starts_with("requested") {
                say("its message does not say why".into());
            }
            if effects.len() > 1 {
                say(format!("its patch took effect {} times", effects.len()));
            }
            let versions = self.versions.get(text(&rollback["uid"])).map_or(&[][..], Vec::as_slice);
            let gone = versions.last().is_some_and(|last| last["change"] == "DELETED");
            let effect = effects.first();
            match (state, effect) {
                ("failed" | "abandoned", Some(_)) => say("its patch took effect".into()),
                ("succeeded" | "superseded" | "applied" | "progressing" | "stalled", None) => {
                    say("its patch never took effect".into());
                }
                ("skipped", Some(effect)) if effect.changed_the_spec() => {
                    say("its patch changed the spec".into())
                }
                ("deleted", _) if !gone => say("its DaemonSet was never deleted".into()),
                _ => {}
            }
            let Some(effect) = effect.filter(|_| !matches!(state, "skipped" | "failed" | "abandoned")) else {
                continue;
            };
            if !effect.changed_the_spec() {
                say("its patch did not change the spec".into());
            }
            if effect.made["uid"] != rollback["uid"] {
                say("its patch changed another DaemonSet".into());
            }
            if !matches!(state, "unknown" | "deleted") && effect.made["generation"] != rollback["generation"]
            {
                let (made, told) = (&effect.made["generation"], &rollback["generation"]);
                say(format!("it made generation {made}, not {told}"));
            }
            if effect.made["image"] != rollback["to"]["images"][0]["image"] {
                say(format!("it made {}", effect.made["image"]));
            }
            let from = &rollback["from"]["images"][0]["image"];
            if !from.is_null() && effect.before["image"] != *from {
                say(format!("it overwrote {}, not {from}", effect.before["image"]));
            }
            let template = &effect.made["template"];
            match state {
                "succeeded" => {
                    let generation = effect.made["generation"].as_i64();
                    let complete = |version: &&&Value| {
                        let status = &version["status"];
                        let count = |name: &str| status[name].as_i64().unwrap_or_default();
                        version["template"] == *template
                            && Some(count("observedGeneration")) >= generation
                            && count("observedGeneration")
                                >= version["generation"].as_i64().unwrap_or(i64::MAX)
                            && count("updatedNumberScheduled") >= count("desiredNumberScheduled")
                            && count("numberAvailable") >= count("desiredNumberScheduled")
                    };
                    if !effect.since.iter().any(|version| complete(&version)) {
                        say("the rollout was never complete".into());
                    }
                }
                "superseded" if effect.since.iter().all(|version| version["template"] == *template) => {
                    say("nobody has changed the template since".into());
                }
                _ => {}
            }
        }
        for patch in patches(self.history) {
            let id = patch.annotation("rollbackd.dev/rollback").unwrap_or_default();
            let effect = self.effects.get(id).and_then(|effects| effects.first());
            let Some(effect) = effect.filter(|_| patch.status == Some(200)) else { continue };
            if patch.body["metadata"]["resourceVersion"] != effect.before["resourceVersion"] {
                findings.push(format!("{id}: its patch took effect on a version that it was not pinned to"));
            }
        }
        self.findings.append(&mut findings);
    }

    /// Never two undecided rollbacks of one DaemonSet at once.
    fn turns(&mut self) {
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

    /// What callers were told is true, and what was acknowledged is there.
    fn told(&mut self) {
        let by_request: HashMap<&str, &str> =
            self.rollbacks.iter().map(|(id, rollback)| (text(&rollback["requestId"]), *id)).collect();
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
                // Two seconds: the end's time is taken before it is written.
                let late = time(&told["sent"]) - time(&rollback["endedAt"]) > 2_000_000_000;
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
    fn keys(&mut self) {
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

    /// rollbackd was killed at each point.
    fn coverage(&mut self) {
        let harness = &self.history.harness;
        let kinds: HashSet<&str> = harness["faultKinds"].as_array().into_iter().flatten().map(text).collect();
        for kind in kinds {
            if harness["faults"][kind].is_null() {
                self.findings.push(format!("no {kind}: that tests nothing there"));
            }
        }
        let too_new = &harness["tooNew"];
        let said = too_new["said"].as_array().map_or(&[][..], Vec::as_slice);
        let refused = matches!(said, [line] if text(line).contains("a newer rollbackd"));
        if !(too_new.is_null() || too_new["code"] == 1 && refused) {
            self.findings
                .push(format!("on a store that is too new for it, it did not stop with one line: {too_new}"));
        }
        if harness["rounds"].as_u64().unwrap_or_default() == 0 {
            return;
        }
        let points: HashSet<&str> = harness["points"].as_array().into_iter().flatten().map(text).collect();
        for point in points {
            if harness["kills"][point].is_null() {
                self.findings.push(format!("it never died at {point}: that tests nothing there"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
}
