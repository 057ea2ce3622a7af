//! The rollouts of all DaemonSets, as one watch tells them: one [`Frame`] a change, shared by all
//! who listen.
//!
//! One task writes ([`Rollouts::apply`], [`Rollouts::delete`], [`Rollouts::tick`]); any number
//! listen. A listener reads from a ring of [`RING`] frames: who falls behind it skips to the newest
//! state, and nobody has a queue of his own.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::broadcast;

use crate::domain::{
    daemonset::DaemonSet,
    key::Key,
    progress::ProgressTracker,
    rollout::{Phase, Rollout},
    template::Fingerprint,
};

/// Frames that a slow listener may lag behind.
const RING: usize = 64;
/// Generations of one DaemonSet whose template is remembered.
const GENERATIONS: usize = 32;

/// One state of one DaemonSet's rollout.
#[derive(Debug)]
pub struct Frame {
    /// Rises by one with each frame of the same DaemonSet, as long as this process lives.
    pub seq: u64,
    pub event: FrameEvent,
    pub daemonset: Arc<DaemonSet>,
    pub rollout: Rollout,
    /// When rollbackd saw it.
    pub observed_at: Timestamp,
    /// Since when the rollout has stood still, if that is longer than it should.
    pub stalled_since: Option<Timestamp>,
    /// How often the rollout has made progress since this process tracks it.
    pub steps: u64,
    encoded: OnceLock<Bytes>,
}

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameEvent {
    Progress,
    /// The rollout has just been found to stand still.
    Stalled,
    Complete,
    /// The DaemonSet is gone.
    Deleted,
}

/// All rollouts.
#[derive(Debug)]
pub struct Rollouts {
    stall_after: Duration,
    topics: Mutex<HashMap<Key, Topic>>,
}

#[derive(Debug, Default)]
struct Topic {
    tracked: Option<Tracked>,
    ring: Option<broadcast::Sender<Arc<Frame>>>,
    seq: u64,
}

#[derive(Debug)]
struct Tracked {
    latest: Arc<Frame>,
    progress: ProgressTracker,
    generations: VecDeque<(i64, Fingerprint)>,
}

/// A place in the ring, and the state at the moment of joining.
#[derive(Debug)]
pub struct Listener {
    /// `None` while the watch has not shown the DaemonSet.
    pub snapshot: Option<Arc<Frame>>,
    pub ring: broadcast::Receiver<Arc<Frame>>,
}

impl Frame {
    fn new(
        seq: u64,
        daemonset: Arc<DaemonSet>,
        progress: &ProgressTracker,
        now: Timestamp,
        limit: Duration,
    ) -> Self {
        let rollout = Rollout::of(&daemonset);
        let stalled = progress.is_stalled(rollout.phase, limit, now);
        Self {
            seq,
            event: if rollout.phase == Phase::Complete { FrameEvent::Complete } else { FrameEvent::Progress },
            stalled_since: stalled.then(|| progress.moved_at()),
            steps: progress.steps(),
            daemonset,
            rollout,
            observed_at: now,
            encoded: OnceLock::new(),
        }
    }

    /// A state read fresh, before the watch has shown the DaemonSet.
    #[must_use]
    pub fn fresh(daemonset: Arc<DaemonSet>, now: Timestamp) -> Self {
        let progress = ProgressTracker::new(&daemonset, now);
        Self::new(0, daemonset, &progress, now, Duration::MAX)
    }

    /// The frame's bytes on the wire, made by `encode` for the first listener and shared by all.
    pub fn encoded(&self, encode: impl FnOnce(&Self) -> Bytes) -> Bytes {
        self.encoded.get_or_init(|| encode(self)).clone()
    }

    /// Whether a listener could tell this frame from `other`.
    fn looks_like(&self, other: &Self) -> bool {
        // That a rollout stands still is said once; `stalled_since` goes on saying it.
        let ended = |frame: &Self| matches!(frame.event, FrameEvent::Complete | FrameEvent::Deleted);
        let shown = |frame: &Self| {
            (
                ended(frame),
                frame.daemonset.uid.clone(),
                frame.daemonset.generation,
                frame.daemonset.status,
                frame.stalled_since,
                frame.rollout.clone(),
            )
        };
        shown(self) == shown(other)
    }
}

impl Topic {
    fn publish(&mut self, frame: &Arc<Frame>) {
        if let Some(ring) = &self.ring {
            // No listener is no error.
            let _ = ring.send(frame.clone());
        }
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    fn end(&mut self, now: Timestamp) {
        let Some(tracked) = self.tracked.take() else { return };
        let last = tracked.latest;
        let frame = Arc::new(Frame {
            seq: self.next_seq(),
            event: FrameEvent::Deleted,
            daemonset: last.daemonset.clone(),
            rollout: last.rollout.clone(),
            observed_at: now,
            stalled_since: None,
            steps: last.steps,
            encoded: OnceLock::new(),
        });
        self.publish(&frame);
    }
}

impl Rollouts {
    /// No rollouts yet; a rollout that does not move for `stall_after` is called stalled.
    #[must_use]
    pub fn new(stall_after: Duration) -> Self {
        Self { stall_after, topics: Mutex::default() }
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<Key, Topic>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watch shows a DaemonSet.
    pub fn apply(&self, daemonset: Arc<DaemonSet>, now: Timestamp) {
        let mut topics = self.topics();
        let topic = topics.entry(daemonset.key.clone()).or_default();
        let tracked = topic.tracked.as_ref();
        if tracked.is_some_and(|tracked| tracked.latest.daemonset.uid != daemonset.uid) {
            topic.end(now);
        }
        let (progress, mut generations, previous) = match topic.tracked.take() {
            Some(Tracked { latest, mut progress, generations }) => {
                progress.observe(&daemonset, now);
                (progress, generations, Some(latest))
            }
            None => (ProgressTracker::new(&daemonset, now), VecDeque::new(), None),
        };
        remember(&mut generations, &daemonset);
        let mut frame = Frame::new(topic.seq + 1, daemonset.clone(), &progress, now, self.stall_after);
        let known = previous.as_ref().is_some_and(|previous| previous.stalled_since.is_some());
        if frame.stalled_since.is_some() && !known {
            frame.event = FrameEvent::Stalled;
        }
        let latest = match previous {
            // Nothing to say, but the object's newest version is what is kept.
            Some(previous) if frame.looks_like(&previous) => {
                Arc::new(Frame { seq: previous.seq, observed_at: previous.observed_at, ..frame })
            }
            _ => {
                topic.next_seq();
                let frame = Arc::new(frame);
                topic.publish(&frame);
                frame
            }
        };
        topic.tracked = Some(Tracked { latest, progress, generations });
    }

    /// The watch shows that a DaemonSet is gone.
    pub fn delete(&self, key: &Key, now: Timestamp) {
        if let Some(topic) = self.topics().get_mut(key) {
            topic.end(now);
        }
    }

    /// A relist of `scope` is over: what it did not show is gone.
    pub fn retain(&self, in_scope: impl Fn(&Key) -> bool, shown: impl Fn(&Key) -> bool, now: Timestamp) {
        for (key, topic) in self.topics().iter_mut() {
            if in_scope(key) && !shown(key) {
                topic.end(now);
            }
        }
    }

    /// Time has passed: finds rollouts that stand still, and forgets rings without listeners.
    pub fn tick(&self, now: Timestamp) {
        let mut topics = self.topics();
        for topic in topics.values_mut() {
            if topic.ring.as_ref().is_some_and(|ring| ring.receiver_count() == 0) {
                topic.ring = None;
            }
            let Some(tracked) = &topic.tracked else { continue };
            let latest = &tracked.latest;
            let stalled = tracked.progress.is_stalled(latest.rollout.phase, self.stall_after, now);
            if !stalled || latest.stalled_since.is_some() {
                continue;
            }
            let frame = Arc::new(Frame {
                seq: topic.seq + 1,
                event: FrameEvent::Stalled,
                daemonset: latest.daemonset.clone(),
                rollout: latest.rollout.clone(),
                observed_at: now,
                stalled_since: Some(tracked.progress.moved_at()),
                steps: tracked.progress.steps(),
                encoded: OnceLock::new(),
            });
            topic.next_seq();
            topic.publish(&frame);
            if let Some(tracked) = &mut topic.tracked {
                tracked.latest = frame;
            }
        }
        topics.retain(|_, topic| topic.tracked.is_some() || topic.ring.is_some());
    }

    /// The state now.
    #[must_use]
    pub fn latest(&self, key: &Key) -> Option<Arc<Frame>> {
        self.topics().get(key)?.tracked.as_ref().map(|tracked| tracked.latest.clone())
    }

    /// Joins: the state now and everything after it, with nothing missing in between.
    #[must_use]
    pub fn listen(&self, key: &Key) -> Listener {
        let mut topics = self.topics();
        let topic = topics.entry(key.clone()).or_default();
        let ring = topic.ring.get_or_insert_with(|| broadcast::channel(RING).0).subscribe();
        Listener { snapshot: topic.tracked.as_ref().map(|tracked| tracked.latest.clone()), ring }
    }

    /// The template that a DaemonSet had in one generation, if the watch showed it.
    #[must_use]
    pub fn template_at(&self, key: &Key, generation: i64) -> Option<Fingerprint> {
        let topics = self.topics();
        let tracked = topics.get(key)?.tracked.as_ref()?;
        tracked.generations.iter().find(|(seen, _)| *seen == generation).map(|(_, template)| *template)
    }

    /// How many rollouts stand still.
    #[must_use]
    pub fn stalled(&self) -> usize {
        let stalled = |topic: &&Topic| {
            topic.tracked.as_ref().is_some_and(|tracked| tracked.latest.stalled_since.is_some())
        };
        self.topics().values().filter(stalled).count()
    }
}

fn remember(generations: &mut VecDeque<(i64, Fingerprint)>, daemonset: &DaemonSet) {
    if generations.back().is_some_and(|(newest, _)| *newest == daemonset.generation) {
        return;
    }
    if generations.len() == GENERATIONS {
        generations.pop_front();
    }
    generations.push_back((daemonset.generation, daemonset.template.fingerprint()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::fixtures::daemonset;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn updated(count: i32) -> Arc<DaemonSet> {
        let mut live = daemonset("a");
        live.status.updated_number_scheduled = count;
        Arc::new(live)
    }

    fn received(listener: &mut Listener) -> Vec<(FrameEvent, u64)> {
        std::iter::from_fn(|| listener.ring.try_recv().ok()).map(|frame| (frame.event, frame.seq)).collect()
    }

    #[test]
    fn each_change_is_one_frame_and_a_mere_new_version_is_none() {
        let rollouts = Rollouts::new(Duration::from_secs(60));
        rollouts.apply(updated(1), at(0));
        let mut listener = rollouts.listen(&updated(1).key);
        assert_eq!(listener.snapshot.as_ref().unwrap().seq, 1);
        let mut newer = DaemonSet::clone(&updated(1));
        newer.resource_version = "2".into();
        rollouts.apply(Arc::new(newer.clone()), at(1));
        rollouts.apply(updated(2), at(2));
        rollouts.apply(updated(3), at(3));
        assert_eq!(received(&mut listener), [(FrameEvent::Progress, 2), (FrameEvent::Complete, 3)]);
        rollouts.apply(Arc::new(newer.clone()), at(4));
        assert_eq!(rollouts.latest(&newer.key).unwrap().daemonset.resource_version, "2");
    }

    #[test]
    fn standing_still_is_said_once_until_it_moves_again() {
        let rollouts = Rollouts::new(Duration::from_secs(10));
        rollouts.apply(updated(1), at(0));
        let mut listener = rollouts.listen(&updated(1).key);
        for second in [9, 10, 11, 12] {
            rollouts.tick(at(second));
        }
        assert_eq!(received(&mut listener), [(FrameEvent::Stalled, 2)]);
        assert_eq!(rollouts.stalled(), 1);
        rollouts.apply(updated(1), at(13));
        assert_eq!(received(&mut listener), []);
        rollouts.apply(updated(2), at(14));
        assert_eq!(received(&mut listener), [(FrameEvent::Progress, 3)]);
        assert_eq!(rollouts.stalled(), 0);
    }

    #[test]
    fn one_of_the_same_name_made_again_ends_the_first() {
        let rollouts = Rollouts::new(Duration::from_secs(10));
        rollouts.apply(updated(1), at(0));
        let key = updated(1).key.clone();
        let mut listener = rollouts.listen(&key);
        let mut again = DaemonSet::clone(&updated(1));
        again.uid = "u2".into();
        rollouts.apply(Arc::new(again), at(1));
        assert_eq!(received(&mut listener), [(FrameEvent::Deleted, 2), (FrameEvent::Progress, 3)]);
        rollouts.retain(|_| true, |_| false, at(2));
        assert_eq!(received(&mut listener), [(FrameEvent::Deleted, 4)]);
        assert!(rollouts.latest(&key).is_none());
    }

    #[test]
    fn templates_of_generations_are_remembered() {
        let rollouts = Rollouts::new(Duration::from_secs(10));
        let mut live = daemonset("a");
        rollouts.apply(Arc::new(live.clone()), at(0));
        live.generation = 2;
        live.template = crate::domain::fixtures::template("b");
        rollouts.apply(Arc::new(live.clone()), at(1));
        assert_eq!(
            rollouts.template_at(&live.key, 1),
            Some(crate::domain::fixtures::template("a").fingerprint())
        );
        assert_eq!(rollouts.template_at(&live.key, 2), Some(live.template.fingerprint()));
        assert_eq!(rollouts.template_at(&live.key, 3), None);
    }
}
