//! What both releases know, and what goes on while the fleet changes: pulls of all kinds and calls of the API, none of
//! which may fail.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, images};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::cluster::Cluster;

/// How many repositories are pulled again and again. Their tags are confirmed when they are older than a second.
pub(super) const HOT: usize = 8;
const CLIENTS: usize = 4;

/// What goes on.
pub(super) struct Load {
    cluster: Arc<Cluster>,
    upstream: FakeUpstream,
    /// How many of the hot repositories there are so far.
    hot: AtomicUsize,
    pub(super) pulls: AtomicUsize,
    pub(super) calls: AtomicUsize,
    /// How many calls were made again, since a control plane went away.
    pub(super) retries: AtomicUsize,
    /// What was pulled, by name.
    pulled: Mutex<BTreeSet<String>>,
    stop: AtomicBool,
    tasks: tokio::sync::Mutex<JoinSet<Result<()>>>,
}

/// The name of a hot repository.
pub(super) fn hot(number: usize) -> String {
    format!("demo/hot/app-{number}")
}

impl Load {
    pub(super) async fn start(cluster: Arc<Cluster>) -> Result<Arc<Self>> {
        let upstream = FakeUpstream::start().await;
        for number in 0..HOT {
            upstream.publish_image(&format!("hot/app-{number}"), "v1", &[images::random_bytes(number as u64, 1000)]);
        }
        cluster.api().upstream("demo", &upstream).await?;
        let window = Some(prost_types::Duration { seconds: 1, nanos: 0 });
        let rule = pb::Rule { upstream: "upstreams/demo".to_owned(), window, ..Default::default() };
        let request = pb::CreateRuleRequest { rule_id: "demo".to_owned(), rule: Some(rule), request_id: String::new() };
        cluster.api().rules().create_rule(request).await?;
        let load = Arc::new(Self {
            cluster,
            upstream,
            hot: AtomicUsize::default(),
            pulls: AtomicUsize::default(),
            calls: AtomicUsize::default(),
            retries: AtomicUsize::default(),
            pulled: Mutex::default(),
            stop: AtomicBool::default(),
            tasks: tokio::sync::Mutex::default(),
        });
        let mut tasks = load.tasks.lock().await;
        for client in 0..CLIENTS {
            tasks.spawn(load.clone().pull(client));
        }
        tasks.spawn(load.clone().call());
        drop(tasks);
        Ok(load)
    }

    /// Has one more hot repository pulled, for the first time by `node`.
    pub(super) async fn heat(&self, node: usize) -> Result<()> {
        let number = self.hot.load(Ordering::Relaxed);
        self.cluster.nodes[node].client().pull(&hot(number), "v1").await?;
        self.pulled.lock().insert(hot(number));
        self.hot.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until each client has pulled some more, calls were made, and nothing has failed.
    pub(super) async fn until_it_has_gone_on(&self) {
        let (pulls, calls) = (self.pulls.load(Ordering::Relaxed), self.calls.load(Ordering::Relaxed));
        self.cluster
            .until("the load goes on", async || {
                let failed = self.tasks.lock().await.try_join_next();
                assert!(failed.is_none(), "{failed:?}");
                self.pulls.load(Ordering::Relaxed) > pulls + 8 * CLIENTS
                    && self.calls.load(Ordering::Relaxed) > calls + 3
            })
            .await;
    }

    /// Ends it; says what was pulled.
    pub(super) async fn end(&self) -> Result<BTreeSet<String>> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.lock().await.join_next().await {
            ended??;
        }
        Ok(std::mem::take(&mut *self.pulled.lock()))
    }

    async fn pull(self: Arc<Self>, client: usize) -> Result<()> {
        let registry = self.cluster.client();
        for round in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let seed = client * 100_000 + round;
            let cold = format!("cold-{seed}");
            self.upstream.publish_image(&cold, "v1", &[images::random_bytes(seed as u64, 10_000)]);
            let hot = (0..self.hot.load(Ordering::Relaxed)).map(hot);
            let all: Vec<String> = std::iter::once(format!("demo/{cold}")).chain(hot).collect();
            for repository in all {
                registry.pull(&repository, "v1").await.with_context(|| format!("{repository}, round {round}"))?;
                self.pulls.fetch_add(1, Ordering::Relaxed);
                self.pulled.lock().insert(repository);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    }

    async fn call(self: Arc<Self>) -> Result<()> {
        let api = self.cluster.balanced_api();
        for round in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let repeated = api.round(&format!("rule-{round}"), "demo").await.context("a round of calls")?;
            self.retries.fetch_add(repeated, Ordering::Relaxed);
            self.calls.fetch_add(3, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}
