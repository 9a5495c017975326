//! Keeps the snapshot current: loads the published one, follows the stream, keeps the last good one.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use entrepot_proto::node::v1 as pb;
use entrepot_proto::node::v1::nodes_client::NodesClient;
use entrepot_runtime::health::Condition;
use entrepot_runtime::{Tasks, chain};
use entrepot_store::records::SnapshotHead;
use entrepot_store::{Store, layout};
use entrepot_trust::{ClusterKey, Signature, SnapshotTrust, Statement};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use super::snapshot::{SnapshotError, Version};
use super::{Control, NodeToken, Snapshot};
use crate::config::limits;

/// Everything that keeping the snapshot current needs.
pub(crate) struct Watch {
    pub(crate) control: Control,
    pub(crate) store: Store,
    pub(crate) trust: SnapshotTrust,
    pub(crate) cluster_key: ClusterKey,
    pub(crate) channel: Channel,
    pub(crate) token: NodeToken,
    pub(crate) readiness: Condition,
    pub(crate) tasks: Tasks,
}

/// Why a snapshot is not run. The one that runs stays.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the head is malformed")]
    Head(#[from] serde_json::Error),
    #[error("it is not signed, as it is, with a key that this node trusts")]
    Signature,
    #[error("it is of another version than its head says")]
    Version,
    #[error("it is older than the one that runs")]
    Older,
    #[error("it is larger than {} bytes", limits::SNAPSHOT_BYTES)]
    TooLarge,
    #[error(transparent)]
    Content(#[from] SnapshotError),
}

/// Why the published snapshot could not be had.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("the store could not be read")]
    Store(#[from] entrepot_store::Error),
    #[error("the head names an object that is not there")]
    Absent,
    #[error("the published snapshot is refused")]
    Refused(#[from] Refusal),
}

impl Watch {
    /// Runs until the node stops.
    pub(crate) async fn run(self) {
        let stopping = self.tasks.stopping();
        let backoff = || {
            ExponentialBuilder::default()
                .with_jitter()
                .with_min_delay(Duration::from_millis(100))
                .with_max_delay(Duration::from_secs(3))
                .without_max_times()
                .build()
        };
        let mut delays = backoff();
        while !stopping.is_cancelled() {
            if let Err(error) = self.load().await {
                warn!("the published snapshot was not taken: {}", chain(&error));
            }
            let before = self.version();
            tokio::select! {
                () = stopping.cancelled() => return,
                end = self.follow() => match end {
                    Ok(()) => debug!("the control plane closed the stream of snapshots"),
                    Err(status) => debug!("the control plane is away: {status}"),
                },
            }
            if self.version() != before {
                delays = backoff();
            }
            let delay = delays.next().unwrap_or(Duration::from_secs(3));
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// Takes the snapshot that is published in the store, if it is newer than the one that runs.
    async fn load(&self) -> Result<(), LoadError> {
        let Some(head) = self.store.get(&layout::snapshot_head()).await? else { return Ok(()) };
        let parsed: SnapshotHead = serde_json::from_slice(&head.bytes).map_err(Refusal::from)?;
        if (Version { epoch: parsed.epoch, revision: parsed.revision }) <= self.version() {
            return Ok(());
        }
        let object = self.store.get(&parsed.key).await?.ok_or(LoadError::Absent)?;
        self.install(&head.bytes, &object.bytes)?;
        Ok(())
    }

    /// Follows the stream until it ends.
    async fn follow(&self) -> Result<(), tonic::Status> {
        let mut client = NodesClient::new(InterceptedService::new(self.channel.clone(), self.token.clone()));
        let (say, said) = mpsc::channel(4);
        let hello = self.message(None);
        say.try_send(hello).map_err(|_| tonic::Status::internal("a new channel has room"))?;
        let mut stream = client.watch_snapshot(ReceiverStream::new(said)).await?.into_inner();
        let (mut head, mut bytes, mut too_large) = (Vec::new(), Vec::new(), false);
        while let Some(part) = stream.message().await? {
            if !part.head.is_empty() {
                (head, bytes, too_large) = (part.head, Vec::new(), false);
            }
            too_large |= bytes.len() + part.chunk.len() > limits::SNAPSHOT_BYTES;
            if !too_large {
                bytes.extend_from_slice(&part.chunk);
            }
            if part.last {
                let result = if too_large { Err(Refusal::TooLarge) } else { self.install(&head, &bytes) };
                bytes = Vec::new();
                let refused = result.err().map(|refusal| self.refused(&head, &refusal));
                if say.send(self.message(refused)).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Runs a snapshot from now on, if everything about it is right.
    fn install(&self, head: &[u8], bytes: &[u8]) -> Result<(), Refusal> {
        let head: SnapshotHead = serde_json::from_slice(head)?;
        let version = Version { epoch: head.epoch, revision: head.revision };
        let statement = Statement::of(head.epoch, head.revision, bytes);
        let signature = Signature { key_id: head.key_id, signature: head.signature };
        self.trust.check(&statement, &signature).map_err(|_| Refusal::Signature)?;
        match version.cmp(&self.version()) {
            std::cmp::Ordering::Less => return Err(Refusal::Older),
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Greater => {}
        }
        let previous = self.control.current.load_full();
        let snapshot = Snapshot::decode(bytes, &self.cluster_key, previous.as_deref())?;
        if snapshot.version != version {
            return Err(Refusal::Version);
        }
        info!(
            epoch = version.epoch,
            revision = version.revision,
            "runs snapshot {}.{}",
            version.epoch,
            version.revision
        );
        self.control.current.store(Some(Arc::new(snapshot)));
        self.readiness.ready();
        Ok(())
    }

    fn version(&self) -> Version {
        self.control.current.load().as_ref().map(|snapshot| snapshot.version).unwrap_or_default()
    }

    fn message(&self, refused: Option<pb::RefusedSnapshot>) -> pb::WatchSnapshotRequest {
        let running = self.control.current.load().as_ref().map(|snapshot| snapshot.version.into());
        pb::WatchSnapshotRequest { node_id: self.token.node_id.to_string(), running, refused }
    }

    fn refused(&self, head: &[u8], refusal: &Refusal) -> pb::RefusedSnapshot {
        let head: Option<SnapshotHead> = serde_json::from_slice(head).ok();
        let version = head.map(|head| pb::SnapshotVersion { epoch: head.epoch, revision: head.revision });
        let reason = chain(refusal).to_string();
        warn!("refused a snapshot: {reason}");
        pb::RefusedSnapshot { version, reason }
    }
}
