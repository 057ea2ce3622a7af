//! What was written down.

use std::path::Path;

use serde_json::Value;

/// Everything that was written down.
#[derive(Clone, Default)]
pub struct History {
    /// The API server's audit log: each write to a DaemonSet, when it came and what came of it.
    pub api_server: Vec<Value>,
    /// Every version of every DaemonSet, in order.
    pub seen: Vec<Value>,
    /// What callers asked and were told.
    pub told: Vec<Value>,
    /// rollbackd's audit lines on its standard output.
    pub printed: Vec<Value>,
    /// `rollbackd audit export`.
    pub export: Vec<Value>,
    /// `GET /rollbacks`.
    pub rollbacks: Vec<Value>,
    /// Which process has taken up whose rollback, and which has left one to another.
    pub claims: Vec<Value>,
    pub harness: Value,
}

impl History {
    pub fn read(folder: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let lines = |name: &str| -> Result<Vec<Value>, Box<dyn std::error::Error>> {
            let text =
                std::fs::read_to_string(folder.join(name)).map_err(|error| format!("{name}: {error}"))?;
            let parsed: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
            Ok(parsed.map_err(|error| format!("{name}: {error}"))?)
        };
        let harness: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("harness.json"))?)?;
        // The API server's death may cut a line, which the next one goes on with.
        let log = std::fs::read_to_string(folder.join("api-server.ndjson"))?;
        let (mut api_server, mut cut) = (Vec::new(), 0);
        for line in log.lines() {
            match serde_json::from_str(line) {
                Ok(event) => api_server.push(event),
                Err(_) => {
                    cut += 1;
                    let rest = line.rfind(r#"{"kind":"Event""#).map(|at| serde_json::from_str(&line[at..]));
                    api_server.extend(rest.and_then(Result::ok));
                }
            }
        }
        if cut > harness["apiServerKilled"].as_array().map_or(0, Vec::len) {
            return Err(format!("api-server.ndjson: {cut} lines can't be read").into());
        }
        Ok(Self {
            api_server,
            seen: lines("seen.ndjson")?,
            told: lines("told.ndjson")?,
            printed: lines("printed.ndjson")?,
            export: lines("export.ndjson")?,
            rollbacks: lines("rollbacks.ndjson")?,
            claims: lines("claims.ndjson")?,
            harness,
        })
    }
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A time as nanoseconds; 0 where there is none.
pub fn time(value: &Value) -> i128 {
    text(value).parse::<jiff::Timestamp>().map_or(0, |time| time.as_nanosecond())
}
