//! The metrics of this node.

use std::time::{Duration, Instant};

use entrepot_runtime::Metrics;
use http::{Method, Response};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, UpDownCounter};
use tracing::Span;

use crate::body::Body;
use crate::error::PullError;
use crate::outcome::Outcome;

/// Pulls, by what was requested and how they ended.
pub(crate) struct PullMetrics {
    duration: Histogram<f64>,
    active: UpDownCounter<i64>,
}

/// Counts a pull or a fill as active until it is dropped.
pub(crate) struct Active(UpDownCounter<i64>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.add(-1, &[]);
    }
}

impl PullMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let meter = metrics.meter("entrepot.data_plane");
        let duration = meter
            .f64_histogram("entrepot.pull.duration")
            .with_unit("s")
            .with_description("How long pulls take until their answer's headers leave.")
            .build();
        let active = meter
            .i64_up_down_counter("entrepot.pull.active")
            .with_description("Pulls whose answer's headers have not left yet.")
            .build();
        Self { duration, active }
    }

    /// Counts a pull that begins.
    pub(crate) fn begin(&self) -> Active {
        self.active.add(1, &[]);
        Active(self.active.clone())
    }

    /// Counts a pull that has an answer.
    pub(crate) fn observe(&self, result: &Result<Response<Body>, PullError>, took: Duration, is_manifest: bool) {
        let outcome = match result {
            Ok(response) => response.extensions().get().map_or("miss", |outcome: &Outcome| outcome.as_str()),
            Err(_) => "error",
        };
        let content = if is_manifest { "manifest" } else { "blob" };
        self.duration
            .record(took.as_secs_f64(), &[KeyValue::new("outcome", outcome), KeyValue::new("content", content)]);
    }
}

/// Jobs, by kind and how they ended.
pub(crate) struct JobMetrics {
    duration: Histogram<f64>,
    lost_leases: Counter<u64>,
}

impl JobMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let meter = metrics.meter("entrepot.data_plane");
        let duration = meter
            .f64_histogram("entrepot.job.duration")
            .with_unit("s")
            .with_description("How long this node has worked at jobs of the control plane.")
            .build();
        let lost_leases = meter
            .u64_counter("entrepot.job.leases_lost")
            .with_description("How often this node has worked at a job that was another one's by then.")
            .build();
        Self { duration, lost_leases }
    }

    /// Counts a job that was taken away from this node while it worked on it.
    pub(crate) fn lost_lease(&self) {
        self.lost_leases.add(1, &[]);
    }

    /// Counts a job that this node has stopped working on.
    pub(crate) fn observe(&self, kind: &'static str, outcome: &'static str, took: Duration) {
        let attributes = [KeyValue::new("job.kind", kind), KeyValue::new("outcome", outcome)];
        self.duration.record(took.as_secs_f64(), &attributes);
    }
}

/// Fills, by how they ended.
pub(crate) struct FillMetrics {
    duration: Histogram<f64>,
    active: UpDownCounter<i64>,
    lost: Counter<u64>,
    failed_commits: Counter<u64>,
}

impl FillMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let meter = metrics.meter("entrepot.data_plane");
        let duration = meter
            .f64_histogram("entrepot.fill.duration")
            .with_unit("s")
            .with_description("How long fills take from their first reader to their end.")
            .build();
        let active = meter.i64_up_down_counter("entrepot.fill.active").with_description("Fills that run.").build();
        let lost = meter
            .u64_counter("entrepot.fill.leaders_lost")
            .with_description("How often this node stopped following another one that did not go on, by the reason.")
            .build();
        let failed_commits = meter
            .u64_counter("entrepot.commit.failed")
            .with_description("Verified content that was served, and that the store or its records did not take.")
            .build();
        Self { duration, active, lost, failed_commits }
    }

    /// Counts a fill that begins.
    pub(crate) fn begin(&self) -> Active {
        self.active.add(1, &[]);
        Active(self.active.clone())
    }

    /// Counts a leader that is no longer followed.
    pub(crate) fn lost(&self, reason: &'static str) {
        self.lost.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// Counts content that could not be stored or linked.
    pub(crate) fn commit_failed(&self, content: &'static str) {
        self.failed_commits.add(1, &[KeyValue::new("content", content)]);
    }

    /// Counts a fill that has ended.
    pub(crate) fn observe(&self, outcome: &'static str, took: Duration) {
        self.duration.record(took.as_secs_f64(), &[KeyValue::new("outcome", outcome)]);
    }
}

/// Requests, by OpenTelemetry's conventions.
#[derive(Clone)]
pub(crate) struct HttpMetrics {
    duration: Histogram<f64>,
}

impl HttpMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let duration = metrics
            .meter("entrepot.data_plane")
            .f64_histogram("http.server.request.duration")
            .with_unit("s")
            .with_description("How long requests take until their answer's last byte has left.")
            .build();
        Self { duration }
    }
}

/// A request, from its head to the last byte of its answer. It counts itself when it is dropped.
pub(crate) struct Exchange {
    pub(crate) metrics: HttpMetrics,
    pub(crate) began: Instant,
    pub(crate) method: &'static str,
    pub(crate) scheme: &'static str,
    pub(crate) route: Option<&'static str>,
    pub(crate) status: u16,
    /// Ends with the request.
    pub(crate) _span: Span,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut attributes = vec![
            KeyValue::new("http.request.method", self.method),
            KeyValue::new("url.scheme", self.scheme),
            KeyValue::new("http.response.status_code", i64::from(self.status)),
        ];
        attributes.extend(self.route.map(|route| KeyValue::new("http.route", route)));
        self.metrics.duration.record(self.began.elapsed().as_secs_f64(), &attributes);
    }
}

/// The name of a method in metrics. Clients could invent any number of other methods.
pub(crate) fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}
