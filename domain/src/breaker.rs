//! Whether something that has failed may be asked again: closed while it answers, open while it is left alone, half open
//! while one request finds out whether it is back.
//!
//! One machine serves for an upstream that is away, where several failures in a row open it for a moment, and for one
//! that wants fewer requests, where a single word does, for as long as it says. It knows no clock: whoever drives it says
//! what time it is.

use std::time::{Duration, Instant};

/// How a breaker behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// So many requests in a row must have found nobody: one object that makes a request fail takes nothing away from
    /// all others.
    pub failures: u32,
    /// For how long nobody asks after that.
    pub rest: Duration,
    /// For how long nobody asks who was told to ask less, and not for how long. It doubles each time.
    pub throttled: Duration,
    /// The longest time for which nobody asks who was told to ask less.
    pub most: Duration,
}

/// Why a breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trip {
    /// Nobody answered.
    Away,
    /// Fewer requests are wanted.
    Throttled,
}

/// How a request has ended, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// There was an answer, whatever it said.
    Answered,
    /// Nobody answered.
    Away,
    /// Fewer requests are wanted, and none for a while if that was said.
    Throttled {
        /// For how long none is wanted.
        retry_after: Option<Duration>,
    },
    /// It came to no request, or nobody waited for its end: that says nothing.
    Unknown,
}

/// As what a request was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// As one of many.
    Ordinary,
    /// As the one that finds out.
    Probe,
}

/// Why a request is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Why there is nobody to ask.
    pub why: Trip,
    /// Until when nobody asks; passed already while another request finds out.
    pub until: Instant,
}

/// How a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Requests go through.
    Closed,
    /// None does until then.
    Open {
        /// Why not.
        why: Trip,
        /// Until when.
        until: Instant,
    },
    /// One may find out, or does.
    HalfOpen {
        /// Why not all.
        why: Trip,
    },
}

/// A breaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    terms: Terms,
    /// Requests in a row that found nobody.
    failures: u32,
    /// How often in a row fewer requests were wanted without a time.
    throttles: u32,
    open: Option<Closed>,
    is_probed: bool,
}

impl Breaker {
    /// One that lets all through.
    pub fn new(terms: Terms) -> Self {
        Self { terms, failures: 0, throttles: 0, open: None, is_probed: false }
    }

    /// Whether a request may go out now, and as what. Each that may must [end](Self::ended).
    ///
    /// # Errors
    /// Why not, and until when.
    pub fn enter(&mut self, now: Instant) -> Result<Passage, Closed> {
        match self.open {
            None => Ok(Passage::Ordinary),
            Some(closed) if self.is_probed || now < closed.until => Err(closed),
            Some(_) => {
                self.is_probed = true;
                Ok(Passage::Probe)
            }
        }
    }

    /// Takes in how a request has ended that went out as `passage`.
    pub fn ended(&mut self, passage: Passage, ending: Ending, now: Instant) {
        if passage == Passage::Probe {
            self.is_probed = false;
        }
        match ending {
            Ending::Unknown => {}
            Ending::Answered => {
                self.failures = 0;
                // One that was under way when fewer were wanted does not take that back.
                let stays =
                    |open: &Closed| open.why == Trip::Throttled && (passage == Passage::Ordinary || now < open.until);
                if !self.open.as_ref().is_some_and(stays) {
                    (self.open, self.throttles) = (None, 0);
                }
            }
            Ending::Away => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= self.terms.failures || passage == Passage::Probe {
                    self.trip(Trip::Away, now + self.terms.rest);
                }
            }
            Ending::Throttled { retry_after: Some(wait) } => {
                self.failures = 0;
                self.trip(Trip::Throttled, now + wait.min(self.terms.most));
            }
            Ending::Throttled { retry_after: None } => {
                self.failures = 0;
                // Those that were under way together count once.
                if self.open.is_none_or(|open| open.why == Trip::Away || open.until <= now) {
                    let wait = self.terms.throttled.saturating_mul(1 << self.throttles.min(16));
                    self.throttles = self.throttles.saturating_add(1);
                    self.trip(Trip::Throttled, now + wait.min(self.terms.most));
                }
            }
        }
    }

    /// Nobody asks until `until`, and no sooner than was said before.
    fn trip(&mut self, why: Trip, until: Instant) {
        let open = Closed { why, until };
        self.open = Some(match self.open {
            Some(before) if before.until > until => before,
            Some(_) | None => open,
        });
    }

    /// How it stands.
    pub fn standing(&self, now: Instant) -> Standing {
        match self.open {
            None => Standing::Closed,
            Some(Closed { why, until }) if now < until => Standing::Open { why, until },
            Some(Closed { why, .. }) => Standing::HalfOpen { why },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TERMS: Terms = Terms {
        failures: 3,
        rest: Duration::from_secs(5),
        throttled: Duration::from_secs(5),
        most: Duration::from_secs(60),
    };

    fn ask(breaker: &mut Breaker, ending: Ending, now: Instant) -> Result<Passage, Closed> {
        let passage = breaker.enter(now)?;
        breaker.ended(passage, ending, now);
        Ok(passage)
    }

    #[test]
    fn what_is_away_is_left_alone_and_then_asked_by_one() {
        let (mut breaker, now) = (Breaker::new(TERMS), Instant::now());
        for _ in 0..3 {
            assert_eq!(ask(&mut breaker, Ending::Away, now), Ok(Passage::Ordinary));
        }
        let until = now + TERMS.rest;
        assert_eq!(breaker.enter(now), Err(Closed { why: Trip::Away, until }));
        assert_eq!(breaker.enter(until), Ok(Passage::Probe));
        assert!(breaker.enter(until).is_err(), "one is enough");
        // A probe that is given up says nothing, and the next one finds out.
        breaker.ended(Passage::Probe, Ending::Unknown, until);
        assert_eq!(breaker.standing(until), Standing::HalfOpen { why: Trip::Away });
        assert_eq!(ask(&mut breaker, Ending::Away, until), Ok(Passage::Probe));
        assert_eq!(breaker.standing(until), Standing::Open { why: Trip::Away, until: until + TERMS.rest });
        assert_eq!(ask(&mut breaker, Ending::Answered, until + TERMS.rest), Ok(Passage::Probe));
        assert_eq!(breaker.standing(until), Standing::Closed);
    }

    #[test]
    fn failures_between_answers_open_nothing() {
        let (mut breaker, now) = (Breaker::new(TERMS), Instant::now());
        for ending in [Ending::Away, Ending::Away, Ending::Answered].repeat(10) {
            assert_eq!(ask(&mut breaker, ending, now), Ok(Passage::Ordinary));
        }
    }

    #[test]
    fn a_time_that_was_said_is_kept_also_when_another_request_is_answered() {
        let (mut breaker, now) = (Breaker::new(TERMS), Instant::now());
        let under_way = breaker.enter(now).unwrap();
        let said = |seconds| Ending::Throttled { retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(ask(&mut breaker, said(30), now), Ok(Passage::Ordinary));
        breaker.ended(under_way, Ending::Answered, now);
        breaker.ended(under_way, said(1), now);
        let until = now + Duration::from_secs(30);
        assert_eq!(breaker.standing(now), Standing::Open { why: Trip::Throttled, until });
        assert_eq!(ask(&mut breaker, said(7200), until), Ok(Passage::Probe));
        let standing = Standing::Open { why: Trip::Throttled, until: until + TERMS.most };
        assert_eq!(breaker.standing(until), standing, "nothing is believed without a limit");
    }

    #[test]
    fn without_a_time_the_pause_doubles_until_there_is_an_answer() {
        let (mut breaker, mut now) = (Breaker::new(TERMS), Instant::now());
        for seconds in [5, 10, 20, 40, 60, 60] {
            let together = breaker.enter(now).unwrap();
            breaker.ended(together, Ending::Throttled { retry_after: None }, now);
            breaker.ended(Passage::Ordinary, Ending::Throttled { retry_after: None }, now);
            let until = now + Duration::from_secs(seconds);
            assert_eq!(breaker.standing(now), Standing::Open { why: Trip::Throttled, until });
            now = until;
        }
        assert_eq!(ask(&mut breaker, Ending::Answered, now), Ok(Passage::Probe));
        assert_eq!(ask(&mut breaker, Ending::Throttled { retry_after: None }, now), Ok(Passage::Ordinary));
        let until = now + TERMS.throttled;
        assert_eq!(breaker.standing(now), Standing::Open { why: Trip::Throttled, until });
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
            let (mut breaker, mut now) = (Breaker::new(TERMS), Instant::now());
            let (mut under_way, mut not_before) = (Vec::<Passage>::new(), now);
            for (begins, which, ending, seconds) in steps {
                now += Duration::from_secs(seconds);
                if begins || under_way.is_empty() {
                    match breaker.enter(now) {
                        Ok(passage) => {
                            prop_assert!(now >= not_before, "before its time");
                            under_way.push(passage);
                        }
                        Err(closed) => {
                            let is_probed = under_way.contains(&Passage::Probe);
                            prop_assert!(is_probed || now < closed.until, "there is a way back");
                        }
                    }
                } else {
                    let passage = under_way.swap_remove(which.index(under_way.len()));
                    breaker.ended(passage, ending, now);
                    if let Ending::Throttled { retry_after: Some(wait) } = ending {
                        not_before = not_before.max(now + wait.min(TERMS.most));
                    }
                }
                prop_assert!(under_way.iter().filter(|passage| **passage == Passage::Probe).count() <= 1);
            }
        }
    }
}
