//! A simulated node.

use chrono::{DateTime, Utc};
use entrepot_proto::node::v1 as node;
use entrepot_records::SnapshotHead;
use entrepot_records::layout;
use entrepot_store::Key;
use entrepot_trust::NodeRecord;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use uuid::Uuid;

use crate::fixture::{Fixture, World};

/// A simulated node: it receives snapshots, and reports them when told to.
pub(crate) struct Node {
    pub(crate) say: mpsc::Sender<node::WatchSnapshotRequest>,
    stream: Streaming<node::WatchSnapshotResponse>,
    id: &'static str,
}

impl Node {
    pub(crate) async fn watch(fixture: &Fixture, id: &'static str) -> Self {
        let (say, said) = mpsc::channel(8);
        say.send(node::WatchSnapshotRequest { node_id: id.into(), ..Default::default() }).await.unwrap();
        let stream = fixture.nodes(id).watch_snapshot(ReceiverStream::new(said)).await.unwrap().into_inner();
        Self { say, stream, id }
    }

    pub(crate) async fn next(&mut self) -> (SnapshotHead, node::Snapshot) {
        let (mut head, mut bytes) = (Vec::new(), Vec::new());
        loop {
            let part = self.stream.message().await.unwrap().unwrap();
            assert!(part.chunk.len() <= 1024 * 1024);
            head.extend(part.head);
            bytes.extend(part.chunk);
            if part.last {
                let snapshot = node::Snapshot::decode(bytes.as_slice()).unwrap();
                return (serde_json::from_slice(&head).unwrap(), snapshot);
            }
        }
    }

    pub(crate) async fn runs(&self, snapshot: &node::Snapshot) {
        let said =
            node::WatchSnapshotRequest { node_id: self.id.into(), running: snapshot.version, ..Default::default() };
        self.say.send(said).await.unwrap();
    }
}

/// A node's current record in the store.
pub(crate) fn record(world: &World, id: &str, running: Option<&node::SnapshotVersion>) -> NodeRecord {
    NodeRecord {
        node_id: id.parse().unwrap(),
        boot_id: Uuid::now_v7(),
        peer_address: Some("http://127.0.0.1:5003".to_owned()),
        release: "0.1.0".to_owned(),
        running: running.map(|version| (version.epoch, version.revision)),
        start_time: world.clock.now(),
        hold_ms: 0,
    }
}

/// Writes a record where nodes write theirs.
pub(crate) async fn put_record(world: &World, record: &NodeRecord) {
    put_record_at(world, record, world.clock.now()).await;
}

/// The same, as if written at that time.
pub(crate) async fn put_record_at(world: &World, record: &NodeRecord, write_time: DateTime<Utc>) {
    let (key, aside) = (layout::node(&record.node_id), Key::parse(&format!("aside/{}", record.node_id)).unwrap());
    let bytes = world.cluster_key().sign_node_record(record);
    world.store.put(&aside, bytes.into()).await.unwrap();
    let [written, place] = [&aside, &key].map(|key| world.folder.path().join("store").join(key.as_str()));
    let file = std::fs::File::open(&written).unwrap();
    file.set_modified(write_time.into()).unwrap();
    // With its time at once: a record of another time may be taken for one of a dead node, and removed.
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::fs::rename(written, place).unwrap();
}
