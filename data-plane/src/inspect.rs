//! What operators may ask a node: which fills it runs, and why it answered as it did. All of it is in memory only.
//!
//! Questions come over the streams to the control plane (`questions.rs`). They also come from other nodes, on the
//! listener for nodes, on behalf of a control plane to which this node has no stream.

mod answers;
mod upstreams;

use entrepot_domain::ResourceId;
use entrepot_runtime::Clock;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::config::limits;
use crate::control::Control;
use crate::fill::{FillView, Fills};
use crate::peers::paths::{ANSWERS, FILLS, UPSTREAMS};
use crate::peers::{AskError, Peers, ProbeError};

pub(crate) use answers::{AnswerState, AnswerView, Answers, Remembered};
pub(crate) use upstreams::{BudgetView, DisagreementView, EndpointState, EndpointView, UpstreamView, observe};

/// How many fills are reported at once; the oldest ones.
const FILLS_TOLD: usize = 1000;

/// Answers questions about this node. Clones give the same answers.
#[derive(Clone)]
pub(crate) struct Inspector {
    pub(crate) fills: Fills,
    pub(crate) answers: Answers,
    control: Control,
    peers: Peers,
    clock: Clock,
}

/// The fills of a node, in the form that nodes exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FillsAnswer {
    pub(crate) fills: Vec<FillView>,
}

/// What a node has observed about upstreams, in the form that nodes exchange.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct UpstreamsAnswer {
    pub(crate) upstreams: Vec<UpstreamView>,
}

impl Inspector {
    pub(crate) fn new(fills: Fills, control: Control, peers: Peers, clock: Clock) -> Self {
        Self { fills, answers: Answers::default(), control, peers, clock }
    }

    /// What this node has observed about upstreams.
    pub(crate) async fn upstreams(&self) -> Vec<UpstreamView> {
        upstreams::views(&self.control, self.clock.now()).await
    }

    /// The running fills.
    pub(crate) fn fills(&self) -> Vec<FillView> {
        let mut views = self.fills.views();
        views.sort_by(|a, b| a.begin_time.cmp(&b.begin_time).then_with(|| a.id.cmp(&b.id)));
        views.truncate(FILLS_TOLD);
        views
    }

    /// The answer with this request id, if it is remembered.
    pub(crate) fn answer(&self, request_id: &str) -> Option<AnswerView> {
        self.answers.get(request_id)
    }

    /// The running fills of another node.
    pub(crate) async fn fills_of(&self, id: &ResourceId) -> Result<Vec<FillView>, AskError> {
        let answer: FillsAnswer = self.peers.get(id, FILLS, limits::PEER_FILLS_BYTES).await?;
        Ok(answer.fills)
    }

    /// What another node has observed about upstreams.
    pub(crate) async fn upstreams_of(&self, id: &ResourceId) -> Result<Vec<UpstreamView>, AskError> {
        let answer: UpstreamsAnswer = self.peers.get(id, UPSTREAMS, limits::PEER_FILLS_BYTES).await?;
        Ok(answer.upstreams)
    }

    /// The answer with this request id, if another node remembers it.
    pub(crate) async fn answer_of(&self, id: &ResourceId, request_id: &str) -> Result<Option<AnswerView>, AskError> {
        match self.peers.get(id, &format!("{ANSWERS}{request_id}"), limits::PEER_ANSWER_BYTES).await {
            Err(AskError::Silent { source: ProbeError::Status(StatusCode::NOT_FOUND), .. }) => Ok(None),
            answer => answer.map(Some),
        }
    }
}
