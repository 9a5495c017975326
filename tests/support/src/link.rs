//! A proxy for TCP connections that can slow them down, stall or cut them.
//!
//! A program that is given a link's address instead of its target's notices nothing until the link is told to
//! misbehave. Little is buffered on the way, so if one end does not read, the other one soon cannot write.

mod carry;
mod requests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use carry::{Lane, carry};
use requests::Requests;

/// How much the kernel buffers for each end of a connection; it doubles this number.
const KERNEL_BYTES: u32 = 64 * 1024;
const BACKLOG: u32 = 1024;

/// A link to one address. Dropping it cuts its connections and closes its listener.
pub struct Link {
    address: SocketAddr,
    target: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

/// The current state of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Condition {
    bytes_per_second: Option<u64>,
    delay: Duration,
    stalled: bool,
    refused: bool,
    /// How often all connections were cut so far.
    resets: u64,
}

/// The state that all connections of a link share.
struct Shared {
    target: SocketAddr,
    condition: watch::Sender<Condition>,
    /// To the target, and from it.
    lanes: [Lane; 2],
    connections: AtomicUsize,
    bytes: AtomicU64,
    requests: Requests,
}

impl Link {
    /// A link to `target` at a free port of 127.0.0.1.
    pub async fn start(target: SocketAddr) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), target).await
    }

    /// A link to `target` at `address`.
    ///
    /// # Panics
    /// If the address is taken, or if one of the two is not a loopback address.
    pub async fn start_at(address: SocketAddr, target: SocketAddr) -> Self {
        assert!(address.ip().is_loopback() && target.ip().is_loopback(), "links lead from loopback to loopback");
        let listener = listen(address).unwrap_or_else(|error| panic!("{address} is not free: {error}"));
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            target,
            condition: watch::Sender::default(),
            lanes: Default::default(),
            connections: AtomicUsize::default(),
            bytes: AtomicU64::default(),
            requests: Requests::default(),
        });
        let mut server = JoinSet::new();
        server.spawn(serve(listener, shared.clone()));
        Self { address, target, shared, _server: server }
    }

    /// Its own address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address that it leads to.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// From now on, at most this many bytes per second are carried in each direction, over all connections.
    pub fn slow(&self, bytes_per_second: u64) {
        self.shared.lanes.iter().for_each(Lane::clear);
        self.change(|condition| condition.bytes_per_second = Some(bytes_per_second.max(1)));
    }

    /// From now on, each byte arrives this much later.
    pub fn delay(&self, delay: Duration) {
        self.change(|condition| condition.delay = delay);
    }

    /// From now on, nothing arrives, not even the end of a connection, until the link is healed. Connections stay open;
    /// new ones are accepted, and wait as well.
    pub fn stall(&self) {
        self.change(|condition| condition.stalled = true);
    }

    /// Cuts all connections by a reset. New ones work.
    pub fn reset(&self) {
        self.change(|condition| condition.resets += 1);
    }

    /// Cuts all connections by a reset, and new ones as soon as they are opened.
    pub fn refuse(&self) {
        self.change(|condition| condition.refused = true);
    }

    /// Returns to normal. Connections that were cut stay cut.
    pub fn heal(&self) {
        self.change(|condition| *condition = Condition { resets: condition.resets, ..Condition::default() });
    }

    /// How many connections it has accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many bytes have arrived so far, in both directions.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    /// What has been requested by HTTP/1.1 since the last call, as `GET /path`. From the first call on requests are
    /// recorded.
    pub fn take_requests(&self) -> Vec<String> {
        self.shared.requests.take()
    }

    fn change(&self, change: impl FnOnce(&mut Condition)) {
        self.shared.condition.send_modify(change);
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let condition = *self.shared.condition.borrow();
        f.debug_struct("Link")
            .field("address", &self.address)
            .field("target", &self.target)
            .field("condition", &condition)
            .finish_non_exhaustive()
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((near, _)) = listener.accept().await else { continue };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        // Subscribed before the target is called, so that a reset during the call affects this connection, too.
        let condition = shared.condition.subscribe();
        connections.spawn(connection(near, shared.clone(), condition));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(mut near: TcpStream, shared: Arc<Shared>, mut condition: watch::Receiver<Condition>) {
    let resets = condition.borrow().resets;
    let mut watched = condition.clone();
    let mut cut = std::pin::pin!(watched.wait_for(|now| now.refused || now.resets != resets));
    let connected = tokio::select! {
        _ = &mut cut => None,
        connected = connect(&shared, &mut condition) => connected.ok(),
    };
    let Some(mut far) = connected else { return end_hard(near) };
    let ended = tokio::select! {
        _ = &mut cut => Err(io::ErrorKind::ConnectionReset.into()),
        ended = carry(&mut near, &mut far, &shared, &mut condition) => ended,
    };
    if ended.is_err() {
        end_hard(near);
        end_hard(far);
    }
}

/// Connects to the target. While the link is stalled, this waits.
async fn connect(shared: &Shared, condition: &mut watch::Receiver<Condition>) -> io::Result<TcpStream> {
    until_moving(condition).await;
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(KERNEL_BYTES)?;
    socket.set_recv_buffer_size(KERNEL_BYTES)?;
    socket.set_nodelay(true)?;
    socket.connect(shared.target).await
}

/// Waits while the link is stalled.
async fn until_moving(condition: &mut watch::Receiver<Condition>) {
    // An error means that the link is gone, and its connections with it.
    let _ = condition.wait_for(|now| !now.stalled).await;
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    assert!(matches!(address.ip(), IpAddr::V4(_)), "links have addresses of IPv4");
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(KERNEL_BYTES)?;
    socket.set_recv_buffer_size(KERNEL_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Closes a connection by a reset.
fn end_hard(stream: TcpStream) {
    // A connection that has ended already needs no reset.
    let _ = stream.set_zero_linger();
}
