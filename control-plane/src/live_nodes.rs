//! Which nodes are alive, as their records in the store say: the same for every control plane, whichever the nodes
//! watch.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use entrepot_domain::ResourceId;
use entrepot_records::layout::{self, Parsed};
use entrepot_runtime::chain;
use entrepot_store::{BlobStore, Error};
use entrepot_trust::{ClusterKey, NodeRecord};
use tracing::warn;

use crate::at_once;

/// How many records are listed at a time.
const LISTED: usize = 1000;

/// The nodes that are alive at `now`, or with `None` all that have a record, by id: at most `limit`, those behind `after`, and none that `except` names.
pub(crate) async fn list(
    store: &dyn BlobStore,
    key: &ClusterKey,
    now: impl Into<Option<DateTime<Utc>>>,
    after: Option<&ResourceId>,
    limit: usize,
    except: &HashSet<String>,
) -> Result<Vec<NodeRecord>, Error> {
    let now = now.into();
    let mut after = after.map(layout::node);
    let mut live = Vec::new();
    loop {
        let entries = store.list(&layout::nodes_prefix(), after.as_ref(), LISTED).await?;
        let ids = entries.iter().filter_map(|entry| match layout::parse(&entry.key) {
            Some(Parsed::Node { id }) if !except.contains(id.as_str()) => Some(id),
            Some(_) | None => None,
        });
        let records = ids.map(|id| async move { read(store, key, &id).await });
        let records: Vec<_> = at_once::all(records).await?;
        live.extend(records.into_iter().flatten().filter(|record| now.is_none_or(|now| record.is_live(now))));
        if entries.len() < LISTED || live.len() >= limit {
            live.truncate(limit);
            return Ok(live);
        }
        after = entries.into_iter().next_back().map(|entry| entry.key);
    }
}

/// What a node says of itself; `None` if there is no such record, or none that can be believed.
pub(crate) async fn read(
    store: &dyn BlobStore,
    key: &ClusterKey,
    id: &ResourceId,
) -> Result<Option<NodeRecord>, Error> {
    let Some(object) = store.get(&layout::node(id)).await? else { return Ok(None) };
    match key.read_node_record(&object.bytes) {
        // A record that was copied from another node's place says nothing about this one.
        Ok(record) => Ok(Some(record).filter(|record| record.node_id == *id)),
        Err(error) => {
            warn!(node.id = %id, error = %chain(&error), "passing over the record of the node `{id}`");
            Ok(None)
        }
    }
}
