//! This node's own record.

use std::sync::PoisonError;

use bytes::Bytes;
use entrepot_records::layout;
use entrepot_runtime::chain;
use entrepot_store::{Error, Version};
use entrepot_trust::NodeRecord;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::{Peers, RELEASE};
use crate::config::limits;

impl Peers {
    /// Writes the record. If that fails, the next time is soon.
    ///
    /// It replaces what this life has written last. So another node with the same id is noticed without a read.
    pub(super) async fn announce(&self) {
        let mut last_written = self.inner.last_written.lock().await;
        let (me, now) = (&self.inner.me, self.inner.clock.now());
        let (begun, hold_time) = (self.inner.memory.now(), self.inner.memory.hold_to_announce());
        let record = NodeRecord {
            node_id: me.id.clone(),
            boot_id: me.boot_id,
            peer_address: me.address.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned()),
            release: RELEASE.to_owned(),
            running: self.inner.control.version().map(|version| (version.epoch, version.revision)),
            start_time: me.start_time,
            write_time: now,
            hold_ms: u64::try_from(hold_time.as_millis()).unwrap_or(u64::MAX),
        };
        let bytes = Bytes::from(self.inner.key.sign_node_record(&record));
        match timeout(limits::NODE_RECORD_IO, self.write_own(last_written.take(), bytes)).await {
            Ok(Ok(version)) => {
                *last_written = Some(version);
                self.inner.memory.announced(begun, hold_time);
            }
            Ok(Err(error)) => warn!(error = %chain(&error), "this node's record is not written: {}", chain(&error)),
            Err(_) => warn!("this node's record is not written: the store took too long"),
        }
    }

    /// Puts the record in the place of what this life has written last, if that is known, and else of what is there.
    async fn write_own(&self, last: Option<Version>, bytes: Bytes) -> Result<Version, Error> {
        let key = layout::node(&self.inner.me.id);
        let Some(last) = last else { return self.inner.store.put(&key, bytes).await };
        match self.inner.store.replace_if(&key, Some(&last), bytes.clone()).await {
            Err(error) if error.is_conflict() => {
                if let Some(found) = self.own().await.filter(|found| found.boot_id != self.inner.me.boot_id) {
                    self.tell_of_double(&found);
                }
                self.inner.store.put(&key, bytes).await
            }
            done => done,
        }
    }

    /// Removes the record, if it is still this life's.
    pub(super) async fn retire(&self) {
        if self.own().await.is_none_or(|found| found.boot_id != self.inner.me.boot_id) {
            return;
        }
        match self.inner.store.delete(&layout::node(&self.inner.me.id)).await {
            Ok(()) => info!("removed this node's record"),
            Err(error) => debug!("this node's record stays: {}", chain(&error)),
        }
    }

    /// The record under this node's id.
    async fn own(&self) -> Option<NodeRecord> {
        let object = self.inner.store.get(&layout::node(&self.inner.me.id)).await.ok()??;
        self.inner.key.read_node_record(&object.bytes).ok()
    }

    fn tell_of_double(&self, found: &NodeRecord) {
        if !found.is_live(self.inner.clock.now()) {
            return;
        }
        self.inner.metrics.conflicts.add(1, &[]);
        let mut told = self.inner.double.lock().unwrap_or_else(PoisonError::into_inner);
        if told.replace(found.boot_id) != Some(found.boot_id) {
            warn!(
                node.id = %found.node_id, node.other_boot = %found.boot_id,
                "another node is called `{}`, too, and was started at {}: give each its own node.id, or they take each \
                 other's uploads for leftovers",
                found.node_id, found.start_time
            );
        }
    }
}
