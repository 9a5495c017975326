//! All that the actors share, and where each of them is.

use super::*;

pub(in crate::collection) type Object = u8;

/// Stands for an object that only a record which has changed since has named.
pub(super) const GONE: Object = 7;

/// A quarter of the push time is the unit of time: what was claimed five ago may be condemned.
pub(super) const OLDEST: u8 = 5;
/// For how many quarters an answer is good.
pub(super) const PROMISE: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) enum Record {
    Absent,
    Live(Object),
    Condemned(Object),
    Erased(Option<Object>),
}

/// A record that an actor has read. Whether it is still the current one stands for its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) struct Seen {
    pub(super) record: Record,
    pub(super) fresh: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) enum Write {
    Change(Change<Object>),
    Remove,
}

/// A write of the pointer that is decided and not sent yet, or sent and not arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) struct Plan {
    pub(super) seen: Seen,
    pub(super) write: Write,
}

/// Where a claimer is in its walk, if a write of the pointer is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) enum Then {
    First,
    Second(Object),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) enum WriterStep {
    Look,
    Store,
    Write(Plan, Then),
    Drop(Object),
    Second(Object),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) struct Writer {
    pub(super) claimer: Claimer,
    pub(super) step: WriterStep,
    pub(super) own: Option<(Object, Named)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) enum CommitStep {
    Look,
    Write(Plan, Then),
    Event(Object),
    Link { object: Object, fresh: bool, revision: u8 },
    Second(Object),
    SecondLink(Object),
    GiveUp,
    Undo { fresh: bool, link: Link },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) struct Commit {
    pub(super) step: CommitStep,
    /// Whether the outcome of a write of its link is not known.
    pub(super) any_unknown: bool,
    /// The revision of another's link that was there before the last look at the pointer.
    pub(super) others_link: Option<u8>,
}

impl Commit {
    pub(super) const NEW: Self = Self { step: CommitStep::Look, any_unknown: false, others_link: None };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) enum CollectorStep {
    Look,
    Ask(Seen, Object),
    Begin(Seen, Object),
    Compare(Seen, Object),
    Repair { seen: Seen, object: Object, is_live: bool, revision: u8 },
    Apply(Seen, Object),
    AskAgain(Seen, Object),
    Write(Plan),
    Delete(Object),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) enum SweepStep {
    Look,
    Fence(Object, Plan),
    Again(Object),
    Delete(Object),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) enum LinkState {
    Absent,
    Live,
    Tombstone,
}

/// Whose write a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) enum By {
    /// A commit that is under way.
    Commit(u8),
    /// It does not matter any more.
    Nobody,
    /// A commit that was refused.
    Refused,
}

/// The link of the manifest that names the digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) struct Link {
    pub(super) state: LinkState,
    pub(super) by: By,
    pub(super) revision: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) enum Run {
    None,
    Begun,
    Ended,
}

/// What Postgres knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::collection) struct Index {
    pub(super) is_named: bool,
    pub(super) revision: u8,
    /// Whose comparison may repair.
    pub(super) comparing: Option<u8>,
    pub(super) runs: [Run; 2],
    /// Whether an event has un-named the digest since the run began.
    pub(super) unnamed_since: [bool; 2],
}

impl Index {
    pub(in crate::collection) fn run(&self, at: usize) -> Run {
        self.runs[at]
    }

    pub(in crate::collection) fn is_named(&self) -> bool {
        self.is_named
    }

    pub(in crate::collection) fn is_unnamed_since(&self, at: usize) -> bool {
        self.unnamed_since[at]
    }

    pub(super) fn forget_run(&mut self, at: usize) {
        (self.runs[at], self.unnamed_since[at]) = (Run::None, false);
        self.comparing = self.comparing.filter(|run| usize::from(*run) != at);
    }

    fn swap_runs(&mut self) {
        self.runs.swap(0, 1);
        self.unnamed_since.swap(0, 1);
        self.comparing = self.comparing.map(|run| 1 - run);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::collection) struct World {
    pub(super) pointer: Record,
    /// How many quarters ago a live pointer was claimed.
    pub(super) claimed: u8,
    /// Which objects are in the store, and which ones are old.
    pub(super) stored: u8,
    pub(super) old: u8,
    /// A write of the pointer that may still arrive. It needs the current record, so a second one changes nothing.
    pub(super) late: Option<Plan>,
    pub(super) link: Link,
    pub(super) late_link: Option<Link>,
    /// Events that wait, by their revision: that the link is there, and that it is not.
    pub(super) naming_events: u16,
    pub(super) unnaming_events: u16,
    pub(super) index: Index,
    pub(super) backup: Option<Index>,
    pub(super) is_restored: bool,
    /// For how many quarters an answer is still good.
    pub(super) promised: u8,
    /// Whether a manifest that names the digest was answered 201.
    pub(super) is_committed: bool,
    pub(super) writers: Vec<Writer>,
    pub(super) commits: Vec<Commit>,
    /// The revision of a tombstone that somebody who deletes the manifest is to write, and whether it still can be.
    pub(super) deletion: Option<(u8, bool)>,
    pub(super) collectors: Vec<CollectorStep>,
    pub(super) sweep: Option<SweepStep>,
}

pub(super) fn bit(object: Object) -> u8 {
    1 << object
}

/// As [`bit`], for revisions.
pub(super) fn mark(revision: u8) -> u16 {
    1 << revision
}

pub(super) fn revisions(events: u16) -> impl Iterator<Item = u8> {
    (0..REVISIONS).filter(move |revision| events & mark(*revision) != 0)
}

/// There are never more revisions that anybody can still tell apart.
pub(super) const REVISIONS: u8 = 16;

impl World {
    /// Content that was pushed long ago and that nothing names, and all actors before their first step.
    pub(super) fn new(setup: &Setup) -> Self {
        let writer = |claimer| Writer { claimer, step: WriterStep::Look, own: None };
        let mut writers = vec![writer(Claimer::Push); setup.writers.into()];
        writers.extend(vec![writer(Claimer::Mount); setup.mounts.into()]);
        let runs = [Run::None; 2];
        let index = Index { is_named: false, revision: 0, comparing: None, runs, unnamed_since: [false; 2] };
        Self {
            pointer: Record::Live(0),
            claimed: OLDEST,
            stored: bit(0),
            old: bit(0),
            late: None,
            link: Link { state: LinkState::Absent, by: By::Nobody, revision: 0 },
            late_link: None,
            naming_events: 0,
            unnaming_events: 0,
            index,
            backup: None,
            is_restored: false,
            promised: 0,
            is_committed: false,
            writers,
            commits: vec![Commit::NEW; setup.commits.into()],
            deletion: None,
            collectors: vec![CollectorStep::Look; setup.collectors.into()],
            sweep: setup.sweep.then_some(SweepStep::Look),
        }
    }

    /// What a read of the pointer brings.
    pub(super) fn read(&self) -> (Pointer<Object>, Seen) {
        let claimed_ago = PUSH_TIME / 4 * u32::from(self.claimed);
        let pointer = match self.pointer {
            Record::Absent => Pointer::Absent,
            Record::Live(object) => Pointer::Live { object, claimed_ago },
            Record::Condemned(object) => Pointer::Condemned { object },
            Record::Erased(object) => Pointer::Erased { object },
        };
        (pointer, Seen { record: self.pointer, fresh: true })
    }

    pub(super) fn is_stored(&self, object: Object) -> bool {
        self.stored & bit(object) != 0
    }

    pub(super) fn age(&self, object: Object) -> Duration {
        if self.old & bit(object) == 0 { Duration::ZERO } else { SWEEP_AGE }
    }

    pub(super) fn delete(&mut self, object: Object) {
        self.stored &= !bit(object);
    }

    /// Whether the record that was read is the one that a write would find.
    pub(super) fn is_current(&self, seen: Seen, mutant: Mutant) -> bool {
        match seen.record {
            // Nothing has no version.
            Record::Absent => self.pointer == Record::Absent,
            record => seen.fresh || (mutant == Mutant::VersionsRepeat && self.pointer == record),
        }
    }

    pub(super) fn land(&mut self, plan: Plan, mutant: Mutant) {
        match plan.write {
            Write::Remove => self.pointer = Record::Absent,
            Write::Change(Change::Live(object)) => (self.pointer, self.claimed) = (Record::Live(object), 0),
            Write::Change(Change::Condemned(object)) => self.pointer = Record::Condemned(object),
            Write::Change(Change::Erased(object)) => self.pointer = Record::Erased(object),
            Write::Change(Change::Rewritten) => {}
        }
        if !matches!(self.pointer, Record::Live(_)) {
            self.claimed = 0;
        }
        self.each_plan(|seen, _| seen.fresh = false);
        for (_, named) in self.writers.iter_mut().filter_map(|writer| writer.own.as_mut()) {
            if *named == Named::NotYet {
                *named = Named::Perhaps;
            }
        }
        if mutant != Mutant::VersionsRepeat {
            self.late = None;
        }
    }

    pub(super) fn land_link(&mut self, link: Link) {
        if self.link.state == LinkState::Live && link.state != LinkState::Live && link.by == By::Nobody {
            self.is_committed = false;
        }
        (self.link, self.late_link) = (link, None);
        for commit in &mut self.commits {
            if let CommitStep::Link { fresh, .. } | CommitStep::Undo { fresh, .. } = &mut commit.step {
                *fresh = false;
            }
        }
        self.deletion = self.deletion.map(|(revision, _)| (revision, false));
    }

    /// What a commit wrote is nobody's once it has ended.
    pub(super) fn disown_link(&mut self, at: u8, by: By) {
        let undone = self.commits.iter_mut().filter_map(|commit| match &mut commit.step {
            CommitStep::Undo { link, .. } => Some(link),
            _ => None,
        });
        for link in [Some(&mut self.link), self.late_link.as_mut()].into_iter().flatten().chain(undone) {
            if link.by == By::Commit(at) {
                link.by = if link.state == LinkState::Live { by } else { By::Nobody };
            }
        }
    }

    /// An event waits, before its record is written.
    pub(super) fn add_event(&mut self, revision: u8, is_naming: bool, setup: &Setup) -> Option<()> {
        let events = if is_naming { &mut self.naming_events } else { &mut self.unnaming_events };
        *events |= mark(revision);
        (self.naming_events.count_ones() + self.unnaming_events.count_ones() <= setup.events).then_some(())
    }

    pub(super) fn apply_event(&mut self, revision: u8, is_naming: bool) {
        let events = if is_naming { &mut self.naming_events } else { &mut self.unnaming_events };
        *events &= !mark(revision);
        if revision > self.index.revision {
            (self.index.is_named, self.index.revision) = (is_naming, revision);
            for at in 0..2 {
                self.index.unnamed_since[at] |= !is_naming && self.index.runs[at] != Run::None;
            }
        }
    }

    /// Each record that an actor rests on, and the write that it has decided, if any.
    fn each_plan(&mut self, mut visit: impl FnMut(&mut Seen, Option<&mut Write>)) {
        let mut visit_plan = |plan: &mut Plan| visit(&mut plan.seen, Some(&mut plan.write));
        for writer in &mut self.writers {
            if let WriterStep::Write(plan, _) = &mut writer.step {
                visit_plan(plan);
            }
        }
        for commit in &mut self.commits {
            if let CommitStep::Write(plan, _) = &mut commit.step {
                visit_plan(plan);
            }
        }
        if let Some(SweepStep::Fence(_, plan)) = &mut self.sweep {
            visit_plan(plan);
        }
        for step in &mut self.collectors {
            match step {
                CollectorStep::Write(plan) => visit(&mut plan.seen, Some(&mut plan.write)),
                CollectorStep::Ask(seen, _)
                | CollectorStep::Begin(seen, _)
                | CollectorStep::Compare(seen, _)
                | CollectorStep::Repair { seen, .. }
                | CollectorStep::Apply(seen, _)
                | CollectorStep::AskAgain(seen, _) => visit(seen, None),
                CollectorStep::Look | CollectorStep::Delete(_) => {}
            }
        }
    }

    /// Whether somebody has decided upon a write that expects no record, and has slept while there was one.
    pub(super) fn is_absence_relied_on(&mut self) -> bool {
        let mut found = false;
        self.each_plan(|seen, _| found |= seen.record == Record::Absent && !seen.fresh);
        found
    }

    /// The same world, whatever the names of objects, of actors of one kind, and of revisions.
    pub(super) fn canonical(mut self, setup: &Setup) -> Self {
        let keeps_stale =
            matches!(setup.mutant, Mutant::VersionsRepeat | Mutant::RemovesAtOnce | Mutant::RemovesBlindly);
        if !keeps_stale {
            // What was read before and is no more can only be found to have changed.
            self.each_plan(|seen, write| {
                if !seen.fresh {
                    if seen.record != Record::Absent {
                        seen.record = Record::Erased(None);
                    }
                    if let Some(write) = write {
                        *write = Write::Change(Change::Rewritten);
                    }
                }
            });
            for step in &mut self.collectors {
                match step {
                    CollectorStep::Ask(seen, object)
                    | CollectorStep::Begin(seen, object)
                    | CollectorStep::Compare(seen, object)
                    | CollectorStep::Repair { seen, object, .. }
                    | CollectorStep::Apply(seen, object)
                    | CollectorStep::AskAgain(seen, object)
                        if !seen.fresh =>
                    {
                        *object = GONE;
                    }
                    _ => {}
                }
            }
        }
        self.writers.sort_unstable();
        if self.collectors.len() == 2 && self.collectors[0] > self.collectors[1] {
            self.collectors.swap(0, 1);
            self.index.swap_runs();
            if let Some(backup) = &mut self.backup {
                backup.swap_runs();
            }
        }
        self.rank_revisions();
        self.rename_objects(setup.objects);
        self
    }

    fn rank_revisions(&mut self) {
        let mut used = self.naming_events | self.unnaming_events | 1;
        self.each_revision(|revision| used |= mark(*revision));
        let rank = |revision: u8| (used & (mark(revision) - 1)).count_ones() as u8;
        let events = |events: u16| revisions(events).fold(0, |all, revision| all | mark(rank(revision)));
        (self.naming_events, self.unnaming_events) = (events(self.naming_events), events(self.unnaming_events));
        self.each_revision(|revision| *revision = rank(*revision));
    }

    fn each_revision(&mut self, mut visit: impl FnMut(&mut u8)) {
        visit(&mut self.link.revision);
        if let Some(link) = &mut self.late_link {
            visit(&mut link.revision);
        }
        visit(&mut self.index.revision);
        if let Some(backup) = &mut self.backup {
            visit(&mut backup.revision);
        }
        if let Some((revision, _)) = &mut self.deletion {
            visit(revision);
        }
        for commit in &mut self.commits {
            commit.others_link.iter_mut().for_each(&mut visit);
            match &mut commit.step {
                CommitStep::Link { revision, .. } => visit(revision),
                CommitStep::Undo { link, .. } => visit(&mut link.revision),
                _ => {}
            }
        }
        for step in &mut self.collectors {
            if let CollectorStep::Repair { revision, .. } = step {
                visit(revision);
            }
        }
    }

    fn rename_objects(&mut self, objects: u8) {
        let mut names = [u8::MAX; 8];
        let mut next = 0;
        let mut name = |object: Object| {
            let slot = &mut names[usize::from(object)];
            if *slot == u8::MAX {
                *slot = next;
                next += 1;
            }
        };
        self.each_object(|object| name(*object));
        let (stored, old) = (self.stored, self.old);
        (0..objects).filter(|object| stored & !old & bit(*object) != 0).for_each(&mut name);
        (0..objects).filter(|object| stored & old & bit(*object) != 0).for_each(&mut name);
        let mask = |mask: u8| {
            let known = (0..objects).filter(|at| mask & bit(*at) != 0 && names[usize::from(*at)] != u8::MAX);
            known.fold(0, |all, at| all | bit(names[usize::from(at)]))
        };
        (self.stored, self.old) = (mask(stored), mask(old));
        self.each_object(|object| *object = names[usize::from(*object)]);
    }

    /// A name that nothing in the world knows. A name is never used again while anybody can still tell.
    pub(super) fn unused_object(&self, objects: u8) -> Option<Object> {
        let mut used = self.stored;
        self.clone().each_object(|object| used |= bit(*object));
        (0..objects).find(|object| used & bit(*object) == 0)
    }

    fn each_object(&mut self, mut visit: impl FnMut(&mut Object)) {
        let mut visit = |object: &mut Object| {
            if *object != GONE {
                visit(object);
            }
        };
        visit_record(&mut self.pointer, &mut visit);
        if let Some(plan) = &mut self.late {
            visit_record(&mut plan.seen.record, &mut visit);
            visit_write(&mut plan.write, &mut visit);
        }
        self.each_plan(|seen, write| {
            visit_record(&mut seen.record, &mut visit);
            if let Some(write) = write {
                visit_write(write, &mut visit);
            }
        });
        for writer in &mut self.writers {
            if let Some((own, _)) = &mut writer.own {
                visit(own);
            }
            match &mut writer.step {
                WriterStep::Drop(object) | WriterStep::Second(object) | WriterStep::Write(_, Then::Second(object)) => {
                    visit(object);
                }
                WriterStep::Look | WriterStep::Store | WriterStep::Write(_, Then::First) => {}
            }
        }
        for commit in &mut self.commits {
            match &mut commit.step {
                CommitStep::Event(object)
                | CommitStep::Link { object, .. }
                | CommitStep::Second(object)
                | CommitStep::SecondLink(object)
                | CommitStep::Write(_, Then::Second(object)) => visit(object),
                _ => {}
            }
        }
        for step in &mut self.collectors {
            match step {
                CollectorStep::Ask(_, object)
                | CollectorStep::Begin(_, object)
                | CollectorStep::Compare(_, object)
                | CollectorStep::Repair { object, .. }
                | CollectorStep::Apply(_, object)
                | CollectorStep::AskAgain(_, object)
                | CollectorStep::Delete(object) => visit(object),
                CollectorStep::Look | CollectorStep::Write(_) => {}
            }
        }
        match &mut self.sweep {
            Some(SweepStep::Fence(object, _) | SweepStep::Again(object) | SweepStep::Delete(object)) => visit(object),
            Some(SweepStep::Look) | None => {}
        }
    }
}

fn visit_record(record: &mut Record, visit: &mut impl FnMut(&mut Object)) {
    match record {
        Record::Live(object) | Record::Condemned(object) | Record::Erased(Some(object)) => visit(object),
        Record::Absent | Record::Erased(None) => {}
    }
}

fn visit_write(write: &mut Write, visit: &mut impl FnMut(&mut Object)) {
    match write {
        Write::Change(Change::Live(object) | Change::Condemned(object) | Change::Erased(Some(object))) => visit(object),
        Write::Change(Change::Erased(None) | Change::Rewritten) | Write::Remove => {}
    }
}
