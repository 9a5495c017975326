//! The health of an upstream, for people.

use entrepot_domain::freshness::exact;
use entrepot_proto::convert;
use entrepot_proto::v1::{Budget, BudgetLeft, Disagreement, NodeUpstreamHealth, UpstreamHealth, UpstreamState};
use prost_types::Timestamp;

use crate::names;
use crate::output::{Cells, time};

/// The details of one upstream.
pub(super) fn details(health: &UpstreamHealth) -> Cells {
    let mut cells = vec![("TROUBLE", health.trouble.clone()), ("ENDPOINT IN USE", health.endpoint_in_use.clone())];
    if let Some(left) = &health.budget_left {
        cells.push(("PER HOUR", left.requests_per_hour.to_string()));
    }
    cells.extend(health.nodes.iter().map(|seen| ("NODE", node(seen))));
    cells.extend(health.disagreements.iter().map(|said| ("DISAGREEMENT", disagreement(said))));
    if !health.silent_nodes.is_empty() {
        cells.push(("SILENT NODES", health.silent_nodes.join(", ")));
    }
    cells
}

/// A state, with the time until which it lasts.
pub(super) fn state(state: UpstreamState, until: Option<&Timestamp>) -> String {
    let word = match state {
        UpstreamState::Unspecified => return String::new(),
        UpstreamState::Healthy => "healthy",
        UpstreamState::CredentialRefused => "credential refused",
        UpstreamState::Limited => "limited",
        UpstreamState::Throttled => "throttled",
        UpstreamState::Away => "away",
    };
    match time(until) {
        until if until.is_empty() => word.to_owned(),
        until => format!("{word} until {until}"),
    }
}

pub(super) fn left(left: &BudgetLeft) -> String {
    match &left.budget {
        Some(of) => format!("{} of {}", left.left_requests, budget(of)),
        None => left.left_requests.to_string(),
    }
}

/// A budget, in the form of its option.
pub(super) fn budget(budget: &Budget) -> String {
    let window = budget.window.as_ref().and_then(convert::length).map(exact).unwrap_or_default();
    format!("{}/{window}", budget.requests)
}

fn node(seen: &NodeUpstreamHealth) -> String {
    let endpoints = seen.endpoints.iter().map(|known| {
        let trouble = if known.trouble.is_empty() { String::new() } else { format!(" ({})", known.trouble) };
        format!("{} {}{trouble}", known.endpoint, state(known.state(), known.until_time.as_ref()))
    });
    format!("{}: {}", names::short("nodes", &seen.node), endpoints.collect::<Vec<_>>().join("; "))
}

fn disagreement(said: &Disagreement) -> String {
    let otherwise = if said.said_digest.is_empty() { "other content" } else { &said.said_digest };
    format!(
        "{} {}: {} has {otherwise} for {} of {}, known as {}",
        time(said.disagree_time.as_ref()),
        names::short("nodes", &said.node),
        said.endpoint,
        said.reference,
        said.upstream_repository,
        said.known_digest
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn budgets_are_shown_as_they_are_given_and_states_with_their_end() {
        let hub = Budget { requests: 100, window: Some(convert::duration(Duration::from_secs(21_600))) };
        assert_eq!(budget(&hub), "100/6h");
        let seventy = BudgetLeft { budget: Some(hub), left_requests: 70, ..Default::default() };
        assert_eq!(left(&seventy), "70 of 100/6h");
        assert_eq!(state(UpstreamState::Healthy, None), "healthy");
        let until = Timestamp { seconds: 0, nanos: 0 };
        assert!(state(UpstreamState::Throttled, Some(&until)).starts_with("throttled until 1970-01-01"));
        let said = Disagreement { endpoint: "https://m".into(), reference: "v1".into(), ..Default::default() };
        assert!(disagreement(&said).contains("https://m has other content for v1"));
    }
}
