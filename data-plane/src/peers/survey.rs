//! Which other nodes live, and whether they can be reached.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use entrepot_domain::ResourceId;
use entrepot_records::layout::{self, Parsed};
use entrepot_runtime::{Clock, Metrics, chain};
use entrepot_trust::{NodeRecord, NodeRecordError};
use futures_util::StreamExt as _;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};
use url::Url;

use super::Peers;
use super::client::ProbeError;
use crate::config::limits;

/// How many records are read, and nodes asked, at once.
const AT_ONCE: usize = 16;

/// What is counted of the others.
pub(super) struct SurveyMetrics {
    /// Records that are not believed.
    refused: Counter<u64>,
    /// How often a live record of another node with this node's id was found.
    pub(super) conflicts: Counter<u64>,
    reach: Arc<Reach>,
    /// What was told of, so that it is told once.
    told: Mutex<Told>,
}

/// How many of the others can be reached, and how many not.
#[derive(Default)]
struct Reach {
    reachable: AtomicU64,
    unreachable: AtomicU64,
}

#[derive(Default)]
struct Told {
    refused: BTreeSet<ResourceId>,
    unreachable: BTreeSet<ResourceId>,
}

/// Why a record is not believed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordRefusal {
    #[error(transparent)]
    Record(#[from] NodeRecordError),
    #[error("it is the record of `{0}`")]
    OtherNode(ResourceId),
}

impl RecordRefusal {
    fn reason(&self) -> &'static str {
        match self {
            Self::Record(NodeRecordError::Malformed) => "malformed",
            Self::Record(NodeRecordError::BadSignature) => "bad_signature",
            Self::OtherNode(_) => "other_node",
        }
    }
}

impl SurveyMetrics {
    pub(super) fn new(metrics: &Metrics, known: &Arc<ArcSwap<Vec<NodeRecord>>>, clock: &Clock) -> Self {
        let meter = metrics.meter("entrepot.data_plane");
        let (known, clock, reach) = (known.clone(), clock.clone(), Arc::new(Reach::default()));
        meter
            .u64_observable_gauge("entrepot.nodes")
            .with_description("Nodes that live, as this one sees it; itself included.")
            .with_callback(move |gauge| {
                let (now, known) = (clock.now(), known.load());
                gauge.observe(1 + known.iter().filter(|record| record.is_live(now)).count() as u64, &[]);
            })
            .build();
        let seen = reach.clone();
        meter
            .u64_observable_gauge("entrepot.peers")
            .with_description("Other nodes that live and have an address, by whether they answer this one.")
            .with_callback(move |gauge| {
                for (reachable, count) in [(true, &seen.reachable), (false, &seen.unreachable)] {
                    gauge.observe(count.load(Ordering::Relaxed), &[KeyValue::new("reachable", reachable)]);
                }
            })
            .build();
        let refused = meter
            .u64_counter("entrepot.node.refused")
            .with_description("Records of nodes that were read and not believed.")
            .build();
        let conflicts = meter
            .u64_counter("entrepot.node.conflicts")
            .with_description("How often another live node with this node's id was found.")
            .build();
        Self { refused, conflicts, reach, told: Mutex::default() }
    }
}

impl Peers {
    /// Reads the records of all others. While the store is away, those that were read last count until they are old.
    pub(super) async fn survey(&self) {
        let (prefix, begun) = (layout::nodes_prefix(), Instant::now());
        let listing = self.inner.store.list(&prefix, None, limits::NODES);
        let entries = match timeout(limits::NODE_RECORD_IO, listing).await {
            Ok(Ok(entries)) => entries,
            Ok(Err(error)) => return debug!("the records of nodes cannot be listed: {}", chain(&error)),
            Err(_) => return debug!("the records of nodes cannot be listed: the store took too long"),
        };
        let entries_are_all = entries.len() < limits::NODES;
        let ids = entries.iter().filter_map(|entry| match layout::parse(&entry.key) {
            Some(Parsed::Node { id }) if id != self.inner.me.id => Some(id),
            Some(_) | None => None,
        });
        let ids: Vec<ResourceId> = ids.collect();
        let read = futures_util::stream::iter(ids.clone()).map(|id| async move { self.try_read(&id).await });
        let read: Vec<Result<Option<NodeRecord>, Unread>> = read.buffer_unordered(AT_ONCE).collect().await;
        let is_whole = entries_are_all && read.iter().all(Result::is_ok);
        let records: Vec<NodeRecord> = read.into_iter().flatten().flatten().collect();
        self.inner.tellers.listed(begun, &records, is_whole);
        self.forget(&records).await;
        self.inner.known.store(Arc::new(records));
        let mut told = self.inner.metrics.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.refused.retain(|id| ids.contains(id));
    }

    /// The record of another node, if there is one and it is to be believed.
    pub(super) async fn read(&self, id: &ResourceId) -> Option<NodeRecord> {
        self.try_read(id).await.unwrap_or(None)
    }

    /// As [`Peers::read`], but says whether the store did not answer.
    async fn try_read(&self, id: &ResourceId) -> Result<Option<NodeRecord>, Unread> {
        match self.record(id).await {
            Ok(record) => {
                self.inner.metrics.told.lock().unwrap_or_else(PoisonError::into_inner).refused.remove(id);
                Ok(record)
            }
            Err(RecordError::Store) => Err(Unread),
            Err(RecordError::Refused(refusal)) => {
                self.inner.metrics.refused.add(1, &[KeyValue::new("reason", refusal.reason())]);
                let mut told = self.inner.metrics.told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.refused.insert(id.clone()) {
                    warn!(node.id = %id, "the record of node `{id}` is not believed: {refusal}");
                }
                Ok(None)
            }
        }
    }

    /// As [`Peers::read`], but says what is wrong.
    pub(super) async fn record(&self, id: &ResourceId) -> Result<Option<NodeRecord>, RecordError> {
        let key = layout::node(id);
        let object = timeout(limits::NODE_RECORD_IO, self.inner.store.get(&key)).await;
        let Ok(Ok(object)) = object else { return Err(RecordError::Store) };
        let Some(object) = object else { return Ok(None) };
        let record = self.inner.key.read_node_record(&object.bytes).map_err(RecordRefusal::from)?;
        if record.node_id != *id {
            return Err(RecordRefusal::OtherNode(record.node_id).into());
        }
        Ok(Some(record))
    }

    /// Removes the records of nodes that have been dead for long: containers get another name at each start.
    async fn forget(&self, records: &[NodeRecord]) {
        let now = self.inner.clock.now();
        let is_old = |record: &&NodeRecord| record.write_time < now - limits::FORGOTTEN_AFTER;
        for record in records.iter().filter(is_old) {
            let key = layout::node(&record.node_id);
            if let Ok(Ok(())) = timeout(limits::NODE_RECORD_IO, self.inner.store.delete(&key)).await {
                info!(node.id = %record.node_id, "forgot the node `{}`, dead since {}", record.node_id, record.write_time);
            }
        }
    }

    /// Asks every other node that lives who it is.
    pub(super) async fn probe(&self) {
        let now = self.inner.clock.now();
        let known = self.inner.known.load_full();
        let live = known.iter().filter(|record| record.is_live(now));
        let live = live.filter_map(|record| Some((record.clone(), record.peer_address.clone()?)));
        let asked = futures_util::stream::iter(live.collect::<Vec<_>>())
            .map(|(record, address)| async move { (self.is_there(&record, &address).await, record.node_id) });
        let asked: Vec<(Result<(), ProbeError>, ResourceId)> = asked.buffer_unordered(AT_ONCE).collect().await;

        let reachable = asked.iter().filter(|(result, _)| result.is_ok()).count();
        self.inner.metrics.reach.reachable.store(reachable as u64, Ordering::Relaxed);
        self.inner.metrics.reach.unreachable.store((asked.len() - reachable) as u64, Ordering::Relaxed);
        let mut told = self.inner.metrics.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.unreachable.retain(|id| asked.iter().any(|(_, asked)| asked == id));
        for (result, id) in asked {
            match result {
                Ok(()) if told.unreachable.remove(&id) => info!(node.id = %id, "the node `{id}` answers again"),
                Err(error) if told.unreachable.insert(id.clone()) => {
                    warn!(node.id = %id, "the node `{id}` does not answer: {}", chain(&error));
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Whether the node of a record is where it says.
    async fn is_there(&self, record: &NodeRecord, address: &str) -> Result<(), ProbeError> {
        let url: Url = address.parse().map_err(|_| ProbeError::Address)?;
        let answer = self.inner.client.node(&url).await?;
        if answer.id == record.node_id.as_str() && answer.boot_id == record.boot_id {
            Ok(())
        } else {
            Err(ProbeError::SomebodyElse { id: answer.id })
        }
    }
}

/// The store did not answer.
struct Unread;

/// Why there is no record to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("the store is away")]
    Store,
    #[error(transparent)]
    Refused(#[from] RecordRefusal),
}
