//! Periods that do not keep step: what all nodes do at once hits the store like a hammer.

use std::time::Duration;

use uuid::Uuid;

/// `period`, but for up to a fifth more or less.
pub(crate) fn about(period: Duration) -> Duration {
    // The first bits of a random UUID are as random as any.
    let random = (Uuid::new_v4().as_u128() >> 96) as u32;
    period.mul_f64(0.8 + 0.4 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_differ_and_stay_near_the_one_that_is_meant() {
        let periods: Vec<Duration> = (0..100).map(|_| about(Duration::from_secs(10))).collect();
        assert!(periods.iter().all(|period| (8..=12).contains(&period.as_secs())), "{periods:?}");
        assert!(periods.iter().any(|period| *period != periods[0]));
    }
}
