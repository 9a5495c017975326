//! Listening sockets, plain or TLS, with errors that say what to do.

mod crowd;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::warn;

use crate::tls::Tls;
use crate::{Tasks, chain};
use crowd::{Crowd, Place};

pub use crowd::{Asking, Bounds, Visit};

const BACKLOG: u32 = 1024;
/// The pause after a failed accept, for example when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often failed accepts are logged.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// How often silent connections are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// How long a client may take for the TLS handshake.
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
    /// If the address cannot be used; the text says what to do.
    pub fn bind(addr: SocketAddr, what: &str, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let socket = listen(addr).map_err(|error| io::Error::new(error.kind(), explain(addr, what, &error)))?;
        Ok(Self { socket, tls })
    }

    pub fn plain(socket: TcpListener) -> Self {
        Self { socket, tls: None }
    }

    /// The same socket with TLS.
    #[must_use]
    pub fn with_tls(self, tls: Arc<Tls>) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// The address on which it listens.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Whether clients must use TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Accepts connections until the tasks are stopping, and passes each to `handler`, in a task called `name`.
    ///
    /// `bounds` limits how many connections are open at once. Further ones wait to be accepted, and idle ones are
    /// closed to make room for them. A connection counts until it is dropped, whoever owns it by then, so a handler may
    /// pass it on. Handlers that run when the tasks are stopping continue, and end by themselves.
    pub async fn serve<H, F>(self, name: &'static str, bounds: Bounds, tasks: &Tasks, handler: H)
    where
        H: Fn(Accepted, SocketAddr) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let stopping = tasks.stopping();
        let slots = Arc::new(Semaphore::new(bounds.connections));
        let crowd = Crowd::new(bounds);
        let mut told: Option<Instant> = None;
        let accept_all = async {
            for number in 0.. {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                match self.accept(&crowd, number, slot).await {
                    Ok((accepted, peer)) => tasks.spawn(name, handler(accepted, peer)),
                    Err(error) => {
                        if told.is_none_or(|told| told.elapsed() >= TELL_AGAIN) {
                            told = Some(Instant::now());
                            warn!(error = %chain(&error), "`{name}` cannot accept a connection, and keeps trying");
                        }
                        crowd.make_room();
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        let look = async {
            loop {
                tokio::time::sleep(LOOK).await;
                crowd.close_silent();
            }
        };
        stopping
            .run_until_cancelled(async {
                tokio::select! {
                    () = accept_all => {}
                    () = look => {}
                }
            })
            .await;
    }

    /// The next connection, without limits.
    #[cfg(test)]
    pub(crate) async fn accept_one(&self) -> Accepted {
        let slot = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        self.accept(&Crowd::new(Bounds::new(1)), 0, slot).await.unwrap().0
    }

    /// The next connection. Its TLS handshake has not begun, so that a slow client delays nobody else.
    async fn accept(
        &self,
        crowd: &Crowd,
        number: u64,
        slot: OwnedSemaphorePermit,
    ) -> io::Result<(Accepted, SocketAddr)> {
        let (stream, peer) = self.socket.accept().await?;
        let place = crowd.enter(number, peer.ip());
        Ok((Accepted { stream, tls: self.tls.clone(), seat: Seat { place, _slot: slot } }, peer))
    }
}

impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Self {
        Self::plain(socket)
    }
}

/// An accepted connection. If the listener uses TLS, the handshake is still to come.
#[derive(Debug)]
pub struct Accepted {
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    seat: Seat,
}

/// What a connection occupies until it is dropped.
#[derive(Debug)]
struct Seat {
    place: Place,
    /// Its slot, which then becomes free for another connection.
    _slot: OwnedSemaphorePermit,
}

impl Accepted {
    /// Does the TLS handshake, within 10 s. Without TLS there is nothing to do.
    ///
    /// # Errors
    /// If the handshake fails.
    pub async fn handshake(self) -> io::Result<Stream> {
        let Some(tls) = self.tls else {
            return Ok(Stream::new(Transport::Plain(self.stream), self.seat));
        };
        let accepting = TlsAcceptor::from(tls.current()).accept(self.stream);
        let accepting = self.seat.place.visit.leaving().run_until_cancelled(accepting);
        let stream = tokio::time::timeout(HANDSHAKE_LIMIT, accepting)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the client did not finish TLS's handshake"))?
            .ok_or_else(|| io::Error::new(io::ErrorKind::ConnectionAborted, "it is closed for others"))??;
        Ok(Stream::new(Transport::Tls(Box::new(stream)), self.seat))
    }
}

/// A connection, plain or TLS. If it is closed to make room for others, that looks as if its client had closed it.
#[derive(Debug)]
pub struct Stream {
    transport: Transport,
    seat: Seat,
    leaving: Pin<Box<WaitForCancellationFutureOwned>>,
}

#[derive(Debug)]
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn new(transport: Transport, seat: Seat) -> Self {
        let leaving = Box::pin(seat.place.visit.leaving().clone().cancelled_owned());
        Self { transport, seat, leaving }
    }

    /// The handle through which the listener learns about the connection's requests.
    pub fn visit(&self) -> Visit {
        self.seat.place.visit.clone()
    }

    /// Whether client and server agreed on HTTP/2 in the TLS handshake. Always false without TLS.
    pub fn is_http2(&self) -> bool {
        match &self.transport {
            Transport::Plain(_) => false,
            Transport::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    pub fn is_tls(&self) -> bool {
        matches!(self.transport, Transport::Tls(_))
    }

    /// Sets whether small writes are sent at once.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.tcp().set_nodelay(nodelay)
    }

    /// Sets whether the connection ends with a reset, instead of the usual end, when it is dropped or its process dies.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn reset_on_close(&self, resets: bool) -> io::Result<()> {
        #[expect(deprecated, reason = "neither of these two lets anybody wait")]
        self.tcp().set_linger(resets.then_some(Duration::ZERO))
    }

    /// The address of the other end.
    ///
    /// # Errors
    /// If the connection is closed by now.
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
        if self.leaving.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
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
    // A restart must not wait until connections of the previous process time out.
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
                .serve("connection", Bounds::new(2), &inner, move |connection, _| {
                    let accepted = accepted.clone();
                    // The handler returns at once, and passes its connection on.
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
