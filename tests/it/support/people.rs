//! Callers with tokens, and the roles that give them rights. Each is a ServiceAccount in a test's namespace.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};

use super::{controlplane::ControlPlane, space::Space, wait::until_is};

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
        let role = format!("{name}-{right:?}").to_lowercase();
        match right {
            Right::Impersonate => self.bind_everywhere(&role, &right.rules(), self.account(name)).await,
            _ => self.bind(&role, &right.rules(), self.account(name)).await,
        }
    }

    /// Gives a ServiceAccount rules in all namespaces.
    pub async fn give_everywhere(&self, name: &str, rules: &Value) {
        self.bind_everywhere(&format!("{name}-everywhere"), rules, self.account(name)).await;
    }

    fn account(&self, name: &str) -> Value {
        json!({"kind": "ServiceAccount", "name": name, "namespace": self.namespace})
    }

    /// Makes a Role and binds it to a subject.
    pub async fn bind(&self, role: &str, rules: &Value, subject: Value) {
        self.make_bound("Role", role, rules, subject).await;
    }

    async fn bind_everywhere(&self, role: &str, rules: &Value, subject: Value) {
        self.make_bound("ClusterRole", &format!("{}-{role}", self.namespace), rules, subject).await;
    }

    async fn make_bound(&self, kind: &str, role: &str, rules: &Value, subject: Value) {
        let api = "rbac.authorization.k8s.io";
        let version = format!("{api}/v1");
        let binding = format!("{kind}Binding");
        let review = self.review(&rules[0], &subject);
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": version, "kind": kind, "metadata": {"name": role}, "rules": rules},
            {
                "apiVersion": version,
                "kind": binding,
                "metadata": {"name": role},
                "roleRef": {"apiGroup": api, "kind": kind, "name": role},
                "subjects": [subject],
            },
        ]});
        self.kubectl.apply(&objects).await;
        // The API server reads roles and bindings from watches of its own.
        until_is(&format!("{role} to be in force"), true, async || self.kubectl.allows(review.clone()).await)
            .await;
    }

    /// The spec of a review that asks whether a subject may do in the namespace what a rule gives.
    fn review(&self, rule: &Value, subject: &Value) -> Value {
        let name = subject["name"].as_str().expect("a subject has a name");
        let resource = rule["resources"][0].as_str().expect("a rule has a resource");
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (user, groups) = match subject["kind"].as_str() {
            Some("ServiceAccount") => {
                let namespace = subject["namespace"].as_str().expect("an account has a namespace");
                (format!("system:serviceaccount:{namespace}:{name}"), vec![])
            }
            Some("Group") => ("a-member".to_owned(), vec![name]),
            _ => (name.to_owned(), vec![]),
        };
        json!({"user": user, "groups": groups, "resourceAttributes": {
            "namespace": self.namespace,
            "verb": rule["verbs"][0],
            "group": rule["apiGroups"][0],
            "resource": resource,
            "subresource": subresource,
            "name": rule["resourceNames"][0],
        }})
    }

    /// Takes a right away again.
    pub async fn take(&self, name: &str, right: Right) {
        let role = format!("{name}-{right:?}").to_lowercase();
        self.kubectl.ok(&["delete", "rolebinding", &role]).await;
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
/// `expires` is in seconds since the epoch.
pub async fn short_token(
    control_plane: &ControlPlane,
    space: &Space,
    name: &str,
    audience: &str,
    expires: i64,
) -> String {
    let uid = space.kubectl.get("serviceaccount", name).await["metadata"]["uid"].clone();
    let now = jiff::Timestamp::now().as_second();
    let from = now.min(expires - 1);
    let claims = json!({
        "iss": "https://kubernetes.default.svc",
        "sub": space.user(name),
        "aud": [audience],
        "iat": from,
        "nbf": from,
        "exp": expires,
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
