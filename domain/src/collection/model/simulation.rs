//! Random runs of all actors at once: too much to be tried in every order.

use super::*;

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
    /// One random run. Says what was reached, or which property does not hold.
    pub(super) fn run(&self, seed: u64) -> Result<Reached, String> {
        let mut random = seed;
        let mut draw = |below: usize| {
            // SplitMix64, by Steele, Lea and Flood.
            random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = (random ^ (random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) % below as u64) as usize
        };
        // How rarely each kind of fault happens differs from run to run.
        let rarity = 2 << draw(6);
        // Who sleeps, for a while.
        let mut asleep = 0;
        let mut world = self.init_states().remove(0);
        let mut reached = Reached::default();
        let properties = self.properties();
        for step in 0..STEPS {
            let mut actions = Vec::new();
            self.actions(&world, &mut actions);
            let action = actions[draw(actions.len())];
            if draw(40) == 0 {
                asleep = draw(1 << 8) | draw(1 << 8);
            }
            if asleep & action.actor() != 0 || action.is_fault() && draw(rarity) > 0 {
                continue;
            }
            let Some(next) = self.next_state(&world, action) else { continue };
            reached.note(&world, &next);
            world = next;
            // What cleaning up takes is found by exploring all.
            for property in properties.iter().filter(|property| matches!(property.name, "C1" | "C2" | "C3")) {
                if !(property.condition)(self, &world) {
                    return Err(format!("{} does not hold after {step} steps, the last {action:?}", property.name));
                }
            }
        }
        Ok(reached)
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
}
