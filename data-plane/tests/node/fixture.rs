//! A node, and everything that it needs, as a control plane would have left it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use entrepot_data_plane::{Config, DataPlane, Deps, Leases};
use entrepot_domain::ResourceId;
use entrepot_proto::node::v1 as pb;
use entrepot_records::SnapshotHead;
use entrepot_records::layout;
use entrepot_runtime::{Clock, Health, Listener, Metrics, Tasks, Tls};
use entrepot_store::BlobStore;
use entrepot_test_support::program::Probed;
use entrepot_test_support::{FakeUpstream, wait_until};
use entrepot_trust::{ClusterKey, NodeRecord, SnapshotSigner, SnapshotTrust};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tracing_subscriber::fmt::MakeWriter;
use uuid::Uuid;

use crate::published;
use crate::switch::Switch;

pub(crate) use crate::published::{KEY, Published, signed};

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A store with keys.
pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
    pub(crate) store: Arc<Switch>,
    pub(crate) cluster_key: ClusterKey,
    pub(crate) signer: SnapshotSigner,
    pub(crate) clock: Clock,
}

/// The listeners and settings of a node. Everything but the configuration is set to loopback.
pub(crate) struct Start {
    pub(crate) config: Config,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) peer: Option<Listener>,
}

/// A running node.
pub(crate) struct Node {
    pub(crate) addr: SocketAddr,
    pub(crate) url: String,
    pub(crate) tasks: Tasks,
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        LazyLock::force(&LOGS);
        let dir = TempDir::new().unwrap();
        let store = Arc::new(Switch::open(&dir.path().join("store")));
        let (cluster_key, signer) = (ClusterKey::generate(), SnapshotSigner::generate());
        Self { dir, store, cluster_key, signer, clock: Clock::system() }
    }

    /// Publishes a snapshot with one rule, `demo`, to `upstream`.
    pub(crate) async fn publish(&self, revision: i64, upstream: &FakeUpstream) -> Published {
        self.publish_into(&*self.store, revision, upstream).await
    }

    /// The same in another store.
    pub(crate) async fn publish_into(
        &self,
        store: &dyn BlobStore,
        revision: i64,
        upstream: &FakeUpstream,
    ) -> Published {
        published::publish(store, &self.signer, revision, &self.snapshot(revision, upstream)).await
    }

    /// Publishes any bytes, correctly signed.
    pub(crate) async fn publish_bytes(&self, revision: i64, bytes: Vec<u8>) -> Published {
        published::publish_bytes(&*self.store, &self.signer, revision, bytes).await
    }

    pub(crate) async fn put_head(&self, head: &SnapshotHead) {
        published::put_head(&*self.store, head).await;
    }

    pub(crate) fn snapshot(&self, revision: i64, upstream: &FakeUpstream) -> pb::Snapshot {
        let rules = [("demo", pb::SnapshotFreshness::default())];
        let built = self.clock.now() - Duration::from_secs(90);
        pb::Snapshot {
            build_time: Some(entrepot_proto::convert::timestamp(built)),
            ..published::snapshot(revision, &self.cluster_key, upstream, &rules)
        }
    }

    /// The start of a node at whose control-plane address nobody listens.
    pub(crate) fn start(&self, id: &str) -> Start {
        let spool: PathBuf = self.dir.path().join(format!("spool-{}", Uuid::new_v4()));
        let config = Config::new(id, vec!["http://127.0.0.1:1".parse().unwrap()], spool);
        Start { config, tls: None, peer: None }
    }

    /// An ordinary node, ready to serve.
    pub(crate) async fn node(&self, id: &str) -> Node {
        let node = self.run(self.start(id)).await;
        node.ready().await;
        node
    }

    pub(crate) async fn run(&self, start: Start) -> Node {
        let (tasks, health, metrics) = (Tasks::new(), Health::new(), Metrics::new("test"));
        let deps = Deps {
            store: self.store.clone(),
            cluster_key: self.cluster_key.clone(),
            snapshot_trust: SnapshotTrust::new(self.signer.public_key(), None),
            clock: self.clock.clone(),
            tasks: tasks.clone(),
            health: health.clone(),
            metrics: metrics.clone(),
            leases: Leases::local(),
        };
        let scheme = if start.tls.is_some() { "https" } else { "http" };
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "a test", start.tls).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut node = DataPlane::new(start.config, deps).unwrap();
        if let Some(peer) = start.peer {
            node = node.with_peer_listener(peer);
        }
        tasks.spawn("registry", node.serve(listener));
        Node { addr, url: format!("{scheme}://{addr}"), tasks, health, metrics }
    }

    /// The record of a node, if it is correctly signed.
    pub(crate) async fn record(&self, id: &str) -> Option<NodeRecord> {
        let id: ResourceId = id.parse().unwrap();
        let object = self.store.get(&layout::node(&id)).await.unwrap()?;
        Some(self.cluster_key.read_node_record(&object.bytes).unwrap())
    }

    /// Writes the record of a node that does not exist, signed with `key`, as if it was written when the node began.
    pub(crate) async fn put_record(&self, under: &str, record: &NodeRecord, key: &ClusterKey) {
        let (at, bytes) = (layout::node(&under.parse().unwrap()), Bytes::from(key.sign_node_record(record)));
        self.store.put(&at, bytes).await.unwrap();
        let file = std::fs::File::open(self.dir.path().join("store").join(at.as_str())).unwrap();
        file.set_modified(record.start_time.into()).unwrap();
    }

    /// The record of a node that began `age` ago.
    pub(crate) fn made_up(&self, id: &str, age: Duration) -> NodeRecord {
        NodeRecord {
            node_id: id.parse().unwrap(),
            boot_id: Uuid::new_v4(),
            peer_address: None,
            release: "0.0.0".to_owned(),
            running: None,
            start_time: self.clock.now() - age,
            hold_ms: 0,
        }
    }
}

impl Node {
    pub(crate) async fn ready(&self) {
        wait_until(LIMIT, "the node is ready", async || self.health.is_ready()).await;
    }

    /// A request by a principal that may pull.
    pub(crate) fn request(&self, path: &str) -> reqwest::RequestBuilder {
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        client.get(format!("{}{path}", self.url)).basic_auth(KEY.0, Some(KEY.1))
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.request(path).send().await.unwrap()
    }

    /// A value of its metrics.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        Probed { status: 200, text: self.metrics.render() }.metric(name, labels)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

/// A listener on a free port of loopback.
pub(crate) async fn loopback() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// Everything that all nodes in this process have logged.
static LOGS: LazyLock<Logs> = LazyLock::new(|| {
    let logs = Logs::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(logs.clone());
    subscriber.try_init().expect("nobody else logs here");
    logs
});

#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<u8>>>);

impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Logs {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

/// The log lines that contain `text`.
pub(crate) fn logged(text: &str) -> Vec<String> {
    let bytes = LOGS.0.lock();
    String::from_utf8_lossy(&bytes).lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

/// The parameters of a challenge, by name.
pub(crate) fn challenge(response: &reqwest::Response) -> BTreeMap<String, String> {
    let value = response.headers()["www-authenticate"].to_str().unwrap();
    let pairs = value.trim_start_matches("Bearer ").split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
}
