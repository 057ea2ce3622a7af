//! One watch: a list, the changes after it, and a new list where changes were missed.
//!
//! The list is a stream of events where the server has that (`WatchList`, on by default from Kubernetes 1.34), else
//! pages that are read object by object. Either way one object is held at a time, and the list is of the newest
//! state, never of an older one that some API server still remembers.
//!
//! Not kube's `watcher`: its streamed list asks for any state, drops the deletions that come before its end, and has
//! no other way where the server does not stream; and its pages are held whole.

use std::{convert::Infallible, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::{Stream, StreamExt, pin_mut};
use kube::{
    Api, Resource,
    api::{ListParams, WatchParams},
    core::{Request as ApiRequest, WatchEvent},
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::super::{list, transport::NoStatus};
use crate::domain::{key::Namespace, text::escape};

/// Objects on a page of a list.
const PAGE: u32 = 500;
/// Seconds after which the API server ends a watch.
const WATCH_SECONDS: u32 = 290;
/// For an event or bookmark to come: a watch that outlives its end is dead.
const SILENCE: Duration = Duration::from_secs(295);
/// A watch that ends sooner without an event has failed.
const SHORTEST: Duration = Duration::from_secs(1);
/// Waits between attempts. The longest is short, as people follow a rollout while the API server comes back.
const FIRST_WAIT: Duration = Duration::from_millis(800);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Annotation of the bookmark that ends a streamed list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// The version is forgotten: list again.
const GONE: u16 = 410;

/// What a watch shows.
#[derive(Debug)]
pub(super) enum Event<K> {
    /// A list begins; it may be given up and begun again.
    ListBegins,
    Listed(K),
    /// The list is complete: what it did not show is gone.
    ListEnds,
    Changed(K),
    Deleted(K),
}

/// What is done with the events of one watch.
pub(super) trait Observer<K>: Send + 'static {
    fn observe(&mut self, event: Event<K>);
}

/// Why a watch was interrupted.
enum Interruption {
    /// What is known stays; the watch goes on from its version.
    Resume(kube::Error),
    /// Changes were missed.
    ListAgain(kube::Error),
    /// It ended at once, without a reason.
    Short,
}

/// One watch of one kind.
pub(super) struct Source<K> {
    client: kube::Client,
    api: Api<K>,
}

impl<K> Source<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    K: Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    /// Of the objects in one namespace, or in all.
    pub fn new(client: &kube::Client, namespace: Option<&Namespace>) -> Self {
        let api = match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace.as_str()),
            None => Api::all(client.clone()),
        };
        Self { client: client.clone(), api }
    }

    /// Watches for ever, and tries again after each interruption.
    pub async fn run(self, mut observer: impl Observer<K>) -> Infallible {
        let mut version = None;
        let mut waits = waits();
        loop {
            let before = version.clone();
            let interruption = match self.go_on(&mut version, &mut observer).await {
                Ok(()) => None,
                Err(Interruption::Short) => Some(None),
                Err(Interruption::Resume(error)) => Some(Some(error)),
                Err(Interruption::ListAgain(error)) => {
                    version = None;
                    Some(Some(error))
                }
            };
            let Some(error) = interruption else {
                waits = self::waits();
                continue;
            };
            if let Some(error) = error {
                let kind = K::plural(&());
                tracing::warn!(%kind, problem = problem(&error), "watch interrupted; trying again");
            }
            if version.is_some() && version != before {
                waits = self::waits();
            }
            tokio::time::sleep(waits.next().unwrap_or(LONGEST_WAIT)).await;
        }
    }

    /// Lists, if there is no version to go on from, and watches until the API server ends it.
    async fn go_on(
        &self,
        version: &mut Option<String>,
        observer: &mut impl Observer<K>,
    ) -> Result<(), Interruption> {
        let from = match version {
            Some(version) => version.clone(),
            None => match self.streamed_list(version, observer).await {
                // Once it has ended the stream goes on as a watch, and ends as one.
                Some(result) => return result,
                None => version.insert(self.paged_list(observer).await?).clone(),
            },
        };
        let opened = Instant::now();
        let events = self.api.watch(&params(), &from).await.map_err(interruption)?;
        self.follow(events, version, observer).await?;
        // It ended in order; what opens and ends at once is tried less and less often.
        let barren = version.as_deref() == Some(&from) && opened.elapsed() < SHORTEST;
        if barren { Err(Interruption::Short) } else { Ok(()) }
    }

    /// Lists by a watch that begins with all objects, and follows it. `None` if the server does not have that.
    async fn streamed_list(
        &self,
        version: &mut Option<String>,
        observer: &mut impl Observer<K>,
    ) -> Option<Result<(), Interruption>> {
        let events = match self.api.watch(&params().initial_events(), "").await {
            Ok(events) => events,
            // `sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled`.
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => return None,
            Err(error) => return Some(Err(interruption(error))),
        };
        observer.observe(Event::ListBegins);
        Some(self.follow(events, version, observer).await)
    }

    /// Lists page by page; returns the list's version.
    async fn paged_list(&self, observer: &mut impl Observer<K>) -> Result<String, Interruption> {
        observer.observe(Event::ListBegins);
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let request = ApiRequest::new(self.api.resource_url()).list(&params);
            let request =
                request.map_err(|error| Interruption::ListAgain(kube::Error::BuildRequest(error)))?;
            let page =
                list::each(&self.client, request, |object| observer.observe(Event::Listed(object))).await;
            let page = page.map_err(Interruption::ListAgain)?;
            params.continue_token = page.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                observer.observe(Event::ListEnds);
                return Ok(page.resource_version.unwrap_or_default());
            }
        }
    }

    /// Hands on the events of a watch until it ends. Up to the first version they are a list.
    async fn follow(
        &self,
        events: impl Stream<Item = Result<WatchEvent<K>, kube::Error>>,
        version: &mut Option<String>,
        observer: &mut impl Observer<K>,
    ) -> Result<(), Interruption> {
        pin_mut!(events);
        // A watch that is silent for so long has no end that would come: it is opened again.
        while let Ok(Some(event)) = tokio::time::timeout(SILENCE, events.next()).await {
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => match version {
                    None => observer.observe(Event::Listed(object)),
                    Some(version) => {
                        *version = version_of(&object, version);
                        observer.observe(Event::Changed(object));
                    }
                },
                Ok(WatchEvent::Deleted(object)) => {
                    if let Some(version) = version {
                        *version = version_of(&object, version);
                    }
                    observer.observe(Event::Deleted(object));
                }
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    let ends_list = bookmark.metadata.annotations.contains_key(INITIAL_EVENTS_END);
                    if version.is_none() && !ends_list {
                        continue;
                    }
                    if version.replace(bookmark.metadata.resource_version).is_none() {
                        observer.observe(Event::ListEnds);
                    }
                }
                Ok(WatchEvent::Error(status)) => return Err(interruption(kube::Error::Api(status.boxed()))),
                // One object that can't be read must not end the watch of all.
                Err(kube::Error::SerdeError(error)) => {
                    tracing::warn!(kind = %K::plural(&()), %error, "an event of a watch can't be read and is left out");
                }
                Err(error) => return Err(interruption(error)),
            }
        }
        // A list that ended before its last bookmark is none.
        if version.is_none() { Err(Interruption::Short) } else { Ok(()) }
    }
}

fn params() -> WatchParams {
    WatchParams::default().timeout(WATCH_SECONDS)
}

fn waits() -> impl Iterator<Item = Duration> {
    let waits = ExponentialBuilder::new().with_min_delay(FIRST_WAIT).with_max_delay(LONGEST_WAIT);
    waits.with_jitter().without_max_times().build()
}

fn version_of<K: Resource>(object: &K, before: &str) -> String {
    object.meta().resource_version.clone().unwrap_or_else(|| before.to_owned())
}

fn interruption(error: kube::Error) -> Interruption {
    match &error {
        kube::Error::Api(status) if status.code == GONE => Interruption::ListAgain(error),
        _ => Interruption::Resume(error),
    }
}

/// Why a watch stopped, without the text of an answer that may hold anything.
fn problem(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} {}", status.code, escape(&status.message)),
        kube::Error::Service(error) if error.is::<NoStatus>() => error.to_string(),
        kube::Error::SerdeError(_) => "the answer can't be read".to_owned(),
        _ => "the connection failed".to_owned(),
    }
}
