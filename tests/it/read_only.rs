//! `--read-only`: all is served but rollbacks.

use serde_json::json;

use crate::support::{
    controlplane::ControlPlane,
    rollbackd::{Rollbackd, Setup},
    space::Space,
};

#[tokio::test]
async fn a_read_only_rollbackd_refuses_every_rollback_and_serves_all_else() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    let flags = ["--read-only"];
    let rollbackd =
        Rollbackd::start_with(Setup { flags: &flags, ..Setup::new(ControlPlane::shared()) }).await;
    let path = space.path("agent");
    let before = space.kubectl.get("daemonset", "agent").await["metadata"]["generation"].clone();
    for body in [json!({}), json!({"toRevision": 1}), json!({"toRevision": 1, "dryRun": true})] {
        rollbackd.api.post(&format!("{path}/rollback"), &body).await.problem(403, "read-only");
    }
    let after = space.kubectl.get("daemonset", "agent").await["metadata"]["generation"].clone();
    assert_eq!((before, rollbackd.faults.patches()), (after, 0));
    for path in [format!("{path}/revisions"), format!("{path}/status"), "/rollbacks".into(), "/audit".into()]
    {
        rollbackd.api.get(&path).await.expect(200);
    }
    assert_eq!(rollbackd.api.get("/version").await.expect(200)["readOnly"], true);
    let shown = rollbackd.api.get(&format!("{path}?include=permissions")).await.expect(200);
    assert_eq!(shown["permissions"]["rollBack"], false);
    assert_eq!(shown["permissions"]["listRevisions"], true);
}
