//! The cluster that tests run on: the real control plane, from `tests/controlplane`, or the sandbox.
//!
//! One switch: with `ROLLBACKD_TEST_KUBERNETES=v1.37` (or another version that `tests/controlplane` builds)
//! it is the real one, else the sandbox. A test that needs the real one is `#[ignore]`d with the reason;
//! `tests/run` runs those too.

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
use rollbackd::sandbox::{Sandbox, Unsimulated};
use tokio::runtime::Runtime;
use tower::Layer;

/// How many nodes a control plane starts with.
pub const NODES: usize = 5;

/// What a test is told that needs more than the sandbox has.
pub const REAL_ONLY: &str =
    "only on the real control plane: give the test #[ignore = \"why\"], and run it with tests/run";

/// How much faster than real pods those of the sandbox are.
const SPEED: f64 = 30.0;

/// A running control plane. A real one dies with this process, even by `kill -9`: its supervisor lives as long
/// as the pipe to its standard input.
pub struct ControlPlane(Parts);

enum Parts {
    Real {
        state: PathBuf,
        // Dropped first: the end of its input is what ends the supervisor.
        _stdin: ChildStdin,
        supervisor: Child,
    },
    Sandbox(Sandbox),
}

static SHARED: LazyLock<ControlPlane> = LazyLock::new(|| ControlPlane::start("shared"));

thread_local! {
    /// A sandbox costs nothing: each test, which has a thread of its own, gets one.
    static OWN: &'static ControlPlane = Box::leak(Box::new(ControlPlane::start("own")));
}

/// Where the time of sandboxes passes.
static TIME: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build();
    runtime.expect("a runtime starts")
});

/// Which Kubernetes the tests run on; `None` for the sandbox.
pub fn kubernetes() -> Option<String> {
    std::env::var("ROLLBACKD_TEST_KUBERNETES").ok().filter(|version| !version.is_empty())
}

impl ControlPlane {
    /// The one that all tests share. Nobody may disturb it.
    pub fn shared() -> &'static Self {
        if kubernetes().is_some() { &SHARED } else { OWN.with(|own| *own) }
    }

    /// One for a test that disturbs it; `name` tells it from others.
    pub fn private(name: &str) -> Self {
        Self::start(name)
    }

    fn start(name: &str) -> Self {
        match kubernetes() {
            Some(version) => Self::real(name, &version),
            None => {
                let sandbox = Sandbox::empty(NODES, SPEED);
                TIME.spawn(sandbox.clone().run());
                Self(Parts::Sandbox(sandbox))
            }
        }
    }

    /// The sandbox, if it is one.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        match &self.0 {
            Parts::Sandbox(sandbox) => Some(sandbox),
            Parts::Real { .. } => None,
        }
    }

    fn state(&self) -> &Path {
        match &self.0 {
            Parts::Real { state, .. } => state,
            Parts::Sandbox(_) => panic!("{REAL_ONLY}"),
        }
    }

    fn real(name: &str, version: &str) -> Self {
        let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let mut supervisor = script("supervise")
            .args(["--version", version, "--nodes", &NODES.to_string(), "--state"])
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
        let started = Self(Parts::Real { state, _stdin: stdin, supervisor });
        account::install(&started);
        started
    }

    /// A file of the state directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.state().join(name)
    }

    /// The kubectl that was built with the control plane.
    pub fn kubectl(&self) -> PathBuf {
        self.state().join("bin/kubectl")
    }

    /// The kubeconfig of a user: `admin`, `alice`, `bob`, or rollbackd itself.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.state().join(format!("{user}.kubeconfig"))
    }

    /// Sends a signal to a component, such as `STOP` to `kube-apiserver`.
    pub fn signal(&self, component: &str, signal: &str) {
        let pid =
            std::fs::read_to_string(self.state().join(format!("{component}.pid"))).expect("it was started");
        let sent =
            Command::new("kill").args([&format!("-{signal}"), pid.trim()]).status().expect("kill runs");
        assert!(sent.success(), "kill -{signal} of {component}");
    }

    /// Starts a component again that was killed, and waits until the API server is ready.
    pub fn restart(&self, component: &str) {
        let restarted = script("restart").arg(component).arg("--state").arg(self.state()).status();
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
        if let Some(sandbox) = self.sandbox() {
            return Client::new(sandbox.router(Unsimulated::default()), "default");
        }
        Client::try_from(self.config("admin").await).expect("the kubeconfig makes a client")
    }

    /// A client of a user, whose requests a test can disturb; and what the sandbox could not answer of them.
    pub async fn faulty_client(&self, user: &str, faults: Faults) -> (Client, Unsimulated) {
        let unsimulated = Unsimulated::default();
        let client = match self.sandbox() {
            Some(sandbox) => {
                assert!(["admin", account::USER].contains(&user), "{REAL_ONLY}");
                Client::new(FaultLayer(faults).layer(sandbox.router(unsimulated.clone())), "default")
            }
            None => {
                let builder =
                    ClientBuilder::try_from(self.config(user).await).expect("the kubeconfig makes a client");
                builder.with_layer(&FaultLayer(faults)).build()
            }
        };
        (client, unsimulated)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Parts::Real { state, supervisor, .. } = &mut self.0 {
            let _ = supervisor.kill();
            let _ = supervisor.wait();
            let _ = std::fs::remove_dir_all(state);
        }
    }
}

fn script(name: &str) -> Command {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    let root = ROOT.get_or_init(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/controlplane"));
    Command::new(root.join(name))
}
