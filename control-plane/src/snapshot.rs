//! What nodes need to know, as one value: built in one transaction, signed, published in the store.
//!
//! The database's revision says how far the configuration is; `snapshot/head` says how far nodes can be. Whoever
//! changes the configuration commits, then wakes the publisher, which brings the head forward, never back, by
//! compare-and-swap. Nodes are sent only what was read back from the store, so the bytes of an outage are the bytes
//! of every day.
//!
//! Several control planes may publish at once: one of them wins, wakes the others, and each passes on to its own nodes
//! what won. To exchange the seed that snapshots are signed with, first every node and every control plane gets both
//! public keys, then one control plane after the other the new seed (the last of them sees to it that what is published
//! is signed with it), and then the old key goes from everywhere.

mod build;
mod settle;
mod watchers;

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use entrepot_records::layout::{self, Parsed};
use entrepot_records::{self as records, SnapshotHead};
use entrepot_runtime::{Clock, chain};
use entrepot_store::{BlobStore, Key};
use entrepot_trust::{ClusterKey, Signature, SnapshotSigner, SnapshotTrust, Statement};
use opentelemetry::metrics::{Gauge, Meter};
use prost::Message as _;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use crate::db::{self, Db};

pub(crate) use crate::version::Version;
pub(crate) use settle::runs;
pub(crate) use watchers::{Watcher, Watchers};

/// How often the database and the head are compared without anybody saying so: another control plane may publish.
const PERIOD: Duration = Duration::from_secs(5);
/// How long the publisher waits after a failure, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How many snapshots before the published one are kept, for nodes that are reading them.
const KEPT: usize = 3;
/// How long the store may take for one small object.
const STORE_LIMIT: Duration = Duration::from_secs(10);
/// How often another control plane may be faster before this one leaves it to the next round.
const ATTEMPTS: usize = 8;

/// A published snapshot, as it is in the store.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) version: Version,
    pub(crate) head: Bytes,
    pub(crate) body: Bytes,
}

/// Why a snapshot could not be published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error(transparent)]
    Db(#[from] db::Error),
    #[error("the snapshot cannot be put into the store")]
    Store(#[from] entrepot_store::Error),
    #[error("the store has not answered within {} s", STORE_LIMIT.as_secs())]
    Slow,
    #[error("other control planes are publishing")]
    Contended,
    #[error("the published snapshot `{0}` is missing from the store")]
    Missing(Key),
    #[error(
        "the published snapshot is signed with another key or was changed: start this control plane with the snapshot seed that it was published with, or name that seed's public key in keys.snapshot_public_key_files"
    )]
    Untrusted(#[source] entrepot_trust::snapshot::SnapshotError),
}

impl PublishError {
    pub(crate) fn may_retry(&self) -> bool {
        match self {
            Self::Db(error) => error.may_retry(),
            Self::Store(error) => error.retry(),
            Self::Slow | Self::Contended | Self::Missing(_) => true,
            Self::Untrusted(_) => false,
        }
    }
}

/// Publishes snapshots and knows who watches them.
pub(crate) struct Snapshots {
    db: Db,
    store: Arc<dyn BlobStore>,
    signer: SnapshotSigner,
    /// Whose heads count as published: its own, and those of the seed before it during an exchange.
    trust: SnapshotTrust,
    /// Nodes' records are signed with it.
    cluster_key: ClusterKey,
    clock: Clock,
    wake: Notify,
    published: watch::Sender<Option<Arc<Published>>>,
    watchers: Watchers,
    revision: Gauge<i64>,
    /// For how long nodes may believe what they have read of records.
    hold_time: Duration,
}

impl Snapshots {
    pub(crate) fn new(
        db: Db,
        store: Arc<dyn BlobStore>,
        keys: (SnapshotSigner, SnapshotTrust, ClusterKey),
        clock: Clock,
        hold_time: Duration,
        meter: &Meter,
    ) -> Self {
        let (signer, trust, cluster_key) = keys;
        Self {
            db,
            store,
            trust,
            signer,
            cluster_key,
            clock,
            wake: Notify::new(),
            published: watch::Sender::new(None),
            watchers: Watchers::default(),
            revision: meter.i64_gauge("entrepot.snapshot.revision").with_description("Published revision").build(),
            hold_time,
        }
    }

    /// For how long nodes may believe what they have read of records.
    pub(crate) fn hold_time(&self) -> Duration {
        self.hold_time
    }

    /// What is published, and news of it.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<Published>>> {
        self.published.subscribe()
    }

    /// Notes that a node watches, for as long as the watcher lives.
    pub(crate) fn watch(&self, node_id: &str) -> Watcher {
        self.watchers.enter(node_id)
    }

    /// Has the publisher look whether there is something to publish, or to pass on.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// What is known to be published.
    pub(crate) fn published_version(&self) -> Option<Version> {
        self.published.borrow().as_ref().map(|published| published.version)
    }

    /// Whether what is published should be published anew, though it is not behind: it is signed with the seed before
    /// this one, which nodes shall not have to trust for ever, or it is lost, so that no node can start from it.
    pub(crate) async fn is_worn(&self) -> Result<bool, PublishError> {
        let Some((head, _)) = self.read_head().await? else { return Ok(false) };
        let is_signed_by_own = head.key_id == self.signer.public_key().id();
        Ok(!is_signed_by_own || bounded(self.store.head(&head.key)).await?.is_none())
    }

    /// The version of the head in the store.
    pub(crate) async fn head(&self) -> Result<Option<Version>, PublishError> {
        Ok(self.read_head().await?.map(|(head, _)| version(&head)))
    }

    /// Publishes whenever the configuration has changed, for ever.
    pub(crate) async fn keep_published(&self) {
        let mut wait = RETRY.0;
        loop {
            match self.publish().await {
                Ok(()) => {
                    wait = RETRY.0;
                    drop(timeout(PERIOD, self.wake.notified()).await);
                }
                Err(error) => {
                    warn!(error = %chain(&error), "the snapshot was not published, trying again");
                    sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }

    /// Brings the head up to the database, if it is behind, and hands what is published to whoever watches.
    pub(crate) async fn publish(&self) -> Result<(), PublishError> {
        self.pass_on().await?;
        for _ in 0..ATTEMPTS {
            let current = build::version(&self.db).await?;
            let head = self.read_head().await?;
            if head.as_ref().is_some_and(|(head, _)| version(head) >= current) {
                return self.load().await;
            }
            let snapshot = build::snapshot(&self.db, self.hold_time, self.clock.now()).await?;
            let expected = head.as_ref().map(|(_, version)| version);
            match self.put(&snapshot, expected).await {
                Err(PublishError::Store(error)) if error.is_conflict() => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    self.load().await?;
                    self.tell_others().await;
                    self.delete_old().await;
                    return Ok(());
                }
            }
        }
        Err(PublishError::Contended)
    }

    /// Hands what others have published to whoever watches, with the database away, too.
    ///
    /// # Errors
    /// [`PublishError::Untrusted`] if it was published by a stranger.
    pub(crate) async fn pass_on(&self) -> Result<(), PublishError> {
        match self.load().await {
            // Nodes cannot start from that one; a newer one is the remedy.
            Err(error @ PublishError::Missing(_)) => {
                warn!(error = %chain(&error), "what is published cannot be read");
                Ok(())
            }
            loaded => loaded,
        }
    }

    /// Wakes other control planes, which pass on to their nodes what was published. Without it they look by themselves.
    async fn tell_others(&self) {
        if let Err(error) = self.db.tell_published().await {
            warn!(error = %chain(&error), "other control planes will see the published snapshot a little later");
        }
    }

    async fn put(
        &self,
        snapshot: &entrepot_proto::node::v1::Snapshot,
        expected: Option<&entrepot_store::Version>,
    ) -> Result<(), PublishError> {
        let version = snapshot.version.map(Version::from).unwrap_or_default();
        let body = Bytes::from(snapshot.encode_to_vec());
        let key = layout::snapshot(version.epoch, version.revision, Uuid::now_v7());
        let statement = Statement::of(version.epoch, version.revision, &body);
        let Signature { key_id, signature } = self.signer.sign(&statement);
        let head = SnapshotHead {
            key: key.clone(),
            epoch: version.epoch,
            revision: version.revision,
            sha256: statement.sha256,
            key_id,
            signature,
        };
        bounded(self.store.put_once(&key, body)).await?;
        let replaced = bounded(records::replace(&*self.store, &layout::snapshot_head(), expected, &head)).await;
        match replaced {
            Ok(_) => {}
            Err(PublishError::Store(error)) if error.is_conflict() => {
                // A write whose answer was lost is tried again by the store's client, and then finds itself in its way.
                let found = self.read_head().await?;
                if found.is_none_or(|(found, _)| found.key != key) {
                    // Nothing names it; if it stays, a later round deletes it.
                    drop(bounded(self.store.delete(&key)).await);
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error),
        }
        info!(
            snapshot.epoch = version.epoch,
            snapshot.revision = version.revision,
            "published the snapshot of {version}"
        );
        Ok(())
    }

    /// Reads back what is published, unless it is known.
    async fn load(&self) -> Result<(), PublishError> {
        let Some((head, bytes)) = self.read_head_bytes().await? else { return Ok(()) };
        let version = version(&head);
        let known = self.published.borrow().as_ref().map(|published| published.version);
        if known.is_some_and(|known| known >= version) {
            return Ok(());
        }
        let object = bounded(self.store.get(&head.key)).await?;
        let body = object.ok_or_else(|| PublishError::Missing(head.key.clone()))?.bytes;
        let statement = Statement::of(version.epoch, version.revision, &body);
        let signature = Signature { key_id: head.key_id, signature: head.signature };
        self.trust.check(&statement, &signature).map_err(PublishError::Untrusted)?;
        self.revision.record(version.revision, &[]);
        let published = Arc::new(Published { version, head: bytes, body });
        self.published.send_if_modified(|current| {
            let newer = current.as_ref().is_none_or(|current| current.version < version);
            if newer {
                *current = Some(published);
            }
            newer
        });
        Ok(())
    }

    async fn read_head(&self) -> Result<Option<(SnapshotHead, entrepot_store::Version)>, PublishError> {
        bounded(records::read(&*self.store, &layout::snapshot_head())).await
    }

    async fn read_head_bytes(&self) -> Result<Option<(SnapshotHead, Bytes)>, PublishError> {
        let key = layout::snapshot_head();
        let Some(object) = bounded(self.store.get(&key)).await? else { return Ok(None) };
        let head = serde_json::from_slice(&object.bytes);
        let head = head.map_err(|source| entrepot_store::Error::BadRecord { key, source })?;
        Ok(Some((head, object.bytes)))
    }

    /// Deletes snapshots that were published a while ago. What fails is left to the next round.
    async fn delete_old(&self) {
        let Ok(entries) = bounded(self.store.list(&layout::snapshots_prefix(), None, 1000)).await else { return };
        let Some(current) = self.published.borrow().as_ref().map(|published| published.version) else { return };
        let is_older = |key: &&Key| match layout::parse(key) {
            Some(Parsed::Snapshot { epoch, revision, .. }) => {
                Version { epoch, revision }.cmp(&current) == Ordering::Less
            }
            Some(_) | None => false,
        };
        let older: Vec<&Key> = entries.iter().map(|entry| &entry.key).filter(is_older).collect();
        for key in older.iter().rev().skip(KEPT) {
            if let Err(error) = bounded(self.store.delete(key)).await {
                warn!(error = %chain(&error), "left the old snapshot `{key}` in the store");
            }
        }
    }
}

fn version(head: &SnapshotHead) -> Version {
    Version { epoch: head.epoch, revision: head.revision }
}

async fn bounded<T>(call: impl Future<Output = Result<T, entrepot_store::Error>>) -> Result<T, PublishError> {
    Ok(timeout(STORE_LIMIT, call).await.map_err(|_| PublishError::Slow)??)
}
