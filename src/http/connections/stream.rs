//! A connection's bytes as they arrive, and a body that keeps its request under way.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Connection;

/// For a client to read something of what is sent to it. One that does not would keep its connection busy for ever.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A stream whose bytes are counted as they arrive. It fails once its connection is closed to make room, or when its
/// client does not read for [`WRITE_TIMEOUT`].
pub struct Metered<S> {
    inner: S,
    connection: Arc<Connection>,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Runs while nothing can be written.
    unread: Option<Pin<Box<Sleep>>>,
}

impl<S> Metered<S> {
    /// Counts for one connection.
    pub fn new(inner: S, connection: Arc<Connection>) -> Self {
        let closing = Box::pin(connection.closing.clone().cancelled_owned());
        Self { inner, connection, closing, unread: None }
    }

    /// Fails a write that has waited for too long.
    fn in_time<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let unread = self.unread.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        ready!(unread.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.closing.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.connection.received(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        self.in_time(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// A body that holds something until it has been sent or given up.
pub struct Held<G> {
    body: Body,
    _guard: G,
}

impl<G> Held<G> {
    /// Holds `guard`.
    pub fn new(body: Body, guard: G) -> Self {
        Self { body, _guard: guard }
    }
}

impl<G: Unpin> HttpBody for Held<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{
        http::connections::{ConnectionLimits, Connections},
        telemetry::Metrics,
    };

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_for_a_while_is_cut_off() {
        let limits = ConnectionLimits { total: 1, per_address: 1, header_bytes: 1 };
        let connections = Connections::new(limits, Vec::new(), Metrics::new());
        let connection = connections.open([192, 0, 2, 1].into()).unwrap();
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut metered = Metered::new(ours, connection);
        let writing = tokio::spawn(async move { metered.write_all(&[0; 1000]).await });
        // As long as it reads something now and then, it may be slow.
        for _ in 0..10 {
            sleep(WRITE_TIMEOUT - Duration::from_secs(1)).await;
            theirs.read_exact(&mut [0; 64]).await.unwrap();
        }
        let written = writing.await.unwrap();
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_connection_that_is_closed_to_make_room_fails_its_read() {
        let limits = ConnectionLimits { total: 1, per_address: 1, header_bytes: 1 };
        let connections = Connections::new(limits, Vec::new(), Metrics::new());
        let (ours, _theirs) = tokio::io::duplex(64);
        let mut metered = Metered::new(ours, connections.open([192, 0, 2, 1].into()).unwrap());
        let _next = connections.open([192, 0, 2, 2].into()).unwrap();
        let read = metered.read_u8().await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
