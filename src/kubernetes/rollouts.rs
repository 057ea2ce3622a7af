//! The rollout of one DaemonSet, as one watch tells it: one [`Frame`] a change, shared by all who listen.
//!
//! One task writes ([`Topic::apply`], [`Topic::end`], [`Topic::tick`]); any number listen. A listener reads from a
//! ring of [`RING`] frames: one that falls behind skips to the newest state, and no listener has a queue of its own.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::broadcast;

use crate::domain::{
    daemonset::WatchedDaemonSet,
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
    pub daemonset: Arc<WatchedDaemonSet>,
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

/// The rollout of one DaemonSet, or of several of one name after each other, and its listeners.
#[derive(Debug, Default)]
pub(super) struct Topic {
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
        daemonset: Arc<WatchedDaemonSet>,
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
    pub fn fresh(daemonset: Arc<WatchedDaemonSet>, now: Timestamp) -> Self {
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

    /// The DaemonSet is gone.
    pub fn end(&mut self, now: Timestamp) {
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

    /// The watch shows the DaemonSet. A rollout that does not move for `stall_after` is stalled.
    pub fn apply(&mut self, daemonset: Arc<WatchedDaemonSet>, now: Timestamp, stall_after: Duration) {
        if self.daemonset().is_some_and(|known| known.uid != daemonset.uid) {
            self.end(now);
        }
        let (progress, mut generations, previous) = match self.tracked.take() {
            Some(Tracked { latest, mut progress, generations }) => {
                progress.observe(&daemonset, now);
                (progress, generations, Some(latest))
            }
            None => (ProgressTracker::new(&daemonset, now), VecDeque::new(), None),
        };
        remember(&mut generations, &daemonset);
        let mut frame = Frame::new(self.seq + 1, daemonset, &progress, now, stall_after);
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
                self.next_seq();
                let frame = Arc::new(frame);
                self.publish(&frame);
                frame
            }
        };
        self.tracked = Some(Tracked { latest, progress, generations });
    }

    /// Time has passed: finds out whether the rollout stands still, and forgets a ring without listeners.
    pub fn tick(&mut self, now: Timestamp, stall_after: Duration) {
        if self.ring.as_ref().is_some_and(|ring| ring.receiver_count() == 0) {
            self.ring = None;
        }
        let Some(tracked) = &self.tracked else { return };
        let latest = &tracked.latest;
        let stalled = tracked.progress.is_stalled(latest.rollout.phase, stall_after, now);
        if !stalled || latest.stalled_since.is_some() {
            return;
        }
        let frame = Arc::new(Frame {
            seq: self.seq + 1,
            event: FrameEvent::Stalled,
            daemonset: latest.daemonset.clone(),
            rollout: latest.rollout.clone(),
            observed_at: now,
            stalled_since: Some(tracked.progress.moved_at()),
            steps: tracked.progress.steps(),
            encoded: OnceLock::new(),
        });
        self.next_seq();
        self.publish(&frame);
        if let Some(tracked) = &mut self.tracked {
            tracked.latest = frame;
        }
    }

    /// Whether there is no DaemonSet and no listener.
    pub fn is_idle(&self) -> bool {
        self.tracked.is_none() && self.ring.is_none()
    }

    /// The DaemonSet at the version that the watch showed last.
    pub fn daemonset(&self) -> Option<&Arc<WatchedDaemonSet>> {
        self.latest().map(|latest| &latest.daemonset)
    }

    /// The state now.
    pub fn latest(&self) -> Option<&Arc<Frame>> {
        self.tracked.as_ref().map(|tracked| &tracked.latest)
    }

    /// Joins: the state now and everything after it, with nothing missing in between.
    pub fn listen(&mut self) -> Listener {
        let ring = self.ring.get_or_insert_with(|| broadcast::channel(RING).0).subscribe();
        Listener { snapshot: self.latest().cloned(), ring }
    }

    /// The template that the DaemonSet had in one generation, if the watch showed it.
    pub fn template_at(&self, generation: i64) -> Option<Fingerprint> {
        let tracked = self.tracked.as_ref()?;
        tracked.generations.iter().find(|(seen, _)| *seen == generation).map(|(_, template)| *template)
    }
}

fn remember(generations: &mut VecDeque<(i64, Fingerprint)>, daemonset: &WatchedDaemonSet) {
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
    use crate::domain::fixtures::{self, daemonset};

    const STALL_AFTER: Duration = Duration::from_secs(10);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn updated(count: i32) -> WatchedDaemonSet {
        let mut live = daemonset("a").watched();
        live.status.updated_number_scheduled = count;
        live
    }

    fn apply(topic: &mut Topic, daemonset: WatchedDaemonSet, second: i64) {
        topic.apply(Arc::new(daemonset), at(second), STALL_AFTER);
    }

    fn received(listener: &mut Listener) -> Vec<(FrameEvent, u64)> {
        std::iter::from_fn(|| listener.ring.try_recv().ok()).map(|frame| (frame.event, frame.seq)).collect()
    }

    #[test]
    fn each_change_is_one_frame_and_a_mere_new_version_is_none() {
        let mut topic = Topic::default();
        apply(&mut topic, updated(1), 0);
        let mut listener = topic.listen();
        assert_eq!(listener.snapshot.as_ref().unwrap().seq, 1);
        let mut newer = updated(1);
        newer.resource_version = "2".into();
        apply(&mut topic, newer.clone(), 1);
        apply(&mut topic, updated(2), 2);
        apply(&mut topic, updated(3), 3);
        assert_eq!(received(&mut listener), [(FrameEvent::Progress, 2), (FrameEvent::Complete, 3)]);
        apply(&mut topic, newer, 4);
        assert_eq!(topic.daemonset().unwrap().resource_version, "2");
    }

    #[test]
    fn standing_still_is_said_once_until_it_moves_again() {
        let mut topic = Topic::default();
        apply(&mut topic, updated(1), 0);
        let mut listener = topic.listen();
        for second in [9, 10, 11, 12] {
            topic.tick(at(second), STALL_AFTER);
        }
        assert_eq!(received(&mut listener), [(FrameEvent::Stalled, 2)]);
        assert!(topic.latest().unwrap().stalled_since.is_some());
        apply(&mut topic, updated(1), 13);
        assert_eq!(received(&mut listener), []);
        apply(&mut topic, updated(2), 14);
        assert_eq!(received(&mut listener), [(FrameEvent::Progress, 3)]);
        assert!(topic.latest().unwrap().stalled_since.is_none());
    }

    #[test]
    fn one_of_the_same_name_made_again_ends_the_first() {
        let mut topic = Topic::default();
        apply(&mut topic, updated(1), 0);
        let mut listener = topic.listen();
        let mut again = updated(1);
        again.uid = "u2".into();
        apply(&mut topic, again, 1);
        assert_eq!(received(&mut listener), [(FrameEvent::Deleted, 2), (FrameEvent::Progress, 3)]);
        topic.end(at(2));
        assert_eq!(received(&mut listener), [(FrameEvent::Deleted, 4)]);
        assert!(topic.latest().is_none() && !topic.is_idle());
        drop(listener);
        topic.tick(at(3), STALL_AFTER);
        assert!(topic.is_idle());
    }

    #[test]
    fn templates_of_generations_are_remembered() {
        let mut topic = Topic::default();
        let mut live = daemonset("a");
        apply(&mut topic, live.clone().watched(), 0);
        live.generation = 2;
        live.template = fixtures::template("b");
        apply(&mut topic, live.clone().watched(), 1);
        assert_eq!(topic.template_at(1), Some(fixtures::template("a").fingerprint()));
        assert_eq!(topic.template_at(2), Some(live.template.fingerprint()));
        assert_eq!(topic.template_at(3), None);
    }
}
