//! Deliberate bugs in the state machine, and the property that each breaks. A model that misses them is worthless.

#![expect(clippy::wildcard_enum_match_arm, reason = "what a test does not name goes on as it would")]

use super::model::Setup;
use super::*;

/// A machine with one bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mutant {
    /// The machine as it is.
    None,
    /// Commits what has landed without comparing it with the digest.
    CommitsUnverified,
    /// Gives readers the last bytes as they land.
    HoldsNothingBack,
    /// Believes what a leader sends.
    DoesNotRehash,
    /// Takes over a hash from another node together with its bytes.
    TrustsMidstate,
    /// Deletes content by its digest when a fill fails.
    DeletesByKey,
    /// Gives back any lease, whoever owns it.
    ReleasesAnyLease,
    /// Keeps waiting for a leader that is lost.
    NeverTakesOver,
    /// Does not abort the upload of a failed fill.
    ForgetsUploads,
    /// Leads as soon as it has the lease.
    DoesNotLookAgain,
    /// Counts what has landed ahead as hashed.
    ServesUnhashed,
    /// Fetches again what has landed ahead.
    FetchesTwice,
    /// Hands over without giving back the lease and aborting the upload.
    LeavesWithoutWord,
    /// Waits for Redis to come back.
    NeverBypasses,
}

/// Every mutant, the property that it breaks, and the setup that shows it.
pub(super) fn all() -> Vec<(Mutant, &'static str, Setup)> {
    let core = Setup::core(2, 1);
    let ranges = Setup { chunks: 4, ranges: true, redis: false, ..Setup::core(1, 1) };
    let drain = Setup { drain: true, redis: false, ..Setup::core(2, 0) };
    vec![
        (Mutant::CommitsUnverified, "S1", core),
        (Mutant::HoldsNothingBack, "S2", core),
        (Mutant::DoesNotRehash, "S2", core),
        (Mutant::TrustsMidstate, "S1", Setup::core(2, 2)),
        (Mutant::TrustsMidstate, "S2", Setup::core(2, 2)),
        (Mutant::DeletesByKey, "S3", Setup::core(2, 2)),
        (Mutant::ReleasesAnyLease, "E3", core),
        (Mutant::NeverTakesOver, "L1", core),
        (Mutant::ForgetsUploads, "L1", core),
        (Mutant::DoesNotLookAgain, "E1", Setup::core(2, 0)),
        (Mutant::ServesUnhashed, "S2", ranges),
        (Mutant::FetchesTwice, "E1", Setup { faults: 0, ..ranges }),
        (Mutant::LeavesWithoutWord, "L1", drain),
        (Mutant::NeverBypasses, "L1", core),
    ]
}

impl Mutant {
    pub(super) fn start(self, settings: FillSettings) -> (Fill, Vec<Effect>) {
        Fill::start(settings)
    }

    pub(super) fn step(self, mut fill: Fill, event: Event) -> (Fill, Vec<Effect>) {
        let before = fill.clone();
        match (self, fill.phase, event) {
            (Self::NeverTakesOver, Phase::Following, Event::LeaderLost)
            | (Self::NeverBypasses, Phase::Claiming, Event::Uncoordinated) => return (fill, Vec::new()),
            (Self::DoesNotLookAgain, Phase::Claiming, Event::Granted) => {
                fill.phase = Phase::Leading;
                let from = fill.landed;
                return (fill, vec![Effect::BeginUpload, Effect::Fetch(from)]);
            }
            (Self::FetchesTwice, Phase::Leading, Event::Landed(bytes)) => {
                let landed = fill.landed + bytes;
                fill.ahead.retain(|part| part.start > landed);
                fill.landed += bytes;
                return fill.step(Event::Landed(0));
            }
            _ => {}
        }
        let (mut fill, mut effects) = fill.step(event);
        match self {
            Self::CommitsUnverified if before.phase == Phase::Leading && fill.phase == Phase::Verifying => {
                fill.phase = Phase::Committing;
                effects.retain(|effect| *effect != Effect::Verify);
                effects.push(Effect::Commit);
            }
            Self::DoesNotRehash if before.phase == Phase::Following && fill.phase == Phase::Verifying => {
                fill.phase = Phase::Finished(Outcome::Stored);
                effects.clear();
            }
            Self::ForgetsUploads if matches!(fill.phase, Phase::Finished(Outcome::Failed)) => {
                effects.retain(|effect| *effect != Effect::AbortUpload);
            }
            Self::LeavesWithoutWord if fill.phase == Phase::Finished(Outcome::HandedOver) => effects.clear(),
            Self::ServesUnhashed => {
                if let Some(Effect::Hash(part)) = effects.last().cloned() {
                    effects.pop();
                    let (next, more) = self.step(fill, Event::Hashed(part.end - part.start));
                    effects.extend(more);
                    return (next, effects);
                }
            }
            _ => {}
        }
        (fill, effects)
    }

    /// The offset up to which a reader at `at` may read.
    pub(super) fn until(self, fill: &Fill, at: u64) -> u64 {
        match self {
            Self::HoldsNothingBack => fill.landed.max(at),
            _ => fill.reach().until(at),
        }
    }
}
