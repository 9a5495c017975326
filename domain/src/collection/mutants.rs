//! Deliberate bugs in claims and collection, and the property that each breaks. A model that misses them is worthless.

use super::model::{Index, Object, Run, Setup};
use super::*;
use crate::claim::{
    Claimer, GiveUp, Look, Named, Own, OwnLink, PUSH_TIME, Second, SecondLink, give_up, look, look_again,
    look_again_at_link,
};

/// Decisions with one bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mutant {
    /// The decisions as they are.
    None,
    /// A commit answers once its link is written.
    LooksOnce,
    /// Records carry no write id, so two records with equal content have equal versions.
    VersionsRepeat,
    /// Erases a condemned pointer by what the index says, without a comparison.
    ErasesUncompared,
    /// Removes an erased pointer without checking what it says by now.
    RemovesBlindly,
    /// Removes an erased pointer while a write that expects none may be under way.
    RemovesAtOnce,
    /// Drops own content when it does not know whether a pointer names it.
    DropsInDoubt,
    /// Sweeps without writing the pointer anew.
    SweepsWithoutFence,
    /// Gives old content a pointer.
    PointsOldContent,
    /// Names its content anew after the pointer that named it is erased.
    NamesTwice,
    /// Never writes the time of the last claim anew.
    NeverRenews,
    /// Accepts a comparison whose row says that it has begun, not that it has ended.
    TrustsBegunRuns,
    /// Goes on repairing after another comparison has begun.
    RepairsOvertaken,
    /// Believes that the record of an un-naming event was written.
    TrustsUnnaming,
    /// A commit writes no link where another commit's link of the same manifest is live.
    ReusesLinks,
    /// A commit is content with another's link, whenever that came.
    TrustsOthersLinks,
    /// Refuses, and leaves its link.
    LeavesItsLink,
    /// Refuses while a write of its link may still arrive.
    RefusesInDoubt,
}

/// Every mutant, the property that it breaks, and the setup that shows it.
pub(super) fn all() -> Vec<(Mutant, &'static str, Setup)> {
    let writer = Setup { writers: 1, ..Setup::NOBODY };
    let commit = Setup { commits: 1, collectors: 1, ..Setup::NOBODY };
    let restored = Setup { restore: true, ..commit };
    let commits = Setup { writers: 1, commits: 2, collectors: 1, ..Setup::NOBODY };
    vec![
        (Mutant::LooksOnce, "C1", commit),
        (Mutant::VersionsRepeat, "C1", Setup { collectors: 2, ..commit }),
        (Mutant::ErasesUncompared, "C1", restored),
        (Mutant::RemovesBlindly, "C1", Setup { collectors: 1, ..writer }),
        (Mutant::RemovesAtOnce, "C2", Setup { writers: 2, collectors: 1, sweep: true, ..writer }),
        (Mutant::DropsInDoubt, "C2", Setup { collectors: 1, ..writer }),
        (Mutant::SweepsWithoutFence, "C2", Setup { writers: 1, collectors: 1, sweep: true, ..writer }),
        (Mutant::PointsOldContent, "C2", Setup { writers: 1, collectors: 1, sweep: true, ..writer }),
        (Mutant::NamesTwice, "C2", Setup { collectors: 1, ..writer }),
        (Mutant::NeverRenews, "C1", Setup { collectors: 1, ..writer }),
        (Mutant::TrustsBegunRuns, "C1", restored),
        (Mutant::RepairsOvertaken, "C1", Setup { collectors: 2, ..commit }),
        (Mutant::TrustsUnnaming, "C1", Setup { deletes: true, ..commit }),
        (Mutant::ReusesLinks, "C1", Setup { faults: false, objects: 2, events: 3, ..commits }),
        (Mutant::LeavesItsLink, "C3", commit),
        (Mutant::RefusesInDoubt, "C3", commit),
    ]
}

impl Mutant {
    pub(super) fn look(self, pointer: &Pointer<Object>, claimer: Claimer, own: Option<Own<Object>>) -> Look<Object> {
        let push_time = if self == Self::NeverRenews { Duration::MAX } else { PUSH_TIME };
        let own = own.map(|own| {
            let begun_ago = if self == Self::PointsOldContent { Duration::ZERO } else { own.begun_ago };
            let named = if self == Self::NamesTwice { Named::No } else { own.named };
            Own { begun_ago, named, ..own }
        });
        look(pointer, claimer, own, push_time)
    }

    pub(super) fn look_again(self, pointer: &Pointer<Object>, object: Object, claimer: Claimer) -> Second<Object> {
        let push_time = if self == Self::NeverRenews { Duration::MAX } else { PUSH_TIME };
        look_again(pointer, object, claimer, push_time)
    }

    /// What a writer still owns once a pointer names its content.
    pub(super) fn own_when_named(self, own: Option<(Object, Named)>) -> Option<(Object, Named)> {
        own.filter(|_| self == Self::NamesTwice)
    }

    pub(super) fn look_again_at_link(self, link: OwnLink, stood: bool) -> SecondLink {
        look_again_at_link(link, stood || self == Self::TrustsOthersLinks)
    }

    pub(super) fn give_up(self, link: OwnLink, any_unknown: bool) -> GiveUp {
        if self == Self::LeavesItsLink {
            return GiveUp::Answer;
        }
        give_up(link, any_unknown && self != Self::RefusesInDoubt)
    }

    /// What the transaction before the erasure finds.
    pub(super) fn evidence(self, index: &Index, at: usize) -> Evidence {
        let has_ended = match index.run(at) {
            Run::Ended => true,
            Run::Begun => self == Self::TrustsBegunRuns,
            Run::None => false,
        };
        let comparison = if has_ended { Comparison::Ended } else { Comparison::NotEnded };
        let was_named = index.is_unnamed_since(at) && self != Self::TrustsUnnaming;
        let naming = if index.is_named() || was_named { Naming::Named } else { Naming::Unnamed };
        Evidence { comparison, events_applied: true, naming }
    }
}
