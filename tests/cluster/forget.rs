//! What is deleted by the API is seen by every node when the call returns, although nodes hold what they have read.

use std::time::{Duration, Instant};

use anyhow::Result;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, images, wait_until};

use crate::cluster::{Cluster, Company, Setup};
use crate::sync;

/// Until the nodes have been known for long enough to hold anything.
const KNOWN: Duration = Duration::from_secs(90);
/// For how long they hold, unless it is set.
const HOLD: f64 = 5.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_is_seen_by_every_node_when_the_call_returns_also_while_one_is_paused() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let Some(cluster) = Cluster::start_with(Setup { nodes: 3, company: Company::Any, ..Setup::default() }).await?
    else {
        return Ok(());
    };
    let api = cluster.api();
    api.rule("demo", &upstream).await?;
    for node in &cluster.nodes {
        wait_until(KNOWN, "the node holds records", async || {
            node.metric("entrepot_memory_hold_time_seconds", &[]).await.is_ok_and(|time| time == HOLD)
        })
        .await;
    }
    let (mut before, paused) = (String::new(), &cluster.nodes[2]);
    for round in 0..6_u64 {
        let after = upstream.publish_image("app", "v1", &[images::random_bytes(round, 1000)]).manifest;
        for node in cluster.nodes.iter().filter(|_| round > 0) {
            assert_eq!(node.client().pull("demo/app", "v1").await?.manifest, before, "`{}` holds it", node.name());
        }
        let is_paused = round == 5;
        if is_paused {
            paused.program.freeze();
        }
        let name = "repositories/demo/app/tags/v1".to_owned();
        let asked = Instant::now();
        let deleted = api.images().delete_image(pb::DeleteImageRequest { name }).await;
        let took = asked.elapsed();
        if round > 0 {
            assert_eq!(deleted?.into_inner().lagging_node_count, i32::from(is_paused), "round {round}");
            println!("measured: a delete took {took:?}, with a node paused: {is_paused}");
        }
        for node in cluster.nodes.iter().take(if is_paused { 2 } else { 3 }) {
            assert_eq!(node.client().pull("demo/app", "v1").await?.manifest, after, "`{}`, {round}", node.name());
        }
        if is_paused {
            assert!(took < Duration::from_secs(8), "{took:?}");
            let after = upstream.publish_image("app", "v1", &[images::random_bytes(100, 1000)]).manifest;
            let (name, tags) = ("repositories/demo/app".to_owned(), vec!["v1".to_owned()]);
            let request = pb::SyncRepositoryRequest { name, tags, ..Default::default() };
            let begun = api.repositories().sync_repository(request).await?.into_inner();
            sync::ended(&cluster, &api, &begun.name).await?;
            let items = sync::items(&api, &begun.name).await?;
            assert_eq!((items.len(), items[0].lagging_node_count), (1, 1), "{items:?}");
            paused.program.thaw();
            assert_eq!(paused.client().pull("demo/app", "v1").await?.manifest, after);
        }
        before = after;
    }
    Ok(())
}
