//! What every program needs: telemetry, the listener for operators, and how it ends.

use entrepot_runtime::config::{Reader, Reported, Section};
use entrepot_runtime::{Drain, LogFormat};

use entrepot_runtime::telemetry::{self, Otlp};
use entrepot_runtime::tls::Alpn;
use http::{HeaderName, HeaderValue};
use url::Url;

use crate::{ListenerSettings, secret};

/// These libraries are quiet because the planes report their failures in their own words.
const LOG_FILTER: &str = "info,deadpool=error,refinery_core=off,tokio_postgres=warn";

/// `[operations]`: where probes and Prometheus connect.
#[derive(Clone, Debug)]
pub struct OperationsSettings {
    /// Where it listens.
    pub listener: ListenerSettings,
}

impl OperationsSettings {
    /// Reads the section.
    ///
    /// # Errors
    /// If something in it is wrong; the reader keeps the mistakes.
    pub fn read(reader: &mut Reader) -> Result<Self, Reported> {
        let mut section = reader.section("operations");
        Ok(Self { listener: ListenerSettings::read(&mut section, "127.0.0.1:5002", Alpn::Http1)? })
    }
}

/// `[telemetry]`: logs, traces, metrics.
#[derive(Clone, Debug)]
pub struct TelemetrySettings {
    /// The form of log lines.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_filter: String,
    /// Where traces and metrics are sent, if anywhere.
    pub otlp: Option<Otlp>,
}

impl TelemetrySettings {
    /// Reads the section.
    ///
    /// # Errors
    /// If something in it is wrong; the reader keeps the mistakes.
    pub fn read(reader: &mut Reader) -> Result<Self, Reported> {
        let mut section = reader.section("telemetry");
        let log_format = section.get("log_format", "text");
        let log_filter = log_filter(&mut section);
        let otlp = otlp(&mut section);
        Ok(Self { log_format: log_format?, log_filter: log_filter?, otlp: otlp? })
    }

    /// The telemetry of the program called `service`; `instance` tells several of them apart.
    pub fn config(&self, service: &'static str, instance: impl Into<String>) -> telemetry::Config {
        telemetry::Config {
            service,
            instance: instance.into(),
            log_format: self.log_format,
            log_filter: self.log_filter.clone(),
            otlp: self.otlp.clone(),
        }
    }
}

fn log_filter(section: &mut Section<'_>) -> Result<String, Reported> {
    let filter = section.get::<String>("log_filter", LOG_FILTER)?;
    match telemetry::check_filter(&filter) {
        Ok(()) => Ok(filter),
        Err(error) => Err(section.problem("log_filter", error.to_string())),
    }
}

fn otlp(section: &mut Section<'_>) -> Result<Option<Otlp>, Reported> {
    let endpoint = otlp_endpoint(section);
    let interval = section.get("otlp_interval", "30s");
    let trace_ratio = section.get::<f64>("trace_ratio", "1.0").and_then(|ratio| {
        if (0.0..=1.0).contains(&ratio) {
            Ok(ratio)
        } else {
            Err(section.problem("trace_ratio", "must be a number from 0 to 1"))
        }
    });
    let headers = otlp_headers(section);
    let (interval, trace_ratio, headers) = (interval?, trace_ratio?, headers?);
    Ok(endpoint?.map(|endpoint| Otlp { endpoint, interval, trace_ratio, headers }))
}

fn otlp_endpoint(section: &mut Section<'_>) -> Result<Option<Url>, Reported> {
    const KEY: &str = "otlp_endpoint";
    let Some(url) = section.optional::<Url>(KEY)? else { return Ok(None) };
    let is_bare = url.path() == "/" && url.username().is_empty() && url.password().is_none();
    if is_bare && url.has_host() && matches!(url.scheme(), "http" | "https") {
        Ok(Some(url))
    } else {
        Err(section.problem(KEY, "must be scheme, host and port of a gRPC receiver, such as `http://127.0.0.1:4317`"))
    }
}

/// `name=value` pairs separated by commas, as in OpenTelemetry's own variable.
fn otlp_headers(section: &mut Section<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, Reported> {
    const KEY: &str = "otlp_headers";
    let Some(text) = secret(section, KEY)? else { return Ok(Vec::new()) };
    let pairs = text.expose().split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let read = pairs.map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let mut value = HeaderValue::from_str(value.trim()).ok()?;
        value.set_sensitive(true);
        Some((name.trim().parse().ok()?, value))
    });
    read.collect::<Option<Vec<_>>>()
        .ok_or_else(|| section.problem(KEY, "must be `name=value`, and a comma between several"))
}

/// `[drain]`: how a program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainSettings {
    /// The time limits.
    pub drain: Drain,
}

impl DrainSettings {
    /// Reads the section.
    ///
    /// # Errors
    /// If something in it is wrong; the reader keeps the mistakes.
    pub fn read(reader: &mut Reader) -> Result<Self, Reported> {
        let mut section = reader.section("drain");
        let (notice, limit) = (section.get("notice", "15s"), section.get("limit", "300s"));
        Ok(Self { drain: Drain { notice: notice?, limit: limit? } })
    }
}
