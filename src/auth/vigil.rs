//! Looks after a stream while it is open: it must not outlive its caller's token or right.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::{AuthError, Authority, Caller, Payer, Reviews, Token, Who, memory::Age};
use crate::domain::access::Access;

impl Authority {
    /// Returns when a stream to `caller` must end: its token has expired or is no longer good, the right
    /// is gone, or neither could be asked for [`super::Pace::patience`]. `access` is `None` where who has
    /// a good token needs no right.
    pub async fn watch_over(&self, caller: Caller, access: Option<Access>) {
        match (self, &caller.arrival.who) {
            (Self::Kubernetes(reviews), Who::Owner { token, .. }) => {
                tokio::select! {
                    () = expiry(token) => {}
                    () = self.loses_right(reviews, &caller, access.as_ref()) => {}
                }
            }
            (Self::None | Self::Sandbox, _) | (_, Who::Local) => std::future::pending().await,
        }
    }

    async fn loses_right(&self, reviews: &Reviews, caller: &Caller, access: Option<&Access>) {
        let pace = reviews.pace;
        let mut failing: Option<Instant> = None;
        let mut wait = pace.again;
        loop {
            sleep(wait).await;
            match self.still_may(reviews, caller, access).await {
                Ok(()) => (failing, wait) = (None, pace.again),
                Err(AuthError::Cluster(_) | AuthError::TooManyRequests { .. }) => {
                    if failing.get_or_insert_with(Instant::now).elapsed() >= pace.patience {
                        return;
                    }
                    wait = pace.patience / 12;
                }
                Err(_) => return,
            }
        }
    }

    /// Asks again; many streams of one caller ask together.
    async fn still_may(
        &self,
        reviews: &Reviews,
        caller: &Caller,
        access: Option<&Access>,
    ) -> Result<(), AuthError> {
        let age = Age::AtMost(reviews.pace.again / 10);
        let Who::Owner { token, .. } = &caller.arrival.who else { return Ok(()) };
        let claim = caller.arrival.claim.clone();
        let arrival = self.authenticate(Some(token.clone()), claim, age, Payer::Itself).await?;
        let caller = self.admit(arrival, age).await?;
        let (Some(access), Some(subject)) = (access, &caller.subject) else { return Ok(()) };
        if reviews.may(subject, access, age, None).await? {
            Ok(())
        } else {
            Err(caller.denied(access.clone()).into())
        }
    }
}

/// Returns when a token expires; never, if it does not say when that is.
async fn expiry(token: &Token) {
    let Some(expiry) = token.expires_at() else { return std::future::pending().await };
    // The wall clock decides, and a timer does not follow it: look again now and then.
    loop {
        let left = Duration::try_from(expiry.duration_since(Timestamp::now())).unwrap_or_default();
        if left.is_zero() {
            return;
        }
        sleep(left.min(Duration::from_secs(60))).await;
    }
}
