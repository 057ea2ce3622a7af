//! The API server's clock, as the `Date` of its answers tells it: a second opinion on this machine's.

use std::sync::{Mutex, PoisonError};

use http::{HeaderMap, header::DATE};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822::DateTimeParser};
use tokio::time::{Duration, Instant};

/// For how long an answer tells the time.
const FRESH: Duration = Duration::from_secs(600);
/// How far two clocks may be apart that agree.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// What is known of the API server's clock.
#[derive(Debug, Default)]
pub struct ServerClock {
    seen: Mutex<Option<Seen>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    date: Timestamp,
    at: Instant,
}

/// Whether this machine's clock can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// The earlier of the two times.
    Agreed(Timestamp),
    /// They are too far apart.
    Apart { server: Timestamp, here: Timestamp },
    /// The API server has not told the time lately.
    Unknown,
}

impl ServerClock {
    /// Takes the time out of an answer's headers.
    pub(super) fn saw(&self, headers: &HeaderMap) {
        // Two dates are ambiguous.
        let mut dates = headers.get_all(DATE).iter();
        let (Some(date), None) = (dates.next(), dates.next()) else { return };
        let date = date.to_str().ok().and_then(|date| DateTimeParser::new().parse_timestamp(date).ok());
        if let Some(date) = date {
            let seen = Seen { date, at: Instant::now() };
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        }
    }

    /// Compares this machine's time with the API server's.
    #[must_use]
    pub fn compare(&self, here: Timestamp) -> Agreement {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((seen, passed)) = seen.map(|seen| (seen, seen.at.elapsed())) else {
            return Agreement::Unknown;
        };
        let Ok(server) = seen.date.checked_add(passed) else { return Agreement::Unknown };
        if passed > FRESH {
            return Agreement::Unknown;
        }
        if here.duration_since(server).abs() > SKEW {
            return Agreement::Apart { server, here };
        }
        Agreement::Agreed(server.min(here))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(dates: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for date in dates {
            headers.append(DATE, date.parse().unwrap());
        }
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn clocks_agree_only_as_long_as_the_date_is_fresh() {
        let clock = ServerClock::default();
        let here: Timestamp = "2026-11-29T12:00:00Z".parse().unwrap();
        assert_eq!(clock.compare(here), Agreement::Unknown);
        for bad in [&[][..], &["soon"], &["Sun, 29 Nov 2026 12:00:00 GMT", "Sun, 29 Nov 2026 12:00:00 GMT"]] {
            clock.saw(&headers(bad));
            assert_eq!(clock.compare(here), Agreement::Unknown, "{bad:?}");
        }
        clock.saw(&headers(&["Sun, 29 Nov 2026 12:00:00 GMT"]));
        assert_eq!(clock.compare(here), Agreement::Agreed(here));
        for minutes in [-6, 6, 3 * 365 * 24 * 60] {
            let other = here + SignedDuration::from_mins(minutes);
            assert_eq!(clock.compare(other), Agreement::Apart { server: here, here: other });
        }
        let ahead = here + SignedDuration::from_mins(4);
        assert_eq!(clock.compare(ahead), Agreement::Agreed(here), "the earlier one");
        tokio::time::advance(Duration::from_secs(240)).await;
        assert_eq!(clock.compare(ahead), Agreement::Agreed(ahead));
        tokio::time::advance(FRESH).await;
        assert_eq!(clock.compare(ahead), Agreement::Unknown);
    }
}
