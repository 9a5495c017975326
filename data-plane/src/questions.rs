//! Operators' questions. They come from the control plane on streams that the node has opened, so nobody has to be able
//! to reach the node.
//!
//! The node opens a stream to each of its configured addresses. If a control plane has no stream to a node, as may
//! happen behind a load balancer, it asks through any other node, which uses the listener for nodes.

mod reports;

use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_proto::convert::{duration, timestamp};
use entrepot_proto::node::v1::take_questions_request::Reply;
use entrepot_proto::node::v1::take_questions_response::Kind;
use entrepot_proto::{node::v1 as pb, v1};
use entrepot_runtime::{Backoff, Tasks, chain};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::debug;

use crate::config::limits;
use crate::control::{Client, ControlChannels};
use crate::fill::{FillState, FillView};
use crate::inspect::{AnswerState, AnswerView, Inspector};
use crate::peers::{AskError, Forget, Peers};

/// Answers operators' questions.
#[derive(Clone)]
pub(crate) struct Questions {
    pub(crate) node_id: Arc<str>,
    pub(crate) inspector: Inspector,
    pub(crate) peers: Peers,
}

impl Questions {
    /// Opens a stream of questions to each address of the control plane; they end when the tasks stop.
    pub(crate) fn spawn(&self, channels: &ControlChannels, tasks: &Tasks) {
        for client in channels.clients() {
            let (questions, stopping) = (self.clone(), tasks.stopping());
            tasks.spawn("questions", async move {
                stopping.run_until_cancelled(questions.keep_taking(client)).await;
            });
        }
    }

    async fn keep_taking(&self, client: Client) {
        let mut backoff = Backoff::new(limits::CONTROL_RETRY / 4, limits::QUESTIONS_RETRY);
        loop {
            let opened = Instant::now();
            if let Err(status) = self.take(client.clone()).await {
                debug!("a control plane takes no stream of questions: {status}");
            }
            if opened.elapsed() > limits::QUESTIONS_RETRY {
                backoff.reset();
            }
            backoff.wait().await;
        }
    }

    /// Answers the questions on one stream, until it breaks.
    async fn take(&self, mut client: Client) -> Result<(), Status> {
        let (say, said) = mpsc::channel(limits::QUESTIONS);
        let hello = pb::TakeQuestionsRequest { node_id: self.node_id.to_string(), question: 0, reply: None };
        say.try_send(hello).map_err(|_| Status::internal("a new channel has room"))?;
        let silent = |_| Status::deadline_exceeded("the control plane took too long");
        let opened = timeout(limits::REPORT, client.take_questions(ReceiverStream::new(said))).await;
        let mut asked = opened.map_err(silent)??.into_inner();
        let mut open = FuturesUnordered::new();
        loop {
            tokio::select! {
                question = asked.message(), if open.len() < limits::QUESTIONS => match question? {
                    Some(question) => open.push(self.reply(question)),
                    None => return Ok(()),
                },
                Some(reply) = open.next() => {
                    if timeout(limits::REPORT, say.send(reply)).await.map_err(silent)?.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Forgets records that the control plane has replaced, and tells the other nodes.
    async fn forget(&self, forget: pb::ForgetRecords) -> Reply {
        let pb::ForgetRecords { keys, prefix } = forget;
        let forget = Forget { keys, prefix: Some(prefix).filter(|prefix| !prefix.is_empty()) };
        self.peers.forget_here(&forget);
        let telling = self.peers.tell(&forget);
        if !telling.knows_all() {
            return failure_reply(
                pb::QuestionFailure::Unreachable,
                "this node does not know which other nodes there are".to_owned(),
            );
        }
        let lagging = telling.wait().await;
        Reply::Told(pb::ToldNodes { lagging_count: i32::try_from(lagging).unwrap_or(i32::MAX) })
    }

    async fn reply(&self, asked: pb::TakeQuestionsResponse) -> pb::TakeQuestionsRequest {
        let pb::TakeQuestionsResponse { question, node_id, kind } = asked;
        let is_me = node_id == *self.node_id;
        let reply = match (kind, node_id.parse::<ResourceId>()) {
            (Some(Kind::Forget(forget)), _) => Ok(self.forget(forget).await),
            (Some(Kind::ListFills(_)), _) if is_me => Ok(fills(&node_id, self.inspector.fills())),
            (Some(Kind::Answer(id)), _) if is_me => Ok(answer(&node_id, self.inspector.answer(&id))),
            (Some(Kind::ListUpstreams(_)), _) if is_me => {
                Ok(reports::upstreams(&node_id, self.inspector.upstreams().await))
            }
            (Some(Kind::ListUpstreams(_)), Ok(node)) => {
                self.inspector.upstreams_of(&node).await.map(|views| reports::upstreams(&node_id, views))
            }
            (Some(Kind::ListFills(_)), Ok(node)) => {
                self.inspector.fills_of(&node).await.map(|views| fills(&node_id, views))
            }
            (Some(Kind::Answer(id)), Ok(node)) => {
                self.inspector.answer_of(&node, &id).await.map(|view| answer(&node_id, view))
            }
            (None, _) | (_, Err(_)) => {
                Ok(failure_reply(pb::QuestionFailure::Unspecified, "this node does not know what is asked".to_owned()))
            }
        };
        let reply = reply.unwrap_or_else(|error: AskError| {
            failure_reply(pb::QuestionFailure::Unreachable, chain(&error).to_string())
        });
        pb::TakeQuestionsRequest { node_id: String::new(), question, reply: Some(reply) }
    }
}

fn fills(node_id: &str, views: Vec<FillView>) -> Reply {
    Reply::Fills(pb::RunningFills { fills: views.into_iter().map(|view| fill(node_id, view)).collect() })
}

fn answer(node_id: &str, view: Option<AnswerView>) -> Reply {
    match view {
        Some(view) => Reply::Answer(answer_to_wire(node_id, view)),
        None => failure_reply(pb::QuestionFailure::Forgotten, "the node does not remember this answer".to_owned()),
    }
}

fn failure_reply(failure: pb::QuestionFailure, reason: String) -> Reply {
    Reply::Failed(pb::FailedQuestion { failure: failure.into(), reason })
}

fn fill(node_id: &str, view: FillView) -> v1::Fill {
    let state = match view.state {
        FillState::Looking => v1::FillState::Looking,
        FillState::Claiming => v1::FillState::Claiming,
        FillState::Following => v1::FillState::Following,
        FillState::Transferring => v1::FillState::Transferring,
        FillState::Committing => v1::FillState::Committing,
        FillState::Unknown => v1::FillState::Unspecified,
    };
    v1::Fill {
        name: format!("nodes/{node_id}/fills/{}", view.id),
        node: format!("nodes/{node_id}"),
        rule: format!("rules/{}", view.rule),
        upstream: format!("upstreams/{}", view.upstream),
        digest: view.digest,
        repository: format!("repositories/{}", view.repository),
        state: state.into(),
        size_bytes: view.size_bytes.map(to_i64),
        landed_bytes: to_i64(view.landed_bytes),
        released_bytes: to_i64(view.released_bytes),
        reader_count: i32::try_from(view.readers).unwrap_or(i32::MAX),
        bytes_per_second: to_i64(view.bytes_per_second),
        begin_time: Some(timestamp(view.begin_time)),
        leader: view.leader.map(|leader| format!("nodes/{leader}")).unwrap_or_default(),
        followers: view.followers.iter().map(|follower| format!("nodes/{follower}")).collect(),
    }
}

fn answer_to_wire(node_id: &str, view: AnswerView) -> v1::Answer {
    let state = match view.state {
        AnswerState::Sending => v1::AnswerState::Sending,
        AnswerState::Complete => v1::AnswerState::Complete,
        AnswerState::Cut => v1::AnswerState::Cut,
        AnswerState::Abandoned => v1::AnswerState::Abandoned,
    };
    let below = |collection: &str, id: String| if id.is_empty() { id } else { format!("{collection}/{id}") };
    v1::Answer {
        name: format!("answers/{}", view.request_id),
        node: format!("nodes/{node_id}"),
        begin_time: Some(timestamp(view.begin_time)),
        method: view.method,
        route: view.route,
        repository: below("repositories", view.repository),
        reference: view.reference,
        digest: view.digest,
        principal: below("principals", view.principal),
        client_address: view.client_address,
        http_status: view.status.into(),
        outcome: view.outcome,
        reasons: view.reasons,
        sent_bytes: to_i64(view.sent_bytes),
        state: state.into(),
        duration: Some(duration(Duration::from_millis(view.duration_ms))),
    }
}

fn to_i64(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
