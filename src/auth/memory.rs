//! What is remembered of reviews: a yes longer than a no, and each in a store of its own, so that any
//! number of refused tokens can't push out one that is good.

use std::{
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use moka::future::Cache;

use super::ReviewError;

/// How old the answer to a review may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Asked now, for this caller alone: what a write needs.
    Fresh,
    /// Asked not longer ago than this: what an open stream needs.
    AtMost(Duration),
    /// Whatever is remembered: what a read needs.
    Remembered,
}

/// Where an answer came from; for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the cluster, for this question.
    Asked,
    /// From memory, or from an equal question at the same time.
    Remembered,
}

/// For how long answers are remembered.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    pub yes: Duration,
    pub no: Duration,
}

/// Answers to one kind of review. Equal questions at once are asked once.
pub struct Memory<K, V> {
    yes: Cache<K, Answer<V>>,
    no: Cache<K, Answer<()>>,
    lifetimes: Lifetimes,
}

#[derive(Clone)]
struct Answer<V> {
    value: V,
    /// Before it was asked, so that a slow answer does not live longer.
    asked_at: Instant,
}

/// Why there is no yes to remember.
enum NotYes {
    No,
    Unknown(ReviewError),
}

impl<V> Answer<V> {
    fn is_younger_than(&self, limit: Duration) -> bool {
        self.asked_at.elapsed() < limit
    }
}

impl<K, V> Memory<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Remembers at most `capacity` answers of each kind.
    pub fn new(lifetimes: Lifetimes, capacity: u64) -> Self {
        Self {
            yes: Cache::builder().max_capacity(capacity).time_to_live(lifetimes.yes).build(),
            no: Cache::builder().max_capacity(capacity).time_to_live(lifetimes.no).build(),
            lifetimes,
        }
    }

    /// The remembered yes, however old.
    pub async fn known(&self, key: &K) -> Option<V> {
        self.yes.get(key).await.map(|known| known.value)
    }

    /// Whether a no to this is remembered.
    pub async fn refuses(&self, key: &K) -> bool {
        let refused = self.no.get(key).await;
        refused.is_some_and(|refused| refused.is_younger_than(self.lifetimes.no))
    }

    /// The remembered answer if it is young enough, else the one that `review` brings; `None` is no.
    ///
    /// # Errors
    /// Those of `review`, which are not remembered.
    pub async fn ask(
        &self,
        key: K,
        age: Age,
        review: impl Future<Output = Result<Option<V>, ReviewError>> + Send,
    ) -> Result<(Option<V>, Source), ReviewError> {
        let asked_at = Instant::now();
        let limit = match age {
            Age::Fresh => {
                let answer = review.await?;
                self.remember(key, answer.clone(), asked_at).await;
                return Ok((answer, Source::Asked));
            }
            Age::AtMost(limit) => limit,
            Age::Remembered => Duration::MAX,
        };
        if let Some(known) = self.yes.get(&key).await {
            if known.is_younger_than(limit.min(self.lifetimes.yes)) {
                return Ok((Some(known.value), Source::Remembered));
            }
            self.yes.invalidate(&key).await;
        }
        let refused = self.no.get(&key).await;
        if refused.is_some_and(|refused| refused.is_younger_than(limit.min(self.lifetimes.no))) {
            return Ok((None, Source::Remembered));
        }
        let own = Mutex::new(Some(review));
        let take = || own.lock().unwrap_or_else(PoisonError::into_inner).take();
        let asking = async {
            let review = take().expect("it is asked once");
            match review.await {
                Ok(Some(value)) => Ok(Answer { value, asked_at }),
                Ok(None) => Err(NotYes::No),
                Err(error) => Err(NotYes::Unknown(error)),
            }
        };
        let answer = match self.yes.try_get_with(key.clone(), asking).await {
            Ok(answer) => Some(answer.value),
            Err(not_yes) => match &*not_yes {
                NotYes::No => None,
                NotYes::Unknown(error) => {
                    // The share of another caller, whose review was joined, says nothing of this one's.
                    let joined = take().filter(|_| matches!(error, ReviewError::ShareUsedUp { .. }));
                    let Some(review) = joined else { return Err(error.clone()) };
                    let answer = review.await?;
                    self.remember(key, answer.clone(), asked_at).await;
                    return Ok((answer, Source::Asked));
                }
            },
        };
        if answer.is_none() {
            self.no.insert(key, Answer { value: (), asked_at }).await;
        }
        let joined = take().is_some();
        Ok((answer, if joined { Source::Remembered } else { Source::Asked }))
    }

    async fn remember(&self, key: K, answer: Option<V>, asked_at: Instant) {
        match answer {
            Some(value) => {
                self.no.invalidate(&key).await;
                self.yes.insert(key, Answer { value, asked_at }).await;
            }
            None => {
                self.yes.invalidate(&key).await;
                self.no.insert(key, Answer { value: (), asked_at }).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::kubernetes::ClusterError;

    const LONG: Lifetimes = Lifetimes { yes: Duration::from_secs(30), no: Duration::from_secs(10) };

    /// Counts how often it is asked, and answers with a number if `key` is even.
    struct Reviews(Memory<u64, u64>, AtomicUsize);

    impl Reviews {
        fn new(lifetimes: Lifetimes, capacity: u64) -> Self {
            Self(Memory::new(lifetimes, capacity), AtomicUsize::new(0))
        }

        async fn ask(&self, key: u64, age: Age) -> Option<u64> {
            let review = async {
                self.1.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok(key.is_multiple_of(2).then_some(key))
            };
            self.0.ask(key, age, review).await.unwrap().0
        }

        fn asked(&self) -> usize {
            self.1.swap(0, Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn equal_questions_at_once_are_one_and_a_fresh_one_is_always_asked() {
        let reviews = Reviews::new(LONG, 100);
        let all = futures_util::future::join_all((0..50).map(|_| reviews.ask(2, Age::Remembered))).await;
        assert!(all.iter().all(|answer| *answer == Some(2)));
        assert_eq!(reviews.asked(), 1);
        for key in [1, 2, 1, 2] {
            reviews.ask(key, Age::Remembered).await;
        }
        assert_eq!(reviews.asked(), 1);
        for _ in 0..3 {
            assert_eq!(reviews.ask(2, Age::Fresh).await, Some(2));
            assert_eq!(reviews.ask(1, Age::Fresh).await, None);
        }
        assert_eq!(reviews.asked(), 6);
        reviews.ask(2, Age::AtMost(Duration::from_secs(5))).await;
        assert_eq!(reviews.asked(), 0);
        reviews.ask(2, Age::AtMost(Duration::ZERO)).await;
        assert_eq!(reviews.asked(), 1);
    }

    #[tokio::test]
    async fn used_up_share_of_one_asker_does_not_refuse_another_that_joined() {
        let reviews = Reviews::new(LONG, 100);
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let refused = async {
            released.await.unwrap();
            Err(ReviewError::ShareUsedUp { retry_after: Duration::from_secs(1) })
        };
        let first = reviews.0.ask(2, Age::Remembered, refused);
        let second = reviews.ask(2, Age::Remembered);
        let both = futures_util::future::join(first, second);
        let (first, second) = futures_util::future::join(both, async { release.send(()).unwrap() }).await.0;
        assert!(matches!(first, Err(ReviewError::ShareUsedUp { .. })));
        assert_eq!(second, Some(2));
    }

    #[tokio::test]
    async fn answers_are_forgotten_in_time_and_failures_at_once() {
        let short = Lifetimes { yes: Duration::from_millis(60), no: Duration::from_millis(20) };
        let reviews = Reviews::new(short, 100);
        for key in [1, 2] {
            reviews.ask(key, Age::Remembered).await;
        }
        assert_eq!(reviews.asked(), 2);
        tokio::time::sleep(Duration::from_millis(70)).await;
        for key in [1, 2] {
            reviews.ask(key, Age::Remembered).await;
        }
        assert_eq!(reviews.asked(), 2);
        let away = async { Err(ClusterError::Busy { retry_after: None }.into()) };
        assert!(reviews.0.ask(8, Age::Remembered, away).await.is_err());
        assert_eq!(reviews.ask(8, Age::Remembered).await, Some(8));
    }

    #[tokio::test]
    async fn any_number_of_refused_ones_push_out_no_good_one() {
        let reviews = Reviews::new(LONG, 10);
        reviews.ask(2, Age::Remembered).await;
        for stranger in 0..500 {
            reviews.ask(2 * stranger + 1, Age::Remembered).await;
        }
        reviews.0.no.run_pending_tasks().await;
        assert!(reviews.0.no.entry_count() <= 10);
        reviews.asked();
        reviews.ask(2, Age::Remembered).await;
        assert_eq!(reviews.asked(), 0);
    }
}
