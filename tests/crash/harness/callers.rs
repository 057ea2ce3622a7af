//! Those who ask for rollbacks.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Harness, NAMES, NAMESPACE, now};

/// A request that was sent with a key.
#[derive(Clone)]
pub struct Keyed {
    key: String,
    name: &'static str,
    body: Value,
}

impl Harness {
    /// Of one of the replicas. Few callers go to one that stands still, so that the others have something to do.
    fn url(&self, rng: &mut Rng, path: &str) -> String {
        let mut replica = rng.usize(..self.ports.len());
        if self.asleep[replica].load(Ordering::Relaxed) && rng.u8(..100) < 85 {
            replica = (replica + 1) % self.ports.len();
        }
        format!("http://127.0.0.1:{}{path}", self.ports[replica])
    }

    pub async fn call(self: Arc<Self>, mut rng: Rng, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            if rng.u8(..100) < 25 {
                self.ask(&mut rng).await;
            } else {
                self.roll_back(&mut rng).await;
            }
            sleep(Duration::from_millis(rng.u64(..60))).await;
        }
        Ok(())
    }

    /// Asks what became of a rollback.
    async fn ask(&self, rng: &mut Rng) {
        let id = {
            let ids = self.ids.lock().expect("no panic");
            let newest = &ids[ids.len().saturating_sub(20)..];
            if newest.is_empty() {
                return;
            }
            newest[rng.usize(..newest.len())].clone()
        };
        let url = self.url(rng, &format!("/rollbacks/{id}"));
        let sent = now();
        if let Ok(answer) = self.http.get(url).send().await {
            let status = answer.status().as_u16();
            if let Ok(answer) = answer.json::<Value>().await {
                self.told
                    .line(json!({"ask": id, "sent": sent, "at": now(), "status": status, "answer": answer}));
            }
        }
    }

    async fn revision(&self, rng: &mut Rng, name: &str) -> Option<Value> {
        let url = self.url(rng, &format!("/daemonsets/{NAMESPACE}/{name}/revisions"));
        let list: Value = self.http.get(url).send().await.ok()?.json().await.ok()?;
        let items = list["items"].as_array().filter(|items| !items.is_empty())?;
        let item = &items[rng.usize(..items.len())];
        Some(if rng.bool() { item["revision"].clone() } else { item["controllerRevision"].clone() })
    }

    async fn roll_back(&self, rng: &mut Rng) {
        let again = {
            let keys = self.keys.lock().expect("no panic");
            let newest = &keys[keys.len().saturating_sub(8)..];
            let repeat = !newest.is_empty() && rng.u8(..100) < 20;
            repeat.then(|| newest[rng.usize(..newest.len())].clone())
        };
        let request_id = format!("crash-{:016x}", rng.u64(..));
        let (name, key, body) = match again {
            Some(Keyed { key, name, body }) => (name, Some(key), body),
            None => {
                let name = NAMES[rng.usize(..NAMES.len())];
                let mut body = json!({"reason": request_id});
                if rng.u8(..100) < 45
                    && let Some(revision) = self.revision(rng, name).await
                {
                    body["toRevision"] = revision;
                }
                if rng.u8(..100) < 8 {
                    body["dryRun"] = true.into();
                }
                if rng.u8(..100) < 4 {
                    body["expectedRevision"] = rng.u8(1..9).into();
                }
                let key = rng.bool().then(|| format!("key-{request_id}"));
                if let Some(key) = &key {
                    let keyed = Keyed { key: key.clone(), name, body: body.clone() };
                    self.keys.lock().expect("no panic").push(keyed);
                }
                (name, key, body)
            }
        };
        let url = self.url(rng, &format!("/daemonsets/{NAMESPACE}/{name}/rollback"));
        let mut request = self.http.post(url).header("x-request-id", &request_id).json(&body);
        if let Some(key) = &key {
            request = request.header("idempotency-key", format!("\"{key}\""));
        }
        if rng.u8(..100) < 15 {
            request = request.header("prefer", format!("wait={}", rng.u8(1..3)));
        }
        let patience = match rng.u8(..100) {
            ..15 => Duration::from_millis(rng.u64(1..40)),
            _ => Duration::from_secs(20),
        };
        let mut line =
            json!({"requestId": request_id, "daemonset": name, "key": key, "body": body, "sent": now()});
        let answer = async {
            let answer = request.send().await?;
            let replayed = answer.headers().contains_key("idempotent-replayed");
            Ok::<_, reqwest::Error>((answer.status().as_u16(), replayed, answer.json::<Value>().await?))
        };
        match timeout(patience, answer).await {
            Err(_) => line["lost"] = "the caller went away".into(),
            Ok(Err(error)) => line["lost"] = error.to_string().into(),
            Ok(Ok((status, replayed, answer))) => {
                if let (200 | 202, Some(id), None) = (status, answer["id"].as_str(), answer.get("dryRun")) {
                    self.ids.lock().expect("no panic").push(id.to_owned());
                }
                line["status"] = status.into();
                line["replayed"] = replayed.into();
                line["answer"] = answer;
            }
        }
        line["at"] = now().into();
        let down = line["status"].is_null();
        self.told.line(line);
        if down {
            sleep(Duration::from_millis(20)).await;
        }
    }
}
