//! Claimers, collectors and the sweep around one digest, in every order in which their steps can happen. They run the
//! decisions themselves, not a copy of them.
//!
//! Each step is one read or one write of something that others can see, and between two of its steps an actor may sleep
//! for any time, or lose its memory. A conditional write may be answered "unknown" at any time and any number of times:
//! done, not done, or done later. The index may be set back once, to any earlier state. Nothing counts how often anything
//! happens: names of objects, revisions and versions are only compared, so the states are finite.
//!
//! What is not in the model: damage, more than one digest, repositories and their incarnations, and a write that was
//! decided while there was no pointer and arrives after a pointer has come, has been erased and has been
//! [removed](super::REMOVAL_AGE).

#![expect(clippy::wildcard_enum_match_arm, reason = "what a test does not name goes on as it would")]

mod claimers;
mod collectors;
mod long;
mod simulation;
mod world;

use stateright::{Checker as _, HasDiscoveries, Model, Property};

use super::mutants::Mutant;
use super::*;
use crate::claim::{Claimer, GiveUp, Look, Named, Own, OwnLink, PUSH_TIME, Second, SecondLink, Written, may_drop};

use world::*;
pub(super) use world::{Index, Object, Run};

/// What is explored: who takes part, and what may go wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    /// Pushes of a blob, with bytes.
    pub(super) writers: u8,
    /// Mounts, or a pusher's HEADs, without bytes.
    pub(super) mounts: u8,
    /// Commits of one manifest that names the digest, without its bytes.
    pub(super) commits: u8,
    pub(super) collectors: u8,
    pub(super) sweep: bool,
    /// Whether writes may end with an unknown outcome, and actors may lose their memory.
    pub(super) faults: bool,
    /// Somebody deletes the manifest again and again.
    pub(super) deletes: bool,
    /// The index may be set back once.
    pub(super) restore: bool,
    /// How many objects there can be at a time.
    pub(super) objects: u8,
    /// How many events can wait at a time.
    pub(super) events: u32,
    pub(super) mutant: Mutant,
}

impl Setup {
    pub(super) const NOBODY: Self = Self {
        writers: 0,
        mounts: 0,
        commits: 0,
        collectors: 0,
        sweep: false,
        faults: true,
        deletes: false,
        restore: false,
        objects: 3,
        events: 2,
        mutant: Mutant::None,
    };
}

/// How a write ends, and whether its writer gets to know that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    /// The answer comes.
    Known,
    /// Done, but nobody says so.
    Done,
    /// Nobody says so, and it may be done later.
    Late,
    /// Nobody says so, and it is never done.
    Never,
}

const OUTCOMES: [Outcome; 4] = [Outcome::Known, Outcome::Done, Outcome::Late, Outcome::Never];

/// What a step of a claimer leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Progress {
    Moved,
    /// It was answered that the content is there.
    Promised,
    /// It was answered that it is not.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Writer(usize, Outcome),
    Commit(usize, Outcome),
    Collector(usize, Outcome),
    Sweep(Object, Outcome),
    Delete,
    CrashWriter(usize),
    CrashCommit(usize),
    CrashCollector(usize),
    CrashSweep,
    LateWrite,
    LateLink,
    ApplyEvent(u8, bool),
    Backup,
    Restore,
    QuarterPasses,
    PushTimePasses,
    WeekPasses,
}

impl Model for Setup {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self).canonical(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for at in 0..world.writers.len() {
            let is_write = matches!(world.writers[at].step, WriterStep::Write(..));
            actions.extend(outcomes(is_write).iter().map(|outcome| Action::Writer(at, *outcome)));
            actions.push(Action::CrashWriter(at));
        }
        for at in 0..world.commits.len() {
            use CommitStep as S;
            let is_write = matches!(world.commits[at].step, S::Write(..) | S::Link { .. } | S::Undo { .. });
            actions.extend(outcomes(is_write).iter().map(|outcome| Action::Commit(at, *outcome)));
            actions.push(Action::CrashCommit(at));
        }
        for at in 0..world.collectors.len() {
            let is_write = matches!(world.collectors[at], CollectorStep::Write(..));
            actions.extend(outcomes(is_write).iter().map(|outcome| Action::Collector(at, *outcome)));
            actions.push(Action::CrashCollector(at));
        }
        match world.sweep {
            Some(SweepStep::Look) => {
                let old = (0..self.objects).filter(|object| world.old & bit(*object) != 0);
                actions.extend(old.map(|object| Action::Sweep(object, Outcome::Known)));
            }
            Some(step) => {
                let is_write = matches!(step, SweepStep::Fence(..));
                actions.extend(outcomes(is_write).iter().map(|outcome| Action::Sweep(0, *outcome)));
                actions.push(Action::CrashSweep);
            }
            None => {}
        }
        if self.deletes {
            actions.push(Action::Delete);
        }
        actions.extend([Action::LateWrite, Action::LateLink]);
        actions.extend(revisions(world.naming_events).map(|revision| Action::ApplyEvent(revision, true)));
        actions.extend(revisions(world.unnaming_events).map(|revision| Action::ApplyEvent(revision, false)));
        if self.restore && !world.is_restored {
            actions.extend([Action::Backup, Action::Restore]);
        }
        actions.extend([Action::QuarterPasses, Action::PushTimePasses, Action::WeekPasses]);
        if !self.faults {
            actions.retain(|action| !action.is_fault());
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        self.act(&mut next, action)?;
        Some(next.canonical(self))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("C1", |_, world: &World| {
                let is_there = world.read().0.served_object().is_some_and(|object| world.is_stored(object));
                (world.promised == 0 && !world.is_committed || is_there)
                    && (!world.is_committed || world.link.state == LinkState::Live)
            }),
            Property::always("C2", |_, world: &World| {
                world.read().0.served_object().is_none_or(|object| world.is_stored(object))
            }),
            Property::always("C3", |_, world: &World| world.link.by != By::Refused),
            Property::always("C4", |setup: &Setup, world: &World| !setup.sweep || setup.is_cleaned_up(world)),
            Property::sometimes("something is erased", |_, world: &World| matches!(world.pointer, Record::Erased(_))),
        ]
    }
}

fn outcomes(is_write: bool) -> &'static [Outcome] {
    if is_write { &OUTCOMES } else { &OUTCOMES[..1] }
}

impl Setup {
    fn act(&self, world: &mut World, action: Action) -> Option<()> {
        match action {
            Action::Writer(at, outcome) => drop(world.step_writer(at, outcome, self)?),
            Action::Commit(at, outcome) => drop(world.step_commit(at, outcome, self)?),
            Action::Collector(at, outcome) => world.step_collector(at, outcome, self)?,
            Action::Sweep(object, outcome) => world.step_sweep(object, outcome, self)?,
            Action::Delete => world.step_deletion(self)?,
            Action::CrashWriter(at) => {
                let claimer = world.writers[at].claimer;
                world.writers[at] = Writer { claimer, step: WriterStep::Look, own: None };
            }
            Action::CrashCommit(at) => {
                world.disown_link(at as u8, By::Nobody);
                world.commits[at] = Commit::NEW;
            }
            Action::CrashCollector(at) => {
                world.forget_run(at);
                world.collectors[at] = CollectorStep::Look;
            }
            Action::CrashSweep => world.sweep = Some(SweepStep::Look),
            Action::LateWrite => {
                let plan = world.late.take()?;
                if world.is_current(plan.seen, self.mutant) {
                    world.land(plan, self.mutant);
                }
            }
            Action::LateLink => {
                let link = world.late_link?;
                world.land_link(link);
            }
            Action::ApplyEvent(revision, is_naming) => world.apply_event(revision, is_naming),
            Action::Backup => world.backup = Some(world.index),
            Action::Restore => {
                world.index = world.backup.take()?;
                world.is_restored = true;
            }
            Action::QuarterPasses => world.pass(1),
            Action::PushTimePasses => world.pass(PROMISE),
            Action::WeekPasses => {
                world.pass(OLDEST);
                world.old |= world.stored;
                for (own, _) in world.writers.iter().filter_map(|writer| writer.own) {
                    world.old |= bit(own);
                }
            }
        }
        Some(())
    }

    /// Whether the sweep and a collector, left alone, remove all that the pointer does not serve.
    fn is_cleaned_up(&self, world: &World) -> bool {
        let alone = Self { writers: 0, commits: 0, mounts: 0, ..*self };
        let mut world = world.clone();
        (world.late, world.late_link, world.deletion) = (None, None, None);
        world.writers.clear();
        world.commits.clear();
        for _ in 0..40 {
            let leftovers = world.stored & !world.read().0.served_object().map_or(0, bit);
            let Some(object) = (0..self.objects).find(|object| leftovers & bit(*object) != 0) else { return true };
            let _ = alone.act(&mut world, Action::WeekPasses);
            let _ = world.step_sweep(object, Outcome::Known, &alone);
            if !world.collectors.is_empty() {
                let _ = world.step_collector(0, Outcome::Known, &alone);
            }
        }
        false
    }

    /// Explores everything, or until one of these properties is found not to hold. Says how many states there were,
    /// or a shortest way to where a property does not hold.
    fn explore(self, until: &[&'static str]) -> Result<usize, (&'static str, Vec<Action>)> {
        let broken = HasDiscoveries::AnyOf(until.iter().copied().collect());
        let checker = self.checker().threads(2).finish_when(broken).spawn_bfs().join();
        match checker.discoveries().into_iter().find(|(name, _)| until.contains(name)) {
            Some((name, path)) => Err((name, path.into_actions())),
            None => Ok(checker.unique_state_count()),
        }
    }
}

impl World {
    fn pass(&mut self, quarters: u8) {
        if matches!(self.pointer, Record::Live(_)) {
            self.claimed = (self.claimed + quarters).min(OLDEST);
        }
        self.promised = self.promised.saturating_sub(quarters);
    }
}

fn holds(name: &str, setup: Setup) {
    let began = std::time::Instant::now();
    match setup.explore(&["C1", "C2", "C3", "C4"]) {
        Ok(states) => println!("{name}: {states} states in {:?}", began.elapsed()),
        Err((property, path)) => panic!("{name}: {property} does not hold after {path:?}"),
    }
}

#[test]
fn a_claimer_and_a_collector_hold_all_invariants() {
    let one = Setup { collectors: 1, ..Setup::NOBODY };
    holds("1 writer, 1 collector", Setup { writers: 1, ..one });
    holds("1 mount, 1 collector", Setup { mounts: 1, ..one });
    holds("1 commit, 1 collector", Setup { commits: 1, ..one });
}

#[test]
fn a_writer_a_collector_and_the_sweep_hold_all_invariants() {
    holds(
        "1 writer, 1 collector, sweep",
        Setup { writers: 1, collectors: 1, sweep: true, objects: 2, ..Setup::NOBODY },
    );
}

#[test]
fn every_mutant_is_caught_for_the_reason_it_was_planted() {
    for (mutant, property, setup) in super::mutants::all() {
        let setup = Setup { mutant, ..setup };
        match setup.explore(&[property]) {
            Err((found, path)) => println!("{mutant:?} breaks {found} in {} steps: {path:?}", path.len()),
            Ok(states) => panic!("{mutant:?} does not break {property} in {states} states"),
        }
    }
}
