//! Keeps the snapshot current in two independent ways: by the stream from the control plane, which is fast, and by
//! checking the published snapshot every few seconds, which needs only the store.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use entrepot_proto::node::v1 as pb;
use entrepot_records::layout;
use entrepot_runtime::retry::jittered;
use entrepot_runtime::{Backoff, Tasks, chain};
use entrepot_store::Store;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::{debug, info, warn};

use super::channels::{Client, ControlChannels};
use super::gate::{Gate, Head, Refusal};
use super::snapshot::Version;
use crate::config::limits;

/// Everything needed to keep the snapshot current.
#[derive(Clone)]
pub(crate) struct Watch {
    pub(crate) node_id: Arc<str>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) store: Store,
    pub(crate) channels: ControlChannels,
    /// Whether a control plane streams snapshots now.
    streamed: tokio::sync::watch::Sender<bool>,
}

/// Why the published snapshot could not be loaded.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("the store could not be read")]
    Store(#[from] entrepot_store::Error),
    #[error("the store took too long")]
    Slow,
    #[error("it is refused")]
    Refused,
}

impl Watch {
    pub(crate) fn new(node_id: Arc<str>, gate: Gate, store: Store, channels: ControlChannels) -> Self {
        let streamed = tokio::sync::watch::Sender::new(false);
        Self { node_id, gate: Arc::new(gate), store, channels, streamed }
    }

    /// Starts both, and one more check after each time for which the process was suspended. They end when the tasks stop.
    pub(crate) fn spawn(self, tasks: &Tasks) {
        let (polling, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("snapshot.poll", async move {
            stopping.run_until_cancelled(polling.poll()).await;
        });
        let (resuming, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("snapshot.suspension", async move {
            stopping.run_until_cancelled(resuming.resume()).await;
        });
        let stopping = tasks.stopping();
        tasks.spawn("snapshot.stream", async move {
            stopping.run_until_cancelled(self.stream()).await;
        });
    }

    /// Checks the published snapshot again and again.
    async fn poll(&self) {
        let (mut trouble, mut streamed) = (None, self.streamed.subscribe());
        loop {
            match self.poll_store().await {
                Ok(()) => {
                    if trouble.take().is_some() {
                        info!("the published snapshot can be read again");
                    }
                }
                // This was reported already.
                Err(LoadError::Refused) => {}
                Err(error) => {
                    let text = chain(&error).to_string();
                    if trouble.as_ref() != Some(&text) {
                        warn!(error = text, "the published snapshot cannot be read: {text}");
                    }
                    trouble = Some(text);
                }
            }
            self.pause(&mut streamed).await;
        }
    }

    /// Checks the published snapshot whenever the process was suspended.
    async fn resume(&self) {
        let look = || async {
            match self.poll_store().await {
                Ok(()) => info!("this process was suspended; the snapshot that runs is the newest"),
                Err(error) => {
                    warn!("this process was suspended, and goes on with the snapshot it had: {}", chain(&error));
                }
            }
        };
        self.gate.suspension().notice(look).await;
    }

    /// Waits until the next check: longer while snapshots come by the stream, and at once when the stream ends.
    async fn pause(&self, streamed: &mut tokio::sync::watch::Receiver<bool>) {
        let is_streamed = *streamed.borrow_and_update();
        let pause = match self.gate.version() {
            None => limits::FIRST_SNAPSHOT_POLL,
            Some(_) if is_streamed => limits::STREAMED_SNAPSHOT_POLL,
            Some(_) => limits::SNAPSHOT_POLL,
        };
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            // The sender lives as long as `self`.
            _ = streamed.wait_for(|now| is_streamed && !now) => {}
        }
    }

    /// Loads the published snapshot from the store, if it is newer than the current one.
    async fn poll_store(&self) -> Result<(), LoadError> {
        // Taken before the store is asked: if the stream brings a newer snapshot meanwhile, an older head is not a
        // rollback.
        let running = self.gate.version();
        let object = within(limits::SNAPSHOT_READ.0, self.store.get(&layout::snapshot_head())).await?;
        let Some(object) = object else {
            return match running {
                // Nothing was published yet.
                None => Ok(()),
                Some(_) => Err(self.report_refusal(&[], &Refusal::NoHead)),
            };
        };
        match self.take(&object.bytes, running).await? {
            Ok(()) => Ok(()),
            Err(refusal) => Err(self.report_refusal(&object.bytes, &refusal)),
        }
    }

    async fn take(&self, head: &[u8], running: Option<Version>) -> Result<Result<(), Refusal>, LoadError> {
        let head = match self.gate.head(head) {
            Ok(head) => head,
            Err(refusal) => return Ok(Err(refusal)),
        };
        match running {
            Some(running) if head.version < running => {
                return Ok(Err(Refusal::RolledBack { offered: head.version, running }));
            }
            Some(running) if head.version == running => return Ok(Ok(())),
            Some(_) | None => {}
        }
        Ok(match self.read(&head).await? {
            Ok(bytes) => match self.gate.install(&head, bytes.freeze()).await {
                // The stream has brought a newer one meanwhile.
                Err(Refusal::RolledBack { .. }) => Ok(()),
                installed => installed,
            },
            Err(refusal) => Err(refusal),
        })
    }

    /// The bytes of a published snapshot.
    async fn read(&self, head: &Head) -> Result<Result<BytesMut, Refusal>, LoadError> {
        let limit = limits::SNAPSHOT_BYTES as u64;
        match within(limits::SNAPSHOT_READ.0, self.store.head(&head.key)).await? {
            None => return Ok(Err(Refusal::Missing)),
            Some(size_bytes) if size_bytes > limit => return Ok(Err(Refusal::TooLarge)),
            Some(_) => {}
        }
        within(limits::SNAPSHOT_READ.1, async {
            let Some(mut stream) = self.store.read(&head.key, 0..limit, None).await? else {
                return Ok(Err(Refusal::Missing));
            };
            let mut bytes = BytesMut::new();
            while let Some(chunk) = stream.next().await {
                bytes.extend_from_slice(&chunk?);
            }
            Ok(Ok(bytes))
        })
        .await
    }

    fn report_refusal(&self, head: &[u8], refusal: &Refusal) -> LoadError {
        self.gate.refuse(head, refusal);
        LoadError::Refused
    }

    /// Follows the replicas of the control plane, one after the other.
    async fn stream(&self) {
        let (mut backoff, mut failures) = (Backoff::new(Duration::from_millis(100), limits::CONTROL_RETRY), 0);
        loop {
            let Some((replica, client)) = self.channels.client() else { return };
            let before = self.gate.version();
            let followed = self.follow(client).await;
            self.streamed.send_replace(false);
            match followed {
                Ok(()) => debug!("the control plane closed the stream of snapshots"),
                Err(status) => debug!("the control plane is away: {status}"),
            }
            self.channels.fail_over(replica);
            failures += 1;
            if self.gate.version() != before {
                backoff.reset();
                failures = 1;
            }
            // Replicas that were not asked yet are asked at once.
            if failures % self.channels.len() == 0 {
                backoff.wait().await;
            }
        }
    }

    /// Follows the stream until it ends.
    async fn follow(&self, mut client: Client) -> Result<(), Status> {
        let (say, said) = mpsc::channel(4);
        let hello = self.message(None);
        say.try_send(hello).map_err(|_| Status::internal("a new channel has room"))?;
        let opened = timeout(limits::REPORT, client.watch_snapshot(ReceiverStream::new(said))).await;
        let silent = || Status::deadline_exceeded("the control plane took too long");
        let mut stream = opened.map_err(|_| silent())??.into_inner();
        let (mut head, mut bytes, mut too_large) = (Vec::new(), BytesMut::new(), false);
        while let Some(part) = stream.message().await? {
            if !part.head.is_empty() {
                (head, bytes, too_large) = (part.head, BytesMut::new(), false);
            }
            too_large |= bytes.len() + part.chunk.len() > limits::SNAPSHOT_BYTES;
            if !too_large {
                bytes.extend_from_slice(&part.chunk);
            }
            if part.last {
                let whole = std::mem::take(&mut bytes).freeze();
                let result = match self.gate.head(&head) {
                    Ok(_) if too_large => Err(Refusal::TooLarge),
                    Ok(head) => self.gate.install(&head, whole).await,
                    Err(refusal) => Err(refusal),
                };
                self.streamed.send_replace(true);
                let refused = result.err().map(|refusal| self.gate.refuse(&head, &refusal));
                match timeout(limits::REPORT, say.send(self.message(refused))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ok(()),
                    Err(_) => return Err(silent()),
                }
            }
        }
        Ok(())
    }

    fn message(&self, refused: Option<pb::RefusedSnapshot>) -> pb::WatchSnapshotRequest {
        let running = self.gate.version().map(Into::into);
        let left_out = self.gate.left_out();
        pb::WatchSnapshotRequest { node_id: self.node_id.to_string(), running, refused, left_out }
    }
}

/// Limits a call to the store to `limit`.
async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, entrepot_store::Error>>,
) -> Result<T, LoadError> {
    Ok(timeout(limit, call).await.map_err(|_| LoadError::Slow)??)
}
