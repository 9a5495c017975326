//! What operators may ask a node: which fills run on it, and why it answered as it did. It lives in memory only.
//!
//! Questions come over the lines to the control plane (`control/questions.rs`), and from other nodes on the listener for
//! them, which ask on behalf of a control plane that this node has no line to.

mod answers;
pub(crate) mod trail;
mod upstreams;

use entrepot_runtime::Clock;
use serde::{Deserialize, Serialize};

use crate::control::Control;
use crate::fill::{FillView, Fills};

pub(crate) use answers::{AnswerState, AnswerView, Answers, Remembered};
pub(crate) use trail::Trail;
pub(crate) use upstreams::{BudgetView, DisagreementView, EndpointState, EndpointView, UpstreamView, observe};

/// How many fills are told of at once; the oldest ones.
const FILLS_TOLD: usize = 1000;

/// Tells what goes on in this node. Clones tell the same.
#[derive(Clone)]
pub(crate) struct Inspector {
    pub(crate) fills: Fills,
    pub(crate) answers: Answers,
    pub(crate) control: Control,
    pub(crate) clock: Clock,
}

/// The fills of a node, as nodes tell each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FillsAnswer {
    pub(crate) fills: Vec<FillView>,
}

/// What a node has seen of upstreams, as nodes tell each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct UpstreamsAnswer {
    pub(crate) upstreams: Vec<UpstreamView>,
}

impl Inspector {
    pub(crate) fn new(fills: Fills, control: Control, clock: Clock) -> Self {
        Self { fills, answers: Answers::default(), control, clock }
    }

    /// What this node has seen of upstreams.
    pub(crate) async fn upstreams(&self) -> Vec<UpstreamView> {
        upstreams::views(&self.control, self.clock.now()).await
    }

    /// The fills that run.
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
}
