//! Sends traces and metrics by OTLP, without ever delaying the work.

use std::fmt;
use std::time::{Duration, Instant};

use http::HeaderMap;
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{
    ExporterBuildError, MetricExporter, SpanExporter as OtlpSpanExporter, WithExportConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, Temporality};
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter};
use parking_lot::Mutex;
use tracing::{info, warn};

use super::Otlp;

/// How long the receiver may take for one batch, including retries.
const EXPORT_LIMIT: Duration = Duration::from_secs(10);
/// How many spans wait for the receiver; further ones are dropped.
const QUEUE: usize = 4096;
const BATCH: usize = 512;
/// How long a span waits for others to be sent with it.
const DELAY: Duration = Duration::from_secs(2);
/// How often a log line repeats that the receiver is away.
const REMINDER: Duration = Duration::from_secs(300);

/// Sends metrics at intervals, from its own thread.
pub(super) fn metrics(otlp: &Otlp) -> Result<PeriodicReader<Watched<MetricExporter>>, ExporterBuildError> {
    let exporter = prepare(MetricExporter::builder().with_tonic(), otlp).build()?;
    Ok(PeriodicReader::builder(Watched::new("metrics", otlp, exporter)).with_interval(otlp.interval).build())
}

/// Sends spans in batches, from its own thread.
pub(super) fn traces(otlp: &Otlp) -> Result<BatchSpanProcessor, ExporterBuildError> {
    let exporter = prepare(OtlpSpanExporter::builder().with_tonic(), otlp).build()?;
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(DELAY)
        .build();
    let watched = Watched::new("traces", otlp, exporter);
    Ok(BatchSpanProcessor::builder(watched).with_batch_config(config).build())
}

fn prepare<B: WithExportConfig + WithTonicConfig>(builder: B, otlp: &Otlp) -> B {
    let headers = MetadataMap::from_headers(HeaderMap::from_iter(otlp.headers.iter().cloned()));
    let builder = builder.with_endpoint(otlp.endpoint.as_str()).with_timeout(EXPORT_LIMIT).with_metadata(headers);
    if otlp.endpoint.scheme() == "https" {
        builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots())
    } else {
        builder
    }
}

/// An exporter that logs when its receiver goes away and when it returns. The library would log every failure.
pub(super) struct Watched<E> {
    what: &'static str,
    endpoint: String,
    exporter: E,
    away: Mutex<Option<Away>>,
}

/// Since when the receiver has accepted nothing, and when that was last logged.
#[derive(Clone, Copy)]
struct Away {
    since: Instant,
    said: Instant,
}

impl<E> Watched<E> {
    fn new(what: &'static str, otlp: &Otlp, exporter: E) -> Self {
        Self { what, endpoint: otlp.endpoint.to_string(), exporter, away: Mutex::new(None) }
    }

    fn observe(&self, outcome: OTelSdkResult) -> OTelSdkResult {
        let mut away = self.away.lock();
        let now = Instant::now();
        match (&outcome, *away) {
            (Ok(()), None) => {}
            (Ok(()), Some(before)) => {
                info!("{} can be sent to {} again, after {:?}", self.what, self.endpoint, before.since.elapsed());
                *away = None;
            }
            (Err(_), Some(before)) if before.said.elapsed() < REMINDER => {}
            (Err(error), before) => {
                warn!(error = %error, "{} cannot be sent to {}, and are dropped", self.what, self.endpoint);
                *away = Some(Away { since: before.map_or(now, |before| before.since), said: now });
            }
        }
        outcome
    }
}

impl<E> fmt::Debug for Watched<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("what", &self.what).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl SpanExporter for Watched<OtlpSpanExporter> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.observe(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl PushMetricExporter for Watched<MetricExporter> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.observe(self.exporter.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::error::OTelSdkError;

    use super::super::tests::Lines;
    use super::*;
    use crate::LogFormat;

    #[test]
    fn that_a_receiver_is_away_is_said_once_and_that_it_is_back_too() {
        let otlp = Otlp {
            endpoint: "http://127.0.0.1:4317".parse().unwrap(),
            interval: Duration::from_secs(30),
            trace_ratio: 1.0,
            headers: Vec::new(),
        };
        let watched = Watched::new("traces", &otlp, ());
        let (lines, away) = (Lines::default(), || Err(OTelSdkError::InternalFailure("unavailable".to_owned())));
        let writer = lines.clone();
        let subscriber = super::super::logs::subscriber(LogFormat::Text, "info", None, move || writer.clone()).unwrap();
        tracing::dispatcher::with_default(&subscriber, || {
            for outcome in [Ok(()), away(), away(), away(), Ok(()), Ok(()), away()] {
                let _ = watched.observe(outcome);
            }
        });
        let text = lines.text();
        let said = text.lines().map(|line| line.contains("cannot be sent")).collect::<Vec<_>>();
        assert_eq!(said, [true, false, true], "{text}");
        assert!(text.contains("unavailable") && text.contains("http://127.0.0.1:4317"), "{text}");
    }
}
