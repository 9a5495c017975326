//! The live nodes according to their records in the store. All control planes see the same nodes, whichever of them a
//! node is connected to.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use entrepot_domain::ResourceId;
use entrepot_records::layout::{self, Parsed};
use entrepot_runtime::chain;
use entrepot_store::{BlobStore, Error};
use entrepot_trust::node_record::is_live;
use entrepot_trust::{ClusterKey, NodeRecord};
use tracing::warn;

use crate::at_once;

/// How many records are listed at a time.
const LISTED: usize = 1000;

/// A node with a record.
pub(crate) struct Listed {
    pub(crate) record: NodeRecord,
    /// When the record was written, by the store's clock.
    pub(crate) write_time: DateTime<Utc>,
}

/// The nodes that are alive at `now` (or, with `None`, all that have a record) by id: at most `limit`, only those after
/// `after`, without those in `except`.
pub(crate) async fn list(
    store: &dyn BlobStore,
    key: &ClusterKey,
    now: impl Into<Option<DateTime<Utc>>>,
    after: Option<&ResourceId>,
    limit: usize,
    except: &HashSet<String>,
) -> Result<Vec<Listed>, Error> {
    let now = now.into();
    let mut after = after.map(layout::node);
    let mut live = Vec::new();
    loop {
        let entries = store.list(&layout::nodes_prefix(), after.as_ref(), LISTED).await?;
        let counting = entries.iter().filter(|entry| now.is_none_or(|now| is_live(entry.modify_time, now)));
        let named = counting.filter_map(|entry| match layout::parse(&entry.key) {
            Some(Parsed::Node { id }) if !except.contains(id.as_str()) => Some((id, entry.modify_time)),
            Some(_) | None => None,
        });
        let listed = named.map(|(id, write_time)| async move {
            let record = read(store, key, &id).await?;
            Ok::<_, Error>(record.map(|record| Listed { record, write_time }))
        });
        let listed: Vec<_> = at_once::all(listed).await?;
        live.extend(listed.into_iter().flatten());
        if entries.len() < LISTED || live.len() >= limit {
            live.truncate(limit);
            return Ok(live);
        }
        after = entries.into_iter().next_back().map(|entry| entry.key);
    }
}

/// Whether a node is alive at `now`.
pub(crate) async fn lives(store: &dyn BlobStore, id: &ResourceId, now: DateTime<Utc>) -> Result<bool, Error> {
    let (key, mut after) = (layout::node(id), None);
    loop {
        let entries = store.list(&layout::nodes_prefix(), after.as_ref(), LISTED).await?;
        if let Some(entry) = entries.iter().find(|entry| entry.key == key) {
            return Ok(is_live(entry.modify_time, now));
        }
        if entries.len() < LISTED {
            return Ok(false);
        }
        after = entries.into_iter().next_back().map(|entry| entry.key);
    }
}

/// A node's record; `None` if there is none, or if it cannot be trusted.
pub(crate) async fn read(
    store: &dyn BlobStore,
    key: &ClusterKey,
    id: &ResourceId,
) -> Result<Option<NodeRecord>, Error> {
    let Some(object) = store.get(&layout::node(id)).await? else { return Ok(None) };
    match key.read_node_record(&object.bytes) {
        // A record that was copied from another node's key says nothing about this node.
        Ok(record) => Ok(Some(record).filter(|record| record.node_id == *id)),
        Err(error) => {
            warn!(node.id = %id, error = %chain(&error), "skipping the record of the node `{id}`");
            Ok(None)
        }
    }
}
