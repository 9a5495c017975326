//! The last answers of this node, in a ring buffer of limited size.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_runtime::chain;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::body::{Body, Cut};
use crate::trail::{self, Note, truncated};

/// How many answers are remembered.
const REMEMBERED: usize = 10_000;
/// How many bytes are kept of a text that a client has sent.
const TEXT_BYTES: usize = 300;

/// The last answers of this node. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Answers(Arc<Mutex<VecDeque<Arc<Remembered>>>>);

/// An answer, which may still be under way.
pub(crate) struct Remembered {
    request_id: String,
    began: Instant,
    /// Rendered when somebody reads the answer.
    notes: Vec<Note>,
    view: Mutex<AnswerView>,
}

/// What is remembered about an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AnswerView {
    pub(crate) request_id: String,
    pub(crate) begin_time: DateTime<Utc>,
    pub(crate) method: String,
    /// The path with placeholders; empty if it is not one of ours.
    pub(crate) route: String,
    pub(crate) repository: String,
    pub(crate) reference: String,
    pub(crate) digest: String,
    /// The principal's id, if known.
    pub(crate) principal: String,
    pub(crate) client_address: String,
    pub(crate) status: u16,
    /// How a pull ended; empty for other requests and for failures.
    pub(crate) outcome: String,
    pub(crate) reasons: Vec<String>,
    pub(crate) sent_bytes: u64,
    pub(crate) state: AnswerState,
    pub(crate) duration_ms: u64,
}

/// The state of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AnswerState {
    /// Its body is being sent.
    Sending,
    /// The connection has all of it.
    Complete,
    /// We ended it early.
    Cut,
    /// The client has disconnected.
    Abandoned,
}

impl Answers {
    /// Remembers an answer whose head is ready.
    pub(crate) fn remember(&self, mut view: AnswerView, notes: Vec<Note>, began: Instant) -> Arc<Remembered> {
        for text in [&mut view.repository, &mut view.reference, &mut view.digest, &mut view.method] {
            *text = truncated(std::mem::take(text), TEXT_BYTES);
        }
        let remembered =
            Arc::new(Remembered { request_id: view.request_id.clone(), began, notes, view: Mutex::new(view) });
        let mut ring = self.lock();
        if ring.len() >= REMEMBERED {
            ring.pop_front();
        }
        ring.push_back(remembered.clone());
        remembered
    }

    pub(super) fn get(&self, request_id: &str) -> Option<AnswerView> {
        // Questions are mostly about recent answers.
        let found = self.lock().iter().rev().find(|remembered| remembered.request_id == request_id).cloned()?;
        let mut view = found.lock().clone();
        view.reasons.splice(0..0, trail::sentences(&found.notes));
        if view.state == AnswerState::Sending {
            view.duration_ms = found.elapsed_ms();
        }
        Some(view)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Remembered>>> {
        self.0.lock()
    }
}

impl Remembered {
    /// The body, with its progress recorded. `length` is the size that the answer's head promises.
    pub(crate) fn track_body(self: Arc<Self>, body: Body, length: Option<u64>) -> Body {
        let length = length.or_else(|| body.size_hint().exact());
        Sending { body, answer: self, length, sent: 0, end: None }.boxed_unsync()
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, AnswerView> {
        self.view.lock()
    }
}

struct Sending {
    body: Body,
    answer: Arc<Remembered>,
    length: Option<u64>,
    sent: u64,
    end: Option<AnswerState>,
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                this.answer.lock().sent_bytes = this.sent;
            }
            Poll::Ready(Some(Err(cut))) => {
                this.end = Some(AnswerState::Cut);
                this.answer.lock().reasons.push(truncated(chain(cut).to_string(), TEXT_BYTES));
            }
            Poll::Ready(None) => this.end = this.end.or(Some(AnswerState::Complete)),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // A connection that has sent everything promised does not ask whether there is more.
        let is_whole = self.body.is_end_stream() || self.length.is_some_and(|length| self.sent >= length);
        let unfinished = if is_whole { AnswerState::Complete } else { AnswerState::Abandoned };
        let duration_ms = self.answer.elapsed_ms();
        let mut view = self.answer.lock();
        (view.state, view.duration_ms) = (self.end.unwrap_or(unfinished), duration_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body;

    fn view(request_id: &str) -> AnswerView {
        AnswerView {
            request_id: request_id.to_owned(),
            begin_time: DateTime::UNIX_EPOCH,
            method: "GET".to_owned(),
            route: String::new(),
            repository: "x".repeat(100_000),
            reference: String::new(),
            digest: String::new(),
            principal: String::new(),
            client_address: String::new(),
            status: 200,
            outcome: String::new(),
            reasons: Vec::new(),
            sent_bytes: 0,
            state: AnswerState::Sending,
            duration_ms: 0,
        }
    }

    #[test]
    fn the_last_ten_thousand_answers_are_remembered_and_no_more() {
        let answers = Answers::default();
        for number in 0..=REMEMBERED {
            answers.remember(view(&number.to_string()), Vec::new(), Instant::now());
        }
        assert_eq!(answers.lock().len(), REMEMBERED);
        assert!(answers.get("0").is_none());
        assert!(answers.get("1").is_some_and(|view| view.repository.len() <= TEXT_BYTES));
        assert!(answers.get(&REMEMBERED.to_string()).is_some());
    }

    #[tokio::test]
    async fn how_an_answer_ends_is_remembered() {
        let answers = Answers::default();
        let bytes = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));
        let stream = |chunks: Vec<Result<Bytes, Cut>>| body::stream(futures_util::stream::iter(chunks));
        for (name, body, length, takes, expected) in [
            ("whole", stream(vec![bytes("ab"), bytes("c")]), None, 9, (3, AnswerState::Complete)),
            ("as promised", stream(vec![bytes("ab"), bytes("c")]), Some(3), 2, (3, AnswerState::Complete)),
            ("cut", stream(vec![bytes("ab"), Err(Cut::because("why"))]), Some(3), 9, (2, AnswerState::Cut)),
            ("left", stream(vec![bytes("ab"), bytes("c")]), Some(3), 1, (2, AnswerState::Abandoned)),
            ("nothing", body::empty(), Some(7), 0, (0, AnswerState::Complete)),
        ] {
            let mut body = answers.remember(view(name), vec![Note::BlobHere], Instant::now()).track_body(body, length);
            assert_eq!(answers.get(name).map(|view| view.state), Some(AnswerState::Sending), "{name}");
            for _ in 0..takes {
                let _ = body.frame().await;
            }
            drop(body);
            let seen = answers.get(name).unwrap();
            assert_eq!((seen.sent_bytes, seen.state), expected, "{name}");
            assert_eq!(seen.reasons[0], Note::BlobHere.to_string(), "notes are sentences once they are read");
            assert_eq!(seen.reasons.iter().any(|reason| reason.contains("why")), name == "cut");
        }
    }
}
