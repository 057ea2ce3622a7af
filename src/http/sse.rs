//! Server-sent events: the stream of one rollout, and of one rollback.
//!
//! A frame is encoded once and its bytes are shared by all listeners. A stream begins with the state
//! now, goes on with each change and ends after a final event, or when its caller's token or right is gone;
//! whoever comes back with the id of that
//! final event as `Last-Event-ID` gets 204, which stops `EventSource`.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use tokio::{
    sync::{broadcast::error::RecvError, watch},
    time::MissedTickBehavior,
};

use super::{
    App, Depth, handlers::rollbacks::RollbackView, handlers::status::RolloutStatus, streams::StreamPermit,
};
use crate::{
    auth::Caller,
    domain::{
        access::Access, daemonset::WatchedDaemonSet, key::Key, rollback::Rollback, template::Fingerprint,
    },
    kubernetes::{Frame, FrameEvent, rollouts::Listener},
};

const RETRY: Bytes = Bytes::from_static(b"retry: 2000\n\n");
const HEARTBEAT: Bytes = Bytes::from_static(b": heartbeat\n\n");

/// The generation that a stream was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Pinned {
    pub generation: i64,
    /// The template of that generation, once known.
    pub template: Option<Fingerprint>,
}

impl Pinned {
    /// Whether a DaemonSet has gone on to another template. A new generation with the same template,
    /// such as another `maxUnavailable`, is not that.
    #[must_use]
    pub fn is_superseded_by(&mut self, daemonset: &WatchedDaemonSet) -> bool {
        let template = daemonset.template.fingerprint();
        if daemonset.generation == self.generation {
            self.template = Some(template);
        }
        daemonset.generation > self.generation && self.template != Some(template)
    }
}

/// Data of the event `stale`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StaleEvent {
    /// True when the watch has died: no news is no longer good news. False when it is back.
    pub stale: bool,
}

/// Whether `Last-Event-ID` names the final event of this generation of this DaemonSet.
#[must_use]
pub fn has_ended(headers: &HeaderMap, daemonset: &WatchedDaemonSet) -> bool {
    let expected = [daemonset.uid.as_str(), &daemonset.generation.to_string()];
    let parts: Vec<&str> = last_event_id(headers).unwrap_or_default().split('.').collect();
    matches!(parts.as_slice(), [uid, generation, _seq, "complete" | "deleted" | "superseded"] if [*uid, *generation] == expected)
}

/// The value of `Last-Event-ID`.
#[must_use]
pub fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    headers.get("last-event-id")?.to_str().ok()
}

/// The answer that carries a stream.
pub fn response(stream: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")),
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(stream)).into_response()
}

fn event(id: &str, name: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("an event has string keys");
    format!("id: {id}\nevent: {name}\ndata: {data}\n\n").into()
}

fn encode(frame: &Frame) -> Bytes {
    let (name, ending) = match frame.event {
        FrameEvent::Progress => ("progress", ""),
        FrameEvent::Stalled => ("stalled", ""),
        FrameEvent::Complete => ("complete", ".complete"),
        FrameEvent::Deleted => ("deleted", ".deleted"),
    };
    event(&format!("{}{ending}", id_of(frame)), name, &RolloutStatus::of(frame))
}

fn id_of(frame: &Frame) -> String {
    format!("{}.{}.{}", frame.daemonset.uid, frame.daemonset.generation, frame.seq)
}

fn superseded(frame: &Frame, generation: i64) -> Bytes {
    let status = RolloutStatus::of(frame).superseding(generation);
    event(&format!("{}.superseded", id_of(frame)), "superseded", &status)
}

/// The rollout of one DaemonSet, from the state in `listener` on, as long as the caller has the right.
pub fn rollout(
    app: App,
    key: Key,
    listener: Listener,
    pinned: Option<Pinned>,
    (caller, permit): (Caller, StreamPermit),
    right: Access,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let end = end(app.clone(), caller, Some(right));
    let events = async_stream::stream! {
        let _open = permit;
        let latest = || app.cache.index().latest(&key);
        let told = told(listener, pinned, latest, app.health.stale(), app.limits.heartbeat);
        futures_util::pin_mut!(told);
        while let Some(bytes) = told.next().await {
            yield bytes;
        }
    };
    events.map(Ok).take_until(end)
}

/// What one listener is told: `latest` is the state that it skips to after it fell behind the ring.
fn told(
    listener: Listener,
    mut pinned: Option<Pinned>,
    latest: impl Fn() -> Option<Arc<Frame>>,
    mut stale: watch::Receiver<bool>,
    period: Duration,
) -> impl Stream<Item = Bytes> {
    async_stream::stream! {
        let mut heartbeat = heartbeat(period);
        let Listener { snapshot, mut ring } = listener;
        let mut sent: Option<Arc<Frame>> = None;
        let mut next = snapshot;
        let mut repeat = false;
        yield RETRY;
        if *stale.borrow_and_update() {
            yield event_without_id("stale", &StaleEvent { stale: true });
        }
        loop {
            let again = std::mem::take(&mut repeat);
            if let Some(frame) = next.take().filter(|frame| again || is_news(sent.as_deref(), frame)) {
                let other = sent.as_ref().filter(|sent| sent.daemonset.uid != frame.daemonset.uid);
                if let Some(gone) = other {
                    // The ring went past the event itself.
                    yield event(&format!("{}.deleted", id_of(gone)), "deleted", &RolloutStatus::of_gone(gone));
                    return;
                }
                let gone = frame.event == FrameEvent::Deleted;
                if let Some(pinned) = pinned.as_mut().filter(|_| !gone)
                    && pinned.is_superseded_by(&frame.daemonset) {
                        yield superseded(&frame, pinned.generation);
                        return;
                    }
                let old = pinned.is_some_and(|pinned| frame.daemonset.generation < pinned.generation);
                if !old || gone {
                    yield frame.encoded(encode);
                    if matches!(frame.event, FrameEvent::Complete | FrameEvent::Deleted) {
                        return;
                    }
                }
                sent = Some(frame);
            }
            tokio::select! {
                frame = ring.recv() => match frame {
                    Ok(frame) => next = Some(frame),
                    Err(RecvError::Lagged(_)) => next = latest(),
                    Err(RecvError::Closed) => return,
                },
                changed = stale.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = *stale.borrow_and_update();
                    yield event_without_id("stale", &StaleEvent { stale: now });
                    if !now {
                        next = latest();
                        repeat = true;
                    }
                }
                _ = heartbeat.tick() => yield HEARTBEAT,
            }
        }
    }
}

fn is_news(sent: Option<&Frame>, frame: &Frame) -> bool {
    sent.is_none_or(|sent| frame.seq > sent.seq || frame.daemonset.uid != sent.daemonset.uid)
}

/// An event that a reconnect must not resume from.
fn event_without_id(name: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("an event has string keys");
    format!("event: {name}\ndata: {data}\n\n").into()
}

/// The states of one rollback, to its end, as long as the caller has the right, if one is needed.
pub fn rollback(
    app: App,
    mut states: watch::Receiver<Arc<Rollback>>,
    depth: Depth,
    (caller, permit): (Caller, StreamPermit),
    right: Option<Access>,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let end = end(app.clone(), caller, right);
    let events = async_stream::stream! {
        let _open = permit;
        let mut heartbeat = heartbeat(app.limits.heartbeat);
        yield RETRY;
        loop {
            let state = states.borrow_and_update().clone();
            yield rollback_event(&app, &state, depth);
            if state.state.is_final() {
                return;
            }
            loop {
                tokio::select! {
                    changed = states.changed() => {
                        // The last state is sent before the sender is dropped.
                        if changed.is_err() {
                            return;
                        }
                        break;
                    }
                    _ = heartbeat.tick() => yield HEARTBEAT,
                }
            }
        }
    };
    events.map(Ok).take_until(end)
}

/// The only event of a rollback that has ended.
pub fn ended(
    app: &App,
    rollback: &Rollback,
    depth: Depth,
) -> impl Stream<Item = Result<Bytes, Infallible>> + use<> {
    let events = [RETRY, rollback_event(app, rollback, depth)];
    futures_util::stream::iter(events.map(Ok))
}

/// The id of a rollback's event in one state.
#[must_use]
pub fn rollback_event_id(rollback: &Rollback) -> String {
    let ending = if rollback.state.is_final() { ".ended" } else { "" };
    format!("{}.{}{ending}", rollback.id, rollback.state.as_str())
}

fn rollback_event(app: &App, rollback: &Rollback, depth: Depth) -> Bytes {
    let name = if rollback.state.is_final() { "ended" } else { "state" };
    event(&rollback_event_id(rollback), name, &RollbackView::of(app, rollback, depth))
}

fn heartbeat(period: Duration) -> tokio::time::Interval {
    let mut heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat
}

/// What ends a stream from outside: the server stops, or the caller may not listen any longer.
async fn end(app: App, caller: Caller, right: Option<Access>) {
    tokio::select! {
        () = app.stop.cancelled() => {}
        () = app.authority.watch_over(caller, right) => {}
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        domain::fixtures,
        kubernetes::{Index, watch::Budgets},
    };

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    /// The DaemonSet `u1`, with so many of three pods updated.
    fn updated(count: i32) -> WatchedDaemonSet {
        let mut daemonset = fixtures::daemonset("a").watched();
        daemonset.status.updated_number_scheduled = count;
        daemonset
    }

    fn of_uid(uid: &str, mut daemonset: WatchedDaemonSet) -> WatchedDaemonSet {
        daemonset.uid = uid.into();
        daemonset
    }

    /// A cluster of one DaemonSet, and a listener that reads only when it is asked to.
    struct Slow {
        index: Arc<Index>,
        stale: watch::Sender<bool>,
        stream: std::pin::Pin<Box<dyn Stream<Item = Bytes>>>,
    }

    impl Slow {
        fn listening(first: WatchedDaemonSet, pinned: Option<i64>) -> Self {
            let budgets = Budgets { index: usize::MAX / 2, templates: 0 };
            let index = Arc::new(Index::new(Duration::from_secs(600), budgets));
            let key = first.key.clone();
            index.apply_daemonset(first, 1, now());
            let (stale, told_stale) = watch::channel(false);
            let pinned =
                pinned.map(|generation| Pinned { generation, template: index.template_at(&key, generation) });
            let listener = index.listen(&key);
            let source = index.clone();
            let latest = move || source.latest(&key);
            let stream = told(listener, pinned, latest, told_stale, Duration::from_secs(3600));
            Self { index, stale, stream: Box::pin(stream) }
        }

        fn shows(&self, daemonset: WatchedDaemonSet) {
            self.index.apply_daemonset(daemonset, 1, now());
        }

        fn deletes(&self) {
            self.index.delete_daemonset(&updated(1).key, now());
        }

        /// Name, updated pods, uid and message of each event that there is to read now, and whether the
        /// stream has ended.
        async fn reads(&mut self) -> (Vec<(String, i64, String, String)>, bool) {
            let mut events = Vec::new();
            loop {
                let next = tokio::time::timeout(Duration::from_secs(1), self.stream.next()).await;
                let Ok(Some(bytes)) = next else { return (events, next.is_ok()) };
                let text = std::str::from_utf8(&bytes).unwrap();
                let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
                let Some(name) = field("event: ") else { continue };
                let data: serde_json::Value = serde_json::from_str(field("data: ").unwrap()).unwrap();
                let of = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
                let updated = data["updatedNumberScheduled"].as_i64().unwrap_or_default();
                events.push((name.to_owned(), updated, of("uid"), of("message")));
            }
        }

        /// Names and updated pods of what there is to read now.
        async fn names(&mut self) -> (Vec<(String, i64)>, bool) {
            let (events, ended) = self.reads().await;
            (events.into_iter().map(|(name, updated, ..)| (name, updated)).collect(), ended)
        }
    }

    fn told_so(events: &[(&str, i64)]) -> Vec<(String, i64)> {
        events.iter().map(|(name, updated)| ((*name).to_owned(), *updated)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_falls_behind_the_ring_skips_to_the_newest_state_and_ends_right() {
        let mut slow = Slow::listening(updated(0), None);
        assert_eq!(slow.names().await, (told_so(&[("progress", 0)]), false));
        for change in 0..200 {
            slow.shows(updated(1 + change % 2));
        }
        assert_eq!(slow.names().await, (told_so(&[("progress", 2)]), false));
        slow.shows(updated(1));
        slow.shows(updated(3));
        assert_eq!(slow.names().await, (told_so(&[("progress", 1), ("complete", 3)]), true));
    }

    #[tokio::test(start_paused = true)]
    async fn who_falls_behind_does_not_miss_the_end() {
        let mut slow = Slow::listening(updated(0), None);
        slow.names().await;
        for change in 0..200 {
            slow.shows(updated(1 + change % 2));
        }
        slow.shows(updated(3));
        assert_eq!(slow.names().await, (told_so(&[("complete", 3)]), true));
    }

    #[tokio::test(start_paused = true)]
    async fn who_falls_behind_a_deletion_is_told_of_it_and_not_of_the_next_of_that_name() {
        let mut slow = Slow::listening(updated(1), None);
        slow.names().await;
        slow.deletes();
        for change in 0..200 {
            slow.shows(of_uid("u2", updated(1 + change % 2)));
        }
        let (events, ended) = slow.reads().await;
        let expected = ("deleted".to_owned(), 1, "u1".to_owned(), "object has been deleted".to_owned());
        assert_eq!((events, ended), (vec![expected], true));
    }

    #[tokio::test(start_paused = true)]
    async fn the_state_is_told_again_when_the_watch_is_back() {
        let mut slow = Slow::listening(updated(1), None);
        slow.names().await;
        slow.stale.send_replace(true);
        assert_eq!(slow.names().await, (told_so(&[("stale", 0)]), false));
        slow.stale.send_replace(false);
        assert_eq!(slow.names().await, (told_so(&[("stale", 0), ("progress", 1)]), false));
    }

    #[tokio::test(start_paused = true)]
    async fn one_made_again_while_the_watch_was_dead_is_not_followed() {
        // Which of the two news comes first is up to chance.
        for _ in 0..32 {
            let mut slow = Slow::listening(updated(1), None);
            slow.stale.send_replace(true);
            slow.names().await;
            slow.deletes();
            slow.shows(of_uid("u2", updated(2)));
            slow.stale.send_replace(false);
            let (events, ended) = slow.reads().await;
            let told: Vec<_> = events.iter().filter(|(name, ..)| name != "stale").collect();
            let [(name, 1, uid, _)] = told.as_slice() else { panic!("{events:?}") };
            assert_eq!((name.as_str(), uid.as_str(), ended), ("deleted", "u1", true));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_template_supersedes_and_any_other_does_not() {
        let mut pinned = Slow::listening(updated(1), Some(1));
        let mut free = Slow::listening(updated(1), None);
        let mut next = updated(1);
        for (generation, image) in [(2, "a"), (3, "b")] {
            next.generation = generation;
            next.template = fixtures::template(image).summary().clone();
            pinned.shows(next.clone());
            free.shows(next.clone());
        }
        let told = told_so(&[("progress", 1), ("progress", 1), ("superseded", 1)]);
        assert_eq!(pinned.names().await, (told, true));
        let told = told_so(&[("progress", 1), ("progress", 1), ("progress", 1)]);
        assert_eq!(free.names().await, (told, false));
    }

    #[test]
    fn only_the_final_event_of_this_generation_is_the_end() {
        let live = fixtures::daemonset("a").watched();
        let ended = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", HeaderValue::from_str(id).unwrap());
            has_ended(&headers, &live)
        };
        for id in ["u1.1.7.complete", "u1.1.7.deleted", "u1.1.7.superseded"] {
            assert!(ended(id), "{id}");
        }
        for id in [
            "",
            "u1.1.7",
            "u1.2.7.complete",
            "u1.0.7.complete",
            "u2.1.7.complete",
            "u1.1.7.progress",
            "u1.1.7.complete.x",
            ".1.7.complete",
            "é.💥",
        ] {
            assert!(!ended(id), "{id}");
        }
        assert!(!has_ended(&HeaderMap::new(), &live));
    }
}
