//! One node's view of one fill: bringing content that we lack from an upstream into the store, once.
//!
//! A fill looks in the store, claims the lease, **looks again**, and only then transfers: between the first look and
//! the claim another node may have committed, and without the second look two transfers happen with no fault at all.
//! The lease saves work and protects nothing: content is addressed by its digest, so two leaders are harmless.
//!
//! Who does not get the lease waits for the store, and now and then looks and claims again: a leader that has finished,
//! failed or died is followed at once. Patience has an end, and then the fill goes on without the lease.
//!
//! [`Fill::on`] is total: an event that comes too late changes nothing. The driver carries out the steps, in order,
//! and reports what came of them as events.

/// Where a fill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fill {
    /// Asking the store whether the content has come meanwhile.
    Looking,
    /// Asking for the lease.
    Claiming,
    /// Another holds the lease: it will bring the content, or give the lease up.
    Waiting,
    /// Asking the store once more, now with the lease, or at the end of our patience.
    LookingAgain,
    /// Bytes land from the upstream.
    Transferring,
    /// All bytes have landed and are what the digest means; they are getting their final key.
    Committing,
    /// Over.
    Finished(Outcome),
}

/// How a fill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The content is in the store, by this fill or another.
    Stored,
    /// Readers got verified bytes, but the store did not take them.
    Uncached,
    /// There is no content; readers get the error.
    Failed,
}

/// What the driver reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The store has the content.
    Found,
    /// The store does not have it.
    Absent,
    /// The store could not be asked.
    StoreAway,
    /// The lease is ours, or none can be had and none is needed.
    Granted,
    /// Another holds the lease.
    Busy,
    /// A moment of waiting has passed, and there is patience left.
    Waited,
    /// We have waited for as long as we may.
    OutOfPatience,
    /// The upstream did not deliver, or not what the digest means.
    TransferFailed,
    /// All bytes have landed and hash to the digest.
    Verified,
    /// The content has its final key.
    Committed,
    /// The store did not take the content.
    CommitFailed,
    /// The last reader has gone and the fill is not worth finishing.
    Abandoned,
}

/// What the driver must do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Ask the store.
    Look,
    /// Take the lease.
    Claim,
    /// Let a moment pass.
    Wait,
    /// Request the content from the upstream and land it.
    Transfer,
    /// Let readers have the bytes that were held back.
    ReleaseTail,
    /// Give the landed bytes their final key.
    Commit,
    /// Undo what of the upload exists; only what this fill made.
    AbortUpload,
    /// Give the lease back, if it is ours.
    ReleaseLease,
}

impl Fill {
    /// A new fill, and what to do first.
    pub fn start() -> (Self, &'static [Step]) {
        (Self::Looking, &[Step::Look])
    }

    /// What follows from `event`, and what the driver must do, in this order.
    #[must_use]
    pub fn on(self, event: Event) -> (Self, &'static [Step]) {
        use {Event as E, Fill as F, Outcome as O, Step as S};
        match (self, event) {
            (F::Looking, E::Found) => (F::Finished(O::Stored), &[]),
            // A store that cannot be asked is a miss: the readers are still served, only not from it.
            (F::Looking, E::Absent | E::StoreAway) => (F::Claiming, &[S::Claim]),
            (F::Looking, E::Abandoned) => (F::Finished(O::Failed), &[]),
            (F::Claiming, E::Granted) => (F::LookingAgain, &[S::Look]),
            (F::Claiming, E::Busy) => (F::Waiting, &[S::Wait]),
            (F::Claiming, E::Abandoned) => (F::Finished(O::Failed), &[]),
            (F::Waiting, E::Waited) => (F::Looking, &[S::Look]),
            (F::Waiting, E::OutOfPatience) => (F::LookingAgain, &[S::Look]),
            (F::Waiting, E::Abandoned) => (F::Finished(O::Failed), &[]),
            (F::LookingAgain, E::Found) => (F::Finished(O::Stored), &[S::ReleaseLease]),
            (F::LookingAgain, E::Absent | E::StoreAway) => (F::Transferring, &[S::Transfer]),
            (F::LookingAgain, E::Abandoned) => (F::Finished(O::Failed), &[S::ReleaseLease]),
            (F::Transferring, E::Verified) => (F::Committing, &[S::Commit]),
            (F::Transferring, E::TransferFailed | E::Abandoned) => {
                (F::Finished(O::Failed), &[S::AbortUpload, S::ReleaseLease])
            }
            (F::Committing, E::Committed) => (F::Finished(O::Stored), &[S::ReleaseTail, S::ReleaseLease]),
            (F::Committing, E::CommitFailed) => {
                (F::Finished(O::Uncached), &[S::ReleaseTail, S::AbortUpload, S::ReleaseLease])
            }
            // An answer to a question that no longer matters.
            (state, _) => (state, &[]),
        }
    }
}

/// What a fill without readers may still have before it.
const WORTH_BYTES: u64 = 64 * 1024 * 1024;

/// Whether a fill that nobody reads any more is worth finishing: most of what it costs is paid, or it costs little. One
/// whose size nobody knows is not.
#[must_use]
pub fn is_worth_finishing(landed_bytes: u64, size_bytes: Option<u64>) -> bool {
    size_bytes.is_some_and(|size| landed_bytes >= size / 4 || size.saturating_sub(landed_bytes) <= WORTH_BYTES)
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const EVENTS: [Event; 12] = [
        Event::Found,
        Event::Absent,
        Event::StoreAway,
        Event::Granted,
        Event::Busy,
        Event::Waited,
        Event::OutOfPatience,
        Event::TransferFailed,
        Event::Verified,
        Event::Committed,
        Event::CommitFailed,
        Event::Abandoned,
    ];

    #[derive(Clone)]
    struct Path {
        events: Vec<Event>,
        state: Fill,
        steps: Vec<Step>,
    }

    /// Every path of at most `depth` events that change something. All others are these, with events in between that
    /// change nothing.
    fn paths(depth: usize) -> Vec<Path> {
        let (state, steps) = Fill::start();
        let mut all = vec![Path { events: vec![], state, steps: steps.to_vec() }];
        let mut last = all.clone();
        for _ in 0..depth {
            last = last.iter().flat_map(|path| EVENTS.into_iter().filter_map(|event| path.with(event))).collect();
            all.extend(last.iter().cloned());
        }
        all
    }

    impl Path {
        fn with(&self, event: Event) -> Option<Self> {
            let (state, more) = self.state.on(event);
            if state == self.state {
                assert!(more.is_empty(), "{event:?} changes nothing, and is nothing to act upon");
                return None;
            }
            let (events, steps) = ([self.events.as_slice(), &[event]].concat(), [self.steps.as_slice(), more].concat());
            Some(Self { events, state, steps })
        }
    }

    /// Deep enough for three rounds of waiting and a whole fill.
    const DEPTH: usize = 14;

    #[test]
    fn no_path_transfers_without_a_second_look_nor_releases_the_tail_unverified() {
        for Path { events, state, steps } in paths(DEPTH) {
            let count = |step| steps.iter().filter(|s| **s == step).count();
            if let Some(transfer) = steps.iter().position(|step| *step == Step::Transfer) {
                // The last thing before it is a look that came after the claim.
                assert_eq!(steps[transfer - 1], Step::Look, "{events:?}");
                let asked = steps[..transfer - 1].iter().rposition(|step| matches!(step, Step::Claim | Step::Wait));
                let looked = steps[..transfer - 1].iter().rposition(|step| *step == Step::Look);
                assert!(asked > looked, "{events:?}");
                assert_eq!(count(Step::Transfer), 1, "{events:?}");
            }
            if count(Step::ReleaseTail) + count(Step::Commit) > 0 {
                assert!(events.contains(&Event::Verified), "{events:?}");
            }
            if let Fill::Finished(_) = state {
                // What was taken is given back, once.
                let granted = events.contains(&Event::Granted) || events.contains(&Event::OutOfPatience);
                assert_eq!(count(Step::ReleaseLease), usize::from(granted), "{events:?}");
            }
        }
    }

    #[test]
    fn who_waits_looks_and_claims_again_and_transfers_at_the_end_of_its_patience() {
        let after = |events: &[Event]| events.iter().fold(Fill::start(), |(state, _), event| state.on(*event));
        let waiting = [Event::Absent, Event::Busy];
        assert_eq!(after(&waiting), (Fill::Waiting, &[Step::Wait][..]));
        let again = [&waiting[..], &[Event::Waited]].concat();
        assert_eq!(after(&again), (Fill::Looking, &[Step::Look][..]));
        let claims = [&again[..], &[Event::Absent]].concat();
        assert_eq!(after(&claims), (Fill::Claiming, &[Step::Claim][..]));
        let alone = [&waiting[..], &[Event::OutOfPatience, Event::Absent]].concat();
        assert_eq!(after(&alone), (Fill::Transferring, &[Step::Transfer][..]));
    }

    #[test]
    fn a_quarter_landed_or_little_left_is_worth_finishing() {
        const MIB: u64 = 1024 * 1024;
        for (landed, size, expected) in [
            (0, Some(64 * MIB), true),
            (0, Some(64 * MIB + 1), false),
            (1, Some(64 * MIB + 1), true),
            (249 * MIB, Some(1000 * MIB), false),
            (250 * MIB, Some(1000 * MIB), true),
            (0, Some(0), true),
            (u64::MAX, Some(1), true),
            (1000 * MIB, None, false),
        ] {
            assert_eq!(is_worth_finishing(landed, size), expected, "{landed} of {size:?}");
        }
    }

    #[test]
    fn every_state_can_be_reached_and_every_end_is_an_end() {
        let states: HashSet<Fill> = paths(DEPTH).into_iter().map(|path| path.state).collect();
        assert_eq!(states.len(), 9);
        for end in [Outcome::Stored, Outcome::Uncached, Outcome::Failed].map(Fill::Finished) {
            assert!(states.contains(&end));
            for event in EVENTS {
                assert_eq!(end.on(event), (end, &[][..]));
            }
        }
    }
}
