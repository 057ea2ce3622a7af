//! Who a caller is: tokens and their audience, groups, and acting for somebody else.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    errors::named,
    support::{
        api::{Answer, Api},
        controlplane::ControlPlane,
        people::Right,
        rollbackd::{Rollbackd, Setup},
        space::Space,
    },
};

fn rollback(space: &Space) -> String {
    format!("{}/rollback", space.path("agent"))
}

/// A rollback that changes nothing, so that it can be asked for by many.
async fn try_to_roll_back(api: &Api, space: &Space) -> Answer {
    api.post(&rollback(space), &json!({"toRevision": 1, "dryRun": true})).await
}

fn group(name: &str) -> Value {
    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name})
}

fn user(name: &str) -> Value {
    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name})
}

/// A namespace with a DaemonSet of two revisions.
async fn space() -> Space {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    space
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn a_token_for_the_api_server_is_taken_only_where_that_is_said() {
    let space = space().await;
    space.bind("oncall", &Right::RollBack.rules(), group("oncall")).await;
    let for_the_server = {
        space.person("viewer", &[Right::View]).await;
        space.token("viewer", "https://kubernetes.default.svc").await
    };
    let strict = Rollbackd::guarded().await;
    for token in ["alice-token", "admin-token", &for_the_server] {
        let answer = strict.api.with_token(token).get(&space.path("agent")).await;
        answer.problem(401, "invalid-token");
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"rollbackd\", error=\"invalid_token\"");
    }

    let flags = &["--accept-api-server-audience"];
    let setup = Setup { flags, ..Setup::guarded(ControlPlane::shared()) };
    let lenient = Rollbackd::start_with(setup).await;
    lenient.api.with_token(&for_the_server).get(&space.path("agent")).await.expect(200);
    let ours = space.token("viewer", "rollbackd").await;
    lenient.api.with_token(&ours).get(&space.path("agent")).await.expect(200);
    let others = space.token("viewer", "vault").await;
    lenient.api.with_token(&others).get(&space.path("agent")).await.problem(401, "invalid-token");

    // User, groups and uid are the authenticator's, and decide.
    let made = try_to_roll_back(&lenient.api.with_token("alice-token"), &space).await.expect(200);
    let groups = json!(["oncall", "system:authenticated"]);
    assert_eq!(made["requestedBy"], json!({"user": "alice", "groups": groups, "uid": "u-alice"}));
    let bob = try_to_roll_back(&lenient.api.with_token("bob-token"), &space).await;
    bob.problem(403, "forbidden");
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn another_audience_can_be_rollbackds_own() {
    let space = space().await;
    space.person("viewer", &[Right::View]).await;
    let flags = &["--audience", "rollbackd.prod.example"];
    let rollbackd = Rollbackd::start_with(Setup { flags, ..Setup::guarded(ControlPlane::shared()) }).await;
    let token = space.token("viewer", "rollbackd.prod.example").await;
    rollbackd.api.with_token(&token).get(&space.path("agent")).await.expect(200);
    let token = space.token("viewer", "rollbackd").await;
    rollbackd.api.with_token(&token).get(&space.path("agent")).await.problem(401, "invalid-token");
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn what_is_no_bearer_token_is_a_401() {
    let rollbackd = Rollbackd::guarded().await;
    let bare = rollbackd.api.get("/version").await;
    bare.problem(401, "no-token");
    assert_eq!(bare.header("www-authenticate"), "Bearer realm=\"rollbackd\"");
    for value in ["Basic eDp5", "Bearer", "Bearer a b", "Token x", "alice-token"] {
        let answer = rollbackd.api.with_headers(&[("authorization", value)]).get("/version").await;
        answer.problem(401, "invalid-token");
    }
    let twice = [("authorization", "Bearer alice-token"), ("authorization", "Bearer bob-token")];
    rollbackd.api.with_headers(&twice).get("/version").await.problem(401, "invalid-token");
    // In the URL it is no token.
    rollbackd.api.get("/daemonsets?access_token=alice-token").await.problem(401, "no-token");
    // What needs none: the probes; and the document and the metrics only if so configured.
    for path in ["/livez", "/readyz"] {
        assert_eq!(rollbackd.api.get(path).await.status, 200, "{path}");
    }
    for path in ["/metrics", "/openapi.json", "/docs/"] {
        rollbackd.api.get(path).await.problem(401, "no-token");
    }
    let flags = &["--anonymous", "metrics,docs"];
    let open = Rollbackd::start_with(Setup { flags, ..Setup::guarded(ControlPlane::shared()) }).await;
    for path in ["/metrics", "/openapi.json", "/docs/"] {
        assert_eq!(open.api.get(path).await.status, 200, "{path}");
    }
    open.api.get("/version").await.problem(401, "no-token");
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn who_acts_for_somebody_needs_the_right_and_then_their_rights_decide() {
    let space = space().await;
    let carol = format!("carol-{}", space.namespace);
    let team = format!("team-{}", space.namespace);
    space.bind("carol", &Right::RollBack.rules(), user(&carol)).await;
    space.bind("team", &Right::View.rules(), group(&team)).await;
    // The portal may act for carol alone, and for members of one group; beside that it may patch.
    let portal = space.person("portal", &[Right::Patch]).await;
    let rules = json!([
        {"apiGroups": ["rollbackd.dev"], "resources": ["users"], "resourceNames": [carol, "dave"], "verbs": ["impersonate"]},
        {"apiGroups": ["rollbackd.dev"], "resources": ["groups"], "resourceNames": [team], "verbs": ["impersonate"]},
    ]);
    space.give_everywhere("portal", &rules).await;
    let rollbackd = Rollbackd::guarded().await;
    let bearer = format!("Bearer {portal}");
    let as_ = |user: &str, groups: &[&str]| {
        let mut headers = vec![("authorization", bearer.as_str()), ("impersonate-user", user)];
        headers.extend(groups.iter().map(|group| ("impersonate-group", *group)));
        rollbackd.api.with_headers(&headers)
    };

    let made = as_(&carol, &[]).post(&rollback(&space), &json!({"toRevision": 1})).await.expect(202);
    assert_eq!(made["requestedBy"]["user"], space.user("portal"));
    assert_eq!(made["onBehalfOf"], json!({"user": carol, "groups": ["system:authenticated"]}));
    let seen = as_(&carol, &[]).get(&format!("/{}", made["links"]["self"].as_str().unwrap())).await;
    assert_eq!(seen.expect(200)["id"], made["id"]);
    let admin = space.person("auditor", &[Right::Audit]).await;
    let audit = rollbackd.api.with_token(&admin).audit(&space.namespace).await;
    assert_eq!(audit[0]["onBehalfOf"]["user"], carol.as_str());
    assert_eq!(audit[0]["actor"]["user"], space.user("portal"));

    // The portal's own rights count for nothing then.
    let dave = try_to_roll_back(&as_("dave", &[]), &space).await.problem(403, "forbidden");
    assert!(dave["detail"].as_str().unwrap().contains("User \"dave\" cannot create"), "{dave}");
    as_("dave", &[]).get(&space.path("agent")).await.problem(403, "forbidden");
    as_("dave", &[&team]).get(&space.path("agent")).await.expect(200);
    // Each name is asked for.
    for (who, groups) in [("erin", &[][..]), (&carol, &["oncall"]), (&carol, &[&team, "oncall"])] {
        let problem = as_(who, groups).get("/version").await.problem(403, "forbidden");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(&space.user("portal")) && detail.contains("cannot impersonate"), "{detail}");
    }
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn kubernetes_own_right_to_impersonate_is_honoured() {
    let space = space().await;
    let carol = format!("carol-{}", space.namespace);
    space.bind("carol", &Right::View.rules(), user(&carol)).await;
    let proxy = space.person("proxy", &[]).await;
    space.person("bot", &[Right::View]).await;
    let rules = json!([
        {"apiGroups": [""], "resources": ["users"], "resourceNames": [carol], "verbs": ["impersonate"]},
        {"apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": ["bot"], "verbs": ["impersonate"]},
    ]);
    space.give_everywhere("proxy", &rules).await;
    let rollbackd = Rollbackd::guarded().await;
    let bearer = format!("Bearer {proxy}");
    for (who, status) in [(carol, 200), (space.user("bot"), 200), (space.user("viewer"), 403)] {
        let headers = [("authorization", bearer.as_str()), ("impersonate-user", &who)];
        let answer = rollbackd.api.with_headers(&headers).get(&space.path("agent")).await;
        assert_eq!(answer.status, status, "{who}: {answer:?}");
    }
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn nobody_acts_for_administrators_and_nodes_and_odd_headers_are_refused() {
    let space = space().await;
    let token = space.person("root", &[Right::Impersonate]).await;
    let auditor = space.person("auditor", &[Right::Audit]).await;
    space.give_everywhere("root", &json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])).await;
    let flags = ["--refuse-impersonate-group", "break-glass;cn=admins,ou=it"];
    let rollbackd =
        Rollbackd::start_with(Setup { flags: &flags, ..Setup::guarded(ControlPlane::shared()) }).await;
    let bearer = format!("Bearer {token}");
    let with = async |headers: &[(&str, &str)]| {
        let all = [&[("authorization", bearer.as_str())], headers].concat();
        let api = rollbackd.api.with_headers(&all);
        (api.get("/version").await, try_to_roll_back(&api, &space).await)
    };
    for headers in [
        &[("impersonate-user", "alice"), ("impersonate-group", "system:masters")][..],
        &[("impersonate-user", "alice"), ("impersonate-group", "system:nodes")],
        &[("impersonate-user", "alice"), ("impersonate-group", "system:serviceaccounts")],
        &[("impersonate-user", "alice"), ("impersonate-group", "system:serviceaccounts:kube-system")],
        &[("impersonate-user", "alice"), ("impersonate-group", "system:serviceaccounts:rollbackd")],
        &[("impersonate-user", "alice"), ("impersonate-group", "kubeadm:cluster-admins")],
        &[("impersonate-user", "alice"), ("impersonate-group", "break-glass")],
        &[("impersonate-user", "system:serviceaccount:rollbackd:backup")],
        &[("impersonate-user", "system:node:node-0")],
        &[("impersonate-user", "system:kube-controller-manager")],
        &[("impersonate-user", "system:serviceaccount:kube-system:daemon-set-controller")],
        // rollbackd itself, who may patch.
        &[("impersonate-user", "system:serviceaccount:rollbackd:rollbackd")],
    ] {
        let (read, write) = with(headers).await;
        read.problem(403, "never-impersonated");
        write.problem(403, "never-impersonated");
    }
    let denied = rollbackd.api.with_token(&auditor).actions(&space.namespace).await;
    assert_eq!(denied, ["rollback.denied"; 12]);
    for (headers, name, kind) in [
        (&[("impersonate-uid", "1"), ("impersonate-user", "a")][..], "impersonate-uid", "unsupported-header"),
        (&[("impersonate-extra-scopes", "x")], "impersonate-extra-scopes", "unsupported-header"),
        (&[("impersonate-group", "oncall")], "impersonate-user", "invalid-request"),
        (&[("impersonate-user", "a"), ("impersonate-user", "b")], "impersonate-user", "invalid-request"),
        (&[("impersonate-user", "")], "impersonate-user", "invalid-request"),
    ] {
        let (read, write) = with(headers).await;
        for answer in [read, write] {
            assert_eq!(named(&answer.problem(400, kind)), format!("header {name}"), "{headers:?}");
        }
    }
    let request = rollbackd.api.request(Method::GET, "/livez").header("impersonate-uid", "1");
    rollbackd.api.send(request).await.problem(400, "unsupported-header");
}
