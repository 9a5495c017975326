//! What fails in a run.

use std::time::Duration;

use entrepot_test_support::{Link, Partition};
use tokio::time::{Instant, sleep_until};

use super::NODES;
use super::world::World;
use crate::cluster::Member;
use crate::dice::Dice;

/// Between two faults.
const REST: Duration = Duration::from_millis(400);
/// What comes late comes this much later.
const LATE: Duration = Duration::from_millis(300);
/// Of so many faults of a long run one lasts beyond the time that others count a node as alive.
const LONG_ONE_OF: usize = 5;
const LONG: Duration = Duration::from_secs(50);

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A node is paused.
    Paused,
    /// Other nodes are refused by one, wait for it in vain, are not heard by it, or late.
    PeerRefuses,
    PeerStalls,
    PeerLost,
    PeerLate,
    /// The bucket refuses a node, does not answer it, or answers late.
    StoreRefuses,
    StoreStalls,
    StoreLate,
    /// The bucket refuses everybody.
    StoreAway,
    /// A node does not reach the control plane.
    ControlRefuses,
    /// The control plane has the bucket's answers late.
    ControlStoreLate,
    /// A node does not reach Redis.
    RedisRefuses,
}

/// What goes wrong with nodes and between them, and with all else. One of each at a time.
pub(super) const HANDS: [&[Fault]; 2] = [
    &[Fault::Paused, Fault::PeerRefuses, Fault::PeerStalls, Fault::PeerLost, Fault::PeerLate],
    &[
        Fault::StoreRefuses,
        Fault::StoreStalls,
        Fault::StoreLate,
        Fault::StoreAway,
        Fault::ControlRefuses,
        Fault::ControlStoreLate,
        Fault::RedisRefuses,
    ],
];

impl Fault {
    /// How long it lasts, from and to how many milliseconds.
    fn lasts(self) -> (usize, usize) {
        match self {
            // Beyond the hold time, or not.
            Self::Paused => (2000, 7000),
            Self::PeerRefuses | Self::PeerStalls | Self::PeerLost => (2000, 6000),
            Self::PeerLate | Self::StoreLate | Self::RedisRefuses => (1000, 2500),
            // Long enough for what is held to be believed no more.
            Self::StoreRefuses => (6500, 8000),
            Self::StoreStalls | Self::ControlRefuses => (2000, 4500),
            Self::StoreAway | Self::ControlStoreLate => (1000, 2000),
        }
    }

    /// Whether it may last for so long that nodes are taken for dead.
    fn may_last(self) -> bool {
        !matches!(self, Self::StoreAway | Self::ControlStoreLate | Self::StoreLate | Self::PeerLate)
    }
}

/// Lets one thing fail after the other as long as it is to go on, each at least once, in an order that the dice decide.
pub(super) async fn strike_all(
    world: &World,
    faults: &[Fault],
    dice: &mut Dice,
    goes_on: impl Fn() -> bool,
    is_long: bool,
) {
    let mut is_first = true;
    while is_first || goes_on() {
        let mut left = faults.to_vec();
        while let Some(number) = dice.below(left.len()).filter(|_| is_first || goes_on()) {
            let fault = left.swap_remove(number);
            let (least, most) = fault.lasts();
            let lasts = Duration::from_millis((least + dice.below(most - least).unwrap_or_default()) as u64);
            let is_longer = is_long && fault.may_last() && dice.below(LONG_ONE_OF) == Some(0);
            let node = dice.below(NODES).unwrap_or_default();
            world.count(format!("{fault:?}"));
            let begin = world.now();
            strike(world, fault, node, Instant::now() + if is_longer { LONG } else { lasts }).await;
            world.failed(format!("{fault:?} at {}", world.cluster.nodes[node].name()), begin);
            sleep_until(Instant::now() + REST).await;
        }
        is_first = false;
    }
}

async fn strike(world: &World, fault: Fault, node: usize, until: Instant) {
    let nodes = &world.cluster.nodes;
    let node = &nodes[node];
    let links: Vec<&Link> = match fault {
        Fault::Paused => return pause(node, until).await,
        Fault::PeerRefuses | Fault::PeerStalls | Fault::PeerLost | Fault::PeerLate => vec![&node.links().peer],
        Fault::StoreRefuses | Fault::StoreStalls | Fault::StoreLate => vec![&node.links().store],
        Fault::StoreAway => nodes.iter().map(|node| &node.links().store).collect(),
        Fault::ControlRefuses => node.links().apis.iter().collect(),
        Fault::ControlStoreLate => world.cluster.control_planes.iter().map(|plane| &plane.links().store).collect(),
        Fault::RedisRefuses => vec![&node.links().redis],
    };
    let mut lost = None;
    match fault {
        Fault::PeerStalls | Fault::StoreStalls => links.iter().for_each(|link| link.stall()),
        Fault::PeerLate | Fault::StoreLate | Fault::ControlStoreLate => links.iter().for_each(|link| link.delay(LATE)),
        Fault::PeerLost if Partition::works() => {
            let addresses: Vec<_> = links.iter().map(|link| link.address()).collect();
            lost = Some(Partition::of(&addresses).await);
        }
        Fault::Paused
        | Fault::PeerRefuses
        | Fault::PeerLost
        | Fault::StoreRefuses
        | Fault::StoreAway
        | Fault::ControlRefuses
        | Fault::RedisRefuses => links.iter().for_each(|link| link.refuse()),
    }
    sleep_until(until).await;
    drop(lost);
    links.iter().for_each(|link| link.heal());
}

async fn pause(node: &Member, until: Instant) {
    node.program.freeze();
    sleep_until(until).await;
    node.program.thaw();
}
