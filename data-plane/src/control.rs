//! The connection to the control plane: it brings snapshots, jobs and operators' questions, and takes events away.
//!
//! A node always starts from the snapshot that is published in the store, and keeps checking for newer ones there; the
//! stream from the control plane is only faster. Without a control plane it continues with the last good snapshot, and
//! what it learns waits.

mod channels;
mod gate;
pub(crate) mod outbox;
mod snapshot;
mod suspension;
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

pub(crate) use channels::{Client, ControlChannels, Replica};
pub(crate) use gate::Gate;
pub(crate) use outbox::Outbox;
pub(crate) use snapshot::{Clients, FillFrom, LeftOut, Location, Snapshot, Source, Version};
use suspension::Suspension;
pub(crate) use watch::Watch;

/// The audience of the tokens with which nodes call the control plane.
pub(crate) const AUDIENCE: &str = "entrepot.node.v1";

/// The snapshot that this node runs. Clones share it.
#[derive(Clone)]
pub(crate) struct Control {
    current: Arc<ArcSwapOption<Snapshot>>,
    version: notice::Sender<Option<Version>>,
    pub(crate) suspension: Suspension,
}

impl Control {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { current: Arc::default(), version: notice::Sender::default(), suspension: Suspension::new(clock) }
    }

    /// The current snapshot; an error if there is none yet.
    pub(crate) fn snapshot(&self) -> Result<Arc<Snapshot>, PullError> {
        self.current().ok_or(PullError::NoSnapshot)
    }

    /// The current snapshot, if there is one yet.
    pub(crate) fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.load_full()
    }

    /// The version of the current snapshot.
    pub(crate) fn version(&self) -> Option<Version> {
        self.current.load().as_ref().map(|snapshot| snapshot.version)
    }

    /// Tells when the version changes.
    pub(crate) fn versions(&self) -> notice::Receiver<Option<Version>> {
        self.version.subscribe()
    }

    fn run(&self, snapshot: Snapshot) {
        let version = snapshot.version;
        self.current.store(Some(Arc::new(snapshot)));
        self.version.send_replace(Some(version));
    }
}

/// Adds a fresh node token to every call.
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
