//! Cleans up leftovers: uploads of dead nodes, and this node's own that could not be aborted.

use std::collections::HashMap;

use entrepot_domain::ResourceId;
use entrepot_records::layout::{self, Parsed};
use entrepot_runtime::chain;
use entrepot_store::Entry;
use tokio::time::timeout;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::Peers;
use super::survey::RecordError;
use crate::config::limits;

/// How long aborting the uploads of an earlier run may delay the start.
const OWN_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

impl Peers {
    /// Aborts the uploads of an earlier run of this node. This must not run after this run has begun an upload.
    pub(super) async fn abort_own_uploads(&self) {
        self.abort_uploads(&self.inner.me.id, OWN_LIMIT).await;
    }

    /// Aborts the uploads of all dead nodes, and those of this node that no fill knows any more.
    pub(super) async fn sweep(&self) {
        let (prefix, mut behind, mut nodes) = (layout::all_uploads_prefix(), None, None);
        for _ in 0..limits::UPLOAD_OWNERS {
            let listing = self.inner.store.list(&prefix, behind.as_ref(), 1);
            let key = match timeout(limits::NODE_RECORD_IO, listing).await {
                Ok(Ok(entries)) => entries.into_iter().next().map(|entry| entry.key),
                Ok(Err(error)) => return debug!("uploads cannot be listed: {}", chain(&error)),
                Err(_) => return debug!("uploads cannot be listed: the store took too long"),
            };
            let Some(key) = key else { return };
            let Some(Parsed::Upload { node, .. }) = layout::parse(&key) else {
                behind = Some(key);
                continue;
            };
            if node != self.inner.me.id && nodes.is_none() {
                nodes = self.list().await.map(|(entries, _)| entries);
            }
            // This node's own are those that it could not abort when their fills failed.
            let is_own = node == self.inner.me.id;
            if is_own || self.is_dead(&node, nodes.as_ref()).await {
                self.abort_uploads(&node, limits::SWEEP.1).await;
            }
            // Continues with the next owner.
            behind = Some(layout::upload(&node, Uuid::max()));
        }
    }

    /// Whether a node has been silent for so long that it will not return to its uploads. If its record cannot be
    /// trusted, it is left alone.
    async fn is_dead(&self, node: &ResourceId, listed: Option<&HashMap<ResourceId, Entry>>) -> bool {
        let Some(listed) = listed else { return false };
        let is_silent = |entry: &Entry| entry.modify_time < self.inner.clock.now() - limits::DEAD_AFTER;
        if !listed.get(node).is_none_or(is_silent) || self.inner.roll.lock().is_live(node, self.inner.memory.now()) {
            return false;
        }
        match self.record(node).await {
            // A node that is not in the list but has a record has just written it.
            Ok(found) => found.is_none() || listed.contains_key(node),
            Err(RecordError::Store | RecordError::Refused(..)) => false,
        }
    }

    async fn abort_uploads(&self, owner: &ResourceId, limit: std::time::Duration) {
        match timeout(limit, self.inner.store.abort_uploads(owner)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(count)) => info!(node.id = %owner, count, "aborted {count} uploads that `{owner}` had left behind"),
            Ok(Err(error)) => {
                warn!(node.id = %owner, "could not abort the uploads of `{owner}`: {}", chain(&error));
            }
            Err(_) => warn!(node.id = %owner, "could not abort the uploads of `{owner}`: the store took too long"),
        }
    }
}
