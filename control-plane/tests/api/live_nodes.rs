//! Nodes as operators see them.

use std::time::Duration;

use entrepot_proto::node::v1 as node;
use entrepot_proto::v1 as pb;
use entrepot_records::layout;
use entrepot_test_support::wait_until;
use tonic::Code;

use crate::fixture::{Fixture, LIMIT, World, fields, kind};
use crate::node::{put_record, record};
use crate::snapshot::published;

async fn names(fixture: &Fixture) -> Vec<String> {
    let answer = fixture.live_nodes().list_nodes(pb::ListNodesRequest::default()).await.unwrap().into_inner();
    answer.nodes.into_iter().map(|node| node.name).collect()
}

#[tokio::test]
async fn live_nodes_are_listed_with_what_they_run() {
    let fixture = Fixture::start().await;
    let world = &fixture.world;
    let (head, _) = published(world).await;
    let running = node::SnapshotVersion { epoch: head.epoch, revision: head.revision };
    put_record(world, &record(world, "node-1", Some(&running))).await;
    put_record(world, &record(world, "node-2", None)).await;
    let answer = fixture.live_nodes().list_nodes(pb::ListNodesRequest::default()).await.unwrap().into_inner();
    let [first, second] = &answer.nodes[..] else { panic!("{answer:?}") };
    assert_eq!((first.name.as_str(), first.release.as_str()), ("nodes/node-1", "0.1.0"));
    assert_eq!(first.running, Some(pb::ConfigurationVersion { epoch: head.epoch, revision: head.revision }));
    assert_eq!(first.peer_address, "http://127.0.0.1:5003");
    assert!(first.current && first.start_time.is_some() && first.report_time.is_some());
    assert!(!second.current && second.running.is_none());

    // After a change, one of them is outdated until it reports again; if both are silent, both disappear.
    fixture.create_upstream("quay").await;
    let answer = fixture.live_nodes().list_nodes(pb::ListNodesRequest::default()).await.unwrap().into_inner();
    assert!(answer.nodes.iter().all(|node| !node.current));
    world.clock.advance(Duration::from_secs(31));
    put_record(world, &record(world, "node-2", Some(&running))).await;
    assert_eq!(names(&fixture).await, ["nodes/node-2"]);
}

#[tokio::test]
async fn nodes_are_listed_page_by_page_to_administrators() {
    let fixture = Fixture::start().await;
    for id in ["a", "b", "c", "d", "e"] {
        put_record(&fixture.world, &record(&fixture.world, id, None)).await;
    }
    let (mut token, mut pages) = (String::new(), Vec::new());
    loop {
        let request = pb::ListNodesRequest { page_size: 2, page_token: token };
        let answer = fixture.live_nodes().list_nodes(request).await.unwrap().into_inner();
        pages.push(answer.nodes.into_iter().map(|node| node.name).collect::<Vec<_>>());
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, [vec!["nodes/a", "nodes/b"], vec!["nodes/c", "nodes/d"], vec!["nodes/e"]]);
    let request = pb::ListNodesRequest { page_size: -1, page_token: "x".into() };
    let error = fixture.live_nodes().list_nodes(request).await.unwrap_err();
    assert_eq!(fields(&error), ["page_size", "page_token"]);
    let mut nobody = pb::nodes_client::NodesClient::new(fixture.channel.clone());
    let error = nobody.list_nodes(pb::ListNodesRequest::default()).await.unwrap_err();
    assert_eq!(kind(&error), (Code::Unauthenticated, "CREDENTIALS_MISSING".into()));
}

#[tokio::test]
async fn a_node_that_is_silent_for_a_day_is_forgotten() {
    let world = World::new().await;
    put_record(&world, &record(&world, "gone", None)).await;
    world.clock.advance(Duration::from_secs(24 * 60 * 60 + 1));
    put_record(&world, &record(&world, "here", None)).await;
    let fixture = world.start().await;
    let there = async |id: &str| {
        let key = layout::node(&id.parse().unwrap());
        fixture.world.store.head(&key).await.unwrap().is_some()
    };
    wait_until(LIMIT, "its record is deleted", async || !there("gone").await).await;
    assert!(there("here").await);
}
