//! The answers that are being made or sent on one connection, and how fast their client reads them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use entrepot_runtime::listen::{Asking, Visit};
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// The answers that are being made or sent on one connection. Clones share them.
#[derive(Clone)]
pub(crate) struct Answers(Arc<Mutex<State>>);

struct State {
    visit: Visit,
    next: u64,
    /// For each, since when bytes that were handed out have not been taken.
    open: BTreeMap<u64, Option<Instant>>,
    idle_since: Instant,
    /// The answer whose end only the connection's end marks, until all of it was handed out.
    end_delimited: Option<u64>,
}

/// Counts as one answer until it is dropped.
pub(crate) struct Answering {
    answers: Answers,
    number: u64,
    _asking: Asking,
}

impl Answers {
    pub(crate) fn new(visit: Visit) -> Self {
        Self(Arc::new(Mutex::new(State {
            visit,
            next: 0,
            open: BTreeMap::new(),
            idle_since: Instant::now(),
            end_delimited: None,
        })))
    }

    /// Begins to make an answer.
    pub(crate) fn begin(&self) -> Answering {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.open.insert(number, None);
        let _asking = state.visit.ask();
        Answering { answers: self.clone(), number, _asking }
    }

    /// Whether an answer is being sent whose end only the connection's end marks.
    pub(crate) fn is_end_delimited(&self) -> bool {
        self.lock().end_delimited.is_some()
    }

    /// Whether there are any answers.
    pub(crate) fn any(&self) -> bool {
        !self.lock().open.is_empty()
    }

    /// How long there has been no answer; zero while there is one.
    pub(crate) fn idle_for(&self) -> Duration {
        let state = self.lock();
        if state.open.is_empty() { state.idle_since.elapsed() } else { Duration::ZERO }
    }

    /// Whether the client has not taken bytes of some answer for `limit`.
    pub(crate) fn is_stalled(&self, limit: Duration) -> bool {
        self.lock().open.values().flatten().any(|since| since.elapsed() >= limit)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl Answering {
    /// Notes that only the connection's end will mark the end of this answer.
    pub(crate) fn end_by_connection(&self) {
        self.answers.lock().end_delimited = Some(self.number);
    }

    /// Notes that all of it was handed out.
    fn has_handed_out_all(&self) {
        let mut state = self.answers.lock();
        if state.end_delimited == Some(self.number) {
            state.end_delimited = None;
        }
    }

    fn waits_since(&self, since: Option<Instant>) {
        if let Some(waits) = self.answers.lock().open.get_mut(&self.number) {
            *waits = since;
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.answers.lock();
        state.open.remove(&self.number);
        state.idle_since = Instant::now();
    }
}

/// A body that counts as an answer until it is sent or given up.
pub(crate) struct Counted<B> {
    body: B,
    answering: Answering,
    /// How many bytes are handed out at once; the client counts as alive once it has taken them.
    slice_bytes: usize,
    rest: Bytes,
}

impl<B> Counted<B> {
    pub(crate) fn new(body: B, answering: Answering, slice_bytes: usize) -> Self {
        Self { body, answering, slice_bytes, rest: Bytes::new() }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let mut frame = None;
        if this.rest.is_empty() {
            match Pin::new(&mut this.body).poll_frame(cx).map_ok(Frame::into_data) {
                Poll::Ready(Some(Ok(Ok(data)))) => this.rest = data,
                Poll::Ready(Some(Ok(Err(other)))) => frame = Some(Ok(other)),
                Poll::Ready(Some(Err(error))) => frame = Some(Err(error)),
                Poll::Ready(None) => {
                    this.answering.has_handed_out_all();
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    // There is nothing that the client could take.
                    this.answering.waits_since(None);
                    return Poll::Pending;
                }
            }
        }
        this.answering.waits_since(Some(Instant::now()));
        let slice = |rest: &mut Bytes| Ok(Frame::data(rest.split_to(rest.len().min(this.slice_bytes))));
        let frame = frame.unwrap_or_else(|| slice(&mut this.rest));
        if frame.is_ok() && this.is_end_stream() {
            this.answering.has_handed_out_all();
        }
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, mut hint) = (self.rest.len() as u64, self.body.size_hint());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    const LIMIT: Duration = Duration::from_secs(120);

    fn counted(
        answers: &Answers,
    ) -> (mpsc::Sender<Bytes>, impl Body<Data = Bytes, Error = std::io::Error> + Unpin + use<>) {
        let (say, said) = mpsc::channel(1);
        let frames = ReceiverStream::new(said).map(|bytes| Ok::<_, std::io::Error>(Frame::data(bytes)));
        (say, Counted::new(StreamBody::new(frames), answers.begin(), 2))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_noticed_and_a_slow_upstream_is_not() {
        let answers = Answers::new(Visit::alone());
        let (say, mut body) = counted(&answers);
        assert!(futures_util::poll!(body.frame()).is_pending());
        tokio::time::advance(LIMIT * 2).await;
        assert!(!answers.is_stalled(LIMIT), "there is nothing to take");

        say.send(Bytes::from_static(b"x")).await.unwrap();
        body.frame().await.unwrap().unwrap();
        tokio::time::advance(LIMIT / 2).await;
        assert!(!answers.is_stalled(LIMIT));
        tokio::time::advance(LIMIT / 2).await;
        assert!(answers.is_stalled(LIMIT));
        assert!(futures_util::poll!(body.frame()).is_pending());
        assert!(!answers.is_stalled(LIMIT), "it took the bytes and asks for more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_its_last_answer_on() {
        let answers = Answers::new(Visit::alone());
        tokio::time::advance(LIMIT).await;
        assert_eq!(answers.idle_for(), LIMIT);
        let (_say, body) = counted(&answers);
        tokio::time::advance(LIMIT).await;
        assert!(answers.any() && answers.idle_for().is_zero());
        drop(body);
        assert!(!answers.any() && answers.idle_for().is_zero());
    }

    #[tokio::test]
    async fn slices_are_all_of_the_bytes() {
        let (say, mut body) = counted(&Answers::new(Visit::alone()));
        say.send(Bytes::from_static(b"abcde")).await.unwrap();
        drop(say);
        let mut slices = Vec::new();
        while let Some(frame) = body.frame().await {
            assert!(!body.is_end_stream());
            slices.push(frame.unwrap().into_data().unwrap());
        }
        assert_eq!(slices, ["ab", "cd", "e"]);
    }
}
