//! Events of a fill in any order: the state machine is total, counts only landed bytes, and releases nothing too early.

#![no_main]

use arbitrary::Arbitrary;
use entrepot_domain::fill::{Effect, Event, Fill, Outcome, FillSettings};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input {
    Found,
    Absent,
    StoreAway,
    Granted,
    Uncoordinated,
    Busy,
    LeaderEnded,
    LeaderLost,
    LeaderRejected,
    Sized(u64),
    Landed(u64),
    Ended,
    Broken,
    Wanted(u64),
    Unwanted,
    AheadLanded(u64),
    AheadEnded,
    AheadRefused,
    Hashed(u64),
    Right,
    Wrong,
    Committed,
    CommitFailed,
    CommitLate,
    SpoolFailed,
    Abandoned,
    Draining(bool, bool),
}

impl Input {
    fn event(&self) -> Event {
        match *self {
            Self::Found => Event::Found,
            Self::Absent => Event::Absent,
            Self::StoreAway => Event::StoreAway,
            Self::Granted => Event::Granted,
            Self::Uncoordinated => Event::Uncoordinated,
            Self::Busy => Event::Busy,
            Self::LeaderEnded => Event::LeaderEnded,
            Self::LeaderLost => Event::LeaderLost,
            Self::LeaderRejected => Event::LeaderRejected,
            Self::Sized(bytes) => Event::Sized(bytes),
            Self::Landed(bytes) => Event::Landed(bytes),
            Self::Ended => Event::Ended,
            Self::Broken => Event::Broken,
            Self::Wanted(at) => Event::Wanted(at),
            Self::Unwanted => Event::Unwanted,
            Self::AheadLanded(bytes) => Event::AheadLanded(bytes),
            Self::AheadEnded => Event::AheadEnded,
            Self::AheadRefused => Event::AheadRefused,
            Self::Hashed(bytes) => Event::Hashed(bytes),
            Self::Right => Event::Right,
            Self::Wrong => Event::Wrong,
            Self::Committed => Event::Committed,
            Self::CommitFailed => Event::CommitFailed,
            Self::CommitLate => Event::CommitLate,
            Self::SpoolFailed => Event::SpoolFailed,
            Self::Abandoned => Event::Abandoned,
            Self::Draining(readers, followers) => Event::Draining { readers, followers },
        }
    }
}

fuzz_target!(|inputs: Vec<Input>| {
    const HELD_BACK: u64 = 1000;
    let (mut fill, _) = Fill::start(FillSettings { whole_bytes: 10_000, held_back_bytes: HELD_BACK });
    let (mut claims, mut releases) = (0, 0);
    for input in &inputs {
        let was_over = fill.outcome();
        let (next, effects) = fill.step(input.event());
        if was_over.is_some() {
            assert_eq!((next.outcome(), effects.len()), (was_over, 0), "an end is an end");
        }
        claims += effects.iter().filter(|effect| matches!(effect, Effect::Claim | Effect::TakeOver)).count();
        releases += effects.iter().filter(|effect| **effect == Effect::ReleaseLease).count();
        let is_let_go = next.is_verified() || matches!(next.outcome(), Some(Outcome::Stored | Outcome::Uncached));
        let reach = next.reach();
        for at in [0, next.landed_bytes(), next.landed_bytes().saturating_sub(1), u64::MAX - 1] {
            let until = reach.until(at);
            assert!(until >= at);
            if !is_let_go && until > at {
                let size = next.size_bytes().unwrap_or(next.landed_bytes());
                assert!(until <= size.saturating_sub(HELD_BACK), "the tail leaves before its time");
            }
        }
        fill = next;
    }
    // Each follower may end with a release of its own.
    assert!(releases <= claims + inputs.len());
});
