//! How much of what changed nothing the audit tells one by one: denials, refusals, dry runs.
//!
//! Of each action the first few of one caller, and the first of all callers together, are told one by one. What
//! comes after them within a while is summed up: of one caller in one entry for each DaemonSet and each person for
//! whom it was tried, of all callers in one entry for each caller, both up to a bound. So a flood of them neither
//! fills the store, nor holds up a real rollback, nor hides what else was tried.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Inner, now};
use crate::{
    audit::{Action, Entry, StoreError},
    domain::{
        actor::Actor,
        key::{Name, Namespace},
    },
    telemetry::causes,
};

/// Callers that are counted one by one; of others only what all have together is.
const CALLERS: usize = 1000;

/// How many entries of one action there may be.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    /// Of one caller: so many one by one, and as many that sum up. `--audit-limit-per-caller`.
    pub per_caller: usize,
    /// Of all callers together, those included that sum up what one caller did. `--audit-limit`.
    pub total: usize,
    /// Counted from the first of them.
    pub window: Duration,
}

/// Whose entries are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Group {
    Caller(String, Action),
    All(Action),
}

/// What is summed up in one entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Topic {
    /// What one caller tried for one person with one DaemonSet.
    Target(Option<Actor>, Option<Namespace>, Option<Name>),
    /// What one caller tried.
    Caller(String),
    /// What came up when there were enough of the others.
    Rest,
}

/// What callers have had within their windows.
#[derive(Debug, Default)]
pub(super) struct Used {
    windows: Mutex<HashMap<Group, Window>>,
}

#[derive(Debug, Default)]
struct Window {
    recorded: usize,
    sums: HashMap<Topic, Sum>,
}

#[derive(Debug)]
struct Sum {
    count: u64,
    last: Entry,
}

/// What becomes of an entry.
#[derive(Debug)]
struct Admission {
    /// The entry, if it is to be recorded now.
    record: Option<Entry>,
    /// Windows that it has opened.
    opened: Vec<Group>,
}

impl Group {
    fn topic(&self, entry: &Entry) -> Topic {
        match self {
            Self::Caller(..) => {
                Topic::Target(entry.on_behalf_of.clone(), entry.namespace.clone(), entry.name.clone())
            }
            Self::All(_) => Topic::Caller(entry.actor.user.clone()),
        }
    }
}

impl Window {
    fn count(&mut self, mut topic: Topic, entry: Entry, most: usize) {
        if self.sums.len() >= most && !self.sums.contains_key(&topic) {
            topic = Topic::Rest;
        }
        // One that sums up counts as what it sums up.
        let more = entry.count.unwrap_or(1);
        let count = self.sums.get(&topic).map_or(more, |sum| sum.count + more);
        self.sums.insert(topic, Sum { count, last: entry });
    }

    /// An entry for each sum, in the order of their last requests.
    fn summaries(self, group: &Group) -> Vec<Entry> {
        let mut sums: Vec<_> = self.sums.into_iter().collect();
        sums.sort_by_key(|(_, sum)| sum.last.time);
        let summary = |(topic, Sum { count, last }): (Topic, Sum)| {
            let what = match (group, topic) {
                (_, Topic::Target(..)) => "like this one",
                (_, Topic::Caller(_)) => "of this caller, beyond --audit-limit",
                (Group::Caller(..), Topic::Rest) => {
                    "of this caller, of which many DaemonSets or persons were named"
                }
                (Group::All(_), Topic::Rest) => "of many callers, beyond --audit-limit",
            };
            let message = format!("{count} more {what}; the last: {}", last.message);
            Entry { count: Some(count), time: now(), ..last }.with_message(&message)
        };
        sums.into_iter().map(summary).collect()
    }
}

impl Used {
    fn windows(&self) -> MutexGuard<'_, HashMap<Group, Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides whether an entry about a request is recorded or counted.
    fn admit(&self, entry: Entry, quota: Quota) -> Admission {
        let caller = Group::Caller(entry.actor.user.clone(), entry.action);
        let mut windows = self.windows();
        let mut opened = Vec::new();
        if windows.contains_key(&caller) || windows.len() < CALLERS {
            let window = open(&mut windows, &caller, &mut opened);
            if window.recorded >= quota.per_caller {
                window.count(caller.topic(&entry), entry, quota.per_caller);
                return Admission { record: None, opened };
            }
            window.recorded += 1;
        }
        let record = within_total(&mut windows, entry, quota, &mut opened);
        Admission { record, opened }
    }

    /// Ends a window. Returns what is left to record of it.
    fn close(&self, group: &Group, quota: Quota) -> (Vec<Entry>, Vec<Group>) {
        let mut windows = self.windows();
        let summaries = windows.remove(group).map(|window| window.summaries(group)).unwrap_or_default();
        let mut opened = Vec::new();
        let summaries = match group {
            Group::All(_) => summaries,
            Group::Caller(..) => {
                let admitted = summaries
                    .into_iter()
                    .filter_map(|summary| within_total(&mut windows, summary, quota, &mut opened));
                admitted.collect()
            }
        };
        (summaries, opened)
    }
}

fn open<'a>(
    windows: &'a mut HashMap<Group, Window>,
    group: &Group,
    opened: &mut Vec<Group>,
) -> &'a mut Window {
    windows.entry(group.clone()).or_insert_with(|| {
        opened.push(group.clone());
        Window::default()
    })
}

/// Returns the entry if there is room for it in what all callers have together, else counts it.
fn within_total(
    windows: &mut HashMap<Group, Window>,
    entry: Entry,
    quota: Quota,
    opened: &mut Vec<Group>,
) -> Option<Entry> {
    let all = Group::All(entry.action);
    let window = open(windows, &all, opened);
    if window.recorded >= quota.total {
        window.count(all.topic(&entry), entry, quota.per_caller);
        return None;
    }
    window.recorded += 1;
    Some(entry)
}

impl Inner {
    /// Records something that changed nothing, or counts it if there was enough of that.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn record_harmless(self: &Arc<Self>, entry: Entry) -> Result<(), StoreError> {
        let Admission { record, opened } = self.used.admit(entry, self.parts.quota);
        self.sum_up_later(opened);
        match record {
            Some(entry) => self.parts.store.append(&entry).await,
            None => Ok(()),
        }
    }

    fn sum_up_later(self: &Arc<Self>, opened: Vec<Group>) {
        for group in opened {
            self.parts.tasks.spawn(self.clone().sum_up(group));
        }
    }

    /// When the window is over, or rollbackd stops, records what was only counted.
    async fn sum_up(self: Arc<Self>, group: Group) {
        let quota = self.parts.quota;
        self.parts.stop.run_until_cancelled(tokio::time::sleep(quota.window)).await;
        let (summaries, opened) = self.used.close(&group, quota);
        self.sum_up_later(opened);
        for summary in summaries {
            if let Err(error) = self.parts.store.append(&summary).await {
                tracing::warn!(
                    error = %causes(&error),
                    count = summary.count,
                    "a flood of requests is not on record"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::Outcome,
        domain::{
            fixtures::{actor, rollback},
            rollback::{Mode, Origin},
        },
    };

    const QUOTA: Quota = Quota { per_caller: 2, total: 5, window: Duration::ZERO };

    fn denied(user: &str, name: &str) -> Entry {
        let mut key = rollback().key;
        key.name = Name::parse(name).unwrap();
        let origin = Origin { requested_by: actor(user), ..rollback().origin };
        let denied = (Action::Denied, Outcome::Denied);
        Entry::of_request(denied, &key, &origin, None, Mode::Apply, "no".into(), now())
    }

    fn counts(entries: &[Entry]) -> Vec<Option<u64>> {
        entries.iter().map(|entry| entry.count).collect()
    }

    #[test]
    fn flood_of_one_caller_leaves_a_bounded_number_of_entries() {
        let used = Used::default();
        let mut recorded = 0;
        for number in 0..100 {
            let admission = used.admit(denied("a", &format!("agent-{}", number % 10)), QUOTA);
            recorded += usize::from(admission.record.is_some());
            assert_eq!(admission.opened.len(), if number == 0 { 2 } else { 0 });
        }
        assert_eq!(recorded, 2);
        let (summaries, opened) = used.close(&Group::Caller("a".into(), Action::Denied), QUOTA);
        assert_eq!((summaries.len(), opened.len()), (3, 0));
        assert_eq!(summaries.iter().filter_map(|summary| summary.count).sum::<u64>(), 98);
        assert_eq!(used.windows().len(), 1);
    }

    #[test]
    fn flood_of_many_callers_leaves_a_bounded_number_of_entries() {
        let used = Used::default();
        let mut recorded = 0;
        for number in 0..3000 {
            let user = format!("user-{}", number % 1500);
            recorded += usize::from(used.admit(denied(&user, "agent"), QUOTA).record.is_some());
        }
        assert_eq!(recorded, QUOTA.total);
        assert_eq!(used.windows().len(), CALLERS);
        let all = Group::All(Action::Denied);
        let (summaries, _) = used.close(&all, QUOTA);
        assert_eq!(summaries.len(), QUOTA.per_caller + 1);
        assert_eq!(summaries.iter().filter_map(|summary| summary.count).sum::<u64>(), 3000 - 5);
        assert!(summaries.iter().any(|summary| summary.message.contains("many callers")), "{summaries:?}");
    }

    #[test]
    fn what_sums_up_one_caller_counts_in_the_total() {
        let used = Used::default();
        for user in ["a", "b"] {
            for _ in 0..10 {
                used.admit(denied(user, "agent"), QUOTA);
            }
        }
        let close = |user: &str| used.close(&Group::Caller(user.into(), Action::Denied), QUOTA).0;
        assert_eq!(counts(&close("a")), [Some(8)]);
        assert_eq!(counts(&close("b")), [], "there is no room for it");
        let (rest, _) = used.close(&Group::All(Action::Denied), QUOTA);
        assert_eq!(counts(&rest), [Some(8)], "it is summed up with the others");
        // Another action has a quota of its own.
        let refused = Entry { action: Action::Refused, ..denied("a", "agent") };
        assert!(used.admit(refused, QUOTA).record.is_some());
    }
}
