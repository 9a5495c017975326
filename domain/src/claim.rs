//! The decisions of a claim on a digest. A claim makes sure that a pointer names content, which then stays as long as
//! somebody needs it.
//!
//! A claimer reads the pointer, corrects it, makes its event durable, writes its link, and **reads the pointer again**.
//! A collector may have condemned or erased the content between the first read and the link, and only a collector that
//! condemns the content after the link was written is certain to see the link. So the claimer answers nobody before the
//! second read has shown that the claim holds.
//!
//! A promise (a 201, a mount, a 200 to a pusher's HEAD) counts from the second read, not from the answer, since a
//! process may be suspended in between.
//!
//! All functions are pure and total. The planes carry out what they return, and a model checker runs them in every
//! order of steps (`collection/model.rs`), which also states what holds for claims and [collection](crate::collection)
//! together.

#[cfg(test)]
mod tests;

use std::time::Duration;

/// How long content stays at least after a promise (a 201, a mount, a 200 to a pusher's HEAD), unless a setting changes
/// that.
pub const PUSH_TIME: Duration = Duration::from_hours(1);

/// The age beyond which content gets no pointer any more, counted from the beginning of its upload. The
/// [sweep](crate::collection::SWEEP_AGE) deletes only content that is much older, so that no node's clock decides.
pub const POINTABLE_TIME: Duration = Duration::from_hours(24);

/// How long ago the last claim must be for a new claim to update its time.
pub fn renewal_time(push_time: Duration) -> Duration {
    push_time / 4
}

/// The state of a digest's pointer; `O` names an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pointer<O> {
    /// There is no pointer.
    Absent,
    /// The content exists.
    Live {
        /// The object that holds it.
        object: O,
        /// How long ago it was claimed, by the store's clock: since the record's time or the store's time of the
        /// record, whichever is later.
        claimed_ago: Duration,
    },
    /// The content exists, and will be erased unless somebody claims it.
    Condemned {
        /// The object that holds it.
        object: O,
    },
    /// There is no content.
    Erased {
        /// The object that will be deleted, or was deleted.
        object: Option<O>,
    },
    /// The record is damaged.
    Unreadable,
}

impl<O: Copy + PartialEq> Pointer<O> {
    /// The object that readers use.
    pub fn served_object(&self) -> Option<O> {
        match *self {
            Self::Live { object, .. } | Self::Condemned { object } => Some(object),
            Self::Absent | Self::Erased { .. } | Self::Unreadable => None,
        }
    }

    /// The object that the record names, even if it is to be deleted.
    pub fn named_object(&self) -> Option<O> {
        match *self {
            Self::Live { object, .. } | Self::Condemned { object } => Some(object),
            Self::Erased { object } => object,
            Self::Absent | Self::Unreadable => None,
        }
    }
}

/// Who claims a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claimer {
    /// A fill: it has the bytes once it has fetched them.
    Fill,
    /// A push of a blob: it has the bytes.
    Push,
    /// A mount from another repository: it has no bytes.
    Mount,
    /// A HEAD by a caller who may push: it has no bytes, and no link.
    Head,
    /// A manifest's commit, for its own digest: it has the bytes.
    Manifest,
    /// A manifest's commit, for a digest that it names: it has no bytes.
    Named,
}

impl Claimer {
    /// Whether the store is asked whether the object of a live pointer is there, with the right size.
    pub fn checks_object(self) -> bool {
        matches!(self, Self::Push | Self::Mount | Self::Head)
    }

    /// Whether it writes anew when the digest was claimed. What a manifest names needs no such time: the manifest's
    /// event names it.
    fn renews(self) -> bool {
        self != Self::Named
    }

    /// Whether it can bring the bytes at this moment; a fill has to fetch them first.
    fn has_bytes(self) -> bool {
        matches!(self, Self::Push | Self::Manifest)
    }
}

/// Content that a claimer has stored itself. Once a write of a pointer that names it was done, it is the pointer's, and
/// the claimer has none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Own<O> {
    /// Where it is.
    pub object: O,
    /// How long ago it was begun; in a push, how long ago its session was last taken.
    pub begun_ago: Duration,
    /// Whether a pointer has named it.
    pub named: Named,
}

/// Whether a pointer has named content. What was named once is never named by another write: a collector may have
/// erased the pointer and deleted the content in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Named {
    /// No, and no write that names it is under way: each one that was sent was definitely lost.
    No,
    /// A write that names it ended with an [unknown](Written::Unknown) outcome, and the record that is there now is
    /// still the one that this write expects: it was not done so far.
    NotYet,
    /// The same, but the record has changed since.
    Perhaps,
}

/// A pointer's new value. It replaces the record that was read, and only that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change<O> {
    /// Live with this object, claimed now.
    Live(O),
    /// Condemned now.
    Condemned(O),
    /// Erased; this object, if any, is to go.
    Erased(Option<O>),
    /// The same as it says, under a new write id.
    Rewritten,
}

/// How a conditional write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Written {
    /// It was done.
    Done,
    /// It was not done and never will be: the record had changed.
    Lost,
    /// Nobody knows, and it may still happen.
    Unknown,
}

/// What follows from the first look at a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Look<O> {
    /// Go on with this object: check it where [`Claimer::checks_object`] says so, then write event and link.
    Use(O),
    /// Write this in place of what was read. If it was [done](Written::Done), go on with the object that it names;
    /// otherwise look again.
    Write(Change<O>),
    /// Store the bytes as new content, then look again. A push whose bytes were only in content that is lost fails, and
    /// its client begins anew.
    Store,
    /// Nobody here has the bytes: a mount begins a session, a HEAD is answered 404, a manifest
    /// MANIFEST_BLOB_UNKNOWN (see [`give_up`]), a fill fetches.
    Missing,
    /// The record is damaged, and this claimer cannot mend it: 503.
    Refuse,
}

/// What a claimer does about a pointer that it has just read from the store.
pub fn look<O: Copy + PartialEq>(
    pointer: &Pointer<O>,
    claimer: Claimer,
    own: Option<Own<O>>,
    push_time: Duration,
) -> Look<O> {
    match *pointer {
        Pointer::Live { object, claimed_ago } if is_due(claimer, claimed_ago, push_time) => {
            Look::Write(Change::Live(object))
        }
        Pointer::Live { object, .. } => Look::Use(object),
        Pointer::Condemned { object } => Look::Write(Change::Live(object)),
        Pointer::Absent | Pointer::Erased { .. } | Pointer::Unreadable => match own {
            Some(own) if own.begun_ago < POINTABLE_TIME && own.named != Named::Perhaps => {
                Look::Write(Change::Live(own.object))
            }
            // The sweep takes what came too late, or may have been named before.
            Some(_) => Look::Store,
            None if claimer.has_bytes() => Look::Store,
            None if *pointer == Pointer::Unreadable && claimer != Claimer::Fill => Look::Refuse,
            None => Look::Missing,
        },
    }
}

/// What is written where the object of a pointer is missing or wrong in the store; then the claimer looks again.
/// Never condemned: that would let the next claim bring it back.
pub fn mend<O: Copy + PartialEq>(pointer: &Pointer<O>, bad: O) -> Option<Change<O>> {
    (pointer.served_object() == Some(bad)).then_some(Change::Erased(Some(bad)))
}

/// What follows from the second look at a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Second<O> {
    /// The claim holds.
    Done,
    /// Write this in place of what was read. If it was [done](Written::Done), the claim holds; otherwise look a second
    /// time once more.
    Write(Change<O>),
    /// Begin again with the first look.
    Again,
}

/// What a claimer that goes by `object` does about the pointer that it has read after its link was written.
pub fn look_again<O: Copy + PartialEq>(
    pointer: &Pointer<O>,
    object: O,
    claimer: Claimer,
    push_time: Duration,
) -> Second<O> {
    match *pointer {
        Pointer::Live { object: seen, claimed_ago } if seen == object => {
            if is_due(claimer, claimed_ago, push_time) {
                Second::Write(Change::Live(object))
            } else {
                Second::Done
            }
        }
        Pointer::Condemned { object: seen } if seen == object => Second::Write(Change::Live(object)),
        Pointer::Live { .. }
        | Pointer::Condemned { .. }
        | Pointer::Absent
        | Pointer::Erased { .. }
        | Pointer::Unreadable => Second::Again,
    }
}

fn is_due(claimer: Claimer, claimed_ago: Duration, push_time: Duration) -> bool {
    claimer.renews() && claimed_ago > renewal_time(push_time)
}

/// Whether a claimer may delete content that it has stored itself: after definite answers to all its writes of the
/// pointer, and a later read that shows another object. After an unknown outcome it is left to the sweep.
pub fn may_drop<O: Copy + PartialEq>(own: &Own<O>, pointer: &Pointer<O>) -> bool {
    own.named == Named::No && pointer.served_object().is_some_and(|object| object != own.object)
}

/// What a commit has just read in place of its own link.
///
/// A commit always writes its link after its first look, also where another commit's link of the same manifest is live:
/// that one may have found nothing at its own look, and be about to put its tombstone there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnLink {
    /// Live, as this commit wrote it: it carries the id of this commit, which stays when another one fences it.
    Ours,
    /// Live, by another commit of the same manifest.
    Others,
    /// A tombstone, or nothing.
    Gone,
}

/// How a commit's second look at its link ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecondLink {
    /// The link holds.
    Done,
    /// Look at the pointers once more, and then at the link.
    LookOnceMore,
    /// Begin again.
    Again,
}

/// Decides about the link that a commit finds after its second look at the pointers; `stood` says whether the same
/// record was there before that look.
///
/// Our own link was there all the time, since no record comes back. Another commit's link is as good if it was there
/// while we found the content: from then on the content is named, and that commit finds it at its own second look. If
/// it was not, our link may have been deleted, and the content condemned, before that link came.
pub fn look_again_at_link(link: OwnLink, stood: bool) -> SecondLink {
    match link {
        OwnLink::Ours => SecondLink::Done,
        OwnLink::Others if stood => SecondLink::Done,
        OwnLink::Others => SecondLink::LookOnceMore,
        OwnLink::Gone => SecondLink::Again,
    }
}

/// What a commit does about its link before it answers MANIFEST_BLOB_UNKNOWN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GiveUp {
    /// Nothing: answer.
    Answer,
    /// Make an event durable, and put a tombstone in place of what was read; read again unless that was done.
    Tombstone,
    /// Write what was read anew, under a new write id but with the id of its commit (a tombstone, if there was
    /// nothing), so that a late write of ours finds another record; read again unless that was done.
    Fence,
}

/// What a commit that cannot go on does about its link; `any_unknown` says whether the outcome of any of its own
/// writes of the link is not known.
pub fn give_up(link: OwnLink, any_unknown: bool) -> GiveUp {
    match link {
        OwnLink::Ours => GiveUp::Tombstone,
        OwnLink::Others | OwnLink::Gone if any_unknown => GiveUp::Fence,
        OwnLink::Others | OwnLink::Gone => GiveUp::Answer,
    }
}
