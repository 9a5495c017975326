//! The line to the control plane: the snapshot that comes in, the events that go out.
//!
//! A node starts from the snapshot that is published in the store, always, and follows the stream from there. Without
//! a control plane it serves on with the last good one, and what it learns waits.

pub(crate) mod outbox;
mod snapshot;
mod watch;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use entrepot_runtime::Clock;
use entrepot_trust::Tokens;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Channel, Endpoint};

use crate::config::{Config, limits};
use crate::error::PullError;

pub(crate) use outbox::Outbox;
pub(crate) use snapshot::{FillFrom, Place, Snapshot};
pub(crate) use watch::Watch;

/// The audience of the tokens that nodes call the control plane with.
pub(crate) const AUDIENCE: &str = "entrepot.node.v1";

/// The snapshot that this node runs.
#[derive(Clone, Default)]
pub(crate) struct Control {
    current: Arc<ArcSwapOption<Snapshot>>,
}

impl Control {
    /// What to serve by.
    pub(crate) fn snapshot(&self) -> Result<Arc<Snapshot>, PullError> {
        self.current.load_full().ok_or(PullError::NoSnapshot)
    }
}

/// The channel to the control plane; connects when it is first used and again whenever it broke.
pub(crate) fn channel(config: &Config) -> Channel {
    Endpoint::from(config.control_api.clone())
        .connect_timeout(limits::CONTROL_CONNECT)
        .http2_keep_alive_interval(limits::CONTROL_KEEP_ALIVE)
        .keep_alive_timeout(limits::CONTROL_KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_lazy()
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
