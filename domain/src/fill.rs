//! One node's view of one fill: bringing content that we lack from an upstream into the store, once.
//!
//! A fill looks in the store, claims the lease, **looks again**, and only then fetches: between the first look and
//! the claim another node may have committed, and without the second look two transfers happen with no fault at all.
//! The lease saves work and protects nothing: content is addressed by its digest, so two leaders are harmless.
//!
//! Who does not get the lease follows the node that has it, and takes over when that node is lost: from its own byte,
//! since all that has landed here was hashed here. Who has it all from a leader keeps the tail back until that one has
//! stored it, or stores it in its place.
//!
//! Bytes land on a spool in their order, and are hashed and uploaded in it. A reader far ahead of them may have a second
//! request opened for its range; what that brings lands in the same spool, is hashed in its turn and never fetched
//! again. [`Reach`] says what readers may have: all but the tail, which leaves when the whole is verified and stored, or
//! verified and the store takes long.
//!
//! [`Fill::step`] is pure and total: an event that comes too late changes nothing. Three drivers run it: a node, a
//! model checker that tries every order of events (`fill/model.rs`), and a simulator that tries long random ones.
//!
//! What holds, by the names under which the tests check it:
//!
//! - **S1** stored content hashes to its digest;
//! - **S2** who has the last bytes of a blob has got only right ones: nobody completes a wrong blob;
//! - **S3** a fill never removes stored content;
//! - **E1** with no fault, each byte is fetched from the upstream once by the whole cluster;
//! - **E2** with faults, no byte is fetched more often than nodes × (faults + 1) times;
//! - **E3** a lease is given back by its owner only;
//! - **L1** every reader ends, and no upload stays open, once faults have stopped;
//! - **A1** bytes reach only readers of repositories that the upstream has confirmed (checked where readers join).

mod reach;

#[cfg(test)]
mod model;
#[cfg(test)]
mod mutants;

use std::ops::Range;
use std::time::Duration;

pub use reach::Reach;

/// How many parts of a blob may wait on the spool for the bytes before them.
pub const PARTS_AHEAD: usize = 8;

/// How a fill lets go of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Content of at most this size is verified whole before its first byte leaves.
    pub whole_bytes: u64,
    /// How many bytes at the end of larger content are held back until it is verified and stored.
    pub held_back_bytes: u64,
}

/// A fill. It knows how much has landed, not what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fill {
    terms: Terms,
    phase: Phase,
    size_bytes: Option<u64>,
    /// What has landed without a gap from the first byte on, and is hashed.
    landed: u64,
    /// What has landed ahead of that, in order; nothing of it is hashed yet.
    ahead: Vec<Part>,
    /// Whether the upstream does not give parts of this content.
    is_indivisible: bool,
    /// Where the bytes in their order come from.
    source: Source,
    /// Whether all of them have landed and are what the digest means.
    is_verified: bool,
    /// Whether readers get the end before it is stored, since that takes long.
    is_late: bool,
    /// Whether the lease to claim next is that of a leader that was lost.
    succeeds: bool,
    /// Whether this is a second attempt, after bytes that nobody has seen were wrong.
    is_second: bool,
    /// How much had landed when content in the store turned out not to be there.
    vanished_at: Option<u64>,
}

/// Where the bytes in their order come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Upstream,
    Leader,
    Store,
}

/// What has landed of a request for a part.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Part {
    start: u64,
    end: u64,
    /// Whether its request still brings bytes.
    grows: bool,
}

/// Where a fill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Asking the store whether it has the content.
    Looking,
    /// Asking for the lease.
    Claiming,
    /// Another holds the lease: bytes land from it, until it has stored the content or is lost.
    Following,
    /// Asking the store once more, now with the lease, or without one where none can be had.
    LookingAgain,
    /// Bytes land from the upstream.
    Leading,
    /// Bytes that have landed ahead are hashed, now that those before them are.
    Adopting,
    /// The rest comes from the store, to which another node has brought the content.
    Reading,
    /// All bytes have landed; are they what the digest means?
    Verifying,
    /// They are, and get their final key, or the links to the one that they have.
    Committing,
    /// Over.
    Finished(Outcome),
}

/// How a fill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The content is in the store, by this fill or another.
    Stored,
    /// Readers get verified bytes, but the store did not take them.
    Uncached,
    /// There is no content; readers get the error.
    Failed,
    /// Nobody wanted it any more.
    Abandoned,
    /// A follower leads from now on, since this node stops.
    HandedOver,
    /// The spool does not take bytes: each reader is passed the upstream's by itself.
    PassedThrough,
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
    /// The lease is ours.
    Granted,
    /// Nobody can say whose the lease is: on without one.
    Uncoordinated,
    /// Another holds the lease.
    Busy,
    /// The leader has all bytes, and has stored them as far as the store let it.
    LeaderEnded,
    /// The leader does not go on, or is too slow.
    LeaderLost,
    /// What the leader has sent is wrong.
    LeaderRejected,
    /// The size is known.
    Sized(u64),
    /// This many further bytes have landed, in order, and are hashed.
    Landed(u64),
    /// The upstream's body, or the store's, has come to its end.
    Ended,
    /// The source has failed for good; also where the leader says so of the upstream.
    Broken,
    /// A reader waits for the byte at this offset, far ahead of what has landed.
    Wanted(u64),
    /// No reader wants what lands ahead any more.
    Unwanted,
    /// This many further bytes have landed ahead.
    AheadLanded(u64),
    /// Nothing more comes ahead.
    AheadEnded,
    /// The upstream gives no parts.
    AheadRefused,
    /// This many bytes that had landed ahead are hashed.
    Hashed(u64),
    /// The bytes are what the digest means.
    Right,
    /// They are not.
    Wrong,
    /// The content has its final key.
    Committed,
    /// The store did not take the content.
    CommitFailed,
    /// What is verified is still not stored.
    CommitLate,
    /// The spool cannot be written.
    SpoolFailed,
    /// There were no readers for a while, and what is left is too much to fetch for nobody.
    Abandoned,
    /// This node stops.
    Draining {
        /// Whether anybody reads here.
        readers: bool,
        /// Whether other nodes follow.
        followers: bool,
    },
}

/// What the driver must do next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Ask the store for the content.
    Look,
    /// Take the lease, if it is free.
    Claim,
    /// Take the lease if it is free, or still that of the leader that was lost.
    TakeOver,
    /// Let bytes from this offset on come from the leader.
    Follow(u64),
    /// Begin an upload with what has landed; all that is hashed from now on goes into it.
    BeginUpload,
    /// Request the content from the upstream, from this offset on.
    Fetch(u64),
    /// Request this part besides.
    FetchAhead(Range<u64>),
    /// End that request.
    StopAhead,
    /// Go on with that request as the one for bytes in their order.
    AdoptAhead,
    /// End the request for bytes in their order.
    HangUp,
    /// Hash these bytes, which have landed ahead.
    Hash(Range<u64>),
    /// Read the content from the store, from this offset on.
    ReadStore(u64),
    /// Compare the hash of all that has landed with the digest.
    Verify,
    /// Give the content its final key.
    Commit,
    /// Let the repositories that may show the content link what the store has.
    Link,
    /// Forget what has landed.
    Discard,
    /// Undo what of the upload exists; only what this fill made.
    AbortUpload,
    /// Give the lease back, if it is ours.
    ReleaseLease,
}

impl Fill {
    /// A new fill, and what to do first.
    pub fn start(terms: Terms) -> (Self, Vec<Effect>) {
        let fill = Self {
            terms,
            phase: Phase::Looking,
            size_bytes: None,
            landed: 0,
            ahead: Vec::new(),
            is_indivisible: false,
            source: Source::Upstream,
            is_verified: false,
            is_late: false,
            succeeds: false,
            is_second: false,
            vanished_at: None,
        };
        (fill, vec![Effect::Look])
    }

    /// Where the fill is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How the fill ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        if let Phase::Finished(outcome) = self.phase { Some(outcome) } else { None }
    }

    /// Whether all bytes have landed here and are what the digest means.
    pub fn is_verified(&self) -> bool {
        self.is_verified
    }

    /// How large the content is, once that is known.
    pub fn size_bytes(&self) -> Option<u64> {
        self.size_bytes
    }

    /// How many bytes have landed without a gap and are hashed.
    pub fn landed_bytes(&self) -> u64 {
        self.landed
    }

    /// Whether everything is verified before the first byte leaves, as far as is known: content of unknown size may
    /// turn out to be larger.
    pub fn is_whole_first(&self) -> bool {
        self.size_bytes.unwrap_or(self.landed) <= self.terms.whole_bytes
    }

    /// Whether answers may begin: at once for large content, and for small content when all of it may leave.
    pub fn may_begin(&self) -> bool {
        !self.is_whole_first() || self.is_late || (self.is_verified && self.outcome().is_some())
    }

    /// How many bytes may still land in their order before the end, or before those that have landed ahead.
    pub fn room_bytes(&self) -> u64 {
        let end = self.ahead.first().map(|part| part.start).or(self.size_bytes);
        end.map_or(u64::MAX, |end| end.saturating_sub(self.landed))
    }

    /// What readers may have.
    pub fn reach(&self) -> Reach {
        let limit = match (self.phase, self.size_bytes) {
            (Phase::Finished(Outcome::Stored | Outcome::Uncached), _) => u64::MAX,
            _ if self.is_late => u64::MAX,
            _ if self.is_whole_first() => 0,
            (_, size) => size.unwrap_or(self.landed).saturating_sub(self.terms.held_back_bytes),
        };
        Reach::new(self.landed, self.ahead.iter().map(|part| part.start..part.end), limit)
    }

    /// What follows from `event`, and what the driver must do, in this order.
    #[must_use]
    pub fn step(mut self, event: Event) -> (Self, Vec<Effect>) {
        use {Effect as X, Event as E, Phase as P};
        let effects = match (self.phase, event) {
            (P::Looking, E::Found) => self.found(),
            // A store that cannot be asked is a miss: the readers are still served, only not from it.
            (P::Looking, E::Absent | E::StoreAway) => {
                let claim = if std::mem::take(&mut self.succeeds) { X::TakeOver } else { X::Claim };
                self.enter(P::Claiming, [claim])
            }
            (P::Claiming, E::Granted | E::Uncoordinated) => self.enter(P::LookingAgain, [X::Look]),
            (P::Claiming, E::Busy) => {
                self.source = Source::Leader;
                self.enter(P::Following, [X::Follow(self.landed)])
            }
            (P::Following, event) => self.follow(event),
            (P::LookingAgain, E::Found) => [vec![X::ReleaseLease], self.found()].concat(),
            (P::LookingAgain, E::Absent | E::StoreAway) if self.is_verified => {
                self.enter(P::Committing, [X::BeginUpload, X::Commit])
            }
            (P::LookingAgain, E::Absent | E::StoreAway) => {
                self.source = Source::Upstream;
                self.enter(P::Leading, [X::BeginUpload, X::Fetch(self.landed)])
            }
            (P::Leading | P::Reading, E::Sized(size)) => self.sized(size),
            (P::Leading | P::Reading, E::Landed(bytes)) => self.land(bytes),
            (P::Leading, E::Ended) if self.size_bytes.is_none() => {
                self.size_bytes = Some(self.landed);
                self.enter(P::Verifying, [X::HangUp, X::Verify])
            }
            (P::Leading, E::Ended | E::Broken) => self.fail(),
            (P::Reading, E::Ended | E::Broken) => self.vanish(),
            (P::Leading, E::Wanted(at)) => self.fetch_ahead(at),
            (P::Leading | P::Adopting, E::AheadLanded(bytes)) => self.land_ahead(bytes),
            (P::Leading | P::Adopting, E::AheadEnded) => self.end_ahead(),
            (P::Leading | P::Adopting, E::AheadRefused) => {
                self.is_indivisible = true;
                self.end_ahead()
            }
            (P::Leading, E::Unwanted) if self.ahead.iter().any(|part| part.grows) => {
                self.end_ahead();
                vec![X::StopAhead]
            }
            (P::Adopting, E::Hashed(bytes)) => {
                self.landed = self.landed.saturating_add(bytes);
                self.adopt()
            }
            (P::Verifying, E::Right) => {
                self.is_verified = true;
                match self.source {
                    Source::Upstream => self.enter(P::Committing, [X::Commit]),
                    Source::Leader => self.enter(P::Following, []),
                    Source::Store => self.enter(P::Committing, [X::Link]),
                }
            }
            (P::Verifying, E::Wrong) => self.begin_again(vec![X::AbortUpload, X::ReleaseLease]),
            (P::Committing, E::Committed) => self.finish(Outcome::Stored, [X::ReleaseLease]),
            (P::Committing, E::CommitLate) => self.is_late(),
            (P::Committing, E::CommitFailed) => self.finish(Outcome::Uncached, [X::AbortUpload, X::ReleaseLease]),
            (P::Leading | P::Adopting | P::Reading, E::SpoolFailed) => self.stop(Outcome::PassedThrough),
            (P::Leading | P::Adopting | P::Reading, E::Abandoned) => self.stop(Outcome::Abandoned),
            (P::Leading | P::Adopting, E::Draining { readers: false, followers: true }) => {
                self.stop(Outcome::HandedOver)
            }
            (P::Leading | P::Adopting, E::Draining { readers: false, followers: false })
                if !is_worth_finishing(self.landed, self.size_bytes) =>
            {
                self.stop(Outcome::Abandoned)
            }
            (P::Reading, E::Draining { readers: false, .. }) => self.stop(Outcome::Abandoned),
            // An answer to a question that no longer matters.
            _ => Vec::new(),
        };
        (self, effects)
    }

    /// What happens while another leads.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "an answer to a question that no longer matters changes nothing"
    )]
    fn follow(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Sized(_) | Event::Landed(_) if self.is_verified => Vec::new(),
            Event::Sized(size) => self.sized(size),
            Event::Landed(bytes) => self.land(bytes),
            Event::LeaderEnded => self.enter(Phase::Looking, [Effect::Look]),
            Event::LeaderRejected if !self.is_verified => self.begin_again(Vec::new()),
            // What is verified here is right, whatever the leader has.
            Event::LeaderLost | Event::LeaderRejected => {
                self.succeeds = true;
                self.enter(Phase::Looking, [Effect::Look])
            }
            Event::CommitLate => self.is_late(),
            Event::Broken => self.fail(),
            Event::SpoolFailed => self.stop(Outcome::PassedThrough),
            Event::Abandoned | Event::Draining { readers: false, .. } => self.stop(Outcome::Abandoned),
            _ => Vec::new(),
        }
    }

    fn enter<const N: usize>(&mut self, phase: Phase, effects: [Effect; N]) -> Vec<Effect> {
        self.phase = phase;
        effects.into()
    }

    fn finish<const N: usize>(&mut self, outcome: Outcome, effects: [Effect; N]) -> Vec<Effect> {
        self.enter(Phase::Finished(outcome), effects)
    }

    /// Ends whatever goes on.
    fn stop(&mut self, outcome: Outcome) -> Vec<Effect> {
        self.finish(outcome, [Effect::HangUp, Effect::StopAhead, Effect::AbortUpload, Effect::ReleaseLease])
    }

    /// What is verified may leave; only who is kept waiting for long gets it before it is stored.
    fn is_late(&mut self) -> Vec<Effect> {
        self.is_late = self.is_verified;
        Vec::new()
    }

    fn fail(&mut self) -> Vec<Effect> {
        self.stop(Outcome::Failed)
    }

    /// The store has the content. Readers of a fill that has told them nothing read there; those of another need the
    /// rest here.
    fn found(&mut self) -> Vec<Effect> {
        if self.is_verified {
            return self.enter(Phase::Committing, [Effect::Link]);
        }
        if self.landed == 0 && self.size_bytes.is_none() {
            return self.finish(Outcome::Stored, []);
        }
        self.source = Source::Store;
        self.enter(Phase::Reading, [Effect::ReadStore(self.landed)])
    }

    fn sized(&mut self, size: u64) -> Vec<Effect> {
        if self.size_bytes.is_some_and(|known| known != size) {
            return self.fail();
        }
        self.size_bytes = Some(size);
        self.land(0)
    }

    /// Bytes have landed in their order.
    fn land(&mut self, bytes: u64) -> Vec<Effect> {
        self.landed = self.landed.saturating_add(bytes);
        if self.size_bytes.is_some_and(|size| self.landed > size) {
            return self.fail();
        }
        if self.size_bytes == Some(self.landed) {
            return match self.source {
                // It has yet to say what becomes of the content.
                Source::Leader => self.enter(Phase::Verifying, [Effect::Verify]),
                Source::Upstream | Source::Store => {
                    self.enter(Phase::Verifying, [Effect::HangUp, Effect::StopAhead, Effect::Verify])
                }
            };
        }
        if self.ahead.first().is_some_and(|part| part.start <= self.landed) {
            return [vec![Effect::HangUp], self.adopt()].concat();
        }
        Vec::new()
    }

    /// What has landed reaches the first part ahead: that is hashed now, and the fill goes on behind it.
    fn adopt(&mut self) -> Vec<Effect> {
        while let Some(part) = self.ahead.first().filter(|part| part.start <= self.landed) {
            if part.end > self.landed {
                return self.enter(Phase::Adopting, [Effect::Hash(self.landed..part.end)]);
            }
            let grows = part.grows;
            self.ahead.remove(0);
            if self.size_bytes == Some(self.landed) {
                return self.enter(Phase::Verifying, [Effect::StopAhead, Effect::Verify]);
            }
            if grows {
                return self.enter(Phase::Leading, [Effect::AdoptAhead]);
            }
        }
        self.enter(Phase::Leading, [Effect::Fetch(self.landed)])
    }

    fn fetch_ahead(&mut self, at: u64) -> Vec<Effect> {
        let Some(size) = self.size_bytes.filter(|_| !self.is_indivisible) else { return Vec::new() };
        let is_there = self.ahead.iter().any(|part| part.start <= at && at <= part.end);
        let is_let_go = at < size.saturating_sub(self.terms.held_back_bytes) && !self.is_whole_first();
        let is_busy = self.ahead.len() >= PARTS_AHEAD || self.ahead.iter().any(|part| part.grows);
        if at <= self.landed || is_there || !is_let_go || is_busy {
            return Vec::new();
        }
        let next = self.ahead.iter().position(|part| part.start > at).unwrap_or(self.ahead.len());
        let end = self.ahead.get(next).map_or(size, |part| part.start);
        self.ahead.insert(next, Part { start: at, end: at, grows: true });
        vec![Effect::FetchAhead(at..end)]
    }

    fn land_ahead(&mut self, bytes: u64) -> Vec<Effect> {
        if let Some(part) = self.ahead.iter_mut().find(|part| part.grows) {
            part.end = part.end.saturating_add(bytes);
        }
        Vec::new()
    }

    fn end_ahead(&mut self) -> Vec<Effect> {
        for part in &mut self.ahead {
            part.grows = false;
        }
        // An empty part that the hash has come to is left to it.
        let landed = self.landed;
        self.ahead.retain(|part| part.end > part.start || part.start <= landed);
        Vec::new()
    }

    /// What was found in the store is not there, which is a miss; but not if it is found again and gives no more.
    fn vanish(&mut self) -> Vec<Effect> {
        if self.vanished_at.replace(self.landed) == Some(self.landed) {
            return self.fail();
        }
        self.enter(Phase::Looking, [Effect::HangUp, Effect::Look])
    }

    /// What has landed is wrong. If nobody has seen any of it there is a second attempt.
    fn begin_again(&mut self, mut effects: Vec<Effect>) -> Vec<Effect> {
        effects.push(Effect::Discard);
        let is_seen = self.reach().has_any();
        (self.landed, self.size_bytes, self.is_verified) = (0, None, false);
        self.ahead.clear();
        if is_seen || std::mem::replace(&mut self.is_second, true) {
            self.phase = Phase::Finished(Outcome::Failed);
        } else {
            self.phase = Phase::Looking;
            effects.push(Effect::Look);
        }
        effects
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

/// How long a fill may take: a source that is slower than 256 KiB/s for good only keeps its readers waiting.
#[must_use]
pub fn longest(size_bytes: Option<u64>) -> Duration {
    const LEAST: Duration = Duration::from_secs(15 * 60);
    const MOST: Duration = Duration::from_secs(6 * 60 * 60);
    let by_size = size_bytes.map_or(MOST, |size| Duration::from_secs(size / (256 * 1024)));
    by_size.clamp(LEAST, MOST)
}

/// How far ahead of the landed bytes a reader is before a second request is opened for it: at once, and once it has
/// waited in vain. Clients that fetch a layer in parallel chunks stay within the former.
const AHEAD_BYTES: (u64, u64) = (96 * 1024 * 1024, 8 * 1024 * 1024);

/// How long a reader waits for bytes that are not quite so far.
pub const AHEAD_WAIT: Duration = Duration::from_secs(5);

/// Whether a second request is worth opening for a reader that waits for a byte this far ahead of what has landed.
#[must_use]
pub fn is_worth_fetching_ahead(distance_bytes: u64, waited: Duration) -> bool {
    let (at_once, in_vain) = AHEAD_BYTES;
    distance_bytes > at_once || (distance_bytes > in_vain && waited >= AHEAD_WAIT)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const TERMS: Terms = Terms { whole_bytes: 10, held_back_bytes: 5 };

    fn leading() -> Fill {
        [Event::Absent, Event::Granted, Event::Absent].into_iter().fold(Fill::start(TERMS).0, |fill, e| fill.step(e).0)
    }

    /// The last effects of these events.
    fn after(fill: Fill, events: &[Event]) -> (Fill, Vec<Effect>) {
        events.iter().fold((fill, Vec::new()), |(fill, _), event| fill.step(*event))
    }

    #[test]
    fn a_leader_verifies_before_it_commits_and_lets_the_tail_go_after_that() {
        let (fill, effects) = after(leading(), &[Event::Sized(100), Event::Landed(98), Event::CommitLate]);
        assert_eq!((effects, fill.reach().until(0)), (vec![], 95));
        let (fill, effects) = fill.step(Event::Landed(2));
        assert_eq!(effects, [Effect::HangUp, Effect::StopAhead, Effect::Verify]);
        let (fill, effects) = fill.step(Event::Right);
        assert_eq!((effects, fill.reach().until(0)), (vec![Effect::Commit], 95));
        assert_eq!(fill.clone().step(Event::CommitLate).0.reach().until(0), 100);
        let (fill, effects) = fill.step(Event::Committed);
        assert_eq!((effects, fill.reach().until(0)), (vec![Effect::ReleaseLease], 100));
    }

    #[test]
    fn small_content_is_let_go_whole_and_tried_twice() {
        let (fill, _) = after(leading(), &[Event::Sized(10), Event::Landed(10)]);
        assert_eq!(fill.reach().until(0), 0);
        let of_unknown_size = |bytes| after(leading(), &[Event::Landed(bytes)]).0.reach().until(0);
        assert_eq!((of_unknown_size(10), of_unknown_size(11)), (0, 6));
        let (fill, effects) = fill.step(Event::Wrong);
        assert_eq!(effects, [Effect::AbortUpload, Effect::ReleaseLease, Effect::Discard, Effect::Look]);
        let again = [Event::Absent, Event::Granted, Event::Absent, Event::Sized(10), Event::Landed(10), Event::Wrong];
        assert_eq!(after(fill, &again).0.phase(), Phase::Finished(Outcome::Failed));
        let seen = after(leading(), &[Event::Sized(100), Event::Landed(100), Event::Wrong]).0;
        assert_eq!(seen.phase(), Phase::Finished(Outcome::Failed));
    }

    #[test]
    fn what_lands_ahead_is_hashed_in_its_turn_and_never_fetched_again() {
        let (fill, effects) = after(leading(), &[Event::Sized(100), Event::Landed(10), Event::Wanted(50)]);
        assert_eq!(effects, [Effect::FetchAhead(50..100)]);
        let (fill, effects) = after(fill, &[Event::AheadLanded(20), Event::Wanted(30), Event::Unwanted]);
        assert_eq!((effects, fill.reach().until(50), fill.room_bytes()), (vec![Effect::StopAhead], 70, 40));
        let (fill, effects) = after(fill, &[Event::Wanted(30)]);
        assert_eq!(effects, [Effect::FetchAhead(30..50)]);
        let (fill, effects) = after(fill, &[Event::AheadLanded(5), Event::Landed(20)]);
        assert_eq!(effects, [Effect::HangUp, Effect::Hash(30..35)]);
        let (fill, effects) = fill.step(Event::Hashed(5));
        assert_eq!(effects, [Effect::AdoptAhead]);
        let (fill, effects) = fill.step(Event::Landed(15));
        assert_eq!(effects, [Effect::HangUp, Effect::Hash(50..70)]);
        let (fill, effects) = fill.step(Event::Hashed(20));
        assert_eq!((effects, fill.landed_bytes()), (vec![Effect::Fetch(70)], 70));
    }

    #[test]
    fn the_tail_is_not_fetched_ahead_nor_anything_of_unknown_size_or_of_an_upstream_without_parts() {
        for events in [
            vec![Event::Sized(100), Event::Wanted(95)],
            vec![Event::Landed(1), Event::Wanted(50)],
            vec![Event::Sized(10), Event::Wanted(5)],
            vec![Event::Sized(100), Event::Wanted(50), Event::AheadRefused, Event::Wanted(50)],
            vec![Event::Sized(100), Event::Wanted(50), Event::Wanted(70)],
        ] {
            assert_eq!(after(leading(), &events).1, [], "{events:?}");
        }
    }

    #[test]
    fn a_leader_that_is_lost_is_followed_from_the_byte_that_has_landed() {
        let (fill, effects) = after(Fill::start(TERMS).0, &[Event::Absent, Event::Busy]);
        assert_eq!(effects, [Effect::Follow(0)]);
        let (fill, effects) = after(fill, &[Event::Sized(100), Event::Landed(40), Event::LeaderLost, Event::Absent]);
        assert_eq!(effects, [Effect::TakeOver]);
        let (fill, effects) = after(fill, &[Event::Granted, Event::Absent]);
        assert_eq!((effects, fill.reach().until(0)), (vec![Effect::BeginUpload, Effect::Fetch(40)], 40));
    }

    #[test]
    fn a_follower_that_has_it_all_waits_until_it_is_stored_or_stores_it() {
        let following = after(Fill::start(TERMS).0, &[Event::Absent, Event::Busy]).0;
        let (fill, effects) = after(following, &[Event::Sized(100), Event::Landed(100)]);
        assert_eq!(effects, [Effect::Verify]);
        let (fill, effects) = fill.step(Event::Right);
        assert_eq!((fill.phase(), effects, fill.reach().until(0)), (Phase::Following, vec![], 95));
        let (stored, effects) = after(fill.clone(), &[Event::LeaderEnded, Event::Found]);
        assert_eq!((effects, stored.reach().until(0)), (vec![Effect::Link], 95));
        assert_eq!(stored.step(Event::Committed).0.outcome(), Some(Outcome::Stored));
        assert_eq!(fill.clone().step(Event::CommitLate).0.reach().until(0), 100);
        let lost = [Event::LeaderLost, Event::Absent, Event::Granted, Event::Absent];
        assert_eq!(after(fill, &lost).1, [Effect::BeginUpload, Effect::Commit]);
    }

    #[test]
    fn what_the_store_has_of_a_fill_that_was_begun_elsewhere_is_linked_and_not_stored_again() {
        let lost = [Event::Absent, Event::Busy, Event::Sized(100), Event::Landed(40), Event::LeaderLost, Event::Found];
        let (fill, effects) = after(Fill::start(TERMS).0, &lost);
        assert_eq!(effects, [Effect::ReadStore(40)]);
        let (_, effects) = after(fill, &[Event::Sized(100), Event::Landed(60), Event::Right]);
        assert_eq!(effects, [Effect::Link]);
    }

    #[test]
    fn what_was_found_in_the_store_and_gives_nothing_is_read_twice_and_not_for_ever() {
        let lost = [Event::Absent, Event::Busy, Event::Sized(100), Event::Landed(40), Event::LeaderLost, Event::Found];
        let fill = after(Fill::start(TERMS).0, &lost).0;
        let (fill, effects) = after(fill, &[Event::Sized(100), Event::Landed(10), Event::Ended]);
        assert_eq!(effects, [Effect::HangUp, Effect::Look]);
        let (fill, effects) = after(fill, &[Event::Found, Event::Sized(100), Event::Landed(10), Event::Broken]);
        assert_eq!(effects, [Effect::HangUp, Effect::Look]);
        let fill = after(fill, &[Event::Found, Event::Sized(100), Event::Ended]).0;
        assert_eq!(fill.phase(), Phase::Finished(Outcome::Failed));
    }

    /// The ways to a request for bytes.
    fn beginnings() -> impl Strategy<Value = Vec<Event>> {
        let following = vec![Event::Absent, Event::Busy, Event::Sized(50), Event::LeaderLost];
        prop_oneof![
            Just(Vec::new()),
            Just(vec![Event::Absent, Event::Granted, Event::Absent]),
            Just([following.clone(), vec![Event::Found]].concat()),
            Just([following, vec![Event::Absent, Event::Granted, Event::Absent]].concat()),
        ]
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Found),
            Just(Event::Absent),
            Just(Event::Granted),
            Just(Event::Busy),
            Just(Event::LeaderLost),
            Just(Event::LeaderEnded),
            Just(Event::LeaderRejected),
            (0..60_u64).prop_map(Event::Sized),
            (0..30_u64).prop_map(Event::Landed),
            Just(Event::Ended),
            Just(Event::Broken),
            (0..60_u64).prop_map(Event::Wanted),
            (0..30_u64).prop_map(Event::AheadLanded),
            Just(Event::AheadEnded),
            (0..30_u64).prop_map(Event::Hashed),
            Just(Event::Right),
            Just(Event::Wrong),
            Just(Event::CommitLate),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// A request that nobody hears is polled without end.
        #[test]
        fn no_request_for_bytes_is_left_behind(first in beginnings(), events in vec(events(), 1..20)) {
            let (mut fill, effects) = Fill::start(TERMS);
            let mut has_body = false;
            let mut follow = |effects: &[Effect]| {
                for effect in effects {
                    if matches!(effect, Effect::Fetch(_) | Effect::ReadStore(_) | Effect::AdoptAhead) {
                        has_body = true;
                    } else if matches!(effect, Effect::HangUp | Effect::Discard) {
                        has_body = false;
                    }
                }
                has_body
            };
            follow(&effects);
            for event in first.into_iter().chain(events) {
                let (next, effects) = fill.step(event);
                fill = next;
                let is_heard = matches!(fill.phase(), Phase::Leading | Phase::Reading);
                prop_assert!(!follow(&effects) || is_heard, "{:?} in {:?}", event, fill.phase());
            }
        }
    }

    #[test]
    fn a_node_that_stops_hands_over_or_goes_on_for_its_readers() {
        let sized = || after(leading(), &[Event::Sized(1 << 30), Event::Landed(1)]).0;
        let draining = |readers, followers| sized().step(Event::Draining { readers, followers }).0.phase();
        assert_eq!(draining(true, true), Phase::Leading);
        assert_eq!(draining(false, true), Phase::Finished(Outcome::HandedOver));
        assert_eq!(draining(false, false), Phase::Finished(Outcome::Abandoned));
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
    fn a_fill_may_take_as_long_as_its_size_warrants() {
        const GIB: u64 = 1024 * 1024 * 1024;
        let minutes = |size| longest(size).as_secs() / 60;
        assert_eq!([Some(0), Some(GIB), Some(100 * GIB), None].map(minutes), [15, 68, 360, 360]);
    }

    #[test]
    fn parallel_chunks_wait_and_a_reader_far_ahead_does_not() {
        const MIB: u64 = 1024 * 1024;
        assert!(!is_worth_fetching_ahead(64 * MIB, Duration::ZERO));
        assert!(is_worth_fetching_ahead(97 * MIB, Duration::ZERO));
        assert!(is_worth_fetching_ahead(9 * MIB, AHEAD_WAIT));
        assert!(!is_worth_fetching_ahead(8 * MIB, Duration::from_secs(60)));
    }
}
