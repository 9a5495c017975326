//! Moments whose age is known even if one of the two clocks stood still.

use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_runtime::Clock;
use tokio::time::Instant;

/// A moment by two clocks, since either of them may stop while the other continues.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    monotonic: Instant,
    wall: DateTime<Utc>,
}

impl Moment {
    pub(crate) fn now(clock: &Clock) -> Self {
        Self { monotonic: Instant::now(), wall: clock.now() }
    }

    /// The time of the wall clock.
    pub(crate) fn wall(self) -> DateTime<Utc> {
        self.wall
    }

    /// How long ago this was: the longer time of the two clocks.
    pub(crate) fn age_at(self, now: Self) -> Duration {
        let wall = (now.wall - self.wall).to_std().unwrap_or_default();
        now.monotonic.saturating_duration_since(self.monotonic).max(wall)
    }

    /// How long ago this was by the monotonic clock, which nobody sets.
    pub(crate) fn monotonic_age_at(self, now: Self) -> Duration {
        now.monotonic.saturating_duration_since(self.monotonic)
    }
}
