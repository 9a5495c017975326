//! A way to a bucket on which things go wrong as a test says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

type Failed = Box<dyn std::error::Error + Send + Sync>;
type Body = BoxBody<Bytes, Failed>;

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It is done, and the connection closes without an answer.
    LoseAnswer,
    /// It is not done, and this is the answer.
    Answer(StatusCode),
    /// The connection breaks after so many bytes of the answer's body.
    CutAfter(usize),
    /// Nothing more comes after so many bytes of the answer's body.
    StallAfter(usize),
}

/// Stands before a server. It ends when it is dropped.
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

    /// The next `times` requests with this method, whose URL has `part_of_url` in it, go wrong.
    pub(crate) fn plan(&self, method: Method, part_of_url: &str, fault: Fault, times: usize) {
        let planned = Planned { method, part_of_url: part_of_url.to_owned(), fault, times };
        self.shared.faults.lock().unwrap().push(planned);
    }

    /// The requests so far: method, URL and range.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().unwrap().clone()
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(|request| pass(Arc::clone(&shared), request));
            // That it breaks is what it is for.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn pass(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Failed> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let fault = shared.fault(&parts);
    if let Some(Fault::Answer(status)) = fault {
        let mut response = Response::new(whole(Bytes::from_static(b"planned")));
        *response.status_mut() = status;
        return Ok(response);
    }
    let (head, body) = forward(shared.target, Request::from_parts(parts, Full::new(body))).await?.into_parts();
    let body = match fault {
        None | Some(Fault::Answer(_)) => body.map_err(Into::into).boxed(),
        Some(Fault::LoseAnswer) => return Err("the answer is lost".into()),
        Some(Fault::CutAfter(size)) => {
            let kept = body.collect().await?.to_bytes().slice(..size);
            let cut = stream::iter([Ok(Frame::data(kept)), Err("the connection breaks".into())]);
            // What was written so far must get out before the break.
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
        self.seen.lock().unwrap().push(format!("{} {} {range}", request.method, request.uri).trim_end().to_owned());
        let mut faults = self.faults.lock().unwrap();
        let url = request.uri.to_string();
        let planned = faults.iter_mut().find(|planned| {
            planned.times > 0 && planned.method == request.method && url.contains(&planned.part_of_url)
        })?;
        planned.times -= 1;
        Some(planned.fault)
    }
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

/// A server that takes everything and forgets it, as if it did not know conditions.
pub(crate) async fn careless() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let service = service_fn(async |request: Request<Incoming>| {
                    let method = request.method().clone();
                    let _ = request.into_body().collect().await;
                    let response = Response::builder();
                    let response = match method {
                        Method::PUT => response.header("etag", "\"1\""),
                        Method::DELETE => response.status(204),
                        _ => response.status(404),
                    };
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::new())).unwrap())
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, serving)
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}
