//! What was stored.

use std::collections::HashMap;

use serde_json::Value;

use super::history::{History, text};

/// A patch of a rollback that took effect: the version that it made, and the one before.
pub struct Effect<'a> {
    pub before: &'a Value,
    pub made: &'a Value,
    /// All versions of this DaemonSet from `made` on.
    pub since: Vec<&'a Value>,
}

impl Effect<'_> {
    pub fn changed_the_spec(&self) -> bool {
        self.made["generation"] != self.before["generation"]
    }
}

pub fn versions(history: &History) -> HashMap<&str, Vec<&Value>> {
    let mut versions: HashMap<&str, Vec<&Value>> = HashMap::new();
    for seen in &history.seen {
        versions.entry(text(&seen["uid"])).or_default().push(seen);
    }
    versions
}

/// By rollback.
pub fn effects<'a>(versions: &HashMap<&'a str, Vec<&'a Value>>) -> HashMap<&'a str, Vec<Effect<'a>>> {
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
