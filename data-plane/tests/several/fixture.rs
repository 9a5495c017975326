//! Everything that several nodes share: a store with a snapshot, keys, Redis, a clock, and an upstream.

#![allow(dead_code, reason = "each of the test programs uses a part of it")]

#[path = "published.rs"]
mod published;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use entrepot_data_plane::lease::{RedisConfig, RedisMode};
use entrepot_data_plane::{Capacity, Config, DataPlane, Deps, Leases};
use entrepot_proto::node::v1 as pb;
use entrepot_records::layout;
use entrepot_runtime::{Clock, Health, Metrics, Tasks};
use entrepot_store::{LocalStore, Store};
use entrepot_test_support::{FakeUpstream, Redis, images, wait_until};
use entrepot_trust::{ClusterKey, SnapshotSigner, SnapshotTrust};
use entrepot_upstream::Limits;
use parking_lot::Mutex;
use reqwest::StatusCode;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub(crate) use published::KEY;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// What the nodes share.
pub(crate) struct Fixture {
    pub(crate) upstream: FakeUpstream,
    pub(crate) redis: Redis,
    pub(crate) store: Store,
    cluster_key: ClusterKey,
    signer: SnapshotSigner,
    pub(crate) clock: Clock,
    dir: TempDir,
    limits: Limits,
    /// The ids of the nodes that were started.
    nodes: Mutex<BTreeSet<String>>,
}

impl Fixture {
    /// With one rule, `demo`.
    pub(crate) async fn new() -> Self {
        Self::with(&[("demo", pb::SnapshotFreshness::default())], Limits::default()).await
    }

    /// The same, in a store, or else in a folder.
    pub(crate) async fn on(store: Option<Store>) -> Self {
        Self::with_store(&[("demo", pb::SnapshotFreshness::default())], Limits::default(), store).await
    }

    /// With rules for these prefixes.
    pub(crate) async fn with(rules: &[(&str, pb::SnapshotFreshness)], limits: Limits) -> Self {
        Self::with_store(rules, limits, None).await
    }

    async fn with_store(rules: &[(&str, pb::SnapshotFreshness)], limits: Limits, store: Option<Store>) -> Self {
        let dir = TempDir::new().unwrap();
        let fixture = Self {
            upstream: FakeUpstream::start().await,
            redis: Redis::start().await,
            store: store.unwrap_or_else(|| Arc::new(LocalStore::open(dir.path().join("store")).unwrap())),
            cluster_key: ClusterKey::generate(),
            signer: SnapshotSigner::generate(),
            clock: Clock::manual(Clock::system().now()),
            dir,
            limits,
            nodes: Mutex::default(),
        };
        fixture.publish(1, rules).await;
        fixture
    }

    pub(crate) async fn publish(&self, revision: i64, rules: &[(&str, pb::SnapshotFreshness)]) {
        self.publish_with(revision, rules, vec![]).await;
    }

    /// The same, with templates.
    pub(crate) async fn publish_with(
        &self,
        revision: i64,
        rules: &[(&str, pb::SnapshotFreshness)],
        templates: Vec<pb::SnapshotTemplate>,
    ) {
        let mut snapshot = published::snapshot(revision, &self.cluster_key, &self.upstream, rules);
        snapshot.templates = templates;
        published::publish(&*self.store, &self.signer, revision, &snapshot).await;
    }

    pub(crate) async fn two(&self) -> (Node, Node) {
        (self.node("node-1").await, self.node("node-2").await)
    }

    /// Starts a node at whose control-plane address nobody listens.
    pub(crate) async fn node(&self, id: &str) -> Node {
        self.node_with(id, Capacity::default()).await
    }

    /// The same, with another capacity.
    pub(crate) async fn node_with(&self, id: &str, capacity: Capacity) -> Node {
        self.node_on(id, self.store.clone(), |config| config.capacity = capacity).await
    }

    /// The same, which reaches the store in its own way and is configured in another.
    pub(crate) async fn node_on(&self, id: &str, store: Store, change: impl FnOnce(&mut Config)) -> Node {
        let (tasks, health, metrics) = (Tasks::new(), Health::new(), Metrics::new("test"));
        let redis = RedisConfig {
            mode: RedisMode::Single,
            servers: vec![self.redis.url().parse().unwrap()],
            username: None,
            password: None,
            sentinel_master: None,
            sentinel_password: None,
            ca: None,
        };
        let leases = Leases::redis(&redis, &id.parse().unwrap(), &tasks, &metrics).await.unwrap();
        let peer_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer_address = format!("http://{}", peer_listener.local_addr().unwrap());
        let mut config = Config {
            peer_address: Some(peer_address.parse().unwrap()),
            upstream_limits: self.limits,
            ..Config::new(id, vec!["http://127.0.0.1:1".parse().unwrap()], self.dir.path().join(id))
        };
        change(&mut config);
        let deps = Deps {
            store,
            cluster_key: self.cluster_key.clone(),
            snapshot_trust: SnapshotTrust::new(self.signer.public_key(), None),
            clock: self.clock.clone(),
            tasks: tasks.clone(),
            health: health.clone(),
            metrics: metrics.clone(),
            leases,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let plane = DataPlane::new(config, deps).unwrap().with_peer_listener(peer_listener);
        tasks.spawn("registry", plane.serve(listener));
        wait_until(LIMIT, "the node is ready", async || health.is_ready()).await;
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        self.nodes.lock().insert(id.to_owned());
        Node { url, client, tasks, metrics }
    }

    /// Moves the clock, and waits until the nodes have told each other that they are still alive.
    pub(crate) async fn advance(&self, by: Duration) {
        let before = Clock::system().now();
        self.clock.advance(by);
        let nodes = self.nodes.lock().clone();
        for id in nodes {
            let key = layout::node(&id.parse().unwrap());
            wait_until(LIMIT, "the nodes live on", async || {
                // At the new time it may look so old that another node has considered it dead and removed it.
                let listed = self.store.list(&layout::nodes_prefix(), None, 100).await.unwrap();
                listed.iter().any(|entry| entry.key == key && entry.modify_time >= before)
            })
            .await;
        }
    }
}

pub(crate) struct Node {
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
    pub(crate) tasks: Tasks,
    pub(crate) metrics: Metrics,
}

impl Node {
    /// A request for `path` by a principal that may pull.
    pub(crate) fn request(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}/v2/{path}", self.url)).basic_auth(KEY.0, Some(KEY.1))
    }

    /// A client that pulls `path` below `demo`. It returns the status and the body's digest.
    pub(crate) fn get(&self, path: &str) -> JoinHandle<(StatusCode, String)> {
        let request = self.request(&format!("demo/{path}"));
        tokio::spawn(async move {
            let answer = request.send().await.unwrap();
            let status = answer.status();
            (status, answer.bytes().await.map_or_else(|error| error.to_string(), |bytes| images::sha256(&bytes)))
        })
    }

    pub(crate) fn metric(&self, line: &str) -> f64 {
        let text = self.metrics.render();
        let lines = text.lines().filter(|l| l.starts_with(line));
        lines.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// Waits until this node has found a lease held by another node.
    pub(crate) async fn until_busy(&self) {
        let line = "entrepot_lease_claim_duration_seconds_count{outcome=\"busy\"";
        wait_until(LIMIT, "another node leads", async || self.metric(line) >= 1.0).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}
