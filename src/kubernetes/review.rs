//! What the cluster is asked about callers: whose token it is (TokenReview), and whether they may do
//! something (SubjectAccessReview). Each call is one request; what is remembered of the answers, and for how
//! long, is for [`crate::auth`] to say.

use std::fmt;

use k8s_openapi::api::{
    authentication::v1::{SelfSubjectReview, TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, api::PostParams};

use super::{ClusterError, Grant, Live};
use crate::domain::{
    access::Access,
    actor::{Actor, Identity},
    key::Key,
    rollback::Power,
};

/// Asks the API server's authentication and authorization.
#[derive(Clone)]
pub struct Reviewer {
    client: kube::Client,
}

/// For whom a token must have been made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Somebody of this name.
    Named(String),
    /// The API server itself. Such a token can be used anywhere.
    ApiServer,
}

impl Reviewer {
    /// Asks with rollbackd's own account.
    #[must_use]
    pub fn new(live: &Live) -> Self {
        Self { client: live.client().clone() }
    }

    /// Whose token it is; `None` if it is nobody's, or was made for another audience.
    ///
    /// # Errors
    /// What kept the API server from answering.
    pub async fn token(&self, token: &str, audience: &Audience) -> Result<Option<Identity>, ClusterError> {
        let audiences = match audience {
            Audience::Named(name) => Some(vec![name.clone()]),
            Audience::ApiServer => None,
        };
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let status = match reviews.create(&PostParams::default(), &review).await.map_err(Into::into) {
            Ok(answer) => answer.status.unwrap_or_default(),
            // A text that no authenticator can take.
            Err(ClusterError::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let meant_for_us = match audience {
            // An authenticator that knows no audiences leaves them out: such a token is for the API server.
            Audience::Named(name) => status.audiences.unwrap_or_default().contains(name),
            Audience::ApiServer => true,
        };
        let authenticated = status.authenticated == Some(true) && meant_for_us;
        Ok(status.user.filter(|_| authenticated).and_then(identity))
    }

    /// rollbackd's own user name (SelfSubjectReview, which every account may create: `system:basic-user`).
    ///
    /// # Errors
    /// What kept the API server from answering.
    pub async fn own_name(&self) -> Result<String, ClusterError> {
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
        let user = answer.status.and_then(|status| status.user_info);
        Ok(user.and_then(|user| user.username).unwrap_or_default())
    }

    /// The issuer of the cluster's service account tokens, as its OpenID configuration names it. Every service account
    /// may read that (`system:service-account-issuer-discovery`), unless an administrator has taken it away.
    ///
    /// # Errors
    /// What kept the API server from answering.
    pub async fn issuer(&self) -> Result<String, ClusterError> {
        let request = http::Request::get("/.well-known/openid-configuration").body(Vec::new());
        let request = request.map_err(|error| ClusterError::from(kube::Error::HttpError(error)))?;
        let configuration: serde_json::Value = self.client.request(request).await?;
        Ok(configuration["issuer"].as_str().unwrap_or_default().to_owned())
    }

    /// Whether RBAC, or whatever else the cluster's authorization is, allows something.
    ///
    /// # Errors
    /// What kept the API server from answering.
    pub async fn access(&self, who: &Identity, access: &Access) -> Result<bool, ClusterError> {
        let some = |text: &str| Some(text.to_owned());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(who.actor.user.clone()),
                groups: Some(who.actor.groups.clone()),
                uid: who.actor.uid.clone(),
                extra: Some(who.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: some(access.verb),
                    group: some(access.group),
                    resource: some(access.resource),
                    subresource: access.subresource.map(str::to_owned),
                    namespace: access.namespace.as_ref().map(ToString::to_string),
                    name: access.name.clone(),
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }

    /// Whether somebody may roll back a DaemonSet now: by the right to do just that, or because they may
    /// patch it anyway.
    ///
    /// # Errors
    /// What kept the API server from answering.
    pub async fn rollback(&self, who: &Identity, key: &Key) -> Result<Option<Grant>, ClusterError> {
        let (patch, roll_back) = (Access::patch_daemonset(key), Access::roll_back(key));
        let (may_patch, may_roll_back) =
            tokio::try_join!(self.access(who, &patch), self.access(who, &roll_back))?;
        Ok(match (may_patch, may_roll_back) {
            (true, _) => Some(Grant::reviewed(key.clone(), Power::Patch)),
            (false, true) => Some(Grant::reviewed(key.clone(), Power::RollBack)),
            (false, false) => None,
        })
    }
}

fn identity(user: UserInfo) -> Option<Identity> {
    let actor = Actor {
        user: user.username.filter(|name| !name.is_empty())?,
        groups: user.groups.unwrap_or_default(),
        groups_omitted: 0,
        uid: user.uid.filter(|uid| !uid.is_empty()),
    };
    Some(Identity { actor, extra: user.extra.unwrap_or_default() })
}

impl fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reviewer")
    }
}
