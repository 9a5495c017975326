//! The metrics of a control plane. Names and attributes for calls and connections follow OpenTelemetry's conventions;
//! all others are ours.

use std::time::Duration;

use entrepot_proto::convert::event::Kind;
use entrepot_runtime::Metrics;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

use crate::db::Db;

/// The instruments that many parts use.
#[derive(Clone, Debug)]
pub(crate) struct Instruments {
    events: Counter<u64>,
    passes: Histogram<f64>,
    lost_leases: Counter<u64>,
}

/// What happened to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventOutcome {
    /// It was applied.
    Applied,
    /// It had been applied before.
    Repeated,
    /// It is about a repository that no longer exists, or not yet.
    Ignored,
}

/// How a pass of recurring work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PassOutcome {
    /// Nothing is left to do.
    Done,
    /// More is waiting.
    More,
    Failed,
}

impl Instruments {
    pub(crate) fn new(meter: &Meter) -> Self {
        let events = meter.u64_counter("entrepot.event.count").with_description("Events that nodes have reported");
        let passes = meter.f64_histogram("entrepot.pass.duration").with_unit("s");
        let lost_leases = meter
            .u64_counter("entrepot.job.lost_lease.count")
            .with_description("Words of nodes on jobs that were not theirs any more");
        Self {
            events: events.build(),
            passes: passes.with_description("Passes of recurring work").build(),
            lost_leases: lost_leases.build(),
        }
    }

    pub(crate) fn event(&self, kind: &Kind, outcome: EventOutcome) {
        let kind = match kind {
            Kind::RepositoryCreated { .. } => "repository_created",
            Kind::ImageCached(_) => "image_cached",
            Kind::ConfigCached { .. } => "config_cached",
            Kind::TagMoved { .. } => "tag_moved",
            Kind::Pulled { .. } => "pulled",
        };
        let outcome = match outcome {
            EventOutcome::Applied => "applied",
            EventOutcome::Repeated => "repeated",
            EventOutcome::Ignored => "ignored",
        };
        self.events.add(1, &[KeyValue::new("event.kind", kind), KeyValue::new("outcome", outcome)]);
    }

    /// Counts events of a later release, which are left to a control plane of that release.
    pub(crate) fn unknown_events(&self, count: usize) {
        let attributes = [KeyValue::new("event.kind", "unknown"), KeyValue::new("outcome", "left")];
        self.events.add(count as u64, &attributes);
    }

    /// Counts a report of this kind about a job that no longer belonged to the node.
    pub(crate) fn lost_lease(&self, report: &'static str) {
        self.lost_leases.add(1, &[KeyValue::new("job.report", report)]);
    }

    /// Counts a pass of recurring work.
    pub(crate) fn pass(&self, job: &'static str, took: Duration, outcome: PassOutcome) {
        let outcome = match outcome {
            PassOutcome::Done => "done",
            PassOutcome::More => "more",
            PassOutcome::Failed => "error",
        };
        self.passes.record(took.as_secs_f64(), &[KeyValue::new("job.name", job), KeyValue::new("outcome", outcome)]);
    }
}

/// Adds metrics of the database pool, and of the rows that are left out.
pub(crate) fn observe_database(metrics: &Metrics, db: &Db) {
    let meter = metrics.meter("entrepot.control_plane");
    let watched = db.clone();
    meter
        .u64_observable_counter("entrepot.row.left_out")
        .with_description("How often a row was left out of a list, since only another release understands it")
        .with_callback(move |observer| observer.observe(watched.left_out().count(), &[]))
        .build();
    let count = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
    let state = |state: &'static str| [pool(), KeyValue::new("db.client.connection.state", state)];
    let watched = db.clone();
    meter
        .i64_observable_up_down_counter("db.client.connection.count")
        .with_description("Connections to the database")
        .with_callback(move |observer| {
            let status = watched.status();
            observer.observe(count(status.available), &state("idle"));
            observer.observe(count(status.size.saturating_sub(status.available)), &state("used"));
        })
        .build();
    let watched = db.clone();
    meter
        .i64_observable_up_down_counter("db.client.connection.max")
        .with_description("Connections to the database that there may be")
        .with_callback(move |observer| observer.observe(count(watched.status().max_size), &[pool()]))
        .build();
    let watched = db.clone();
    meter
        .i64_observable_up_down_counter("db.client.connection.pending_requests")
        .with_description("Callers that wait for a connection to the database")
        .with_callback(move |observer| observer.observe(count(watched.status().waiting), &[pool()]))
        .build();
}

fn pool() -> KeyValue {
    KeyValue::new("db.client.connection.pool.name", "postgres")
}
