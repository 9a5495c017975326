//! Words to many nodes that are played. What they cost is printed.

#![expect(clippy::disallowed_methods, reason = "a test spawns what it talks to")]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName};
use entrepot_records::commit::{Change, Writer};
use entrepot_records::tags::FilledTag;
use entrepot_records::{self as records, Origin, Provenance, RepositoryRecord, layout};
use entrepot_runtime::{Clock, Metrics, Tasks};
use entrepot_store::{BlobStore as _, Error, LocalStore, Store};
use entrepot_trust::ClusterKey;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpListener;
use uuid::Uuid;

use super::*;
use crate::control::{Control, Outbox};
use crate::memory::{Hold, Memory};
use crate::peers::{Me, PeersDeps};
use crate::repository::{Damaged, Repositories};

const HOLD: Duration = Duration::from_millis(800);

/// What all the nodes have heard, and each of them last.
#[derive(Default)]
struct Heard {
    messages: AtomicUsize,
    keys: AtomicUsize,
    bytes: AtomicUsize,
    is_deaf: AtomicBool,
    last: Mutex<HashMap<usize, Vec<String>>>,
}

impl Heard {
    async fn answer(&self, node: usize, request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let forget: Forget = serde_json::from_slice(&body).unwrap();
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.keys.fetch_add(forget.keys.len(), Ordering::Relaxed);
        self.bytes.fetch_add(body.len(), Ordering::Relaxed);
        if self.is_deaf.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.last.lock().insert(node, forget.keys);
        Ok(Response::new(Empty::new()))
    }

    /// How many nodes have heard of this key last, and of nothing else with it.
    fn heard(&self, key: &Key) -> usize {
        self.last.lock().values().filter(|keys| *keys == &[key.as_str()]).count()
    }
}

/// Plays a node; where it listens.
async fn play(node: usize, heard: Arc<Heard>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let heard = heard.clone();
            let service = service_fn(move |request| {
                let heard = heard.clone();
                async move { heard.answer(node, request).await }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// A node that knows of others, all of which are played, and hold.
struct World {
    peers: Peers,
    heard: Arc<Heard>,
    store: Arc<LocalStore>,
    /// Their records, and when they were last written.
    records: Vec<(Key, Bytes)>,
    written: Instant,
    _dir: TempDir,
}

impl World {
    async fn new(count: usize, hold: Duration) -> Self {
        let (dir, key, clock) = (TempDir::new().unwrap(), ClusterKey::generate(), Clock::system());
        let store = Arc::new(LocalStore::open(dir.path().join("store")).unwrap());
        let (heard, mut records) = (Arc::new(Heard::default()), Vec::new());
        for number in 0..count {
            let record = NodeRecord {
                node_id: format!("other-{number}").parse().unwrap(),
                boot_id: Uuid::now_v7(),
                peer_address: Some(play(number, heard.clone()).await),
                release: String::new(),
                running: None,
                start_time: DateTime::UNIX_EPOCH,
                hold_ms: u64::try_from(hold.as_millis()).unwrap(),
            };
            records.push((layout::node(&record.node_id), Bytes::from(key.sign_node_record(&record))));
        }
        let client = PeerClient::new("me".into(), key.tokens(), clock.clone(), None).unwrap();
        let memory = Memory::new(store.clone(), clock.clone(), Tasks::new(), 1000, Hold::never());
        let me = Me { id: "me".parse().unwrap(), boot_id: Uuid::now_v7(), address: None, start_time: clock.now() };
        let control = Control::new(clock.clone());
        let deps = PeersDeps { store: store.clone(), key, clock, control, memory };
        let peers = Peers::new(me, deps, client, &Metrics::new("test"));
        let mut world = Self { peers, heard, store, records, written: Instant::now(), _dir: dir };
        world.beat().await;
        world
    }

    /// The others write their records, and this one lists them.
    async fn beat(&mut self) {
        for (key, bytes) in &self.records {
            self.store.put(key, bytes.clone()).await.unwrap();
        }
        self.peers.survey().await;
        self.written = Instant::now();
    }

    fn repositories(&self) -> Repositories {
        let (store, clock, metrics): (Store, _, _) = (self.store.clone(), Clock::system(), Metrics::new("test"));
        let memory = Memory::new(store.clone(), clock.clone(), Tasks::new(), 1000, Hold::never());
        let outbox = Outbox::new(store.clone(), "me".parse().unwrap(), clock.clone(), &metrics);
        let (damaged, _) = Damaged::new(&metrics);
        Repositories::new(store, memory, self.peers.clone(), outbox, clock, damaged)
    }

    fn messages(&self) -> usize {
        self.heard.messages.load(Ordering::Relaxed)
    }
}

/// Who moves tags, and keeps what others are to be told of.
#[derive(Default)]
struct Mover {
    replaced: Mutex<Vec<Key>>,
}

#[async_trait]
impl Writer for Mover {
    fn now(&self) -> DateTime<Utc> {
        Clock::system().now()
    }

    async fn record(&self, _: &RepositoryName, _: Uuid, _: Vec<Change>) -> Result<(), Error> {
        Ok(())
    }

    fn on_replaced(&self, key: &Key) {
        self.replaced.lock().push(key.clone());
    }
}

fn key(number: usize) -> Key {
    format!("repositories/demo/app/_repository-{number}").parse().unwrap()
}

/// How long this process has computed.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_changed_tag_is_told_to_each_node_in_one_message() {
    const CALLS: usize = 50;
    /// Nobody is given up, however busy the machine is.
    const HOLD: Duration = limits::HOLD;
    /// How long calls are begun.
    const LIMIT: Duration = Duration::from_secs(180);
    let count = std::env::var("ENTREPOT_WORDS_NODES").ok().map_or(50, |count| count.parse().unwrap());
    let (mut world, mover, begun) = (World::new(count, HOLD).await, Mover::default(), Instant::now());
    let (name, tag): (RepositoryName, _) = ("demo/app".parse().unwrap(), "v1".parse().unwrap());
    let from = Provenance { rule_uid: Uuid::from_u128(1), origin: Origin::new("a.example", "app") };
    let filled = FilledTag { name: &name, incarnation: Uuid::from_u128(2), from: &from, tag: &tag };
    let key = layout::tag(&name, filled.incarnation, &tag);
    let store = world.store.clone();
    let set = async |number: usize| {
        let digest = Digest::sha256(number.to_string().as_bytes());
        filled.note(&*store, &mover, &digest, mover.now()).await.unwrap();
        std::mem::take(&mut *mover.replaced.lock())
    };
    assert!(set(0).await.is_empty(), "what did not exist is told to nobody");
    // The first word opens the connections.
    let telling = world.peers.tell(&Forget::key(&key));
    assert!(telling.knows_all());
    telling.wait().await;
    println!("measured: {count} nodes, the first word in {:?}", begun.elapsed());

    let (mut took, mut computed, mut bytes, mut told_all) = (Vec::new(), Duration::ZERO, 0, 0);
    for number in 1..=CALLS {
        if begun.elapsed() > LIMIT {
            break;
        }
        world.heard.last.lock().clear();
        let (before, heard_bytes, cpu_before) = (world.messages(), world.heard.bytes.load(Ordering::Relaxed), cpu());
        let called = Instant::now();
        let replaced = set(number).await;
        assert_eq!(replaced, std::slice::from_ref(&key), "one record has changed");
        let lagging = world.peers.tell(&Forget::key(&replaced[0])).wait().await;
        took.push(called.elapsed());
        computed += cpu().saturating_sub(cpu_before);
        bytes += world.heard.bytes.load(Ordering::Relaxed) - heard_bytes;
        // On a busy machine some take longer than a message may: it may then have come late, or twice.
        let exact = count - lagging..=count + lagging;
        assert!(exact.contains(&(world.messages() - before)), "one message for each, in call {number}");
        assert!(world.heard.heard(&key) >= count - lagging, "who says that it knows has the word, in call {number}");
        told_all += usize::from(lagging == 0);
        assert!(set(number).await.is_empty(), "a confirmation is told to nobody");
        // As nodes do, so that they go on to be known.
        if world.written.elapsed() > Duration::from_secs(10) {
            world.beat().await;
        }
    }
    took.sort();
    let calls = took.len();
    println!(
        "measured: {count} nodes, one changed tag: {count} messages, {} bytes in them, {:?} of CPU with those who hear, \
         {:?} at the median, {:?} at p99; in {told_all} of {calls} calls all answered in time",
        bytes / calls,
        computed / u32::try_from(calls).unwrap(),
        took[calls / 2],
        took[calls * 99 / 100]
    );
    assert!(2 * told_all >= calls, "all answered in time in {told_all} of {calls} calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_of_one_moment_travel_together() {
    let World { peers, heard, _dir, .. } = World::new(3, HOLD).await;
    let tellings: Vec<Telling> = (0..500).map(|number| peers.tell(&Forget::key(&key(number)))).collect();
    for telling in tellings {
        telling.wait().await;
    }
    assert_eq!(heard.keys.load(Ordering::Relaxed), 3 * 500, "each key to each");
    assert!(heard.messages.load(Ordering::Relaxed) <= 3 * 20, "{:?}", heard.messages);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_answer_is_waited_for_as_long_as_it_may_hold_and_counted() {
    let World { peers, heard, _dir, .. } = World::new(3, HOLD).await;
    heard.is_deaf.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    assert_eq!(peers.tell(&Forget::key(&key(1))).wait().await, 3);
    assert!(begun.elapsed() >= HOLD, "{:?}", begun.elapsed());
}

/// A node that has not heard yet that the repository was deleted, or created anew, holds the record of an earlier
/// incarnation.
#[tokio::test]
async fn after_a_sync_others_forget_the_repository_with_the_tag() {
    let world = World::new(1, HOLD).await;
    let (name, tag) = ("demo/app".parse().unwrap(), "v1".parse().unwrap());
    let record = RepositoryRecord::new(Uuid::from_u128(2), Clock::system().now());
    let (repository, own) = (layout::repository(&name), layout::tag(&name, record.incarnation, &tag));
    let repositories = world.repositories();
    let heard = async || {
        assert_eq!(repositories.settle_tag(&name, &tag).await.unwrap(), 0, "nobody lags");
        world.heard.last.lock()[&0].clone()
    };
    world.store.put(&repository, records::encode(&record)).await.unwrap();
    assert_eq!(heard().await, [repository.as_str(), own.as_str()]);
    world.store.delete(&repository).await.unwrap();
    assert_eq!(heard().await, [repository.as_str()], "also if it has gone meanwhile");
}
