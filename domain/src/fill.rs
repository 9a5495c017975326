//! One node's view of one fill: bringing content that we lack from an upstream into the store, once.
//!
//! A fill looks in the store, claims the lease, **looks again**, and only then transfers: between the first look and
//! the claim another node may have committed, and without the second look two transfers happen with no fault at all.
//! The lease saves work and protects nothing: content is addressed by its digest, so two leaders are harmless.
//!
//! [`Fill::on`] is total: an event that comes too late changes nothing. The driver carries out the steps, in order,
//! and reports what came of them as events.

/// Where a fill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fill {
    /// Asking the store whether the content has come meanwhile.
    Looking,
    /// Waiting for the lease.
    Claiming,
    /// Asking the store once more, now with the lease.
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
    /// Request the content from the upstream and land it.
    Transfer,
    /// Let readers have the bytes that were held back.
    ReleaseTail,
    /// Give the landed bytes their final key.
    Commit,
    /// Undo what of the upload exists; only what this fill made.
    AbortUpload,
    /// Give the lease back.
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
            (F::Claiming, E::Abandoned) => (F::Finished(O::Failed), &[]),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const EVENTS: [Event; 9] = [
        Event::Found,
        Event::Absent,
        Event::StoreAway,
        Event::Granted,
        Event::TransferFailed,
        Event::Verified,
        Event::Committed,
        Event::CommitFailed,
        Event::Abandoned,
    ];

    /// Every path of at most `depth` events from the start.
    fn paths(depth: usize) -> Vec<(Vec<Event>, Fill, Vec<Step>)> {
        let (state, steps) = Fill::start();
        let mut all = vec![(vec![], state, steps.to_vec())];
        let mut last = all.clone();
        for _ in 0..depth {
            last = last
                .iter()
                .flat_map(|(events, state, steps)| {
                    EVENTS.map(|event| {
                        let (next, more) = state.on(event);
                        ([events.as_slice(), &[event]].concat(), next, [steps.as_slice(), more].concat())
                    })
                })
                .collect();
            all.extend(last.iter().cloned());
        }
        all
    }

    #[test]
    fn no_path_transfers_without_a_second_look_nor_releases_the_tail_unverified() {
        for (events, state, steps) in paths(6) {
            let at = |step| steps.iter().position(|s| *s == step);
            if let Some(transfer) = at(Step::Transfer) {
                assert_eq!(steps[..transfer].iter().filter(|s| **s == Step::Look).count(), 2, "{events:?}");
                assert!(at(Step::Claim).is_some_and(|claim| claim < transfer), "{events:?}");
            }
            if at(Step::ReleaseTail).is_some() || at(Step::Commit).is_some() {
                assert!(events.contains(&Event::Verified), "{events:?}");
            }
            if let Fill::Finished(_) = state {
                // What was taken is given back, once.
                let claimed = at(Step::Look).is_some() && events.contains(&Event::Granted) && at(Step::Claim).is_some();
                let released = steps.iter().filter(|s| **s == Step::ReleaseLease).count();
                assert!(released <= 1 && (released == 1 || !claimed || at(Step::Transfer).is_none()), "{events:?}");
            }
        }
    }

    #[test]
    fn every_state_can_be_reached_and_every_end_is_an_end() {
        let states: HashSet<Fill> = paths(6).into_iter().map(|(_, state, _)| state).collect();
        assert_eq!(states.len(), 8);
        for event in EVENTS {
            let end = Fill::Finished(Outcome::Stored);
            assert_eq!(end.on(event), (end, &[][..]));
        }
    }
}
