//! Simulated control planes that only stream snapshots and accept reports.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use entrepot_proto::convert::event::{Event, Unread};
use entrepot_proto::node::v1 as pb;
use entrepot_proto::node::v1::nodes_server::{Nodes, NodesServer};
use entrepot_test_support::tls::Authority;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::fixture::Published;

/// What gRPC takes unless it is told otherwise.
const MESSAGE_BYTES: usize = 4 << 20;

/// A replica that sends one snapshot to whoever watches.
pub(crate) struct Replica {
    pub(crate) url: String,
    pub(crate) state: Arc<State>,
    server: JoinHandle<()>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) published: Mutex<Option<Published>>,
    watchers: AtomicUsize,
    reports: AtomicUsize,
    pub(crate) said: Mutex<Vec<pb::WatchSnapshotRequest>>,
    stopped: CancellationToken,
    /// Whether it accepts events that this release does not know.
    pub(crate) is_later: AtomicBool,
    /// The accepted events, as bytes.
    pub(crate) taken: Mutex<BTreeSet<Bytes>>,
}

impl State {
    fn there(&self) -> Result<(), Status> {
        if self.stopped.is_cancelled() { Err(Status::unavailable("stopped")) } else { Ok(()) }
    }
}

struct Service(Arc<State>);

#[tonic::async_trait]
impl Nodes for Service {
    type WatchSnapshotStream = ReceiverStream<Result<pb::WatchSnapshotResponse, Status>>;

    async fn watch_snapshot(
        &self,
        request: Request<Streaming<pb::WatchSnapshotRequest>>,
    ) -> Result<Response<Self::WatchSnapshotStream>, Status> {
        self.0.there()?;
        assert!(request.metadata().contains_key("authorization"));
        self.0.watchers.fetch_add(1, Ordering::SeqCst);
        let (say, said) = mpsc::channel(64);
        if let Some(published) = self.0.published.lock().clone() {
            for (at, chunk) in published.bytes.chunks(100).enumerate() {
                let head = if at == 0 { serde_json::to_vec(&published.head).unwrap() } else { Vec::new() };
                let last = (at + 1) * 100 >= published.bytes.len();
                let part = pb::WatchSnapshotResponse { head, chunk: chunk.to_vec(), last };
                say.try_send(Ok(part)).expect("a small snapshot");
            }
        }
        let (state, mut incoming) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            let hear = async {
                while let Ok(Some(message)) = incoming.message().await {
                    state.said.lock().push(message);
                }
            };
            state.stopped.run_until_cancelled(hear).await;
            drop(say);
        });
        Ok(Response::new(ReceiverStream::new(said)))
    }

    type TakeQuestionsStream = ReceiverStream<Result<pb::TakeQuestionsResponse, Status>>;

    /// Like a release without questions.
    async fn take_questions(
        &self,
        _: Request<Streaming<pb::TakeQuestionsRequest>>,
    ) -> Result<Response<Self::TakeQuestionsStream>, Status> {
        Err(Status::unimplemented("no questions here"))
    }

    /// Like a release without jobs.
    async fn lease_jobs(&self, _: Request<pb::LeaseJobsRequest>) -> Result<Response<pb::LeaseJobsResponse>, Status> {
        Err(Status::unimplemented("no jobs here"))
    }

    async fn report_job(&self, _: Request<pb::ReportJobRequest>) -> Result<Response<pb::ReportJobResponse>, Status> {
        Err(Status::unimplemented("no jobs here"))
    }

    async fn report_events(
        &self,
        request: Request<pb::ReportEventsRequest>,
    ) -> Result<Response<pb::ReportEventsResponse>, Status> {
        self.0.there()?;
        self.0.reports.fetch_add(1, Ordering::SeqCst);
        let (events, mut unknown) = (request.into_inner().events, 0);
        if let Some(Unread::Wrong(why)) = events.iter().find_map(|event| Event::read("event", event).err()) {
            return Err(Status::invalid_argument(why.to_string()));
        }
        for event in events {
            match Event::read("event", &event) {
                Err(Unread::Unknown { .. }) if !self.0.is_later.load(Ordering::SeqCst) => unknown += 1,
                _ => drop(self.0.taken.lock().insert(event)),
            }
        }
        if unknown > 0 {
            return Err(Status::unimplemented(format!("{unknown} events are of a later release")));
        }
        Ok(Response::new(pb::ReportEventsResponse {}))
    }
}

impl Replica {
    pub(crate) async fn start(tls: Option<&Authority>) -> Self {
        Self::start_that_takes(tls, MESSAGE_BYTES).await
    }

    /// One whose messages may be so large.
    pub(crate) async fn start_that_takes(tls: Option<&Authority>, bytes: usize) -> Self {
        let (listener, addr) = crate::fixture::loopback().await;
        let state = Arc::new(State::default());
        let mut server = Server::builder();
        if let Some(authority) = tls {
            let (certificate, key) = authority.certificate_for(&["127.0.0.1"]);
            let identity = Identity::from_pem(certificate, key);
            server = server.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
        }
        let serving = server
            .add_service(NodesServer::new(Service(state.clone())).max_decoding_message_size(bytes))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { serving.await.unwrap() });
        let scheme = if tls.is_some() { "https" } else { "http" };
        Self { url: format!("{scheme}://{addr}"), state, server }
    }

    pub(crate) fn watchers(&self) -> usize {
        self.state.watchers.load(Ordering::SeqCst)
    }

    pub(crate) fn reports(&self) -> usize {
        self.state.reports.load(Ordering::SeqCst)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.state.stopped.cancel();
        self.server.abort();
    }
}
