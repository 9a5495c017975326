//! One fetch for the whole cluster, through the death of any node and the loss of any link.
//!
//! Short in CI; `ENTREPOT_FAILOVER=full` is the long form, and `scripts/suite cluster` and `scripts/suite failover` run
//! it.

mod cost;
mod trouble;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use entrepot_test_support::{FakeUpstream, Fault, Link, images};
use http::StatusCode;
use tokio::task::JoinSet;

use crate::client::{Client, Credential};
use crate::cluster::{Cluster, Company, Setup};
use crate::reader::{Seen, Wanted, read};
use crate::report::{quantile, report};
use cost::Cost;
use trouble::Trouble;

const MIB: usize = 1 << 20;
const NODES: usize = 3;
/// How fast the upstream is.
const SHAPED: u64 = 4 << 20;
/// The longest that clients of living nodes may wait for their next byte when the leader dies; the goal is 3 s.
const LONGEST_STALL: Duration = Duration::from_secs(15);
/// How long a paused leader is paused.
const PAUSE: Duration = Duration::from_secs(20);
/// How long a silent upstream is silent.
const SILENCE: Duration = Duration::from_secs(10);

/// How many clients want how large a blob.
#[derive(Clone, Copy)]
struct Form {
    clients: usize,
    size: usize,
}

impl Form {
    fn of_environment() -> Self {
        match std::env::var("ENTREPOT_FAILOVER").as_deref() {
            Ok("full") => Self { clients: 200, size: 64 * MIB },
            Ok("") | Err(_) => Self { clients: 60, size: 16 * MIB },
            Ok(other) => panic!("ENTREPOT_FAILOVER is `full` or nothing, and not `{other}`"),
        }
    }
}

/// A cluster with links, and an upstream behind one.
struct Field {
    cluster: Cluster,
    upstream: Arc<FakeUpstream>,
    /// From all nodes to the upstream.
    link: Link,
    /// A client of each node.
    clients: Vec<Client>,
    balanced: Client,
    form: Form,
    seed: u64,
}

/// Readers on all nodes in turn, which read the same blob.
struct Herd {
    wanted: Wanted,
    readers: JoinSet<(usize, Result<Seen>)>,
    /// What those have seen that have ended, each with its node.
    seen: Vec<(usize, Seen)>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_over_three_nodes_has_a_cold_blob_fetched_once_and_reads_it_as_it_lands() -> Result<()> {
    let Some(mut field) = Field::new().await? else { return Ok(()) };
    let (form, mut herd) = (field.form, field.herd());
    herd.all().await?;
    let cost = field.cost(&herd);
    ensure!(cost.bodies() == 1, "the upstream was asked {cost}");
    ensure!(cost.sent() * 100 <= form.size as u64 * 101, "the upstream was asked {cost}");
    let cuts: Vec<_> = herd.seen.iter().flat_map(|(_, seen)| &seen.cuts).collect();
    ensure!(cuts.is_empty(), "nothing went wrong, and readers were cut: {cuts:#?}");
    let latest = herd.seen.iter().map(|(_, seen)| seen.landed_before).max().unwrap_or_default();
    ensure!(latest < form.size as u64 / 2, "somebody had its first byte when the upstream had sent {latest}");

    let path = format!("/v2/app/blobs/{}", herd.wanted.digest);
    let direct = Client::patient(&field.upstream.url(), Credential::Nobody);
    let direct = read(&Wanted { path, ..herd.wanted.clone() }, &direct, &direct, Instant::now(), || 0).await?;
    let first = |part| quantile(herd.seen.iter().map(|(_, seen)| seen.first_byte), part);
    let slowest = herd.seen.iter().map(|(_, seen)| seen.end).max().unwrap_or_default();
    let what = format!("{} clients over {NODES} nodes on {} MiB at 4 MiB/s", form.clients, form.size / MIB);
    report(
        &what,
        format_args!(
            "{cost}; first byte p50 {:.0?}, p99 {:.0?} (direct {:.0?}, goal +100 ms); slowest {slowest:.2?}, direct \
             {:.2?}, which is {:.3} times (goal 1.2); {:.1} MiB had left the upstream when the last had its first byte",
            first(0.5),
            first(0.99),
            direct.first_byte,
            direct.end,
            slowest.as_secs_f64() / direct.end.as_secs_f64(),
            latest as f64 / MIB as f64,
        ),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_is_killed_another_node_fetches_the_rest_and_only_clients_of_the_dead_one_notice() -> Result<()>
{
    let Some(mut field) = Field::new().await? else { return Ok(()) };
    for percent in [10, 50, 90] {
        let mut herd = field.herd();
        let leader = field.cluster.until_led(&herd.wanted.digest).await;
        field.until_landed(&herd, percent).await;
        let killed_at = field.cost(&herd).sent();
        field.cluster.nodes[leader].program.kill().await;
        herd.all().await?;
        let cost = field.cost(&herd);
        let what = format!("the leader killed at {percent} %");
        herd.report(&what, &cost, leader);

        ensure!(cost.bodies() <= 2, "{what}: the upstream was asked {cost}");
        // Within a second of where the leader was, and not again from the beginning.
        let begin = cost.begins().nth(1).unwrap_or_default();
        let expected = killed_at.saturating_sub(SHAPED).max(1)..=killed_at + SHAPED;
        ensure!(expected.contains(&begin), "{what}: the successor began at {begin}, and not within {expected:?}");
        for (node, seen) in &herd.seen {
            if *node == leader {
                ensure!(seen.cuts.len() == 1, "{what}: a client of the dead node was cut by {:#?}", seen.cuts);
            } else {
                ensure!(seen.cuts.is_empty(), "{what}: a client of node {node} was cut by {:#?}", seen.cuts);
                ensure!(seen.longest_stall <= LONGEST_STALL, "{what}: no byte for {:?}", seen.longest_stall);
            }
        }
        field.come_back(leader).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_bytes_are_right_while_the_leader_is_paused_redis_is_lost_or_nodes_do_not_reach_each_other() -> Result<()> {
    let Some(mut field) = Field::new().await? else { return Ok(()) };
    for trouble in Trouble::all() {
        let mut herd = field.herd();
        let leader = field.cluster.until_led(&herd.wanted.digest).await;
        field.until_landed(&herd, 25).await;
        let (began, lost_packets) = (Instant::now(), trouble.begin(&field.cluster, leader).await);
        if trouble == Trouble::LeaderPaused {
            herd.all_but(leader).await?;
            tokio::time::sleep_until((began + PAUSE).into()).await;
        } else {
            herd.all().await?;
        }
        drop(lost_packets);
        trouble.end(&field.cluster, leader);
        herd.all().await?;
        field.within_bounds(&herd, trouble.name(), Some(leader), trouble == Trouble::LeaderPaused)?;
        field.until_quiet().await;
    }

    // From before the fill on, so that it asks in vain for the lease.
    field.cluster.nodes[0].links().redis.stall();
    let mut herd = field.herd();
    herd.all().await?;
    field.cluster.nodes[0].links().redis.heal();
    field.within_bounds(&herd, "a node split from Redis before the fill", None, false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_is_silent_for_a_while_is_not_asked_again() -> Result<()> {
    let Some(mut field) = Field::new().await? else { return Ok(()) };
    let wanted = field.publish();
    field.upstream.script(&wanted.digest, Fault::Delay(SILENCE));
    let mut herd = field.herd_on(wanted);
    herd.all().await?;
    let cost = field.cost(&herd);
    herd.report("an upstream silent for 10 s before its headers", &cost, NODES);
    ensure!(cost.bodies() == 1 && herd.cuts() == 0, "{cost}; {} cuts", herd.cuts());

    let mut herd = field.herd();
    field.until_landed(&herd, 50).await;
    field.link.stall();
    tokio::time::sleep(SILENCE).await;
    field.link.heal();
    herd.all().await?;
    let cost = field.cost(&herd);
    herd.report("an upstream silent for 10 s in the middle", &cost, NODES);
    ensure!(cost.bodies() == 1 && herd.cuts() == 0, "{cost}; {} cuts", herd.cuts());
    Ok(())
}

impl Field {
    /// `None` if tests with a bucket are to be skipped.
    async fn new() -> Result<Option<Self>> {
        let setup =
            Setup { nodes: NODES, links: true, trace_ratio: "0.0", company: Company::Alone, ..Setup::default() };
        let Some(cluster) = Cluster::start_with(setup).await? else { return Ok(None) };
        let upstream = Arc::new(FakeUpstream::start().await);
        let link = Link::start(upstream.address()).await;
        let api = cluster.api();
        api.upstream_at("demo", &format!("http://{}", link.address()), None).await?;
        api.rule_to("demo", "demo").await?;
        let password = Credential::Password("AWS".to_owned(), api.login_token().await?);
        let balanced = Client::patient(&cluster.registry_url(), password).log_in("demo/app").await?;
        let clients = cluster.nodes.iter();
        let clients = clients.map(|node| Client::patient(&node.registry_url(), balanced.credential().clone()));
        let clients: Vec<_> = clients.collect();
        // The repository is there, and nodes know each other, as on any day.
        let small = upstream.publish_blob("app", b"small");
        for client in &clients {
            let answer = client.get(&format!("/v2/demo/app/blobs/{small}")).await?;
            ensure!(answer.status == StatusCode::OK, "a small blob: {}", answer.status);
        }
        for node in &cluster.nodes {
            cluster
                .until("nodes know each other", async || {
                    node.metric("entrepot_peers", &["reachable=\"true\""]).await.is_ok_and(|peers| peers >= 2.0)
                })
                .await;
        }
        Ok(Some(Self { cluster, upstream, link, clients, balanced, form: Form::of_environment(), seed: 0 }))
    }

    /// A blob that nobody has pulled.
    fn publish(&mut self) -> Wanted {
        self.seed += 1;
        let bytes = Bytes::from(images::random_bytes(self.seed, self.form.size));
        let digest = self.upstream.publish_blob("app", &bytes);
        self.upstream.script(&digest, Fault::Rate(SHAPED));
        Wanted { path: format!("/v2/demo/app/blobs/{digest}"), digest, bytes }
    }

    /// Lets all clients loose on a blob that nobody has pulled.
    fn herd(&mut self) -> Herd {
        let wanted = self.publish();
        self.herd_on(wanted)
    }

    fn herd_on(&self, wanted: Wanted) -> Herd {
        let (mut readers, began) = (JoinSet::new(), Instant::now());
        for number in 0..self.form.clients {
            let node = number % NODES;
            let (client, balanced) = (self.clients[node].clone(), self.balanced.clone());
            let (wanted, upstream) = (wanted.clone(), self.upstream.clone());
            readers.spawn(async move {
                let landed = || Cost::of(&upstream, &wanted.digest).sent();
                (node, read(&wanted, &client, &balanced, began, landed).await)
            });
        }
        Herd { wanted, readers, seen: Vec::new() }
    }

    fn cost(&self, herd: &Herd) -> Cost {
        Cost::of(&self.upstream, &herd.wanted.digest)
    }

    /// Waits until the upstream has sent so much of a blob.
    async fn until_landed(&self, herd: &Herd, percent: usize) {
        let enough = (self.form.size * percent / 100) as u64;
        let what = format!("{percent} % of the blob have left the upstream");
        self.cluster.until(&what, async || self.cost(herd).sent() >= enough).await;
    }

    /// Starts a dead node again.
    async fn come_back(&self, node: usize) {
        let node = &self.cluster.nodes[node];
        node.start().await;
        self.cluster.haproxy.until_sees("registry", node.name(), true).await;
        self.until_quiet().await;
    }

    /// Waits until nothing is being filled.
    async fn until_quiet(&self) {
        self.cluster
            .until("no lease is held", async || self.cluster.redis.command(&["KEYS", "f:*"]).await.is_empty())
            .await;
        for node in &self.cluster.nodes {
            self.cluster
                .until("no fill runs", async || {
                    node.metric("entrepot_fill_active", &[]).await.is_ok_and(|fills| fills == 0.0)
                })
                .await;
        }
    }

    /// One fault may cost each node one more body, and no client of a living node anything.
    fn within_bounds(&self, herd: &Herd, what: &str, leader: Option<usize>, may_be_cut: bool) -> Result<()> {
        const FAULTS: usize = 1;
        let cost = self.cost(herd);
        herd.report(what, &cost, leader.unwrap_or(NODES));
        let opens = cost.opens_per_byte();
        ensure!(opens <= NODES * (FAULTS + 1), "{what}: the upstream was asked {opens} times for a byte");
        for (node, seen) in &herd.seen {
            let cut = !seen.cuts.is_empty();
            ensure!(!cut || may_be_cut && Some(*node) == leader, "{what}: cut at node {node}: {:#?}", seen.cuts);
        }
        Ok(())
    }
}

impl Herd {
    /// Waits for all readers.
    async fn all(&mut self) -> Result<()> {
        self.all_but(NODES).await
    }

    /// Waits for all readers but those of one node, some of which may end as well.
    async fn all_but(&mut self, node: usize) -> Result<()> {
        let ended = |herd: &Self| herd.seen.iter().filter(|(at, _)| *at != node).count();
        let all = self.readers.len() + self.seen.len();
        let those = (0..all).filter(|number| number % NODES != node).count();
        while ended(self) < those {
            let Some(read) = self.readers.join_next().await else { break };
            let (at, seen) = read?;
            self.seen.push((at, seen.map_err(|error| error.context(format!("a client of node {at}")))?));
        }
        Ok(())
    }

    /// How often readers were cut.
    fn cuts(&self) -> usize {
        self.seen.iter().map(|(_, seen)| seen.cuts.len()).sum()
    }

    /// Tells what the readers saw, those of the node that was struck apart.
    fn report(&self, what: &str, cost: &Cost, struck: usize) {
        report(what, cost);
        for (whose, its) in [("of the node struck", true), ("of other nodes", false)] {
            let seen = || self.seen.iter().filter(|(node, _)| (*node == struck) == its).map(|(_, seen)| seen);
            let count = seen().count();
            if count == 0 {
                continue;
            }
            let cuts: usize = seen().map(|seen| seen.cuts.len()).sum();
            let stall = |part| quantile(seen().map(|seen| seen.longest_stall), part);
            let end = seen().map(|seen| seen.end).max().unwrap_or_default();
            report(
                &format!("{what}, {count} clients {whose}"),
                format_args!(
                    "cut {cuts} times; longest stall p50 {:.2?}, worst {:.2?} (goal 3 s); all ended after {end:.2?}",
                    stall(0.5),
                    stall(1.0)
                ),
            );
        }
    }
}
