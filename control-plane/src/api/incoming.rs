//! Connections for gRPC, clear text or TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use entrepot_runtime::listen::{Accepted, Listener, Stream};
use entrepot_runtime::{Tasks, chain};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

/// How many connections may be in TLS's handshake at once.
const HANDSHAKES: usize = 256;
/// How many connections wait to be served.
const QUEUE: usize = 64;
/// How long to wait when the system has no connection to give, as when it is out of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection as tonic wants it.
#[derive(Debug)]
pub(super) struct Connection(Stream);

/// The connections of `listener`, until the process is stopping.
pub(super) fn connections(listener: Listener, tasks: &Tasks) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(QUEUE);
    let (stopping, handshakes) = (tasks.stopping(), tasks.clone());
    tasks.spawn("accept gRPC", async move {
        let accept = accept(listener, handshakes, ready);
        stopping.run_until_cancelled(accept).await;
    });
    ReceiverStream::new(connections)
}

async fn accept(listener: Listener, tasks: Tasks, ready: mpsc::Sender<io::Result<Connection>>) {
    let free = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((accepted, _)) => {
                let (ready, stopping) = (ready.clone(), tasks.stopping());
                tasks.spawn("gRPC handshake", async move {
                    stopping.run_until_cancelled(shake_hands(accepted, ready)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(error = %chain(&error), "cannot accept gRPC connections, trying again");
                sleep(PAUSE).await;
            }
        }
    }
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
