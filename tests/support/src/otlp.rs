//! A collector of telemetry: it receives OTLP over gRPC, and lets tests examine it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// A collector on this machine. Dropping it stops it.
pub struct OtlpCollector {
    address: SocketAddr,
    seen: Seen,
    _server: Mutex<JoinSet<()>>,
}

/// A received span.
#[derive(Clone, Debug)]
pub struct SeenSpan {
    /// The service that sent it.
    pub service: String,
    pub name: String,
    /// Its trace, in hex.
    pub trace_id: String,
    /// Its id, in hex.
    pub span_id: String,
    /// Its parent's id, in hex; empty for none.
    pub parent_id: String,
    /// Its attributes, as text.
    pub attributes: BTreeMap<String, String>,
}

/// A received metric.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenMetric {
    /// The service that sent it.
    pub service: String,
    pub name: String,
    pub unit: String,
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Everything>>);

#[derive(Default)]
struct Everything {
    spans: Vec<SeenSpan>,
    metrics: Vec<SeenMetric>,
    /// Everything received, including headers, as bytes in which texts can be found.
    raw: Vec<u8>,
}

impl OtlpCollector {
    /// Starts one at a free port of 127.0.0.1.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let seen = Seen::default();
        let server = Server::builder()
            .add_service(TraceServiceServer::new(seen.clone()).accept_compressed(CompressionEncoding::Gzip))
            .add_service(MetricsServiceServer::new(seen.clone()).accept_compressed(CompressionEncoding::Gzip))
            .add_service(LogsServiceServer::new(seen.clone()).accept_compressed(CompressionEncoding::Gzip))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { server.await.expect("the collector serves") });
        Self { address, seen, _server: Mutex::new(tasks) }
    }

    /// Its URL, such as `http://127.0.0.1:40001`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans received so far.
    pub fn spans(&self) -> Vec<SeenSpan> {
        self.seen.lock().spans.clone()
    }

    /// The spans of a trace, whose id is given in hex.
    pub fn trace(&self, trace_id: &str) -> Vec<SeenSpan> {
        self.spans().into_iter().filter(|span| span.trace_id == trace_id).collect()
    }

    /// All metrics received so far, each once.
    pub fn metrics(&self) -> Vec<SeenMetric> {
        let mut metrics = self.seen.lock().metrics.clone();
        metrics.sort();
        metrics.dedup();
        metrics
    }

    /// Everything received so far, to be searched.
    pub fn raw(&self) -> Vec<u8> {
        self.seen.lock().raw.clone()
    }
}

impl std::fmt::Debug for OtlpCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OtlpCollector").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Everything> {
        self.0.lock()
    }

    /// Keeps a request, and returns everything so far, to be added to.
    fn keep(&self, headers: &MetadataMap, message: &[u8]) -> MutexGuard<'_, Everything> {
        let mut seen = self.lock();
        seen.raw.extend_from_slice(format!("{headers:?}\n").as_bytes());
        seen.raw.extend_from_slice(message);
        seen
    }
}

#[tonic::async_trait]
impl TraceService for Seen {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (headers, _, message) = request.into_parts();
        let mut seen = self.keep(&headers, &message.encode_to_vec());
        for of_resource in message.resource_spans {
            let service = service_of(of_resource.resource.as_ref());
            for span in of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans) {
                seen.spans.push(SeenSpan {
                    service: service.clone(),
                    name: span.name,
                    trace_id: hex::encode(span.trace_id),
                    span_id: hex::encode(span.span_id),
                    parent_id: hex::encode(span.parent_span_id),
                    attributes: span.attributes.iter().map(|pair| (pair.key.clone(), text_of(pair))).collect(),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Seen {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let (headers, _, message) = request.into_parts();
        let mut seen = self.keep(&headers, &message.encode_to_vec());
        for of_resource in message.resource_metrics {
            let service = service_of(of_resource.resource.as_ref());
            for metric in of_resource.scope_metrics.into_iter().flat_map(|of_scope| of_scope.metrics) {
                seen.metrics.push(SeenMetric { service: service.clone(), name: metric.name, unit: metric.unit });
            }
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Seen {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let (headers, _, message) = request.into_parts();
        drop(self.keep(&headers, &message.encode_to_vec()));
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

/// The `service.name` of a resource.
fn service_of(resource: Option<&Resource>) -> String {
    let attributes = resource.map(|resource| &*resource.attributes).unwrap_or_default();
    attributes.iter().find(|pair| pair.key == "service.name").map(text_of).unwrap_or_default()
}

fn text_of(pair: &KeyValue) -> String {
    match pair.value.as_ref().and_then(|AnyValue { value }| value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(answer)) => answer.to_string(),
        other => format!("{other:?}"),
    }
}
