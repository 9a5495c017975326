//! Syncs in a cluster: every node shows what came of one, and one whose node is killed is finished by another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Result;
use entrepot_data_plane::failpoint;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, images};

use crate::api::Api;
use crate::cluster::{Cluster, Setup};
use crate::report::report;

/// Begins a sync of all tags of a repository.
async fn begin(api: &Api, repository: &str) -> Result<pb::Operation> {
    let name = format!("repositories/{repository}");
    let request = pb::SyncRepositoryRequest { name, ..Default::default() };
    Ok(api.repositories().sync_repository(request).await?.into_inner())
}

pub(crate) async fn items(api: &Api, operation: &str) -> Result<Vec<pb::OperationItem>> {
    let request = pb::ListOperationItemsRequest { parent: operation.to_owned(), page_size: 1000, ..Default::default() };
    Ok(api.operations().list_operation_items(request).await?.into_inner().items)
}

/// Waits until an operation has ended.
pub(crate) async fn ended(cluster: &Cluster, api: &Api, name: &str) -> Result<pb::Operation> {
    let get = async || {
        let request = pb::GetOperationRequest { name: name.to_owned() };
        api.operations().get_operation(request).await.map(tonic::Response::into_inner)
    };
    cluster.until("the operation has ended", async || get().await.is_ok_and(|operation| operation.done)).await;
    Ok(get().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_has_reached_every_node_when_it_ends_and_a_pull_meanwhile_is_of_one_piece() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let Some(cluster) = Cluster::start_with(Setup { nodes: 3, ..Setup::default() }).await? else { return Ok(()) };
    let api = cluster.api();
    api.rule("demo", &upstream).await?;
    let mut before = upstream.publish_image("app", "v1", &[images::random_bytes(100, 1 << 20)]).manifest;
    for node in &cluster.nodes {
        node.client().pull("demo/app", "v1").await?;
    }
    api.listed("demo/app", "v1").await;
    for round in 0..5_u64 {
        let layers = [images::random_bytes(round, 3 << 20), images::random_bytes(50 + round, 1000)];
        let after = upstream.publish_image("app", "v1", &layers).manifest;
        let operation = begin(&api, "demo/app").await?;
        // Each of them checks all hashes.
        let mut pulls = 0;
        loop {
            let node = &cluster.nodes[pulls % cluster.nodes.len()];
            let pulled = node.client().pull("demo/app", "v1").await?;
            anyhow::ensure!([&before, &after].contains(&&pulled.manifest), "neither the old nor the new image");
            pulls += 1;
            let request = pb::GetOperationRequest { name: operation.name.clone() };
            if api.operations().get_operation(request).await?.into_inner().done {
                break;
            }
        }
        for node in &cluster.nodes {
            let pulled = node.client().pull("demo/app", "v1").await?;
            assert_eq!(pulled.manifest, after, "round {round} on `{}`, after {pulls} pulls", node.name());
        }
        before = after;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_sync_and_pull_draw_on_one_budget() -> Result<()> {
    const TAGS: usize = 60;
    const PULLS: usize = 8;
    /// Of this, a fifth is kept for clients.
    const BUDGET: usize = 50;
    /// How many jobs of one upstream a node has at once: a quarter of its eight are kept for others.
    const JOBS: usize = 6;
    let upstream = FakeUpstream::start().await;
    let Some(cluster) = Cluster::start().await? else { return Ok(()) };
    let api = cluster.api();
    api.rule("demo", &upstream).await?;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 1000)]);
    let tags: Vec<String> = (0..TAGS).map(|number| format!("t{number}")).collect();
    for (tag, node) in tags.iter().zip(cluster.nodes.iter().cycle()) {
        upstream.publish_manifest("app", Some(tag), &image.media_type, &image.manifest_bytes);
        node.client().get(&format!("/v2/demo/app/manifests/{tag}")).await?;
    }
    for tag in &tags {
        api.listed("demo/app", tag).await;
    }
    let window = Some(prost_types::Duration { seconds: 86_400, nanos: 0 });
    let budget = Some(pb::Budget { requests: i64::try_from(BUDGET)?, window });
    let demo = || "upstreams/demo".to_owned();
    let request = pb::UpdateUpstreamRequest {
        upstream: Some(pb::Upstream { name: demo(), budget, ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["budget".to_owned()] }),
    };
    api.upstreams().update_upstream(request).await?;
    let before = upstream.request_count();
    let asked = || upstream.request_count() - before;
    let left = async || {
        let answer = api.upstreams().get_upstream(pb::GetUpstreamRequest { name: demo() }).await?.into_inner();
        anyhow::Ok(answer.health.and_then(|health| health.budget_left).map(|left| left.left_requests))
    };

    for (number, node) in (0..PULLS).zip(cluster.nodes.iter().cycle()) {
        upstream.publish_image("new", &format!("v{number}"), &[images::random_bytes(number as u64, 100)]);
        node.client().get(&format!("/v2/demo/new/manifests/v{number}")).await?;
    }
    let pulls = asked();
    assert_eq!(left().await?, Some(i64::try_from(BUDGET - pulls)?), "after pulls from both nodes");

    // Both of them have jobs at the same time.
    let gate = upstream.hold("HEAD /v2/app/");
    let operation = begin(&api, "demo/app").await?;
    gate.until_waiting(2 * JOBS).await;
    gate.release();
    cluster
        .until("what is left for syncs is used up, and the rest waits", async || {
            let items = items(&api, &operation.name).await.unwrap_or_default();
            let waits = items.iter().filter(|item| item.reason.contains("is kept for clients that wait")).count();
            waits + asked() - pulls >= TAGS
        })
        .await;
    assert_eq!(asked(), BUDGET - BUDGET / 5, "what one node may ask for in syncs, two may");
    assert_eq!(left().await?, Some(i64::try_from(BUDGET / 5)?));
    let request = pb::CancelOperationRequest { name: operation.name.clone() };
    api.operations().cancel_operation(request).await?;
    let items = items(&api, &operation.name).await?;
    let nodes: BTreeSet<_> = items.iter().filter(|item| !item.node.is_empty()).map(|item| &item.node).collect();
    assert_eq!(nodes.len(), 2, "both nodes had jobs");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_whose_node_is_killed_at_any_step_is_finished_by_another() -> Result<()> {
    /// More than one node takes at once.
    const TAGS: u64 = 12;
    let upstream = FakeUpstream::start().await;
    let Some(cluster) = Cluster::start().await? else { return Ok(()) };
    let api = cluster.api();
    api.rule("demo", &upstream).await?;
    let names = ["manifest.after_fetch", "manifest.after_link", "fill.after_first_part", "fill.after_upload"];
    for (round, failpoint) in (0..).zip(names.into_iter().chain(failpoint::SYNC_NAMES)) {
        let repository = format!("app{round}");
        let publish = |seed: u64, size: usize| -> BTreeMap<String, String> {
            let image = |tag: u64| {
                let (layer, tag) = (images::random_bytes(1000 * round + 100 * seed + tag, size), format!("v{tag}"));
                let image = upstream.publish_image(&repository, &tag, &[layer]);
                (tag, image.manifest)
            };
            (0..TAGS).map(image).collect()
        };
        let name = format!("demo/{repository}");
        for tag in publish(0, 1000).keys() {
            cluster.nodes[1].client().get(&format!("/v2/{name}/manifests/{tag}")).await?;
            api.listed(&name, tag).await;
        }
        // Several parts, where the step is one of a blob's.
        let new = publish(1, if failpoint.starts_with("fill.") { 9 << 20 } else { 1000 });
        let victim = &cluster.nodes[0];
        victim.program.kill().await;
        victim.program.set_env("ENTREPOT_FAILPOINT", Some(failpoint));
        victim.start().await;
        let begun = Instant::now();
        // Or it might have nothing left for the victim.
        let survivor = &cluster.nodes[1];
        survivor.program.freeze();
        let operation = begin(&api, &name).await?;
        victim.program.ended().await;
        survivor.program.thaw();
        let operation = ended(&cluster, &api, &operation.name).await?;
        assert_eq!(operation.state(), pb::OperationState::Succeeded, "killed at `{failpoint}`");
        report(&format!("a sync whose node was killed at `{failpoint}`"), format!("{:.1?}", begun.elapsed()));

        let items = items(&api, &operation.name).await?;
        let survivor = format!("nodes/{}", survivor.name());
        let taken: Vec<_> = items.iter().filter(|item| item.attempt_count > 1).collect();
        assert!(!taken.is_empty(), "the node had jobs when it was killed at `{failpoint}`");
        assert!(taken.iter().all(|item| item.node == survivor), "{taken:?}");
        for (tag, manifest) in &new {
            let pulled = cluster.nodes[1].client().pull(&name, tag).await?;
            assert_eq!(pulled.manifest, *manifest, "{tag} after a kill at `{failpoint}`");
        }
        victim.program.set_env("ENTREPOT_FAILPOINT", None);
        victim.start().await;
    }
    Ok(())
}
