//! The health of upstreams, as simulated nodes report it.

use entrepot_proto::node::v1 as node;
use entrepot_proto::node::v1::take_questions_request::Reply;
use entrepot_proto::node::v1::take_questions_response::Kind;
use entrepot_proto::v1 as pb;
use entrepot_test_support::wait_until;

use crate::fills::Played;
use crate::fixture::{Fixture, LIMIT};
use crate::node::{put_record, record};
use crate::snapshot::published;

/// The replies of nodes: `node-1` sees the endpoint away, `node-2` is fine, and `node-3` does not know the question.
fn says(node_id: &str, kind: &Kind, uid: &str) -> Reply {
    let failed = |failure: node::QuestionFailure| {
        Reply::Failed(node::FailedQuestion { failure: failure.into(), reason: "what is that?".into() })
    };
    if node_id == "node-3" || !matches!(kind, Kind::ListUpstreams(_)) {
        return failed(node::QuestionFailure::Unspecified);
    }
    let is_away = node_id == "node-1";
    let endpoint = |endpoint: &str, state: pb::UpstreamState| pb::EndpointHealth {
        endpoint: endpoint.into(),
        state: state.into(),
        trouble: if state == pb::UpstreamState::Away { "it is away".into() } else { String::new() },
        ..Default::default()
    };
    let own = if is_away { pb::UpstreamState::Away } else { pb::UpstreamState::Healthy };
    let report = node::UpstreamReport {
        upstream_uid: uid.into(),
        health: Some(pb::NodeUpstreamHealth {
            node: format!("nodes/{node_id}"),
            endpoint_in_use: if is_away { "https://mirror" } else { "https://own" }.into(),
            endpoints: vec![endpoint("https://own", own), endpoint("https://mirror", pb::UpstreamState::Healthy)],
        }),
        budget_left: Some(pb::BudgetLeft {
            budget: Some(pb::Budget {
                requests: 100,
                window: Some(prost_types::Duration { seconds: 36_000, nanos: 0 }),
            }),
            left_requests: if is_away { 50 } else { 80 },
            requests_per_hour: 30,
            exhaust_time: None,
        }),
        disagreements: vec![pb::Disagreement { node: format!("nodes/{node_id}"), ..Default::default() }],
    };
    Reply::Upstreams(node::UpstreamReports { reports: vec![report] })
}

#[tokio::test]
async fn the_worst_that_nodes_say_is_shown_and_silent_ones_are_named() {
    let fixture = Fixture::start().await;
    let quay = fixture.create_upstream("quay").await;
    fixture.create_upstream("unused").await;
    let (_, snapshot) = published(&fixture.world).await;
    let uid = snapshot.upstreams.iter().find(|upstream| upstream.upstream_id == "quay").unwrap().uid.clone();
    let get = || pb::GetUpstreamRequest { name: quay.name.clone() };
    assert_eq!(fixture.upstreams().get_upstream(get()).await.unwrap().into_inner().health, None, "no node lives");
    for id in ["node-1", "node-2", "node-3"] {
        put_record(&fixture.world, &record(&fixture.world, id, None)).await;
    }
    let _played = Played::replying(&fixture, "node-1", move |node_id, kind| says(node_id, kind, &uid)).await;
    wait_until(LIMIT, "nodes are asked", async || {
        let got = fixture.upstreams().get_upstream(get()).await.unwrap().into_inner();
        got.health.is_some_and(|health| health.nodes.len() == 2)
    })
    .await;

    let listed = fixture.upstreams().list_upstreams(pb::ListUpstreamsRequest::default()).await.unwrap().into_inner();
    let [quay, unused] = &listed.upstreams[..] else { panic!("{listed:?}") };
    let seen = quay.health.as_ref().unwrap();
    assert_eq!((seen.state(), seen.trouble.as_str()), (pb::UpstreamState::Away, "it is away"));
    assert_eq!((seen.endpoint_in_use.as_str(), seen.disagreements.len()), ("https://mirror", 2));
    assert_eq!(seen.silent_nodes, ["nodes/node-3"]);
    let left = seen.budget_left.as_ref().unwrap();
    assert_eq!((left.left_requests, left.requests_per_hour), (50, 60));
    // 60 per hour are used and 10 are regained, so 50 last for one hour.
    let lasts = left.exhaust_time.unwrap().seconds - fixture.world.clock.now().timestamp();
    assert_eq!(lasts, 3600);
    let seen = unused.health.as_ref().unwrap();
    assert_eq!(
        (seen.state(), seen.endpoint_in_use.as_str()),
        (pb::UpstreamState::Unspecified, unused.endpoint.as_str())
    );
}
