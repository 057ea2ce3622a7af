//! Problem documents for what hyper refuses by itself: a request that it can't parse never gets to a handler, and
//! hyper answers it with a bare status. This replaces that answer on its way to the connection.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uuid::Uuid;

use super::Connection;
use crate::http::problem::{Kind, Problem};

/// Of each line so much is kept as it takes to see that it names another coding than `chunked`.
const LINE: usize = 64;

/// A stream on which each error is a problem.
pub struct Answered<S> {
    inner: S,
    connection: Arc<Connection>,
    header: Header,
    /// What is sent before anything else.
    instead: Bytes,
}

/// What has been seen of a header that hyper could not parse.
#[derive(Debug, Default)]
struct Header {
    /// The request, counted on its connection, that it belongs to.
    request: u32,
    lines: usize,
    line: Vec<u8>,
    unknown_coding: bool,
}

impl Header {
    fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.unknown_coding |= names_unknown_coding(&self.line);
                self.lines += 1;
                self.line.clear();
            } else if self.line.len() < LINE {
                self.line.push(*byte);
            }
        }
    }

    /// What hyper's status means.
    fn problem(&self, status: Status) -> Problem {
        match status {
            Status::BadRequest if self.unknown_coding => Problem::unknown_coding(),
            Status::BadRequest => {
                Problem::new(Kind::InvalidRequest, "the request could not be parsed as HTTP/1.1")
            }
            // hyper's own limit is beyond the largest header.
            Status::UriTooLong => Problem::long_target(),
            Status::TooLarge if self.lines == 0 => Problem::long_target(),
            Status::TooLarge => Problem::large_header(),
        }
    }
}

fn names_unknown_coding(line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(line).to_ascii_lowercase();
    text.strip_prefix("transfer-encoding:").is_some_and(|coding| coding.trim() != "chunked")
}

/// The statuses with which hyper answers by itself (`on_error` in its `proto/h1/role.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    BadRequest,
    UriTooLong,
    TooLarge,
}

impl Status {
    /// Recognizes such an answer: it comes in one piece, has no body, and no request id as every other has.
    fn of(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(b"HTTP/1.1 ").or_else(|| bytes.strip_prefix(b"HTTP/1.0 "))?;
        let status = match rest.get(..3)? {
            b"400" => Self::BadRequest,
            b"414" => Self::UriTooLong,
            b"431" => Self::TooLarge,
            _ => return None,
        };
        let head = std::str::from_utf8(bytes.strip_suffix(b"\r\n\r\n")?).ok()?;
        (head.contains("\r\ncontent-length: 0") && !head.contains("\r\nx-request-id: ")).then_some(status)
    }
}

impl<S> Answered<S> {
    /// Looks after one connection.
    pub fn new(inner: S, connection: Arc<Connection>) -> Self {
        Self { inner, connection, header: Header::default(), instead: Bytes::new() }
    }

    fn saw(&mut self, bytes: &[u8]) {
        if self.connection.busy.load(Ordering::Acquire) {
            return;
        }
        let request = self.connection.requests.load(Ordering::Acquire);
        if self.header.request != request {
            self.header = Header { request, ..Header::default() };
        }
        self.header.read(bytes);
    }

    /// Whether something else goes out in the place of these bytes.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        let Some(status) = Status::of(bytes) else { return false };
        let problem = self.header.problem(status);
        let (_, status, _) = problem.kind.about();
        self.connection.shared.metrics.request("unmatched", status.as_u16(), Duration::ZERO);
        self.instead = written(&problem).into();
        true
    }
}

/// The whole answer that ends a connection.
fn written(problem: &Problem) -> String {
    let id = Uuid::now_v7().to_string();
    let (_, status, _) = problem.kind.about();
    let body = problem.clone().document("", &id);
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         x-request-id: {id}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl<S: AsyncWrite + Unpin> Answered<S> {
    fn poll_instead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            let sent = ready!(Pin::new(&mut self.inner).poll_write(context, &self.instead))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.instead.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Answered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.saw(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Answered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_instead(context))?;
        if self.replaces(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_instead(context))?;
        let first = slices.iter().find(|slice| !slice.is_empty());
        if let Some(first) = first
            && self.replaces(first)
        {
            return Poll::Ready(Ok(first.len()));
        }
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_of_hypers_own_is_replaced() {
        let of = |text: &str| Status::of(text.as_bytes());
        let own = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: Sun, 29 Nov 2026 10:00:00 GMT\r\n\r\n";
        assert_eq!(of(own), Some(Status::TooLarge));
        assert_eq!(of(&own.replace("date: ", "x-request-id: ")), None);
        assert_eq!(of(&own.replace("431", "404")), None);
        assert_eq!(of(&own[..own.len() - 2]), None);
        assert_eq!(of("HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}"), None);
    }

    #[test]
    fn a_header_that_can_not_be_parsed_shows_why() {
        let kind = |text: &str, status| {
            let mut header = Header::default();
            // In pieces, as they may arrive.
            text.as_bytes().chunks(3).for_each(|piece| header.read(piece));
            header.problem(status).kind
        };
        let line = "GET / HTTP/1.1\r\n";
        for coding in ["gzip", "identity", "gzip, chunked", "chunked, gzip"] {
            let text = format!("{line}Host: a\r\nTransfer-Encoding: {coding}\r\n\r\n");
            assert_eq!(kind(&text, Status::BadRequest), Kind::UnsupportedTransferEncoding, "{coding}");
        }
        let chunked = format!("{line}transfer-encoding: Chunked \r\nX y: z\r\n\r\n");
        assert_eq!(kind(&chunked, Status::BadRequest), Kind::InvalidRequest);
        assert_eq!(kind(line, Status::TooLarge), Kind::HeaderTooLarge);
        assert_eq!(kind("GET /aaaa", Status::TooLarge), Kind::TargetTooLong);
    }
}
