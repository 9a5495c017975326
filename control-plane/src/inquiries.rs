//! Questions to nodes. Nodes open lines for them, to each control plane that they know the address of; nobody has to reach
//! a node.
//!
//! A node that has no line to this control plane, as when a load balancer has led it to another one, is asked through any
//! node that has one. So one line is enough to ask all nodes, and control planes need not know each other.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_proto::node::v1 as pb;
use entrepot_proto::node::v1::take_questions_request::Reply;
use entrepot_proto::node::v1::take_questions_response::Kind;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tonic::{Status, Streaming};

/// How many questions wait for a line, and how many are open on it.
const QUEUE: usize = 32;
/// How long a reply may take; a node that asks another one takes 3 s at most.
const PATIENCE: Duration = Duration::from_secs(4);
/// How many nodes are tried to ask another one through.
const RELAYS: usize = 2;
/// How many callers may watch fills.
const WATCHERS: usize = 32;

/// What goes out to a node.
pub(crate) type Outgoing = mpsc::Sender<Result<pb::TakeQuestionsResponse, Status>>;

/// The lines to nodes. Clones share them.
#[derive(Clone)]
pub(crate) struct Inquiries {
    state: Arc<Mutex<State>>,
    /// Bounds those who watch.
    pub(crate) watchers: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    next: u64,
    lines: BTreeMap<u64, Line>,
}

impl State {
    fn some_lines(&mut self) -> Vec<Line> {
        self.next += 1;
        let lines = self.lines.values().cycle();
        let first = usize::try_from(self.next).unwrap_or(0) % self.lines.len().max(1);
        lines.skip(first).take(RELAYS.min(self.lines.len())).cloned().collect()
    }
}

#[derive(Clone)]
struct Line {
    node: ResourceId,
    questions: mpsc::Sender<Question>,
}

/// A question on its way to a line.
struct Question {
    about: ResourceId,
    kind: Kind,
    reply: oneshot::Sender<Reply>,
}

/// A node could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Silence(pub(crate) String);

impl Default for Inquiries {
    fn default() -> Self {
        Self { state: Arc::default(), watchers: Arc::new(Semaphore::new(WATCHERS)) }
    }
}

impl Inquiries {
    /// Asks a node.
    pub(crate) async fn ask(&self, node: &ResourceId, kind: Kind) -> Result<Reply, Silence> {
        let mut silence = Silence("no node has a line to this control plane, so that none could ask it".to_owned());
        for line in self.lines_to(node) {
            let (reply, replied) = oneshot::channel();
            let question = Question { about: node.clone(), kind: kind.clone(), reply };
            let is_sent = line.questions.try_send(question).is_ok();
            match timeout(PATIENCE, replied).await {
                Ok(Ok(Reply::Failed(failed))) if failed.failure() != pb::QuestionFailure::Forgotten => {
                    silence = Silence(failed.reason.chars().take(500).collect());
                }
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(_)) if is_sent => silence = Silence(format!("the line to `{}` broke", line.node)),
                Ok(Err(_)) => silence = Silence(format!("the line to `{}` is busy", line.node)),
                Err(_) => silence = Silence(format!("`{}` took too long", line.node)),
            }
        }
        Err(silence)
    }

    /// Has a node, or else another one, tell all nodes what to forget; `None` if none has said that it did.
    pub(crate) async fn tell(&self, forget: pb::ForgetRecords, longest: Duration) -> Option<pb::ToldNodes> {
        // To both at once, since one may be paused.
        let mut asked: FuturesUnordered<_> = self
            .some_lines()
            .into_iter()
            .map(|line| {
                let (reply, replied) = oneshot::channel();
                let question = Question { about: line.node.clone(), kind: Kind::Forget(forget.clone()), reply };
                // Where there is no room, the reply never comes.
                drop(line.questions.try_send(question));
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

    /// Whether the node has a line here.
    pub(crate) fn reaches(&self, node: &ResourceId) -> bool {
        self.lock().lines.values().any(|line| line.node == *node)
    }

    /// The nodes that have lines here.
    pub(crate) fn nodes(&self) -> Vec<ResourceId> {
        self.lock().lines.values().map(|line| line.node.clone()).collect()
    }

    /// The node's own line, or else some others, in turn.
    fn lines_to(&self, node: &ResourceId) -> Vec<Line> {
        let mut state = self.lock();
        // Of several the latest: the others break when it is noticed that an earlier life has ended.
        if let Some(own) = state.lines.values().rev().find(|line| line.node == *node) {
            return vec![own.clone()];
        }
        state.some_lines()
    }

    /// Some lines, in turn.
    fn some_lines(&self) -> Vec<Line> {
        self.lock().some_lines()
    }

    /// Brings questions to a node and its replies back, until it leaves.
    pub(crate) async fn serve(
        &self,
        node: &ResourceId,
        mut incoming: Streaming<pb::TakeQuestionsRequest>,
        outgoing: &Outgoing,
    ) -> Result<(), Status> {
        let (questions, mut asked) = mpsc::channel(QUEUE);
        let _entered = self.enter(Line { node: node.clone(), questions });
        let (mut open, mut number) = (HashMap::<u64, oneshot::Sender<Reply>>::new(), 0);
        loop {
            tokio::select! {
                Some(question) = asked.recv() => {
                    // Who has given up waiting is forgotten.
                    open.retain(|_, reply| !reply.is_closed());
                    number += 1;
                    let Question { about, kind, reply } = question;
                    let message = pb::TakeQuestionsResponse { question: number, node_id: about.to_string(), kind: Some(kind) };
                    if open.len() < QUEUE && outgoing.try_send(Ok(message)).is_ok() {
                        open.insert(number, reply);
                    }
                }
                message = incoming.message() => {
                    let Some(message) = message? else { return Ok(()) };
                    if let (Some(reply), Some(asker)) = (message.reply, open.remove(&message.question)) {
                        // Who asked may have left.
                        drop(asker.send(reply));
                    }
                }
            }
        }
    }

    fn enter(&self, line: Line) -> Entered {
        let mut state = self.lock();
        state.next += 1;
        let number = state.next;
        state.lines.insert(number, line);
        Entered { inquiries: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line that is there until this is dropped.
struct Entered {
    inquiries: Inquiries,
    number: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.inquiries.lock().lines.remove(&self.number);
    }
}
