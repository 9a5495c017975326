//! Programs that are told to stop while they are used: nobody notices.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use entrepot_test_support::{FakeUpstream, Fault, images, wait_until};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::client::{Client, Credential};
use crate::cluster::{Cluster, Company, Member, Setup};
use crate::reader::{Wanted, read};
use crate::report::{report, seconds};

/// Long enough for HAProxy to look away before the listener closes.
const NOTICE: Duration = Duration::from_secs(3);
/// What each client and caller waits before it goes on: a member that is restarted is to be in use, not busy.
const PAUSE: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_nodes_fails_no_request() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.publish_image("warm", "v1", &[images::random_bytes(1, 3 << 20), images::random_bytes(2, 1000)]);
    for number in 0..400 {
        upstream.publish_image(&format!("cold-{number}"), "v1", &[images::random_bytes(100 + number, 200_000)]);
    }
    let setup = Setup { drain_notice: NOTICE, company: Company::Alone, ..Setup::default() };
    let Some(cluster) = Cluster::start_with(setup).await? else { return Ok(()) };
    let cluster = Arc::new(cluster);
    cluster.api().rule("demo", &upstream).await?;
    cluster.client().pull("demo/warm", "v1").await?;

    let (stop, pulls, next) =
        (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let clients = (0..6).map(|number| {
        let (cluster, stop, pulls, next) = (cluster.clone(), stop.clone(), pulls.clone(), next.clone());
        tokio::spawn(async move {
            // Connections are kept from pull to pull, as clients and load balancers do.
            let client = cluster.client();
            while !stop.load(Ordering::Relaxed) {
                let warm = client.pull("demo/warm", "v1").await;
                warm.with_context(|| format!("client {number}, a warm pull"))?;
                let cold = next.fetch_add(1, Ordering::Relaxed);
                if cold < 400 {
                    let pulled = client.pull(&format!("demo/cold-{cold}"), "v1").await;
                    pulled.with_context(|| format!("client {number}, cold pull {cold}"))?;
                }
                pulls.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await;
            }
            anyhow::Ok(())
        })
    });
    let clients: Vec<_> = clients.collect();
    let begun = Instant::now();
    for node in &cluster.nodes {
        let before = pulls.load(Ordering::Relaxed);
        cluster.until("the clients pull", async || pulls.load(Ordering::Relaxed) > before + 12).await;
        let stopping = Instant::now();
        let status = node.program.stop().await;
        assert_eq!(status.code(), Some(0), "`{}` was told to stop", node.name());
        report(&format!("`{}` had drained after", node.name()), format!("{:?}", stopping.elapsed()));
        node.start().await;
        cluster.haproxy.until_sees("registry", node.name(), true).await;
    }
    let before = pulls.load(Ordering::Relaxed);
    cluster.until("the clients pull on", async || pulls.load(Ordering::Relaxed) > before + 12).await;
    stop.store(true, Ordering::Relaxed);
    for client in try_join_all(clients).await? {
        client?;
    }
    let whole = pulls.load(Ordering::Relaxed);
    report("whole pulls without a failure during the rolling restart", format!("{whole} in {:?}", begun.elapsed()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_planes_that_are_restarted_in_turn_fail_no_call() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let setup = Setup { drain_notice: NOTICE, company: Company::Alone, ..Setup::default() };
    let Some(cluster) = Cluster::start_with(setup).await? else { return Ok(()) };
    let cluster = Arc::new(cluster);
    cluster.api().rule("demo", &upstream).await?;

    let (stop, calls, retries) =
        (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let callers = (0..3).map(|caller| {
        let (cluster, stop, calls, retries) = (cluster.clone(), stop.clone(), calls.clone(), retries.clone());
        tokio::spawn(async move {
            let api = cluster.balanced_api();
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let repeated = api.round(&format!("rule-{caller}-{round}"), "demo").await?;
                retries.fetch_add(repeated, Ordering::Relaxed);
                calls.fetch_add(3, Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await;
            }
            anyhow::Ok(())
        })
    });
    let callers: Vec<_> = callers.collect();
    for control_plane in &cluster.control_planes {
        let before = calls.load(Ordering::Relaxed);
        cluster.until("calls are answered", async || calls.load(Ordering::Relaxed) > before + 9).await;
        let status = control_plane.program.stop().await;
        assert_eq!(status.code(), Some(0), "`{}` was told to stop", control_plane.name());
        control_plane.start().await;
        cluster.haproxy.until_sees("api", control_plane.name(), true).await;
    }
    let before = calls.load(Ordering::Relaxed);
    cluster.until("calls are answered", async || calls.load(Ordering::Relaxed) > before + 9).await;
    stop.store(true, Ordering::Relaxed);
    for caller in try_join_all(callers).await? {
        caller?;
    }
    assert_eq!(cluster.api().rule_names().await?, ["rules/demo"]);
    report("calls that were answered while control planes restarted", calls.load(Ordering::Relaxed));
    report("of them after a retry", retries.load(Ordering::Relaxed));
    Ok(())
}

/// Everything is restarted in turn, as often as `ENTREPOT_RESTARTS` says, and each node in the middle of a fill that it
/// leads and others follow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_everything_fails_no_request_while_large_blobs_are_filled() -> Result<()> {
    /// Which node leads is chance.
    const TURN: Duration = Duration::from_secs(120);
    let rounds = seconds("ENTREPOT_RESTARTS", 1).as_secs();
    let setup = Setup { nodes: 3, drain_notice: NOTICE, company: Company::Alone, ..Setup::default() };
    let Some(cluster) = Cluster::start_with(setup).await? else { return Ok(()) };
    let load = Load::start(Arc::new(cluster)).await?;
    let (cluster, begun) = (load.cluster.clone(), Instant::now());
    for _ in 0..rounds {
        let mut left: BTreeSet<_> = (0..cluster.nodes.len()).collect();
        while !left.is_empty() {
            load.until_it_has_gone_on(&load.blobs).await;
            let mut leader = None;
            wait_until(TURN, &format!("one of {left:?} leads the fill of a large blob"), async || {
                // A fill that has ended meanwhile is none.
                let Some(digest) = load.filling() else { return false };
                leader = cluster.leader_of(&digest).await.filter(|number| left.contains(number));
                leader.is_some() && load.filling() == Some(digest)
            })
            .await;
            let number = leader.context("nobody leads")?;
            left.remove(&number);
            let node = &cluster.nodes[number];
            restart(node).await;
            cluster.haproxy.until_sees("registry", node.name(), true).await;
            load.until_it_has_gone_on(&load.pulls).await;
        }
        for control_plane in &cluster.control_planes {
            restart(control_plane).await;
            cluster.haproxy.until_sees("api", control_plane.name(), true).await;
            load.until_it_has_gone_on(&load.calls).await;
        }
    }
    load.until_it_has_gone_on(&load.blobs).await;
    load.stop.store(true, Ordering::Relaxed);
    let counts = [("large blobs, each read by 6", &load.blobs), ("whole pulls", &load.pulls), ("calls", &load.calls)];
    let counts = counts.map(|(what, count)| format!("{} {what}", count.load(Ordering::Relaxed))).join(", ");
    load.until_ended().await?;
    report(
        "without a failure while 3 nodes and 2 control planes restarted",
        format!("{counts} in {:?}", begun.elapsed()),
    );
    Ok(())
}

/// Tells a member to stop, and starts it again.
async fn restart(member: &Member) {
    let stopping = Instant::now();
    let status = member.program.stop().await;
    assert_eq!(status.code(), Some(0), "`{}` was told to stop", member.name());
    report(&format!("`{}` had drained after", member.name()), format!("{:?}", stopping.elapsed()));
    member.start().await;
}

/// What goes on while everything is restarted: small pulls, large ones, and calls of the API, none of which may fail.
struct Load {
    cluster: Arc<Cluster>,
    upstream: FakeUpstream,
    /// Counts what has been pulled.
    pulls: AtomicUsize,
    /// Counts large blobs that all their readers have read.
    blobs: AtomicUsize,
    /// Counts calls.
    calls: AtomicUsize,
    /// The large blob that is being filled.
    filling: Mutex<Option<String>>,
    stop: AtomicBool,
    tasks: tokio::sync::Mutex<JoinSet<Result<()>>>,
}

impl Load {
    async fn start(cluster: Arc<Cluster>) -> Result<Arc<Self>> {
        let upstream = FakeUpstream::start().await;
        cluster.api().rule("demo", &upstream).await?;
        let password = Credential::Password("AWS".to_owned(), cluster.api().login_token().await?);
        let load = Arc::new(Self {
            cluster,
            upstream,
            pulls: AtomicUsize::default(),
            blobs: AtomicUsize::default(),
            calls: AtomicUsize::default(),
            filling: Mutex::default(),
            stop: AtomicBool::default(),
            tasks: tokio::sync::Mutex::default(),
        });
        let balanced = Client::patient(&load.cluster.registry_url(), password);
        let mut tasks = load.tasks.lock().await;
        tasks.spawn(load.clone().fill_large_blobs(balanced.clone()));
        for number in 0..4 {
            tasks.spawn(load.clone().pull_small_images(number, balanced.clone()));
        }
        tasks.spawn(load.clone().call());
        drop(tasks);
        Ok(load)
    }

    /// Which blob is being filled.
    fn filling(&self) -> Option<String> {
        self.filling.lock().clone()
    }

    fn fills(&self, digest: Option<String>) {
        *self.filling.lock() = digest;
    }

    /// Waits until some more of something has been done, and nothing has failed.
    async fn until_it_has_gone_on(&self, counter: &AtomicUsize) {
        let before = counter.load(Ordering::Relaxed);
        self.cluster
            .until("the load goes on", async || {
                let failed = self.tasks.lock().await.try_join_next();
                assert!(failed.is_none(), "{failed:?}");
                counter.load(Ordering::Relaxed) > before + 1
            })
            .await;
    }

    async fn until_ended(&self) -> Result<()> {
        while let Some(ended) = self.tasks.lock().await.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// One large blob after the other, each read by six clients at once from its first byte to its last. It takes twice
    /// as long as a member that is told to stop goes on as if it had not been.
    async fn fill_large_blobs(self: Arc<Self>, balanced: Client) -> Result<()> {
        for seed in 1_000_000.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let bytes = Bytes::from(images::random_bytes(seed, 12 << 20));
            let digest = self.upstream.publish_blob("large", &bytes);
            self.upstream.script(&digest, Fault::Rate(2 << 20));
            self.fills(Some(digest.clone()));
            let wanted = Wanted { path: format!("/v2/demo/large/blobs/{digest}"), digest, bytes };
            let reads = (0..6).map(|_| read(&wanted, &balanced, &balanced, Instant::now(), || 0));
            for seen in try_join_all(reads).await? {
                ensure!(seen.cuts.is_empty(), "the reader of a large blob was cut by {:#?}", seen.cuts);
            }
            self.fills(None);
            self.upstream.remove("large", &wanted.digest);
            self.blobs.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn pull_small_images(self: Arc<Self>, number: u64, client: Client) -> Result<()> {
        for round in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let seed = number * 100_000 + round;
            self.upstream.publish_image(&format!("cold-{seed}"), "v1", &[images::random_bytes(seed, 100_000)]);
            for older in [round, round / 2] {
                let repository = format!("demo/cold-{}", number * 100_000 + older);
                client.pull(&repository, "v1").await.with_context(|| format!("{repository}, pull {round}"))?;
            }
            self.pulls.fetch_add(2, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn call(self: Arc<Self>) -> Result<()> {
        let api = self.cluster.balanced_api();
        for round in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            api.round(&format!("rule-{round}"), "demo").await?;
            self.calls.fetch_add(3, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}
