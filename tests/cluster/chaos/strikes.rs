//! Faults as they are carried out.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use entrepot_test_support::program::probe;
use entrepot_test_support::{FakeUpstream, Fault as Script, Link, Partition, wait_until};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::sleep;

use super::excuse::{self, Excuse, Strike};
use super::schedule::{Area, ControlFault, Fault, LinkFault, NodeFault, Planned, RedisFault, UpstreamFault};
use crate::cluster::{Cluster, Member};
use crate::reader::Cut;

/// How fast the upstream is for all nodes together, so that there is a fill to strike at nearly all times.
pub(super) const UPSTREAM_RATE: u64 = 8 << 20;
/// What a slow link carries.
const SLOW: u64 = 16 << 10;
const LATENCY: Duration = Duration::from_secs(2);
/// How long a member may take to come back.
const COME_BACK: Duration = Duration::from_secs(120);

/// What faults are carried out on.
pub(super) struct Field {
    pub(super) cluster: Arc<Cluster>,
    pub(super) upstream: Arc<FakeUpstream>,
    /// From all nodes to the upstream.
    pub(super) link: Link,
    seed: u64,
    /// One fault in an area at a time, however long the last one took to heal.
    turns: HashMap<Area, tokio::sync::Mutex<()>>,
    strikes: Mutex<Vec<Strike>>,
    starts: AtomicUsize,
}

impl Field {
    pub(super) fn new(cluster: Arc<Cluster>, upstream: Arc<FakeUpstream>, link: Link, seed: u64) -> Self {
        let areas = [Area::Nodes, Area::Redis, Area::Control, Area::Store, Area::Peers, Area::Upstream];
        let turns = areas.map(|area| (area, tokio::sync::Mutex::default())).into();
        link.slow(UPSTREAM_RATE);
        Self { cluster, upstream, link, seed, turns, strikes: Mutex::default(), starts: AtomicUsize::default() }
    }

    /// Carries out one fault, waits while it lasts, and heals it.
    pub(super) async fn strike(&self, planned: Planned) {
        let Planned { fault, lasts, .. } = planned;
        let _turn = self.turns[&fault.area()].lock().await;
        let node = match fault {
            // In the middle of a fill, if there is one.
            Fault::Node(node, NodeFault::Kill) => Some(self.cluster.any_leader().await.unwrap_or(node)),
            Fault::Node(node, NodeFault::Pause) | Fault::Peer(node, _) => Some(node),
            Fault::Store(node, _) => node,
            Fault::Redis(_) | Fault::Control(_) | Fault::Upstream(_) => None,
        };
        let name = node.map(|node| self.cluster.nodes[node].name().to_owned());
        let number = {
            let mut strikes = self.lock();
            strikes.push(Strike { fault, node: name, from: Instant::now(), until: None });
            strikes.len() - 1
        };
        let nodes = match node {
            Some(node) => std::slice::from_ref(&self.cluster.nodes[node]),
            None => &*self.cluster.nodes,
        };
        match fault {
            Fault::Node(_, fault) => self.strike_node(fault, &nodes[0], lasts).await,
            Fault::Redis(fault) => self.strike_redis(fault, lasts).await,
            Fault::Control(fault) => self.strike_control(fault, lasts).await,
            Fault::Store(_, fault) => misbehave(nodes.iter().map(|node| &node.links().store), fault, lasts).await,
            Fault::Peer(_, fault) => misbehave(nodes.iter().map(|node| &node.links().peer), fault, lasts).await,
            Fault::Upstream(fault) => self.strike_upstream(fault, lasts).await,
        }
        self.lock()[number].until = Some(Instant::now());
    }

    async fn strike_node(&self, fault: NodeFault, node: &Member, lasts: Duration) {
        match fault {
            NodeFault::Pause => {
                node.program.freeze();
                sleep(lasts).await;
                node.program.thaw();
            }
            NodeFault::Kill => {
                node.program.kill().await;
                sleep(lasts).await;
                self.come_back(node).await;
                self.cluster.haproxy.until_sees("registry", node.name(), true).await;
            }
        }
    }

    async fn strike_redis(&self, fault: RedisFault, lasts: Duration) {
        match fault {
            RedisFault::Restart => {
                self.cluster.redis.kill().await;
                sleep(lasts).await;
                self.cluster.redis.start_again().await;
            }
            RedisFault::Flush => self.cluster.redis.flush().await,
            RedisFault::Link(node, fault) => {
                misbehave([&self.cluster.nodes[node].links().redis].into_iter(), fault, lasts).await;
            }
        }
    }

    async fn strike_control(&self, fault: ControlFault, lasts: Duration) {
        match fault {
            ControlFault::Postgres => {
                self.cluster.postgres.kill().await;
                sleep(lasts).await;
                self.cluster.postgres.resume().await;
            }
            ControlFault::Stop(number) => {
                let control_plane = &self.cluster.control_planes[number];
                control_plane.program.stop().await;
                sleep(lasts).await;
                self.come_back(control_plane).await;
            }
            ControlFault::Cut(node, control_plane) => {
                let link = &self.cluster.nodes[node].links().apis[control_plane];
                misbehave([link].into_iter(), LinkFault::Cut, lasts).await;
            }
            ControlFault::Bucket(number) => {
                let link = &self.cluster.control_planes[number].links().store;
                misbehave([link].into_iter(), LinkFault::Stall, lasts).await;
            }
        }
    }

    async fn strike_upstream(&self, fault: UpstreamFault, lasts: Duration) {
        let script = |script| self.upstream.script("GET /v2/", script);
        match fault {
            UpstreamFault::Resets => script(Script::ResetAfter(70_000)),
            UpstreamFault::Ends => script(Script::EndAfter(70_000)),
            UpstreamFault::Throttles => script(Script::Status(429, Some("1".to_owned()))),
            UpstreamFault::Fails => script(Script::Status(503, None)),
            UpstreamFault::Away => self.link.refuse(),
            UpstreamFault::Slow => self.link.slow(UPSTREAM_RATE / 32),
            UpstreamFault::Silent => self.link.stall(),
            // Only where a digest says what is right: what it sends for a tag is what the tag means.
            UpstreamFault::Hostile => self.upstream.chaos_in("/blobs/", self.seed, 40),
        }
        sleep(lasts).await;
        self.upstream.heal();
        self.link.heal();
        self.link.slow(UPSTREAM_RATE);
    }

    /// Starts a member, and again whenever it ends because something else is away, as whatever watches over it would.
    async fn come_back(&self, member: &Member) {
        let what = format!("`{}` has come back", member.name());
        wait_until(COME_BACK, &what, async || {
            if !member.program.is_running() {
                self.starts.fetch_add(1, Ordering::Relaxed);
                member.program.start();
            }
            probe(member.at.operations(), "/readyz").await.is_ok_and(|answer| answer.status == 200)
        })
        .await;
    }

    /// See [`excuse::is_kept`].
    pub(super) fn is_kept(&self, pulled: (Instant, Instant)) -> bool {
        excuse::is_kept(&self.lock(), pulled)
    }

    /// What goes wrong at the moment.
    pub(super) fn now(&self) -> Vec<String> {
        let strikes = self.lock();
        let lasting = strikes.iter().filter(|strike| strike.until.is_none());
        lasting
            .map(|strike| format!("{} {}", strike.fault.kind(), strike.node.as_deref().unwrap_or_default()))
            .collect()
    }

    /// All faults so far.
    pub(super) fn strikes(&self) -> Vec<Strike> {
        self.lock().clone()
    }

    /// How often members were started again.
    pub(super) fn starts(&self) -> usize {
        self.starts.load(Ordering::Relaxed)
    }

    /// See [`excuse::excuse`].
    pub(super) fn excuse(&self, cut: &Cut, kept: bool) -> Option<Excuse> {
        excuse::excuse(&self.lock(), cut, kept)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Strike>> {
        self.strikes.lock()
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Field").field("seed", &self.seed).finish_non_exhaustive()
    }
}

/// Has links misbehave for a while.
async fn misbehave<'a>(links: impl Iterator<Item = &'a Link> + Clone, fault: LinkFault, lasts: Duration) {
    let mut lost = None;
    match fault {
        LinkFault::Slow => links.clone().for_each(|link| link.slow(SLOW)),
        LinkFault::Delay => links.clone().for_each(|link| link.delay(LATENCY)),
        LinkFault::Stall => links.clone().for_each(Link::stall),
        LinkFault::Lose if Partition::works() => {
            let addresses: Vec<_> = links.clone().map(Link::address).collect();
            lost = Some(Partition::of(&addresses).await);
        }
        LinkFault::Cut | LinkFault::Lose => links.clone().for_each(Link::refuse),
    }
    sleep(lasts).await;
    drop(lost);
    links.for_each(Link::heal);
}
