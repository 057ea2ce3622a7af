//! A kubectl that goes on running beside rollbackd.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
};

use rollbackd::sandbox::{Id, Kind, Sandbox};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Child,
    task::JoinHandle,
};

use super::{api::Api, controlplane::ControlPlane, kubectl::Kubectl, space::Space, wait::until};

/// A running kubectl, and what it has printed. It is killed when dropped.
pub struct Following {
    child: Child,
    printed: Arc<Mutex<String>>,
    reading: JoinHandle<()>,
    errors: JoinHandle<()>,
    complaints: Arc<Mutex<String>>,
}

impl Following {
    /// Follows a rollout with the real kubectl, where there is one.
    pub async fn rollout(space: &Space, name: &str) -> Option<Self> {
        let real = ControlPlane::shared().sandbox().is_none();
        let object = format!("daemonset/{name}");
        if real { Some(Self::start(&space.kubectl, &["rollout", "status", &object]).await) } else { None }
    }

    /// Starts kubectl and waits until it has printed something.
    pub async fn start(kubectl: &Kubectl, args: &[&str]) -> Self {
        let mut command = kubectl.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl runs");
        let (printed, complaints) = (Arc::default(), Arc::default());
        let reading = collect(child.stdout.take().expect("stdout is piped"), Arc::clone(&printed));
        let errors = collect(child.stderr.take().expect("stderr is piped"), Arc::clone(&complaints));
        let following = Self { child, printed, reading, errors, complaints };
        until(&format!("kubectl {args:?} to print something"), async || {
            let silent = following.printed().is_empty();
            if silent { Err(following.complaints.lock().unwrap().clone()) } else { Ok(()) }
        })
        .await;
        following
    }

    /// What it has printed so far.
    pub fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// Waits for its end: exit code, output, and what it complained about.
    pub async fn end(mut self) -> (i32, String, String) {
        let status = self.child.wait().await.expect("kubectl ends");
        self.reading.await.expect("its output is read");
        self.errors.await.expect("its errors are read");
        let complaints = self.complaints.lock().unwrap().clone();
        (status.code().unwrap_or(-1), self.printed.lock().unwrap().clone(), complaints)
    }
}

fn collect(mut from: impl AsyncRead + Unpin + Send + 'static, to: Arc<Mutex<String>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let (mut buffer, mut rest) = ([0; 8192], Vec::new());
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            rest.extend_from_slice(&buffer[..count]);
            // A character may come in two pieces.
            let whole = std::str::from_utf8(&rest).map_or_else(|error| error.valid_up_to(), str::len);
            let text = String::from_utf8(rest.drain(..whole).collect()).expect("checked above");
            to.lock().unwrap().push_str(&text);
        }
    })
}

/// Every version of one DaemonSet from now on: as `kubectl get --watch` shows them, or as the sandbox has
/// kept them.
pub enum Recorder {
    Kubectl(Following),
    Sandbox(Sandbox, Id),
}

impl Recorder {
    /// Starts recording, with the version that is there.
    ///
    /// Selected by field, so that kubectl lists: of an object that is named it reads one version,
    /// watches from whatever is newest then, and keeps that first event to itself, so that a version
    /// written in between is never printed (`pkg/cmd/get`, `GetOptions.watch`).
    pub async fn start(space: &Space, name: &str) -> Self {
        if let Some(sandbox) = ControlPlane::shared().sandbox() {
            return Self::Sandbox(sandbox.clone(), Id::new(Kind::DaemonSet, &space.namespace, name));
        }
        let this = format!("metadata.name={name}");
        let args = ["get", "daemonsets", "--field-selector", &this, "--watch", "-o", "json"];
        Self::Kubectl(Following::start(&space.kubectl, &args).await)
    }

    /// Waits until rollbackd shows a version that has been recorded: from here on it shows no older one.
    pub async fn joined_by(&self, api: &Api, status: &str) {
        until("rollbackd to show a version that was recorded", async || {
            let shown = api.get(status).await.expect(200);
            let known = |version: &Value| version["metadata"]["resourceVersion"] == shown["resourceVersion"];
            if self.versions().iter().any(known) { Ok(()) } else { Err(shown) }
        })
        .await;
    }

    /// The versions so far, oldest first.
    pub fn versions(&self) -> Vec<Value> {
        match self {
            Self::Kubectl(following) => {
                let printed = following.printed();
                let objects = serde_json::Deserializer::from_str(&printed).into_iter::<Value>();
                objects.map_while(Result::ok).collect()
            }
            Self::Sandbox(sandbox, id) => {
                sandbox.versions(id).iter().map(|version| Value::clone(version)).collect()
            }
        }
    }

    /// Waits until a version has been recorded, and returns all up to it.
    pub async fn up_to(&self, resource_version: &str) -> Vec<Value> {
        until(&format!("kubectl to show version {resource_version}"), async || {
            let versions = self.versions();
            let found = versions
                .iter()
                .position(|version| version["metadata"]["resourceVersion"] == resource_version);
            found.map(|last| versions[..=last].to_vec()).ok_or(versions.len())
        })
        .await
    }
}
