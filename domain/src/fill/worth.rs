//! What a fetch is worth: which unread fills are finished, how long a fill may take, and when a second request is opened.

use std::time::Duration;

/// How many bytes an unread fill may have left and still be worth finishing.
const WORTH_BYTES: u64 = 64 * 1024 * 1024;

/// Whether a fill without readers is worth finishing: most of it has been fetched, or little is left. If the size is
/// unknown, it is not.
#[must_use]
pub fn is_worth_finishing(landed_bytes: u64, size_bytes: Option<u64>) -> bool {
    size_bytes.is_some_and(|size| landed_bytes >= size / 4 || size.saturating_sub(landed_bytes) <= WORTH_BYTES)
}

/// How long a fill may take. A source that stays below 256 KiB/s only keeps its readers waiting.
#[must_use]
pub fn longest(size_bytes: Option<u64>) -> Duration {
    const LEAST: Duration = Duration::from_secs(15 * 60);
    const MOST: Duration = Duration::from_secs(6 * 60 * 60);
    let by_size = size_bytes.map_or(MOST, |size| Duration::from_secs(size / (256 * 1024)));
    by_size.clamp(LEAST, MOST)
}

/// How far ahead of the landed bytes a reader must be for a second request to be opened: at once, and after it has
/// waited without success. Clients that fetch a layer in parallel chunks stay below the first.
const AHEAD_BYTES: (u64, u64) = (96 * 1024 * 1024, 8 * 1024 * 1024);

/// How long a reader waits before the second of these distances applies.
pub const AHEAD_WAIT: Duration = Duration::from_secs(5);

/// Whether a second request is worth opening for a reader that waits for a byte this far ahead of what has landed.
#[must_use]
pub fn is_worth_fetching_ahead(distance_bytes: u64, waited: Duration) -> bool {
    let (at_once, in_vain) = AHEAD_BYTES;
    distance_bytes > at_once || (distance_bytes > in_vain && waited >= AHEAD_WAIT)
}
