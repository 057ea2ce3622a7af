//! Who asks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The person or account behind a request, as the cluster's authentication names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Actor {
    /// User name; `local` where rollbackd runs with `--auth none`.
    #[schema(examples("system:serviceaccount:ci:deploy-bot"))]
    pub user: String,
    /// Groups of the user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Unique id of the user, where the authenticator knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

impl Actor {
    /// rollbackd, as an entry has it that nobody asked for.
    #[must_use]
    pub fn rollbackd() -> Self {
        Self { user: "rollbackd".to_owned(), groups: Vec::new(), uid: None }
    }
}

/// All that a token's review says of its owner; passed on unchanged when RBAC is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Identity {
    pub actor: Actor,
    /// What an authenticator adds, such as the name of the pod that a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}
