//! What operators see of fills and answers, from the API down to the node and back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, Fault, images, wait_until};
use http::StatusCode;
use tonic::Code;

use crate::registry::{LIMIT, Registry, send};

/// All fills that the API lists.
async fn listed(registry: &Registry) -> Vec<pb::Fill> {
    match registry.fills().list_fills(pb::ListFillsRequest::default()).await {
        Ok(answer) => answer.into_inner().fills,
        Err(_) => vec![],
    }
}

/// Waits until the API lists a fill for which `is` is true.
async fn fill(registry: &Registry, what: &str, is: impl Fn(&pb::Fill) -> bool) -> pb::Fill {
    let found = parking_lot::Mutex::new(None);
    wait_until(LIMIT, what, async || {
        let fills = listed(registry).await;
        let fill = fills.into_iter().next().filter(|fill| is(fill));
        let is_found = fill.is_some();
        *found.lock() = fill;
        is_found
    })
    .await;
    found.into_inner().expect("it was found")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_fill_is_listed_with_what_has_landed_and_who_reads_and_is_gone_when_it_ends() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 6 << 20)]);
    let registry = Arc::new(Registry::start().await?);
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;
    assert_eq!(listed(&registry).await, []);

    let digest = image.layers[0].clone();
    let gate = upstream.hold(&digest);
    upstream.script(&digest, Fault::Rate(2 << 20));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (registry, digest) = (registry.clone(), digest.clone());
            tokio::spawn(async move { registry.blob("demo/app", digest).await })
        })
        .collect();
    let is_held = |fill: &pb::Fill| (fill.reader_count, fill.state()) == (2, pb::FillState::Transferring);
    let held = fill(&registry, "a fill waits for its upstream, and two for it", is_held).await;
    assert_eq!((held.landed_bytes, held.size_bytes), (0, None));
    assert_eq!(
        (held.node.as_str(), held.rule.as_str(), held.upstream.as_str()),
        ("nodes/node-1", "rules/demo", "upstreams/demo")
    );
    assert_eq!((held.repository.as_str(), &held.digest), ("repositories/demo/app", &digest));
    assert!(held.name.starts_with("nodes/node-1/fills/") && held.begin_time.is_some(), "{held:?}");

    let watching = pb::WatchFillsRequest { filter: r#"rule = "rules/demo" AND node = "nodes/node-1""#.to_owned() };
    let mut states = registry.fills().watch_fills(watching).await?.into_inner();
    let first = states.message().await?.context("a first state")?;
    assert_eq!((first.fills.len(), first.silent_nodes), (1, vec![]));
    let others =
        pb::ListFillsRequest { filter: r#"repository = "repositories/demo/other""#.to_owned(), ..Default::default() };
    assert_eq!(registry.fills().list_fills(others).await?.into_inner().fills, []);

    gate.release();
    let landing = fill(&registry, "bytes land", |fill| fill.landed_bytes > 64 << 10 && fill.bytes_per_second > 0).await;
    assert_eq!((landing.size_bytes, landing.reader_count, &landing.name), (Some(6 << 20), 2, &held.name));
    assert!(landing.released_bytes <= landing.landed_bytes && landing.landed_bytes < 6 << 20, "{landing:?}");
    for client in clients {
        assert_eq!(images::sha256(&client.await??.bytes), digest);
    }
    wait_until(LIMIT, "the fill is gone", async || listed(&registry).await.is_empty()).await;
    // Watchers see the same.
    while !states.message().await?.context("a further state")?.fills.is_empty() {}
    Ok(())
}

#[tokio::test]
async fn an_answers_request_id_explains_a_miss_a_hit_and_a_stale_answer() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 2 << 20)]);
    let registry = Registry::start_with_manual_clock().await?;
    registry.rule("demo", &upstream).await?;
    let has = |answer: &pb::Answer, part: &str| answer.reasons.iter().any(|reason| reason.contains(part));

    let miss = registry.explained(&registry.manifest("demo/app", "v1").await?).await?;
    assert_eq!((miss.outcome.as_str(), miss.reference.as_str()), ("miss", "v1"));
    assert!(has(&miss, "no repository `demo/app`") && has(&miss, "fetched from upstream `demo`"), "{miss:?}");
    assert!(miss.name.starts_with("answers/node-1-") && miss.principal.starts_with("principals/"), "{miss:?}");

    let layer = &image.layers[0];
    let miss = registry.explained(&registry.blob("demo/app", layer).await?).await?;
    assert_eq!((miss.outcome.as_str(), miss.http_status, &miss.digest), ("miss", 200, layer));
    assert_eq!(miss.route, "/v2/{name}/blobs/{digest}");
    assert!(has(&miss, "no link to this digest") && has(&miss, "filled from upstream `demo`"), "{miss:?}");
    let hit = registry.blob("demo/app", layer).await?;
    let hit = registry.explained(&hit).await?;
    assert_eq!((hit.outcome.as_str(), hit.sent_bytes), ("hit", 2 << 20));
    assert!(has(&hit, "is linked in this repository, and was in the store"), "{hit:?}");
    assert_eq!((hit.state(), hit.repository.as_str()), (pb::AnswerState::Complete, "repositories/demo/app"));

    registry.clock.advance(Duration::from_secs(26 * 3600));
    upstream.script("manifests/", Fault::Status(429, None));
    let stale = registry.explained(&registry.manifest("demo/app", "v1").await?).await?;
    assert_eq!((stale.outcome.as_str(), &stale.digest), ("stale", &image.manifest));
    assert!(has(&stale, "tag `v1` was validated 26 h ago, the window is 24 h"), "{stale:?}");
    assert!(has(&stale, "served stale") && has(&stale, "limits our requests"), "{stale:?}");

    let refused = registry.explained(&registry.get("/v2/nothing/here/manifests/v1").await?).await?;
    assert_eq!((refused.http_status, refused.outcome.as_str()), (404, ""));
    assert!(has(&refused, "no rule covers this name"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn only_administrators_inspect_and_what_is_not_remembered_is_not_found() -> Result<()> {
    let registry = Registry::start().await?;
    let can_be_asked = async || registry.fills().list_fills(pb::ListFillsRequest::default()).await.is_ok();
    wait_until(LIMIT, "the node is connected to the control plane", can_be_asked).await;
    let answer = async |id: &str| {
        let request = pb::GetAnswerRequest { name: format!("answers/{id}") };
        registry.answers().get_answer(request).await.expect_err("there is none").code()
    };
    assert_eq!(answer("node-1-00000000000000000000000000000000").await, Code::NotFound);
    assert_eq!(answer("node-7-00000000000000000000000000000000").await, Code::NotFound);
    assert_eq!(answer("node-1-7").await, Code::InvalidArgument);

    let puller = pb::Principal { permission_set: pb::PermissionSet::Puller.into(), ..Default::default() };
    let request = pb::CreatePrincipalRequest {
        principal_id: "ci".to_owned(),
        principal: Some(puller),
        request_id: String::new(),
    };
    registry.principals().create_principal(request).await?;
    let request = pb::CreateAccessKeyRequest { parent: "principals/ci".to_owned(), request_id: String::new() };
    let key = registry.access_keys().create_access_key(request).await?.into_inner();
    let key = format!("{}:{}", key.access_key.context("a key")?.key_id, key.secret);
    let mut fills = registry.fills_as(&key);
    let denied = fills.list_fills(pb::ListFillsRequest::default()).await.expect_err("a puller may not");
    assert_eq!(denied.code(), Code::PermissionDenied);
    let denied = fills.watch_fills(pb::WatchFillsRequest::default()).await.expect_err("a puller may not");
    assert_eq!(denied.code(), Code::PermissionDenied);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_no_line_to_the_control_plane_is_asked_through_one_that_has() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 2 << 20)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let second = registry.second_node("node-2").await?;
    let digest = image.layers[0].clone();
    let manifest = send(registry.request_at(&second, "/v2/demo/app/manifests/v1")).await?;
    assert_eq!(manifest.status, StatusCode::OK);

    let gate = upstream.hold(&digest);
    let pull = tokio::spawn(send(registry.request_at(&second, &format!("/v2/demo/app/blobs/{digest}"))));
    let seen = fill(&registry, "the fill of the second node is listed", |fill| fill.reader_count == 1).await;
    assert_eq!((seen.node.as_str(), &seen.digest), ("nodes/node-2", &digest));
    gate.release();
    let explained = registry.explained(&pull.await??).await?;
    assert_eq!((explained.node.as_str(), explained.outcome.as_str()), ("nodes/node-2", "miss"));
    let unknown = pb::GetAnswerRequest { name: format!("answers/node-2-{}", "0".repeat(32)) };
    assert_eq!(registry.answers().get_answer(unknown).await.expect_err("there is none").code(), Code::NotFound);
    Ok(())
}
