//! A proxy in front of a bucket that makes requests fail as a test tells it to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_test_support::Seaweed;
use futures_util::{StreamExt as _, stream};
use http::header::{AUTHORIZATION, HOST, IF_MATCH, IF_NONE_MATCH};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

type Failed = Box<dyn std::error::Error + Send + Sync>;
type Body = BoxBody<Bytes, Failed>;

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The request is executed, and the connection closes without an answer.
    LoseAnswer,
    /// The request is not executed, and gets this answer.
    Answer(StatusCode),
    /// The request is not executed, and the answer is an empty list.
    ListNothing,
    /// The request is executed without its conditions.
    Unconditionally,
    /// The connection breaks after this many bytes of the answer's body.
    CutAfter(usize),
    /// The answer's body stalls after this many bytes.
    StallAfter(usize),
}

/// A proxy in front of a server. It ends when it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

struct Shared {
    target: SocketAddr,
    faults: Mutex<Vec<Planned>>,
    seen: Mutex<Vec<String>>,
}

struct Planned {
    method: Method,
    part_of_url: String,
    fault: Fault,
    times: usize,
}

impl Proxy {
    pub(crate) async fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { target, faults: Mutex::default(), seen: Mutex::default() });
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Arc::clone(&shared)));
        Self { address, shared, _serving: serving }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes the next `times` requests fail that have this method and whose URL contains `part_of_url`.
    pub(crate) fn plan(&self, method: Method, part_of_url: &str, fault: Fault, times: usize) {
        let planned = Planned { method, part_of_url: part_of_url.to_owned(), fault, times };
        self.shared.faults.lock().push(planned);
    }

    /// The requests so far whose URL contains `part_of_url`: method, URL and range.
    pub(crate) fn seen(&self, part_of_url: &str) -> Vec<String> {
        let seen = self.shared.seen.lock();
        seen.iter().filter(|request| request.contains(part_of_url)).cloned().collect()
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(|request| pass(Arc::clone(&shared), request));
            // Broken connections are the purpose of this proxy.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn pass(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Failed> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let fault = shared.fault(&parts);
    if let Some(Fault::Answer(status)) = fault {
        const TEXT: &[u8] = b"<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>planned</Message></Error>";
        let mut response = Response::new(whole(Bytes::from_static(TEXT)));
        *response.status_mut() = status;
        return Ok(response);
    }
    if let Some(Fault::ListNothing) = fault {
        const TEXT: &[u8] =
            b"<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
        return Ok(Response::new(whole(Bytes::from_static(TEXT))));
    }
    if let Some(Fault::Unconditionally) = fault {
        parts = without_conditions(parts, &body);
    }
    let (head, body) = forward(shared.target, Request::from_parts(parts, Full::new(body))).await?.into_parts();
    let body = match fault {
        None | Some(Fault::Answer(_) | Fault::ListNothing | Fault::Unconditionally) => body,
        Some(Fault::LoseAnswer) => return Err("the answer is lost".into()),
        Some(Fault::CutAfter(size)) => {
            let kept = body.collect().await?.to_bytes().slice(..size);
            let cut = stream::iter([Ok(Frame::data(kept)), Err("the connection breaks".into())]);
            // The bytes written so far must be sent before the break.
            let cut = cut.then(async |frame| {
                tokio::task::yield_now().await;
                frame
            });
            BoxBody::new(StreamBody::new(Box::pin(cut)))
        }
        Some(Fault::StallAfter(size)) => {
            let kept = body.collect().await?.to_bytes().slice(..size);
            BoxBody::new(StreamBody::new(stream::iter([Ok(Frame::data(kept))]).chain(stream::pending())))
        }
    };
    Ok(Response::from_parts(head, body))
}

impl Shared {
    fn fault(&self, request: &Parts) -> Option<Fault> {
        let range = request.headers.get(http::header::RANGE).map(|range| range.to_str().unwrap()).unwrap_or_default();
        self.seen.lock().push(format!("{} {} {range}", request.method, request.uri).trim_end().to_owned());
        let mut faults = self.faults.lock();
        let url = request.uri.to_string();
        let planned = faults.iter_mut().find(|planned| {
            planned.times > 0 && planned.method == request.method && url.contains(&planned.part_of_url)
        })?;
        planned.times -= 1;
        Some(planned.fault)
    }
}

/// The same request without its conditions. They were part of the signature, so it is signed again.
fn without_conditions(mut parts: Parts, body: &Bytes) -> Parts {
    for header in [IF_MATCH, IF_NONE_MATCH, AUTHORIZATION] {
        parts.headers.remove(header);
    }
    let (host, uri) = (parts.headers.remove(HOST).unwrap(), parts.uri.clone());
    parts.uri = format!("http://{}{uri}", host.to_str().unwrap()).parse().unwrap();
    let mut request = Request::from_parts(parts, body.clone().into());
    let credential = AwsCredential {
        key_id: Seaweed::ACCESS_KEY_ID.to_owned(),
        secret_key: Seaweed::SECRET_ACCESS_KEY.to_owned(),
        token: None,
    };
    AwsAuthorizer::new(&credential, "s3", Seaweed::REGION).try_authorize(&mut request, None).unwrap();
    let mut parts = request.into_parts().0;
    parts.uri = uri;
    parts.headers.insert(HOST, host);
    parts
}

async fn forward(target: SocketAddr, request: Request<Full<Bytes>>) -> Result<Response<Body>, Failed> {
    let stream = TcpStream::connect(target).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut connecting = JoinSet::new();
    connecting.spawn(connection);
    let response = sender.send_request(request).await?;
    // The connection lives as long as the body.
    Ok(response.map(|body| {
        let body = body.map_frame(move |frame| {
            let _keep = &connecting;
            frame
        });
        body.map_err(Into::into).boxed()
    }))
}

/// A server that is not a store: it answers every request with `answer`, and keeps the requests.
pub(crate) struct Stranger {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Parts>>>,
    _serving: JoinSet<()>,
}

impl Stranger {
    pub(crate) async fn answering(answer: fn(&Method) -> Response<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut serving = JoinSet::new();
        let kept = Arc::clone(&seen);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&kept);
                connections.spawn(async move {
                    let service = service_fn(async |request: Request<Incoming>| {
                        let (parts, body) = request.into_parts();
                        let _ = body.collect().await;
                        let response = answer(&parts.method).map(|text| whole(text.into()));
                        seen.lock().push(parts);
                        Ok::<_, Infallible>(response)
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, seen, _serving: serving }
    }

    /// A server that accepts everything and forgets it, as if it did not know conditions.
    pub(crate) async fn careless() -> Self {
        Self::answering(|method| {
            let response = Response::builder();
            let response = match *method {
                // Each service has another name for an object's version.
                Method::PUT => response.status(201).header("etag", "\"1\"").header("x-goog-generation", "1"),
                Method::DELETE => response.status(204),
                _ => response.status(404),
            };
            response.body("").unwrap()
        })
        .await
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests with this method.
    pub(crate) fn seen(&self, method: Method) -> Vec<Parts> {
        self.seen.lock().iter().filter(|request| request.method == method).cloned().collect()
    }
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}
