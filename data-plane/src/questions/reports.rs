//! What a node reports about upstreams, in the form for the control plane.

use std::time::Duration;

use entrepot_proto::convert::{duration, timestamp};
use entrepot_proto::node::v1::take_questions_request::Reply;
use entrepot_proto::{node::v1 as pb, v1};

use crate::inspect::{BudgetView, DisagreementView, EndpointState, EndpointView, UpstreamView};

/// The reply with this report.
pub(super) fn upstreams(node_id: &str, views: Vec<UpstreamView>) -> Reply {
    Reply::Upstreams(pb::UpstreamReports { reports: views.into_iter().map(|view| report(node_id, view)).collect() })
}

fn report(node_id: &str, view: UpstreamView) -> pb::UpstreamReport {
    let node = format!("nodes/{node_id}");
    let disagreements = view.disagreements.into_iter().map(|said| disagreement(node.clone(), said)).collect();
    pb::UpstreamReport {
        upstream_uid: view.uid,
        health: Some(v1::NodeUpstreamHealth {
            node,
            endpoint_in_use: view.endpoint_in_use,
            endpoints: view.endpoints.into_iter().map(endpoint).collect(),
        }),
        budget_left: view.budget.map(budget_left),
        disagreements,
    }
}

fn endpoint(view: EndpointView) -> v1::EndpointHealth {
    let state = match view.state {
        EndpointState::Healthy => v1::UpstreamState::Healthy,
        EndpointState::CredentialRefused => v1::UpstreamState::CredentialRefused,
        EndpointState::Limited => v1::UpstreamState::Limited,
        EndpointState::Throttled => v1::UpstreamState::Throttled,
        EndpointState::Away => v1::UpstreamState::Away,
        EndpointState::Unknown => v1::UpstreamState::Unspecified,
    };
    v1::EndpointHealth {
        endpoint: view.endpoint,
        state: state.into(),
        until_time: view.until.map(timestamp),
        trouble: view.trouble,
    }
}

fn budget_left(view: BudgetView) -> v1::BudgetLeft {
    v1::BudgetLeft {
        budget: Some(v1::Budget {
            requests: view.requests.into(),
            window: Some(duration(Duration::from_secs(view.window_seconds))),
        }),
        left_requests: view.left.floor() as i64,
        requests_per_hour: view.per_hour.round() as i64,
        exhaust_time: None,
    }
}

fn disagreement(node: String, view: DisagreementView) -> v1::Disagreement {
    v1::Disagreement {
        node,
        endpoint: view.endpoint,
        upstream_repository: view.repository,
        reference: view.reference,
        known_digest: view.known,
        said_digest: view.said,
        disagree_time: Some(timestamp(view.time)),
    }
}
