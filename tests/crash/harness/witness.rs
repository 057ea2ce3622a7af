//! The harness's own witness of what was stored: every version of every DaemonSet, as etcd has it.
//!
//! Not by the API server, whose watch has gaps when it is killed, and which is a suspect, too.

use std::sync::Arc;

use anyhow::{Context, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Harness, NAMESPACE};

impl Harness {
    fn saw(&self, change: &str, object: &Value) {
        let metadata = &object["metadata"];
        let managers: Vec<Value> = metadata["managedFields"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|entry| entry["subresource"].is_null())
            .map(|entry| {
                let owns_template = !entry["fieldsV1"]["f:spec"]["f:template"].is_null();
                json!({
                    "manager": entry["manager"], "operation": entry["operation"], "time": entry["time"],
                    "template": owns_template,
                })
            })
            .collect();
        self.seen.line(json!({
            "change": change, "name": metadata["name"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "generation": metadata["generation"],
            "rollback": metadata["annotations"]["rollbackd.dev/rollback"],
            "image": object["spec"]["template"]["spec"]["containers"][0]["image"],
            "template": object["spec"]["template"].to_string(),
            "managers": managers, "status": object["status"], "at": super::now(),
        }));
    }

    /// Records every version of every DaemonSet.
    pub async fn watch(self: Arc<Self>, etcd: String, stop: CancellationToken) -> anyhow::Result<()> {
        // An answer that has no end: not by the client with a deadline.
        let http = reqwest::Client::new();
        let of = |text: String| BASE64_STANDARD.encode(text);
        let folder = format!("/registry/daemonsets/{NAMESPACE}");
        let request = json!({"create_request": {
            "key": of(format!("{folder}/")), "range_end": of(format!("{folder}0")),
            "start_revision": "1", "prev_kv": true,
        }});
        let answer = http.post(format!("{etcd}/v3/watch")).body(request.to_string()).send().await?;
        let (mut chunks, mut rest) = (answer.error_for_status()?.bytes_stream(), Vec::new());
        while let Some(chunk) = stop.run_until_cancelled(chunks.next()).await {
            rest.extend_from_slice(&chunk.context("etcd has ended the watch")??);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let result = &serde_json::from_slice::<Value>(&line)?["result"];
                ensure!(result["canceled"].is_null(), "etcd has ended the watch: {result}");
                for event in result["events"].as_array().into_iter().flatten() {
                    self.witness(event)?;
                }
            }
        }
        Ok(())
    }

    fn witness(&self, event: &Value) -> anyhow::Result<()> {
        let (now, before) = (&event["kv"], &event["prev_kv"]);
        let (change, stored) = match event["type"].as_str() {
            Some("DELETE") => ("DELETED", before),
            _ if now["create_revision"] == now["mod_revision"] => ("ADDED", now),
            _ => ("MODIFIED", now),
        };
        let stored = BASE64_STANDARD.decode(stored["value"].as_str().context("etcd: a value")?)?;
        let mut object: Value = serde_json::from_slice(&stored)?;
        // It is not stored: it is where it is stored.
        object["metadata"]["resourceVersion"] = now["mod_revision"].clone();
        self.saw(change, &object);
        Ok(())
    }
}
