//! When a fill that nobody reads is given up.

use std::time::Duration;

use super::is_worth_finishing;

/// How long an unread fill goes on if it is not worth finishing.
const UNREAD: Duration = Duration::from_secs(5);

/// How much of an unread fill that is worth finishing must land in which time. A slower one would keep its turn for
/// hours, however little is left.
const LEAST: (u64, Duration) = (16 * 1024 * 30, Duration::from_secs(30));

/// The progress of a fill while nobody reads it. Times count from the start of the fill.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unread {
    /// Since when it has been both unread and not worth finishing.
    since: Option<Duration>,
    /// When it was last found fast enough, and how much had landed then.
    base: Option<(Duration, u64)>,
}

impl Unread {
    /// Whether a fill with this many readers is given up at `now`.
    pub fn is_over(&mut self, readers: usize, landed_bytes: u64, size_bytes: Option<u64>, now: Duration) -> bool {
        if readers > 0 || size_bytes == Some(landed_bytes) {
            *self = Self::default();
            return false;
        }
        if !is_worth_finishing(landed_bytes, size_bytes) {
            return now.saturating_sub(*self.since.get_or_insert(now)) >= UNREAD;
        }
        self.since = None;
        let (least_bytes, within) = LEAST;
        let (then, had_bytes) = *self.base.get_or_insert((now, landed_bytes));
        if now.saturating_sub(then) < within {
            return false;
        }
        self.base = Some((now, landed_bytes));
        landed_bytes.saturating_sub(had_bytes) < least_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Option<u64> = Some(3_000_000);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn what_drips_is_given_up_once_nobody_reads_it() {
        let mut unread = Unread::default();
        assert!((0..600).all(|now| !unread.is_over(1, now, SIZE, seconds(now))), "somebody reads it");
        assert!((600..630).all(|now| !unread.is_over(0, now, SIZE, seconds(now))));
        assert!(unread.is_over(0, 630, SIZE, seconds(630)));
        // A fill that makes progress is finished, at any time of day.
        let mut unread = Unread::default();
        assert!((0..180).all(|now| !unread.is_over(0, now * 16 * 1024, SIZE, seconds(now))));
        assert!(!unread.is_over(0, 3_000_000, SIZE, seconds(1000)), "all is there");
    }

    #[test]
    fn what_is_not_worth_finishing_is_given_up_soon() {
        for size in [None, Some(1 << 40)] {
            let mut unread = Unread::default();
            assert!(!unread.is_over(0, 1 << 20, size, seconds(7)));
            assert!(!unread.is_over(1, 1 << 20, size, seconds(11)), "somebody has come back");
            assert!(!unread.is_over(0, 1 << 20, size, seconds(13)));
            assert!(unread.is_over(0, 1 << 20, size, seconds(18)));
        }
    }
}
