//! HTTP as bytes, for what a well-behaved client does not send.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What came back. The body is there only if the answer gave its length.
#[derive(Clone, Debug)]
pub struct RawAnswer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl RawAnswer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The problem, after a check of status, form and kind.
    pub fn problem(&self, status: u16, slug: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: Value = serde_json::from_str(&self.body).expect("a problem is JSON");
        assert_eq!(problem["type"], format!("https://rollbackd.dev/problems/{slug}"), "{self:?}");
        assert_eq!(problem["requestId"].as_str(), self.header("x-request-id"), "{self:?}");
        problem
    }
}

/// Sends these bytes on a connection of their own and reads the answer; `None` if there is none.
pub async fn send(address: SocketAddr, request: &[u8]) -> Option<RawAnswer> {
    let mut stream = TcpStream::connect(address).await.expect("rollbackd accepts");
    // It may answer and close before it has read all.
    let _ = stream.write_all(request).await;
    answer(&mut stream).await
}

/// Reads one answer, interim ones left out.
pub async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> Option<RawAnswer> {
    tokio::time::timeout(Duration::from_secs(60), read(stream)).await.expect("waited for an answer")
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<RawAnswer> {
    let mut bytes = Vec::new();
    loop {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            if stream.read_buf(&mut bytes).await.unwrap_or_default() == 0 {
                return None;
            }
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        if status < 200 {
            bytes.drain(..end + 4);
            continue;
        }
        let mut answer = RawAnswer { status, head, body: String::new() };
        let length = answer.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = bytes.split_off(end + 4);
        while body.len() < length && stream.read_buf(&mut body).await.unwrap_or_default() > 0 {}
        answer.body = String::from_utf8_lossy(&body).into_owned();
        return Some(answer);
    }
}

/// A request that ends its connection. Headers are lines without their end.
pub fn request(line: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let mut text = format!("{line}\r\nHost: localhost\r\nConnection: close\r\n");
    for header in headers {
        text += header;
        text += "\r\n";
    }
    if !body.is_empty() {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    (text + "\r\n" + body).into_bytes()
}
