//! rollbackd's own account: it has exactly the rights that it uses, and its token may change.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    account,
    controlplane::ControlPlane,
    faults::{Fault, patch},
    people::Right,
    rollbackd::{Rollbackd, Setup},
    space::Space,
    wait::{until, until_within},
};

/// `verb group/resource`.
type Use = String;

/// What a request to the API server asks for.
fn used(request: &str) -> Use {
    let (method, uri) = request.split_once(' ').unwrap();
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, rest) = match parts.as_slice() {
        ["version"] => return "get /version".into(),
        [".well-known", "openid-configuration"] => return "get /.well-known/openid-configuration".into(),
        ["apis", group, _, "namespaces", _, rest @ ..] | ["apis", group, _, rest @ ..] => (group, rest),
        _ => panic!("{request}"),
    };
    let named = rest.len() > 1;
    let verb = match (method, query.contains("watch=true"), named) {
        ("GET", true, _) => "watch",
        ("GET", false, true) => "get",
        ("GET", false, false) => "list",
        ("POST", ..) => "create",
        ("PATCH", ..) => "patch",
        _ => panic!("{request}"),
    };
    format!("{verb} {group}/{}", rest[0])
}

/// What the account's ClusterRoles grant.
fn granted() -> BTreeSet<Use> {
    let mut granted = BTreeSet::new();
    for document in account::manifests(ControlPlane::shared()).split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).unwrap();
        // The others are for callers.
        let its_own =
            ["rollbackd", "rollbackd:reviews"].contains(&object["metadata"]["name"].as_str().unwrap());
        if object["kind"] != "ClusterRole" || !its_own {
            continue;
        }
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        for rule in object["rules"].as_array().into_iter().flatten() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    granted.extend(
                        texts(&rule["verbs"]).iter().map(|verb| format!("{verb} {group}/{resource}")),
                    );
                }
            }
        }
    }
    granted
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn rights_granted_are_rights_used() {
    // What every account may do (`system:basic-user`, `system:public-info-viewer`,
    // `system:service-account-issuer-discovery`).
    let everybodys = [
        "get /version",
        "get /.well-known/openid-configuration",
        "create authorization.k8s.io/selfsubjectaccessreviews",
        "create authentication.k8s.io/selfsubjectreviews",
    ]
    .map(str::to_owned);
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    // A status that is written in between would make the patch a conflict, whose answer is lost as well.
    space.rolled_out("agent").await;
    let rollbackd = Rollbackd::guarded().await;
    let token = space.person("admin", &[Right::View, Right::RollBack, Right::Audit]).await;
    let api = rollbackd.api.with_token(&token);
    let path = space.path("agent");
    for read in ["", "/revisions", "/revisions/1", "/revisions/99", "/status"] {
        api.get(&format!("{path}{read}")).await;
    }
    api.get("/daemonsets").await;
    api.get(&space.path("nobody")).await.problem(404, "daemonset-not-found");
    // Whether it is its own account that somebody says to act for.
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("impersonate-user", "system:serviceaccount:a:b")];
    rollbackd.api.with_headers(&headers).get(&path).await.problem(403, "forbidden");
    let rollback = format!("{path}/rollback");
    api.post(&rollback, &json!({"toRevision": 1, "dryRun": true})).await.expect(200);
    // A 403 to the patch: whose right is missing is asked.
    const FORBIDDEN: &str = r#"{"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "Forbidden"}"#;
    let forbidden = Fault::Answer { status: 403, headers: Vec::new(), body: FORBIDDEN };
    rollbackd.faults.inject(1, forbidden, patch);
    api.post(&rollback, &json!({"toRevision": 1})).await.problem(422, "refused-by-api-server");
    // A lost answer, which is settled.
    rollbackd.faults.inject(1, Fault::CutAfter, patch);
    let made = api.post(&rollback, &json!({"toRevision": 1})).await.expect(202);
    api.rollback_in(made["id"].as_str().unwrap(), &["succeeded"]).await;

    let mut used: BTreeSet<Use> = rollbackd.faults.requests().iter().map(|it| used(it)).collect();
    for of_everybody in &everybodys {
        assert!(used.remove(of_everybody), "{of_everybody} is not used");
    }
    assert_eq!(used, granted());
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn its_token_is_read_again_when_it_changes() {
    let control_plane = ControlPlane::shared();
    let space = Space::new(control_plane).await;
    space.recorded(&["img:1"]).await;
    // A token lives as long as what it is bound to: a Secret of the account's namespace.
    let secret = |name: &str| format!("{name}-{}", space.namespace);
    let token = async |name: &str| {
        let name = secret(name);
        space.kubectl.ok(&["-n", "rollbackd", "create", "secret", "generic", &name]).await;
        let bound = ["--bound-object-kind", "Secret", "--bound-object-name", &name];
        let args = [&["-n", "rollbackd", "create", "token", "rollbackd"], &bound[..]].concat();
        space.kubectl.ok(&args).await.trim().to_owned()
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let first = token("first").await;
    std::fs::write(&file, &first).unwrap();
    let user = format!("rotating-{}", space.namespace);
    let credential = format!("tokenFile: {}", file.display());
    std::fs::write(control_plane.kubeconfig(&user), account::kubeconfig(control_plane, &credential)).unwrap();

    let rollbackd = Rollbackd::start_with(Setup { user: &user, ..Setup::guarded(control_plane) }).await;
    space.person("viewer", &[Right::View]).await;
    // Nothing is remembered of a token that was made just now: the cluster is asked.
    let asked_anew = async || {
        let token = space.token("viewer", "rollbackd").await;
        rollbackd.api.with_token(&token).get(&space.path("agent")).await
    };
    asked_anew().await.expect(200);

    std::fs::write(&file, token("second").await).unwrap();
    space.kubectl.ok(&["-n", "rollbackd", "delete", "secret", &secret("first")]).await;
    // The API server remembers a token for ten seconds.
    until("the first token to be refused", async || {
        let review = ["create", "--raw", "/apis/authentication.k8s.io/v1/tokenreviews", "-f", "-"];
        let asked = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": first},
        });
        let answer: Value = serde_json::from_str(&space.kubectl.feed(&review, &asked).await).unwrap();
        if answer["status"]["authenticated"] == true { Err(answer) } else { Ok(()) }
    })
    .await;
    // kube reads the file again within a minute.
    until_within(Duration::from_secs(90), "rollbackd to go on with the second token", async || {
        let answer = asked_anew().await;
        if answer.status == 200 { Ok(()) } else { Err(answer) }
    })
    .await;
}
