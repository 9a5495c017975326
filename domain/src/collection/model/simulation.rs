//! Random runs of all actors at once: too much to be tried in every order.

use super::*;
use crate::draw::Draw;

/// Everybody at once.
pub(super) const WHOLE: Setup = Setup {
    writers: 2,
    mounts: 1,
    commits: 2,
    collectors: 2,
    sweep: true,
    faults: true,
    deletes: true,
    restore: true,
    objects: 6,
    events: 4,
    mutant: Mutant::None,
};

/// How many random runs there are, and how long each one is.
const SEEDS: u64 = 400;
const STEPS: usize = 2_000;

impl Setup {
    /// One random run. Says what was reached, or which property does not hold, and a short way to where it does not.
    pub(super) fn run(&self, seed: u64) -> Result<Reached, String> {
        let mut draw = Draw::new(seed);
        // How rarely each kind of fault happens differs from run to run.
        let rarity = 2 << draw.below(6);
        // Who sleeps, for a while.
        let mut asleep = 0;
        let mut world = self.init_states().remove(0);
        let mut reached = Reached::default();
        let mut way = Vec::new();
        for _ in 0..STEPS {
            let mut actions = Vec::new();
            self.actions(&world, &mut actions);
            let action = actions[draw.below(actions.len())];
            if draw.below(40) == 0 {
                asleep = draw.below(1 << 8) | draw.below(1 << 8);
            }
            if asleep & action.actor() != 0 || action.is_fault() && draw.below(rarity) > 0 {
                continue;
            }
            let Some(next) = self.next_state(&world, action) else { continue };
            reached.note(&world, &next);
            way.push(action);
            if let Some(property) = self.broken_by(&next) {
                let way = self.shorten(way, property);
                return Err(format!("{property} does not hold after {} steps: {way:?}", way.len()));
            }
            world = next;
        }
        Ok(reached)
    }

    /// A property that does not hold. What cleaning up takes is found by exploring all.
    fn broken_by(&self, world: &World) -> Option<&'static str> {
        let mut properties =
            self.properties().into_iter().filter(|property| ["C1", "C2", "C3"].contains(&property.name));
        properties.find(|property| !(property.condition)(self, world)).map(|property| property.name)
    }

    /// The same way without all that it can do without.
    fn shorten(&self, mut way: Vec<Action>, property: &str) -> Vec<Action> {
        let mut length = way.len() / 2;
        while length > 0 {
            let mut at = 0;
            while at + length <= way.len() {
                let without = [&way[..at], &way[at + length..]].concat();
                match self.replay(&without, property) {
                    Some(shorter) => way = shorter,
                    None => at += 1,
                }
            }
            length /= 2;
        }
        way
    }

    /// Takes the steps that can be taken, until the property does not hold; those steps, if that is so.
    fn replay(&self, way: &[Action], property: &str) -> Option<Vec<Action>> {
        let mut world = self.init_states().remove(0);
        let mut taken = Vec::new();
        for action in way {
            if let Some(next) = self.next_state(&world, *action) {
                taken.push(*action);
                if self.broken_by(&next) == Some(property) {
                    return Some(taken);
                }
                world = next;
            }
        }
        None
    }
}

impl Action {
    /// Who acts, as a bit; time, the index and what is late never sleep.
    fn actor(self) -> usize {
        match self {
            Self::Writer(at, _) | Self::CrashWriter(at) => 1 << at,
            Self::Commit(at, _) | Self::CrashCommit(at) => 8 << at,
            Self::Collector(at, _) | Self::CrashCollector(at) => 32 << at,
            Self::Sweep(..) | Self::CrashSweep => 128,
            // A deletion waits for a while, or nothing would stay linked.
            Self::Delete => 128,
            _ => 0,
        }
    }

    pub(super) fn is_fault(self) -> bool {
        match self {
            Self::Writer(_, outcome)
            | Self::Commit(_, outcome)
            | Self::Collector(_, outcome)
            | Self::Sweep(_, outcome) => outcome != Outcome::Known,
            Self::CrashWriter(_) | Self::CrashCommit(_) | Self::CrashCollector(_) | Self::CrashSweep => true,
            Self::Delete
            | Self::LateWrite
            | Self::LateLink
            | Self::ApplyEvent(..)
            | Self::Backup
            | Self::Restore
            | Self::QuarterPasses
            | Self::PushTimePasses
            | Self::WeekPasses => false,
        }
    }
}

/// How often what matters has happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reached {
    steps: u32,
    promises: u32,
    commits: u32,
    erasures: u32,
    revivals: u32,
    removals: u32,
    restores: u32,
}

impl Reached {
    fn note(&mut self, before: &World, after: &World) {
        let (was, is) = (before.pointer, after.pointer);
        self.steps += 1;
        self.promises += u32::from(before.promised < after.promised);
        self.commits += u32::from(!before.is_committed && after.is_committed);
        self.erasures += u32::from(matches!((was, is), (Record::Condemned(_), Record::Erased(_))));
        self.revivals += u32::from(matches!((was, is), (Record::Condemned(_), Record::Live(_))));
        self.removals += u32::from(matches!((was, is), (Record::Erased(_), Record::Absent)));
        self.restores += u32::from(!before.is_restored && after.is_restored);
    }

    fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.promises += other.promises;
        self.commits += other.commits;
        self.erasures += other.erasures;
        self.revivals += other.revivals;
        self.removals += other.removals;
        self.restores += other.restores;
    }
}

fn simulate(seeds: u64) {
    let began = std::time::Instant::now();
    let mut reached = Reached::default();
    for seed in 0..seeds {
        match WHOLE.run(seed) {
            Ok(more) => reached.add(more),
            Err(problem) => panic!("{problem}, with seed {seed}"),
        }
    }
    println!("{seeds} random runs of all at once: {reached:?} in {:?}", began.elapsed());
    let Reached { promises, commits, erasures, revivals, removals, restores, .. } = reached;
    assert!([promises, commits, erasures, revivals, removals, restores].iter().all(|count| *count > 0), "{reached:?}");
}

#[test]
fn random_runs_of_all_at_once_hold_all_invariants() {
    simulate(SEEDS);
}

#[test]
#[ignore = "takes minutes: `scripts/suite model` runs it"]
fn very_many_random_runs_of_all_at_once_hold_all_invariants() {
    simulate(SEEDS * 100);
}

#[test]
fn random_runs_catch_mutants_too() {
    let caught = |mutant| {
        let setup = Setup { mutant, ..WHOLE };
        let problem = (0..20_000).find_map(|seed| setup.run(seed).err().map(|problem| (seed, problem)));
        println!("{mutant:?}: {:?}", problem.unwrap_or_else(|| panic!("{mutant:?} is not caught")));
    };
    caught(Mutant::LooksOnce);
    caught(Mutant::TrustsUnnaming);
    caught(Mutant::TrustsOthersLinks);
}
