//! A node without a control plane: it starts from the published snapshot, serves, and keeps what it learns.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "alone/damaged.rs"]
mod damaged;
#[path = "alone/ends.rs"]
mod ends;
#[path = "several/published.rs"]
mod published;
#[path = "alone/shares.rs"]
mod shares;

use std::sync::Arc;
use std::time::Duration;

use entrepot_data_plane::{Config, DataPlane, Deps, Leases};
use entrepot_proto::node::v1 as pb;
use entrepot_records::layout;
use entrepot_runtime::{Clock, Health, Metrics, Tasks};
use entrepot_store::{LocalStore, Store};
use entrepot_test_support::{FakeUpstream, images, wait_until};
use entrepot_trust::{ClusterKey, SnapshotSigner, SnapshotTrust};
use tempfile::TempDir;
use tokio::net::TcpListener;
use uuid::Uuid;

use published::KEY;

const LIMIT: Duration = Duration::from_secs(20);

/// A store and keys, as a control plane would leave them.
struct Fixture {
    dir: TempDir,
    store: Store,
    cluster_key: ClusterKey,
    signer: SnapshotSigner,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store: Store = Arc::new(LocalStore::open(dir.path().join("store")).unwrap());
        Self { dir, store, cluster_key: ClusterKey::generate(), signer: SnapshotSigner::generate() }
    }

    /// Publishes a snapshot with one rule, `demo`, to `upstream`, signed by `signer`.
    async fn publish(&self, revision: i64, upstream: &FakeUpstream, signer: &SnapshotSigner) {
        let rules = [("demo", pb::SnapshotFreshness::default())];
        let snapshot = published::snapshot(revision, &self.cluster_key, upstream, &rules);
        published::publish(&*self.store, signer, revision, &snapshot).await;
    }

    /// Publishes a snapshot without rules.
    async fn publish_no_rules(&self, revision: i64, upstream: &FakeUpstream) {
        let snapshot = published::snapshot(revision, &self.cluster_key, upstream, &[]);
        published::publish(&*self.store, &self.signer, revision, &snapshot).await;
    }

    /// Starts a node at whose control-plane address nobody listens.
    async fn node(&self) -> Node {
        self.node_with(|_| {}).await
    }

    /// The same, with changes to its configuration.
    async fn node_with(&self, change: impl FnOnce(&mut Config)) -> Node {
        let (tasks, health) = (Tasks::new(), Health::new());
        let nowhere = "http://127.0.0.1:1".parse().unwrap();
        let mut config = Config::new("node-1", vec![nowhere], self.dir.path().join(Uuid::new_v4().to_string()));
        change(&mut config);
        let deps = Deps {
            store: self.store.clone(),
            cluster_key: self.cluster_key.clone(),
            snapshot_trust: SnapshotTrust::new(self.signer.public_key(), None),
            clock: Clock::system(),
            tasks: tasks.clone(),
            health: health.clone(),
            metrics: Metrics::new("test"),
            leases: Leases::local(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tasks.spawn("registry", DataPlane::new(config, deps).unwrap().serve(listener));
        Node { url, tasks, health }
    }
}

struct Node {
    url: String,
    tasks: Tasks,
    health: Health,
}

impl Node {
    async fn ready(&self) {
        wait_until(LIMIT, "the node is ready", async || self.health.is_ready()).await;
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        self.request(path).send().await.unwrap()
    }

    async fn head(&self, path: &str) -> reqwest::Response {
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        client.head(format!("{}{path}", self.url)).basic_auth(KEY.0, Some(KEY.1)).send().await.unwrap()
    }

    async fn get_range(&self, path: &str, range: &str) -> reqwest::Response {
        self.request(path).header("range", range).send().await.unwrap()
    }

    fn request(&self, path: &str) -> reqwest::RequestBuilder {
        self.request_as(KEY, path)
    }

    fn request_as(&self, key: (&str, &str), path: &str) -> reqwest::RequestBuilder {
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        client.get(format!("{}{path}", self.url)).basic_auth(key.0, Some(key.1))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

#[tokio::test]
async fn first_pulls_and_cached_pulls_need_only_the_published_snapshot() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 3 << 20)]);
    fixture.publish(1, &upstream, &fixture.signer).await;

    let node = fixture.node().await;
    node.ready().await;
    let manifest = node.get("/v2/demo/app/manifests/v1").await;
    assert_eq!(manifest.bytes().await.unwrap(), image.manifest_bytes);
    for blob in image.blobs() {
        let bytes = node.get(&format!("/v2/demo/app/blobs/{blob}")).await.bytes().await.unwrap();
        assert_eq!(images::sha256(&bytes), blob);
    }
    // What it has learned waits in the store until a control plane takes it.
    let waiting = fixture.store.list(&layout::events_prefix(&"node-1".parse().unwrap()), None, 100).await.unwrap();
    assert!(!waiting.is_empty());

    node.tasks.drain(LIMIT).await;
    upstream.stop().await;
    let node = fixture.node().await;
    node.ready().await;
    assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), 200, "another start serves the same");
}

#[tokio::test]
async fn a_snapshot_that_others_have_signed_is_not_run() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream, &SnapshotSigner::generate()).await;
    let node = fixture.node().await;
    let answer = node.get("/v2/").await;
    assert_eq!(answer.status(), 503);
    assert!(!node.health.is_ready());

    // It keeps checking, so it runs a correct snapshot as soon as one is there.
    fixture.publish(2, &upstream, &fixture.signer).await;
    node.ready().await;
    assert_eq!(node.get("/v2/").await.status(), 200);
}

#[tokio::test]
async fn spools_leave_nothing_behind() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 3 << 20)]);
    fixture.publish(1, &upstream, &fixture.signer).await;
    let node = fixture.node().await;
    node.ready().await;
    node.get(&format!("/v2/demo/app/blobs/{}", image.layers[0])).await.bytes().await.unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(fixture.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "store") {
            files += std::fs::read_dir(path).unwrap().count();
        }
    }
    assert_eq!(files, 0);
}
