//! Connections: they are accepted, served as HTTP/1 or HTTP/2, watched for clients that read nothing, and drained.
//!
//! Clear text is HTTP/1.1; over TLS the handshake has decided. hyper limits the wait for an HTTP/1 head, and we limit
//! the time that the head takes. An HTTP/2 connection carries many requests at once, so it is checked from time to time
//! instead.

mod abrupt;
mod answers;
mod head_limit;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use entrepot_runtime::listen::{Accepted, Bounds, Stream};
use entrepot_runtime::{Listener, Tasks, chain};
use http::header::CONTENT_LENGTH;
use http::{Request, Response, Version};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::MissedTickBehavior;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use abrupt::Abrupt;
use answers::{Answers, Counted};
use head_limit::HeadLimit;

use crate::body::Body;
use crate::config::limits;

/// How often an HTTP/2 connection is checked.
const LOOK: Duration = Duration::from_secs(15);

/// Something that answers requests.
pub(crate) trait Edge: Send + Sync + 'static {
    /// The name of its connections in logs and for tasks.
    const NAME: &'static str;

    /// Answers one request.
    fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        remote: Remote,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) address: IpAddr,
    pub(crate) is_tls: bool,
}

impl Remote {
    fn new(peer: SocketAddr, is_tls: bool) -> Self {
        // A socket for both address families shows IPv4 addresses as IPv6.
        Self { address: peer.ip().to_canonical(), is_tls }
    }
}

/// Accepts connections within `bounds` until the tasks stop. Open answers are finished as tasks.
pub(crate) async fn serve<E: Edge>(edge: Arc<E>, listener: Listener, bounds: Bounds, tasks: Tasks) {
    let inner = tasks.clone();
    let converse = move |accepted, peer| converse(Arc::clone(&edge), accepted, peer, inner.clone());
    listener.serve(E::NAME, bounds, &tasks, converse).await;
}

async fn converse<E: Edge>(edge: Arc<E>, accepted: Accepted, peer: SocketAddr, tasks: Tasks) {
    let stream = match accepted.handshake().await {
        Ok(stream) => stream,
        Err(error) => return debug!(client.address = %peer.ip(), "a connection did not begin: {}", chain(&error)),
    };
    let _ = stream.set_nodelay(true);
    let (remote, is_http2) = (Remote::new(peer, stream.is_tls()), stream.is_http2());
    let answers = Answers::new(stream.visit());
    let end = if is_http2 {
        http2(edge, stream, remote, &answers, &tasks).await
    } else {
        http1(edge, stream, remote, &answers, tasks.stopping()).await
    };
    if let Err(error) = end {
        debug!(client.address = %remote.address, "a connection ended early: {}", chain(&error));
    }
}

async fn http1<E: Edge>(
    edge: Arc<E>,
    stream: Stream,
    remote: Remote,
    answers: &Answers,
    stopping: CancellationToken,
) -> Result<(), hyper::Error> {
    let stream = Abrupt::new(stream, answers.clone());
    let stream = HeadLimit::new(Box::pin(with_timeouts(stream)), limits::HEAD, answers.clone());
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::IDLE)
        .max_headers(limits::HEADERS)
        .max_buf_size(limits::HEAD_BYTES)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service(edge, remote, answers, usize::MAX));
    let mut connection = pin!(connection);
    tokio::select! {
        end = connection.as_mut() => end,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

async fn http2<E: Edge>(
    edge: Arc<E>,
    stream: Stream,
    remote: Remote,
    answers: &Answers,
    tasks: &Tasks,
) -> Result<(), hyper::Error> {
    let connection = http2::Builder::new(OnTasks(tasks.clone()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::HTTP2_STREAMS)
        .max_header_list_size(limits::HTTP2_HEADER_BYTES)
        .initial_stream_window_size(limits::HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(limits::HTTP2_CONNECTION_WINDOW)
        .max_send_buf_size(limits::HTTP2_SEND_BYTES)
        .max_frame_size(limits::HTTP2_FRAME_BYTES)
        .max_pending_accept_reset_streams(limits::HTTP2_RESETS)
        .keep_alive_interval(limits::HTTP2_PING)
        .keep_alive_timeout(limits::HTTP2_PING)
        .serve_connection(
            TokioIo::new(Box::pin(with_timeouts(stream))),
            service(edge, remote, answers, limits::HTTP2_SLICE_BYTES),
        );
    drive(connection, answers, tasks.stopping()).await
}

/// Drives a connection with many requests, and ends it when it is idle for long or its client reads nothing.
async fn drive<C: GracefulConnection>(
    connection: C,
    answers: &Answers,
    stopping: CancellationToken,
) -> Result<(), C::Error> {
    let mut connection = pin!(connection);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leaving = false;
    loop {
        tokio::select! {
            end = connection.as_mut() => return end,
            () = stopping.cancelled(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = look.tick() => {
                let idle = answers.idle_for();
                if answers.is_stalled(limits::WRITE_STALL) || idle > limits::IDLE + LOOK {
                    return Ok(());
                }
                if idle > limits::IDLE && !leaving {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

fn with_timeouts<S: AsyncRead + AsyncWrite>(stream: S) -> TimeoutStream<S> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits::WRITE_STALL));
    stream
}

fn service<E: Edge>(
    edge: Arc<E>,
    remote: Remote,
    answers: &Answers,
    slice_bytes: usize,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = Response<Counted<Body>>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Counted<Body>>, Infallible>> + Send + use<E>,
> + use<E> {
    let answers = answers.clone();
    service_fn(move |request| {
        let (edge, answering) = (edge.clone(), answers.begin());
        let has_chunks = request.version() >= Version::HTTP_11;
        async move {
            let response = edge.answer(request, remote).await;
            let is_sized =
                response.headers().contains_key(CONTENT_LENGTH) || response.body().size_hint().exact().is_some();
            if !has_chunks && !is_sized {
                answering.end_by_connection();
            }
            Ok(response.map(|body| Counted::new(body, answering, slice_bytes)))
        }
    })
}

/// Runs the streams of HTTP/2 as tasks, for which shutdown waits.
#[derive(Clone)]
struct OnTasks(Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for OnTasks {
    fn execute(&self, future: F) {
        self.0.spawn("stream", future);
    }
}

impl fmt::Debug for OnTasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnTasks")
    }
}
