//! The real kubectl.

use std::path::PathBuf;

use serde_json::Value;
use tokio::process::Command;

use super::controlplane::ControlPlane;

/// kubectl as one user in one namespace.
#[derive(Clone)]
pub struct Kubectl {
    binary: PathBuf,
    kubeconfig: PathBuf,
    namespace: String,
}

/// What a run of kubectl printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printed {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Kubectl {
    pub fn new(control_plane: &ControlPlane, user: &str, namespace: &str) -> Self {
        Self {
            binary: control_plane.kubectl(),
            kubeconfig: control_plane.kubeconfig(user),
            namespace: namespace.to_owned(),
        }
    }

    /// A command that has not been run yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(["--namespace", &self.namespace]).args(args);
        command.kill_on_drop(true);
        command
    }

    /// Runs kubectl to its end.
    pub async fn run(&self, args: &[&str]) -> Printed {
        let output = self.command(args).output().await.expect("kubectl runs");
        Printed {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("kubectl prints UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("kubectl prints UTF-8"),
        }
    }

    /// Runs kubectl, which must succeed; returns what it printed.
    pub async fn ok(&self, args: &[&str]) -> String {
        let printed = self.run(args).await;
        assert_eq!(printed.code, 0, "kubectl {args:?}: {printed:?}");
        printed.stdout
    }

    /// Reads one object.
    pub async fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.ok(&["get", kind, name, "-o", "json"]).await).expect("kubectl prints JSON")
    }

    /// Reads all objects of a kind in the namespace.
    pub async fn list(&self, kind: &str) -> Vec<Value> {
        let list: Value =
            serde_json::from_str(&self.ok(&["get", kind, "-o", "json"]).await).expect("kubectl prints JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Creates objects from JSON.
    pub async fn create(&self, object: &Value) {
        self.feed(&["create", "-f", "-"], object).await;
    }

    /// Applies objects from JSON, client-side.
    pub async fn apply(&self, object: &Value) {
        self.feed(&["apply", "-f", "-"], object).await;
    }

    /// Creates an object from JSON as it stands: not even kubectl reads it.
    pub async fn create_raw(&self, resource: &str, json: &[u8]) {
        let path = format!("/apis/apps/v1/namespaces/{}/{resource}", self.namespace);
        self.feed_bytes(&["create", "--raw", &path, "-f", "-"], json).await;
    }

    /// Runs kubectl with an object as its input; it must succeed.
    pub async fn feed(&self, args: &[&str], object: &Value) -> String {
        self.feed_bytes(args, object.to_string().as_bytes()).await
    }

    /// Runs kubectl with an input; it must succeed. Returns what it printed.
    pub async fn feed_bytes(&self, args: &[&str], input: &[u8]) -> String {
        use tokio::io::AsyncWriteExt;
        let mut command = self.command(args);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("kubectl runs");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(input).await.expect("kubectl reads");
        drop(stdin);
        let output = child.wait_with_output().await.expect("kubectl ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let start = String::from_utf8_lossy(&input[..input.len().min(2_000)]);
        assert!(output.status.success(), "kubectl {args:?}: {stderr}\n{start}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
