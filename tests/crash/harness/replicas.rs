//! rollbackd as it is run here: its processes, from their start to their kill.

use std::{
    process::Stdio,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::{io::AsyncBufReadExt as _, sync::watch, time::timeout};

use super::{Harness, now};

/// One process of rollbackd, from its start to its kill.
pub struct Life {
    pub replica: usize,
    pub child: tokio::process::Child,
    /// How many of its fail points it came to.
    pub reached: watch::Receiver<usize>,
    /// Its fail points.
    pub armed: Option<String>,
}

impl Life {
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.start_kill().ok();
        self.child.wait().await?;
        Ok(())
    }

    pub async fn terminate(&mut self) -> anyhow::Result<()> {
        self.signal("TERM")?;
        let ended =
            timeout(Duration::from_secs(40), self.child.wait()).await.context("it does not stop")??;
        ensure!(ended.success(), "it stopped with {ended}");
        Ok(())
    }

    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = self.child.id().context("it has died by itself")?.to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{signal}"), &pid]).status()?;
        ensure!(sent.success(), "kill -{signal} of a replica");
        Ok(())
    }

    pub fn has_come(&self) -> bool {
        *self.reached.borrow() > 0
    }

    /// Whether it has ended, which it may only at its point.
    pub async fn has_ended(&mut self) -> anyhow::Result<bool> {
        let Some(ended) = self.child.try_wait()? else { return Ok(false) };
        // All that it has said is read.
        while self.reached.changed().await.is_ok() {}
        ensure!(self.has_come(), "rollbackd ended by itself: {ended:?}; see rollbackd.log");
        Ok(true)
    }
}

impl Harness {
    pub fn live(self: &Arc<Self>, replica: usize, point: Option<&str>) -> anyhow::Result<Life> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let listen = format!("127.0.0.1:{}", self.ports[replica]);
        // Every other one, as while replicas are replaced.
        let mixed = self.mixed.load(Ordering::Relaxed) && number.is_multiple_of(2);
        let next = self.next.as_ref().filter(|_| mixed);
        let mut command = tokio::process::Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(next.unwrap_or(&self.program))
            .args(["serve", "--auth", "none", "--drain-delay", "0s"])
            .args(["--store", &self.store, "--listen", &listen])
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(point) = point {
            command.env("ROLLBACKD_FAIL_POINT", point);
        }
        let mut child = command.spawn().context("setpriv (util-linux)")?;
        let (report, reached) = watch::channel(0);
        let stderr = child.stderr.take().context("standard error")?;
        let stdout = child.stdout.take().context("standard output")?;
        let harness = self.clone();
        tokio::spawn(async move {
            let mut lines = tokio::io::BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if line.starts_with("fail point ") {
                    report.send_modify(|reached| *reached += 1);
                }
                harness.read(number, replica, &line);
                harness.logged.line(format_args!("{number} {line}"));
            }
        });
        let harness = self.clone();
        tokio::spawn(async move {
            let mut lines = tokio::io::BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // The kill may have cut the last one.
                if let Ok(mut line) = serde_json::from_str::<Value>(&line)
                    && line["log"] == "audit"
                {
                    line["life"] = number.into();
                    line["at"] = now().into();
                    harness.printed.line(line);
                }
            }
        });
        Ok(Life { replica, child, reached, armed: point.map(str::to_owned) })
    }

    /// Writes down what a process says of whose rollback is whose.
    fn read(&self, life: usize, replica: usize, line: &str) {
        let Ok(line) = serde_json::from_str::<Value>(line) else { return };
        let message = line["message"].as_str().unwrap_or_default();
        let what = if message == "taking up a rollback" {
            "took"
        } else if message.starts_with("another replica has taken this rollback over") {
            "left"
        } else {
            return;
        };
        self.claims.line(json!({"life": life, "replica": replica, what: line["rollback"]}));
    }
}
