//! Asks the cluster, remembers for a while, and bounds how much is asked at once.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OnceCell, Semaphore};

use super::{
    AuthError, Claim, Denied, Token,
    memory::{Age, Lifetimes, Memory, Source},
    token::Digest,
};
use crate::{
    domain::{access::Access, actor::Identity, key::Key},
    kubernetes::{ClusterError, Grant, Reviewer, review::Audience},
    telemetry::Metrics,
};

/// Answers of each kind that are remembered.
const REMEMBERED: u64 = 10_000;
/// Reviews at once for tokens that have been good before, and for what their owners may do.
const KNOWN_AT_ONCE: usize = 64;
/// Reviews at once for tokens that nobody knows: strangers wait for each other, not owners of good tokens
/// for them.
const UNKNOWN_AT_ONCE: usize = 16;

/// Times of the reviews.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For how long a yes is remembered.
    pub yes: Duration,
    /// For how long a no is remembered.
    pub no: Duration,
    /// Between two reviews of who listens to a stream.
    pub again: Duration,
    /// For how long such a review may fail before the stream ends.
    pub patience: Duration,
    /// For how long a review waits for its turn.
    pub turn: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            yes: Duration::from_secs(30),
            no: Duration::from_secs(10),
            again: Duration::from_secs(30),
            patience: Duration::from_secs(60),
            turn: Duration::from_secs(5),
        }
    }
}

/// Which tokens are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audiences {
    /// The audience that is rollbackd's own.
    pub own: String,
    /// Whether tokens for the API server are taken too.
    pub api_server: bool,
}

/// Somebody about whom RBAC can be asked.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub identity: Arc<Identity>,
    digest: Digest,
}

impl Subject {
    pub(super) fn new(identity: Identity) -> Self {
        let json = serde_json::to_vec(&identity).expect("an identity has string keys");
        Self { identity: Arc::new(identity), digest: Sha256::digest(json).into() }
    }
}

/// All reviews.
pub struct Reviews {
    reviewer: Reviewer,
    audiences: Audiences,
    pub(super) pace: Pace,
    tokens: Memory<Digest, Subject>,
    accesses: Memory<(Digest, Access), ()>,
    known: Semaphore,
    unknown: Semaphore,
    own_name: OnceCell<String>,
    metrics: Metrics,
}

impl Reviews {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new(reviewer: Reviewer, audiences: Audiences, pace: Pace, metrics: Metrics) -> Self {
        let lifetimes = Lifetimes { yes: pace.yes, no: pace.no };
        Self {
            reviewer,
            audiences,
            pace,
            tokens: Memory::new(lifetimes, REMEMBERED),
            accesses: Memory::new(lifetimes, REMEMBERED),
            known: Semaphore::new(KNOWN_AT_ONCE),
            unknown: Semaphore::new(UNKNOWN_AT_ONCE),
            own_name: OnceCell::new(),
            metrics,
        }
    }

    /// Whose token it is.
    pub(super) async fn owner(&self, token: &Token, age: Age) -> Result<Subject, AuthError> {
        if token.expires_at().is_some_and(|expiry| expiry <= Timestamp::now()) {
            return Err(AuthError::InvalidToken);
        }
        let digest = token.digest();
        let turns = if self.tokens.knows(&digest) { &self.known } else { &self.unknown };
        let audience = self.audience_of(token);
        let review = self.in_turn(turns, async {
            let owner = self.reviewer.token(token.secret(), &audience).await?;
            Ok(owner.map(Subject::new))
        });
        let answer = self.tokens.ask(digest, age, review).await;
        self.counted("token", answer)?.ok_or(AuthError::InvalidToken)
    }

    fn audience_of(&self, token: &Token) -> Audience {
        let Audiences { own, api_server } = &self.audiences;
        if *api_server && !token.names_audience(own) {
            Audience::ApiServer
        } else {
            Audience::Named(own.clone())
        }
    }

    /// Whether somebody may do something.
    pub(super) async fn may(&self, who: &Subject, access: &Access, age: Age) -> Result<bool, ClusterError> {
        let review = self.in_turn(&self.known, async {
            let allowed = self.reviewer.access(&who.identity, access).await?;
            Ok(allowed.then_some(()))
        });
        let answer = self.accesses.ask((who.digest, access.clone()), age, review).await;
        Ok(self.counted("access", answer)?.is_some())
    }

    /// Lets somebody roll back a DaemonSet. Nothing remembered counts.
    pub(super) async fn grant(&self, who: &Subject, key: &Key) -> Result<Grant, AuthError> {
        let review = self.in_turn(&self.known, self.reviewer.rollback(&who.identity, key));
        let answer = review.await.map(|grant| (grant, Source::Asked));
        let denied = || Denied::new(who, Access::roll_back(key)).into();
        self.counted("access", answer)?.ok_or_else(denied)
    }

    /// The person for whom somebody says to act, if that is allowed.
    pub(super) async fn person(&self, who: &Subject, claim: &Claim, age: Age) -> Result<Subject, AuthError> {
        claim.check()?;
        if claim.is_account() {
            let own = self.own_name.get_or_try_init(|| self.reviewer.own_name()).await?;
            claim.is_not(own)?;
        }
        let user = Access::impersonate_user(claim.user());
        let groups = claim.groups().iter().map(|group| Access::impersonate_group(group));
        for [own, kubernetes] in std::iter::once(user).chain(groups) {
            let allowed = self.may(who, &own, age).await? || self.may(who, &kubernetes, age).await?;
            if !allowed {
                return Err(Denied::new(who, own).into());
            }
        }
        Ok(Subject::new(claim.person()))
    }

    async fn in_turn<T>(
        &self,
        turns: &Semaphore,
        review: impl Future<Output = Result<T, ClusterError>>,
    ) -> Result<T, ClusterError> {
        let busy = ClusterError::Busy { retry_after: Some(Duration::from_secs(1)) };
        match tokio::time::timeout(self.pace.turn, turns.acquire()).await {
            Ok(Ok(_turn)) => review.await,
            Ok(Err(_)) | Err(_) => Err(busy),
        }
    }

    fn counted<T>(
        &self,
        kind: &'static str,
        answer: Result<(Option<T>, Source), ClusterError>,
    ) -> Result<Option<T>, ClusterError> {
        let result = match &answer {
            Ok((Some(_), _)) => "yes",
            Ok((None, _)) => "no",
            Err(_) => "error",
        };
        let remembered = matches!(answer, Ok((_, Source::Remembered)));
        self.metrics.review(kind, result, remembered);
        answer.map(|(answer, _)| answer)
    }
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviews").field("audiences", &self.audiences).finish_non_exhaustive()
    }
}
