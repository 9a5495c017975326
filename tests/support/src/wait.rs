//! Waits for a condition, with a limit.

use std::time::{Duration, Instant};

/// Waits until `condition` holds, checking it again and again.
///
/// # Panics
/// If it does not hold within `limit`; the message says `what` was waited for.
pub async fn wait_until(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let since = Instant::now();
    let mut pause = Duration::from_millis(2);
    while !condition().await {
        assert!(since.elapsed() < limit, "waited {limit:?} in vain until {what}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// As [`wait_until`], for tests that are not asynchronous.
///
/// # Panics
/// As [`wait_until`].
pub fn wait_until_blocking(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    let mut pause = Duration::from_millis(2);
    while !condition() {
        assert!(since.elapsed() < limit, "waited {limit:?} in vain until {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
