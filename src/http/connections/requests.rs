//! Which requests of a connection are under way.

use std::{
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use http::Request;
use tower::Service;

use super::Connection;

/// A request under way, until the last part of its answer is written.
#[derive(Debug)]
pub struct UnderWay(Arc<Connection>);

impl UnderWay {
    pub(super) fn begin(connection: Arc<Connection>) -> Self {
        connection.requests.fetch_add(1, Ordering::AcqRel);
        connection.becomes(true);
        Self(connection)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.becomes(false);
    }
}

/// A service whose requests carry an [`UnderWay`] of their connection, as `Arc`, among their extensions.
#[derive(Clone, Debug)]
pub struct Tracked<S> {
    inner: S,
    connection: Arc<Connection>,
}

impl<S> Tracked<S> {
    /// Tracks the requests of one connection.
    pub fn new(inner: S, connection: Arc<Connection>) -> Self {
        Self { inner, connection }
    }
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Tracked<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let under_way = UnderWay::begin(self.connection.clone());
        request.extensions_mut().insert(Arc::new(under_way));
        self.inner.call(request)
    }
}
