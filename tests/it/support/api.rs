//! rollbackd's API as a caller uses it.

use std::net::SocketAddr;

use reqwest::{Method, RequestBuilder, header::HeaderMap};
use serde_json::Value;

use super::{sse::Events, wait::until};

/// A caller.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    /// Sent with each request.
    headers: HeaderMap,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body, after a check of the status.
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()
    }

    /// The problem, after a check of status, form and kind.
    pub fn problem(&self, status: u16, slug: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["type"], format!("https://rollbackd.dev/problems/{slug}"), "{self:?}");
        assert_eq!(problem["status"], status, "{self:?}");
        assert_eq!(problem["requestId"], self.header("x-request-id"), "{self:?}");
        problem
    }
}

impl Api {
    pub fn new(address: SocketAddr) -> Self {
        Self { http: reqwest::Client::new(), base: format!("http://{address}"), headers: HeaderMap::new() }
    }

    /// The same rollbackd, asked with a bearer token.
    pub fn with_token(&self, token: &str) -> Self {
        self.with_headers(&[("authorization", &format!("Bearer {token}"))])
    }

    /// The same rollbackd, asked with these headers.
    pub fn with_headers(&self, headers: &[(&str, &str)]) -> Self {
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            let name: reqwest::header::HeaderName = name.parse().expect("a header");
            all.append(name, value.parse().expect("a header's value"));
        }
        Self { headers: all, ..self.clone() }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request
    }

    pub async fn send(&self, request: RequestBuilder) -> Answer {
        let response = request.send().await.expect("rollbackd answers");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, text: response.text().await.expect("the answer is whole") }
    }

    /// `None` while nothing listens.
    pub async fn try_get(&self, path: &str) -> Option<Answer> {
        let response = self.request(Method::GET, path).send().await.ok()?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Some(Answer { status, headers, text: response.text().await.ok()? })
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn get_as(&self, path: &str, accept: &str) -> Answer {
        self.send(self.request(Method::GET, path).header("accept", accept)).await
    }

    /// kubectl's own output.
    pub async fn text(&self, path: &str) -> String {
        let answer = self.get_as(path, "text/plain").await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.text
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    pub async fn post_as(&self, path: &str, body: &Value, accept: &str) -> Answer {
        self.send(self.request(Method::POST, path).json(body).header("accept", accept)).await
    }

    /// Opens a stream of server-sent events.
    pub async fn events(&self, path: &str) -> Events {
        self.events_after(path, None).await
    }

    /// Opens a stream again, after the event of this id.
    pub async fn events_after(&self, path: &str, last: Option<&str>) -> Events {
        let mut request = self.request(Method::GET, path).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.expect("rollbackd answers");
        assert_eq!(response.status().as_u16(), 200, "{path}");
        assert_eq!(response.headers()["content-type"], "text/event-stream", "{path}");
        Events::new(response)
    }

    /// Waits until a rollback is in one of these states, and returns it.
    pub async fn rollback_in(&self, id: &str, states: &[&str]) -> Value {
        self.rollback_at(&format!("/rollbacks/{id}"), states).await
    }

    /// As [`Api::rollback_in`], by the path that the answer's `Location` names.
    pub async fn rollback_at(&self, path: &str, states: &[&str]) -> Value {
        until(&format!("{path} to be one of {states:?}"), async || {
            let rollback = self.get(path).await.expect(200);
            let state = rollback["state"].as_str().unwrap_or_default();
            if states.contains(&state) { Ok(rollback) } else { Err(rollback) }
        })
        .await
    }

    /// The audit entries of a namespace, oldest first.
    pub async fn audit(&self, namespace: &str) -> Vec<Value> {
        let audit = self.get(&format!("/audit?namespace={namespace}&after=0")).await.expect(200);
        audit["items"].as_array().expect("a list").clone()
    }

    /// What was done in a namespace, oldest first.
    pub async fn actions(&self, namespace: &str) -> Vec<String> {
        let entries = self.audit(namespace).await;
        entries.iter().map(|entry| entry["action"].as_str().expect("an action").to_owned()).collect()
    }

    /// Waits until rollbackd shows a DaemonSet that `is` holds for, and returns its summary.
    pub async fn shows(&self, path: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        until(what, async || {
            let answer = self.get(path).await;
            let value = answer.json();
            if answer.status == 200 && is(&value) { Ok(value) } else { Err(value) }
        })
        .await
    }
}
