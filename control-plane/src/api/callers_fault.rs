//! A message that cannot be read is its sender's fault, also where a library reads it.

use std::task::{Context, Poll};

use futures_util::TryFutureExt as _;
use futures_util::future::MapOk;
use http::{HeaderValue, Request, Response};
use tonic::Code;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

/// The headers of an answer without a message: its code, and the error's text in percent encoding.
const CODE: &str = "grpc-status";
const TEXT: &str = "grpc-message";
/// How prost begins its errors.
const UNREADABLE: &[u8] = b"failed%20to%20decode";

/// A service that answers INVALID_ARGUMENT to what it cannot read, as ours do by their codec; tonic's own answer is
/// INTERNAL.
#[derive(Clone, Debug)]
pub(super) struct CallersFault<S>(pub(super) S);

impl<S: NamedService> NamedService for CallersFault<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<Request<Body>, Response = Response<Body>>> Service<Request<Body>> for CallersFault<S> {
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = MapOk<S::Future, fn(Response<Body>) -> Response<Body>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request).map_ok(judge)
    }
}

fn judge(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    let is_unreadable = headers.get(TEXT).is_some_and(|text| text.as_bytes().starts_with(UNREADABLE));
    if is_unreadable && headers.get(CODE).is_some_and(|code| code == (Code::Internal as i32).to_string().as_str()) {
        headers.insert(CODE, HeaderValue::from(Code::InvalidArgument as i32));
    }
    response
}
