//! What this node has observed about upstreams: whether their endpoints can be asked, what is left of their budgets,
//! and where fallbacks disagreed.

use chrono::{DateTime, Utc};
use entrepot_domain::Reference;
use entrepot_runtime::Metrics;
use entrepot_upstream::{Disagreement, EndpointHealth, State};
use opentelemetry::KeyValue;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::budget::BudgetState;
use crate::control::{Control, Source};

/// How many upstreams are reported at once.
const UPSTREAMS_TOLD: usize = 1000;

/// What is known about one upstream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct UpstreamView {
    pub(crate) uid: String,
    /// The endpoint, followed by its fallbacks in order.
    pub(crate) endpoints: Vec<EndpointView>,
    /// The one that is in use.
    pub(crate) endpoint_in_use: String,
    pub(crate) budget: Option<BudgetView>,
    /// The latest one first.
    pub(crate) disagreements: Vec<DisagreementView>,
}

/// What is known about one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndpointView {
    pub(crate) endpoint: String,
    pub(crate) state: EndpointState,
    /// Until when it gets no requests.
    pub(crate) until: Option<DateTime<Utc>>,
    pub(crate) trouble: String,
}

/// Whether an endpoint can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EndpointState {
    Healthy,
    CredentialRefused,
    Limited,
    Throttled,
    Away,
    /// A state of another release.
    #[serde(other)]
    Unknown,
}

/// What is left of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BudgetView {
    pub(crate) requests: u32,
    pub(crate) window_seconds: u64,
    pub(crate) left: f64,
    /// This node's requests per hour.
    pub(crate) per_hour: f64,
}

/// A fallback's disagreement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DisagreementView {
    pub(crate) endpoint: String,
    pub(crate) repository: String,
    pub(crate) reference: String,
    pub(crate) known: String,
    /// Empty if the content did not have its digest.
    pub(crate) said: String,
    pub(crate) time: DateTime<Utc>,
}

/// What is known about the upstreams of the current snapshot.
pub(super) async fn views(control: &Control, now: DateTime<Utc>) -> Vec<UpstreamView> {
    let Some(snapshot) = control.current() else { return Vec::new() };
    let mut views = Vec::new();
    for source in snapshot.sources().take(UPSTREAMS_TOLD) {
        views.push(view(source, source.account.shared_state().await, now));
    }
    views.sort_by(|a, b| a.uid.cmp(&b.uid));
    views
}

fn view(source: &Source, budget: Option<BudgetState>, now: DateTime<Utc>) -> UpstreamView {
    let endpoints = source.client.endpoints();
    let in_use = endpoints.iter().find(|endpoint| endpoint.is_asked()).or(endpoints.first());
    UpstreamView {
        uid: source.upstream.uid.to_string(),
        endpoint_in_use: in_use.map(|in_use| in_use.endpoint.to_string()).unwrap_or_default(),
        endpoints: endpoints.iter().map(|known| endpoint(known, now)).collect(),
        budget: budget.map(|state| BudgetView {
            requests: state.budget.requests.get(),
            window_seconds: state.budget.window.as_secs(),
            left: state.left,
            per_hour: state.per_hour,
        }),
        disagreements: source.client.disagreements().iter().map(|known| disagreement(known, now)).collect(),
    }
}

fn endpoint(known: &EndpointHealth, now: DateTime<Utc>) -> EndpointView {
    let (state, left) = match known.health.state {
        State::Healthy => (EndpointState::Healthy, None),
        State::CredentialRefused => (EndpointState::CredentialRefused, None),
        State::Throttled { left, everything: true } => (EndpointState::Throttled, Some(left)),
        State::Throttled { left, everything: false } => (EndpointState::Limited, Some(left)),
        State::Away { left } => (EndpointState::Away, Some(left)),
    };
    EndpointView {
        endpoint: known.endpoint.to_string(),
        state,
        until: left.map(|left| now + left),
        trouble: known.health.trouble.clone().unwrap_or_default(),
    }
}

fn disagreement(known: &Disagreement, now: DateTime<Utc>) -> DisagreementView {
    let reference = match &known.reference {
        Reference::Tag(tag) => tag.to_string(),
        Reference::Digest(digest) => digest.to_string(),
    };
    DisagreementView {
        endpoint: known.endpoint.to_string(),
        repository: known.repository.to_string(),
        reference,
        known: known.known.to_string(),
        said: known.said.as_ref().map(ToString::to_string).unwrap_or_default(),
        time: now - Instant::now().saturating_duration_since(known.at),
    }
}

/// Adds metrics of the upstreams of the current snapshot.
pub(crate) fn observe(control: &Control, metrics: &Metrics) {
    let meter = metrics.meter("entrepot.data_plane");
    let running = control.clone();
    meter
        .u64_observable_gauge("entrepot.upstream.asked")
        .with_description("1 if an endpoint of an upstream may be asked, 0 while it is left alone.")
        .with_callback(move |gauge| {
            let Some(snapshot) = running.current() else { return };
            for source in snapshot.sources() {
                for known in source.client.endpoints() {
                    let place = known.endpoint.host_and_port();
                    let attributes = [
                        KeyValue::new("upstream.id", source.upstream.id.to_string()),
                        KeyValue::new("server.address", place.host),
                        KeyValue::new("server.port", i64::from(place.port.unwrap_or_default())),
                    ];
                    gauge.observe(u64::from(known.is_asked()), &attributes);
                }
            }
        })
        .build();
    let (running, limits) = (control.clone(), control.clone());
    meter
        .f64_observable_gauge("entrepot.upstream.budget.left")
        .with_description(
            "How many requests are left of an upstream's budget, or of the limit that it tells, as this node knows.",
        )
        .with_callback(move |gauge| observe_budgets(&running, |id, known| gauge.observe(known.left, &[id])))
        .build();
    meter
        .f64_observable_gauge("entrepot.upstream.budget.limit")
        .with_description("An upstream's budget, or the limit that it tells.")
        .with_callback(move |gauge| {
            observe_budgets(&limits, |id, known| gauge.observe(f64::from(known.budget.requests.get()), &[id]));
        })
        .build();
}

fn observe_budgets(control: &Control, mut observe: impl FnMut(KeyValue, BudgetState)) {
    let Some(snapshot) = control.current() else { return };
    for source in snapshot.sources() {
        if let Some(known) = source.account.own_state() {
            observe(KeyValue::new("upstream.id", source.upstream.id.to_string()), known);
        }
    }
}
