//! How far a tag's digest may be trusted now.

use chrono::{DateTime, Utc};
use std::time::Duration;

/// How long a tag is trusted after the upstream confirmed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(Duration);

impl Window {
    /// A window of `length`; zero asks the upstream every time.
    pub const fn new(length: Duration) -> Self {
        Self(length)
    }

    /// Its length.
    pub const fn length(self) -> Duration {
        self.0
    }
}

impl Default for Window {
    /// 24 h, as ECR has it.
    fn default() -> Self {
        Self(Duration::from_secs(24 * 60 * 60))
    }
}

/// Whether a tag's digest may be served as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It may.
    Fresh,
    /// The upstream must be asked first; if it cannot be, the digest is still better than nothing.
    Stale,
}

impl Freshness {
    /// The freshness at `now` of a tag that the upstream last confirmed at `validated`; never confirmed is stale.
    ///
    /// A confirmation from the future, left by a clock that was wrong, counts as never made: it must not hold a tag
    /// back for longer than the window.
    pub fn of(validated: Option<DateTime<Utc>>, window: Window, now: DateTime<Utc>) -> Self {
        let age = validated.and_then(|at| (now - at).to_std().ok());
        if age.is_some_and(|age| age < window.0) { Self::Fresh } else { Self::Stale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    #[test]
    fn a_tag_is_trusted_for_the_window_and_not_a_moment_longer() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(1000);
        let of = |age: TimeDelta| Freshness::of(Some(now - age), Window::default(), now);
        assert_eq!(of(TimeDelta::zero()), Freshness::Fresh);
        assert_eq!(of(TimeDelta::hours(24) - TimeDelta::milliseconds(1)), Freshness::Fresh);
        assert_eq!(of(TimeDelta::hours(24)), Freshness::Stale);
        assert_eq!(of(TimeDelta::seconds(-1)), Freshness::Stale);
        assert_eq!(Freshness::of(None, Window::default(), now), Freshness::Stale);
        assert_eq!(Freshness::of(Some(now), Window::new(Duration::ZERO), now), Freshness::Stale);
    }
}
