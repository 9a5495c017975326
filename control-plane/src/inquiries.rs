//! Questions to nodes. Each node opens a stream for them to each control plane whose address it knows, so control
//! planes need not be able to reach nodes.
//!
//! A load balancer may lead a node's stream to another control plane. Such a node is asked through any node with a
//! stream here. So one stream is enough to ask all nodes, and control planes need not know each other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_proto::node::v1 as pb;
use entrepot_proto::node::v1::take_questions_request::Reply;
use entrepot_proto::node::v1::take_questions_response::Kind;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

/// How many questions may wait for a stream, and how many may be open on it.
const QUEUE: usize = 32;
/// How long a reply may take. A node that asks another one takes at most 3 s.
const PATIENCE: Duration = Duration::from_secs(4);
/// Through how many nodes another node is tried.
const RELAYS: usize = 2;
/// How many callers may watch fills.
const WATCHERS: usize = 32;

/// The streams to nodes. Clones share them.
#[derive(Clone)]
pub(crate) struct Inquiries {
    state: Arc<Mutex<State>>,
    /// Limits the number of watchers.
    pub(crate) watchers: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    next: u64,
    streams: BTreeMap<u64, QuestionStream>,
}

impl State {
    fn some_streams(&mut self) -> Vec<QuestionStream> {
        self.next += 1;
        let streams = self.streams.values().cycle();
        let first = usize::try_from(self.next).unwrap_or(0) % self.streams.len().max(1);
        streams.skip(first).take(RELAYS.min(self.streams.len())).cloned().collect()
    }
}

#[derive(Clone)]
struct QuestionStream {
    node: ResourceId,
    questions: mpsc::Sender<Question>,
}

/// A question for a stream.
struct Question {
    about: ResourceId,
    kind: Kind,
    reply: oneshot::Sender<Reply>,
}

/// A node could not be reached, for this reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Silence(pub(crate) String);

impl Default for Inquiries {
    fn default() -> Self {
        Self { state: Arc::default(), watchers: Arc::new(Semaphore::new(WATCHERS)) }
    }
}

impl Inquiries {
    pub(crate) async fn ask(&self, node: &ResourceId, kind: Kind) -> Result<Reply, Silence> {
        let mut silence = Silence("no node is connected to this control plane, so that none could ask it".to_owned());
        for stream in self.streams_to(node) {
            let (reply, replied) = oneshot::channel();
            let question = Question { about: node.clone(), kind: kind.clone(), reply };
            let is_sent = stream.questions.try_send(question).is_ok();
            match timeout(PATIENCE, replied).await {
                Ok(Ok(Reply::Failed(failed))) if failed.failure() != pb::QuestionFailure::Forgotten => {
                    silence = Silence(failed.reason.chars().take(500).collect());
                }
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(_)) if is_sent => silence = Silence(format!("the connection to `{}` broke", stream.node)),
                Ok(Err(_)) => silence = Silence(format!("the connection to `{}` is busy", stream.node)),
                Err(_) => silence = Silence(format!("`{}` took too long", stream.node)),
            }
        }
        Err(silence)
    }

    /// Makes a node, or if that fails another one, tell all nodes what to forget; `None` if none has confirmed it.
    pub(crate) async fn tell(&self, forget: pb::ForgetRecords, longest: Duration) -> Option<pb::ToldNodes> {
        // Both are asked at once, since one of them may be paused.
        let mut asked: FuturesUnordered<_> = self
            .some_streams()
            .into_iter()
            .map(|stream| {
                let (reply, replied) = oneshot::channel();
                let question = Question { about: stream.node.clone(), kind: Kind::Forget(forget.clone()), reply };
                // If the queue is full, the reply never comes.
                drop(stream.questions.try_send(question));
                timeout(longest + PATIENCE, replied)
            })
            .collect();
        while let Some(replied) = asked.next().await {
            if let Ok(Ok(Reply::Told(told))) = replied {
                return Some(told);
            }
        }
        None
    }

    /// Whether the node has a stream here.
    pub(crate) fn reaches(&self, node: &ResourceId) -> bool {
        self.lock().streams.values().any(|stream| stream.node == *node)
    }

    /// The nodes with streams here.
    pub(crate) fn nodes(&self) -> Vec<ResourceId> {
        self.lock().streams.values().map(|stream| stream.node.clone()).collect()
    }

    /// The node's own stream, or else some of other nodes, in turn.
    fn streams_to(&self, node: &ResourceId) -> Vec<QuestionStream> {
        let mut state = self.lock();
        // If there are several, the latest one: the others will break, since they belong to an earlier run of the node.
        if let Some(own) = state.streams.values().rev().find(|stream| stream.node == *node) {
            return vec![own.clone()];
        }
        state.some_streams()
    }

    /// Some streams, in turn.
    fn some_streams(&self) -> Vec<QuestionStream> {
        self.lock().some_streams()
    }

    /// Sends questions to a node and receives its replies, until its stream ends or breaks.
    pub(crate) async fn serve<E>(
        &self,
        node: &ResourceId,
        mut incoming: impl Stream<Item = Result<pb::TakeQuestionsRequest, E>> + Unpin,
        outgoing: &mpsc::Sender<Result<pb::TakeQuestionsResponse, E>>,
    ) {
        let (questions, mut asked) = mpsc::channel(QUEUE);
        let _entered = self.enter(QuestionStream { node: node.clone(), questions });
        let (mut open, mut number) = (HashMap::<u64, oneshot::Sender<Reply>>::new(), 0);
        loop {
            tokio::select! {
                Some(question) = asked.recv() => {
                    // Questions whose askers have given up are forgotten.
                    open.retain(|_, reply| !reply.is_closed());
                    number += 1;
                    let Question { about, kind, reply } = question;
                    let message = pb::TakeQuestionsResponse { question: number, node_id: about.to_string(), kind: Some(kind) };
                    if open.len() < QUEUE && outgoing.try_send(Ok(message)).is_ok() {
                        open.insert(number, reply);
                    }
                }
                message = incoming.next() => {
                    let Some(Ok(message)) = message else { return };
                    if let (Some(reply), Some(asker)) = (message.reply, open.remove(&message.question)) {
                        // The asker may have left.
                        drop(asker.send(reply));
                    }
                }
            }
        }
    }

    fn enter(&self, stream: QuestionStream) -> Entered {
        let mut state = self.lock();
        state.next += 1;
        let number = state.next;
        state.streams.insert(number, stream);
        Entered { inquiries: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// A stream that is registered until this is dropped.
struct Entered {
    inquiries: Inquiries,
    number: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.inquiries.lock().streams.remove(&self.number);
    }
}
