//! How many requests an upstream may get, and who comes first when few are left.
//!
//! A bucket holds the remaining requests and refills steadily, by one whole budget per window. Pulls that a client
//! waits for may use all of it and are never held up: if they are too many, the upstream will say so. Everything else
//! leaves a reserve. Time is counted in microseconds from an origin that the owner of the bucket chooses.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::priority::Priority;

/// A number of requests per window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub requests: NonZeroU32,
    /// The length of the window. Never zero.
    pub window: Duration,
}

/// The shortest window of a budget.
pub const SHORTEST_WINDOW: Duration = Duration::from_secs(1);
pub const LONGEST_WINDOW: Duration = Duration::from_secs(366 * 24 * 60 * 60);

impl Budget {
    /// How many requests are regained per microsecond.
    fn rate(self) -> f64 {
        self.requests() / micros(self.window)
    }

    fn requests(self) -> f64 {
        f64::from(self.requests.get())
    }

    /// How much must be left for a request to be let through. A request that a client waits for is always let through.
    pub fn needed(self, priority: Priority) -> f64 {
        let reserve = match priority {
            Priority::Pull => return 0.0,
            Priority::Sync => 0.2,
            Priority::Warm => 0.5,
        };
        // A budget of one request may be used by anybody.
        (reserve * self.requests() + 1.0).min(self.requests())
    }

    /// The share of each node when `nodes` of them cannot coordinate.
    #[must_use]
    pub fn share(self, nodes: u32) -> Self {
        let requests = NonZeroU32::new(self.requests.get() / nodes.max(1)).unwrap_or(NonZeroU32::MIN);
        Self { requests, ..self }
    }
}

/// Whether a request may go out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Admission {
    Admitted,
    /// It has to wait for this long.
    NotBefore(Duration),
}

/// What is left of a budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// What was left at the time [`at`](Self::at).
    pub left: f64,
    /// That time, in microseconds.
    pub at: u64,
}

impl Bucket {
    pub fn full(budget: Budget, now: u64) -> Self {
        Self { left: budget.requests(), at: now }
    }

    #[must_use]
    pub fn refilled(self, budget: Budget, now: u64) -> Self {
        let come = now.saturating_sub(self.at) as f64 * budget.rate();
        Self { left: (self.left + come).min(budget.requests()), at: now.max(self.at) }
    }

    /// Takes one request out of it, if `priority` may have one.
    #[must_use]
    pub fn take(self, budget: Budget, priority: Priority, now: u64) -> (Self, Admission) {
        let bucket = self.refilled(budget, now);
        let missing = budget.needed(priority) - bucket.left;
        if missing > 0.0 {
            let wait = (missing / budget.rate()).ceil().clamp(0.0, micros(LONGEST_WINDOW));
            return (bucket, Admission::NotBefore(Duration::from_micros(wait as u64)));
        }
        (Self { left: (bucket.left - 1.0).max(0.0), ..bucket }, Admission::Admitted)
    }

    /// Adopts what the upstream reports as left. Others may use the same account, so this may lower what is left; where
    /// an operator has set the budget, it never raises it.
    #[must_use]
    pub fn with_reported(self, budget: Budget, remaining: u32, source: Source, now: u64) -> Self {
        let (bucket, remaining) = (self.refilled(budget, now), f64::from(remaining).min(budget.requests()));
        let left = match source {
            Source::Upstream => remaining,
            Source::Operator => bucket.left.min(remaining),
        };
        Self { left, ..bucket }
    }
}

/// Where a budget comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The upstream reports it in its answers.
    Upstream,
    /// An operator has set it.
    Operator,
}

/// A limit that an upstream reports in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportedLimit {
    pub budget: Budget,
    /// What is left of it.
    pub remaining: u32,
}

impl ReportedLimit {
    /// Reads `ratelimit-limit` and `ratelimit-remaining` as Docker Hub sends them: `100;w=21600` and `76;w=21600`.
    pub fn parse(limit: &str, remaining: &str) -> Option<Self> {
        let ((requests, window), (remaining, other)) = (quantity(limit)?, quantity(remaining)?);
        let window = Duration::from_secs(window.or(other)?);
        if !(SHORTEST_WINDOW..=LONGEST_WINDOW).contains(&window) {
            return None;
        }
        Some(Self { budget: Budget { requests: NonZeroU32::new(requests)?, window }, remaining })
    }
}

/// A number, with the seconds of its parameter `w`.
fn quantity(text: &str) -> Option<(u32, Option<u64>)> {
    let mut parts = text.split(',').next()?.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.trim().parse().ok());
    Some((number, window))
}

/// The pace of requests, counted in slots of two minutes over one hour.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    slot: u64,
    /// The slot of the very first request; `None` before it.
    first: Option<u64>,
    /// The counts of the current slot and of those before it.
    counts: [u32; Self::SLOTS],
}

impl Pace {
    const SLOTS: usize = 30;
    const SLOT_MICROS: u64 = 120_000_000;
    const SLOTS_PER_HOUR: f64 = Self::SLOTS as f64;

    /// Counts one request.
    pub fn count(&mut self, now: u64) {
        self.turn_to(now);
        self.first.get_or_insert(self.slot);
        self.counts[0] = self.counts[0].saturating_add(1);
    }

    /// The number of requests per hour, judged by the last hour.
    pub fn per_hour(&mut self, now: u64) -> f64 {
        self.turn_to(now);
        let Some(first) = self.first else { return 0.0 };
        let slots = (self.slot - first + 1).min(Self::SLOTS as u64);
        let count: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        count as f64 * Self::SLOTS_PER_HOUR / slots as f64
    }

    fn turn_to(&mut self, now: u64) {
        let slot = now / Self::SLOT_MICROS;
        let passed = usize::try_from(slot.saturating_sub(self.slot)).unwrap_or(usize::MAX).min(Self::SLOTS);
        self.counts.rotate_right(passed % Self::SLOTS);
        self.counts[..passed].fill(0);
        self.slot = self.slot.max(slot);
    }
}

/// How long the `left` requests last at this pace; `None` if the budget refills faster than it is used.
pub fn lasts(budget: Budget, left: f64, per_hour: f64) -> Option<Duration> {
    let comes_back = budget.requests() / (budget.window.as_secs_f64() / 3600.0);
    let used = per_hour - comes_back;
    if used <= 0.0 || !used.is_finite() {
        return None;
    }
    let seconds = (left.max(0.0) / used * 3600.0).min(LONGEST_WINDOW.as_secs_f64());
    Some(Duration::from_secs_f64(seconds))
}

fn micros(length: Duration) -> f64 {
    length.as_micros() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000;

    fn budget(requests: u32, seconds: u64) -> Budget {
        Budget { requests: NonZeroU32::new(requests).unwrap(), window: Duration::from_secs(seconds) }
    }

    #[test]
    fn what_nobody_waits_for_leaves_a_reserve_and_clients_may_take_all() {
        let hundred = budget(100, 100);
        let mut bucket = Bucket::full(hundred, 0);
        let mut taken = [0; 3];
        for (count, priority) in taken.iter_mut().zip([Priority::Warm, Priority::Sync, Priority::Pull]) {
            while *count < 200 {
                let (next, admission) = bucket.take(hundred, priority, 0);
                bucket = next;
                if admission != Admission::Admitted {
                    break;
                }
                *count += 1;
            }
        }
        assert_eq!(taken, [50, 30, 200], "a client never waits");
        assert_eq!(bucket.left, 0.0);
        let (_, admission) = bucket.take(hundred, Priority::Sync, 0);
        assert_eq!(admission, Admission::NotBefore(Duration::from_secs(21)));
        assert_eq!(bucket.take(hundred, Priority::Sync, 21 * SECOND).1, Admission::Admitted);
        let one = budget(1, 10);
        for priority in [Priority::Pull, Priority::Sync, Priority::Warm] {
            assert_eq!(Bucket::full(one, 0).take(one, priority, 0).1, Admission::Admitted, "{priority:?}");
        }
    }

    #[test]
    fn the_upstreams_word_counts_and_does_not_raise_what_an_operator_has_set() {
        let hundred = budget(100, 100);
        let half = Bucket { left: 50.0, at: 0 };
        let told = |remaining, source| half.with_reported(hundred, remaining, source, 0).left;
        assert_eq!((told(10, Source::Upstream), told(10, Source::Operator)), (10.0, 10.0));
        assert_eq!((told(90, Source::Upstream), told(90, Source::Operator)), (90.0, 50.0));
        assert_eq!(told(5000, Source::Upstream), 100.0);
        assert_eq!(
            (hundred.share(3).requests.get(), hundred.share(0), hundred.share(1000)),
            (33, hundred, budget(1, 100))
        );
    }

    #[test]
    fn the_headers_of_docker_hub_are_read() {
        let told = ReportedLimit::parse("100;w=21600", "76;w=21600").unwrap();
        assert_eq!((told.budget, told.remaining), (budget(100, 21_600), 76));
        assert_eq!(
            ReportedLimit::parse("200; w=3600, 9;w=1", "0"),
            Some(ReportedLimit { budget: budget(200, 3600), remaining: 0 })
        );
        for (limit, remaining) in [
            ("", ""),
            ("100", "5"),
            ("0;w=60", "0"),
            ("-1;w=60", "1"),
            ("100;w=0", "1"),
            ("1e9;w=60", "1"),
            ("1;w=99999999999", "1"),
        ] {
            assert_eq!(ReportedLimit::parse(limit, remaining), None, "{limit} {remaining}");
        }
    }

    #[test]
    fn a_pace_is_of_the_last_hour_and_a_forecast_goes_by_it() {
        let mut pace = Pace::default();
        assert_eq!(pace.per_hour(5), 0.0);
        for minute in 0..10 {
            for _ in 0..4 {
                pace.count(minute * 60 * SECOND);
            }
        }
        assert_eq!(pace.per_hour(9 * 60 * SECOND), 240.0);
        assert_eq!(pace.per_hour(59 * 60 * SECOND), 40.0);
        assert_eq!(pace.per_hour(64 * 60 * SECOND), 16.0);
        assert_eq!(pace.per_hour(1000 * 60 * SECOND), 0.0);

        let hub = budget(100, 6 * 3600);
        assert_eq!(lasts(hub, 50.0, 10.0), None, "as much comes back");
        let length = lasts(hub, 50.0, 66.0 + 2.0 / 3.0).unwrap();
        assert!(length.abs_diff(Duration::from_secs(3600)) < Duration::from_secs(1), "{length:?}");
        assert_eq!(lasts(hub, 0.0, 100.0), Some(Duration::ZERO));
    }

    proptest! {
        /// However requests come: in any window, at most twice the budget goes to those who can wait, and a refused
        /// request is let through at the time that it was told.
        #[test]
        fn a_bucket_keeps_to_its_budget(
            requests in 1..50_u32, seconds in 1..1000_u64,
            steps in proptest::collection::vec((0..30_u64, any::<bool>()), 0..300),
        ) {
            let budget = budget(requests, seconds);
            let (mut bucket, mut now, mut admitted) = (Bucket::full(budget, 0), 0, Vec::<u64>::new());
            for (wait, warms) in steps {
                now += wait * SECOND / 2;
                let priority = if warms { Priority::Warm } else { Priority::Sync };
                let (next, admission) = bucket.take(budget, priority, now);
                bucket = next;
                prop_assert!((0.0..=f64::from(requests)).contains(&bucket.left));
                match admission {
                    Admission::Admitted => admitted.push(now),
                    Admission::NotBefore(wait) => {
                        let then = now + u64::try_from(wait.as_micros()).unwrap() + 1;
                        prop_assert_eq!(bucket.take(budget, priority, then).1, Admission::Admitted);
                    }
                }
                let since = now.saturating_sub(seconds * SECOND);
                prop_assert!(admitted.iter().filter(|at| **at >= since).count() <= 2 * requests as usize);
            }
        }
    }
}
