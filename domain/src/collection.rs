//! What a collector and the sweep do next: which content nothing needs any more, and when it may go.
//!
//! A collector **condemns** a pointer that nobody has claimed for a while and that nothing names, waits, and then
//! **erases** it, in this order: a complete comparison of store and index that began after it had read the condemned
//! record; every event that waits; the index once more, in a transaction that finds its comparison as ended. Each step
//! replaces only the record that was read, so any number of collectors may run, and any claim in between wins.
//!
//! The **sweep** deletes content that no pointer ever came to name. It fences the digest's pointer first, so that no
//! write that was decided before can name that content after it is gone.
//!
//! What holds of claims and collection together, by the names under which the model checks it:
//!
//! - **C1** what was answered (201, a mount, 200 to a pusher's HEAD; a manifest's commit) has its content, for as long as
//!   was promised;
//! - **C2** a pointer that readers follow names an object that is there;
//! - **C3** a commit that was refused leaves no link behind, later neither;
//! - **C4** from wherever they are interrupted, the sweep and a collector alone remove all that no pointer serves.

#[cfg(test)]
mod model;
#[cfg(test)]
mod mutants;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::claim::{Change, Pointer, renewal_time};

/// How long what is condemned stays at least, unless a setting or an operator says otherwise.
pub const GRACE_TIME: Duration = Duration::from_hours(24);

/// The sweep leaves younger content alone.
pub const SWEEP_AGE: Duration = Duration::from_hours(7 * 24);

/// How long an erased pointer stays at least before it is removed. Only a write that expects no record can be fooled by
/// a removal, so this is also how long such a write may be under way at most.
pub const REMOVAL_AGE: Duration = Duration::from_hours(30 * 24);

/// How long a digest has to be unclaimed before it may be condemned.
pub fn unclaimed_time(push_time: Duration) -> Duration {
    push_time.saturating_add(renewal_time(push_time))
}

/// Whether the index knows of anything that needs a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Naming {
    /// A manifest link of it, or a manifest that names it.
    Named,
    /// Nothing.
    Unnamed,
}

/// What becomes of a pointer that a collector has read, if anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Candidate<O> {
    /// Leave it alone.
    Leave,
    /// Condemn it, if the index says that nothing names the digest.
    Condemn(O),
    /// Compare store and index, once the grace time has passed; then ask for a [`Verdict`].
    Compare(O),
    /// Delete this object, which nothing serves any more; then the record may be [removed](may_remove).
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

/// What is written in place of a live record that was read, once the index has been asked.
pub fn condemn<O>(object: O, naming: Naming) -> Option<Change<O>> {
    (naming == Naming::Unnamed).then_some(Change::Condemned(object))
}

/// What the index's last transaction found of the comparison that a collector has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Comparison {
    /// Its row, with the mark that all of it is written. The mark is written after the last repair, so a database that
    /// has lost a repair has lost the mark as well.
    Ended,
    /// Its row without the mark, or no row: the database was set back, or another comparison has begun since.
    NotEnded,
}

/// What a collector knows before it erases.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// What has become of the comparison that began after the condemned record was read.
    pub comparison: Comparison,
    /// Whether every event that waited after the comparison is applied.
    pub events_applied: bool,
    /// What the same transaction says of the digest. What an event has un-named since the comparison began still counts as
    /// named: an event comes before its record, which may never be written.
    pub naming: Naming,
}

/// What becomes of a condemned pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict<O> {
    /// Write this in place of the record that was read before the comparison began.
    Write(Change<O>),
    /// Read the pointer again, and compare again.
    StartAgain,
    /// An event cannot be applied: collection stops, and shows it.
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
/// whether the object that it names is still there.
pub fn may_remove<O>(pointer: &Pointer<O>, is_stored: bool, age: Duration) -> bool {
    matches!(pointer, Pointer::Erased { .. }) && !is_stored && age >= REMOVAL_AGE
}

/// What the sweep does about content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sweep<O> {
    /// Leave it alone.
    Spare,
    /// Write this in place of what was read. If that was done, read the pointer once more and [decide](may_delete);
    /// otherwise begin again.
    Fence(Change<O>),
}

/// What the sweep does about content of this age, whose digest's pointer says this; `in_session` says whether a push
/// that is under way names it.
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

/// Whether the sweep may delete content, now that its fence stands.
pub fn may_delete<O: Copy + PartialEq>(object: O, pointer: &Pointer<O>) -> bool {
    *pointer != Pointer::Unreadable && pointer.named_object() != Some(object)
}
