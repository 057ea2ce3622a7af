//! rollbackd itself, in this process, on a port of its own.

use std::{net::SocketAddr, time::Duration};

use clap::Parser;
use rollbackd::{
    auth::Pace,
    config::{Cli, Command},
    http::Limits,
    rollbacks::Patience,
    sandbox::Unsimulated,
    server::{Server, Timing},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    account, api::Api, controlplane::ControlPlane, faults::Faults, space::Space, store::Place, wait::until,
};

/// A DaemonSet `agent` with the recorded revisions `img:1`, `img:2`, `img:3`, a rollbackd, and the path of
/// the rollback.
pub async fn agent() -> (Space, Rollbackd, String) {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2", "img:3"]).await;
    let path = format!("{}/rollback", space.path("agent"));
    (space, Rollbackd::start().await, path)
}

/// A running rollbackd.
pub struct Rollbackd {
    pub address: SocketAddr,
    pub api: Api,
    pub faults: Faults,
    pub store: Place,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
    unsimulated: Unsimulated,
    _folder: tempfile::TempDir,
}

/// How to start it.
pub struct Setup<'a> {
    pub control_plane: &'a ControlPlane,
    /// Flags beside `--auth`, `--listen` and `--store`; `--drain-delay` is 0s unless given.
    pub flags: &'a [&'a str],
    pub timing: Timing,
    /// Whose account it has in the cluster.
    pub user: &'a str,
    /// How it authenticates callers.
    pub auth: &'a str,
    /// What goes wrong from its first request on.
    pub faults: Faults,
    /// The store of one that ran before; a new one if there is none.
    pub store: Option<&'a Place>,
}

/// The usual times, but more patience with a busy machine: a test that needs one of them to pass says so. Many tests
/// share a cluster, each with a record of its own.
pub fn timing() -> Timing {
    let usual = Timing::default();
    let long = Duration::from_secs(60);
    Timing {
        // Tests do things between a request and its being sent, with kubectl.
        api: long,
        patience: Patience { recording: long, settling: long, attempts: 200, patching: long },
        limits: Limits { generation: long, stale_after: long, ..usual.limits },
        unrecorded: None,
        ..usual
    }
}

impl<'a> Setup<'a> {
    pub fn new(control_plane: &'a ControlPlane) -> Self {
        Self {
            control_plane,
            flags: &[],
            timing: timing(),
            user: account::USER,
            auth: "none",
            faults: Faults::default(),
            store: None,
        }
    }
}

impl<'a> Setup<'a> {
    /// With the cluster's authentication and RBAC, and reviews that are remembered only for moments.
    pub fn guarded(control_plane: &'a ControlPlane) -> Self {
        let mut setup = Self::new(control_plane);
        setup.timing.reviews = Pace {
            yes: Duration::from_millis(200),
            no: Duration::from_millis(100),
            again: Duration::from_millis(400),
            patience: Duration::from_secs(2),
            ..setup.timing.reviews
        };
        Self { auth: "kubernetes", ..setup }
    }
}

impl Rollbackd {
    /// Starts it on the shared control plane and waits until it is ready.
    pub async fn start() -> Self {
        Self::start_with(Setup::new(ControlPlane::shared())).await
    }

    /// Starts it on a control plane and waits until it is ready.
    pub async fn start_on(control_plane: &ControlPlane) -> Self {
        Self::start_with(Setup::new(control_plane)).await
    }

    /// Starts it and waits until it is ready.
    pub async fn start_with(setup: Setup<'_>) -> Self {
        let started = Self::launch(setup).await;
        started.ready().await;
        started
    }

    /// Starts it with the cluster's authentication and RBAC, and waits until it is ready.
    pub async fn guarded() -> Self {
        Self::start_with(Setup::guarded(ControlPlane::shared())).await
    }

    /// Starts it without waiting.
    pub async fn launch(setup: Setup<'_>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = match setup.store {
            Some(store) => store.clone(),
            None => Place::new(folder.path()).await,
        };
        let faults = setup.faults;
        let (client, unsimulated) = setup.control_plane.faulty_client(setup.user, faults.clone()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let url = store.url();
        let line = ["rollbackd", "serve", "--auth", setup.auth, "--store", &url];
        let slow = setup.flags.contains(&"--drain-delay");
        let line = line.into_iter().chain((!slow).then_some("--drain-delay=0s"));
        let line = line.chain(setup.flags.iter().copied());
        let Command::Serve(args) = Cli::try_parse_from(line).expect("the flags are right").command else {
            panic!("not serve");
        };
        let stop = CancellationToken::new();
        let server = Server::start(args, client, setup.timing, None).await.expect("rollbackd starts");
        let serving = tokio::spawn(server.run(listener, stop.clone()));
        let api = Api::new(address);
        Self { address, api, faults, store, stop, serving, unsimulated, _folder: folder }
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        until("rollbackd to be ready", async || {
            let answer = self.api.get("/readyz?verbose").await;
            if answer.status == 200 { Ok(()) } else { Err(answer.text) }
        })
        .await;
    }

    /// Stops it as SIGTERM does, and waits until it has stopped.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        let stopped = tokio::time::timeout(Duration::from_secs(40), &mut self.serving).await;
        stopped.expect("rollbackd stops").expect("it does not panic").expect("it stops in order");
    }
}

impl Drop for Rollbackd {
    fn drop(&mut self) {
        self.stop.cancel();
        if !std::thread::panicking() {
            assert_eq!(self.unsimulated.requests(), Vec::<String>::new(), "the sandbox has no answer");
        }
    }
}
