//! Two nodes that fill the same content at the same time, in every order in which their steps can happen, with every
//! fault at every moment. The nodes run the machine itself, not a copy of it.

use std::collections::{HashSet, VecDeque};

use super::*;

/// How often each node may wait before its patience ends.
const PAUSES: u8 = 2;
/// No run is longer: a run that is would never end.
const LONGEST: usize = 60;

type Decide = fn(Fill, Event) -> (Fill, &'static [Step]);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    nodes: [Node; 2],
    /// Who holds the lease, if anybody.
    lease: Option<usize>,
    stored: bool,
    transfers: u8,
    /// What may still go wrong.
    faults: u8,
    /// Whether a node ran out of patience.
    impatient: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    fill: Fill,
    steps: VecDeque<Step>,
    pauses: u8,
    /// Something went wrong that this node's readers are told of.
    failed: bool,
    verified: bool,
    crashed: bool,
}

impl World {
    fn new(faults: u8) -> Self {
        let (fill, steps) = Fill::start();
        let steps = steps.iter().copied().collect();
        let node = Node { fill, steps, pauses: PAUSES, failed: false, verified: false, crashed: false };
        Self { nodes: [node.clone(), node], lease: None, stored: false, transfers: 0, faults, impatient: false }
    }

    /// All that can happen next.
    fn successors(&self, decide: Decide) -> Vec<Self> {
        let mut next = Vec::new();
        for at in 0..self.nodes.len() {
            next.extend(self.step(at, decide));
            if self.faults > 0 {
                next.extend(self.faulty_step(at, decide));
                next.extend(self.crash(at));
            }
        }
        // The lease of a dead node runs out. That of a living one may be lost by any fault of Redis, or of its clock.
        let orphaned = self.lease.is_some_and(|holder| self.nodes[holder].crashed);
        if orphaned || (self.lease.is_some() && self.faults > 0) {
            next.push(Self { lease: None, faults: self.faults - u8::from(!orphaned), ..self.clone() });
        }
        next
    }

    /// A node carries out its next step, and all goes well.
    fn step(&self, at: usize, decide: Decide) -> Option<Self> {
        let mut world = self.clone();
        let event = match world.nodes[at].steps.pop_front()? {
            Step::Look if world.stored => Some(Event::Found),
            Step::Look => Some(Event::Absent),
            Step::Claim if world.lease.is_none() => {
                world.lease = Some(at);
                Some(Event::Granted)
            }
            Step::Claim => Some(Event::Busy),
            Step::Wait if world.nodes[at].pauses > 0 => {
                world.nodes[at].pauses -= 1;
                Some(Event::Waited)
            }
            Step::Wait => {
                world.impatient = true;
                Some(Event::OutOfPatience)
            }
            Step::Transfer => {
                world.transfers += 1;
                world.nodes[at].verified = true;
                Some(Event::Verified)
            }
            Step::Commit => {
                world.stored = true;
                Some(Event::Committed)
            }
            Step::ReleaseLease => {
                // Compared before it is deleted: another's lease is left alone.
                world.lease = world.lease.filter(|holder| *holder != at);
                None
            }
            Step::ReleaseTail | Step::AbortUpload => None,
        };
        Some(world.after(at, event, decide))
    }

    /// A node carries out its next step, which fails.
    fn faulty_step(&self, at: usize, decide: Decide) -> Option<Self> {
        let mut world = Self { faults: self.faults - 1, ..self.clone() };
        let event = match world.nodes[at].steps.pop_front()? {
            Step::Look => Some(Event::StoreAway),
            // Redis is away: on without a lease.
            Step::Claim => Some(Event::Granted),
            Step::Transfer => {
                world.transfers += 1;
                world.nodes[at].failed = true;
                Some(Event::TransferFailed)
            }
            Step::Commit => Some(Event::CommitFailed),
            // The lease is not given back, and runs out.
            Step::ReleaseLease => {
                world.nodes[at].crashed = true;
                None
            }
            Step::Wait | Step::ReleaseTail | Step::AbortUpload => return None,
        };
        Some(world.after(at, event, decide))
    }

    fn crash(&self, at: usize) -> Option<Self> {
        let mut world = Self { faults: self.faults - 1, ..self.clone() };
        let node = &mut world.nodes[at];
        if node.crashed || node.steps.is_empty() {
            return None;
        }
        (node.crashed, node.failed, node.fill) = (true, true, Fill::Finished(Outcome::Failed));
        node.steps.clear();
        Some(world)
    }

    fn after(mut self, at: usize, event: Option<Event>, decide: Decide) -> Self {
        if let Some(event) = event {
            let (fill, steps) = decide(self.nodes[at].fill, event);
            self.nodes[at].fill = fill;
            self.nodes[at].steps.extend(steps);
        }
        self
    }

    /// What is wrong with this world, if anything is.
    fn wrong(&self, faults: u8) -> Option<&'static str> {
        let at_rest = self.nodes.iter().all(|node| node.steps.is_empty());
        let unharmed = self.faults == faults && !self.impatient;
        for node in &self.nodes {
            let Fill::Finished(outcome) = node.fill else {
                if node.steps.is_empty() {
                    return Some("waits for nothing");
                }
                continue;
            };
            match outcome {
                Outcome::Stored if !self.stored => return Some("says `stored`, and it is not"),
                Outcome::Uncached if !node.verified => return Some("has let unverified bytes go"),
                Outcome::Failed if !node.failed => return Some("has failed for no reason"),
                Outcome::Stored | Outcome::Uncached | Outcome::Failed => {}
            }
        }
        if self.transfers > 2 {
            return Some("has been transferred more often than there are nodes");
        }
        if unharmed && self.transfers > 1 {
            return Some("has been transferred twice, and nothing had gone wrong");
        }
        if unharmed && at_rest && self.transfers != 1 {
            return Some("has not been transferred");
        }
        let left_behind = self.lease.is_some_and(|holder| !self.nodes[holder].crashed);
        (at_rest && left_behind).then_some("has left a lease behind")
    }
}

/// Walks every run with at most `faults` faults. Returns how many worlds there were, or what is wrong with one.
fn explore(faults: u8, decide: Decide) -> Result<usize, &'static str> {
    // All worlds that are as many steps away. There would be some for ever if a run could go on for ever.
    let mut layer = HashSet::from([World::new(faults)]);
    let mut count = 0;
    for _ in 0..LONGEST {
        if layer.is_empty() {
            return Ok(count);
        }
        count += layer.len();
        if let Some(problem) = layer.iter().find_map(|world| world.wrong(faults)) {
            return Err(problem);
        }
        layer = layer.iter().flat_map(|world| world.successors(decide)).collect();
    }
    Err("there is a run that does not end")
}

#[test]
fn two_nodes_transfer_once_and_faults_cost_no_more_than_a_second_transfer() {
    for faults in 0..=4 {
        let worlds = explore(faults, Fill::on).unwrap_or_else(|problem| panic!("with {faults} faults, one {problem}"));
        println!("{faults} faults: {worlds} worlds");
    }
}

#[test]
fn the_model_sees_what_is_wrong_with_other_machines() {
    /// Transfers as soon as it has the lease.
    fn without_second_look(fill: Fill, event: Event) -> (Fill, &'static [Step]) {
        match (fill, event) {
            (Fill::Claiming, Event::Granted) => (Fill::Transferring, &[Step::Transfer]),
            (fill, event) => fill.on(event),
        }
    }
    /// Waits for as long as another holds the lease.
    fn without_end(fill: Fill, event: Event) -> (Fill, &'static [Step]) {
        match (fill, event) {
            (Fill::Waiting, Event::OutOfPatience) => (Fill::Waiting, &[Step::Wait]),
            (fill, event) => fill.on(event),
        }
    }
    /// Forgets the lease when the store has the content.
    fn without_release(fill: Fill, event: Event) -> (Fill, &'static [Step]) {
        match (fill, event) {
            (Fill::LookingAgain, Event::Found) => (Fill::Finished(Outcome::Stored), &[]),
            (fill, event) => fill.on(event),
        }
    }
    assert_eq!(explore(0, without_second_look), Err("has been transferred twice, and nothing had gone wrong"));
    assert_eq!(explore(0, without_end), Err("there is a run that does not end"));
    assert_eq!(explore(1, without_release), Err("has left a lease behind"));
}
