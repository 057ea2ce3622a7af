//! Who gets which answer from which operation: a table, and a check that no operation is missing from it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    api::{Answer, Api},
    controlplane::ControlPlane,
    people::{Right, short_token},
    rollbackd::Rollbackd,
    space::Space,
    wait::until,
};

/// Who asks. Rights are in the namespace that is asked about, unless it says otherwise.
#[derive(Clone, Copy, Debug)]
enum Who {
    NoToken,
    BadToken,
    Expired,
    /// The token was made for the API server.
    WrongAudience,
    NoRights,
    Viewer,
    RollbackOnly,
    Patch,
    Auditor,
    /// A viewer of another namespace.
    Elsewhere,
    /// May act for others and nothing else; acts for the viewer.
    Acting,
    /// The viewer, who acts for another viewer without the right to.
    Pretending,
    /// A viewer in a pod: its token is bound to it.
    InPod,
}

const WHO: [Who; 13] = [
    Who::NoToken,
    Who::BadToken,
    Who::Expired,
    Who::WrongAudience,
    Who::NoRights,
    Who::Viewer,
    Who::RollbackOnly,
    Who::Patch,
    Who::Auditor,
    Who::Elsewhere,
    Who::Acting,
    Who::Pretending,
    Who::InPod,
];

/// Statuses in the order of [`WHO`]. The rollback is a dry run, so that it can be asked for again.
#[rustfmt::skip]
const TABLE: [(&str, [u16; 13]); 15] = [
    //                                                        none bad  exp  aud  no   view roll pat  audi else act  pret pod
    ("get /daemonsets",                                      [401, 401, 401, 401, 403, 200, 403, 403, 403, 200, 200, 403, 200]),
    ("get /daemonsets/{namespace}",                          [401, 401, 401, 401, 403, 200, 403, 403, 403, 403, 200, 403, 200]),
    ("get /daemonsets/{namespace}/{name}",                   [401, 401, 401, 401, 403, 200, 403, 403, 403, 403, 200, 403, 200]),
    ("get /daemonsets/{namespace}/{name}/revisions",         [401, 401, 401, 401, 403, 200, 403, 403, 403, 403, 200, 403, 200]),
    ("get /daemonsets/{namespace}/{name}/revisions/{revision}", [401, 401, 401, 401, 403, 200, 403, 403, 403, 403, 200, 403, 200]),
    ("post /daemonsets/{namespace}/{name}/rollback",         [401, 401, 401, 401, 403, 403, 200, 200, 403, 403, 403, 403, 403]),
    ("get /daemonsets/{namespace}/{name}/status",            [401, 401, 401, 401, 403, 200, 403, 403, 403, 403, 200, 403, 200]),
    ("get /rollbacks",                                       [401, 401, 401, 401, 200, 200, 200, 200, 200, 200, 200, 403, 200]),
    ("get /rollbacks/{id}",                                  [401, 401, 401, 401, 404, 200, 404, 404, 404, 404, 200, 403, 200]),
    ("get /audit",                                           [401, 401, 401, 401, 403, 403, 403, 403, 200, 403, 403, 403, 403]),
    // The auditor's right is to one namespace; the head is about all.
    ("get /audit/head",                                      [401, 401, 401, 401, 403, 403, 403, 403, 403, 403, 403, 403, 403]),
    ("get /version",                                         [401, 401, 401, 401, 200, 200, 200, 200, 200, 200, 200, 403, 200]),
    ("get /livez",                                           [200; 13]),
    ("get /readyz",                                          [200; 13]),
    ("get /metrics",                                         [401, 401, 401, 401, 200, 200, 200, 200, 200, 200, 200, 403, 200]),
];

/// Everybody of the table, each as a client.
async fn everybody(api: &Api, space: &Space, other: &Space) -> Vec<(Who, Api)> {
    let control_plane = ControlPlane::shared();
    for (name, rights) in [
        ("nobody", &[][..]),
        ("viewer", &[Right::View]),
        ("second", &[Right::View]),
        ("roller", &[Right::RollBack]),
        ("patcher", &[Right::Patch]),
        ("auditor", &[Right::Audit]),
        ("portal", &[Right::Impersonate]),
    ] {
        space.person(name, rights).await;
    }
    let elsewhere = other.person("viewer", &[Right::View]).await;
    let mut everybody = Vec::new();
    for who in WHO {
        let token = match who {
            Who::NoToken => None,
            Who::BadToken => Some("nobody-knows-this".to_owned()),
            Who::Expired => {
                let long_ago = jiff::Timestamp::now().as_second() - 3600;
                Some(short_token(control_plane, space, "viewer", "rollbackd", long_ago).await)
            }
            Who::WrongAudience => Some(space.token("viewer", "https://kubernetes.default.svc").await),
            Who::NoRights => Some(space.token("nobody", "rollbackd").await),
            Who::Viewer | Who::Pretending => Some(space.token("viewer", "rollbackd").await),
            Who::RollbackOnly => Some(space.token("roller", "rollbackd").await),
            Who::Patch => Some(space.token("patcher", "rollbackd").await),
            Who::Auditor => Some(space.token("auditor", "rollbackd").await),
            Who::Elsewhere => Some(elsewhere.clone()),
            Who::Acting => Some(space.token("portal", "rollbackd").await),
            Who::InPod => Some(in_pod(space).await),
        };
        let bearer = token.map(|token| format!("Bearer {token}"));
        let for_whom = match who {
            Who::Acting => Some(space.user("viewer")),
            Who::Pretending => Some(space.user("second")),
            _ => None,
        };
        let headers = [("authorization", bearer.as_deref()), ("impersonate-user", for_whom.as_deref())];
        let headers: Vec<(&str, &str)> =
            headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        everybody.push((who, api.with_headers(&headers)));
    }
    everybody
}

/// A token of the viewer that is bound to a pod.
async fn in_pod(space: &Space) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "caller"},
        "spec": {"serviceAccountName": "viewer", "containers": [{"name": "main", "image": "caller:1"}]},
    });
    space.kubectl.create(&pod).await;
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", "caller"];
    let args = [&["create", "token", "viewer", "--audience", "rollbackd"], &bound[..]].concat();
    space.kubectl.ok(&args).await.trim().to_owned()
}

async fn ask(api: &Api, operation: &str, space: &Space, id: &str) -> Answer {
    let (method, path) = operation.split_once(' ').unwrap();
    let path = path.replace("{namespace}", &space.namespace).replace("{name}", "agent");
    let path = path.replace("{revision}", "3").replace("{id}", id);
    let path = if path == "/audit" { format!("/audit?namespace={}", space.namespace) } else { path };
    match method {
        "post" => api.post(&path, &json!({"toRevision": 3, "dryRun": true})).await,
        _ => api.send(api.request(Method::GET, &path)).await,
    }
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn everybody_gets_from_every_operation_what_the_table_says() {
    let control_plane = ControlPlane::shared();
    let (space, other) = tokio::join!(Space::new(control_plane), Space::new(control_plane));
    tokio::join!(space.recorded(&["img:1", "img:2"]), other.recorded(&["img:1"]));
    let rollbackd = Rollbackd::guarded().await;
    let maker = rollbackd.api.with_token(&space.person("maker", &[Right::RollBack]).await);
    let made = maker.post(&format!("{}/rollback", space.path("agent")), &json!({"toRevision": 1})).await;
    let id = made.expect(202)["id"].as_str().unwrap().to_owned();
    // Revision 1 has become 3; go on to another one, so that it can be rolled back to.
    space.recorded_revision("agent", 3).await;
    space.set_image("agent", "img:2").await;
    space.recorded_revision("agent", 4).await;
    let everybody = everybody(&rollbackd.api, &space, &other).await;
    let viewer = &everybody.iter().find(|(who, _)| matches!(who, Who::Viewer)).unwrap().1;
    viewer.shows(&space.path("agent"), "revision 4", |it| it["currentRevision"] == 4).await;

    let mut wrong = Vec::new();
    for (operation, expected) in TABLE {
        for ((who, api), expected) in everybody.iter().zip(expected) {
            let answer = ask(api, operation, &space, &id).await;
            if answer.status != expected {
                wrong.push(format!("{operation} by {who:?}: {expected} expected, {answer:?}"));
            }
            match expected {
                401 => assert!(answer.header("www-authenticate").starts_with("Bearer"), "{answer:?}"),
                403 => {
                    let problem = answer.problem(403, "forbidden");
                    let detail = problem["detail"].as_str().unwrap();
                    assert!(detail.contains(" is forbidden: User \"system:serviceaccount:"), "{detail}");
                }
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_operation_is_missing_from_the_table() {
    let document: Value = serde_json::from_str(&rollbackd::http::openapi::document()).unwrap();
    let mut operations: Vec<String> = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        operations.extend(item.as_object().unwrap().keys().map(|method| format!("{method} {path}")));
    }
    let mut told = TABLE.map(|(operation, _)| operation.to_owned()).to_vec();
    operations.sort();
    told.sort();
    assert_eq!(told, operations);
    // What needs no token in the table needs none in the document.
    for (operation, statuses) in TABLE {
        let (method, path) = operation.split_once(' ').unwrap();
        let operation = &document["paths"][path][method];
        let open = operation["security"] == json!([{}]);
        assert_eq!(open, statuses[0] == 200, "{path}: {}", operation["security"]);
        assert_eq!(operation["responses"]["401"].is_object(), !open, "{path}");
    }
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_stranger_can_not_tell_what_there_is() {
    let control_plane = ControlPlane::shared();
    let space = Space::new(control_plane).await;
    space.recorded(&["img:1"]).await;
    let rollbackd = Rollbackd::guarded().await;
    let token = space.person("nobody", &[]).await;
    let nobody = rollbackd.api.with_token(&token);
    until("rollbackd to have seen the DaemonSet", async || {
        let answer = nobody.get(&format!("/daemonsets/{}", space.namespace)).await;
        if answer.status == 403 { Ok(()) } else { Err(answer) }
    })
    .await;
    let ends = ["", "/revisions", "/revisions/1", "/revisions/agent-x", "/status", "?include=permissions"];
    for end in ends {
        let there = nobody.get(&format!("{}{end}", space.path("agent"))).await.problem(403, "forbidden");
        let not_there = nobody.get(&format!("{}{end}", space.path("other"))).await.problem(403, "forbidden");
        let renamed = there["detail"].as_str().unwrap().replace("\"agent\"", "\"other\"");
        assert_eq!(not_there["detail"], renamed);
    }
    for name in ["agent", "other"] {
        let asked = nobody.post(&format!("{}/rollback", space.path(name)), &json!({})).await;
        let expected = format!(
            "daemonsets.apps \"{name}\" is forbidden: User \"{}\" cannot create resource \"daemonsets/rollback\" in API group \"apps\" in the namespace \"{}\"",
            space.user("nobody"),
            space.namespace
        );
        assert_eq!(asked.problem(403, "forbidden")["detail"], expected);
    }
    // As kubectl prints it.
    let line = nobody.get_as(&format!("{}/status", space.path("agent")), "text/plain").await;
    let like_them = format!("--as={}", space.user("nobody"));
    let printed = space.kubectl.run(&["get", "daemonset", "agent", &like_them]).await;
    assert_eq!((line.status, line.text), (403, printed.stderr));
}
