//! Who asks, and what they may do.
//!
//! With `--auth kubernetes` the cluster's own authentication and RBAC decide ([`reviews`]). A caller comes
//! as an [`Arrival`]: its token is good, and it may say to act for somebody else. Admitted, it is a
//! [`Caller`], whose rights, or those of that somebody else, decide from then on.
//!
//! With `--auth none` everybody who gets past the server's guards is `local` and may do all that
//! rollbackd's own credentials allow; in the sandbox everybody is.

mod claim;
mod memory;
mod reviews;
mod shares;
mod token;
mod vigil;

use std::{collections::HashSet, net::IpAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt};

pub use claim::{Claim, NeverImpersonated};
pub use memory::Age;
use reviews::Subject;
pub use reviews::{Admission, Audiences, Pace, Reviews};
pub use shares::Share;
pub use token::Token;

use crate::{
    domain::{
        access::Access,
        actor::Actor,
        key::{Key, Namespace},
        rollback::Rollback,
    },
    kubernetes::{ClusterError, Grant},
};

/// Namespaces that one request asks about, one by one, of somebody without a right to all.
const NAMESPACES: usize = 256;
/// Of those, so many at once.
const AT_ONCE: usize = 8;

/// How callers are told apart and what is asked before they may do something.
#[derive(Clone, Debug)]
pub enum Authority {
    /// No authentication: only ever behind the loopback guards.
    None,
    /// No authentication, and nothing to guard: the cluster is simulated.
    Sandbox,
    /// The cluster's.
    Kubernetes(Arc<Reviews>),
}

/// Somebody whose token is good, not yet admitted as whom they say to act for.
#[derive(Clone, Debug)]
pub struct Arrival {
    who: Who,
    claim: Option<Claim>,
}

#[derive(Clone, Debug)]
enum Who {
    Local,
    Owner { token: Token, subject: Subject },
}

/// Whoever sent a request, admitted.
#[derive(Clone, Debug)]
pub struct Caller {
    arrival: Arrival,
    /// The one whose rights decide; `None` with `--auth none`.
    subject: Option<Subject>,
}

/// Namespaces of which somebody sees the objects in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    All,
    Only(HashSet<Namespace>),
}

/// RBAC says no; `Display` says it in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", access.forbidden(user))]
pub struct Denied {
    user: String,
    access: Box<Access>,
}

/// Why somebody may not, or can't be asked about.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuthError {
    /// The request carries no token.
    #[error("a bearer token is needed: Authorization: Bearer …")]
    NoToken,
    /// The token is nobody's, has expired, or was made for another audience.
    #[error("the bearer token is not valid here: unknown, expired, or made for another audience")]
    InvalidToken,
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Whatever RBAC says.
    #[error(transparent)]
    NeverImpersonated(#[from] NeverImpersonated),
    /// No right to all namespaces, and too many to ask about each.
    #[error("{0}; there are too many namespaces to ask about each of them: name one")]
    TooManyNamespaces(Denied),
    /// The share of the reviews of this caller, or of the client's address, is used up.
    #[error("too many requests that need a review by the cluster")]
    TooManyRequests { retry_after: Duration },
    /// It can't be asked. Never a yes.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// Why a review has no answer. Never a yes.
#[derive(Clone, Debug)]
enum ReviewError {
    ShareUsedUp { retry_after: Duration },
    Cluster(ClusterError),
}

impl From<ClusterError> for ReviewError {
    fn from(error: ClusterError) -> Self {
        Self::Cluster(error)
    }
}

impl From<ReviewError> for AuthError {
    fn from(error: ReviewError) -> Self {
        match error {
            ReviewError::ShareUsedUp { retry_after } => Self::TooManyRequests { retry_after },
            ReviewError::Cluster(error) => Self::Cluster(error),
        }
    }
}

/// Who pays for a review with a part of their share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payer {
    /// The client's address, as long as the token is not known; an IPv6 address is that of its /64.
    Address(IpAddr),
    /// rollbackd itself: who listens to a stream is reviewed at intervals, and streams are limited.
    Itself,
}

impl Denied {
    fn new(subject: &Subject, access: Access) -> Self {
        Self { user: subject.identity.actor.user.clone(), access: access.into() }
    }
}

impl Seen {
    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, namespace: &Namespace) -> bool {
        match self {
            Self::All => true,
            Self::Only(some) => some.contains(namespace),
        }
    }
}

impl Arrival {
    /// Who it is, by its token.
    #[must_use]
    pub fn actor(&self) -> Actor {
        match &self.who {
            Who::Local => Actor { user: "local".into(), groups: Vec::new(), groups_omitted: 0, uid: None },
            Who::Owner { subject, .. } => subject.identity.actor.clone(),
        }
    }

    /// For whom it says to act.
    #[must_use]
    pub fn on_behalf_of(&self) -> Option<Actor> {
        self.claim.as_ref().map(|claim| claim.person().actor)
    }
}

impl Caller {
    /// The user whose rights decide; `None` with `--auth none`.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.subject.as_ref().map(|subject| subject.identity.actor.user.as_str())
    }

    /// As whom it asks for reads: the one whose rights decide.
    #[must_use]
    pub fn asker(&self) -> &str {
        self.user().unwrap_or("local")
    }

    /// Whether it asked for a rollback, or somebody did so for it.
    #[must_use]
    pub fn asked_for(&self, rollback: &Rollback) -> bool {
        let asker = rollback.origin.asker();
        self.subject.as_ref().is_none_or(|subject| {
            let me = &subject.identity.actor;
            // A name that was given away again has another uid.
            let same_uid = me.uid.is_none() || asker.uid.is_none() || me.uid == asker.uid;
            me.user == asker.user && same_uid
        })
    }
}

impl Authority {
    /// Finds out who sent a request.
    ///
    /// # Errors
    /// When there is no token, a bad one, the share of who pays is used up, or the cluster can't be asked.
    pub async fn authenticate(
        &self,
        token: Option<Token>,
        claim: Option<Claim>,
        age: Age,
        payer: Payer,
    ) -> Result<Arrival, AuthError> {
        let Self::Kubernetes(reviews) = self else {
            return Ok(Arrival { who: Who::Local, claim: None });
        };
        let token = token.ok_or(AuthError::NoToken)?;
        let subject = reviews.owner(&token, claim.as_ref(), age, &payer).await?;
        Ok(Arrival { who: Who::Owner { token, subject }, claim })
    }

    /// Lets somebody in, as whom they say to act for if they may.
    ///
    /// # Errors
    /// [`AuthError::Denied`] if they may not.
    pub async fn admit(&self, arrival: Arrival, age: Age) -> Result<Caller, AuthError> {
        let subject = match (self, &arrival.who, &arrival.claim) {
            (Self::Kubernetes(reviews), Who::Owner { subject, .. }, Some(claim)) => {
                Some(reviews.person(subject, claim, age).await?)
            }
            (_, Who::Owner { subject, .. }, _) => Some(subject.clone()),
            (_, Who::Local, _) => None,
        };
        Ok(Caller { arrival, subject })
    }

    /// Whether somebody may do something; what is remembered counts.
    ///
    /// # Errors
    /// When the cluster can't be asked, or the caller's share of reviews is used up.
    pub async fn may(&self, caller: &Caller, access: &Access) -> Result<bool, AuthError> {
        match (self, &caller.subject) {
            (Self::Kubernetes(reviews), Some(subject)) => {
                Ok(reviews.may(subject, access, Age::Remembered, Some(subject.name())).await?)
            }
            (Self::None | Self::Sandbox, _) => Ok(true),
            (Self::Kubernetes(_), None) => Ok(false),
        }
    }

    /// As [`Authority::may`], with a no as an error.
    ///
    /// # Errors
    /// [`AuthError::Denied`], or that the cluster can't be asked.
    pub async fn require(&self, caller: &Caller, access: Access) -> Result<(), AuthError> {
        if self.may(caller, &access).await? { Ok(()) } else { Err(caller.denied(access).into()) }
    }

    /// Of which namespaces somebody sees objects in a list across them: of all, or of those of
    /// `candidates` that they have the right for.
    ///
    /// # Errors
    /// [`AuthError::Denied`] if of none, or that the cluster can't be asked.
    pub async fn seen_by(
        &self,
        caller: &Caller,
        right: impl Fn(Option<&Namespace>) -> Access,
        candidates: HashSet<Namespace>,
    ) -> Result<Seen, AuthError> {
        if self.may(caller, &right(None)).await? {
            return Ok(Seen::All);
        }
        let denied = caller.denied(right(None));
        if candidates.len() > NAMESPACES {
            return Err(AuthError::TooManyNamespaces(denied));
        }
        let (Self::Kubernetes(reviews), Some(subject)) = (self, &caller.subject) else {
            return Err(denied.into());
        };
        let mut unseen = reviews.unseen(subject, &right(None)).await;
        let asked: Vec<Namespace> = candidates.difference(&unseen.namespaces).cloned().collect();
        let right = &right;
        let asking = asked.clone().into_iter().map(async |namespace| {
            let allowed = self.may(caller, &right(Some(&namespace))).await?;
            Ok::<_, AuthError>(allowed.then_some(namespace))
        });
        let answers = futures_util::stream::iter(asking).buffer_unordered(AT_ONCE);
        let allowed: HashSet<Namespace> =
            answers.try_filter_map(async |allowed| Ok(allowed)).try_collect().await?;
        if allowed.len() < asked.len() {
            unseen.namespaces.extend(asked.into_iter().filter(|namespace| !allowed.contains(namespace)));
            reviews.remember_unseen(subject, right(None), unseen).await;
        }
        if allowed.is_empty() { Err(denied.into()) } else { Ok(Seen::Only(allowed)) }
    }

    /// Lets somebody in and lets them roll back a DaemonSet, asked now.
    ///
    /// # Errors
    /// [`AuthError::Denied`] if they may not, or that the cluster can't be asked.
    pub async fn grant_rollback(&self, arrival: Arrival, key: &Key) -> Result<(Caller, Grant), AuthError> {
        let caller = self.admit(arrival, Age::Fresh).await?;
        let grant = match (self, &caller.subject) {
            (Self::Kubernetes(reviews), Some(subject)) => reviews.grant(subject, key).await?,
            (Self::None | Self::Sandbox, _) => Grant::unreviewed(key.clone()),
            (Self::Kubernetes(_), None) => return Err(AuthError::NoToken),
        };
        Ok((caller, grant))
    }
}

impl Caller {
    /// What this caller is told who may not do it.
    #[must_use]
    pub fn denied(&self, access: Access) -> Denied {
        let user = self.subject.as_ref().map(|subject| subject.identity.actor.user.clone());
        Denied { user: user.unwrap_or_default(), access: access.into() }
    }
}
