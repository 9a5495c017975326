//! One node's view of one fill: bringing content that we lack from an upstream into the store, once.
//!
//! A fill looks in the store, claims the lease, **looks again**, and only then fetches. Another node may commit the
//! content between the first look and the claim; without the second look there would be two transfers even though
//! nothing failed. The lease only saves work. It protects nothing: content is addressed by its digest, so two leaders
//! are harmless.
//!
//! A node that does not get the lease follows the leader. If the leader is lost, the follower takes over from the byte
//! that it has reached, since it has hashed everything that landed here itself. A follower that has received all bytes
//! holds the tail back until the leader has stored the content, or stores it in the leader's place.
//!
//! Bytes land on a spool in order; they are hashed and uploaded in that order. For a reader that is far ahead, a second
//! request may be opened for its range. Its bytes land on the same spool, are hashed when their turn comes, and are
//! never fetched again. [`Reach`] says which bytes readers may have: all but the tail, which is released when the whole
//! content is verified and stored, or verified while storing takes long.
//!
//! [`Fill::step`] is pure and total: an event that comes too late changes nothing. Three drivers run it: a node, a
//! model checker that tries every order of events (`fill/model.rs`), and a simulator of long random runs.
//!
//! The properties of a fill, under the names that the tests use:
//!
//! - **S1** stored content hashes to its digest;
//! - **S2** a client that has the last bytes of a blob has only right ones: nobody completes a wrong blob;
//! - **S3** a fill never removes stored content;
//! - **E1** with no fault, each byte is fetched from the upstream once by the whole cluster;
//! - **E2** with faults, no byte is fetched more often than nodes × (faults + 1) times;
//! - **E3** only the owner of a lease gives it back;
//! - **L1** every reader ends, and no upload stays open, once faults have stopped;
//! - **A1** bytes reach only readers of repositories that the upstream has confirmed (checked where readers join).

mod reach;
mod unread;
mod vocabulary;
mod worth;

#[cfg(test)]
mod model;
#[cfg(test)]
mod mutants;
#[cfg(test)]
mod tests;

pub use reach::Reach;
pub use unread::Unread;
pub use vocabulary::{Effect, Event, Outcome, Phase};
pub use worth::{AHEAD_WAIT, is_worth_fetching_ahead, is_worth_finishing, longest};

/// How many parts of a blob may wait on the spool for the bytes before them.
pub const PARTS_AHEAD: usize = 8;

/// How much a fill holds back from readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FillSettings {
    /// Content of at most this size is verified as a whole before its first byte is sent.
    pub whole_bytes: u64,
    /// How many bytes at the end of larger content are held back until it is verified and stored.
    pub held_back_bytes: u64,
}

/// A fill. It knows how many bytes have landed, but not the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fill {
    settings: FillSettings,
    phase: Phase,
    size_bytes: Option<u64>,
    /// How many bytes have landed without a gap from the first one on. They are hashed.
    landed: u64,
    /// Parts that have landed ahead of that, in order. None of them is hashed yet.
    ahead: Vec<Part>,
    /// Whether the upstream refuses requests for a part of this content.
    is_indivisible: bool,
    /// Where the bytes that land in order come from.
    source: Source,
    /// Whether all bytes have landed and match the digest.
    is_verified: bool,
    /// Whether readers get the tail before the content is stored, because storing takes long.
    is_late: bool,
    /// Whether the next lease to claim is that of a lost leader.
    succeeds: bool,
    /// Whether this is a second attempt, after wrong bytes that nobody has seen.
    is_second: bool,
    /// How much had landed when content in the store turned out to be missing.
    vanished_at: Option<u64>,
}

/// Where the bytes that land in order come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Upstream,
    Leader,
    Store,
}

/// What a request for a part has brought so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Part {
    start: u64,
    end: u64,
    /// Whether the request is still running.
    grows: bool,
}

impl Fill {
    /// A new fill, and the first effects.
    pub fn start(settings: FillSettings) -> (Self, Vec<Effect>) {
        let fill = Self {
            settings,
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

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How the fill ended; `None` while it is running.
    pub fn outcome(&self) -> Option<Outcome> {
        if let Phase::Finished(outcome) = self.phase { Some(outcome) } else { None }
    }

    /// Whether all bytes have landed here and match the digest.
    pub fn is_verified(&self) -> bool {
        self.is_verified
    }

    /// The size of the content, once it is known.
    pub fn size_bytes(&self) -> Option<u64> {
        self.size_bytes
    }

    /// How many bytes have landed without a gap and are hashed.
    pub fn landed_bytes(&self) -> u64 {
        self.landed
    }

    /// Whether all of it is verified before the first byte is sent. This can change while the size is unknown, since
    /// the content may turn out to be larger.
    pub fn is_whole_first(&self) -> bool {
        self.size_bytes.unwrap_or(self.landed) <= self.settings.whole_bytes
    }

    /// Whether answers may begin: at once for large content, and for small content once all of it may be sent.
    pub fn may_begin(&self) -> bool {
        !self.is_whole_first() || self.is_late || (self.is_verified && self.outcome().is_some())
    }

    /// How many bytes may still land in order, up to the end or up to the next part ahead.
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
            (_, size) => size.unwrap_or(self.landed).saturating_sub(self.settings.held_back_bytes),
        };
        Reach::new(self.landed, self.ahead.iter().map(|part| part.start..part.end), limit)
    }

    /// The next state after `event`, and what the driver must do, in this order.
    #[must_use]
    pub fn step(mut self, event: Event) -> (Self, Vec<Effect>) {
        use {Effect as X, Event as E, Phase as P};
        let effects = match (self.phase, event) {
            (P::Looking, E::Found) => self.on_found(),
            // A store that cannot be asked counts as a miss: readers are still served, but not from the store.
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
            (P::LookingAgain, E::Found) => [vec![X::ReleaseLease], self.on_found()].concat(),
            (P::LookingAgain, E::Absent | E::StoreAway) if self.is_verified => {
                self.enter(P::Committing, [X::BeginUpload, X::Commit])
            }
            (P::LookingAgain, E::Absent | E::StoreAway) => {
                self.source = Source::Upstream;
                self.enter(P::Leading, [X::BeginUpload, X::Fetch(self.landed)])
            }
            (P::Leading | P::Reading, E::Sized(size)) => self.on_size(size),
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
            // The answer came too late and changes nothing.
            _ => Vec::new(),
        };
        (self, effects)
    }

    /// Handles events while another node leads.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "an answer to a question that no longer matters changes nothing"
    )]
    fn follow(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Sized(_) | Event::Landed(_) if self.is_verified => Vec::new(),
            Event::Sized(size) => self.on_size(size),
            Event::Landed(bytes) => self.land(bytes),
            Event::LeaderEnded => self.enter(Phase::Looking, [Effect::Look]),
            Event::LeaderRejected if !self.is_verified => self.begin_again(Vec::new()),
            // What is verified here is right, whatever happened to the leader.
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

    /// Ends everything that is under way.
    fn stop(&mut self, outcome: Outcome) -> Vec<Effect> {
        self.finish(outcome, [Effect::HangUp, Effect::StopAhead, Effect::AbortUpload, Effect::ReleaseLease])
    }

    /// Releases the verified tail because storing takes long. Until then it is held back.
    fn is_late(&mut self) -> Vec<Effect> {
        self.is_late = self.is_verified;
        Vec::new()
    }

    fn fail(&mut self) -> Vec<Effect> {
        self.stop(Outcome::Failed)
    }

    /// The store has the content. If no reader has been answered from this fill yet, readers go to the store; otherwise
    /// this fill reads the rest from there.
    fn on_found(&mut self) -> Vec<Effect> {
        if self.is_verified {
            return self.enter(Phase::Committing, [Effect::Link]);
        }
        if self.landed == 0 && self.size_bytes.is_none() {
            return self.finish(Outcome::Stored, []);
        }
        self.source = Source::Store;
        self.enter(Phase::Reading, [Effect::ReadStore(self.landed)])
    }

    fn on_size(&mut self, size: u64) -> Vec<Effect> {
        if self.size_bytes.is_some_and(|known| known != size) {
            return self.fail();
        }
        self.size_bytes = Some(size);
        self.land(0)
    }

    /// Counts bytes that have landed in order.
    fn land(&mut self, bytes: u64) -> Vec<Effect> {
        self.landed = self.landed.saturating_add(bytes);
        if self.size_bytes.is_some_and(|size| self.landed > size) {
            return self.fail();
        }
        if self.size_bytes == Some(self.landed) {
            return match self.source {
                // The leader has not yet said whether the content is stored.
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

    /// Landed bytes have reached the first part ahead: hash that part, and continue behind it.
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
        let is_let_go = at < size.saturating_sub(self.settings.held_back_bytes) && !self.is_whole_first();
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
        // An empty part that the hash has reached is dropped.
        let landed = self.landed;
        self.ahead.retain(|part| part.end > part.start || part.start <= landed);
        Vec::new()
    }

    /// Content that was found in the store is missing there. This counts as a miss, unless it is found again and still
    /// gives nothing new.
    fn vanish(&mut self) -> Vec<Effect> {
        if self.vanished_at.replace(self.landed) == Some(self.landed) {
            return self.fail();
        }
        self.enter(Phase::Looking, [Effect::HangUp, Effect::Look])
    }

    /// The landed bytes are wrong. If no reader has seen any of them, there is a second attempt.
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
