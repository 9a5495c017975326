//! The answers that are being made or sent on one connection, and how their client takes them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// The answers that are being made or sent on one connection. Clones share them.
#[derive(Clone)]
pub(crate) struct Answers(Arc<Mutex<State>>);

struct State {
    next: u64,
    /// Each with the moment at which bytes were handed out that have not been taken yet.
    open: BTreeMap<u64, Option<Instant>>,
    idle_since: Instant,
}

/// Counts one answer until it is dropped.
pub(crate) struct Answering {
    answers: Answers,
    number: u64,
}

impl Answers {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { next: 0, open: BTreeMap::new(), idle_since: Instant::now() })))
    }

    /// An answer is being made from now on.
    pub(crate) fn begin(&self) -> Answering {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.open.insert(number, None);
        Answering { answers: self.clone(), number }
    }

    /// Whether there are any.
    pub(crate) fn any(&self) -> bool {
        !self.lock().open.is_empty()
    }

    /// How long there have been none; zero while there are.
    pub(crate) fn idle_for(&self) -> Duration {
        let state = self.lock();
        if state.open.is_empty() { state.idle_since.elapsed() } else { Duration::ZERO }
    }

    /// Whether the client has left bytes of one of them untaken for `limit`.
    pub(crate) fn is_stalled(&self, limit: Duration) -> bool {
        self.lock().open.values().flatten().any(|since| since.elapsed() >= limit)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answering {
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
    /// At most so many bytes are handed out at once: what a client has to take before it counts as alive.
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
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    // There is nothing that the client could take.
                    this.answering.waits_since(None);
                    return Poll::Pending;
                }
            }
        }
        this.answering.waits_since(Some(Instant::now()));
        let slice = |rest: &mut Bytes| Ok(Frame::data(rest.split_to(rest.len().min(this.slice_bytes))));
        Poll::Ready(Some(frame.unwrap_or_else(|| slice(&mut this.rest))))
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
        let answers = Answers::new();
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
        let answers = Answers::new();
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
        let (say, mut body) = counted(&Answers::new());
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
