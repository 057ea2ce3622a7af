//! Waiting for a condition, with a message that says what was awaited and what was last seen.

use std::{fmt::Debug, time::Duration};

use tokio::time::Instant;

/// Nothing takes longer, however busy the machine is, unless a test says so.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Asks until the answer is `Ok`.
pub async fn until<T, E: Debug>(what: &str, ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    until_within(PATIENCE, what, ask).await
}

/// Asks until the answer is this one.
pub async fn until_is<T: Debug + PartialEq>(what: &str, expected: T, mut ask: impl AsyncFnMut() -> T) {
    until(what, async || {
        let seen = ask().await;
        if seen == expected { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// As [`until`], for conditions that take longer.
pub async fn until_within<T, E: Debug>(
    patience: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(10);
    loop {
        match ask().await {
            Ok(value) => return value,
            Err(seen) if Instant::now() > deadline => panic!("waited for {what}; last seen: {seen:?}"),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
