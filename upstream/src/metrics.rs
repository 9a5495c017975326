//! A span and a measurement for each request to an upstream, by OpenTelemetry's conventions for clients.

use std::time::Instant;

use entrepot_domain::ResourceId;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use reqwest::{Method, Response};
use tracing::{Span, field, info_span};

use crate::error::{Error, Trouble};

/// Measures requests. Clones share the instruments.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    duration: Option<Histogram<f64>>,
    disagreements: Option<Counter<u64>>,
}

/// A request that is under way.
pub(crate) struct Exchange {
    duration: Option<Histogram<f64>>,
    span: Span,
    method: &'static str,
    host: String,
    port: u16,
    began: Instant,
    end: End,
}

/// How a request ended.
#[derive(Clone, Copy)]
enum End {
    Status(u16),
    Error(&'static str),
}

impl RequestMetrics {
    /// Measures with instruments of `meter`.
    pub fn new(meter: &Meter) -> Self {
        let duration = meter
            .f64_histogram("http.client.request.duration")
            .with_unit("s")
            .with_description("How long requests to upstreams take until the head of their answer is there.")
            .build();
        let disagreements = meter
            .u64_counter("entrepot.upstream.disagreements")
            .with_description("How often a fallback endpoint said something else than what was known.")
            .build();
        Self { duration: Some(duration), disagreements: Some(disagreements) }
    }

    /// Measures nothing.
    pub fn none() -> Self {
        Self { duration: None, disagreements: None }
    }

    /// Counts a fallback that is not trusted.
    pub(crate) fn count_disagreement(&self, upstream: &ResourceId) {
        if let Some(disagreements) = &self.disagreements {
            disagreements.add(1, &[KeyValue::new("upstream.id", upstream.to_string())]);
        }
    }

    /// Begins to measure a request. Its path is left out, since it may contain the name of a private image, or a
    /// signature.
    pub(crate) fn begin(&self, method: &Method, host: &str, port: u16) -> Exchange {
        let method = if *method == Method::HEAD {
            "HEAD"
        } else if *method == Method::POST {
            "POST"
        } else {
            "GET"
        };
        let span = info_span!(
            "upstream.request", otel.kind = "client", http.request.method = method, server.address = host,
            server.port = port, http.response.status_code = field::Empty, error.type = field::Empty,
        );
        Exchange {
            duration: self.duration.clone(),
            span,
            method,
            host: host.to_owned(),
            port,
            began: Instant::now(),
            // If nothing else is recorded, the caller has given up waiting.
            end: End::Error("cancelled"),
        }
    }
}

impl Exchange {
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Ends the measurement: the head of the answer has arrived, or will not arrive.
    pub(crate) fn end(mut self, result: &Result<Response, Error>) {
        self.end = match result {
            Ok(response) => End::Status(response.status().as_u16()),
            Err(error) => End::Error(error_type(error)),
        };
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let end = match self.end {
            End::Status(status) => {
                self.span.record("http.response.status_code", status);
                KeyValue::new("http.response.status_code", i64::from(status))
            }
            End::Error(kind) => {
                self.span.record("error.type", kind);
                KeyValue::new("error.type", kind)
            }
        };
        if let Some(duration) = &self.duration {
            let attributes = [
                KeyValue::new("http.request.method", self.method),
                KeyValue::new("server.address", std::mem::take(&mut self.host)),
                KeyValue::new("server.port", i64::from(self.port)),
                end,
            ];
            duration.record(self.began.elapsed().as_secs_f64(), &attributes);
        }
    }
}

/// The name of an error in metrics.
fn error_type(error: &Error) -> &'static str {
    match error {
        Error::Away { trouble, .. } => match trouble {
            Trouble::Name => "name",
            Trouble::Connection => "connection",
            Trouble::Tls => "tls",
            Trouble::TimedOut => "timeout",
            Trouble::BrokenOff => "broken_off",
            Trouble::Status => "status",
        },
        Error::AddressRefused { .. } => "address_refused",
        Error::NotFound
        | Error::Denied { .. }
        | Error::Throttled { .. }
        | Error::OverBudget { .. }
        | Error::Loop
        | Error::RealmRefused { .. }
        | Error::WrongDigest
        | Error::TooLarge { .. }
        | Error::BadAnswer { .. } => "_OTHER",
    }
}
