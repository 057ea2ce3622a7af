//! Callers with tokens, and the roles that give them rights. Each is a ServiceAccount in a test's namespace.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};

use super::{controlplane::ControlPlane, space::Space};

/// What a Role can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Read DaemonSets, their revisions and rollouts.
    View,
    /// Read DaemonSets, but not their revisions.
    ViewDaemonSets,
    /// Roll back, and nothing else.
    RollBack,
    /// Patch DaemonSets, and nothing else.
    Patch,
    /// Read the audit.
    Audit,
    /// Act for anybody, here only.
    Impersonate,
}

impl Right {
    /// The rules of the Role.
    pub fn rules(self) -> Value {
        match self {
            Self::View => json!([
                {"apiGroups": ["apps"], "resources": ["daemonsets", "controllerrevisions"], "verbs": ["get", "list"]},
            ]),
            Self::ViewDaemonSets => json!([
                {"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["get", "list"]},
            ]),
            Self::RollBack => json!([
                {"apiGroups": ["apps"], "resources": ["daemonsets/rollback"], "verbs": ["create"]},
            ]),
            Self::Patch => json!([
                {"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["patch"]},
            ]),
            Self::Audit => json!([
                {"apiGroups": ["rollbackd.dev"], "resources": ["audit"], "verbs": ["get"]},
            ]),
            Self::Impersonate => json!([
                {"apiGroups": ["rollbackd.dev"], "resources": ["users", "groups"], "verbs": ["impersonate"]},
            ]),
        }
    }
}

/// Makes people.
impl Space {
    /// A ServiceAccount with these rights in the namespace; returns a token of it for rollbackd.
    pub async fn person(&self, name: &str, rights: &[Right]) -> String {
        self.kubectl.ok(&["create", "serviceaccount", name]).await;
        for right in rights {
            self.give(name, *right).await;
        }
        self.token(name, "rollbackd").await
    }

    /// Gives a ServiceAccount a right: in the namespace, or, as acting for others is asked for there, in
    /// the cluster.
    pub async fn give(&self, name: &str, right: Right) {
        let (role, binding) = match right {
            Right::Impersonate => ("ClusterRole", "ClusterRoleBinding"),
            _ => ("Role", "RoleBinding"),
        };
        self.bind(name, (role, binding), &format!("{name}-{right:?}").to_lowercase(), &right.rules()).await;
    }

    /// Gives a ServiceAccount rules in all namespaces.
    pub async fn give_everywhere(&self, name: &str, rules: &Value) {
        self.bind(name, ("ClusterRole", "ClusterRoleBinding"), &format!("{name}-everywhere"), rules).await;
    }

    /// Takes a right away again.
    pub async fn take(&self, name: &str, right: Right) {
        let role = format!("{name}-{right:?}").to_lowercase();
        self.kubectl.ok(&["delete", "rolebinding", &role]).await;
    }

    async fn bind(&self, name: &str, (role, binding): (&str, &str), called: &str, rules: &Value) {
        let cluster = role == "ClusterRole";
        let called = if cluster { format!("{}-{called}", self.namespace) } else { called.to_owned() };
        let api = "rbac.authorization.k8s.io";
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": format!("{api}/v1"), "kind": role, "metadata": {"name": called}, "rules": rules},
            {
                "apiVersion": format!("{api}/v1"),
                "kind": binding,
                "metadata": {"name": called},
                "roleRef": {"apiGroup": api, "kind": role, "name": called},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": self.namespace}],
            },
        ]});
        self.kubectl.apply(&objects).await;
    }

    /// A token of a ServiceAccount for an audience.
    pub async fn token(&self, name: &str, audience: &str) -> String {
        let token = self.kubectl.ok(&["create", "token", name, "--audience", audience]).await;
        token.trim().to_owned()
    }

    /// The user name of a ServiceAccount.
    pub fn user(&self, name: &str) -> String {
        format!("system:serviceaccount:{}:{name}", self.namespace)
    }
}

/// A token as the API server makes it, but for a time that it does not offer: its shortest is ten minutes.
/// `lives` is counted from now; `None` has expired long ago.
pub async fn short_token(
    control_plane: &ControlPlane,
    space: &Space,
    name: &str,
    audience: &str,
    lives: Option<Duration>,
) -> String {
    let uid = space.kubectl.get("serviceaccount", name).await["metadata"]["uid"].clone();
    let now = jiff::Timestamp::now().as_second();
    let (from, to) = match lives {
        Some(lives) => (now, now + i64::try_from(lives.as_secs()).expect("a short time")),
        None => (now - 7200, now - 3600),
    };
    let claims = json!({
        "iss": "https://kubernetes.default.svc",
        "sub": space.user(name),
        "aud": [audience],
        "iat": from,
        "nbf": from,
        "exp": to,
        "kubernetes.io": {
            "namespace": space.namespace,
            "serviceaccount": {"name": name, "uid": uid},
        },
    });
    let issued = space.token(name, audience).await;
    let header = issued.split('.').next().expect("a JWT has a header");
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = PrivatePkcs8KeyDer::from_pem_file(control_plane.file("sa.key")).expect("a PKCS#8 key");
    let key = RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).expect("an RSA key");
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).expect("it signs");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
