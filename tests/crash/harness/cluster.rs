//! The control plane.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Stdio},
};

use anyhow::{Context, ensure};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// The control plane. Its supervisor ends it when our end of its input is closed.
pub struct Cluster {
    pub state: PathBuf,
    _stdin: ChildStdin,
    supervisor: Child,
}

/// Every write to a DaemonSet's spec or metadata: when it came, what it was, what came of it.
const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseStarted]
omitManagedFields: true
rules:
- level: RequestResponse
  verbs: [create, update, patch, delete]
  resources: [{group: apps, resources: [daemonsets]}]
  namespaces: [crash]
- level: None
";

impl Cluster {
    pub fn start(history: &Path) -> anyhow::Result<Self> {
        let policy = history.join("audit-policy.yaml");
        std::fs::write(&policy, POLICY)?;
        let flags = format!(
            "--audit-policy-file={} --audit-log-path={} --audit-log-mode=blocking-strict --audit-log-maxsize=100000 --storage-media-type=application/json",
            policy.display(),
            history.join("api-server.ndjson").display(),
        );
        let state = history.join("controlplane");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/controlplane/supervise");
        let mut supervisor = std::process::Command::new(script)
            .args(["--nodes", "2", "--state"])
            .arg(&state)
            .env("APISERVER_FLAGS", flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("tests/controlplane/supervise")?;
        let stdin = supervisor.stdin.take().context("its input")?;
        let stdout = supervisor.stdout.take().context("its output")?;
        let ready = BufReader::new(stdout).lines().map_while(Result::ok).any(|line| line == "ready");
        ensure!(ready, "the control plane did not start");
        Ok(Self { state, _stdin: stdin, supervisor })
    }

    pub async fn client(&self) -> anyhow::Result<Client> {
        let file = Kubeconfig::read_from(self.state.join("admin.kubeconfig"))?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        config.default_retry = false;
        Ok(Client::try_from(config)?)
    }

    /// Where etcd serves.
    pub fn etcd(&self) -> anyhow::Result<String> {
        let pid = std::fs::read_to_string(self.state.join("etcd.pid"))?;
        let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.trim()))?;
        let mut arguments = arguments.split('\0').skip_while(|argument| *argument != "--listen-client-urls");
        Ok(arguments.nth(1).context("etcd's --listen-client-urls")?.to_owned())
    }

    /// Starts the API server again, which has been killed, and waits until it serves.
    pub async fn restart(&self) -> anyhow::Result<()> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/controlplane/restart");
        let mut command = tokio::process::Command::new(script);
        command.arg("--state").arg(&self.state).stdin(Stdio::null()).kill_on_drop(true);
        ensure!(command.status().await?.success(), "the API server does not start again");
        Ok(())
    }

    /// Sends a signal to the API server.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = std::fs::read_to_string(self.state.join("kube-apiserver.pid"))?;
        let sent = std::process::Command::new("kill").args([&format!("-{signal}"), pid.trim()]).status()?;
        ensure!(sent.success(), "kill -{signal} of the API server");
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // In order: it ends what it has started. A frozen API server is ended by -9.
        let pid = self.supervisor.id().to_string();
        let _ = std::process::Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.supervisor.wait();
    }
}
