//! A PostgreSQL server of the harness's own.

use std::{
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context, ensure};

/// A server. It is gone when this process is, even by `kill -9`.
pub struct Postgres {
    folder: PathBuf,
    pub url: String,
    /// Waits for the end of its input, and takes the server down.
    undertaker: Child,
    stdin: Option<ChildStdin>,
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/postgres").join(name)
}

impl Postgres {
    pub fn start() -> anyhow::Result<Self> {
        let up = Command::new(script("up")).stderr(Stdio::inherit()).output().context("tests/postgres/up")?;
        ensure!(up.status.success(), "PostgreSQL does not start");
        let told = String::from_utf8(up.stdout)?;
        let (folder, url) = told.trim().split_once('\n').context("a folder and a URL")?;
        let mut undertaker = Command::new("bash")
            .args(["-c", "trap '' INT TERM HUP; cat >/dev/null; exec \"$0\" \"$1\""])
            .arg(script("down"))
            .arg(folder)
            .stdin(Stdio::piped())
            .spawn()?;
        let stdin = undertaker.stdin.take();
        Ok(Self { folder: folder.into(), url: url.to_owned(), undertaker, stdin })
    }

    async fn run(&self, name: &str, argument: Option<&str>) -> anyhow::Result<()> {
        let mut command = tokio::process::Command::new(script(name));
        command.arg(&self.folder).args(argument).stdin(Stdio::null()).kill_on_drop(true);
        ensure!(command.status().await?.success(), "tests/postgres/{name} failed");
        Ok(())
    }

    /// In order.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.run("stop", None).await
    }

    /// All its processes.
    pub async fn signal(&self, signal: &str) -> anyhow::Result<()> {
        self.run("stop", Some(signal)).await
    }

    /// On the same data and port.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        self.run("start", None).await
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.undertaker.wait();
    }
}
