//! A span and a measurement for every call, by OpenTelemetry's conventions for gRPC.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use entrepot_proto::DESCRIPTORS;
use entrepot_runtime::listen::Asking;
use entrepot_runtime::telemetry;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field, info_span};

use super::incoming::Client;

/// The name of a method that is not ours. Invented names would be without number.
const OTHER: &str = "_OTHER";

/// Observes calls.
#[derive(Clone)]
pub(super) struct Observe {
    calls: Histogram<f64>,
    /// The known methods, such as `entrepot.v1.Rules/ListRules`.
    methods: Arc<HashSet<String>>,
}

/// A service whose calls are observed.
#[derive(Clone)]
pub(super) struct Observed<S> {
    observe: Observe,
    services: S,
}

/// A call that is under way.
struct Call {
    calls: Histogram<f64>,
    method: String,
    begun: Instant,
    /// The result so far. If the caller leaves before the end, there is no result.
    code: Code,
    span: Span,
    /// Marks the connection as busy.
    _asking: Option<Asking>,
}

impl Observe {
    pub(super) fn new(meter: &Meter) -> Self {
        let calls = meter.f64_histogram("rpc.server.call.duration").with_unit("s");
        let calls = calls.with_description("Calls, from their beginning to the end of their answer").build();
        let methods = [DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET].into_iter().flat_map(methods).collect();
        Self { calls, methods: Arc::new(methods) }
    }

    fn begin<B>(&self, request: &Request<B>) -> Call {
        let (path, headers) = (request.uri().path(), request.headers());
        let method = path.trim_start_matches('/');
        let method = if self.methods.contains(method) { method } else { OTHER }.to_owned();
        let span = info_span!(
            "rpc",
            otel.name = method,
            otel.kind = "server",
            otel.status_code = field::Empty,
            rpc.system.name = "grpc",
            rpc.method = method,
            rpc.response.status_code = field::Empty,
        );
        telemetry::set_parent(&span, headers);
        let _asking = request.extensions().get::<Client>().map(|client| client.visit.ask());
        Call { calls: self.calls.clone(), method, begun: Instant::now(), code: Code::Cancelled, span, _asking }
    }
}

/// The methods of all services in compiled .proto files.
fn methods(descriptors: &[u8]) -> Vec<String> {
    let files = FileDescriptorSet::decode(descriptors).map(|set| set.file).unwrap_or_default();
    let of_file = |file: &prost_types::FileDescriptorProto| {
        let package = file.package().to_owned();
        let services = file.service.iter().map(move |service| (format!("{package}.{}", service.name()), service));
        services
            .flat_map(|(service, descriptor)| {
                descriptor.method.iter().map(move |method| format!("{service}/{}", method.name()))
            })
            .collect::<Vec<_>>()
    };
    files.iter().flat_map(of_file).collect()
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = name(self.code);
        self.span.record("rpc.response.status_code", code);
        let mut attributes = vec![
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", std::mem::take(&mut self.method)),
            KeyValue::new("rpc.response.status_code", code),
        ];
        if is_our_fault(self.code) {
            self.span.record("otel.status_code", "ERROR");
            attributes.push(KeyValue::new("error.type", code));
        }
        self.calls.record(self.begun.elapsed().as_secs_f64(), &attributes);
    }
}

impl Call {
    /// Reads the call's result from headers or trailers.
    fn hear(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.code = status.code();
        }
    }
}

/// The codes that count as a server's errors by OpenTelemetry's conventions.
fn is_our_fault(code: Code) -> bool {
    match code {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unauthenticated => false,
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, services: S) -> Observed<S> {
        Observed { observe: self.clone(), services }
    }
}

impl<S, B> Service<Request<B>> for Observed<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut call = self.observe.begin(&request);
        let span = call.span.clone();
        let answering = span.in_scope(|| self.services.call(request));
        let answer = async move {
            let response = answering.await?;
            call.hear(response.headers());
            Ok(response.map(|body| Body::new(Answer { body, call })))
        };
        Box::pin(answer.instrument(span))
    }
}

/// The body of an answer. Its end shows how the call ended.
struct Answer {
    body: Body,
    call: Call,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let _entered = this.call.span.clone().entered();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            this.call.hear(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_ours_is_known_and_no_other() {
        let known: HashSet<String> = methods(DESCRIPTORS).into_iter().collect();
        assert!(known.contains("entrepot.v1.Rules/ListRules"));
        assert!(known.contains("entrepot.node.v1.Nodes/WatchSnapshot"));
        assert!(!known.contains("entrepot.v1.Rules/Nothing"));
    }
}
