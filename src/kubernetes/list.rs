//! Lists that are read object by object, so that what is held at a time is one object, however long the list is.

use std::time::Duration;

use futures_util::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use kube::core::{ListMeta, Status};
use serde::{Deserialize, de::DeserializeOwned};

use super::transport::{Silent, Streamed};

/// For the next piece of a list to arrive.
const NEXT_PIECE: Duration = Duration::from_secs(30);
/// Largest object, in bytes. etcd takes 1.5 MiB, which as JSON can be six times as long.
const LARGEST_OBJECT: usize = 16 * 1024 * 1024;
/// Largest part of a list beside its objects, in bytes: a few names and a token.
const LARGEST_ENVELOPE: usize = 64 * 1024;

/// Reads one page of a list and hands each object to `each`. An object that can't be read is left out, with a line
/// in the log. Returns what the page says of itself.
///
/// # Errors
/// What kept the API server from answering; [`kube::Error::SerdeError`] for what is no list.
pub(super) async fn each<K: DeserializeOwned>(
    client: &kube::Client,
    mut request: Request<Vec<u8>>,
    mut each: impl FnMut(K),
) -> Result<ListMeta, kube::Error> {
    request.extensions_mut().insert(Streamed);
    let response = client.send(request.map(Into::into)).await?;
    let status = response.status();
    let body = response.into_body();
    if !status.is_success() {
        let body = body.collect().await?.to_bytes();
        let status: Status = serde_json::from_slice(&body).map_err(kube::Error::SerdeError)?;
        return Err(kube::Error::Api(Box::new(status)));
    }
    let mut pieces = body.into_data_stream();
    let mut splitter = Splitter::default();
    let silent = |_| kube::Error::Service(Silent.into());
    while let Some(piece) = tokio::time::timeout(NEXT_PIECE, pieces.next()).await.map_err(silent)? {
        let took = splitter.take(&piece?, |object| match serde_json::from_slice(object) {
            Ok(object) => each(object),
            Err(error) => tracing::warn!(%error, "an object of a list can't be read and is left out"),
        });
        took.map_err(|error| kube::Error::SerdeError(serde::de::Error::custom(error)))?;
    }
    splitter.end().map_err(kube::Error::SerdeError)
}

/// Finds the objects of a list in JSON that comes in pieces.
#[derive(Default)]
struct Splitter {
    /// Brackets and braces that are open.
    depth: usize,
    text: Text,
    part: Part,
    object: Vec<u8>,
    /// The list without its objects.
    envelope: Vec<u8>,
}

/// Whether a byte stands inside a JSON string.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Text {
    #[default]
    Outside,
    Inside,
    /// After a backslash.
    Escaped,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Envelope,
    Items,
}

/// Depth inside the array `items`.
const IN_ITEMS: usize = 2;

#[derive(Debug, thiserror::Error)]
#[error("larger than an object or a list can be")]
struct TooLarge;

#[derive(Deserialize)]
struct Envelope {
    metadata: ListMeta,
}

impl Splitter {
    /// Takes the next piece.
    fn take(&mut self, piece: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), TooLarge> {
        for &byte in piece {
            let depth = self.depth;
            self.step(byte);
            if self.part == Part::Items && depth == IN_ITEMS && self.depth < IN_ITEMS {
                self.part = Part::Envelope;
            }
            match self.part {
                Part::Envelope => self.envelope.push(byte),
                // Between the objects are commas.
                Part::Items if depth == IN_ITEMS && self.depth == IN_ITEMS => {}
                Part::Items => {
                    self.object.push(byte);
                    if self.depth == IN_ITEMS {
                        each(&self.object);
                        self.object.clear();
                        // One giant must not hold its room for as long as the list goes on.
                        self.object.shrink_to(LARGEST_ENVELOPE);
                    }
                }
            }
            if self.part == Part::Envelope
                && depth + 1 == self.depth
                && self.depth == IN_ITEMS
                && self.opens_items()
            {
                self.part = Part::Items;
            }
            if self.object.len() > LARGEST_OBJECT || self.envelope.len() > LARGEST_ENVELOPE {
                return Err(TooLarge);
            }
        }
        Ok(())
    }

    /// Whether the bracket that was just opened is that of the objects.
    fn opens_items(&self) -> bool {
        let Some(key) = self.envelope.strip_suffix(b"[") else { return false };
        let Some(key) = key.trim_ascii_end().strip_suffix(b":") else { return false };
        key.trim_ascii_end().ends_with(b"\"items\"")
    }

    fn step(&mut self, byte: u8) {
        self.text = match (self.text, byte) {
            (Text::Outside, b'"') | (Text::Escaped, _) => Text::Inside,
            (Text::Outside, b'{' | b'[') => {
                self.depth += 1;
                Text::Outside
            }
            (Text::Outside, b'}' | b']') => {
                self.depth = self.depth.saturating_sub(1);
                Text::Outside
            }
            (Text::Inside, b'"') => Text::Outside,
            (Text::Inside, b'\\') => Text::Escaped,
            (text, _) => text,
        };
    }

    /// What the list says of itself, after its last piece.
    fn end(self) -> serde_json::Result<ListMeta> {
        serde_json::from_slice::<Envelope>(&self.envelope).map(|envelope| envelope.metadata)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn split(text: &[u8], piece: usize) -> (Vec<Value>, Option<ListMeta>) {
        let (mut splitter, mut objects) = (Splitter::default(), Vec::new());
        for piece in text.chunks(piece) {
            splitter.take(piece, |object| objects.push(serde_json::from_slice(object).unwrap())).unwrap();
        }
        (objects, splitter.end().ok())
    }

    #[test]
    fn objects_are_found_wherever_the_pieces_end() {
        let items = json!([
            {"metadata": {"name": "a", "items": []}, "data": "\"}],[{\\"},
            {"data": {"items": [{"x": [1, [2]]}]}},
            {},
        ]);
        let list = json!({"kind": "L", "metadata": {"resourceVersion": "7", "continue": "t\"items\":["}, "items": items, "z": [[]]});
        for text in [list.to_string(), serde_json::to_string_pretty(&list).unwrap()] {
            for piece in 1..text.len() {
                let (objects, meta) = split(text.as_bytes(), piece);
                assert_eq!(Value::from(objects), items, "{piece}");
                let meta = meta.unwrap();
                assert_eq!(meta.resource_version.as_deref(), Some("7"));
                assert_eq!(meta.continue_.as_deref(), Some("t\"items\":["));
            }
        }
    }

    #[test]
    fn a_list_without_objects_and_one_that_breaks_off() {
        for empty in ["[]", " [ ] ", "null"] {
            let text = format!(r#"{{"items":{empty},"metadata":{{"resourceVersion":"1"}}}}"#);
            let (objects, meta) = split(text.as_bytes(), 3);
            assert_eq!((objects.len(), meta.is_some()), (0, true), "{empty}");
        }
        let (objects, meta) = split(br#"{"metadata":{},"items":[{"a":1},{"b""#, 5);
        assert_eq!((objects.len(), meta.is_none()), (1, true));
    }

    #[test]
    fn what_does_not_end_is_given_up() {
        let mut splitter = Splitter::default();
        splitter.take(br#"{"items":[{"a":""#, |_| {}).unwrap();
        let piece = vec![b'x'; 1024 * 1024];
        let took = (0..=LARGEST_OBJECT / piece.len()).try_for_each(|_| splitter.take(&piece, |_| {}));
        assert!(took.is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(text in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..9) {
            let mut splitter = Splitter::default();
            for piece in text.chunks(piece) {
                splitter.take(piece, |_| {}).unwrap();
            }
            let _ = splitter.end();
        }
    }
}
