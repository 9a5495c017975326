//! Takes connections, reads requests, sends answers; on drain it lets open answers finish.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use entrepot_runtime::Tasks;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tracing::{Instrument as _, debug, info, info_span, warn};
use url::Url;
use uuid::Uuid;

use super::body::{self, Body};
use super::error;
use super::head_limit::{Answers, Counted, HeadLimit};
use super::route::{Content, Route, Target};
use crate::auth::challenge::Challenge;
use crate::auth::token::TokenRequest;
use crate::config::limits;
use crate::error::PullError;
use crate::metrics::PullMetrics;
use crate::pull::Node;
use crate::resolve::Outcome;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The registry's HTTP server.
pub(crate) struct Server {
    pub(crate) node: Node,
    pub(crate) node_id: Arc<str>,
    pub(crate) external_url: Option<Url>,
    pub(crate) metrics: PullMetrics,
}

impl Server {
    /// Serves until the process stops; then no new connection is taken, and open answers finish.
    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener, tasks: &Tasks) {
        let stopping = tasks.stopping();
        let connections = Arc::new(Semaphore::new(limits::CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = stopping.cancelled() => return,
                accepted = async {
                    let permit = connections.clone().acquire_owned().await;
                    (permit, listener.accept().await)
                } => accepted,
            };
            match accepted {
                (Ok(permit), Ok((stream, peer))) => {
                    let server = self.clone();
                    let stopping = tasks.stopping();
                    tasks.spawn("connection", async move {
                        server.connection(stream, peer, stopping).await;
                        drop(permit);
                    });
                }
                (_, Err(error)) => {
                    // Out of file descriptors, say: a moment later there may be some.
                    warn!("a connection could not be taken: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                (Err(_), _) => return,
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        stopping: tokio_util::sync::CancellationToken,
    ) {
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(limits::WRITE_STALL));
        let answers = Answers::default();
        let stream = HeadLimit::new(Box::pin(stream), limits::HEAD, answers.clone());
        let service = service_fn(move |request| {
            let (server, answering) = (self.clone(), answers.begin());
            async move {
                let response = server.answer(request).await;
                Ok::<_, Infallible>(response.map(|body| Counted::new(body, answering)))
            }
        });
        let mut connection = std::pin::pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits::IDLE)
                .max_headers(limits::HEADERS)
                .max_buf_size(limits::HEAD_BYTES)
                .half_close(false)
                .serve_connection(TokioIo::new(stream), service)
        );
        let end = tokio::select! {
            end = connection.as_mut() => end,
            () = stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = end {
            debug!(%peer, "a connection ended early: {error}");
        }
    }

    /// The answer to one request, with what every answer carries.
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let began = Instant::now();
        // Begins with the node, so that it can be asked about what it did.
        let request_id = format!("{}-{}", self.node_id, Uuid::now_v7().simple());
        let (parts, incoming) = request.into_parts();
        let span = info_span!("request", request.id = %request_id);
        let mut response = self.route(&parts, incoming).instrument(span).await;
        if parts.method == Method::HEAD {
            *response.body_mut() = body::empty();
        }
        response.headers_mut().extend(HeaderValue::from_str(&request_id).map(|value| (REQUEST_ID, value)));
        response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        let outcome = response.extensions().get().map_or("", |outcome: &Outcome| outcome.as_str());
        info!(
            request.id = %request_id, http.method = %parts.method, http.path = parts.uri.path(),
            http.status = response.status().as_u16(), pull.outcome = outcome, user_agent = user_agent(&parts.headers),
            duration_ms = began.elapsed().as_millis(),
            "{} {} -> {}", parts.method, parts.uri.path(), response.status().as_u16()
        );
        response
    }

    async fn route(&self, parts: &Parts, incoming: Incoming) -> Response<Body> {
        let route = match Route::parse(&parts.method, parts.uri.path()) {
            Ok(route) => route,
            Err(problem) => return self.failed(parts, &problem.into(), None),
        };
        let began = Instant::now();
        let (result, target) = match &route {
            Route::Base => (self.base(parts).await, None),
            Route::Token => (self.token(parts, incoming).await, None),
            Route::Pull(target) => {
                let _active = self.metrics.begin();
                (self.node.pull(parts, target).await, Some(target))
            }
        };
        if let Some(target) = target {
            self.metrics.observe(&result, began.elapsed(), matches!(target.content, Content::Manifest(_)));
        }
        result.unwrap_or_else(|problem| self.failed(parts, &problem, target))
    }

    /// `/v2/`: 200 for those who are logged in, a challenge for all others.
    async fn base(&self, parts: &Parts) -> Result<Response<Body>, PullError> {
        let snapshot = self.node.control.snapshot()?;
        self.node.auth.identify(&parts.headers, &snapshot).await?.require_login()?;
        Ok(json(Bytes::from_static(b"{}")))
    }

    /// `/token`: credentials come by Basic or in the form.
    async fn token(&self, parts: &Parts, incoming: Incoming) -> Result<Response<Body>, PullError> {
        let snapshot = self.node.control.snapshot()?;
        let mut request = TokenRequest::parse(parts.uri.query().unwrap_or_default());
        if parts.method == Method::POST {
            let body = Limited::new(incoming, limits::FORM_BYTES).collect();
            let body = tokio::time::timeout(limits::FORM, body).await.ok().and_then(Result::ok);
            let form = body.and_then(|body| String::from_utf8(body.to_bytes().to_vec()).ok()).unwrap_or_default();
            let form = TokenRequest::parse(&form);
            request.scopes.extend(form.scopes);
            request.password = form.password;
        }
        let caller = match &request.password {
            Some((username, password)) if !parts.headers.contains_key(AUTHORIZATION) => {
                self.node.auth.password(username, password, &snapshot).await?
            }
            _ => self.node.auth.identify(&parts.headers, &snapshot).await?,
        };
        let answer = self.node.auth.issue(&caller, &request, &snapshot)?;
        // Plain strings and a number: nothing that JSON could not hold.
        let bytes = serde_json::to_vec(&answer).map_err(|_| PullError::Busy)?;
        Ok(json(bytes.into()))
    }

    fn failed(&self, parts: &Parts, problem: &PullError, target: Option<&Target>) -> Response<Body> {
        let base = self.base_url(parts);
        let snapshot = self.node.control.snapshot().ok();
        let scope = target.map(|target| format!("repository:{}:pull", target.repository));
        let challenge = Challenge { base: &base, registry_id: snapshot.map(|snapshot| snapshot.registry_id), scope };
        error::response(problem, user_agent(&parts.headers), &challenge)
    }

    /// Where clients reach this registry: as configured, or as this one did.
    fn base_url(&self, parts: &Parts) -> String {
        if let Some(url) = &self.external_url {
            return url.as_str().trim_end_matches('/').to_owned();
        }
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).filter(|host| is_host(host));
        format!("http://{}", host.unwrap_or("localhost"))
    }
}

fn json(bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(body::full(bytes.clone()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_LENGTH, bytes.len().into());
    response
}

fn user_agent(headers: &HeaderMap) -> &str {
    headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Whether a `Host` header is only that: what a client sends goes back to it in a challenge.
fn is_host(text: &str) -> bool {
    text.len() <= 255
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
}
