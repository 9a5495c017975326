//! What a collector and the sweep do next: they find the content that nothing needs any more, and decide when it may be
//! deleted.
//!
//! A collector **condemns** a pointer that nobody has claimed for a while and that nothing names. It waits, and then
//! **erases** it after three steps, in this order: a complete comparison of store and index that began after the
//! collector had read the condemned record; applying every waiting event; asking the index once more, in a transaction
//! that finds its comparison ended. Each step replaces only the record that was read, so any number of collectors may
//! run, and any claim in between wins.
//!
//! The **sweep** deletes content that no pointer ever came to name. It first fences the digest's pointer, so that no
//! earlier decided write can name the content after it is deleted.
//!
//! The properties of claims and collection together, under the names that the model uses:
//!
//! - **C1** after a promise (a 201, a mount, a 200 to a pusher's HEAD; a manifest's commit), the content exists for as
//!   long as was promised;
//! - **C2** a pointer that readers follow names an object that exists;
//! - **C3** a refused commit leaves no link behind, not even later;
//! - **C4** wherever they are interrupted, the sweep and a collector alone remove everything that no pointer serves.

#[cfg(test)]
mod model;
#[cfg(test)]
mod mutants;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::claim::{Change, Pointer, renewal_time};

/// How long a condemned pointer stays at least, unless a setting or an operator says otherwise.
pub const GRACE_TIME: Duration = Duration::from_hours(24);

/// The sweep leaves content younger than this alone.
pub const SWEEP_AGE: Duration = Duration::from_hours(7 * 24);

/// How long an erased pointer stays at least before it is removed. Only a write that expects no record can be misled by
/// a removal, so such a write must not be under way for longer than this.
pub const REMOVAL_AGE: Duration = Duration::from_hours(30 * 24);

/// How long a digest has to be unclaimed before it may be condemned.
pub fn unclaimed_time(push_time: Duration) -> Duration {
    push_time.saturating_add(renewal_time(push_time))
}

/// Whether anything in the index needs a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Naming {
    /// A manifest link of it, or a manifest that names it.
    Named,
    /// Nothing.
    Unnamed,
}

/// What a collector does about a pointer that it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Candidate<O> {
    /// Leave it alone.
    Leave,
    /// Condemn it, if the index says that nothing names the digest.
    Condemn(O),
    /// Compare store and index, once the grace time has passed; then ask for a [`Verdict`].
    Compare(O),
    /// Delete this object, which nothing serves any more; the record may then be [removed](may_remove).
    Delete(O),
}

/// What a collector does about a pointer that it has just read.
pub fn examine<O: Copy + PartialEq>(pointer: &Pointer<O>, push_time: Duration) -> Candidate<O> {
    match *pointer {
        Pointer::Live { object, claimed_ago } if claimed_ago >= unclaimed_time(push_time) => Candidate::Condemn(object),
        Pointer::Condemned { object } => Candidate::Compare(object),
        Pointer::Erased { object: Some(object) } => Candidate::Delete(object),
        Pointer::Live { .. } | Pointer::Absent | Pointer::Erased { object: None } | Pointer::Unreadable => {
            Candidate::Leave
        }
    }
}

/// What to write in place of a live record that was read, given the answer of the index.
pub fn condemn<O>(object: O, naming: Naming) -> Option<Change<O>> {
    (naming == Naming::Unnamed).then_some(Change::Condemned(object))
}

/// What the last transaction of the index found of the collector's comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Comparison {
    /// Its row carries the mark of completion. The mark is written after the last repair, so a database that has lost a
    /// repair has lost the mark as well.
    Ended,
    /// Its row has no mark or is gone: the database was restored to an earlier state, or another comparison has begun
    /// since.
    NotEnded,
}

/// What a collector knows before it erases.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// The state of the comparison that began after the condemned record was read.
    pub comparison: Comparison,
    /// Whether every event that was waiting after the comparison has been applied.
    pub events_applied: bool,
    /// What the same transaction says about the digest. A digest that an event has un-named since the comparison began
    /// still counts as named: an event is written before its record, and that record may never be written.
    pub naming: Naming,
}

/// What happens to a condemned pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict<O> {
    /// Write this in place of the record that was read before the comparison began.
    Write(Change<O>),
    /// Read the pointer again, and compare again.
    StartAgain,
    /// An event cannot be applied: collection stops, and reports it.
    Stop,
}

/// What a collector does about a condemned pointer after the comparison.
pub fn judge<O>(object: O, evidence: &Evidence) -> Verdict<O> {
    match evidence {
        Evidence { comparison: Comparison::NotEnded, .. } => Verdict::StartAgain,
        Evidence { events_applied: false, .. } => Verdict::Stop,
        Evidence { naming: Naming::Named, .. } => Verdict::Write(Change::Live(object)),
        Evidence { naming: Naming::Unnamed, .. } => Verdict::Write(Change::Erased(Some(object))),
    }
}

/// Whether a pointer may be removed, by a deletion that is conditional on the record that was read; `is_stored` says
/// whether the object that it names still exists.
pub fn may_remove<O>(pointer: &Pointer<O>, is_stored: bool, age: Duration) -> bool {
    matches!(pointer, Pointer::Erased { .. }) && !is_stored && age >= REMOVAL_AGE
}

/// What the sweep does about content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sweep<O> {
    /// Leave it alone.
    Spare,
    /// Replace what was read with this. If that write is done, read the pointer once more and [decide](may_delete);
    /// otherwise start over.
    Fence(Change<O>),
}

/// What the sweep does about content of this age, given the pointer of its digest; `in_session` says whether an
/// unfinished push names the content.
pub fn sweep<O: Copy + PartialEq>(object: O, age: Duration, pointer: &Pointer<O>, in_session: bool) -> Sweep<O> {
    if age < SWEEP_AGE || in_session || pointer.named_object() == Some(object) {
        return Sweep::Spare;
    }
    match pointer {
        Pointer::Unreadable => Sweep::Spare,
        Pointer::Absent => Sweep::Fence(Change::Erased(None)),
        Pointer::Live { .. } | Pointer::Condemned { .. } | Pointer::Erased { .. } => Sweep::Fence(Change::Rewritten),
    }
}

/// Whether the sweep may delete content now that its fence is written.
pub fn may_delete<O: Copy + PartialEq>(object: O, pointer: &Pointer<O>) -> bool {
    *pointer != Pointer::Unreadable && pointer.named_object() != Some(object)
}
