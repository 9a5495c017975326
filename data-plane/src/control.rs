//! The line to the control plane: the snapshot and the jobs that come in, the events that go out, and what operators ask.
//!
//! A node starts from the snapshot that is published in the store, always, and goes on looking there; the stream from
//! the control plane is only quicker. Without a control plane it serves on with the last good one, and what it learns
//! waits.

mod gate;
mod line;
pub(crate) mod outbox;
mod snapshot;
mod watch;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use entrepot_runtime::Clock;
use entrepot_trust::Tokens;
use tokio::sync::watch as notice;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;

use crate::error::PullError;

pub(crate) use gate::Gate;
pub(crate) use line::{Client, Line, Replica};
pub(crate) use outbox::Outbox;
pub(crate) use snapshot::{Clients, FillFrom, LeftOut, Location, Snapshot, Source, Version};
pub(crate) use watch::Watch;

/// The audience of the tokens that nodes call the control plane with.
pub(crate) const AUDIENCE: &str = "entrepot.node.v1";

/// The snapshot that this node runs. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Control {
    current: Arc<ArcSwapOption<Snapshot>>,
    version: notice::Sender<Option<Version>>,
}

impl Control {
    /// What to serve by.
    pub(crate) fn snapshot(&self) -> Result<Arc<Snapshot>, PullError> {
        self.current().ok_or(PullError::NoSnapshot)
    }

    /// The snapshot that runs, if there is one yet.
    pub(crate) fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.load_full()
    }

    /// The version that runs.
    pub(crate) fn version(&self) -> Option<Version> {
        self.current.load().as_ref().map(|snapshot| snapshot.version)
    }

    /// Tells when another version runs.
    pub(crate) fn versions(&self) -> notice::Receiver<Option<Version>> {
        self.version.subscribe()
    }

    fn run(&self, snapshot: Snapshot) {
        let version = snapshot.version;
        self.current.store(Some(Arc::new(snapshot)));
        self.version.send_replace(Some(version));
    }
}

/// Puts a fresh node token on every call.
#[derive(Clone)]
pub(crate) struct NodeToken {
    pub(crate) tokens: Tokens,
    pub(crate) node_id: Arc<str>,
    pub(crate) clock: Clock,
}

impl Interceptor for NodeToken {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        let token = self.tokens.issue_node(&self.node_id, AUDIENCE, self.clock.now());
        let value: Result<MetadataValue<Ascii>, _> = format!("Bearer {}", token.expose()).parse();
        let value = value.map_err(|_| Status::internal("a node token is plain text"))?;
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}
