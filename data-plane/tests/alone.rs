//! A node without a control plane: it starts from the published snapshot, serves, and keeps what it learns.

#![allow(missing_docs, reason = "tests are named by sentences")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use entrepot_data_plane::{Config, DataPlane, Deps, Leases};
use entrepot_domain::Secret;
use entrepot_proto::node::v1 as pb;
use entrepot_runtime::{Clock, Health, Metrics, Tasks};
use entrepot_store::records::{SnapshotHead, encode};
use entrepot_store::{LocalStore, Store, layout};
use entrepot_test_support::{FakeUpstream, images, wait_until};
use entrepot_trust::{ClusterKey, SnapshotSigner, SnapshotTrust, Statement, access_key};
use prost::Message as _;
use tempfile::TempDir;
use tokio::net::TcpListener;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(20);
const KEY: (&str, &str) = ("puller", "a-secret-of-some-length");

/// A store with keys, as a control plane would leave them.
struct Ground {
    dir: TempDir,
    store: Store,
    cluster_key: ClusterKey,
    signer: SnapshotSigner,
}

impl Ground {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store: Store = Arc::new(LocalStore::open(dir.path().join("store")).unwrap());
        Self { dir, store, cluster_key: ClusterKey::generate(), signer: SnapshotSigner::generate() }
    }

    /// Publishes a snapshot with one rule, `demo`, to `upstream`, signed by `signer`.
    async fn publish(&self, revision: i64, upstream: &FakeUpstream, signer: &SnapshotSigner) {
        let hash = access_key::hash_generated(&Secret::new(KEY.1.to_owned()));
        let sealed_hash = self.cluster_key.seal(&format!("access-key/{}", KEY.0), &hash.encode());
        let (upstream_uid, principal_uid) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let snapshot = pb::Snapshot {
            version: Some(pb::SnapshotVersion { epoch: 1, revision }),
            registry_id: Uuid::from_u128(3).to_string(),
            build_time: None,
            templates: vec![],
            rules: vec![pb::SnapshotRule {
                uid: Uuid::from_u128(4).to_string(),
                rule_id: "demo".to_owned(),
                prefix: "demo".to_owned(),
                upstream_uid: upstream_uid.to_string(),
                upstream_prefix: String::new(),
                freshness: None,
            }],
            upstreams: vec![pb::SnapshotUpstream {
                uid: upstream_uid.to_string(),
                upstream_id: "local".to_owned(),
                kind: "OCI".to_owned(),
                endpoint: upstream.url(),
                allow_plain_http: true,
                allow_private_addresses: true,
                ..Default::default()
            }],
            principals: vec![pb::SnapshotPrincipal {
                uid: principal_uid.to_string(),
                principal_id: "puller".to_owned(),
                permission_set: "PULLER".to_owned(),
                access_keys: vec![pb::SnapshotAccessKey { key_id: KEY.0.to_owned(), sealed_hash }],
            }],
        };
        let bytes = Bytes::from(snapshot.encode_to_vec());
        let key = layout::snapshot(1, revision, Uuid::new_v4());
        let statement = Statement::of(1, revision, &bytes);
        let signature = signer.sign(&statement);
        self.store.put_once(&key, bytes).await.unwrap();
        let head = SnapshotHead {
            key,
            epoch: 1,
            revision,
            sha256: statement.sha256,
            key_id: signature.key_id,
            signature: signature.signature,
        };
        self.store.put(&layout::snapshot_head(), encode(&head)).await.unwrap();
    }

    /// Starts a node whose control plane is where nobody listens.
    async fn node(&self) -> Node {
        let (tasks, health) = (Tasks::new(), Health::new());
        let nowhere = "http://127.0.0.1:1".parse().unwrap();
        let config = Config::new("node-1", vec![nowhere], self.dir.path().join(Uuid::new_v4().to_string()));
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
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        client.get(format!("{}{path}", self.url)).basic_auth(KEY.0, Some(KEY.1)).send().await.unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

#[tokio::test]
async fn first_pulls_and_cached_pulls_need_only_the_published_snapshot() {
    let (upstream, ground) = (FakeUpstream::start().await, Ground::new());
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 3 << 20)]);
    ground.publish(1, &upstream, &ground.signer).await;

    let node = ground.node().await;
    node.ready().await;
    let manifest = node.get("/v2/demo/app/manifests/v1").await;
    assert_eq!(manifest.bytes().await.unwrap(), image.manifest_bytes);
    for blob in image.blobs() {
        let bytes = node.get(&format!("/v2/demo/app/blobs/{blob}")).await.bytes().await.unwrap();
        assert_eq!(images::sha256(&bytes), blob);
    }
    // What it has learnt waits in the store until a control plane takes it.
    let waiting = ground.store.list(&layout::events_prefix(&"node-1".parse().unwrap()), None, 100).await.unwrap();
    assert!(!waiting.is_empty());

    node.tasks.drain(LIMIT).await;
    upstream.stop().await;
    let node = ground.node().await;
    node.ready().await;
    assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), 200, "another start serves the same");
}

#[tokio::test]
async fn a_snapshot_that_others_have_signed_is_not_run() {
    let (upstream, ground) = (FakeUpstream::start().await, Ground::new());
    ground.publish(1, &upstream, &SnapshotSigner::generate()).await;
    let node = ground.node().await;
    let answer = node.get("/v2/").await;
    assert_eq!(answer.status(), 503);
    assert!(!node.health.is_ready());

    // It goes on looking, so a right one is run as soon as it is there.
    ground.publish(2, &upstream, &ground.signer).await;
    node.ready().await;
    assert_eq!(node.get("/v2/").await.status(), 200);
}

#[tokio::test]
async fn spools_leave_nothing_behind() {
    let (upstream, ground) = (FakeUpstream::start().await, Ground::new());
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 3 << 20)]);
    ground.publish(1, &upstream, &ground.signer).await;
    let node = ground.node().await;
    node.ready().await;
    node.get(&format!("/v2/demo/app/blobs/{}", image.layers[0])).await.bytes().await.unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(ground.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "store") {
            files += std::fs::read_dir(path).unwrap().count();
        }
    }
    assert_eq!(files, 0);
}
