//! A connection that may end by a reset instead of a proper end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Says how a connection ends once it is closed.
#[derive(Clone, Default)]
pub(super) struct HardEnd(Arc<AtomicBool>);

impl HardEnd {
    /// By a reset, or properly.
    pub(super) fn set(&self, resets: bool) {
        self.0.store(resets, Ordering::SeqCst);
    }
}

/// A connection.
pub(super) struct Wire {
    stream: TcpStream,
    hard: HardEnd,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> (Self, HardEnd) {
        let hard = HardEnd::default();
        (Self { stream, hard: hard.clone() }, hard)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.hard.0.load(Ordering::SeqCst) {
            // A client that has hung up already needs no reset.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A proper end that is sent first would hide the reset.
        if self.hard.0.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
