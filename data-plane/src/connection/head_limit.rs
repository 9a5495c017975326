//! A limit on how long a request's head may take once it has begun.
//!
//! hyper has one timer for heads, which also runs while a kept connection is idle. Idle connections may stay for a
//! while, but a head must not trickle in that slowly. So hyper's timer gets the idle limit, and this one works below
//! it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::answers::Answers;

/// A connection with a time limit for each head.
pub(crate) struct HeadLimit<S> {
    stream: S,
    limit: Duration,
    answers: Answers,
    /// Started by the first byte of a head.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> HeadLimit<S> {
    pub(crate) fn new(stream: S, limit: Duration, answers: Answers) -> Self {
        Self { stream, limit, answers, timer: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadLimit<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if this.answers.any() {
            this.timer = None;
            return read;
        }
        match read {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                this.timer.get_or_insert_with(|| Box::pin(sleep(this.limit)));
                read
            }
            Poll::Pending => match &mut this.timer {
                Some(timer) => {
                    ready!(timer.as_mut().poll(cx));
                    Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "a request's head took too long")))
                }
                None => Poll::Pending,
            },
            Poll::Ready(_) => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadLimit<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use entrepot_runtime::listen::Visit;

    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_in_is_cut_and_an_idle_connection_is_not() {
        let (mut client, server) = duplex(64);
        let mut server = HeadLimit::new(server, LIMIT, Answers::new(Visit::alone()));
        let mut byte = [0];
        let idle = tokio::time::timeout(LIMIT * 5, server.read(&mut byte)).await;
        assert!(idle.is_err(), "an idle connection waits");
        client.write_all(b"G").await.unwrap();
        assert_eq!(server.read(&mut byte).await.unwrap(), 1);
        tokio::time::advance(LIMIT / 2).await;
        client.write_all(b"E").await.unwrap();
        assert_eq!(server.read(&mut byte).await.unwrap(), 1);
        let error = server.read(&mut byte).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn while_an_answer_is_sent_nothing_is_late() {
        let (mut client, server) = duplex(64);
        let answers = Answers::new(Visit::alone());
        let mut server = HeadLimit::new(server, LIMIT, answers.clone());
        let answering = answers.begin();
        client.write_all(b"G").await.unwrap();
        let mut byte = [0];
        assert_eq!(server.read(&mut byte).await.unwrap(), 1);
        assert!(tokio::time::timeout(LIMIT * 5, server.read(&mut byte)).await.is_err());
        drop(answering);
    }
}
