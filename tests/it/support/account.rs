//! rollbackd's own account in the cluster: no test runs it as an administrator.

use std::process::Command;

use super::controlplane::ControlPlane;

/// The user that [`ControlPlane::kubeconfig`] knows it by.
pub const USER: &str = "rollbackd";

/// The shipped installation that gives it its rights.
const INSTALLATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/overlays/sqlite");

/// What is shipped, as one YAML text.
pub fn manifests(control_plane: &ControlPlane) -> String {
    kubectl(control_plane, &["kustomize", INSTALLATION])
}

/// Installs what is shipped, and makes a kubeconfig for the account.
pub fn install(control_plane: &ControlPlane) {
    kubectl(control_plane, &["apply", "--server-side", "-k", INSTALLATION]);
    let token =
        kubectl(control_plane, &["-n", "rollbackd", "create", "token", "rollbackd", "--duration=24h"]);
    let credential = format!("token: {}", token.trim());
    std::fs::write(control_plane.kubeconfig(USER), kubeconfig(control_plane, &credential))
        .expect("the state directory can be written");
}

/// A kubeconfig with this line as the user's credential.
pub fn kubeconfig(control_plane: &ControlPlane, credential: &str) -> String {
    let admin = std::fs::read_to_string(control_plane.kubeconfig("admin")).expect("it was written");
    admin.replace("token: admin-token", credential)
}

fn kubectl(control_plane: &ControlPlane, args: &[&str]) -> String {
    let mut command = Command::new(control_plane.kubectl());
    let output = command.arg("--kubeconfig").arg(control_plane.kubeconfig("admin")).args(args).output();
    let output = output.expect("kubectl runs");
    assert!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("kubectl prints UTF-8")
}
