//! Many clients, one fetch.

use std::sync::Arc;

use anyhow::Result;
use entrepot_data_plane::Capacity;
use entrepot_test_support::{FakeUpstream, Fault, images, wait_until};
use futures_util::future::try_join_all;
use http::{Method, StatusCode};

use crate::registry::{LIMIT, Registry};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_edge_26_fifty_clients_that_pull_one_cold_image_fetch_each_content_once() -> Result<()> {
    const CLIENTS: usize = 50;
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 4 << 20), images::random_bytes(2, 1000)]);
    let registry = Arc::new(Registry::start().await?);
    registry.rule("demo", &upstream).await?;

    let mut paths = vec!["/v2/demo/app/manifests/v1".to_owned()];
    paths.extend(image.blobs().iter().map(|digest| format!("/v2/demo/app/blobs/{digest}")));
    for path in &paths {
        // The upstream holds back its first byte until all clients wait.
        let gate = upstream.hold(path.trim_start_matches("/v2/demo/"));
        let clients = (0..CLIENTS).map(|_| {
            let (registry, path) = (registry.clone(), path.clone());
            tokio::spawn(async move { registry.get(&path).await })
        });
        let clients: Vec<_> = clients.collect();
        let all = "all clients wait";
        wait_until(LIMIT, all, async || registry.metric("entrepot_pull_active") >= CLIENTS as f64).await;
        gate.release();
        for answer in try_join_all(clients).await? {
            let answer = answer?;
            let digest = answer.header("docker-content-digest").map(str::to_owned);
            assert_eq!((answer.status, Some(images::sha256(&answer.bytes))), (StatusCode::OK, digest));
        }
        wait_until(LIMIT, "all have gone", async || registry.metric("entrepot_pull_active") == 0.0).await;
    }

    for digest in image.blobs() {
        assert_eq!(upstream.fetches_of(digest), 1, "{digest}");
    }
    assert_eq!(upstream.fetches_of("manifests/v1") + upstream.fetches_of(&image.manifest), 1);
    Ok(())
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_end_the_fill() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 4 << 20)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;

    let layer = &image.layers[0];
    let gate = upstream.hold(layer);
    let request = registry.request(Method::GET, &format!("/v2/demo/app/blobs/{layer}")).send();
    let client = tokio::spawn(request);
    wait_until(LIMIT, "the upstream is asked", async || upstream.fetches_of(layer) == 1).await;
    client.abort();
    wait_until(LIMIT, "the client has gone", async || registry.metric("entrepot_pull_active") == 0.0).await;
    gate.release();

    let links = || registry.object_count("repositories");
    let before = 3; // the repository, its manifest's link and its tag
    wait_until(LIMIT, "the blob is linked", async || links().await.is_ok_and(|count| count > before)).await;
    upstream.stop().await;
    let answer = registry.blob("demo/app", layer).await?;
    assert_eq!((answer.status, images::sha256(&answer.bytes)), (StatusCode::OK, layer.clone()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_fill_that_nobody_reads_any_more_is_given_up_and_begun_anew_by_the_next() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 90 << 20)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;

    let layer = &image.layers[0];
    upstream.script(layer, Fault::Rate(1 << 20));
    let mut answer = registry.request(Method::GET, &format!("/v2/demo/app/blobs/{layer}")).send().await?;
    assert!(answer.chunk().await?.is_some(), "it has begun");
    drop(answer);
    let fills = || registry.metric("entrepot_fill_active");
    wait_until(LIMIT, "the fill is given up", async || fills() == 0.0).await;
    let sent: u64 =
        upstream.log().iter().filter(|entry| entry.path.contains(layer)).map(|entry| entry.sent_bytes).sum();
    assert!(sent < 26 << 20, "the upstream sent {sent} bytes for nobody");

    upstream.heal();
    assert_eq!(images::sha256(&registry.blob("demo/app", layer).await?.bytes), *layer);
    Ok(())
}

#[tokio::test]
async fn a_fill_is_shared_by_repositories_of_a_rule_and_each_needs_its_upstreams_word() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let layer = images::random_bytes(1, 4 << 20);
    let image = upstream.publish_image("app", "v1", std::slice::from_ref(&layer));
    upstream.publish_image("other", "v1", &[layer]);
    let registry = Arc::new(Registry::start().await?);
    registry.rule("demo", &upstream).await?;

    let digest = image.layers[0].clone();
    let gate = upstream.hold(format!("GET /v2/app/blobs/{digest}"));
    let get = |repository: &str| {
        let (registry, path) = (registry.clone(), format!("/v2/demo/{repository}/blobs/{digest}"));
        tokio::spawn(async move { registry.get(&path).await })
    };
    let first = get("app");
    wait_until(LIMIT, "the upstream is asked", async || upstream.fetches_of(&digest) == 1).await;
    let (second, stranger) = (get("other"), get("stranger"));
    assert_eq!(stranger.await??.status, StatusCode::NOT_FOUND);
    gate.release();
    for client in [first, second] {
        assert_eq!(images::sha256(&client.await??.bytes), digest);
    }
    assert_eq!(upstream.fetches_of(&digest), 1);
    Ok(())
}

#[tokio::test]
async fn an_upstreams_refusal_for_one_repository_ends_only_that_repositorys_readers() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 4 << 20)]);
    let registry = Arc::new(Registry::start().await?);
    registry.rule("demo", &upstream).await?;

    let digest = image.layers[0].clone();
    let gate = upstream.hold(format!("GET /v2/stranger/blobs/{digest}"));
    let get = |repository: &str| {
        let (registry, path) = (registry.clone(), format!("/v2/demo/{repository}/blobs/{digest}"));
        tokio::spawn(async move { registry.get(&path).await })
    };
    let stranger = get("stranger");
    gate.until_waiting(1).await;
    let app = get("app");
    let asked = "the upstream has confirmed the blob for `app`";
    wait_until(LIMIT, asked, async || upstream.log().iter().any(|entry| entry.method == "HEAD" && entry.status == 200))
        .await;
    gate.release();
    assert_eq!(stranger.await??.status, StatusCode::NOT_FOUND);
    assert_eq!(images::sha256(&app.await??.bytes), digest);
    Ok(())
}

#[tokio::test]
async fn a_repository_that_joins_a_fill_at_its_very_end_is_linked_too() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let layer = images::random_bytes(1, 1000);
    let digest = images::sha256(&layer);
    let registry = Arc::new(Registry::start().await?);
    registry.rule("demo", &upstream).await?;
    for name in ["one", "two"] {
        upstream.publish_image(name, "v1", std::slice::from_ref(&layer));
        registry.manifest(&format!("demo/{name}"), "v1").await?;
    }
    let pull = |repository: &'static str| {
        let (registry, digest) = (registry.clone(), digest.clone());
        tokio::spawn(async move { registry.blob(repository, &digest).await })
    };
    let bytes = upstream.hold(format!("GET /v2/one/blobs/{digest}"));
    let word = upstream.hold(format!("HEAD /v2/two/blobs/{digest}"));
    let one = pull("demo/one");
    bytes.until_waiting(1).await;
    let two = pull("demo/two");
    word.until_waiting(1).await;
    bytes.release();
    assert_eq!(one.await??.status, StatusCode::OK);
    word.release();
    assert_eq!(two.await??.status, StatusCode::OK);

    upstream.stop().await;
    let again = registry.blob("demo/two", &digest).await?;
    assert_eq!((again.status, images::sha256(&again.bytes)), (StatusCode::OK, digest));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_for_the_node_is_told_to_come_back_and_all_else_goes_on() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 3 << 20), images::random_bytes(2, 10)]);
    let registry =
        Arc::new(Registry::start_with_capacity(Capacity { fills: 4, readers: 3, ..Capacity::default() }).await?);
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;
    let layer = &image.layers[0];
    let gate = upstream.hold(format!("GET /v2/app/blobs/{layer}"));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (registry, layer) = (registry.clone(), layer.clone());
            tokio::spawn(async move { registry.blob("demo/app", &layer).await })
        })
        .collect();
    wait_until(LIMIT, "both wait", async || registry.metric("entrepot_reader_active") == 2.0).await;
    let refused = registry.blob("demo/app", &image.layers[1]).await?;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(registry.manifest("demo/app", "v1").await?.status, StatusCode::OK);
    gate.release();
    for reader in readers {
        assert_eq!(images::sha256(&reader.await??.bytes), *layer);
    }
    wait_until(LIMIT, "their turns have ended", async || registry.metric("entrepot_reader_active") == 0.0).await;
    assert_eq!(registry.blob("demo/app", &image.layers[1]).await?.status, StatusCode::OK);
    Ok(())
}
