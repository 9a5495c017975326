//! What operators see of one node through each of the control planes.

use anyhow::{Context as _, Result};
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, images};
use http::StatusCode;

use crate::cluster::{Cluster, Setup};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_and_an_answer_of_one_node_are_seen_through_each_control_plane() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 4 << 20)]);
    let Some(cluster) = Cluster::start().await? else { return Ok(()) };
    cluster.api().rule("demo", &upstream).await?;
    let (node, digest) = (&cluster.nodes[1], image.layers[0].clone());
    assert_eq!(node.client().get("/v2/demo/app/manifests/v1").await?.status, StatusCode::OK);

    let gate = upstream.hold(&digest);
    let client = node.client();
    let path = format!("/v2/demo/app/blobs/{digest}");
    let pull = tokio::spawn(async move { client.get(&path).await });
    for control_plane in &cluster.control_planes {
        let api = cluster.api_of(control_plane);
        let only = format!("the fill is seen through `{}`", control_plane.name());
        cluster
            .until(&only, async || {
                let listed = api.fills().list_fills(pb::ListFillsRequest::default()).await;
                let fills = listed.map(|listed| listed.into_inner().fills).unwrap_or_default();
                matches!(&fills[..], [fill] if fill.node == "nodes/node-2" && fill.digest == digest && fill.reader_count == 1)
            })
            .await;
    }
    gate.release();
    let answer = pull.await??;
    let id = answer.header("x-request-id").context("every answer has a request id")?;
    for control_plane in &cluster.control_planes {
        let request = pb::GetAnswerRequest { name: format!("answers/{id}") };
        let explained = cluster.api_of(control_plane).answers().get_answer(request).await?.into_inner();
        assert_eq!((explained.node.as_str(), explained.outcome.as_str()), ("nodes/node-2", "miss"));
        assert!(explained.reasons.iter().any(|reason| reason.contains("filled from upstream `demo`")), "{explained:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_and_the_followers_of_a_fill_are_seen() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let digest = upstream.publish_blob("app", images::random_bytes(1, 8 << 20));
    let setup = Setup { nodes: 3, ..Setup::default() };
    let Some(cluster) = Cluster::start_with(setup).await? else { return Ok(()) };
    cluster.api().rule("demo", &upstream).await?;

    let gate = upstream.hold(&digest);
    let pull = |node: usize| {
        let (client, path) = (cluster.nodes[node].client(), format!("/v2/demo/app/blobs/{digest}"));
        tokio::spawn(async move { client.get(&path).await })
    };
    let mut pulls = vec![pull(1)];
    gate.until_waiting(1).await;
    pulls.extend([pull(0), pull(2)]);
    let fills = async || {
        let listed = cluster.api().fills().list_fills(pb::ListFillsRequest::default()).await;
        listed.map(|listed| listed.into_inner().fills).unwrap_or_default()
    };
    cluster
        .until("two nodes follow the third", async || {
            let (mut seen, fills) = (Vec::new(), fills().await);
            for fill in &fills {
                let mut followers: Vec<_> = fill.followers.iter().map(String::as_str).collect();
                followers.sort_unstable();
                seen.push((fill.node.as_str(), fill.state(), fill.leader.as_str(), followers));
            }
            seen.sort();
            seen == [
                ("nodes/node-1", pb::FillState::Following, "nodes/node-2", vec![]),
                ("nodes/node-2", pb::FillState::Transferring, "", vec!["nodes/node-1", "nodes/node-3"]),
                ("nodes/node-3", pb::FillState::Following, "nodes/node-2", vec![]),
            ]
        })
        .await;
    gate.release();
    for pull in pulls {
        assert_eq!(images::sha256(&pull.await??.bytes), digest);
    }
    assert_eq!(upstream.fetches_of(&digest), 1);
    cluster.until("no fill is left", async || fills().await.is_empty()).await;
    Ok(())
}
