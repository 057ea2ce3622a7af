//! Server-sent events as a browser reads them.

use serde_json::Value;

use super::wait::PATIENCE;

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: String,
    pub name: String,
    pub data: Value,
}

/// An open stream.
pub struct Events {
    response: reqwest::Response,
    buffer: String,
    /// Comments that came, such as heartbeats.
    pub comments: usize,
    /// The value of `retry`.
    pub retry: Option<u64>,
}

impl Events {
    pub fn new(response: reqwest::Response) -> Self {
        Self { response, buffer: String::new(), comments: 0, retry: None }
    }

    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Event> {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("waited for an event")
    }

    async fn read(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.piece().await? {
                return Some(event);
            }
        }
    }

    /// The next event, or `Some(None)` for a comment or a field that is no event.
    async fn piece(&mut self) -> Option<Option<Event>> {
        loop {
            if let Some(end) = self.buffer.find("\n\n") {
                let block: String = self.buffer.drain(..end + 2).collect();
                return Some(self.parse(&block));
            }
            let chunk = self.response.chunk().await.expect("the stream is not cut")?;
            self.buffer.push_str(std::str::from_utf8(&chunk).expect("the stream is UTF-8"));
        }
    }

    fn parse(&mut self, block: &str) -> Option<Event> {
        let mut event = Event { id: String::new(), name: String::new(), data: Value::Null };
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("id", id)) => event.id = id.to_owned(),
                Some(("event", name)) => event.name = name.to_owned(),
                Some(("data", data)) => event.data = serde_json::from_str(data).expect("the data is JSON"),
                Some(("retry", retry)) => self.retry = retry.parse().ok(),
                _ if line.starts_with(':') => self.comments += 1,
                _ => assert!(line.is_empty(), "not a line of an event: {line:?}"),
            }
        }
        (!event.name.is_empty()).then_some(event)
    }

    /// Waits for the next comment, and drops events that come before it.
    pub async fn comment(&mut self) {
        let seen = self.comments;
        let waiting = async {
            while self.comments == seen {
                self.piece().await.expect("the stream goes on");
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("waited for a comment");
    }

    /// Events up to the first that `is` holds for, and that one.
    pub async fn through(&mut self, what: &str, is: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let Some(event) = self.next().await else { panic!("the stream ended before {what}: {events:?}") };
            let found = is(&event);
            events.push(event);
            if found {
                return events;
            }
        }
    }

    /// All events to the end of the stream.
    pub async fn into_all(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}
