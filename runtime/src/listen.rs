//! Listening sockets, clear text or TLS, with errors that say what to do.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::warn;

use crate::tls::Tls;
use crate::{Tasks, chain};

const BACKLOG: u32 = 1024;
/// How long to wait after an accept that failed, as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a client may take for TLS's handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// A listening socket, with or without TLS.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    tls: Option<Arc<Tls>>,
}

impl Listener {
    /// Listens on `addr`. `what` is the flag or key that the address comes from, such as `registry.listen`.
    ///
    /// # Errors
    /// If the address cannot be had; the text names the remedy.
    pub fn bind(addr: SocketAddr, what: &str, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let socket = listen(addr).map_err(|error| io::Error::new(error.kind(), explain(addr, what, &error)))?;
        Ok(Self { socket, tls })
    }

    /// A socket without TLS.
    pub fn plain(socket: TcpListener) -> Self {
        Self { socket, tls: None }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Whether its clients have to speak TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Accepts connections until the tasks are stopping, and gives each to `handler`, as a task called `name`.
    ///
    /// At most `limit` connections are open at once; further ones wait to be accepted. A connection counts until it is
    /// dropped, whoever has it by then, so a handler may pass it on. Handlers that run when the tasks are stopping go
    /// on, and end by themselves.
    pub async fn serve<H, F>(self, name: &'static str, limit: usize, tasks: &Tasks, handler: H)
    where
        H: Fn(Accepted, SocketAddr) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let stopping = tasks.stopping();
        let slots = Arc::new(Semaphore::new(limit));
        let accept_all = async {
            while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
                match self.accept(slot).await {
                    Ok((accepted, peer)) => tasks.spawn(name, handler(accepted, peer)),
                    Err(error) => {
                        warn!(error = %chain(&error), "`{name}` cannot accept a connection, trying again");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        stopping.run_until_cancelled(accept_all).await;
    }

    /// The next connection. TLS has not begun on it, so that a slow client holds up no other.
    pub(crate) async fn accept(&self, slot: OwnedSemaphorePermit) -> io::Result<(Accepted, SocketAddr)> {
        let (stream, peer) = self.socket.accept().await?;
        Ok((Accepted { stream, tls: self.tls.clone(), slot }, peer))
    }
}

impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Self {
        Self::plain(socket)
    }
}

/// A connection whose client has still to show that it speaks TLS, where the listener wants it.
#[derive(Debug)]
pub struct Accepted {
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    slot: OwnedSemaphorePermit,
}

impl Accepted {
    /// Does TLS's handshake, within 10 s; without TLS there is nothing to do.
    ///
    /// # Errors
    /// If the client does not manage it.
    pub async fn handshake(self) -> io::Result<Stream> {
        let Some(tls) = self.tls else {
            return Ok(Stream { transport: Transport::Plain(self.stream), _slot: self.slot });
        };
        let accepting = TlsAcceptor::from(tls.current()).accept(self.stream);
        let stream = tokio::time::timeout(HANDSHAKE_LIMIT, accepting)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the client did not finish TLS's handshake"))??;
        Ok(Stream { transport: Transport::Tls(Box::new(stream)), _slot: self.slot })
    }
}

/// A connection, clear text or TLS.
#[derive(Debug)]
pub struct Stream {
    transport: Transport,
    /// Free for another connection when this one is dropped.
    _slot: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Whether client and server have agreed on HTTP/2 in TLS's handshake. Clear text never has.
    pub fn is_http2(&self) -> bool {
        match &self.transport {
            Transport::Plain(_) => false,
            Transport::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    /// Whether it is encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self.transport, Transport::Tls(_))
    }

    /// Whether small writes go out at once.
    ///
    /// # Errors
    /// If the system does not let it be set.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.tcp().set_nodelay(nodelay)
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// If nobody is, by now.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().peer_addr()
    }

    fn tcp(&self) -> &TcpStream {
        match &self.transport {
            Transport::Plain(stream) => stream,
            Transport::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for connections of the process before to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

fn explain(addr: SocketAddr, what: &str, error: &io::Error) -> String {
    #[expect(clippy::wildcard_enum_match_arm, reason = "there are some fifty kinds; the rest speak for themselves")]
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{addr} is taken: another process listens there, `ss -ltnp 'sport = :{}'` shows which; stop it, or choose \
             another address with {what}",
            addr.port()
        ),
        io::ErrorKind::PermissionDenied => {
            format!("{addr} may not be listened on: ports below 1024 need privileges; choose another port with {what}")
        }
        io::ErrorKind::AddrNotAvailable => format!(
            "{addr} cannot be listened on: this machine has no address {}; `ip address` shows those it has, choose \
             one with {what}",
            addr.ip()
        ),
        _ => format!("{addr} cannot be listened on ({error}); choose another address with {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_address_says_how_to_find_by_whom() {
        let first = Listener::bind("127.0.0.1:0".parse().unwrap(), "--registry-listen", None).unwrap();
        let addr = first.local_addr().unwrap();
        let error = Listener::bind(addr, "--registry-listen", None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let text = error.to_string();
        for part in [addr.to_string(), format!("ss -ltnp 'sport = :{}'", addr.port()), "--registry-listen".to_owned()] {
            assert!(text.contains(&part), "{text}");
        }
    }

    #[tokio::test]
    async fn no_more_connections_are_open_than_the_limit_and_one_that_ends_makes_room() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "--registry-listen", None).unwrap();
        let (addr, tasks) = (listener.local_addr().unwrap(), Tasks::new());
        let (accepted, mut streams) = tokio::sync::mpsc::unbounded_channel();
        let inner = tasks.clone();
        tasks.spawn("test", async move {
            listener
                .serve("connection", 2, &inner, move |connection, _| {
                    let accepted = accepted.clone();
                    // The handler ends at once, and passes its connection on.
                    async move { drop(accepted.send(connection.handshake().await.unwrap())) }
                })
                .await;
        });
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(addr).await.unwrap());
        }
        let first = streams.recv().await.unwrap();
        let _second = streams.recv().await.unwrap();
        let third = tokio::time::timeout(Duration::from_millis(200), streams.recv()).await;
        assert!(third.is_err(), "a third connection was accepted");
        drop(first);
        assert!(streams.recv().await.is_some());
        assert!(tasks.drain(Duration::from_secs(10)).await);
    }

    #[tokio::test]
    async fn an_address_of_another_machine_says_so() {
        let error = Listener::bind("192.0.2.1:5000".parse().unwrap(), "--api-listen", None).unwrap_err();
        assert!(error.to_string().contains("no address 192.0.2.1"), "{error}");
    }
}
