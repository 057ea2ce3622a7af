//! What a stream told, against every version of the object.

use serde_json::Value;

use super::sse::Event;

/// The counters of a status, as Kubernetes and rollbackd name them.
pub const COUNTS: [&str; 8] = [
    "observedGeneration",
    "desiredNumberScheduled",
    "currentNumberScheduled",
    "updatedNumberScheduled",
    "numberReady",
    "numberAvailable",
    "numberUnavailable",
    "numberMisscheduled",
];

/// Generation and counters of one version.
type State = (i64, [i64; 8]);

fn of_version(version: &Value) -> State {
    let status = &version["status"];
    let generation = version["metadata"]["generation"].as_i64().expect("a generation");
    (generation, COUNTS.map(|count| status[count].as_i64().unwrap_or_default()))
}

fn of_event(event: &Event) -> State {
    let number = |name: &str| event.data[name].as_i64().unwrap_or_else(|| panic!("no {name}: {event:?}"));
    (number("generation"), COUNTS.map(number))
}

fn place(event: &Event, versions: &[Value]) -> usize {
    let version = &event.data["resourceVersion"];
    let place = versions.iter().position(|known| known["metadata"]["resourceVersion"] == *version);
    place.unwrap_or_else(|| panic!("version {version} never was: {event:?}"))
}

/// Each event says what the version of the object says that it names, and none goes back.
pub fn assert_told(events: &[Event], versions: &[Value]) {
    let mut before = 0;
    for event in events {
        let place = place(event, versions);
        assert!(place >= before, "went back to {event:?}");
        assert_eq!(of_event(event), of_version(&versions[place]), "{event:?}");
        before = place;
    }
}

/// No change between the first and the last event is left out.
pub fn assert_whole(events: &[Event], versions: &[Value]) {
    let (first, last) = (place(&events[0], versions), place(events.last().expect("events"), versions));
    let mut expected: Vec<State> = versions[first..=last].iter().map(of_version).collect();
    expected.dedup();
    let told = events.iter().filter(|event| event.name != "stalled").map(of_event);
    assert_eq!(told.collect::<Vec<_>>(), expected, "generation, {COUNTS:?}");
}
