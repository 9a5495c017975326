//! The service for nodes: it sends snapshots, receives events, and passes questions on.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use entrepot_domain::ResourceId;
use entrepot_proto::node::v1 as pb;
use entrepot_proto::node::v1::nodes_server::Nodes;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::Api;
use super::node_jobs;
use crate::error::ApiError;
use crate::index;
use crate::plane::Plane;
use crate::snapshot::{Published, Version, Watcher};

/// How much of a snapshot goes into one message.
const CHUNK_BYTES: usize = 1024 * 1024;
/// How many messages may wait for a node.
const QUEUE: usize = 4;
/// How many questions may wait for a node.
const QUESTIONS: usize = 32;
/// How many left-out items of a node are counted.
const LEFT_OUT: usize = 1000;
/// How long a node may take to name itself, and to take a message.
const PATIENCE: Duration = Duration::from_secs(30);

type Outgoing = mpsc::Sender<Result<pb::WatchSnapshotResponse, Status>>;

#[tonic::async_trait]
impl Nodes for Api {
    type WatchSnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::WatchSnapshotResponse, Status>> + Send>>;

    async fn watch_snapshot(
        &self,
        request: Request<Streaming<pb::WatchSnapshotRequest>>,
    ) -> Result<Response<Self::WatchSnapshotStream>, Status> {
        let node = self.node(&request)?;
        let (outgoing, messages) = mpsc::channel(QUEUE);
        let plane = Arc::clone(&self.0);
        self.0.tasks.spawn("watch snapshot", async move {
            let stopping = plane.tasks.stopping();
            let watching = watch(&plane, &node, request.into_inner(), &outgoing);
            if let Some(Err(status)) = stopping.run_until_cancelled(watching).await {
                // If the node is gone, it needs no reason.
                drop(outgoing.try_send(Err(status)));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    type TakeQuestionsStream = Pin<Box<dyn Stream<Item = Result<pb::TakeQuestionsResponse, Status>> + Send>>;

    async fn take_questions(
        &self,
        request: Request<Streaming<pb::TakeQuestionsRequest>>,
    ) -> Result<Response<Self::TakeQuestionsStream>, Status> {
        let node = self.node(&request)?;
        let (outgoing, messages) = mpsc::channel(QUESTIONS);
        let plane = Arc::clone(&self.0);
        self.0.tasks.spawn("take questions", async move {
            let stopping = plane.tasks.stopping();
            let serving = questions(&plane, &node, request.into_inner(), &outgoing);
            if let Some(Err(status)) = stopping.run_until_cancelled(serving).await {
                // If the node is gone, it needs no reason.
                drop(outgoing.try_send(Err(status)));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn report_events(
        &self,
        request: Request<pb::ReportEventsRequest>,
    ) -> Result<Response<pb::ReportEventsResponse>, Status> {
        let node = self.node(&request)?;
        let request = request.into_inner();
        require_own_name(&node, &request.node_id)?;
        index::report(&self.0, &request).await?;
        Ok(Response::new(pb::ReportEventsResponse {}))
    }

    async fn lease_jobs(
        &self,
        request: Request<pb::LeaseJobsRequest>,
    ) -> Result<Response<pb::LeaseJobsResponse>, Status> {
        let node = self.node(&request)?;
        require_own_name(&node, &request.get_ref().node_id)?;
        Ok(Response::new(node_jobs::lease(&self.0, &node, request.get_ref()).await?))
    }

    async fn report_job(
        &self,
        request: Request<pb::ReportJobRequest>,
    ) -> Result<Response<pb::ReportJobResponse>, Status> {
        let node = self.node(&request)?;
        require_own_name(&node, &request.get_ref().node_id)?;
        Ok(Response::new(node_jobs::report(&self.0, request.get_ref()).await?))
    }
}

/// Serves a node's stream of questions until it ends.
async fn questions(
    plane: &Plane,
    node: &ResourceId,
    mut incoming: Streaming<pb::TakeQuestionsRequest>,
    outgoing: &mpsc::Sender<Result<pb::TakeQuestionsResponse, Status>>,
) -> Result<(), Status> {
    let silent = || Status::deadline_exceeded("the first message did not come");
    let Some(first) = timeout(PATIENCE, incoming.message()).await.map_err(|_| silent())?? else { return Ok(()) };
    require_own_name(node, &first.node_id)?;
    plane.inquiries.serve(node, incoming, outgoing).await;
    Ok(())
}

/// Sends every snapshot to a node and notes which one it runs, until the node leaves.
async fn watch(
    plane: &Plane,
    node: &ResourceId,
    mut incoming: Streaming<pb::WatchSnapshotRequest>,
    outgoing: &Outgoing,
) -> Result<(), Status> {
    let silent = || Status::deadline_exceeded("the first message did not come");
    let Some(first) = timeout(PATIENCE, incoming.message()).await.map_err(|_| silent())?? else { return Ok(()) };
    require_own_name(node, &first.node_id)?;
    let watcher = plane.snapshots.watch(node.as_str());
    listen(node, &watcher, &first);
    info!(node.id = %node, "the node `{node}` watches the configuration");

    let mut published = plane.snapshots.subscribe();
    // The newest snapshot is sent first, even if the node runs it already, to show that the stream works.
    published.mark_changed();
    loop {
        tokio::select! {
            news = published.changed() => {
                if news.is_err() || send_newest(&mut published, outgoing).await.is_none() {
                    return Ok(());
                }
            }
            message = incoming.message() => match message? {
                Some(message) => listen(node, &watcher, &message),
                None => return Ok(()),
            },
        }
    }
}

fn listen(node: &ResourceId, watcher: &Watcher, message: &pb::WatchSnapshotRequest) {
    let running = message.running.map(Version::from);
    let refused = message.refused.as_ref().and_then(|refused| refused.version).map(Version::from);
    if let (Some(version), Some(refused)) = (refused, &message.refused) {
        let reason = short(&refused.reason);
        warn!(node.id = %node, "the node `{node}` refused the snapshot of {version}: {reason}");
    }
    watcher.reports(running, refused);
    let left_out: Vec<String> = message.left_out.iter().take(LEFT_OUT).map(|one| short(&one.item)).collect();
    let count = left_out.len();
    let (Some(version), Some(first)) = (running, message.left_out.first()) else {
        watcher.leaves_out(left_out);
        return;
    };
    if watcher.leaves_out(left_out) {
        let (item, reason) = (short(&first.item), short(&first.reason));
        warn!(
            node.id = %node,
            "the node `{node}` leaves {count} items out of the snapshot of {version}, for one `{item}`: {reason}"
        );
    }
}

/// A node's text, shortened for logs.
fn short(text: &str) -> String {
    text.chars().take(500).collect()
}

/// Sends the published snapshot in chunks; `None` if the node is gone.
async fn send_newest(published: &mut watch::Receiver<Option<Arc<Published>>>, outgoing: &Outgoing) -> Option<()> {
    let Some(newest) = published.borrow_and_update().clone() else { return Some(()) };
    let mut rest = newest.body.clone();
    let mut head = newest.head.clone();
    loop {
        let chunk = rest.split_to(rest.len().min(CHUNK_BYTES));
        let last = rest.is_empty();
        let message = pb::WatchSnapshotResponse {
            head: std::mem::take::<Bytes>(&mut head).to_vec(),
            chunk: chunk.to_vec(),
            last,
        };
        timeout(PATIENCE, outgoing.send(Ok(message))).await.ok()?.ok()?;
        if last {
            return Some(());
        }
    }
}

fn require_own_name(node: &ResourceId, said: &str) -> Result<(), ApiError> {
    if node.as_str() == said {
        return Ok(());
    }
    Err(ApiError::field("node_id", format!("must be `{node}`, as the node's token says")))
}
