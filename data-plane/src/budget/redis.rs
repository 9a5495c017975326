//! A bucket in Redis: what is left, and at what time by the clock of Redis.

use std::sync::LazyLock;
use std::time::Duration;

use entrepot_domain::budget::{Admission, Source};
use entrepot_domain::{Budget, Priority, Trouble};
use redis::Script;
use tracing::warn;

use crate::lease::RedisClient;

/// Refills the bucket for the time that has passed, adopts the upstream's report, and takes one request if enough is
/// left. The same as `Bucket` in `domain/src/budget.rs`.
///
/// KEYS: the bucket. ARGV: the budget's requests and its window in microseconds; what must be left for a request, or an
/// empty string if none is taken; what is left according to the upstream, or an empty string; whether that may raise
/// what is left. Returns what was left before, what is left now, and whether a request was taken.
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
    client: RedisClient,
    key: String,
    refusal: Trouble,
}

impl Shared {
    /// The bucket of the account called `name`.
    pub(super) fn new(client: RedisClient, name: &str) -> Self {
        Self { client, key: format!("b:{{{name}}}"), refusal: Trouble::default() }
    }

    /// Takes one request, and returns what is left. `None` if Redis does not answer.
    pub(super) async fn take(&self, budget: Budget, priority: Priority) -> Option<(f64, Admission)> {
        let needed = budget.needed(priority);
        let (before, left, taken) = self.pour(budget, Some(needed), None).await?;
        if taken {
            return Some((left, Admission::Admitted));
        }
        let seconds = (needed - before).max(0.0) * budget.window.as_secs_f64() / f64::from(budget.requests.get());
        Some((left, Admission::NotBefore(Duration::from_secs_f64(seconds.min(budget.window.as_secs_f64())))))
    }

    /// What is left. `None` if Redis does not answer.
    pub(super) async fn read_left(&self, budget: Budget) -> Option<f64> {
        self.pour(budget, None, None).await.map(|(_, left, _)| left)
    }

    /// Passes on what the upstream reports as left.
    pub(super) async fn tell(&self, budget: Budget, remaining: u32, source: Source) {
        // If Redis is away, the next report will do.
        let _ = self.pour(budget, None, Some((remaining, source))).await;
    }

    async fn pour(&self, budget: Budget, needed: Option<f64>, told: Option<(u32, Source)>) -> Option<(f64, f64, bool)> {
        let window = u64::try_from(budget.window.as_micros()).unwrap_or(u64::MAX);
        let number = |number: Option<f64>| number.map(|number| number.to_string()).unwrap_or_default();
        let mut pour = POUR.key(&self.key);
        pour.arg(budget.requests.get()).arg(window).arg(number(needed));
        pour.arg(told.map(|(left, _)| left.to_string()).unwrap_or_default());
        pour.arg(u8::from(told.is_some_and(|(_, source)| source == Source::Upstream)));
        // A refusal by Redis concerns budgets only: leases continue to work.
        let poured = self.client.run(async |redis| match pour.invoke_async::<(f64, f64, bool)>(redis).await {
            Err(error) if error.code().is_some() => {
                self.warn_once(error.code().unwrap_or_default());
                Ok(None)
            }
            answer => answer.map(Some),
        });
        poured.await.flatten()
    }

    /// Missing permissions are missing each time, so this is logged once.
    fn warn_once(&self, code: &str) {
        if self.refusal.begin() {
            warn!("Redis refuses to keep budgets, so each node takes its share of them: {code}");
        }
    }
}
