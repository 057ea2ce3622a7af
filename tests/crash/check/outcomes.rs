//! The record and the cluster.

use serde_json::Value;

use super::{
    Facts,
    api_server::{Sent, patches, sent},
    history::{text, time},
};

impl Facts<'_> {
    /// Everything that rollbackd sent was on record before, and pinned; nothing else was sent.
    pub fn patches(&mut self) {
        for sent in sent(self.history) {
            let Some(status) = sent.status else {
                // What it was is not known either. If it took effect, the watch has seen it.
                if !self.died_with(sent.received) {
                    self.find(format!("the API server never said what came of {}", sent.uri));
                }
                continue;
            };
            if sent.body["metadata"]["managedFields"].is_array() {
                self.ownership_write(&sent, status);
                continue;
            }
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

    /// A write of field ownership: of a rollback that is on record as applied, and of nothing else.
    fn ownership_write(&mut self, sent: &Sent, status: u64) {
        let metadata = &sent.body["metadata"];
        let versions = self.versions.get(text(&metadata["uid"])).map_or(&[][..], Vec::as_slice);
        let pinned =
            versions.iter().position(|version| version["resourceVersion"] == metadata["resourceVersion"]);
        let Some(pinned) = pinned else {
            self.find(format!("field ownership was written to an unknown version: {}", sent.uri));
            return;
        };
        let before = versions[pinned];
        let id = text(&before["rollback"]).to_owned();
        let applied = self.entries.get(&id).into_iter().flatten().any(|(_, entry)| {
            matches!(text(&entry["action"]), "rollback.applied" | "rollback.skipped")
                && time(&entry["time"]) <= sent.received
        });
        let extra = sent.body.as_object().map_or(0, serde_json::Map::len) != 1
            || metadata.as_object().map_or(0, serde_json::Map::len) != 3;
        let made = versions.get(pinned + 1).copied().cloned().unwrap_or_default();
        let kept = ["generation", "rollback", "template"].iter().all(|key| made[key] == before[key]);
        if !applied {
            self.find(format!(
                "{id}: field ownership was written before the rollback was on record as applied"
            ));
        }
        if sent.verb != "patch" || extra {
            self.find(format!("{id}: a write of field ownership holds more than that"));
        }
        if status == 200 && !kept {
            self.find(format!("{id}: a write of field ownership changed more than that"));
        }
    }

    /// Where one manager applies the template, rollbackd owns nothing of it in the end, or says so.
    pub fn ownership(&mut self) {
        let mut findings = Vec::new();
        for (id, effects) in &self.effects {
            let (Some(effect), Some(rollback)) = (effects.first(), self.rollbacks.get(id)) else { continue };
            let owners = |version: &Value| {
                let entries = version["managers"].as_array().cloned().unwrap_or_default();
                entries.into_iter().filter(|entry| entry["template"] == true).collect::<Vec<_>>()
            };
            let [before] = &owners(effect.before)[..] else { continue };
            let Some(last) = effect.since.last() else { continue };
            let unchanged = last["generation"] == effect.made["generation"]
                && last["rollback"] == effect.made["rollback"]
                && last["change"] != "DELETED";
            let ours = owners(last).iter().any(|entry| entry["manager"] == "rollbackd");
            let warned = rollback["warnings"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|warning| warning["code"] == "ownership-not-returned");
            if before["operation"] == "Apply" && effect.changed_the_spec() && unchanged && ours && !warned {
                findings.push(format!("{id}: the field ownership of the template was not returned"));
            }
        }
        self.findings.append(&mut findings);
    }

    /// Whether the API server was killed while it had what came then.
    fn died_with(&self, received: i128) -> bool {
        /// It gives up by then.
        const LONGEST: i128 = 60_000_000_000;
        let killed = self.history.harness["apiServerKilled"].as_array().into_iter().flatten();
        killed.map(time).any(|killed| (received..received + LONGEST).contains(&killed))
    }

    /// What the last version before the decision proves of a patch, if anything (`MODEL.md`).
    fn proof(&self, id: &str, rollback: &Value) -> Option<&'static str> {
        let versions = self.versions.get(text(&rollback["uid"]))?;
        let decided = self.entries.get(id)?.last().map(|(_, entry)| time(&entry["time"]))?;
        let last = versions.iter().rfind(|version| time(&version["at"]) < decided)?;
        // The patch that was sent last is the one that was pinned last.
        let sent = patches(self.history);
        let mut ours: Vec<_> =
            sent.iter().filter(|sent| sent.annotation("rollbackd.dev/rollback") == Some(id)).collect();
        ours.sort_by_key(|sent| sent.received);
        let pinned_to = &ours.last()?.body["metadata"]["resourceVersion"];
        let pinned = versions.iter().find(|version| version["resourceVersion"] == *pinned_to)?;
        let changes = last["generation"].as_i64()? - pinned["generation"].as_i64()?;
        if changes == 0 {
            return Some("the generation is the pinned one");
        }
        if !pinned["rollback"].is_null() && pinned["rollback"] == last["rollback"] {
            return Some("the id of the rollback before is still there");
        }
        (changes == 1 && last["image"] != rollback["to"]["images"][0]["image"])
            .then_some("the spec was changed once, to another template")
    }

    /// What each record says is what the watch has seen.
    pub fn outcomes(&mut self) {
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
            // Its id may be lost where it left the spec alone. Then no more is said than that.
            let harmless = text(&rollback["message"]).ends_with("did not change the DaemonSet's spec");
            match (state, effect) {
                ("abandoned", Some(effect)) if harmless && !effect.changed_the_spec() => {}
                ("unknown", _) => {
                    if let Some(proof) = self.proof(id, rollback) {
                        say(format!("it could have been decided: {proof}"));
                    }
                }
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
            // With the DaemonSet gone, nothing tells.
            let untold = matches!(state, "deleted" | "unknown") && rollback["generation"].is_null();
            if !effect.changed_the_spec() && !untold {
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
}
