//! A circuit breaker: decides whether something that has failed may be asked again. It is closed while requests get
//! answers, open while no request is let through, and half open while one request probes whether answers come again.
//!
//! The same breaker serves for an upstream that is away, where several failures in a row open it for a short time, and
//! for one that throttles, where a single answer opens it for the time that the answer names. It has no clock: the
//! caller passes the time.

use std::time::{Duration, Instant};

/// How a breaker behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// How many requests in a row must fail before the breaker opens, so that one bad object does not block all others.
    pub failures: u32,
    /// How long the breaker then stays open.
    pub rest: Duration,
    /// How long it stays open after a throttling answer that names no time. Each further such answer doubles this.
    pub throttled: Duration,
    /// The longest time for which throttling keeps it open.
    pub most: Duration,
}

/// Why a breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trip {
    /// Nobody answered.
    Away,
    /// We were asked to send fewer requests.
    Throttled,
}

/// How a request ended, as far as a breaker cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// There was an answer, whatever it said.
    Answered,
    /// Nobody answered.
    Away,
    /// The answer asks for fewer requests.
    Throttled {
        /// How long to send none, if the answer says so.
        retry_after: Option<Duration>,
    },
    /// No request was sent, or nobody waited for its end. This says nothing about the other side.
    Unknown,
}

/// The role in which a request is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// One of many.
    Ordinary,
    /// The one that finds out whether answers come again.
    Probe,
}

/// Why a request is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Why the breaker is open.
    pub why: Trip,
    /// When the next request may go out. Already past while a probe is under way.
    pub until: Instant,
}

/// The state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Requests go through.
    Closed,
    /// No request goes through until then.
    Open { why: Trip, until: Instant },
    /// One request may probe, or is probing.
    HalfOpen {
        /// Why the breaker opened.
        why: Trip,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    settings: BreakerSettings,
    /// How many requests in a row got no answer.
    failures: u32,
    /// How many throttling answers in a row named no time.
    throttles: u32,
    open: Option<Rejected>,
    is_probed: bool,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(settings: BreakerSettings) -> Self {
        Self { settings, failures: 0, throttles: 0, open: None, is_probed: false }
    }

    /// Asks to send a request now. Each permitted request must be ended with [`Self::finish`].
    ///
    /// # Errors
    /// Why the request may not go out, and until when.
    pub fn enter(&mut self, now: Instant) -> Result<Permit, Rejected> {
        match self.open {
            None => Ok(Permit::Ordinary),
            Some(rejected) if self.is_probed || now < rejected.until => Err(rejected),
            Some(_) => {
                self.is_probed = true;
                Ok(Permit::Probe)
            }
        }
    }

    /// Records how the request with this `permit` ended.
    pub fn finish(&mut self, permit: Permit, ending: Ending, now: Instant) {
        if permit == Permit::Probe {
            self.is_probed = false;
        }
        match ending {
            Ending::Unknown => {}
            Ending::Answered => {
                self.failures = 0;
                // A request that was under way when the throttling answer came does not undo it.
                let stays =
                    |open: &Rejected| open.why == Trip::Throttled && (permit == Permit::Ordinary || now < open.until);
                if !self.open.as_ref().is_some_and(stays) {
                    (self.open, self.throttles) = (None, 0);
                }
            }
            Ending::Away => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= self.settings.failures || permit == Permit::Probe {
                    self.trip(Trip::Away, now + self.settings.rest);
                }
            }
            Ending::Throttled { retry_after: Some(wait) } => {
                self.failures = 0;
                self.trip(Trip::Throttled, now + wait.min(self.settings.most));
            }
            Ending::Throttled { retry_after: None } => {
                self.failures = 0;
                // Throttled requests that were under way together count once.
                if self.open.is_none_or(|open| open.why == Trip::Away || open.until <= now) {
                    let wait = self.settings.throttled.saturating_mul(1 << self.throttles.min(16));
                    self.throttles = self.throttles.saturating_add(1);
                    self.trip(Trip::Throttled, now + wait.min(self.settings.most));
                }
            }
        }
    }

    /// Opens the breaker until `until`, or for longer if it is already open for longer.
    fn trip(&mut self, why: Trip, until: Instant) {
        let open = Rejected { why, until };
        self.open = Some(match self.open {
            Some(before) if before.until > until => before,
            Some(_) | None => open,
        });
    }

    /// The state at `now`.
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.open {
            None => BreakerState::Closed,
            Some(Rejected { why, until }) if now < until => BreakerState::Open { why, until },
            Some(Rejected { why, .. }) => BreakerState::HalfOpen { why },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: BreakerSettings = BreakerSettings {
        failures: 3,
        rest: Duration::from_secs(5),
        throttled: Duration::from_secs(5),
        most: Duration::from_secs(60),
    };

    fn ask(breaker: &mut Breaker, ending: Ending, now: Instant) -> Result<Permit, Rejected> {
        let permit = breaker.enter(now)?;
        breaker.finish(permit, ending, now);
        Ok(permit)
    }

    #[test]
    fn what_is_away_is_left_alone_and_then_asked_by_one() {
        let (mut breaker, now) = (Breaker::new(SETTINGS), Instant::now());
        for _ in 0..3 {
            assert_eq!(ask(&mut breaker, Ending::Away, now), Ok(Permit::Ordinary));
        }
        let until = now + SETTINGS.rest;
        assert_eq!(breaker.enter(now), Err(Rejected { why: Trip::Away, until }));
        assert_eq!(breaker.enter(until), Ok(Permit::Probe));
        assert!(breaker.enter(until).is_err(), "one is enough");
        // An abandoned probe says nothing, so the next request probes.
        breaker.finish(Permit::Probe, Ending::Unknown, until);
        assert_eq!(breaker.state(until), BreakerState::HalfOpen { why: Trip::Away });
        assert_eq!(ask(&mut breaker, Ending::Away, until), Ok(Permit::Probe));
        assert_eq!(breaker.state(until), BreakerState::Open { why: Trip::Away, until: until + SETTINGS.rest });
        assert_eq!(ask(&mut breaker, Ending::Answered, until + SETTINGS.rest), Ok(Permit::Probe));
        assert_eq!(breaker.state(until), BreakerState::Closed);
    }

    #[test]
    fn failures_between_answers_open_nothing() {
        let (mut breaker, now) = (Breaker::new(SETTINGS), Instant::now());
        for ending in [Ending::Away, Ending::Away, Ending::Answered].repeat(10) {
            assert_eq!(ask(&mut breaker, ending, now), Ok(Permit::Ordinary));
        }
    }

    #[test]
    fn a_time_that_was_said_is_kept_also_when_another_request_is_answered() {
        let (mut breaker, now) = (Breaker::new(SETTINGS), Instant::now());
        let under_way = breaker.enter(now).unwrap();
        let said = |seconds| Ending::Throttled { retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(ask(&mut breaker, said(30), now), Ok(Permit::Ordinary));
        breaker.finish(under_way, Ending::Answered, now);
        breaker.finish(under_way, said(1), now);
        let until = now + Duration::from_secs(30);
        assert_eq!(breaker.state(now), BreakerState::Open { why: Trip::Throttled, until });
        assert_eq!(ask(&mut breaker, said(7200), until), Ok(Permit::Probe));
        let longest = BreakerState::Open { why: Trip::Throttled, until: until + SETTINGS.most };
        assert_eq!(breaker.state(until), longest, "nothing is believed without a limit");
    }

    #[test]
    fn without_a_time_the_pause_doubles_until_there_is_an_answer() {
        let (mut breaker, mut now) = (Breaker::new(SETTINGS), Instant::now());
        for seconds in [5, 10, 20, 40, 60, 60] {
            let together = breaker.enter(now).unwrap();
            breaker.finish(together, Ending::Throttled { retry_after: None }, now);
            breaker.finish(Permit::Ordinary, Ending::Throttled { retry_after: None }, now);
            let until = now + Duration::from_secs(seconds);
            assert_eq!(breaker.state(now), BreakerState::Open { why: Trip::Throttled, until });
            now = until;
        }
        assert_eq!(ask(&mut breaker, Ending::Answered, now), Ok(Permit::Probe));
        assert_eq!(ask(&mut breaker, Ending::Throttled { retry_after: None }, now), Ok(Permit::Ordinary));
        let until = now + SETTINGS.throttled;
        assert_eq!(breaker.state(now), BreakerState::Open { why: Trip::Throttled, until });
    }

    fn endings() -> impl Strategy<Value = Ending> {
        prop_oneof![
            Just(Ending::Answered),
            Just(Ending::Away),
            Just(Ending::Unknown),
            (0..100_u64).prop_map(|s| Ending::Throttled { retry_after: Some(Duration::from_secs(s)) }),
            Just(Ending::Throttled { retry_after: None }),
        ]
    }

    proptest! {
        /// Requests begin and end in any order while time goes by.
        #[test]
        fn nobody_asks_before_the_time_and_never_two_find_out(
            steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>(), endings(), 0..20_u64), 0..200),
        ) {
            let (mut breaker, mut now) = (Breaker::new(SETTINGS), Instant::now());
            let (mut under_way, mut not_before) = (Vec::<Permit>::new(), now);
            for (begins, which, ending, seconds) in steps {
                now += Duration::from_secs(seconds);
                if begins || under_way.is_empty() {
                    match breaker.enter(now) {
                        Ok(permit) => {
                            prop_assert!(now >= not_before, "before its time");
                            under_way.push(permit);
                        }
                        Err(rejected) => {
                            let is_probed = under_way.contains(&Permit::Probe);
                            prop_assert!(is_probed || now < rejected.until, "there is a way back");
                        }
                    }
                } else {
                    let permit = under_way.swap_remove(which.index(under_way.len()));
                    breaker.finish(permit, ending, now);
                    if let Ending::Throttled { retry_after: Some(wait) } = ending {
                        not_before = not_before.max(now + wait.min(SETTINGS.most));
                    }
                }
                prop_assert!(under_way.iter().filter(|permit| **permit == Permit::Probe).count() <= 1);
            }
        }
    }
}
