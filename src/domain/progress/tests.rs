use super::*;
use crate::domain::fixtures::daemonset;

/// The pod of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pod {
    Missing,
    Old { available: bool },
    New { available: bool },
}

const OLD: Pod = Pod::Old { available: true };
const BROKEN: Pod = Pod::New { available: false };
const GOOD: Pod = Pod::New { available: true };

/// A rollout of generation 2 on nodes of the test's own, looked at once a second.
struct Rollout {
    nodes: Vec<Pod>,
    second: i64,
    tracker: ProgressTracker,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

/// What the controller writes of these pods.
fn status(nodes: &[Pod]) -> Counts {
    let count =
        |holds: fn(&Pod) -> bool| i32::try_from(nodes.iter().filter(|pod| holds(pod)).count()).unwrap();
    Counts {
        observed_generation: 2,
        desired_number_scheduled: count(|_| true),
        current_number_scheduled: count(|pod| *pod != Pod::Missing),
        updated_number_scheduled: count(|pod| matches!(pod, Pod::New { .. })),
        number_available: count(|pod| {
            matches!(pod, Pod::Old { available: true } | Pod::New { available: true })
        }),
        ..Counts::default()
    }
}

fn state(nodes: &[Pod]) -> DaemonSet {
    DaemonSet { generation: 2, status: status(nodes), ..daemonset("b") }
}

impl Rollout {
    fn of(nodes: &[Pod]) -> Self {
        let tracker = ProgressTracker::new(&state(nodes), at(0));
        Self { nodes: nodes.to_vec(), second: 0, tracker }
    }

    /// Shows the nodes as they are now, and says whether that was progress.
    fn look(&mut self) -> bool {
        let before = self.tracker.steps();
        self.second += 1;
        self.tracker.observe(&state(&self.nodes), at(self.second));
        let moved = self.tracker.steps() > before;
        assert_eq!(moved, self.tracker.moved_at() == at(self.second));
        moved
    }

    fn becomes(&mut self, node: usize, pod: Pod) -> bool {
        self.nodes[node] = pod;
        self.look()
    }

    /// A node joins: it has no pod at first, then one of the newest template, then perhaps an available one.
    fn join(&mut self, pod: Pod) -> [bool; 3] {
        self.nodes.push(Pod::Missing);
        let joined = self.look();
        let last = self.nodes.len() - 1;
        [joined, self.becomes(last, BROKEN), self.becomes(last, pod)]
    }

    fn leave(&mut self, node: usize) -> bool {
        self.nodes.remove(node);
        self.look()
    }
}

#[test]
fn counts_of_the_generation_before_are_no_progress_of_this_one() {
    let mut live = state(&[GOOD, GOOD, GOOD]);
    live.status.observed_generation = 1;
    let mut tracker = ProgressTracker::new(&live, at(0));
    tracker.observe(&live, at(1));
    assert_eq!(tracker.moved_at(), at(0));
    for (second, nodes) in [(2, [OLD, OLD, OLD]), (10, [GOOD, OLD, OLD]), (20, [GOOD, GOOD, OLD])] {
        tracker.observe(&state(&nodes), at(second));
        assert_eq!(tracker.moved_at(), at(second));
    }
}

#[test]
fn rollout_on_a_fixed_set_of_nodes_moves_with_each_node() {
    for size in [1, 2, 3, 8, 100] {
        let mut rollout = Rollout::of(&vec![OLD; size]);
        for node in 0..size {
            rollout.becomes(node, Pod::Missing);
            assert!(rollout.becomes(node, BROKEN), "node {node} of {size} got its pod");
            assert!(rollout.becomes(node, GOOD), "the pod of node {node} of {size} is available");
        }
        assert_eq!(Rollout::of(&rollout.nodes).tracker.least, Left::default());
    }
}

#[test]
fn rollout_moves_while_nodes_join_and_leave() {
    let mut rollout = Rollout::of(&[GOOD, GOOD, OLD, OLD, OLD, OLD]);
    for _ in 0..4 {
        rollout.join(GOOD);
        let old = rollout.nodes.iter().position(|pod| *pod == OLD).unwrap();
        rollout.becomes(old, Pod::Missing);
        assert!(rollout.becomes(old, BROKEN), "{:?}", rollout.nodes);
        assert!(rollout.becomes(old, GOOD), "{:?}", rollout.nodes);
        rollout.leave(0);
    }
}

#[test]
fn rollout_goes_on_when_most_of_the_updated_nodes_have_left() {
    let mut rollout = Rollout::of(&[GOOD, GOOD, GOOD, GOOD, GOOD, OLD, OLD, OLD]);
    rollout.nodes.drain(..4);
    assert!(!rollout.look(), "four updated nodes have left");
    for node in 1..4 {
        assert!(rollout.becomes(node, BROKEN), "{} of 4 nodes are updated", node + 1);
    }
}

#[test]
fn nodes_that_leave_are_no_progress_whatever_they_ran() {
    for leaving in [OLD, Pod::Old { available: false }, BROKEN, GOOD, Pod::Missing] {
        let mut rollout = Rollout::of(&[leaving, BROKEN, GOOD, OLD, OLD]);
        assert!(!rollout.leave(0), "{leaving:?}");
        assert!(!rollout.look(), "{leaving:?}");
        assert!(rollout.becomes(0, GOOD), "a rollout moves on after {leaving:?} has left");
    }
}

#[test]
fn stuck_rollout_makes_no_progress_by_nodes_that_join_with_broken_pods() {
    let mut rollout = Rollout::of(&[BROKEN, OLD, OLD, OLD, OLD]);
    for _ in 0..100 {
        assert_eq!(rollout.join(BROKEN), [false; 3], "{:?}", rollout.nodes);
    }
    let limit = Duration::from_secs(300);
    assert!(rollout.tracker.is_stalled(Phase::Updating, limit, at(rollout.second)));
    // A node and its pod may be shown at once, or several together.
    rollout.nodes.extend([BROKEN; 3]);
    assert!(!rollout.look());
    rollout.nodes.extend([Pod::Missing; 3]);
    assert!(!rollout.look());
    let last = rollout.nodes.len() - 3;
    rollout.nodes[last..].fill(BROKEN);
    assert!(!rollout.look());
    assert!(rollout.becomes(1, BROKEN), "an old pod is replaced at last");
}

#[test]
fn rollout_moves_while_new_nodes_wait_for_a_quota() {
    let mut rollout = Rollout::of(&[GOOD, OLD, OLD, OLD]);
    rollout.nodes.extend([Pod::Missing; 5]);
    assert!(!rollout.look());
    for node in 1..4 {
        rollout.becomes(node, Pod::Missing);
        rollout.becomes(node, BROKEN);
        assert!(rollout.becomes(node, GOOD), "node {node}");
    }
}

#[test]
fn stuck_rollout_makes_no_progress_by_nodes_that_come_and_go() {
    let mut rollout = Rollout::of(&[BROKEN, OLD, OLD, OLD, OLD]);
    for _ in 0..20 {
        assert_eq!(rollout.join(BROKEN), [false; 3]);
        assert!(!rollout.leave(rollout.nodes.len() - 1));
        // Tainted and untainted: the pod stays on the node all the time.
        let tainted = rollout.nodes.remove(1);
        assert!(!rollout.look());
        rollout.nodes.insert(1, tainted);
        assert!(!rollout.look());
    }
    assert!(rollout.becomes(1, BROKEN), "what has come back is still to be done");
    assert!(rollout.becomes(0, GOOD));
}

#[test]
fn new_nodes_of_a_complete_rollout_are_waited_for_one_by_one() {
    let mut rollout = Rollout::of(&[GOOD; 3]);
    rollout.nodes.extend([Pod::Missing; 4]);
    assert!(!rollout.look());
    rollout.nodes[3..].fill(BROKEN);
    assert!(!rollout.look());
    for node in 3..7 {
        assert!(rollout.becomes(node, GOOD), "node {node}");
    }
}

#[test]
fn pod_that_crashes_again_and_again_makes_no_progress() {
    let mut rollout = Rollout::of(&[BROKEN, OLD, OLD]);
    assert!(rollout.becomes(0, GOOD), "it was available once");
    for _ in 0..10 {
        assert!(!rollout.becomes(0, BROKEN));
        assert!(!rollout.becomes(0, GOOD));
    }
    let now = at(rollout.second);
    assert!(rollout.tracker.is_stalled(Phase::Updating, Duration::from_secs(20), now));
    assert!(!rollout.tracker.is_stalled(Phase::Updating, Duration::from_secs(21), now));
    assert!(!rollout.tracker.is_stalled(Phase::Complete, Duration::from_secs(1), now));
    assert!(rollout.becomes(1, BROKEN));
}

#[test]
fn surge_makes_progress_when_an_old_pod_gives_way() {
    // With maxSurge the old pod counts until it is gone, and a new one is available by then.
    let mut rollout = Rollout::of(&[OLD; 4]);
    assert!(!rollout.look(), "new pods that start beside the old ones are not counted");
    for node in 0..3 {
        assert!(rollout.becomes(node, GOOD), "node {node}");
        assert!(!rollout.look());
    }
}

#[test]
fn new_generation_and_completion_start_the_clock_again() {
    let mut rollout = Rollout::of(&[GOOD, OLD]);
    assert!(rollout.becomes(1, GOOD));
    assert!(rollout.look(), "a complete rollout does not stand still");
    assert!(!rollout.becomes(1, BROKEN));
    let mut live = state(&rollout.nodes);
    live.generation = 3;
    rollout.tracker.observe(&live, at(50));
    assert_eq!(rollout.tracker.moved_at(), at(50));
}
