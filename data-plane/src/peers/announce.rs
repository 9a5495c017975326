//! This node's own record.

use bytes::Bytes;
use entrepot_records::layout;
use entrepot_runtime::chain;
use entrepot_store::{Error, Version};
use entrepot_trust::NodeRecord;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::{Peers, RELEASE};
use crate::config::limits;

/// Who writes a record.
enum Owner {
    Me,
    /// Another run with the same id writes it, too.
    Two,
}

impl Peers {
    /// Writes the record. If that fails, it is tried again soon.
    ///
    /// The write replaces the version that this run has written last. So another node with the same id is noticed
    /// without a read.
    pub(super) async fn announce(&self) {
        let mut last_written = self.inner.last_written.lock().await;
        let me = &self.inner.me;
        let (begun, hold_time) = (self.inner.memory.now(), self.inner.memory.hold_to_announce());
        let record = NodeRecord {
            node_id: me.id.clone(),
            boot_id: me.boot_id,
            peer_address: me.address.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned()),
            release: RELEASE.to_owned(),
            running: self.inner.control.version().map(|version| (version.epoch, version.revision)),
            start_time: me.start_time,
            hold_ms: u64::try_from(hold_time.as_millis()).unwrap_or(u64::MAX),
        };
        let bytes = Bytes::from(self.inner.key.sign_node_record(&record));
        match timeout(limits::NODE_RECORD_IO, self.write_own(last_written.take(), bytes)).await {
            Ok(Ok((version, owner))) => {
                *last_written = Some(version);
                match owner {
                    Owner::Me => self.inner.memory.announced(begun, hold_time),
                    Owner::Two => self.inner.memory.doubled(),
                }
            }
            Ok(Err(error)) => warn!(error = %chain(&error), "this node's record is not written: {}", chain(&error)),
            Err(_) => warn!("this node's record is not written: the store took too long"),
        }
    }

    /// Replaces the version that this run has written last, if known, or else whatever is there.
    async fn write_own(&self, last: Option<Version>, bytes: Bytes) -> Result<(Version, Owner), Error> {
        let (key, store) = (layout::node(&self.inner.me.id), &self.inner.store);
        let Some(last) = last else { return Ok((store.put(&key, bytes).await?, Owner::Me)) };
        match store.replace_if(&key, Some(&last), bytes.clone()).await {
            Err(error) if error.is_conflict() => {
                let double = self.own().await.filter(|found| found.boot_id != self.inner.me.boot_id);
                double.iter().for_each(|found| self.tell_of_double(found));
                let owner = if double.is_some() { Owner::Two } else { Owner::Me };
                Ok((store.put(&key, bytes).await?, owner))
            }
            done => Ok((done?, Owner::Me)),
        }
    }

    /// Removes the record, if it still belongs to this run.
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

    /// The record was written after this run's last write, so it does not belong to an earlier run.
    fn tell_of_double(&self, found: &NodeRecord) {
        self.inner.metrics.conflicts.add(1, &[]);
        let mut told = self.inner.double.lock();
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
