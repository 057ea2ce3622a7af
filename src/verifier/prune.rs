//! Whether the entries that were pruned were old enough.
//!
//! What was pruned is gone: how old it was is known from the entry that says that it was pruned, and that entry is held
//! to the time of the entries around it. A clock that was ahead shows in the entries after it.

use jiff::{SignedDuration, Timestamp};

use super::chain::Text;

/// How far the clocks of replicas may be apart, and the order of entries from that of their times.
const SKEW: SignedDuration = SignedDuration::from_hours(1);

/// The prunes that an audit tells of.
pub(super) struct Prunes {
    retention: Option<SignedDuration>,
    /// The last one, while no entry has shown that its clock was wrong.
    last: Option<(i64, Timestamp)>,
}

impl Prunes {
    /// Without a retention nothing is checked.
    pub fn new(retention: Option<SignedDuration>) -> Self {
        Self { retention, last: None }
    }

    /// Takes the next entry; returns what is wrong, and with which entry.
    pub fn take(&mut self, sequence: i64, text: &Text) -> Vec<(i64, String)> {
        let (Some(retention), Ok(time)) = (self.retention, text.time.parse::<Timestamp>()) else {
            return Vec::new();
        };
        let mut findings = Vec::new();
        if let Some((pruned_by, at)) = self.last
            && time.duration_since(at) < -SKEW
        {
            let what = format!("it pruned by a clock that was ahead: entry {sequence} is of {time}");
            findings.push((pruned_by, what));
            self.last = None;
        }
        if text.action != "audit.cut" {
            return findings;
        }
        self.last = Some((sequence, time));
        match newest(text) {
            None => findings.push((sequence, "it does not say how old the pruned entries were".to_owned())),
            Some(newest) if time.duration_since(newest) < retention => {
                let age = time.duration_since(newest);
                let what = format!("it pruned an entry of {newest}, {age:#} old: less than --retention");
                findings.push((sequence, what));
            }
            Some(_) => {}
        }
        findings
    }
}

/// The time of the newest entry that was pruned, or, as earlier versions say, before which all were.
fn newest(text: &Text) -> Option<Timestamp> {
    match &text.newest_cut {
        Some(time) => time.parse().ok(),
        None => text.message.split_once("older than ")?.1.split(',').next()?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn findings(entries: &[Value]) -> Vec<(i64, String)> {
        let mut prunes = Prunes::new(Some(SignedDuration::from_hours(24 * 100)));
        let texts = entries.iter().map(|entry| serde_json::from_value::<Text>(entry.clone()).unwrap());
        (1..).zip(texts).flat_map(|(sequence, text)| prunes.take(sequence, &text)).collect()
    }

    fn entry(time: &str, more: Value) -> Value {
        let mut entry = json!({"version": 1, "time": time, "action": "rollback.denied", "outcome": "denied", "actor": {"user": "u"}});
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        entry
    }

    fn cut(time: &str, more: Value) -> Value {
        let mut entry = entry(time, more);
        entry["action"] = "audit.cut".into();
        entry
    }

    #[test]
    fn prune_of_old_entries_is_no_finding() {
        let before = "entries 1 to 2 were cut: older than 2026-01-02T00:00:00Z, as --audit-retention says";
        let all = [
            cut("2026-06-01T00:00:00Z", json!({"newestCut": "2026-01-01T00:00:00Z"})),
            cut("2026-06-02T00:00:00Z", json!({"message": before})),
            // Another replica's clock is behind.
            entry("2026-06-01T23:30:00Z", json!({})),
        ];
        assert_eq!(findings(&all), []);
    }

    #[test]
    fn prune_of_young_entries_is_a_finding() {
        let before = "entries 1 to 2 were cut: older than 2026-05-02T00:00:00Z, as --audit-retention says";
        let all = [
            cut("2026-06-01T00:00:00Z", json!({"newestCut": "2026-05-01T00:00:00Z"})),
            cut("2026-06-01T00:00:00Z", json!({"message": before})),
            cut("2026-06-01T00:00:00Z", json!({"message": "trust me"})),
        ];
        let found = findings(&all);
        assert_eq!(found.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [1, 2, 3], "{found:?}");
        assert!(found[0].1.contains("2026-05-01T00:00:00Z"), "{found:?}");
    }

    #[test]
    fn prune_by_a_clock_that_was_ahead_is_a_finding() {
        let all = [
            entry("2026-06-01T00:00:00Z", json!({})),
            cut("2029-06-01T00:00:00Z", json!({"newestCut": "2026-06-01T00:00:00Z"})),
            entry("2026-06-01T00:01:00Z", json!({})),
            entry("2026-06-01T00:02:00Z", json!({})),
        ];
        let found = findings(&all);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0 == 2 && found[0].1.contains("clock that was ahead"), "{found:?}");
    }
}
