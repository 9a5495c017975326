//! The client of other nodes. Each question has its own connection: there are few of them, and a followed fill is one.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_runtime::Clock;
use entrepot_trust::Tokens;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_platform_verifier::BuilderVerifierExt as _;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::debug;
use url::{Position, Url};

use super::AUDIENCE;
use super::paths::{NODE, NodeAnswer};
use crate::config::limits;

/// A client of other nodes.
#[derive(Clone)]
pub(crate) struct PeerClient {
    node_id: Arc<str>,
    tokens: Tokens,
    clock: Clock,
    /// `None` on a machine without certificate authorities, where only clear text is possible.
    tls: Option<Arc<ClientConfig>>,
}

/// Why other nodes' certificates cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum PeerTlsError {
    /// The certificate authorities cannot be read.
    #[error("the authorities for other nodes are no certificates in PEM format")]
    Authorities,
    /// They cannot be used.
    #[error("the authorities for other nodes cannot be used")]
    Unusable(#[from] rustls::Error),
}

/// Why a node could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("its record has no address that can be used")]
    Address,
    #[error("its address has a name that no certificate can have")]
    Name(#[from] InvalidDnsNameError),
    #[error("its address is `https`, and this machine has no certificate authorities: set peer.ca_file")]
    NoAuthorities,
    #[error("it cannot be reached")]
    Network(#[from] std::io::Error),
    #[error("it broke off")]
    Http(#[from] hyper::Error),
    #[error("its answer is malformed")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("it answers with status {0}")]
    Status(StatusCode),
    #[error("it took too long")]
    Slow,
    #[error("`{id}` answers in its place, or another life of it")]
    SomebodyElse { id: String },
}

impl PeerClient {
    /// A client that calls as `node_id`. Other nodes' certificates must come from `authorities`, or from the machine's.
    pub(crate) fn new(
        node_id: Arc<str>,
        tokens: Tokens,
        clock: Clock,
        authorities: Option<&str>,
    ) -> Result<Self, PeerTlsError> {
        let tls = match authorities {
            Some(pem) => Some(tls_config(pem)?),
            None => {
                as_machine().inspect_err(|error| debug!("this machine has no certificate authorities: {error}")).ok()
            }
        };
        Ok(Self { node_id, tokens, clock, tls: tls.map(Arc::new) })
    }

    /// Asks who answers at `address`.
    pub(super) async fn node(&self, address: &Url) -> Result<NodeAnswer, ProbeError> {
        self.json(address, NODE, limits::PEER_ANSWER_BYTES).await
    }

    /// What the node at `address` returns at `path`, at most `limit` bytes.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        address: &Url,
        path: &str,
        limit: usize,
    ) -> Result<T, ProbeError> {
        let bytes = timeout(limits::PEER.1, self.get(address, path, limit)).await.map_err(|_| ProbeError::Slow)??;
        serde_json::from_slice(&bytes).map_err(|error| ProbeError::Body(error.into()))
    }

    /// Begins a long-running call to `address`. Returns the answer's headers and its stream.
    pub(super) async fn call(&self, address: &Url, path: &str) -> Result<(HeaderMap, Call), ProbeError> {
        let answer =
            timeout(limits::LEADER_SILENCE, self.send(address, path)).await.map_err(|_| ProbeError::Slow)??;
        let (head, body) = answer.response.into_parts();
        Ok((head.headers, Call { body, connection: Some(answer.connection) }))
    }

    /// Sends `body` to the node at `address`, over the connection in `kept` if that is still open.
    pub(super) async fn post(
        &self,
        kept: &mut Option<Kept>,
        address: &Url,
        path: &str,
        body: Bytes,
    ) -> Result<(), ProbeError> {
        let sent = timeout(limits::PEER.1, async {
            if let Some(kept) = kept.as_mut().filter(|kept| !kept.sender.is_closed())
                && self.post_on(kept, address, path, body.clone()).await.is_ok()
            {
                return Ok(());
            }
            let kept = kept.insert(self.keep(address).await?);
            self.post_on(kept, address, path, body).await
        });
        let sent = sent.await.unwrap_or(Err(ProbeError::Slow));
        if sent.is_err() {
            *kept = None;
        }
        sent
    }

    async fn post_on(&self, kept: &mut Kept, address: &Url, path: &str, body: Bytes) -> Result<(), ProbeError> {
        let request = self.request(Method::POST, address, path, Full::new(body))?;
        kept.sender.ready().await?;
        let response = kept.sender.send_request(request).await?;
        let status = response.status();
        // The rest of the answer is read, since it would be in the way of the next one.
        Limited::new(response.into_body(), limits::PEER_ANSWER_BYTES).collect().await.map_err(ProbeError::Body)?;
        if status == StatusCode::OK { Ok(()) } else { Err(ProbeError::Status(status)) }
    }

    async fn keep(&self, address: &Url) -> Result<Kept, ProbeError> {
        let (stream, name) = self.connect(address).await?;
        match name {
            None => Kept::on(stream).await,
            Some((tls, name)) => Kept::on(TlsConnector::from(tls).connect(name, stream).await?).await,
        }
    }

    async fn get(&self, address: &Url, path: &str, limit: usize) -> Result<Bytes, ProbeError> {
        let Answer { response, connection } = self.send(address, path).await?;
        let (mut body, mut connection) = (pin!(Limited::new(response.into_body(), limit).collect()), connection);
        let body = tokio::select! {
            body = &mut body => body,
            // The server has closed the connection; what it has sent may still be read.
            () = &mut connection => body.await,
        };
        Ok(body.map_err(ProbeError::Body)?.to_bytes())
    }

    async fn send(&self, address: &Url, path: &str) -> Result<Answer, ProbeError> {
        let (stream, name) = self.connect(address).await?;
        match name {
            None => self.ask(stream, address, path).await,
            Some((tls, name)) => self.ask(TlsConnector::from(tls).connect(name, stream).await?, address, path).await,
        }
    }

    /// A connection to `address`, and its TLS settings, if any.
    async fn connect(&self, address: &Url) -> Result<(TcpStream, Option<Tls>), ProbeError> {
        let (Some(host), Some(port)) = (address.host_str(), address.port_or_known_default()) else {
            return Err(ProbeError::Address);
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let connecting = timeout(limits::PEER.0, TcpStream::connect((bare, port)));
        let stream = connecting.await.map_err(|_| ProbeError::Slow)??;
        match address.scheme() {
            "http" => Ok((stream, None)),
            "https" => {
                let tls = self.tls.clone().ok_or(ProbeError::NoAuthorities)?;
                Ok((stream, Some((tls, ServerName::try_from(bare.to_owned())?))))
            }
            _ => Err(ProbeError::Address),
        }
    }

    fn request<B>(&self, method: Method, address: &Url, path: &str, body: B) -> Result<Request<B>, ProbeError> {
        let token = self.tokens.issue_node(&self.node_id, AUDIENCE, self.clock.now());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &address[Position::BeforeHost..Position::AfterPort])
            .header(AUTHORIZATION, format!("Bearer {}", token.expose()))
            .body(body)
            .map_err(|_| ProbeError::Address)?;
        if let Some(value) = request.headers_mut().get_mut(AUTHORIZATION) {
            value.set_sensitive(true);
        }
        Ok(request)
    }

    async fn ask<S>(&self, stream: S, address: &Url, path: &str) -> Result<Answer, ProbeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut connection = async { drop(connection.await) }.fuse().boxed();
        let request = self.request(Method::GET, address, path, Empty::<Bytes>::new())?;
        let mut exchange = pin!(sender.send_request(request));
        let response = tokio::select! {
            response = &mut exchange => response?,
            // An answer that has arrived counts.
            () = &mut connection => exchange.await?,
        };
        if response.status() != StatusCode::OK {
            return Err(ProbeError::Status(response.status()));
        }
        Ok(Answer { response, connection })
    }
}

/// The TLS settings of a connection.
type Tls = (Arc<ClientConfig>, ServerName<'static>);

/// A connection that is kept for the next message.
pub(super) struct Kept {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Kept {
    async fn on<S>(stream: S) -> Result<Self, ProbeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with what it drives, which aborts it when it is dropped"
        )]
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Self { sender, driver })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// An answer whose body is still to come.
struct Answer {
    response: Response<Incoming>,
    /// Must be driven, or nothing comes.
    connection: BoxFuture<'static, ()>,
}

/// A long-running call to another node. Dropping it ends the call.
pub(crate) struct Call {
    body: Incoming,
    connection: Option<BoxFuture<'static, ()>>,
}

impl Call {
    /// The next bytes; `None` when the call has ended for any reason. This is cancellation safe.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            let frame = match &mut self.connection {
                Some(connection) => tokio::select! {
                    frame = self.body.frame() => frame,
                    () = connection => {
                        self.connection = None;
                        continue;
                    }
                },
                // Bytes that have arrived may still be read.
                None => self.body.frame().await,
            };
            // Trailers are ignored.
            if let Ok(bytes) = frame?.ok()?.into_data() {
                return Some(bytes);
            }
        }
    }
}

fn tls_config(pem: &str) -> Result<ClientConfig, PeerTlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|_| PeerTlsError::Authorities)?)?;
    }
    if roots.is_empty() {
        return Err(PeerTlsError::Authorities);
    }
    Ok(builder()?.with_root_certificates(roots).with_no_client_auth())
}

fn as_machine() -> Result<ClientConfig, rustls::Error> {
    Ok(builder()?.with_platform_verifier()?.with_no_client_auth())
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, rustls::Error> {
    let provider = rustls::crypto::aws_lc_rs::default_provider().into();
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
}
