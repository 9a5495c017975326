//! A bucket in Redis: what is left, and when that was, by the clock of Redis.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use entrepot_domain::budget::{Admission, Source};
use entrepot_domain::{Budget, Priority};
use redis::Script;
use tracing::warn;

use crate::lease::Line;

/// Fills the bucket up for the time that has passed, takes in what the upstream has said, and takes one request out of it
/// if as much is there as is needed. The same as `Bucket` in `domain/src/budget.rs`.
///
/// KEYS: the bucket. ARGV: the budget's requests and its window in microseconds; what must be there for a request, or
/// nothing if none is taken; what is left as the upstream says, or nothing; whether that may raise what is left.
/// Answers with what was there before, what is there now, and whether a request was taken.
static POUR: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.call('TIME') \
         local now = time[1] * 1000000 + time[2] \
         local requests, window = tonumber(ARGV[1]), tonumber(ARGV[2]) \
         local left, at = requests, now \
         local held = redis.call('GET', KEYS[1]) \
         if held then \
           local l, a = string.match(held, '^(%S+) (%S+)$') \
           left, at = tonumber(l) or requests, tonumber(a) or now \
         end \
         left = math.min(requests, left + math.max(0, now - at) * requests / window) \
         local told = tonumber(ARGV[4]) \
         if told then \
           told = math.min(told, requests) \
           if ARGV[5] == '1' then left = told else left = math.min(left, told) end \
         end \
         local before, needed, taken = left, tonumber(ARGV[3]), 0 \
         if needed and left >= needed then \
           left = math.max(0, left - 1) \
           taken = 1 \
         end \
         if needed or told then \
           redis.call('SET', KEYS[1], string.format('%.17g %.17g', left, now), 'PX', math.ceil(window / 1000)) \
         end \
         return {string.format('%.17g', before), string.format('%.17g', left), taken}",
    )
});

/// One bucket that nodes share.
pub(super) struct Shared {
    line: Line,
    key: String,
    /// Whether it was told that Redis refuses.
    is_told: AtomicBool,
}

impl Shared {
    /// The bucket of the account that is called `name`.
    pub(super) fn new(line: Line, name: &str) -> Self {
        Self { line, key: format!("b:{{{name}}}"), is_told: AtomicBool::new(false) }
    }

    /// Takes one request; says what is left. `None` if Redis does not say.
    pub(super) async fn take(&self, budget: Budget, priority: Priority) -> Option<(f64, Admission)> {
        let needed = budget.needed(priority);
        let (before, left, taken) = self.pour(budget, Some(needed), None).await?;
        if taken {
            return Some((left, Admission::Admitted));
        }
        let seconds = (needed - before).max(0.0) * budget.window.as_secs_f64() / f64::from(budget.requests.get());
        Some((left, Admission::NotBefore(Duration::from_secs_f64(seconds.min(budget.window.as_secs_f64())))))
    }

    /// What is left. `None` if Redis does not say.
    pub(super) async fn look(&self, budget: Budget) -> Option<f64> {
        self.pour(budget, None, None).await.map(|(_, left, _)| left)
    }

    /// Passes on what the upstream says is left.
    pub(super) async fn tell(&self, budget: Budget, remaining: u32, source: Source) {
        // Redis away: whoever asks next hears it again.
        let _ = self.pour(budget, None, Some((remaining, source))).await;
    }

    async fn pour(&self, budget: Budget, needed: Option<f64>, told: Option<(u32, Source)>) -> Option<(f64, f64, bool)> {
        let window = u64::try_from(budget.window.as_micros()).unwrap_or(u64::MAX);
        let number = |number: Option<f64>| number.map(|number| number.to_string()).unwrap_or_default();
        let mut pour = POUR.key(&self.key);
        pour.arg(budget.requests.get()).arg(window).arg(number(needed));
        pour.arg(told.map(|(left, _)| left.to_string()).unwrap_or_default());
        pour.arg(u8::from(told.is_some_and(|(_, source)| source == Source::Upstream)));
        // What Redis refuses, it refuses to budgets alone: leases go on.
        let poured = self.line.run(async |redis| match pour.invoke_async::<(f64, f64, bool)>(redis).await {
            Err(error) if error.code().is_some() => {
                self.refused(error.code().unwrap_or_default());
                Ok(None)
            }
            answer => answer.map(Some),
        });
        poured.await.flatten()
    }

    /// Told once: a right that is missing is missing each time.
    fn refused(&self, code: &str) {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            warn!("Redis does not keep budgets, so each node takes its share of them: it answers {code}");
        }
    }
}
