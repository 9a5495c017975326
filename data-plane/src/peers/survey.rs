//! Finds out which other nodes are alive, and whether they can be reached.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use entrepot_domain::ResourceId;
use entrepot_records::layout::{self, Parsed};
use entrepot_runtime::{Clock, Metrics, chain};
use entrepot_store::{Entry, Version};
use entrepot_trust::{NodeRecord, NodeRecordError};
use futures_util::StreamExt as _;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use parking_lot::Mutex;
use tokio::time::timeout;
use tracing::{debug, info, warn};
use url::Url;

use super::Peers;
use super::client::ProbeError;
use super::roll::{Listing, Read, Roll};
use crate::config::limits;
use crate::moment::Moment;

/// How many records are read, and how many nodes asked, at once.
const AT_ONCE: usize = 16;

/// Counts about the other nodes.
pub(super) struct SurveyMetrics {
    /// Records that are not trusted.
    refused: Counter<u64>,
    /// How often another node's live record with this node's id was found.
    pub(super) conflicts: Counter<u64>,
    reach: Arc<Reach>,
    /// What was already logged, so that it is logged once.
    reported: Mutex<Reported>,
}

/// How many of the others can be reached, and how many cannot.
#[derive(Default)]
struct Reach {
    reachable: AtomicU64,
    unreachable: AtomicU64,
}

/// The nodes that the log has said this of, so that it is said once.
#[derive(Default)]
struct Reported {
    refused: BTreeSet<ResourceId>,
    unreachable: BTreeSet<ResourceId>,
}

/// Why a record is not trusted.
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
    pub(super) fn new(metrics: &Metrics, roll: &Arc<Mutex<Roll>>, clock: &Clock) -> Self {
        let meter = metrics.meter("entrepot.data_plane");
        let (roll, clock, reach) = (roll.clone(), clock.clone(), Arc::new(Reach::default()));
        meter
            .u64_observable_gauge("entrepot.nodes")
            .with_description("Nodes that live, as this one sees it; itself included.")
            .with_callback(move |gauge| {
                gauge.observe(1 + roll.lock().live(Moment::now(&clock)).count() as u64, &[]);
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
        Self { refused, conflicts, reach, reported: Mutex::default() }
    }
}

impl Peers {
    /// Lists the records of all others, and reads those that have changed. While the store is away, the nodes of the
    /// last list count until they are too old.
    pub(super) async fn survey(&self) {
        let begun = self.inner.memory.now();
        let Some((entries, is_whole)) = self.list().await else { return };
        let unread = self.inner.roll.lock().unread(&entries);
        let read = futures_util::stream::iter(unread).map(|id| async move { (id.clone(), self.look_at(&id).await) });
        let read: HashMap<ResourceId, Read> = read.buffer_unordered(AT_ONCE).collect().await;
        self.inner.metrics.reported.lock().refused.retain(|id| entries.contains_key(id));
        let long_ago = self.inner.clock.now() - limits::FORGOTTEN_AFTER;
        let is_old = |(_, entry): &(&ResourceId, &Entry)| entry.modify_time < long_ago;
        let old: Vec<ResourceId> = entries.iter().filter(is_old).map(|(id, _)| id.clone()).collect();
        self.inner.roll.lock().note(Listing { begun, entries, is_whole, read }, self.inner.memory.now());
        self.inner.tellers.keep(&self.inner.roll.lock());
        self.forget(old).await;
    }

    /// The records of all others, and whether the list is complete; `None` if the store does not answer.
    pub(super) async fn list(&self) -> Option<(HashMap<ResourceId, Entry>, bool)> {
        let prefix = layout::nodes_prefix();
        let listing = self.inner.store.list(&prefix, None, limits::NODES + 1);
        let entries = match timeout(limits::NODE_RECORD_IO, listing).await {
            Ok(Ok(entries)) => entries,
            Ok(Err(error)) => {
                debug!("the records of nodes cannot be listed: {}", chain(&error));
                return None;
            }
            Err(_) => {
                debug!("the records of nodes cannot be listed: the store took too long");
                return None;
            }
        };
        let is_whole = entries.len() <= limits::NODES;
        let others = entries.into_iter().filter_map(|entry| match layout::parse(&entry.key) {
            Some(Parsed::Node { id }) if id != self.inner.me.id => Some((id, entry)),
            Some(_) | None => None,
        });
        Some((others.collect(), is_whole))
    }

    /// The record of another node, if there is one that can be trusted.
    pub(super) async fn read(&self, id: &ResourceId) -> Option<NodeRecord> {
        match self.look_at(id).await {
            Read::Known(_, record) => record,
            Read::Gone | Read::Unread => None,
        }
    }

    /// As [`Peers::read`], but distinguishes why there is none. An untrusted record is logged.
    async fn look_at(&self, id: &ResourceId) -> Read {
        match self.record(id).await {
            Ok(found) => {
                self.inner.metrics.reported.lock().refused.remove(id);
                found.map_or(Read::Gone, |(version, record)| Read::Known(version, Some(record)))
            }
            Err(RecordError::Store) => Read::Unread,
            Err(RecordError::Refused(version, refusal)) => {
                self.inner.metrics.refused.add(1, &[KeyValue::new("reason", refusal.reason())]);
                if self.inner.metrics.reported.lock().refused.insert(id.clone()) {
                    warn!(node.id = %id, "the record of node `{id}` is not believed: {refusal}");
                }
                Read::Known(version, None)
            }
        }
    }

    /// As [`Peers::read`], but returns what is wrong.
    pub(super) async fn record(&self, id: &ResourceId) -> Result<Option<(Version, NodeRecord)>, RecordError> {
        let key = layout::node(id);
        let object = timeout(limits::NODE_RECORD_IO, self.inner.store.get(&key)).await;
        let Ok(Ok(object)) = object else { return Err(RecordError::Store) };
        let Some(object) = object else { return Ok(None) };
        let refused = |refusal| RecordError::Refused(object.version.clone(), refusal);
        let record = self.inner.key.read_node_record(&object.bytes).map_err(|error| refused(error.into()))?;
        if record.node_id != *id {
            return Err(refused(RecordRefusal::OtherNode(record.node_id)));
        }
        Ok(Some((object.version, record)))
    }

    /// Removes old records of dead nodes: containers get another name at each start.
    async fn forget(&self, old: Vec<ResourceId>) {
        for id in old {
            let is_dead = {
                let roll = self.inner.roll.lock();
                // A record that is not trusted is left for somebody to look at.
                roll.record(&id).is_some() && !roll.is_live(&id, self.inner.memory.now())
            };
            if is_dead
                && let Ok(Ok(())) = timeout(limits::NODE_RECORD_IO, self.inner.store.delete(&layout::node(&id))).await
            {
                info!(node.id = %id, "forgot the node `{id}`, which has been dead for long");
            }
        }
    }

    /// Asks every other live node who it is.
    pub(super) async fn probe(&self) {
        let live: Vec<(NodeRecord, String)> = {
            let roll = self.inner.roll.lock();
            let live = roll.live(self.inner.memory.now());
            live.filter_map(|record| Some((record.clone(), record.peer_address.clone()?))).collect()
        };
        let asked = futures_util::stream::iter(live)
            .map(|(record, address)| async move { (self.is_there(&record, &address).await, record.node_id) });
        let asked: Vec<(Result<(), ProbeError>, ResourceId)> = asked.buffer_unordered(AT_ONCE).collect().await;

        let reachable = asked.iter().filter(|(result, _)| result.is_ok()).count();
        self.inner.metrics.reach.reachable.store(reachable as u64, Ordering::Relaxed);
        self.inner.metrics.reach.unreachable.store((asked.len() - reachable) as u64, Ordering::Relaxed);
        let mut reported = self.inner.metrics.reported.lock();
        reported.unreachable.retain(|id| asked.iter().any(|(_, asked)| asked == id));
        for (result, id) in asked {
            match result {
                Ok(()) if reported.unreachable.remove(&id) => info!(node.id = %id, "the node `{id}` answers again"),
                Err(error) if reported.unreachable.insert(id.clone()) => {
                    warn!(node.id = %id, "the node `{id}` does not answer: {}", chain(&error));
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Checks that the node of a record is at its address.
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

/// Why a record cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("the store is away")]
    Store,
    #[error("{1}")]
    Refused(Version, #[source] RecordRefusal),
}
