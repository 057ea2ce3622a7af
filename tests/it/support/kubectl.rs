//! The real kubectl, or, in the sandbox, somebody who understands its words that change something.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tokio::{process::Command, time::Instant};

use super::{
    controlplane::{ControlPlane, REAL_ONLY},
    hand::{Done, Hand, NotHere},
    wait::PATIENCE,
};

/// kubectl as one user in one namespace.
#[derive(Clone)]
pub struct Kubectl {
    namespace: String,
    by: By,
}

#[derive(Clone)]
enum By {
    Kubectl { binary: PathBuf, kubeconfig: PathBuf },
    Hand(Hand),
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
        let by = match control_plane.sandbox() {
            Some(sandbox) => By::Hand(Hand::new(sandbox, namespace)),
            None => {
                By::Kubectl { binary: control_plane.kubectl(), kubeconfig: control_plane.kubeconfig(user) }
            }
        };
        Self { namespace: namespace.to_owned(), by }
    }

    /// A command that has not been run yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let By::Kubectl { binary, kubeconfig } = &self.by else { panic!("kubectl {args:?}: {REAL_ONLY}") };
        let mut command = Command::new(binary);
        command.arg("--kubeconfig").arg(kubeconfig).args(["--namespace", &self.namespace]).args(args);
        command.kill_on_drop(true);
        command
    }

    /// Runs kubectl to its end.
    pub async fn run(&self, args: &[&str]) -> Printed {
        if let By::Hand(hand) = &self.by {
            return by_hand(hand, args, &[]).await;
        }
        let output = self.command(args).output().await.expect("kubectl runs");
        Printed {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("kubectl prints UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("kubectl prints UTF-8"),
        }
    }

    /// What the real kubectl prints; `None` in the sandbox, which has none.
    pub async fn beside(&self, args: &[&str]) -> Option<Printed> {
        match self.by {
            By::Kubectl { .. } => Some(self.run(args).await),
            By::Hand(_) => None,
        }
    }

    /// The real kubectl, where there is one, must print exactly this.
    pub async fn prints_too(&self, args: &[&str], ours: &str) {
        if let Some(printed) = self.beside(args).await {
            assert_eq!(printed, Printed { code: 0, stdout: ours.to_owned(), stderr: String::new() });
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

    /// Whether a SubjectAccessReview of this spec is allowed. kubectl's `can-i` knows no resources that the API server
    /// does not serve.
    pub async fn allows(&self, spec: Value) -> bool {
        let api = "authorization.k8s.io/v1";
        let review = json!({"apiVersion": api, "kind": "SubjectAccessReview", "spec": spec});
        let answer = self.feed(&["create", "-f", "-", "-o", "json"], &review).await;
        let answer: Value = serde_json::from_str(&answer).expect("kubectl prints JSON");
        answer["status"]["allowed"] == true
    }

    /// Runs kubectl with an object as its input; it must succeed.
    pub async fn feed(&self, args: &[&str], object: &Value) -> String {
        self.feed_bytes(args, object.to_string().as_bytes()).await
    }

    /// Runs kubectl with an input; it must succeed. Returns what it printed.
    pub async fn feed_bytes(&self, args: &[&str], input: &[u8]) -> String {
        let printed = self.run_with_input(args, input).await;
        let start = String::from_utf8_lossy(&input[..input.len().min(2_000)]);
        assert_eq!(printed.code, 0, "kubectl {args:?}: {}\n{start}", printed.stderr);
        printed.stdout
    }

    /// Runs kubectl with an input to its end.
    pub async fn run_with_input(&self, args: &[&str], input: &[u8]) -> Printed {
        use tokio::io::AsyncWriteExt;
        if let By::Hand(hand) = &self.by {
            return by_hand(hand, args, input).await;
        }
        let mut command = self.command(args);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("kubectl runs");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(input).await.expect("kubectl reads");
        drop(stdin);
        let output = child.wait_with_output().await.expect("kubectl ends");
        Printed {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

async fn by_hand(hand: &Hand, args: &[&str], input: &[u8]) -> Printed {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let done = hand.run(args, input);
        match done.unwrap_or_else(|NotHere| panic!("kubectl {args:?}: {REAL_ONLY}")) {
            Done::Printed(stdout) => return Printed { code: 0, stdout, stderr: String::new() },
            Done::NotYet(seen) => {
                assert!(Instant::now() < deadline, "kubectl {args:?} waits; it sees {seen}")
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
