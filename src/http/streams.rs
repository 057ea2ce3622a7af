//! How many event streams may be open: in total, and for each user whose rights decide.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::problem::{Kind, Problem};
use crate::telemetry::{Metrics, SseListener};

/// When a caller may try again: others close streams meanwhile.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Limits of the event streams of one process.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// `--max-streams`.
    pub total: usize,
    /// `--max-streams-per-user`.
    pub per_user: usize,
}

/// All open event streams. Clones share them.
#[derive(Clone, Debug)]
pub struct Streams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: StreamLimits,
    metrics: Metrics,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    count: usize,
    users: HashMap<String, usize>,
}

/// The place of one stream, until it is dropped.
#[derive(Debug)]
pub struct StreamPermit {
    shared: Arc<Shared>,
    user: Option<String>,
    _listener: SseListener,
}

impl Streams {
    /// No stream is open yet.
    #[must_use]
    pub fn new(limits: StreamLimits, metrics: Metrics) -> Self {
        Self(Arc::new(Shared { limits, metrics, open: Mutex::default() }))
    }

    /// Takes a place for a stream of this user; without authentication there are no users, and only the total
    /// counts.
    ///
    /// # Errors
    /// 429 if there is none.
    pub fn open(&self, user: Option<&str>) -> Result<StreamPermit, Problem> {
        let StreamLimits { total, per_user } = self.0.limits;
        let refused = |detail| Err(Problem::new(Kind::TooManyStreams, detail).retry_after(RETRY_AFTER));
        let mut open = self.0.open();
        if open.count >= total {
            return refused(format!("all {total} event streams of this rollbackd are in use"));
        }
        if let Some(user) = user {
            let count = open.users.entry(user.to_owned()).or_default();
            if *count >= per_user {
                return refused(format!("{per_user} event streams of this user are open: close one of them"));
            }
            *count += 1;
        }
        open.count += 1;
        let user = user.map(ToOwned::to_owned);
        Ok(StreamPermit { shared: self.0.clone(), user, _listener: self.0.metrics.sse_listener() })
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut open = self.shared.open();
        open.count -= 1;
        let Some(user) = &self.user else { return };
        let Some(count) = open.users.get_mut(user) else { return };
        *count -= 1;
        if *count == 0 {
            open.users.remove(user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_at_the_limit_leaves_room_for_others_until_all_is_used() {
        let streams = Streams::new(StreamLimits { total: 3, per_user: 2 }, Metrics::new());
        let refused = |user| streams.open(user).map(drop).map_err(|problem| problem.kind);
        let first = streams.open(Some("alice")).unwrap();
        let _second = streams.open(Some("alice")).unwrap();
        assert_eq!(refused(Some("alice")), Err(Kind::TooManyStreams));
        let _third = streams.open(Some("bob")).unwrap();
        assert_eq!(refused(Some("carol")), Err(Kind::TooManyStreams));
        drop(first);
        assert_eq!((refused(Some("alice")), refused(None)), (Ok(()), Ok(())));
        assert_eq!(streams.0.open().users.len(), 2);
    }
}
