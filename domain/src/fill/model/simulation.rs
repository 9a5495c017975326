//! Random runs of setups that are too large to try in every order.

use super::*;
use crate::draw::Draw;

/// The maximum number of steps in a random run.
const LONGEST: usize = 2_000;

impl Setup {
    /// One random run. Returns its number of steps, or the property that fails.
    pub(super) fn run(&self, seed: u64) -> Result<usize, String> {
        let mut draw = Draw::new(seed);
        let mut world = self.init_states().remove(0);
        let properties = self.properties();
        for step in 0..LONGEST {
            let mut actions = Vec::new();
            self.actions(&world, &mut actions);
            // Whims could go on for ever, so they stop halfway.
            if step > LONGEST / 2 {
                actions.retain(|action| !matches!(action, Action::RedisGoes | Action::Unwant(_) | Action::Want(..)));
            }
            if actions.is_empty() || (world.is_at_rest() && !self.goes_on(&world)) {
                return Ok(step);
            }
            let action = actions[draw.below(actions.len())];
            if let Some(next) = self.next_state(&world, action) {
                world = next;
            }
            for property in properties.iter().filter(|p| p.expectation == stateright::Expectation::Always) {
                if !(property.condition)(self, &world) {
                    return Err(format!(
                        "{} does not hold after {step} steps, the last of them {action:?}",
                        property.name
                    ));
                }
            }
        }
        Err("L1 does not hold: there is a run that does not end".to_owned())
    }
}

/// A setup that is too large to explore fully: more nodes, more faults, all whims at once.
fn simulated(seed: u64) -> Setup {
    Setup {
        nodes: 2 + (seed % 3) as u8,
        faults: (seed / 3 % 7) as u8,
        chunks: 3 + (seed / 21 % 2) as u8,
        ranges: seed / 42 % 2 == 1,
        redis: true,
        spool: seed / 84 % 3 == 1,
        drain: seed / 252 % 2 == 1,
        late: seed / 504 % 2 == 1,
        mutant: Mutant::None,
    }
}

#[test]
fn random_runs_hold_all_invariants_and_a_seed_that_does_not_is_named() {
    /// If this is set to a seed, only that seed is run.
    const SEED: &str = "ENTREPOT_SEED";
    #[expect(clippy::disallowed_methods, reason = "no configuration of a registry: only this test knows of it")]
    let wanted = std::env::var(SEED).ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = wanted.map_or(0..20_000, |seed| seed..seed + 1);
    let mut steps = 0;
    for seed in seeds.clone() {
        let setup = simulated(seed);
        match setup.run(seed) {
            Ok(taken) => steps += taken,
            Err(problem) => panic!("{problem}, in {setup:?}; {SEED}={seed} runs this seed again"),
        }
    }
    println!("{} seeds, {steps} steps", seeds.end - seeds.start);
}

#[test]
fn the_simulator_catches_mutants_too() {
    for mutant in [Mutant::CommitsUnverified, Mutant::ReleasesAnyLease, Mutant::NeverTakesOver] {
        let caught = (0..20_000).find(|seed| Setup { mutant, ..simulated(*seed) }.run(*seed).is_err());
        println!("{mutant:?} is caught by seed {}", caught.unwrap_or_else(|| panic!("{mutant:?} is not caught")));
    }
}
