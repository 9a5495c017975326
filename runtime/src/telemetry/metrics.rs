//! Metrics: instruments, and their output for Prometheus.

use std::time::Duration;

use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::{
    Aggregation, Instrument, InstrumentKind, MeterProviderBuilder, SdkMeterProvider, Stream,
};
use prometheus::{Registry, TextEncoder};
use tracing::warn;

use crate::chain;

/// The metrics of a process: instruments are made from meters, and Prometheus reads them all. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    provider: SdkMeterProvider,
    registry: Registry,
}

impl Metrics {
    /// Bounds of every histogram of seconds: from a warm manifest to a large blob.
    const SECONDS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

    /// Metrics of the service called `service`, such as `entrepot-data-plane`, for Prometheus only.
    pub fn new(service: &'static str) -> Self {
        Self::with(Resource::builder().with_service_name(service).build(), |provider| provider)
    }

    /// Metrics of `resource`, for Prometheus and for the readers that `extend` adds.
    pub(super) fn with(resource: Resource, extend: impl FnOnce(MeterProviderBuilder) -> MeterProviderBuilder) -> Self {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .build()
            .expect("a new registry has no collector that the exporter's could collide with");
        let provider =
            SdkMeterProvider::builder().with_reader(exporter).with_resource(resource).with_view(durations_in_seconds);
        Self { provider: extend(provider).build(), registry }
    }

    /// A meter for the part of the program called `name`, such as `entrepot.pull`.
    ///
    /// Durations are histograms with the unit `s`; that unit gives them useful bounds.
    pub fn meter(&self, name: &'static str) -> Meter {
        self.provider.meter(name)
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            warn!("could not render the metrics: {}", chain(&error));
            String::new()
        })
    }

    /// Sends what has not been sent yet. This blocks.
    pub(super) fn shutdown(&self, limit: Duration) -> OTelSdkResult {
        self.provider.shutdown_with_timeout(limit)
    }
}

/// OpenTelemetry's default bounds begin at 5, which is useless for seconds.
fn durations_in_seconds(instrument: &Instrument) -> Option<Stream> {
    // A gauge in seconds, such as an age, stays a gauge.
    if instrument.unit() != "s" || instrument.kind() != InstrumentKind::Histogram {
        return None;
    }
    let bounds = Aggregation::ExplicitBucketHistogram { boundaries: Metrics::SECONDS.to_vec(), record_min_max: false };
    Some(Stream::builder().with_aggregation(bounds).build().expect("the bounds ascend"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::KeyValue;

    #[test]
    fn durations_get_bounds_in_seconds_and_counts_stay_counts() {
        let metrics = Metrics::new("entrepot-test");
        let meter = metrics.meter("entrepot.pull");
        let hit = [KeyValue::new("outcome", "hit")];
        meter.f64_histogram("entrepot.pull.duration").with_unit("s").build().record(0.007, &hit);
        meter.u64_counter("entrepot.pull.count").build().add(3, &hit);

        let text = metrics.render();
        let lines = |part: &str| text.lines().filter(|line| line.contains(part)).collect::<Vec<_>>();
        assert!(lines(r#"le="0.005""#)[0].ends_with(" 0"), "{text}");
        assert!(lines(r#"le="0.01""#)[0].ends_with(" 1"), "{text}");
        assert_eq!(lines("entrepot_pull_duration_seconds_bucket").len(), Metrics::SECONDS.len() + 1, "{text}");
        assert!(lines("entrepot_pull_count_total{")[0].ends_with(" 3"), "{text}");
    }
}
