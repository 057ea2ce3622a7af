//! Named points at which a test build dies, or stands still so that it can be killed there.
//!
//! They exist only with the feature `fail-points`, which only the crash harness (`tests/crash`) sets; else they
//! compile to nothing. `ROLLBACKD_FAIL_POINT=NAME[,PASS[,ACTION[,MILLISECONDS]]][;…]` names some:
//!
//! - PASS: the how manieth time it is come to, 1 unless given.
//! - ACTION: `die` (the default) ends the process at once, without destructors; `freeze` stands still until
//!   somebody kills it; `hold` goes on after MILLISECONDS.
//! - MILLISECONDS: for [`fail_during`], how long after the work was begun; a `hold` begins at once.
//!
//! Why not the crate `fail`: its `panic` is caught by tokio's tasks, and it can neither abort nor say that a
//! point was come to.

/// Comes to a point.
macro_rules! fail_point {
    ($name:literal) => {
        #[cfg(feature = "fail-points")]
        $crate::failpoint::reach($name);
    };
}

/// Awaits a future, and comes to a point while it is pending.
macro_rules! fail_during {
    ($name:literal, $future:expr) => {{
        #[cfg(feature = "fail-points")]
        let result = $crate::failpoint::during($name, $future).await;
        #[cfg(not(feature = "fail-points"))]
        let result = $future.await;
        result
    }};
}

pub(crate) use {fail_during, fail_point};

#[cfg(feature = "fail-points")]
pub(crate) use armed::{during, reach};

#[cfg(feature = "fail-points")]
mod armed {
    use std::{
        sync::{
            LazyLock,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    struct Armed {
        name: String,
        action: String,
        millis: u64,
        left: AtomicUsize,
    }

    static ARMED: LazyLock<Vec<Armed>> = LazyLock::new(|| {
        let text = std::env::var("ROLLBACKD_FAIL_POINT").unwrap_or_default();
        text.split(';').filter(|point| !point.is_empty()).map(armed).collect()
    });

    fn armed(text: &str) -> Armed {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default().to_owned();
        let pass = parts.next().map_or(1, |pass| pass.parse().expect("PASS is a number"));
        let action = parts.next().unwrap_or("die").to_owned();
        let millis = parts.next().map_or(0, |millis| millis.parse().expect("MILLISECONDS is a number"));
        Armed { name, action, millis, left: AtomicUsize::new(pass) }
    }

    pub(crate) fn reach(name: &str) {
        let Some(armed) = ARMED.iter().find(|armed| armed.name == name) else { return };
        if armed.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) != Ok(1)
        {
            return;
        }
        eprintln!("fail point {name}");
        match armed.action.as_str() {
            "freeze" => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            "hold" => std::thread::sleep(Duration::from_millis(armed.millis)),
            _ => std::process::abort(),
        }
    }

    pub(crate) async fn during<T>(name: &str, work: impl Future<Output = T>) -> T {
        let Some(armed) = ARMED.iter().find(|armed| armed.name == name) else { return work.await };
        let after = if armed.action == "hold" { 0 } else { armed.millis };
        let mut work = std::pin::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_millis(after)) => {}
        }
        reach(name);
        work.await
    }
}
