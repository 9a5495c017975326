//! Redis away, forgetful or frozen: pulls cost a little more, and nothing else.

use std::time::Duration;

use anyhow::Result;
use entrepot_test_support::{FakeUpstream, images};
use futures_util::future::try_join_all;

use crate::cluster::Cluster;
use crate::report::{median, report};

/// How many cold pulls make a figure.
const PULLS: u64 = 11;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cold_pulls_go_on_without_an_error_while_redis_is_stopped_flushed_or_frozen() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let Some(cluster) = Cluster::start().await? else { return Ok(()) };
    cluster.api().rule("demo", &upstream).await?;
    let mut pulls = Pulls { cluster: &cluster, upstream: &upstream, count: 0 };
    pulls.cold("warm-up").await?;

    let usual = pulls.cold("with Redis").await?;
    cluster.redis.stop().await;
    let stopped = pulls.cold("Redis stopped").await?;
    cluster.redis.start_again().await;
    pulls.cold("Redis back").await?;
    cluster.redis.pause();
    let frozen = pulls.cold("Redis frozen").await?;
    let herd = pulls.herd("Redis frozen").await?;
    assert!(herd <= cluster.nodes.len(), "each node fetches at most once: {herd}");
    cluster.redis.resume();
    pulls.cold("Redis thawed").await?;
    pulls.flushed_during_a_fill().await?;
    cluster.redis.stop().await;
    let herd = pulls.herd("Redis stopped").await?;
    assert!(herd <= cluster.nodes.len(), "each node fetches at most once: {herd}");
    cluster.redis.start_again().await;

    let millis = |dear: Duration, cheap: Duration| format!("{} ms", dear.saturating_sub(cheap).as_millis());
    report("cost of a stopped Redis to a pull, median", millis(stopped.0, usual.0));
    report("cost of a stopped Redis to a pull, worst", millis(stopped.1, usual.0));
    report("cost of a frozen Redis to a pull, median", millis(frozen.0, usual.0));
    report("cost of a frozen Redis to a pull, worst", millis(frozen.1, usual.0));
    Ok(())
}

struct Pulls<'a> {
    cluster: &'a Cluster,
    upstream: &'a FakeUpstream,
    count: u64,
}

impl Pulls<'_> {
    /// A repository with an image that nobody has pulled.
    fn publish(&mut self) -> String {
        self.count += 1;
        let layers = [images::random_bytes(self.count, 2 << 20), images::random_bytes(self.count, 1000)];
        let repository = format!("app-{}", self.count);
        self.upstream.publish_image(&repository, "v1", &layers);
        format!("demo/{repository}")
    }

    /// Cold pulls one after the other, on each node in turn: the median and the longest.
    async fn cold(&mut self, when: &str) -> Result<(Duration, Duration)> {
        let mut took = Vec::new();
        for number in 0..PULLS {
            let repository = self.publish();
            let node = &self.cluster.nodes[usize::try_from(number)? % self.cluster.nodes.len()];
            took.push(node.client().pull(&repository, "v1").await?.took);
            // What a breaker remembers for a second is to be met and to be missed.
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        let (middle, longest) = (median(took.clone()), took.into_iter().max().unwrap_or_default());
        report(&format!("a cold pull, {when}"), format!("median {middle:?}, longest {longest:?}"));
        Ok((middle, longest))
    }

    /// Many pulls of one image at once, on all nodes; how often its large layer was fetched.
    async fn herd(&mut self, when: &str) -> Result<usize> {
        let repository = self.publish();
        let clients = (0..20).map(|number| self.cluster.nodes[number % self.cluster.nodes.len()].client());
        let pulls: Vec<_> = clients
            .map(|client| {
                let repository = repository.clone();
                tokio::spawn(async move { client.pull(&repository, "v1").await })
            })
            .collect();
        for pulled in try_join_all(pulls).await? {
            pulled?;
        }
        let fetches = self.upstream.fetches_of(&images::sha256(&images::random_bytes(self.count, 2 << 20)));
        report(&format!("fetches of a layer by 20 clients on {} nodes, {when}", self.cluster.nodes.len()), fetches);
        Ok(fetches)
    }

    /// Redis forgets the lease while its holder waits for the upstream.
    async fn flushed_during_a_fill(&mut self) -> Result<()> {
        let repository = self.publish();
        let digest = images::sha256(&images::random_bytes(self.count, 2 << 20));
        for node in &self.cluster.nodes {
            node.client().get(&format!("/v2/{repository}/manifests/v1")).await?;
        }
        let gate = self.upstream.hold(digest.as_str());
        let get = |node: usize| {
            let (client, path) = (self.cluster.nodes[node].client(), format!("/v2/{repository}/blobs/{digest}"));
            tokio::spawn(async move { client.get(&path).await })
        };
        let first = get(0);
        gate.until_waiting(1).await;
        self.cluster.redis.flush().await;
        let second = get(1);
        gate.until_waiting(2).await;
        gate.release();
        for answer in [first.await??, second.await??] {
            assert_eq!(images::sha256(&answer.bytes), digest);
        }
        report("fetches of a layer whose lease was flushed", self.upstream.fetches_of(&digest));
        Ok(())
    }
}
