//! The steps of collectors and of the sweep.

use super::*;

impl World {
    /// The next step of a collector: it reads the pointer and continues according to what it says.
    pub(super) fn step_collector(&mut self, at: usize, outcome: Outcome, setup: &Setup) -> Option<()> {
        use CollectorStep as S;
        let mutant = setup.mutant;
        let write = |seen, change| S::Write(Plan { seen, write: Write::Change(change) });
        let step = match self.collectors[at] {
            S::Look => self.look_as_collector(mutant)?,
            S::Ask(seen, object) => {
                condemn(object, self.naming(self.index.is_named)).map_or(S::Look, |change| write(seen, change))
            }
            S::Begin(seen, object) => {
                self.index.forget_run(at);
                (self.index.comparing, self.index.runs[at]) = (Some(at as u8), Run::Begun);
                if mutant == Mutant::ErasesUncompared {
                    self.index.runs[at] = Run::Ended;
                    S::Apply(seen, object)
                } else {
                    S::Compare(seen, object)
                }
            }
            S::Compare(seen, object) => {
                let is_live = self.link.state == LinkState::Live;
                S::Repair { seen, object, is_live, revision: self.link.revision }
            }
            S::Repair { seen, object, is_live, revision } => {
                let is_newest = self.index.comparing == Some(at as u8) && self.index.runs[at] != Run::None;
                if is_newest || mutant == Mutant::RepairsOvertaken {
                    (self.index.is_named, self.index.revision) = (is_live, revision);
                    self.index.runs[at] = Run::Ended;
                    S::Apply(seen, object)
                } else {
                    S::Look
                }
            }
            S::Apply(seen, object) => {
                for revision in revisions(self.unnaming_events) {
                    self.apply_event(revision, false);
                }
                for revision in revisions(self.naming_events) {
                    self.apply_event(revision, true);
                }
                S::AskAgain(seen, object)
            }
            S::AskAgain(seen, object) => match judge(object, &mutant.evidence(&self.index, at)) {
                Verdict::Write(change) => write(seen, change),
                Verdict::StartAgain | Verdict::Stop => S::Look,
            },
            S::Write(plan) => {
                self.send(plan, outcome, mutant)?;
                S::Look
            }
            S::Delete(object) => {
                self.delete(object);
                S::Look
            }
        };
        self.collectors[at] = step;
        if matches!(step, S::Look | S::Write(_)) {
            self.forget_run(at);
        }
        Some(())
    }

    pub(super) fn naming(&self, is_named: bool) -> Naming {
        if is_named { Naming::Named } else { Naming::Unnamed }
    }

    /// Gives an ended run a name that no later run has.
    pub(super) fn forget_run(&mut self, at: usize) {
        self.index.forget_run(at);
        if let Some(backup) = &mut self.backup {
            backup.forget_run(at);
        }
    }

    fn look_as_collector(&mut self, mutant: Mutant) -> Option<CollectorStep> {
        let (pointer, seen) = self.read();
        match examine(&pointer, PUSH_TIME) {
            Candidate::Condemn(object) => Some(CollectorStep::Ask(seen, object)),
            Candidate::Compare(object) => Some(CollectorStep::Begin(seen, object)),
            Candidate::Delete(object) if self.is_stored(object) => Some(CollectorStep::Delete(object)),
            Candidate::Delete(_) | Candidate::Leave => {
                // An actor that has slept through the removal's age while a record was created and removed is not
                // modelled, except for one mutant.
                let is_early = self.is_absence_relied_on() && mutant != Mutant::RemovesAtOnce;
                let age = if is_early { Duration::ZERO } else { REMOVAL_AGE };
                may_remove(&pointer, false, age).then_some(CollectorStep::Write(Plan { seen, write: Write::Remove }))
            }
        }
    }

    /// The next step of the sweep for one object. Only its first step depends on the object.
    pub(super) fn step_sweep(&mut self, object: Object, outcome: Outcome, setup: &Setup) -> Option<()> {
        use SweepStep as S;
        let (pointer, seen) = self.read();
        self.sweep = Some(match self.sweep? {
            S::Look => match sweep(object, self.age(object), &pointer, false) {
                Sweep::Fence(_) if setup.mutant == Mutant::SweepsWithoutFence => S::Again(object),
                Sweep::Fence(change) => S::Fence(object, Plan { seen, write: Write::Change(change) }),
                Sweep::Spare => return None,
            },
            S::Fence(object, plan) => match self.send(plan, outcome, setup.mutant)? {
                Written::Done => S::Again(object),
                Written::Lost | Written::Unknown => S::Look,
            },
            S::Again(object) if may_delete(object, &pointer) => S::Delete(object),
            S::Again(_) => S::Look,
            S::Delete(object) => {
                self.delete(object);
                S::Look
            }
        });
        Some(())
    }
}
