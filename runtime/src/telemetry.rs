//! Logs and metrics.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::str::FromStr;

use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{Aggregation, Instrument, SdkMeterProvider, Stream};
use prometheus::{Registry, TextEncoder};
use tracing::warn;
use tracing_subscriber::EnvFilter;

use crate::chain;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for programs.
    Json,
}

impl FromStr for LogFormat {
    type Err = LogFormatError;

    fn from_str(text: &str) -> Result<Self, LogFormatError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LogFormatError),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// A text that is not a log format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be `text` or `json`")]
pub struct LogFormatError;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The filter cannot be read.
    #[error("the log filter `{filter}` cannot be read; write for example `info` or `info,entrepot_data_plane=debug`")]
    Filter {
        /// What was given.
        filter: String,
        /// Why it cannot be read.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Something in this process set up logging before.
    #[error("logging is set up already")]
    Twice,
}

/// Sends the logs of this process to standard error, those that `filter` lets through (`info,entrepot_store=debug`).
///
/// # Errors
/// If the filter cannot be read, or logging is set up already.
pub fn init_logs(format: LogFormat, filter: &str) -> Result<(), LogsError> {
    let parsed =
        EnvFilter::try_new(filter).map_err(|source| LogsError::Filter { filter: filter.to_owned(), source })?;
    let logs = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(io::stderr);
    // Colours are for people; whoever reads a file or a journal looks for words.
    let logs = if io::stderr().is_terminal() { logs } else { logs.with_ansi(false) };
    match format {
        LogFormat::Text => logs.try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    }
    .map_err(|_| LogsError::Twice)
}

/// The metrics of a process: instruments are made from meters, and Prometheus reads them all. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    provider: SdkMeterProvider,
    registry: Registry,
}

impl Metrics {
    /// Bounds of every histogram in seconds: from a warm manifest to a large blob.
    const SECONDS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

    /// Metrics of the service that is called `service`, such as `entrepot-data-plane`.
    pub fn new(service: &'static str) -> Self {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .build()
            .expect("a new registry has no collector that the exporter's could collide with");
        let provider = SdkMeterProvider::builder()
            .with_reader(exporter)
            .with_resource(Resource::builder().with_service_name(service).build())
            .with_view(durations_in_seconds)
            .build();
        Self { provider, registry }
    }

    /// A meter for the part of the program that is called `name`, such as `entrepot.pull`.
    ///
    /// Durations are histograms with the unit `s`; they get useful bounds by that.
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
}

/// OpenTelemetry's own bounds begin at 5, which is useless for seconds.
fn durations_in_seconds(instrument: &Instrument) -> Option<Stream> {
    if instrument.unit() != "s" {
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

    #[test]
    fn formats_are_read_as_they_are_written() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!("xml".parse::<LogFormat>(), Err(LogFormatError));
    }

    #[test]
    fn a_bad_filter_is_named() {
        let error = init_logs(LogFormat::Text, "entrepot=loud").unwrap_err();
        assert!(error.to_string().contains("`entrepot=loud`"), "{error}");
    }
}
