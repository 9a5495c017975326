//! The health of upstreams. It is not stored here: the nodes are asked what they have observed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::num::NonZeroU32;
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::{Budget, ResourceId, budget};
use entrepot_proto::convert::{length, names, time, timestamp};
use entrepot_proto::node::v1::take_questions_request::Reply;
use entrepot_proto::node::v1::take_questions_response::Kind;
use entrepot_proto::node::v1::{ListUpstreamReports, UpstreamReport};
use entrepot_proto::v1 as pb;
use tokio::time::timeout;
use tracing::warn;
use uuid::Uuid;

use crate::db::upstreams::Upstream;
use crate::plane::Plane;
use crate::{at_once, live_nodes};

/// How many nodes are asked at most.
const NODES: usize = 1000;
/// How long reading the list of live nodes may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many disagreements are returned.
const DISAGREEMENTS: usize = 16;

/// The answers of the nodes.
#[derive(Default)]
pub(super) struct Survey {
    /// The reports by upstream uid, each with the name of its node.
    reports: HashMap<Uuid, Vec<UpstreamReport>>,
    silent: BTreeSet<ResourceId>,
    now: DateTime<Utc>,
}

/// Asks all nodes. Nodes that do not reply are named, and delay the answer only briefly.
pub(super) async fn survey(plane: &Plane) -> Survey {
    let now = plane.clock.now();
    let nobody = HashSet::new();
    let live = live_nodes::list(&*plane.store, &plane.cluster_key, now, None, NODES, &nobody);
    let live = match timeout(PATIENCE, live).await {
        Ok(Ok(live)) => live,
        Ok(Err(_)) | Err(_) => {
            warn!(
                "it is not known which nodes are alive, so only nodes with an open stream are asked: the store is away"
            );
            Vec::new()
        }
    };
    let mut ids: BTreeSet<ResourceId> = live.into_iter().map(|node| node.record.node_id).collect();
    ids.extend(plane.inquiries.nodes());
    let calls = ids.iter().take(NODES).map(|id| async move {
        let reply = plane.inquiries.ask(id, Kind::ListUpstreams(ListUpstreamReports {})).await;
        Ok::<_, std::convert::Infallible>((id, reply))
    });
    let replies = at_once::all(calls).await.unwrap_or_default();
    let mut survey = Survey { now, ..Survey::default() };
    let mut by_node = BTreeMap::new();
    for (id, reply) in replies {
        match reply {
            Ok(Reply::Upstreams(said)) => drop(by_node.insert(id, said.reports)),
            // A node of an earlier release does not know this question.
            Ok(Reply::Fills(_) | Reply::Answer(_) | Reply::Failed(_) | Reply::Told(_)) | Err(_) => {
                survey.silent.insert(id.clone());
            }
        }
    }
    for report in by_node.into_values().flatten() {
        if let Ok(uid) = report.upstream_uid.parse() {
            survey.reports.entry(uid).or_default().push(report);
        }
    }
    survey
}

impl Survey {
    /// The health of this upstream; `None` if no live node could report it.
    pub(super) fn of(&self, upstream: &Upstream) -> Option<pb::UpstreamHealth> {
        if self.reports.is_empty() && self.silent.is_empty() {
            return None;
        }
        let reports = self.reports.get(&upstream.uid).map(Vec::as_slice).unwrap_or_default();
        let own = upstream.settings.endpoint.to_string();
        let silent_nodes = self.silent.iter().map(names::node).collect();
        Some(pb::UpstreamHealth { silent_nodes, ..health(reports, &own, self.now) })
    }
}

/// Combines the nodes' reports about one upstream: the worst state counts.
fn health(reports: &[UpstreamReport], endpoint: &str, now: DateTime<Utc>) -> pb::UpstreamHealth {
    let nodes: Vec<&pb::NodeUpstreamHealth> = reports.iter().filter_map(|report| report.health.as_ref()).collect();
    let until = |known: &pb::EndpointHealth| known.until_time.as_ref().and_then(time);
    let of_own = nodes.iter().filter_map(|node| Some((*node, node.endpoints.first()?)));
    let worst = of_own.max_by_key(|(_, known)| (known.state, until(known)));
    let mut disagreements: Vec<pb::Disagreement> =
        reports.iter().flat_map(|report| report.disagreements.iter().cloned()).collect();
    disagreements.sort_by_key(|said| std::cmp::Reverse(said.disagree_time.as_ref().and_then(time)));
    disagreements.truncate(DISAGREEMENTS);
    pb::UpstreamHealth {
        state: worst.map(|(_, known)| known.state).unwrap_or_default(),
        until_time: worst.and_then(|(_, known)| until(known)).map(timestamp),
        trouble: worst.map(|(_, known)| known.trouble.clone()).unwrap_or_default(),
        endpoint_in_use: worst.map_or_else(|| endpoint.to_owned(), |(node, _)| node.endpoint_in_use.clone()),
        budget_left: budget_left(reports, now),
        nodes: nodes.into_iter().cloned().collect(),
        disagreements,
        silent_nodes: Vec::new(),
    }
}

/// All nodes draw from one budget. What is left is the lowest number that any node reports, and the rates add up.
fn budget_left(reports: &[UpstreamReport], now: DateTime<Utc>) -> Option<pb::BudgetLeft> {
    let known = reports.iter().filter_map(|report| report.budget_left.as_ref());
    let least = known.clone().min_by_key(|known| known.left_requests)?;
    let requests_per_hour = known.map(|known| known.requests_per_hour).sum();
    let lasts = least.budget.as_ref().and_then(read).and_then(|budget| {
        let (left, pace) = (least.left_requests as f64, requests_per_hour as f64);
        budget::lasts(budget, left, pace)
    });
    let exhaust_time = lasts.map(|lasts: Duration| timestamp(now + lasts));
    Some(pb::BudgetLeft { requests_per_hour, exhaust_time, ..*least })
}

fn read(budget: &pb::Budget) -> Option<Budget> {
    let requests = u32::try_from(budget.requests).ok().and_then(NonZeroU32::new)?;
    let window = budget.window.as_ref().and_then(length).filter(|window| !window.is_zero())?;
    Some(Budget { requests, window })
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrepot_proto::convert::duration;

    fn report(node: &str, state: pb::UpstreamState, left: i64) -> UpstreamReport {
        let known = |endpoint: &str, state: pb::UpstreamState| pb::EndpointHealth {
            endpoint: endpoint.into(),
            state: state.into(),
            ..Default::default()
        };
        let (in_use, first) = if state == pb::UpstreamState::Away { ("b", state) } else { ("a", state) };
        UpstreamReport {
            upstream_uid: Uuid::nil().to_string(),
            health: Some(pb::NodeUpstreamHealth {
                node: node.into(),
                endpoint_in_use: in_use.into(),
                endpoints: vec![known("a", first), known("b", pb::UpstreamState::Healthy)],
            }),
            budget_left: Some(pb::BudgetLeft {
                budget: Some(pb::Budget { requests: 100, window: Some(duration(Duration::from_secs(36_000))) }),
                left_requests: left,
                requests_per_hour: 30,
                exhaust_time: None,
            }),
            disagreements: Vec::new(),
        }
    }

    #[test]
    fn the_worst_that_a_node_says_counts_and_all_use_up_one_budget() {
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let reports =
            [report("nodes/1", pb::UpstreamState::Away, 100), report("nodes/2", pb::UpstreamState::Healthy, 50)];
        let seen = health(&reports, "a", now);
        assert_eq!((seen.state(), seen.endpoint_in_use.as_str(), seen.nodes.len()), (pb::UpstreamState::Away, "b", 2));
        let left = seen.budget_left.unwrap();
        assert_eq!((left.left_requests, left.requests_per_hour), (50, 60));
        // 60 per hour are used and 10 are regained.
        assert_eq!(left.exhaust_time, Some(timestamp(now + Duration::from_secs(3600))));
        let nothing = health(&[], "a", now);
        assert_eq!((nothing.state(), nothing.endpoint_in_use.as_str()), (pb::UpstreamState::Unspecified, "a"));
    }
}
