//! Asks the cluster, remembers for a while, and bounds how much is asked at once.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use moka::future::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OnceCell, Semaphore};

use super::{
    AuthError, Claim, Denied, Payer, ReviewError, Token,
    memory::{Age, Lifetimes, Memory, Source},
    shares::{Share, Shares},
    token::Digest,
};
use crate::{
    domain::{
        access::Access,
        actor::Identity,
        key::{Key, Namespace},
    },
    kubernetes::{ClusterError, Grant, Reviewer, review::Audience},
    telemetry::{Metrics, causes},
};

/// Answers of each kind that are remembered.
const REMEMBERED: u64 = 10_000;
/// Callers of whom it is remembered which namespaces they do not see.
const UNSEEN: u64 = 500;
/// Between two tries to read the issuer of service account tokens.
const ISSUER_RETRY: Duration = Duration::from_secs(30);
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
    /// Its user's name.
    pub(super) fn name(&self) -> &str {
        &self.identity.actor.user
    }

    pub(super) fn new(identity: Identity) -> Self {
        let json = serde_json::to_vec(&identity).expect("an identity has string keys");
        Self { identity: Arc::new(identity), digest: Sha256::digest(json).into() }
    }
}

/// Who is let in, and how much each may ask.
#[derive(Clone, Debug)]
pub struct Admission {
    pub audiences: Audiences,
    /// Groups beside the known ones whose members can't be impersonated.
    pub refused_groups: Vec<String>,
    /// The share of a client's address, for tokens that are not known.
    pub address_share: Share,
    /// The share of a user.
    pub user_share: Share,
}

/// Namespaces whose objects a caller may not see, as remembered from recent reviews.
#[derive(Clone, Debug)]
pub(super) struct Unseen {
    pub namespaces: HashSet<Namespace>,
    since: Instant,
}

/// All reviews.
pub struct Reviews {
    reviewer: Reviewer,
    admission: Admission,
    pub(super) pace: Pace,
    tokens: Memory<Digest, Subject>,
    accesses: Memory<(Digest, Access), ()>,
    known: Semaphore,
    unknown: Semaphore,
    /// By the right to all namespaces, which callers lack.
    unseen: Cache<(Digest, Access), Arc<Unseen>>,
    address_shares: Shares<IpAddr>,
    user_shares: Shares<String>,
    own_name: OnceCell<String>,
    /// The issuer of the cluster's service account tokens, once it is known.
    issuer: OnceLock<String>,
    metrics: Metrics,
}

impl Reviews {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new(reviewer: Reviewer, admission: Admission, pace: Pace, metrics: Metrics) -> Self {
        let lifetimes = Lifetimes { yes: pace.yes, no: pace.no };
        Self {
            reviewer,
            unseen: Cache::builder().max_capacity(UNSEEN).time_to_live(pace.yes).build(),
            address_shares: Shares::new(admission.address_share),
            user_shares: Shares::new(admission.user_share),
            admission,
            pace,
            tokens: Memory::new(lifetimes, REMEMBERED),
            accesses: Memory::new(lifetimes, REMEMBERED),
            known: Semaphore::new(KNOWN_AT_ONCE),
            unknown: Semaphore::new(UNKNOWN_AT_ONCE),
            own_name: OnceCell::new(),
            issuer: OnceLock::new(),
            metrics,
        }
    }

    /// Reads the issuer of the cluster's service account tokens, and tries again until it has it.
    pub async fn learn_issuer(self: Arc<Self>) {
        let mut failing = false;
        loop {
            match self.reviewer.issuer().await {
                Ok(issuer) => {
                    let _ = self.issuer.set(issuer);
                    return;
                }
                Err(error) if !failing => {
                    let error = causes(&error);
                    tracing::warn!(%error, "the issuer of service account tokens can't be read; each token is reviewed");
                    failing = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(ISSUER_RETRY).await;
        }
    }

    /// Whose token it is. A remembered no holds also for what is asked fresh: a token does not become good.
    pub(super) async fn owner(
        &self,
        token: &Token,
        claim: Option<&Claim>,
        age: Age,
        payer: &Payer,
    ) -> Result<Subject, AuthError> {
        let expired = token.expires_at().is_some_and(|expiry| expiry <= Timestamp::now());
        let digest = token.digest();
        if expired || self.is_for_others(token) || self.tokens.refuses(&digest).await {
            return Err(AuthError::InvalidToken);
        }
        let known = self.tokens.known(&digest).await;
        let turns = if known.is_some() { &self.known } else { &self.unknown };
        let audience = self.audience_of(token);
        let review = async {
            match (payer, &known) {
                (Payer::Itself, _) => {}
                (Payer::Address(_), Some(owner)) => self.charge(self.who_pays(owner, claim).await)?,
                (Payer::Address(address), None) => used_up(self.address_shares.take(*address))?,
            }
            let reviewed = self.in_turn(turns, self.reviewer.token(token.secret(), &audience)).await?;
            Ok(reviewed.map(Subject::new))
        };
        let answer = self.tokens.ask(digest, age, review).await;
        self.counted("token", answer)?.ok_or(AuthError::InvalidToken)
    }

    /// Whether it says to be a service account's of this cluster, made for another audience: the API server would
    /// refuse it, and need not be asked.
    fn is_for_others(&self, token: &Token) -> bool {
        let Audiences { own, api_server } = &self.admission.audiences;
        let ours = |issuer: &String| !issuer.is_empty() && token.names_issuer(issuer);
        !api_server && self.issuer.get().is_some_and(ours) && !token.names_audience(own)
    }

    /// Who pays for a request of a token's owner: the person for whom it acts, if it is known that it may, so that
    /// one person can't use up the share of a portal.
    async fn who_pays<'a>(&self, owner: &'a Subject, claim: Option<&'a Claim>) -> &'a str {
        let Some(claim) = claim else { return owner.name() };
        for access in Access::impersonate_user(claim.user()) {
            if self.accesses.known(&(owner.digest, access)).await.is_some() {
                return claim.user();
            }
        }
        owner.name()
    }

    fn charge(&self, user: &str) -> Result<(), ReviewError> {
        used_up(self.user_shares.take(user.to_owned()))
    }

    fn audience_of(&self, token: &Token) -> Audience {
        let Audiences { own, api_server } = &self.admission.audiences;
        if *api_server && !token.names_audience(own) {
            Audience::ApiServer
        } else {
            Audience::Named(own.clone())
        }
    }

    /// Whether a user may do something. `payer` is the user whose share it is taken from.
    pub(super) async fn may(
        &self,
        who: &Subject,
        access: &Access,
        age: Age,
        payer: Option<&str>,
    ) -> Result<bool, ReviewError> {
        let review = async {
            payer.map_or(Ok(()), |payer| self.charge(payer))?;
            let allowed = self.in_turn(&self.known, self.reviewer.access(&who.identity, access)).await?;
            Ok(allowed.then_some(()))
        };
        let answer = self.accesses.ask((who.digest, access.clone()), age, review).await;
        Ok(self.counted("access", answer)?.is_some())
    }

    /// Lets somebody roll back a DaemonSet. Nothing remembered counts.
    pub(super) async fn grant(&self, who: &Subject, key: &Key) -> Result<Grant, AuthError> {
        let review = async {
            // Two rights are asked about.
            self.charge(who.name())?;
            self.charge(who.name())?;
            self.in_turn(&self.known, self.reviewer.rollback(&who.identity, key)).await
        };
        let answer = review.await.map(|grant| (grant, Source::Asked));
        let denied = || Denied::new(who, Access::roll_back(key)).into();
        self.counted("access", answer)?.ok_or_else(denied)
    }

    /// The person for whom somebody says to act, if that is allowed.
    pub(super) async fn person(&self, who: &Subject, claim: &Claim, age: Age) -> Result<Subject, AuthError> {
        claim.check(&self.admission.refused_groups)?;
        if claim.names_accounts() {
            let own = self.own_name.get_or_try_init(|| self.reviewer.own_name()).await?;
            claim.is_not(own)?;
        }
        let payer = match age {
            Age::AtMost(_) => None,
            Age::Fresh | Age::Remembered => Some(self.who_pays(who, Some(claim)).await),
        };
        let user = Access::impersonate_user(claim.user());
        let groups = claim.groups().iter().map(|group| Access::impersonate_group(group));
        for [own, kubernetes] in std::iter::once(user).chain(groups) {
            let allowed =
                self.may(who, &own, age, payer).await? || self.may(who, &kubernetes, age, payer).await?;
            if !allowed {
                return Err(Denied::new(who, own).into());
            }
        }
        Ok(Subject::new(claim.person()))
    }

    /// What is remembered of the namespaces that somebody does not see by a right. Only that: a right that is taken
    /// away is gone as soon as for any other read.
    pub(super) async fn unseen(&self, who: &Subject, right: &Access) -> Unseen {
        let remembered = self.unseen.get(&(who.digest, right.clone())).await;
        let young = remembered.filter(|unseen| unseen.since.elapsed() < self.pace.yes);
        let none = || Unseen { namespaces: HashSet::new(), since: Instant::now() };
        young.map_or_else(none, |unseen| (*unseen).clone())
    }

    /// Remembers it, for as long as a yes from the first of these answers on.
    pub(super) async fn remember_unseen(&self, who: &Subject, right: Access, unseen: Unseen) {
        self.unseen.insert((who.digest, right), Arc::new(unseen)).await;
    }

    async fn in_turn<T>(
        &self,
        turns: &Semaphore,
        review: impl Future<Output = Result<T, ClusterError>>,
    ) -> Result<T, ReviewError> {
        let busy = ClusterError::Busy { retry_after: Some(Duration::from_secs(1)) };
        match tokio::time::timeout(self.pace.turn, turns.acquire()).await {
            Ok(Ok(_turn)) => Ok(review.await?),
            Ok(Err(_)) | Err(_) => Err(busy.into()),
        }
    }

    fn counted<T>(
        &self,
        kind: &'static str,
        answer: Result<(Option<T>, Source), ReviewError>,
    ) -> Result<Option<T>, ReviewError> {
        let result = match &answer {
            Ok((Some(_), _)) => "yes",
            Ok((None, _)) => "no",
            Err(ReviewError::ShareUsedUp { .. }) => "refused",
            Err(ReviewError::Cluster(_)) => "error",
        };
        let remembered = matches!(answer, Ok((_, Source::Remembered)));
        self.metrics.review(kind, result, remembered);
        answer.map(|(answer, _)| answer)
    }
}

fn used_up(taken: Result<(), Duration>) -> Result<(), ReviewError> {
    taken.map_err(|retry_after| ReviewError::ShareUsedUp { retry_after })
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviews").field("admission", &self.admission).finish_non_exhaustive()
    }
}
