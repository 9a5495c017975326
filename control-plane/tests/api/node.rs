//! A node as these tests play it.

use entrepot_proto::node::v1 as node;
use entrepot_records::SnapshotHead;
use entrepot_records::layout;
use entrepot_trust::NodeRecord;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use uuid::Uuid;

use crate::fixture::{Fixture, World};

/// A node of these tests: it takes snapshots and says so when it is told to.
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

    /// The next snapshot with its head.
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

/// What a node says of itself in the store, as of now.
pub(crate) fn record(world: &World, id: &str, running: Option<&node::SnapshotVersion>) -> NodeRecord {
    NodeRecord {
        node_id: id.parse().unwrap(),
        boot_id: Uuid::now_v7(),
        peer_address: Some("http://127.0.0.1:5003".to_owned()),
        release: "0.1.0".to_owned(),
        running: running.map(|version| (version.epoch, version.revision)),
        start_time: world.clock.now(),
        write_time: world.clock.now(),
        hold_ms: 0,
    }
}

/// Puts a record where nodes put theirs.
pub(crate) async fn put_record(world: &World, record: &NodeRecord) {
    let bytes = world.cluster_key().sign_node_record(record);
    world.store.put(&layout::node(&record.node_id), bytes.into()).await.unwrap();
}
