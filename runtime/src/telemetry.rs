//! A program's telemetry: logs on standard error, metrics for Prometheus, and metrics and traces for an OTLP receiver
//! (OpenTelemetry's protocol), if there is one.
//!
//! Telemetry never delays the work. If a receiver does not accept data, it is kept in a bounded queue and then dropped,
//! and a log line says so from time to time.

mod logs;
mod metrics;
mod otlp;
mod plain;
mod propagation;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::warn;
use tracing_subscriber::filter::ParseError;
use url::Url;

pub use logs::{LogFormat, LogFormatError, check_filter};
pub use metrics::Metrics;
pub use plain::shortened;
pub use propagation::{inject, parent_of, set_parent};

/// What a program reports, and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the program is called, such as `entrepot-data-plane`.
    pub service: &'static str,
    /// Which of several such programs this is, such as the node's id.
    pub instance: String,
    /// The form of log lines.
    pub log_format: LogFormat,
    /// What is logged, such as `info,entrepot_store=debug`.
    pub log_filter: String,
    /// Where traces and metrics are sent, if anywhere.
    pub otlp: Option<Otlp>,
}

/// A receiver of OTLP over gRPC.
#[derive(Clone)]
pub struct Otlp {
    /// Its address, such as `http://127.0.0.1:4317`.
    pub endpoint: Url,
    /// How often metrics are sent.
    pub interval: Duration,
    /// The share of traces to record, from 0 to 1, among those whose callers have not decided.
    pub trace_ratio: f64,
    /// Headers sent with each request; they may contain credentials.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl fmt::Debug for Otlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Otlp").field("endpoint", &self.endpoint.as_str()).finish_non_exhaustive()
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log filter cannot be parsed.
    #[error("the log filter `{filter}` cannot be read; write for example `info` or `info,entrepot_data_plane=debug`")]
    Filter { filter: String, source: ParseError },
    /// Something in this process set up logging before.
    #[error("logging is set up already")]
    Twice,
    /// The receiver's address or its headers cannot be used.
    #[error("traces and metrics cannot be sent to {endpoint}")]
    Otlp { endpoint: Url, source: ExporterBuildError },
}

/// The logs, traces and metrics of a process.
#[derive(Debug)]
pub struct Telemetry {
    metrics: Metrics,
    /// Where spans go, if anybody uses them.
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Sets everything up for the whole process. With a receiver, this must be called within Tokio.
    ///
    /// # Errors
    /// If something in the configuration cannot be used, or logging is set up already. An absent receiver is not an
    /// error.
    pub fn init(config: Config) -> Result<Self, TelemetryError> {
        let (telemetry, subscriber) = Self::build(&config)?;
        logs::install(subscriber)?;
        Ok(telemetry)
    }

    /// As [`Telemetry::init`], but without logs.
    #[cfg(test)]
    pub(crate) fn unheard(config: &Config) -> Result<Self, TelemetryError> {
        Self::build(config).map(|(telemetry, _)| telemetry)
    }

    /// Builds everything, without installing the subscriber.
    fn build(config: &Config) -> Result<(Self, tracing::Dispatch), TelemetryError> {
        let resource = resource(config);
        let failed = |otlp: &Otlp, source| TelemetryError::Otlp { endpoint: otlp.endpoint.clone(), source };
        let metrics = match &config.otlp {
            None => Metrics::with(resource.clone(), |provider| provider),
            Some(otlp) => {
                let reader = otlp::metrics(otlp).map_err(|source| failed(otlp, source))?;
                Metrics::with(resource.clone(), |provider| provider.with_reader(reader))
            }
        };
        let traces = match &config.otlp {
            // Nobody uses spans, and log lines for people do not name them.
            None if config.log_format == LogFormat::Text => None,
            // Spans are only needed for the ids in log lines.
            None => Some(traces(resource, Sampler::AlwaysOff).build()),
            Some(otlp) => {
                let processor = otlp::traces(otlp).map_err(|source| failed(otlp, source))?;
                let sampler = Sampler::TraceIdRatioBased(otlp.trace_ratio);
                Some(traces(resource, sampler).with_span_processor(processor).build())
            }
        };
        let tracer = traces.as_ref().map(|provider| provider.tracer("entrepot"));
        let subscriber = logs::subscriber(config.log_format, &config.log_filter, tracer, std::io::stderr)?;
        Ok((Self { metrics, traces }, subscriber))
    }

    /// The metrics, from which instruments are made.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Sends what is still waiting, and ends. If the receiver is away, this takes at most `limit`.
    pub async fn shutdown(self, limit: Duration) {
        let (done, ended) = tokio::sync::oneshot::channel();
        // A separate thread, because this blocks, and Tokio would wait for one of its own threads at its end.
        let flush = std::thread::Builder::new().name("telemetry.flush".to_owned()).spawn(move || {
            let traces = self.traces.map(|traces| traces.shutdown_with_timeout(limit));
            let metrics = self.metrics.shutdown(limit);
            let _ = done.send(traces.is_none_or(|flushed| flushed.is_ok()) && metrics.is_ok());
        });
        let flushed = match flush {
            Ok(_) => tokio::time::timeout(limit, ended).await.is_ok_and(|flushed| flushed == Ok(true)),
            Err(_) => false,
        };
        if !flushed {
            warn!("the last traces and metrics could not be sent within {limit:?}");
        }
    }
}

/// The caller decides whether a trace is recorded; if it does not say, `root` decides.
fn traces(resource: Resource, root: Sampler) -> opentelemetry_sdk::trace::TracerProviderBuilder {
    SdkTracerProvider::builder().with_resource(resource).with_sampler(Sampler::ParentBased(Box::new(root)))
}

fn resource(config: &Config) -> Resource {
    Resource::builder()
        .with_service_name(config.service)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", config.instance.clone()))
        .build()
}
