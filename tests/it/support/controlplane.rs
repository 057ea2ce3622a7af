//! The real control plane, from `tests/controlplane`.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{LazyLock, OnceLock},
};

use super::{
    account,
    faults::{FaultLayer, Faults},
};
use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};

/// How many nodes a control plane starts with.
pub const NODES: usize = 5;

/// A running control plane. It dies with this process, even by `kill -9`: its supervisor lives as long
/// as the pipe to its standard input.
pub struct ControlPlane {
    state: PathBuf,
    // Dropped first: the end of its input is what ends the supervisor.
    _stdin: ChildStdin,
    supervisor: Child,
}

static SHARED: LazyLock<ControlPlane> = LazyLock::new(|| ControlPlane::start("shared"));

impl ControlPlane {
    /// The one that all tests share. Nobody may disturb it.
    pub fn shared() -> &'static Self {
        &SHARED
    }

    /// One for a test that disturbs it; `name` tells it from others.
    pub fn private(name: &str) -> Self {
        Self::start(name)
    }

    fn start(name: &str) -> Self {
        let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let version = std::env::var("ROLLBACKD_TEST_KUBERNETES").unwrap_or_else(|_| "v1.37".into());
        let mut supervisor = script("supervise")
            .args(["--version", &version, "--nodes", &NODES.to_string(), "--state"])
            .arg(&state)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(if std::env::var_os("CI").is_some() { Stdio::inherit() } else { Stdio::null() })
            .spawn()
            .expect("bash runs tests/controlplane/supervise");
        let stdin = supervisor.stdin.take().expect("stdin is piped");
        let stdout = supervisor.stdout.take().expect("stdout is piped");
        let ready = BufReader::new(stdout).lines().map_while(Result::ok).any(|line| line == "ready");
        assert!(ready, "the control plane did not start: run tests/controlplane/up to see why");
        let started = Self { state, _stdin: stdin, supervisor };
        account::install(&started);
        started
    }

    /// A file of the state directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// The kubectl that was built with the control plane.
    pub fn kubectl(&self) -> PathBuf {
        self.state.join("bin/kubectl")
    }

    /// The kubeconfig of a user: `admin`, `alice`, `bob`, or rollbackd itself.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.state.join(format!("{user}.kubeconfig"))
    }

    /// Sends a signal to a component, such as `STOP` to `kube-apiserver`.
    pub fn signal(&self, component: &str, signal: &str) {
        let pid =
            std::fs::read_to_string(self.state.join(format!("{component}.pid"))).expect("it was started");
        let sent =
            Command::new("kill").args([&format!("-{signal}"), pid.trim()]).status().expect("kill runs");
        assert!(sent.success(), "kill -{signal} of {component}");
    }

    /// Starts a component again that was killed, and waits until the API server is ready.
    pub fn restart(&self, component: &str) {
        let restarted = script("restart").arg(component).arg("--state").arg(&self.state).status();
        assert!(restarted.expect("bash runs tests/controlplane/restart").success(), "restart {component}");
    }

    async fn config(&self, user: &str) -> Config {
        let file = Kubeconfig::read_from(self.kubeconfig(user)).expect("the kubeconfig was written");
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .expect("the kubeconfig is complete");
        config.default_retry = false;
        config
    }

    /// A client that works, with the administrator's rights.
    pub async fn client(&self) -> Client {
        Client::try_from(self.config("admin").await).expect("the kubeconfig makes a client")
    }

    /// A client of a user, whose requests a test can disturb.
    pub async fn faulty_client(&self, user: &str, faults: Faults) -> Client {
        let builder =
            ClientBuilder::try_from(self.config(user).await).expect("the kubeconfig makes a client");
        builder.with_layer(&FaultLayer(faults)).build()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

fn script(name: &str) -> Command {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    let root = ROOT.get_or_init(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/controlplane"));
    Command::new(root.join(name))
}
