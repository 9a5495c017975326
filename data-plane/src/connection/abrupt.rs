//! Connections whose end would look like the proper end of an answer.
//!
//! HTTP/1.0 has no chunks: a body of unknown length ends with the connection (RFC 9112, 6.3). A client must not take
//! such a body for complete if it was cut. So the connection is set to end with a reset until the last byte is on its
//! way; over TLS, it also ends without `close_notify`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use entrepot_runtime::listen::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::debug;

use super::answers::Answers;

/// A connection that ends with a reset while an answer is sent whose end only the connection's end marks.
pub(super) struct Abrupt {
    stream: Stream,
    answers: Answers,
    resets: bool,
}

impl Abrupt {
    pub(super) fn new(stream: Stream, answers: Answers) -> Self {
        Self { stream, answers, resets: false }
    }

    /// Tells the system how the connection should end if it ended now.
    fn settle(&mut self) {
        let resets = self.answers.is_end_delimited();
        if resets != self.resets {
            self.resets = resets;
            if let Err(error) = self.stream.reset_on_close(resets) {
                debug!("a connection may end with the wrong sign: {error}");
            }
        }
    }
}

impl AsyncRead for Abrupt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Abrupt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.settle();
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.settle();
        if self.resets { Poll::Ready(Ok(())) } else { Pin::new(&mut self.stream).poll_shutdown(cx) }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.settle();
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
