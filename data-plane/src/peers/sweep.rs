//! What was left behind: uploads of dead nodes, and this node's own that could not be aborted.

use entrepot_domain::ResourceId;
use entrepot_records::layout::{self, Parsed};
use entrepot_runtime::chain;
use tokio::time::timeout;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::Peers;
use super::survey::RecordError;
use crate::config::limits;

/// How long aborting the uploads of an earlier life may hold up the start.
const OWN_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

impl Peers {
    /// Aborts what an earlier life of this node has begun. It must not run once this one has begun something.
    pub(super) async fn abort_own_uploads(&self) {
        self.abort_uploads(&self.inner.me.id, OWN_LIMIT).await;
    }

    /// Aborts the uploads of all nodes that are dead, and those of this one that no fill knows any more.
    pub(super) async fn sweep(&self) {
        let (prefix, mut behind) = (layout::all_uploads_prefix(), None);
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
            // This node's own are those that it could not abort when their fills failed.
            if node == self.inner.me.id || self.is_dead(&node).await {
                self.abort_uploads(&node, limits::SWEEP.1).await;
            }
            // To the next owner.
            behind = Some(layout::upload(&node, Uuid::max()));
        }
    }

    /// Whether a node has been silent for so long that it will not come back to what it began. One whose record cannot
    /// be believed is left alone.
    async fn is_dead(&self, node: &ResourceId) -> bool {
        match self.record(node).await {
            Ok(None) => true,
            Ok(Some(record)) => record.write_time < self.inner.clock.now() - limits::DEAD_AFTER,
            Err(RecordError::Store | RecordError::Refused(_)) => false,
        }
    }

    async fn abort_uploads(&self, owner: &ResourceId, limit: std::time::Duration) {
        match timeout(limit, self.inner.store.abort_uploads(owner)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(count)) => info!(node.id = %owner, count, "aborted {count} uploads that `{owner}` had left behind"),
            Ok(Err(error)) => {
                warn!(node.id = %owner, "uploads of `{owner}` are left behind: {}", chain(&error));
            }
            Err(_) => warn!(node.id = %owner, "uploads of `{owner}` are left behind: the store took too long"),
        }
    }
}
