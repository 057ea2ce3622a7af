//! Fair shares of the reviews that the API server is asked: so many a second for each key, and some more at once.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Keys that are told apart. Those that used nothing lately are forgotten; beyond that, unknown keys share one share.
const KEYS: usize = 10_000;

/// Between two looks for keys that can be forgotten.
const SWEEP_PERIOD: Duration = Duration::from_secs(1);

/// The share of one key.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Reviews a second, from 1.
    pub per_second: u32,
    /// Reviews at once, after some time without any.
    pub burst: u32,
}

/// The shares of all keys (the generic cell rate algorithm).
#[derive(Debug)]
pub(super) struct Shares<K> {
    share: Share,
    used: Mutex<Used<K>>,
}

#[derive(Debug)]
struct Used<K> {
    /// When the share of a key is whole again.
    whole_at: HashMap<K, Instant>,
    /// The same of all keys that are not told apart.
    others_whole_at: Instant,
    swept: Instant,
}

impl<K: Hash + Eq> Shares<K> {
    pub fn new(share: Share) -> Self {
        let now = Instant::now();
        let used = Used { whole_at: HashMap::new(), others_whole_at: now, swept: now };
        Self { share, used: Mutex::new(used) }
    }

    /// Takes one review out of a key's share.
    ///
    /// # Errors
    /// After what time there is one again.
    pub fn take(&self, key: K) -> Result<(), Duration> {
        self.take_at(key, Instant::now())
    }

    fn take_at(&self, key: K, now: Instant) -> Result<(), Duration> {
        let each = Duration::from_secs(1) / self.share.per_second;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let Used { whole_at, others_whole_at, swept } = &mut *used;
        if whole_at.len() >= KEYS && now.duration_since(*swept) >= SWEEP_PERIOD {
            whole_at.retain(|_, whole_at| *whole_at > now);
            *swept = now;
        }
        let full = whole_at.len() >= KEYS;
        let whole_at = match whole_at.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if full => others_whole_at,
            Entry::Vacant(new) => new.insert(now),
        };
        let next = now.max(*whole_at) + each;
        match next.checked_duration_since(now + each * self.share.burst) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                *whole_at = next;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares() -> (Shares<u32>, Instant) {
        (Shares::new(Share { per_second: 10, burst: 5 }), Instant::now())
    }

    #[test]
    fn a_share_is_used_up_by_its_key_alone_and_comes_back_in_time() {
        let (shares, start) = shares();
        let taken = (0..100).filter(|_| shares.take_at(1, start).is_ok()).count();
        assert_eq!(taken, 5);
        assert_eq!(shares.take_at(1, start), Err(Duration::from_millis(100)));
        assert_eq!(shares.take_at(2, start), Ok(()));
        let later = start + Duration::from_millis(300);
        assert_eq!((0..100).filter(|_| shares.take_at(1, later).is_ok()).count(), 3);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| shares.take_at(1, much_later).is_ok()).count(), 5);
    }

    #[test]
    fn any_number_of_keys_takes_a_bounded_place_and_known_ones_keep_theirs() {
        let (shares, start) = shares();
        let keys = u32::try_from(KEYS).unwrap();
        let taken = (0..keys + 1000).filter(|key| shares.take_at(*key, start).is_ok()).count();
        assert_eq!(taken, KEYS + 5);
        assert_eq!(shares.take_at(7, start), Ok(()));
        let later = start + Duration::from_secs(10);
        assert_eq!(shares.take_at(keys + 7, later), Ok(()));
        assert_eq!(shares.used.lock().unwrap().whole_at.len(), 1);
    }
}
