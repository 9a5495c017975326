//! What befalls a cluster in the middle of a fill.

use entrepot_test_support::Partition;

use crate::cluster::Cluster;

/// So slow a link is no use.
const SLOW: u64 = 16 << 10;

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The leader gets a SIGSTOP, and goes on later.
    LeaderPaused,
    /// Redis forgets everything.
    RedisFlushed,
    /// What the leader and Redis say to each other does not arrive.
    LeaderWithoutRedis,
    /// Other nodes' connections to the leader are reset, and so are new ones.
    PeerCut,
    /// What other nodes and the leader say to each other does not arrive; connections stay.
    PeerStalled,
    /// All packets between them are lost.
    PeerLost,
    /// Other nodes hear from the leader at 16 KiB/s.
    PeerSlow,
}

impl Trouble {
    /// All that can be made on this machine.
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![
            Self::RedisFlushed,
            Self::LeaderWithoutRedis,
            Self::PeerCut,
            Self::PeerStalled,
            Self::PeerSlow,
            Self::LeaderPaused,
        ];
        if Partition::works() {
            all.push(Self::PeerLost);
        }
        all
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::LeaderPaused => "the leader paused",
            Self::RedisFlushed => "Redis flushed",
            Self::LeaderWithoutRedis => "the leader split from Redis",
            Self::PeerCut => "the link to the leader cut",
            Self::PeerStalled => "the link to the leader stalled",
            Self::PeerLost => "the packets to the leader lost",
            Self::PeerSlow => "the link to the leader at 16 KiB/s",
        }
    }

    /// It begins. Packets are lost until what this answers is dropped.
    pub(super) async fn begin(self, cluster: &Cluster, leader: usize) -> Option<Partition> {
        let node = &cluster.nodes[leader];
        match self {
            Self::LeaderPaused => node.program.freeze(),
            Self::RedisFlushed => cluster.redis.flush().await,
            Self::LeaderWithoutRedis => node.links().redis.stall(),
            Self::PeerCut => node.links().peer.refuse(),
            Self::PeerStalled => node.links().peer.stall(),
            Self::PeerLost => return Some(Partition::of(&[node.links().peer.address()]).await),
            Self::PeerSlow => node.links().peer.slow(SLOW),
        }
        None
    }

    /// It is over.
    pub(super) fn end(self, cluster: &Cluster, leader: usize) {
        let node = &cluster.nodes[leader];
        if self == Self::LeaderPaused {
            node.program.thaw();
        }
        node.links().all().for_each(entrepot_test_support::Link::heal);
    }
}
