//! Waits between attempts and between passes. Each contains chance, so that processes that start together do not work
//! in step.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// A policy with endless attempts: the first wait is `shortest`, and each one doubles the one before, up to `longest`.
pub fn backoff(shortest: Duration, longest: Duration) -> ExponentialBuilder {
    ExponentialBuilder::default().with_jitter().with_min_delay(shortest).with_max_delay(longest).without_max_times()
}

/// The waits of a loop that keeps trying.
#[derive(Debug)]
pub struct Backoff {
    policy: ExponentialBuilder,
    waits: ExponentialBackoff,
    longest: Duration,
}

impl Backoff {
    /// Waits from `shortest` to `longest`, as in [`backoff`].
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        let policy = backoff(shortest, longest);
        Self { policy, waits: policy.build(), longest }
    }

    /// The wait before the next attempt.
    pub fn next_wait(&mut self) -> Duration {
        self.waits.next().unwrap_or(self.longest)
    }

    /// Waits before the next attempt.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_wait()).await;
    }

    /// Starts again with the shortest wait, after a success.
    pub fn reset(&mut self) {
        self.waits = self.policy.build();
    }
}

/// `period`, plus or minus up to a fifth.
pub fn jittered(period: Duration) -> Duration {
    period.mul_f64(0.8 + 0.4 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_differ_and_stay_near_the_one_that_is_meant() {
        let periods: Vec<Duration> = (0..100).map(|_| jittered(Duration::from_secs(10))).collect();
        assert!(periods.iter().all(|period| (8..=12).contains(&period.as_secs())), "{periods:?}");
        assert!(periods.iter().any(|period| *period != periods[0]));
    }

    #[test]
    fn waits_grow_up_to_the_longest_and_begin_again_after_a_success() {
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(shortest, longest);
        let waits: Vec<Duration> = (0..1000).map(|_| backoff.next_wait()).collect();
        assert!((shortest..2 * shortest).contains(&waits[0]), "{:?}", waits[0]);
        assert!(waits[10..].iter().all(|wait| (longest..=2 * longest).contains(wait)), "{waits:?}");
        backoff.reset();
        assert!(backoff.next_wait() < 2 * shortest);
    }
}
