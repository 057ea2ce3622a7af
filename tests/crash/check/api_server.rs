//! What rollbackd sent, as the API server has logged it.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::{
    history::{History, text, time},
    model::is_undecided,
};

/// A write by rollbackd that reached the API server.
#[derive(Debug, Default)]
pub struct Sent {
    pub received: i128,
    pub uri: String,
    pub verb: String,
    pub body: Value,
    /// `None` if the API server never said what came of it.
    pub status: Option<u64>,
    pub answer: Value,
}

impl Sent {
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.body["metadata"]["annotations"][name].as_str()
    }
}

/// What rollbackd sent, dry runs left out, as the API server has logged it.
pub fn sent(history: &History) -> Vec<Sent> {
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

pub fn patches(history: &History) -> Vec<Sent> {
    sent(history).into_iter().filter(|sent| sent.annotation("rollbackd.dev/rollback").is_some()).collect()
}

/// How many patches came after the decision on their rollback, and changed nothing.
pub fn late(history: &History, patches: &[Sent]) -> usize {
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
