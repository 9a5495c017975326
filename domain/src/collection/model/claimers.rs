//! The steps of actors that claim a digest.

use super::*;

impl World {
    /// Sends a planned write of the pointer. Returns how it ended, or `None` if it cannot end that way.
    pub(super) fn send(&mut self, plan: Plan, outcome: Outcome, mutant: Mutant) -> Option<Written> {
        let removes_blindly = mutant == Mutant::RemovesBlindly && plan.write == Write::Remove;
        let is_current = self.is_current(plan.seen, mutant) || removes_blindly;
        match outcome {
            Outcome::Known if is_current => {
                self.land(plan, mutant);
                Some(Written::Done)
            }
            Outcome::Known => Some(Written::Lost),
            Outcome::Done if is_current => {
                self.land(plan, mutant);
                Some(Written::Unknown)
            }
            Outcome::Late if is_current => {
                self.late = Some(plan);
                Some(Written::Unknown)
            }
            Outcome::Done | Outcome::Late => None,
            Outcome::Never => Some(Written::Unknown),
        }
    }

    /// The next step of a writer: a push of a blob (with the bytes) or a mount (without them).
    pub(super) fn step_writer(&mut self, at: usize, outcome: Outcome, setup: &Setup) -> Option<Progress> {
        let mut writer = self.writers[at];
        let mut progress = Progress::Moved;
        writer.step = match writer.step {
            WriterStep::Look => self.look_as_writer(&writer, setup, &mut progress),
            WriterStep::Store => {
                let object = self.unused_object(setup.objects)?;
                self.stored |= bit(object);
                writer.own = Some((object, Named::No));
                WriterStep::Look
            }
            WriterStep::Write(plan, then) => {
                let written = self.send(plan, outcome, setup.mutant)?;
                let is_own = writer.own.is_some_and(|(own, _)| plan.write == Write::Change(Change::Live(own)));
                match (is_own, written) {
                    // The content belongs to the pointer from now on.
                    (true, Written::Done) => writer.own = setup.mutant.own_when_named(writer.own),
                    (true, Written::Unknown) if setup.mutant == Mutant::DropsInDoubt => {
                        self.delete(writer.own.take()?.0);
                    }
                    (true, Written::Unknown) => {
                        // Even if this write was not done, writes of others may have had the same effect.
                        let is_current = self.is_current(plan.seen, setup.mutant);
                        let named = if is_current { Named::NotYet } else { Named::Perhaps };
                        writer.own = writer.own.map(|(own, _)| (own, named));
                    }
                    _ => {}
                }
                match (written, then, plan.write) {
                    (Written::Done, Then::First, Write::Change(Change::Live(object))) => WriterStep::Second(object),
                    (Written::Done, Then::Second(_), _) => {
                        progress = Progress::Promised;
                        WriterStep::Look
                    }
                    (_, Then::First, _) => WriterStep::Look,
                    (_, Then::Second(object), _) => WriterStep::Second(object),
                }
            }
            WriterStep::Drop(object) => {
                self.delete(writer.own.take()?.0);
                WriterStep::Second(object)
            }
            WriterStep::Second(object) => {
                let (pointer, seen) = self.read();
                match setup.mutant.look_again(&pointer, object, writer.claimer) {
                    Second::Done => {
                        progress = Progress::Promised;
                        WriterStep::Look
                    }
                    Second::Write(change) => {
                        let plan = Plan { seen, write: Write::Change(change) };
                        WriterStep::Write(plan, Then::Second(object))
                    }
                    Second::Again => WriterStep::Look,
                }
            }
        };
        if progress == Progress::Promised {
            self.promised = PROMISE;
        }
        if progress != Progress::Moved {
            writer.own = None;
        }
        self.writers[at] = writer;
        Some(progress)
    }

    fn look_as_writer(&self, writer: &Writer, setup: &Setup, progress: &mut Progress) -> WriterStep {
        let (pointer, seen) = self.read();
        let own = writer.own.map(|(object, named)| Own { object, begun_ago: self.age(object), named });
        match setup.mutant.look(&pointer, writer.claimer, own) {
            Look::Use(object) => match own {
                Some(own) if may_drop(&own, &pointer) => WriterStep::Drop(object),
                _ => WriterStep::Second(object),
            },
            Look::Write(change) => WriterStep::Write(Plan { seen, write: Write::Change(change) }, Then::First),
            Look::Store => WriterStep::Store,
            Look::Missing | Look::Refuse => {
                *progress = Progress::Refused;
                WriterStep::Look
            }
        }
    }

    fn write_as_commit(&mut self, plan: Plan, then: Then, outcome: Outcome, setup: &Setup) -> Option<CommitStep> {
        Some(match (self.send(plan, outcome, setup.mutant)?, then, plan.write) {
            (Written::Done, Then::First, Write::Change(Change::Live(object))) => CommitStep::Event(object),
            (Written::Done, Then::Second(object), _) => CommitStep::SecondLink(object),
            (_, Then::First, _) => CommitStep::Look,
            (_, Then::Second(object), _) => CommitStep::Second(object),
        })
    }

    fn note_as_commit(&mut self, object: Object, me: By, setup: &Setup) -> Option<CommitStep> {
        if setup.mutant == Mutant::ReusesLinks && self.own_link(me) == OwnLink::Others {
            return Some(CommitStep::Second(object));
        }
        let revision = self.link.revision + 1;
        self.add_event(revision, true, setup)?;
        Some(CommitStep::Link { object, fresh: true, revision })
    }

    /// The next step of a commit whose manifest names the digest. The manifest's own digest is claimed as in a push.
    pub(super) fn step_commit(&mut self, at: usize, outcome: Outcome, setup: &Setup) -> Option<Progress> {
        let mut commit = self.commits[at];
        let me = By::Commit(at as u8);
        let mut progress = Progress::Moved;
        commit.step = match commit.step {
            CommitStep::Look => self.look_as_commit(setup),
            CommitStep::Write(plan, then) => self.write_as_commit(plan, then, outcome, setup)?,
            CommitStep::Event(object) => self.note_as_commit(object, me, setup)?,
            CommitStep::Link { object, fresh, revision } => {
                let link = Link { state: LinkState::Live, by: me, revision };
                let written = self.send_link(link, fresh, outcome)?;
                commit.any_unknown |= written == Written::Unknown;
                match written {
                    Written::Done if setup.mutant == Mutant::LooksOnce => {
                        progress = Progress::Promised;
                        CommitStep::Look
                    }
                    Written::Done => CommitStep::Second(object),
                    Written::Lost => CommitStep::Event(object),
                    Written::Unknown => CommitStep::Look,
                }
            }
            CommitStep::Second(object) => {
                let (pointer, seen) = self.read();
                match setup.mutant.look_again(&pointer, object, Claimer::Named) {
                    Second::Done => CommitStep::SecondLink(object),
                    Second::Write(change) => {
                        CommitStep::Write(Plan { seen, write: Write::Change(change) }, Then::Second(object))
                    }
                    Second::Again => CommitStep::Look,
                }
            }
            CommitStep::SecondLink(object) => {
                let stood = commit.others_link.replace(self.link.revision) == Some(self.link.revision);
                match setup.mutant.look_again_at_link(self.own_link(me), stood) {
                    SecondLink::Done => {
                        progress = Progress::Promised;
                        CommitStep::Look
                    }
                    SecondLink::LookOnceMore => CommitStep::Second(object),
                    SecondLink::Again => CommitStep::Look,
                }
            }
            CommitStep::GiveUp => match self.give_up(me, commit.any_unknown, setup)? {
                Some(link) => CommitStep::Undo { fresh: true, link },
                None => {
                    progress = Progress::Refused;
                    CommitStep::Look
                }
            },
            CommitStep::Undo { fresh, link } => {
                if self.send_link(link, fresh, outcome)? == Written::Done {
                    progress = Progress::Refused;
                    CommitStep::Look
                } else {
                    CommitStep::GiveUp
                }
            }
        };
        if commit.step == CommitStep::Look {
            commit.others_link = None;
        }
        self.commits[at] = commit;
        self.end_commit(at, progress);
        Some(progress)
    }

    fn look_as_commit(&self, setup: &Setup) -> CommitStep {
        let (pointer, seen) = self.read();
        match setup.mutant.look(&pointer, Claimer::Named, None) {
            Look::Use(object) => CommitStep::Event(object),
            Look::Write(change) => CommitStep::Write(Plan { seen, write: Write::Change(change) }, Then::First),
            Look::Store | Look::Missing | Look::Refuse => CommitStep::GiveUp,
        }
    }

    /// What a commit that has to give up writes in place of the link, if anything.
    fn give_up(&mut self, me: By, any_unknown: bool, setup: &Setup) -> Option<Option<Link>> {
        let tombstone = Link { state: LinkState::Tombstone, by: me, revision: self.link.revision + 1 };
        Some(match setup.mutant.give_up(self.own_link(me), any_unknown) {
            GiveUp::Answer => None,
            GiveUp::Tombstone => {
                self.add_event(tombstone.revision, false, setup)?;
                Some(tombstone)
            }
            GiveUp::Fence if self.link.state == LinkState::Absent => Some(tombstone),
            GiveUp::Fence => Some(self.link),
        })
    }

    fn end_commit(&mut self, at: usize, progress: Progress) {
        match progress {
            Progress::Moved => return,
            Progress::Promised => {
                self.is_committed = true;
                self.disown_link(at as u8, By::Nobody);
            }
            Progress::Refused => self.disown_link(at as u8, By::Refused),
        }
        self.commits[at].any_unknown = false;
    }

    fn own_link(&self, me: By) -> OwnLink {
        match self.link {
            Link { state: LinkState::Live, by, .. } if by == me => OwnLink::Ours,
            Link { state: LinkState::Live, .. } => OwnLink::Others,
            Link { state: LinkState::Absent | LinkState::Tombstone, .. } => OwnLink::Gone,
        }
    }

    /// Like [`World::send`], for the link.
    fn send_link(&mut self, link: Link, is_current: bool, outcome: Outcome) -> Option<Written> {
        match outcome {
            Outcome::Known if is_current => self.land_link(link),
            Outcome::Known => return Some(Written::Lost),
            Outcome::Done if is_current => {
                self.land_link(link);
                return Some(Written::Unknown);
            }
            Outcome::Late if is_current => {
                self.late_link = Some(link);
                return Some(Written::Unknown);
            }
            Outcome::Done | Outcome::Late => return None,
            Outcome::Never => return Some(Written::Unknown),
        }
        Some(Written::Done)
    }

    /// Somebody deletes the manifest: first the event, then the tombstone. They may stop for ever between the two.
    pub(super) fn step_deletion(&mut self, setup: &Setup) -> Option<()> {
        match self.deletion.take() {
            None if self.link.state == LinkState::Live => {
                let revision = self.link.revision + 1;
                self.add_event(revision, false, setup)?;
                self.deletion = Some((revision, true));
            }
            None => return None,
            Some((revision, is_current)) => {
                if is_current {
                    self.land_link(Link { state: LinkState::Tombstone, by: By::Nobody, revision });
                }
            }
        }
        Some(())
    }
}
