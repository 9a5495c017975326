//! A model of nodes that fill the same content at the same time. It tries every order of their steps, with every fault
//! at every moment. The nodes run the real state machine, not a copy of it.
//!
//! Leases may vanish at any step. This covers every pause, failover and clock fault of the lease server without a clock
//! in the model. Content is a few chunks, and the model knows for each whether it matches the digest. Steps that no
//! other node can see happen together with the step that causes them.

#![expect(clippy::wildcard_enum_match_arm, reason = "what a test does not name goes on as it would")]

mod actions;
mod simulation;
mod world;

use stateright::{Checker as _, Model, Property};

use super::mutants::Mutant;
use super::*;
use world::*;

/// Content has at most this many.
const CHUNKS: usize = 4;

/// What to explore: how many nodes, how much may go wrong, and what else may happen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) nodes: u8,
    pub(super) faults: u8,
    pub(super) chunks: u8,
    /// A second reader on node 0 that wants only the chunk before the last one.
    pub(super) ranges: bool,
    /// Redis may become unreachable, which costs a fault.
    pub(super) redis: bool,
    /// A spool may fail, which costs a fault.
    pub(super) spool: bool,
    /// Node 0 may be told to stop, and readers may hang up.
    pub(super) drain: bool,
    /// Storing may take long, so that readers get the tail before it is done.
    pub(super) late: bool,
    pub(super) mutant: Mutant,
}

impl Setup {
    pub(super) const fn core(nodes: u8, faults: u8) -> Self {
        let (ranges, redis, spool, drain, late, mutant) = (false, true, false, false, false, Mutant::None);
        Self { nodes, faults, chunks: 3, ranges, redis, spool, drain, late, mutant }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Effect(u8),
    EffectFails(u8),
    Fetch(u8, bool),
    FetchAhead(u8, bool),
    Break(u8),
    BreakAhead(u8),
    Store(u8),
    Peer(u8, bool),
    LeaderEnds(u8),
    LeaderLost(u8),
    Late(u8),
    Send(u8, u8),
    Want(u8, u8),
    Unwant(u8),
    HangUp(u8, u8),
    Abandon(u8),
    Drain(u8),
    SpoolFails(u8),
    Crash(u8),
    LeaseExpires,
    LeaseLost,
    RedisGoes,
    RedisComes,
    Sweep,
}

impl Model for Setup {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let whole = Reader { at: 0, end: self.chunks, bad: 0, outcome: Reading::Open };
        let part = Reader { at: self.chunks - 2, end: self.chunks - 1, ..whole };
        let readers = |at: u8| if at == 0 && self.ranges { vec![whole, part] } else { vec![whole] };
        vec![World {
            nodes: (0..self.nodes).map(|at| Node::new(0, self, readers(at))).collect(),
            lease: None,
            redis_away: false,
            object: None,
            was_stored: false,
            orphans: 0,
            faults: 0,
            fetched: [0; CHUNKS],
            stolen: false,
            is_left: false,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let may_fail = world.faults < self.faults;
        for at in 0..self.nodes {
            self.node_actions(world, at, may_fail, actions);
        }
        if let Some((holder, life)) = world.lease {
            let node = &world.nodes[usize::from(holder)];
            let is_dead = node.life != life;
            if is_dead || matches!(node.fill.phase(), Phase::Finished(_)) && node.effects.is_empty() {
                actions.push(Action::LeaseExpires);
            }
            if may_fail && !world.redis_away {
                actions.push(Action::LeaseLost);
            }
        }
        if self.redis {
            if world.redis_away {
                actions.push(Action::RedisComes);
            } else if may_fail {
                actions.push(Action::RedisGoes);
            }
        }
        if world.orphans > 0 {
            actions.push(Action::Sweep);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        let is_fault = match action {
            Action::EffectFails(_)
            | Action::Break(_)
            | Action::BreakAhead(_)
            | Action::SpoolFails(_)
            | Action::Crash(_)
            | Action::LeaseLost
            | Action::RedisGoes => true,
            Action::Fetch(_, bad) | Action::FetchAhead(_, bad) | Action::Peer(_, bad) => bad,
            // A leader that can still be followed is not lost.
            Action::LeaderLost(at) => world.leader(usize::from(at)).is_some(),
            _ => false,
        };
        next.faults += u8::from(is_fault);
        self.act(&mut next, action)?;
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("S1", |_, world: &World| world.object.is_none_or(|bad| bad == 0)),
            Property::always("S2", |setup: &Setup, world: &World| {
                // A part may be complete before everything is verified; the whole content, or its end, may not.
                let mut readers = world.nodes.iter().flat_map(|node| &node.readers);
                readers.all(|reader| reader.at < setup.chunks || reader.bad == 0)
            }),
            Property::always("S3", |_, world: &World| !world.was_stored || world.object.is_some()),
            Property::always("E1", |_, world: &World| world.faults > 0 || world.is_left || world.is_fetched_at_most(1)),
            Property::always("E2", |setup: &Setup, world: &World| {
                // A leader that hands over or is abandoned leaves the rest to another node, like one that fails.
                let drained = u8::from(setup.drain) * setup.nodes;
                world.is_fetched_at_most(setup.nodes * (world.faults + 1 + drained))
            }),
            Property::always("E3", |_, world: &World| !world.stolen),
            Property::always("L1", |setup: &Setup, world: &World| world.is_at_rest() || setup.goes_on(world)),
            Property::sometimes("a reader is served", |_, world: &World| {
                world.nodes.iter().flat_map(|node| &node.readers).any(|reader| reader.outcome == Reading::Complete)
            }),
        ]
    }
}

impl Setup {
    /// Whether any step remains that is neither a fault nor a whim and changes something.
    fn goes_on(&self, world: &World) -> bool {
        let mut actions = Vec::new();
        self.actions(world, &mut actions);
        actions.into_iter().any(|action| {
            let is_due = match action {
                Action::LeaderLost(at) => world.leader(usize::from(at)).is_none(),
                Action::Effect(_)
                | Action::Fetch(_, false)
                | Action::FetchAhead(_, false)
                | Action::Store(_)
                | Action::Peer(_, false)
                | Action::LeaderEnds(_)
                | Action::Send(..)
                | Action::Sweep => true,
                _ => false,
            };
            is_due && self.next_state(world, action).is_some_and(|next| next != *world)
        })
    }

    fn act(&self, world: &mut World, action: Action) -> Option<()> {
        match action {
            Action::Effect(at) => world.carry_out(at.into(), false, self)?,
            Action::EffectFails(at) => world.carry_out(at.into(), true, self)?,
            Action::Fetch(at, bad) => world.fetch(at.into(), bad, self)?,
            Action::FetchAhead(at, bad) => world.fetch_ahead(at.into(), bad, self)?,
            Action::Break(at) => {
                world.nodes[usize::from(at)].body = None;
                world.step(at.into(), Event::Broken, self);
            }
            Action::BreakAhead(at) => {
                world.nodes[usize::from(at)].ahead = None;
                world.step(at.into(), Event::AheadEnded, self);
            }
            Action::Store(at) => world.read_store(at.into(), self)?,
            Action::Peer(at, bad) => world.peer(at.into(), bad, self)?,
            Action::LeaderEnds(at) => world.step(at.into(), Event::LeaderEnded, self),
            Action::LeaderLost(at) => world.step(at.into(), Event::LeaderLost, self),
            Action::Late(at) => world.step(at.into(), Event::CommitLate, self),
            Action::Send(at, reader) => world.send(at.into(), reader.into(), self)?,
            Action::Want(at, reader) => {
                let wanted = world.nodes[usize::from(at)].readers[usize::from(reader)].at;
                world.step(at.into(), Event::Wanted(wanted.into()), self);
            }
            Action::Unwant(at) => world.step(at.into(), Event::Unwanted, self),
            Action::HangUp(at, reader) => {
                world.nodes[usize::from(at)].readers[usize::from(reader)].outcome = Reading::Aborted;
            }
            Action::Abandon(at) => {
                world.is_left = true;
                world.step(at.into(), Event::Abandoned, self);
            }
            Action::Drain(at) => {
                world.is_left = true;
                let followers = world.is_followed(at);
                let readers = world.nodes[usize::from(at)].is_read();
                world.nodes[usize::from(at)].draining = true;
                world.step(at.into(), Event::Draining { readers, followers }, self);
            }
            Action::SpoolFails(at) => world.step(at.into(), Event::SpoolFailed, self),
            Action::Crash(at) => world.crash(at.into(), self),
            Action::LeaseExpires | Action::LeaseLost => world.lease = None,
            Action::RedisGoes => (world.redis_away, world.lease) = (true, None),
            Action::RedisComes => world.redis_away = false,
            Action::Sweep => world.orphans -= 1,
        }
        Some(())
    }

    /// Explores everything. Returns the number of states, or the properties that fail.
    pub(super) fn explore(self) -> Result<usize, Vec<(&'static str, Vec<Action>)>> {
        let always: Vec<_> = self
            .properties()
            .iter()
            .filter(|p| p.expectation == stateright::Expectation::Always)
            .map(|p| p.name)
            .collect();
        let checker = self.checker().threads(2).spawn_bfs().join();
        let mut broken: Vec<_> = checker
            .discoveries()
            .into_iter()
            .filter(|(name, _)| always.contains(name))
            .map(|(name, path)| (name, path.into_actions()))
            .collect();
        broken.sort_by_key(|(name, _)| *name);
        if broken.is_empty() { Ok(checker.unique_state_count()) } else { Err(broken) }
    }
}

/// Explores `setup` and returns its number of states.
fn holds(name: &str, setup: Setup) {
    let began = std::time::Instant::now();
    match setup.explore() {
        Ok(states) => println!("{name}: {states} states in {:?}", began.elapsed()),
        Err(broken) => panic!("{name}: {broken:#?}"),
    }
}

#[test]
fn two_nodes_hold_all_invariants_with_up_to_two_faults() {
    for faults in 0..=2 {
        holds(&format!("2 nodes, {faults} faults"), Setup::core(2, faults));
    }
}

#[test]
#[ignore = "millions of states: `scripts/suite model` runs it"]
fn two_nodes_hold_all_invariants_with_three_faults() {
    holds("2 nodes, 3 faults", Setup::core(2, 3));
}

#[test]
#[ignore = "millions of states: `scripts/suite model` runs it"]
fn three_nodes_hold_all_invariants_with_one_fault() {
    holds("3 nodes, 1 fault", Setup::core(3, 1));
}

#[test]
fn ranges_ahead_hold_all_invariants() {
    let setup = Setup { chunks: 4, ranges: true, redis: false, ..Setup::core(1, 2) };
    holds("ranges ahead, 1 node, 2 faults", setup);
    holds("ranges ahead, 2 nodes, 1 fault", Setup { nodes: 2, faults: 1, ..setup });
}

#[test]
fn bypassing_a_lost_redis_and_a_lost_spool_holds_all_invariants() {
    holds("bypass and pass-through, 2 nodes, 1 fault", Setup { spool: true, ..Setup::core(2, 1) });
}

#[test]
fn draining_holds_all_invariants() {
    holds("drain, 2 nodes, no fault", Setup { drain: true, redis: false, ..Setup::core(2, 0) });
    holds("drain, 2 nodes, 1 fault", Setup { drain: true, redis: false, chunks: 2, ..Setup::core(2, 1) });
}

#[test]
fn letting_the_end_go_before_it_is_stored_holds_all_invariants() {
    holds("a store that is late, 2 nodes, 1 fault", Setup { late: true, ..Setup::core(2, 1) });
}

#[test]
fn every_mutant_is_caught_for_the_reason_it_was_planted() {
    for (mutant, property, setup) in super::mutants::all() {
        let setup = Setup { mutant, ..setup };
        let Err(broken) = setup.explore() else { panic!("{mutant:?} is not caught") };
        let names: Vec<_> = broken.iter().map(|(name, _)| *name).collect();
        assert!(names.contains(&property), "{mutant:?} breaks {names:?}, not {property}");
        println!("{mutant:?} breaks {names:?}: {:?}", broken[0].1);
    }
}
