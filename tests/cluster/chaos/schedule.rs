//! What goes wrong when: a pure function of a seed.

use std::time::Duration;

use crate::dice::Dice;

/// How often something goes wrong.
const EVERY: Duration = Duration::from_secs(2);
/// How long a run is that has every kind of fault, whatever its seed.
pub(super) const SHORT: Duration = Duration::from_secs(120);
/// How many kinds of faults there are.
pub(super) const KINDS: usize = 27;
/// Nothing begins so shortly before the end, and everything is over a little before it.
const LAST: Duration = Duration::from_secs(30);
const OVER: Duration = Duration::from_secs(10);

/// What goes wrong, and where. Numbers are those of nodes and control planes, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Node(usize, NodeFault),
    Redis(RedisFault),
    Control(ControlFault),
    /// The bucket, as one node sees it, or all of them.
    Store(Option<usize>, LinkFault),
    /// One node, as the others see it.
    Peer(usize, LinkFault),
    Upstream(UpstreamFault),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeFault {
    /// SIGKILL for the node that leads a fill, or else for the one that is named.
    Kill,
    /// SIGSTOP.
    Pause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RedisFault {
    /// It is killed, and comes back empty.
    Restart,
    Flush,
    /// Redis, as one node sees it.
    Link(usize, LinkFault),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ControlFault {
    /// Postgres is killed.
    Postgres,
    Stop(usize),
    /// A node does not reach a control plane.
    Cut(usize, usize),
    /// A control plane does not reach the bucket.
    Bucket(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkFault {
    Slow,
    /// Everything comes later.
    Delay,
    /// Nothing comes, and connections stay.
    Stall,
    /// Connections are reset.
    Cut,
    /// Packets are lost.
    Lose,
}

/// What the upstream does to every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpstreamFault {
    /// Bodies are reset after a while.
    Resets,
    /// Bodies end after a while as if that were all.
    Ends,
    Throttles,
    Fails,
    /// Nobody answers at its address.
    Away,
    Slow,
    Silent,
    /// Some requests for blobs meet anything that a registry could show.
    Hostile,
}

/// What is struck. Nothing is struck twice at once, so that there is always a node that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Area {
    Nodes,
    Redis,
    Control,
    Store,
    Peers,
    Upstream,
}

/// A fault with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    /// When it begins.
    pub(super) at: Duration,
    pub(super) fault: Fault,
    /// How long it lasts.
    pub(super) lasts: Duration,
}

impl Fault {
    pub(super) fn area(self) -> Area {
        match self {
            Self::Node(..) => Area::Nodes,
            Self::Redis(_) => Area::Redis,
            Self::Control(_) => Area::Control,
            Self::Store(..) => Area::Store,
            Self::Peer(..) => Area::Peers,
            Self::Upstream(_) => Area::Upstream,
        }
    }

    /// Its name, without numbers.
    pub(super) fn kind(self) -> String {
        match self {
            Self::Node(_, fault) => format!("node {fault:?}"),
            Self::Redis(RedisFault::Link(_, fault)) => format!("redis {fault:?}"),
            Self::Redis(fault) => format!("redis {fault:?}"),
            Self::Control(ControlFault::Postgres) => "postgres Restart".to_owned(),
            Self::Control(ControlFault::Stop(_)) => "control plane Stop".to_owned(),
            Self::Control(ControlFault::Cut(..)) => "control plane Cut".to_owned(),
            Self::Control(ControlFault::Bucket(_)) => "control plane Bucket".to_owned(),
            Self::Store(Some(_), fault) => format!("bucket {fault:?}"),
            Self::Store(None, fault) => format!("bucket of all {fault:?}"),
            Self::Peer(_, fault) => format!("peer {fault:?}"),
            Self::Upstream(fault) => format!("upstream {fault:?}"),
        }
    }
}

impl Area {
    const ALL: [Self; 6] = [Self::Nodes, Self::Redis, Self::Control, Self::Store, Self::Peers, Self::Upstream];

    /// What can go wrong in it, and how many milliseconds each lasts at most, or a quarter more.
    fn kinds(self, node: usize, control_plane: usize) -> Vec<(Fault, usize)> {
        match self {
            Self::Nodes => vec![
                (Fault::Node(node, NodeFault::Kill), 3000),
                (Fault::Node(node, NodeFault::Kill), 3000),
                (Fault::Node(node, NodeFault::Pause), 16_000),
            ],
            Self::Redis => vec![
                (Fault::Redis(RedisFault::Restart), 2000),
                (Fault::Redis(RedisFault::Flush), 0),
                (Fault::Redis(RedisFault::Link(node, LinkFault::Delay)), 6000),
                (Fault::Redis(RedisFault::Link(node, LinkFault::Stall)), 6000),
                (Fault::Redis(RedisFault::Link(node, LinkFault::Cut)), 4000),
            ],
            Self::Control => vec![
                (Fault::Control(ControlFault::Postgres), 3000),
                (Fault::Control(ControlFault::Stop(control_plane)), 8000),
                (Fault::Control(ControlFault::Cut(node, control_plane)), 6000),
                (Fault::Control(ControlFault::Bucket(control_plane)), 6000),
            ],
            Self::Store => vec![
                (Fault::Store(Some(node), LinkFault::Slow), 6000),
                (Fault::Store(Some(node), LinkFault::Stall), 6000),
                (Fault::Store(Some(node), LinkFault::Cut), 5000),
                (Fault::Store(None, LinkFault::Stall), 3000),
            ],
            Self::Peers => vec![
                (Fault::Peer(node, LinkFault::Slow), 8000),
                (Fault::Peer(node, LinkFault::Stall), 6000),
                (Fault::Peer(node, LinkFault::Cut), 5000),
                (Fault::Peer(node, LinkFault::Lose), 6000),
            ],
            Self::Upstream => vec![
                (Fault::Upstream(UpstreamFault::Resets), 5000),
                (Fault::Upstream(UpstreamFault::Ends), 4000),
                (Fault::Upstream(UpstreamFault::Throttles), 3000),
                (Fault::Upstream(UpstreamFault::Fails), 3000),
                (Fault::Upstream(UpstreamFault::Away), 3000),
                (Fault::Upstream(UpstreamFault::Slow), 5000),
                (Fault::Upstream(UpstreamFault::Silent), 5000),
                (Fault::Upstream(UpstreamFault::Hostile), 6000),
            ],
        }
    }

    /// How long it takes until what was struck is whole again.
    fn recovery(self) -> Duration {
        Duration::from_secs(match self {
            Self::Nodes | Self::Control => 5,
            Self::Redis | Self::Store | Self::Peers | Self::Upstream => 1,
        })
    }
}

/// The faults of a run of this length: one every 2 s. Each kind comes once before any comes again by chance.
pub(super) fn schedule(seed: u64, length: Duration, nodes: usize, control_planes: usize) -> Vec<Planned> {
    let (mut dice, mut planned) = (Dice(seed), Vec::new());
    let mut busy = Area::ALL.map(|area| (area, Duration::ZERO));
    let mut unseen = Area::ALL.map(|area| (area, (0..area.kinds(0, 0).len()).collect::<Vec<_>>()));
    let mut at = EVERY;
    while at + LAST <= length {
        let free: Vec<_> = Area::ALL.into_iter().filter(|area| busy.contains(&(*area, Duration::ZERO))).collect();
        let fresh: Vec<_> = unseen
            .iter()
            .filter(|(area, _)| free.contains(area))
            .flat_map(|(area, kinds)| kinds.iter().map(|kind| (*area, *kind)))
            .collect();
        let (fault, most) = match (dice.below(fresh.len()), dice.below(free.len())) {
            (Some(number), _) => {
                let (area, kind) = fresh[number];
                unseen.iter_mut().for_each(|(of, kinds)| kinds.retain(|known| (*of, *known) != (area, kind)));
                dice.fault(area, Some(kind), nodes, control_planes)
            }
            (None, Some(number)) => dice.fault(free[number], None, nodes, control_planes),
            (None, None) => (Fault::Redis(RedisFault::Flush), 0),
        };
        let lasts = Duration::from_millis(dice.below(most).unwrap_or_default() as u64 + most as u64 / 4);
        let lasts = lasts.min(length - OVER - at);
        planned.push(Planned { at, fault, lasts });
        at += EVERY;
        for (area, until) in &mut busy {
            if *area == fault.area() && most > 0 {
                *until = at - EVERY + lasts + area.recovery();
            }
            if *until <= at {
                *until = Duration::ZERO;
            }
        }
    }
    planned
}

impl Dice {
    /// A fault of an area, of this kind or of any, and how many milliseconds it lasts at most, or a quarter more.
    fn fault(&mut self, area: Area, kind: Option<usize>, nodes: usize, control_planes: usize) -> (Fault, usize) {
        let node = self.below(nodes).unwrap_or_default();
        let control_plane = self.below(control_planes).unwrap_or_default();
        let kinds = area.kinds(node, control_plane);
        kinds[kind.or_else(|| self.below(kinds.len())).unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const LENGTH: Duration = Duration::from_secs(360);

    #[test]
    fn a_seed_decides_the_same_again_and_another_something_else() {
        assert_eq!(schedule(1, LENGTH, 3, 2), schedule(1, LENGTH, 3, 2));
        assert_ne!(schedule(1, LENGTH, 3, 2), schedule(2, LENGTH, 3, 2));
    }

    #[test]
    fn something_goes_wrong_every_two_seconds_and_all_is_over_before_the_end() {
        let planned = schedule(3, LENGTH, 3, 2);
        assert_eq!(planned.len(), 165);
        for (earlier, later) in planned.iter().zip(&planned[1..]) {
            assert_eq!(later.at - earlier.at, EVERY);
        }
        assert!(planned.iter().all(|planned| planned.at + planned.lasts + OVER <= LENGTH));
        assert!(schedule(3, Duration::from_secs(10), 3, 2).is_empty());
    }

    #[test]
    fn nothing_is_struck_twice_at_once() {
        for seed in 0..50 {
            let planned = schedule(seed, LENGTH, 3, 2);
            for (number, one) in planned.iter().enumerate().filter(|(_, one)| one.lasts > Duration::ZERO) {
                let later = planned[number + 1..].iter().filter(|other| other.lasts > Duration::ZERO);
                let mut same = later.filter(|other| other.fault.area() == one.fault.area());
                let next = same.next();
                assert!(next.is_none_or(|next| next.at >= one.at + one.lasts), "{seed}: {one:?} and {next:?}");
            }
        }
    }

    #[test]
    fn every_kind_of_fault_comes_within_the_two_minutes_of_every_change() {
        for seed in 0..50 {
            let planned = schedule(seed, SHORT, 3, 2);
            let kinds: BTreeSet<_> = planned.iter().map(|planned| planned.fault.kind()).collect();
            assert_eq!(kinds.len(), KINDS, "seed {seed}: {kinds:?}");
        }
    }
}
