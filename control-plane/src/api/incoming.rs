//! Connections for gRPC, plain or TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use entrepot_runtime::listen::{Accepted, Bounds, Listener, Stream, Visit};
use entrepot_runtime::{Tasks, chain};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::debug;

/// How many connections may wait to be served.
const QUEUE: usize = 64;

/// A connection in the form that tonic needs.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    address: IpAddr,
}

/// What a call knows about its connection, from the call's extensions.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// Is told when a call begins.
    pub(super) visit: Visit,
    /// Where it comes from.
    pub(super) address: IpAddr,
}

/// The connections of `listener`, within `bounds`, until the process is stopping.
pub(super) fn connections(listener: Listener, bounds: Bounds, tasks: &Tasks) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(QUEUE);
    let inner = tasks.clone();
    tasks.spawn("accept gRPC", async move {
        let stopping = inner.stopping();
        let begin = |accepted, peer: SocketAddr| {
            let (ready, stopping) = (ready.clone(), stopping.clone());
            async move {
                stopping.run_until_cancelled(shake_hands(accepted, peer, ready)).await;
            }
        };
        listener.serve("gRPC handshake", bounds, &inner, begin).await;
    });
    ReceiverStream::new(connections)
}

async fn shake_hands(accepted: Accepted, peer: SocketAddr, ready: mpsc::Sender<io::Result<Connection>>) {
    match accepted.handshake().await {
        Ok(stream) => {
            if let Err(error) = stream.set_nodelay(true) {
                debug!("a gRPC connection waits before it sends: {}", chain(&error));
            }
            // Nobody takes connections any more when the process is stopping.
            drop(ready.send(Ok(Connection { stream, address: peer.ip() })).await);
        }
        Err(error) => debug!("a gRPC connection did not begin: {}", chain(&error)),
    }
}

impl Connected for Connection {
    /// Through this, calls report that they have begun, and learn where they come from.
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        Client { visit: self.stream.visit(), address: self.address }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
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

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpStream;
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_connection_without_a_call_is_closed() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "api.listen", None).unwrap();
        let (addr, tasks) = (listener.local_addr().unwrap(), Tasks::new());
        let bounds = Bounds { first_request: Some(Duration::from_millis(200)), ..Bounds::new(4) };
        let mut connections = connections(listener, bounds, &tasks);
        let _clients = (TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap());
        let mut silent = connections.next().await.unwrap().unwrap();
        let mut calling = connections.next().await.unwrap().unwrap();
        let _call = calling.connect_info().visit.ask();
        let end = tokio::time::timeout(Duration::from_secs(10), silent.read(&mut [0])).await;
        assert_eq!(end.expect("it is closed").unwrap(), 0);
        let other = tokio::time::timeout(Duration::from_millis(200), calling.read(&mut [0])).await;
        assert!(other.is_err(), "one that has called stays");
        drop((silent, calling));
        assert!(tasks.drain(Duration::from_secs(10)).await);
    }

    #[tokio::test]
    async fn a_connection_that_is_served_counts_until_its_end() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "api.listen", None).unwrap();
        let (addr, tasks) = (listener.local_addr().unwrap(), Tasks::new());
        let mut connections = connections(listener, Bounds::new(1), &tasks);
        let _clients = (TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap());
        let served = connections.next().await.unwrap().unwrap();
        let other = tokio::time::timeout(Duration::from_millis(200), connections.next()).await;
        assert!(other.is_err(), "there is no limit of connections");
        drop(served);
        assert!(connections.next().await.unwrap().is_ok());
        assert!(tasks.drain(Duration::from_secs(10)).await);
    }
}
