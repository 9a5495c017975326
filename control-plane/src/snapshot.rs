//! The snapshot: everything that nodes need to know, built in one transaction, signed, and published in the store.
//!
//! The database's revision is the version of the configuration; `snapshot/head` is the version that nodes can have.
//! After a change of configuration is committed, the publisher is woken. It moves the head forward, never back, by
//! compare-and-swap. Nodes are sent only what was read back from the store, so they get the same bytes as during an
//! outage.
//!
//! Several control planes may publish at once. One of them wins and wakes the others, and each passes the result on to
//! its own nodes. To exchange the seed that signs snapshots, first give both public keys to every node and every
//! control plane, then the new seed to one control plane after the other (the last of them publishes a snapshot signed
//! with it), and finally remove the old key everywhere.

mod build;
mod head;
mod settle;
mod watchers;

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use entrepot_proto::convert::duration;
use entrepot_proto::node::v1 as wire;
use entrepot_records::layout::{self, Parsed};
use entrepot_records::{self as records, SnapshotHead};
use entrepot_runtime::{Backoff, Clock, chain};
use entrepot_store::{BlobStore, Key};
use entrepot_trust::{ClusterKey, Signature, SnapshotSigner, SnapshotTrust, Statement};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Gauge, Meter};
use prost::Message as _;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{info, warn};
use uuid::Uuid;

use crate::db::{self, Db};

pub(crate) use crate::version::Version;
pub(crate) use head::Head;
pub(crate) use settle::runs;
pub(crate) use watchers::{Watcher, Watchers};

/// How often the database and the head are compared without a notification, since another control plane may publish.
const PERIOD: Duration = Duration::from_secs(5);
/// The publisher's first and longest wait after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How many earlier snapshots are kept, for nodes that are still reading them.
const KEPT: usize = 3;
/// How long the store may take for one small object.
const STORE_LIMIT: Duration = Duration::from_secs(10);
/// How often another control plane may be faster before this one waits for the next round.
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

/// Publishes snapshots, and knows which nodes watch them.
pub(crate) struct Snapshots {
    db: Db,
    store: Arc<dyn BlobStore>,
    signer: SnapshotSigner,
    /// The keys whose heads count as published: its own, and during an exchange that of the previous seed.
    trust: SnapshotTrust,
    /// The key with which nodes sign their records.
    cluster_key: ClusterKey,
    clock: Clock,
    wake: Notify,
    published: watch::Sender<Option<Arc<Published>>>,
    watchers: Watchers,
    revision: Gauge<i64>,
    /// How long nodes may rely on records that they have read.
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
        let watchers = Watchers::default();
        let watched = watchers.clone();
        meter
            .u64_observable_gauge("entrepot.node.left_out")
            .with_description("Items that the nodes which watch here do not understand, of the snapshots that they run")
            .with_callback(move |gauge| {
                for (kind, count) in watched.left_out() {
                    gauge.observe(count, &[KeyValue::new("kind", kind)]);
                }
            })
            .build();
        Self {
            db,
            store,
            trust,
            signer,
            cluster_key,
            clock,
            wake: Notify::new(),
            published: watch::Sender::new(None),
            watchers,
            revision: meter.i64_gauge("entrepot.snapshot.revision").with_description("Published revision").build(),
            hold_time,
        }
    }

    /// How long nodes may rely on records that they have read.
    pub(crate) fn hold_time(&self) -> Duration {
        self.hold_time
    }

    /// The published snapshot, with its changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<Published>>> {
        self.published.subscribe()
    }

    /// Notes that a node watches, for as long as the returned watcher lives.
    pub(crate) fn watch(&self, node_id: &str) -> Watcher {
        self.watchers.enter(node_id)
    }

    /// Wakes the publisher, which checks whether there is something to publish or to pass on.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// The published version, as far as it is known.
    pub(crate) fn published_version(&self) -> Option<Version> {
        self.published.borrow().as_ref().map(|published| published.version)
    }

    /// Why a snapshot should be published again although it is up to date: it is signed with the previous seed, which
    /// nodes should not have to trust for ever; it is lost, so that no node can start from it; or its hold time, which
    /// no database has, differs from the one that this control plane was given.
    pub(crate) async fn why_anew(&self) -> Result<Option<&'static str>, PublishError> {
        let head = match self.read_head().await? {
            Head::Readable(head, ..) => head,
            Head::Absent => return Ok(None),
            Head::Unreadable(_) => return Ok(Some("its head cannot be read")),
        };
        if head.key_id != self.signer.public_key().id() {
            return Ok(Some("it was signed with another seed"));
        }
        if with_limit(self.store.head(&head.key)).await?.is_none() {
            return Ok(Some("it is lost"));
        }
        let published = self.published.borrow().clone();
        let snapshot = published.and_then(|published| wire::Snapshot::decode(published.body.clone()).ok());
        let is_other = snapshot.is_some_and(|snapshot| snapshot.hold_duration != Some(duration(self.hold_time)));
        Ok(is_other.then_some("`records.hold_time` was changed"))
    }

    /// The version of the head in the store, or the highest that it may have if it cannot be read.
    pub(crate) async fn head(&self) -> Result<Option<Version>, PublishError> {
        with_limit(async { Head::read(&*self.store).await?.version(&*self.store).await }).await
    }

    /// Publishes whenever the configuration has changed, for ever.
    pub(crate) async fn keep_published(&self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match self.publish().await {
                Ok(()) => {
                    backoff.reset();
                    drop(timeout(PERIOD, self.wake.notified()).await);
                }
                Err(error) => {
                    warn!(error = %chain(&error), "the snapshot was not published, trying again");
                    backoff.wait().await;
                }
            }
        }
    }

    /// Moves the head forward if it is behind the database, and passes the published snapshot on to watchers.
    pub(crate) async fn publish(&self) -> Result<(), PublishError> {
        self.pass_on().await?;
        for _ in 0..ATTEMPTS {
            let current = build::version(&self.db).await?;
            let head = self.read_head().await?;
            let published = with_limit(head.version(&*self.store)).await?;
            // An unreadable head is replaced even if nothing has changed.
            let is_done = published >= Some(current) && matches!(head, Head::Readable(..));
            if is_done || published > Some(current) {
                return self.load().await;
            }
            let snapshot = build::snapshot(&self.db, self.hold_time, self.clock.now()).await?;
            let expected = match head {
                Head::Absent => None,
                Head::Readable(_, _, version) | Head::Unreadable(Some(version)) => Some(version),
                Head::Unreadable(None) => {
                    with_limit(self.store.delete(&layout::snapshot_head())).await?;
                    None
                }
            };
            match self.put(&snapshot, expected.as_ref()).await {
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

    /// Passes on to watchers what others have published, even while the database is away.
    ///
    /// # Errors
    /// [`PublishError::Untrusted`] if somebody else has signed it.
    pub(crate) async fn pass_on(&self) -> Result<(), PublishError> {
        match self.load().await {
            // Nodes cannot start from this snapshot; publishing a newer one is the remedy.
            Err(error @ PublishError::Missing(_)) => {
                warn!(error = %chain(&error), "what is published cannot be read");
                Ok(())
            }
            loaded => loaded,
        }
    }

    /// Wakes other control planes, which pass the published snapshot on to their nodes. Without this they look by
    /// themselves.
    async fn tell_others(&self) {
        if let Err(error) = self.db.tell_published().await {
            warn!(error = %chain(&error), "other control planes will see the published snapshot a little later");
        }
    }

    async fn put(
        &self,
        snapshot: &wire::Snapshot,
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
        with_limit(self.store.put_once(&key, body)).await?;
        let replaced = with_limit(records::replace(&*self.store, &layout::snapshot_head(), expected, &head)).await;
        match replaced {
            Ok(_) => {}
            Err(PublishError::Store(error)) if error.is_conflict() => {
                // If the answer to a write was lost, the store's client repeats the write, which then conflicts with
                // itself.
                if !matches!(self.read_head().await?, Head::Readable(found, ..) if found.key == key) {
                    // Nothing refers to it; if it stays, a later round deletes it.
                    drop(with_limit(self.store.delete(&key)).await);
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

    /// Reads back the published snapshot, unless it is known already.
    async fn load(&self) -> Result<(), PublishError> {
        let Head::Readable(head, bytes, _) = self.read_head().await? else { return Ok(()) };
        let version = head::version(&head);
        let known = self.published.borrow().as_ref().map(|published| published.version);
        if known.is_some_and(|known| known >= version) {
            return Ok(());
        }
        let object = with_limit(self.store.get(&head.key)).await?;
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

    async fn read_head(&self) -> Result<Head, PublishError> {
        with_limit(Head::read(&*self.store)).await
    }

    /// Deletes snapshots that were published a while ago. If that fails, the next round tries again.
    async fn delete_old(&self) {
        let Ok(entries) = with_limit(self.store.list(&layout::snapshots_prefix(), None, 1000)).await else { return };
        let Some(current) = self.published.borrow().as_ref().map(|published| published.version) else { return };
        let is_older = |key: &&Key| match layout::parse(key) {
            Some(Parsed::Snapshot { epoch, revision, .. }) => {
                Version { epoch, revision }.cmp(&current) == Ordering::Less
            }
            Some(_) | None => false,
        };
        let older: Vec<&Key> = entries.iter().map(|entry| &entry.key).filter(is_older).collect();
        for key in older.iter().rev().skip(KEPT) {
            if let Err(error) = with_limit(self.store.delete(key)).await {
                warn!(error = %chain(&error), "left the old snapshot `{key}` in the store");
            }
        }
    }
}

async fn with_limit<T>(call: impl Future<Output = Result<T, entrepot_store::Error>>) -> Result<T, PublishError> {
    Ok(timeout(STORE_LIMIT, call).await.map_err(|_| PublishError::Slow)??)
}
