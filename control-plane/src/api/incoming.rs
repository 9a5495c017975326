//! Connections for gRPC, clear text or TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use entrepot_runtime::listen::{Accepted, Listener, Stream};
use entrepot_runtime::{Tasks, chain};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::debug;

/// How many connections wait to be served.
const QUEUE: usize = 64;

/// A connection as tonic wants it.
#[derive(Debug)]
pub(super) struct Connection(Stream);

/// The connections of `listener`, at most `limit` at once, until the process is stopping.
pub(super) fn connections(listener: Listener, limit: usize, tasks: &Tasks) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(QUEUE);
    let inner = tasks.clone();
    tasks.spawn("accept gRPC", async move {
        let stopping = inner.stopping();
        let begin = |accepted, _| {
            let (ready, stopping) = (ready.clone(), stopping.clone());
            async move {
                stopping.run_until_cancelled(shake_hands(accepted, ready)).await;
            }
        };
        listener.serve("gRPC handshake", limit, &inner, begin).await;
    });
    ReceiverStream::new(connections)
}

async fn shake_hands(accepted: Accepted, ready: mpsc::Sender<io::Result<Connection>>) {
    match accepted.handshake().await {
        Ok(stream) => {
            if let Err(error) = stream.set_nodelay(true) {
                debug!("a gRPC connection waits before it sends: {}", chain(&error));
            }
            // Nobody takes connections any more when the process is stopping.
            drop(ready.send(Ok(Connection(stream))).await);
        }
        Err(error) => debug!("a gRPC connection did not begin: {}", chain(&error)),
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpStream;
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_is_served_counts_until_its_end() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "api.listen", None).unwrap();
        let (addr, tasks) = (listener.local_addr().unwrap(), Tasks::new());
        let mut connections = connections(listener, 1, &tasks);
        let _clients = (TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap());
        let served = connections.next().await.unwrap().unwrap();
        let other = tokio::time::timeout(Duration::from_millis(200), connections.next()).await;
        assert!(other.is_err(), "there is no limit of connections");
        drop(served);
        assert!(connections.next().await.unwrap().is_ok());
        assert!(tasks.drain(Duration::from_secs(10)).await);
    }
}
