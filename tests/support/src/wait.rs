//! Waiting for what will be so soon.

use std::time::{Duration, Instant};

/// Waits until `condition` holds, asking again and again.
///
/// # Panics
/// If it does not hold within `limit`; the message says what was waited for.
pub async fn wait_until(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let since = Instant::now();
    let mut pause = Duration::from_millis(2);
    while !condition().await {
        assert!(since.elapsed() < limit, "waited {limit:?} in vain until {what}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
