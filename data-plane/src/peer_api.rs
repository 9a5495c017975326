//! The API for other nodes.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_domain::{RepositoryName, ResourceId};
use entrepot_runtime::Clock;
use entrepot_trust::Tokens;
use futures_util::{Stream, stream};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::time::timeout;
use tracing::debug;

use crate::body::{self, Body, Cut};
use crate::config::limits;
use crate::connection::{Edge, Remote};
use crate::control::Control;
use crate::fill::Fills;
use crate::inspect::{FillsAnswer, Inspector, UpstreamsAnswer};
use crate::lease::WorkEnds;
use crate::peers::paths::{
    ANSWERS, CONFIRMED, FILLS, FORGET, LEASES, NODE, NodeAnswer, Running, SIZES, SizeAnswer, UPSTREAMS,
};
use crate::peers::words::Word;
use crate::peers::{AUDIENCE, Forget, Me, Peers, RELEASE};

/// The server for other nodes.
pub(crate) struct PeerServer {
    pub(crate) me: Me,
    pub(crate) control: Control,
    pub(crate) tokens: Tokens,
    pub(crate) clock: Clock,
    pub(crate) inspector: Inspector,
    pub(crate) fills: Fills,
    pub(crate) peers: Peers,
}

impl Edge for PeerServer {
    const NAME: &'static str = "peer.connection";

    async fn answer(self: Arc<Self>, request: Request<Incoming>, remote: Remote) -> Response<Body> {
        let Some(caller) = self.caller(request.headers()) else {
            debug!(client.address = %remote.address, "a caller without a node's token");
            let mut response = empty(StatusCode::UNAUTHORIZED);
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        };
        debug!(node.id = %caller, "the node `{caller}` asks for {}", request.uri().path());
        match (request.method(), request.uri().path()) {
            (&Method::POST, FORGET) => self.forget(request).await,
            (&Method::GET, NODE) => json(&self.node()),
            (&Method::GET, FILLS) => json(&FillsAnswer { fills: self.inspector.fills() }),
            (&Method::GET, UPSTREAMS) => json(&UpstreamsAnswer { upstreams: self.inspector.upstreams().await }),
            (&Method::GET, path) if path.starts_with(FILLS) => {
                self.fill(request.uri(), caller).unwrap_or_else(|| empty(StatusCode::NOT_FOUND))
            }
            (&Method::GET, path) if path.starts_with(SIZES) => {
                self.size(request.uri()).map_or_else(|| empty(StatusCode::NOT_FOUND), |size| json(&size))
            }
            (&Method::GET, path) if path.starts_with(LEASES) => {
                let work = self.fills.leases().work(&path[LEASES.len()..]);
                work.map_or_else(|| empty(StatusCode::NOT_FOUND), |ends| Response::new(body::stream(beats(ends))))
            }
            (&Method::GET, path) => match path.strip_prefix(ANSWERS).map(|id| self.inspector.answer(id)) {
                Some(Some(answer)) => json(&answer),
                Some(None) | None => empty(StatusCode::NOT_FOUND),
            },
            _ => empty(StatusCode::NOT_FOUND),
        }
    }
}

impl PeerServer {
    /// Forgets records that another node has replaced.
    async fn forget(&self, request: Request<Incoming>) -> Response<Body> {
        let body = Limited::new(request.into_body(), limits::FORGET_BYTES).collect();
        let Ok(Ok(body)) = timeout(limits::FORM, body).await else { return empty(StatusCode::BAD_REQUEST) };
        match serde_json::from_slice::<Forget>(&body.to_bytes()) {
            Ok(forget) => {
                self.peers.forget_here(&forget);
                empty(StatusCode::OK)
            }
            Err(_) => empty(StatusCode::BAD_REQUEST),
        }
    }

    /// The stream of one of this node's fills for another node; `None` if there is no such fill, or if it has too many
    /// followers.
    fn fill(&self, uri: &Uri, follower: ResourceId) -> Option<Response<Body>> {
        let (origin, digest) = uri.path().strip_prefix(FILLS)?.strip_prefix('/')?.split_once('/')?;
        let query: HashMap<_, _> = url::form_urlencoded::parse(uri.query()?.as_bytes()).collect();
        let at = query.get("from")?.parse().ok()?;
        let repository: RepositoryName = query.get("repository")?.parse().ok()?;
        let (origin, digest) = (origin.parse().ok()?, digest.parse().ok()?);
        let promised = self.fills.promises().of(origin, &repository, &digest);
        let landing = self.fills.running(origin, &digest, promised)?;
        let mut response = Response::new(body::stream(landing.tail(&self.fills, at, follower)?));
        if landing.is_confirmed_for(&repository) {
            response.headers_mut().insert(CONFIRMED, HeaderValue::from_static("1"));
        }
        Some(response)
    }

    /// The size of a blob according to the manifests that this node has served; `None` for another question.
    fn size(&self, uri: &Uri) -> Option<SizeAnswer> {
        let (origin, digest) = uri.path().strip_prefix(SIZES)?.split_once('/')?;
        let query: HashMap<_, _> = url::form_urlencoded::parse(uri.query()?.as_bytes()).collect();
        let repository: RepositoryName = query.get("repository")?.parse().ok()?;
        let size_bytes = self.fills.promises().of(origin.parse().ok()?, &repository, &digest.parse().ok()?);
        Some(SizeAnswer { size_bytes })
    }

    /// The node that sends the request.
    fn caller(&self, headers: &HeaderMap) -> Option<ResourceId> {
        let token = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
        let claims = self.tokens.verify_node(AUDIENCE, token, self.clock.now()).ok()?;
        claims.node_id.parse().ok()
    }

    fn node(&self) -> NodeAnswer {
        NodeAnswer {
            id: self.me.id.to_string(),
            boot_id: self.me.boot_id,
            release: RELEASE.to_owned(),
            running: self.control.version().map(|version| Running { epoch: version.epoch, revision: version.revision }),
        }
    }
}

/// Regular signs that some work is under way, until it has ended.
fn beats(ends: WorkEnds) -> impl Stream<Item = Result<Bytes, Cut>> + Send {
    let begun = Some((ends, tokio::time::interval(limits::BEAT)));
    stream::unfold(begun, async |begun| {
        let (mut ends, mut beat) = begun?;
        let (word, more) = tokio::select! {
            _ = ends.changed() => (Word::Ended, None),
            _ = beat.tick() => (Word::Beat, Some((ends, beat))),
        };
        Some((Ok(word.head()), more))
    })
}

fn json(answer: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(answer) {
        Ok(bytes) => {
            let mut response = Response::new(body::full(Bytes::from(bytes)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        // Plain text and numbers can always be written as JSON.
        Err(_) => empty(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_LENGTH, 0.into());
    response
}
