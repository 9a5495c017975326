//! Blobs, and how they are delivered.

use anyhow::Result;
use entrepot_test_support::{FakeUpstream, Fault, images};
use http::{Method, StatusCode};

use super::{asked, ground, head};
use crate::registry::{Registry, send};

#[tokio::test]
async fn r_edge_16_a_blob_whose_length_the_upstream_does_not_say_has_that_of_its_manifest() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let layer = images::random_bytes(1, 3 << 20);
    let image = upstream.publish_image("app", "v1", std::slice::from_ref(&layer));
    upstream.script("/blobs/", Fault::NoLength);
    registry.manifest("demo/app", "v1").await?;
    let answer = registry.blob("demo/app", &image.layers[0]).await?;
    assert_eq!((answer.status, &answer.bytes[..]), (StatusCode::OK, &layer[..]));
    assert_eq!(registry.blob("demo/app", &image.layers[0]).await?.header("content-length"), Some("3145728"));
    Ok(())
}

#[tokio::test]
async fn r_edge_17_bodies_are_never_encoded_on_the_way() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    upstream.script(image.layers[0].clone(), Fault::Header("content-encoding".into(), "gzip".into()));
    let request = registry.request(Method::GET, "/v2/demo/app/manifests/v1").header("accept-encoding", "gzip, br");
    let answer = send(request).await?;
    assert_eq!((answer.header("content-encoding"), &answer.bytes), (None, &image.manifest_bytes));
    assert_eq!(registry.blob("demo/app", &image.layers[0]).await?.status, StatusCode::BAD_GATEWAY);
    assert!(upstream.log().iter().all(|entry| entry.headers["accept-encoding"] == "identity"));
    Ok(())
}

#[tokio::test]
async fn r_edge_18_a_head_of_an_uncached_blob_fetches_nothing() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let digest = upstream.publish_blob("app", images::random_bytes(1, 3 << 20));
    let path = format!("/v2/demo/app/blobs/{digest}");
    let answer = head(&registry, &path).await?;
    assert_eq!((answer.status, answer.header("content-length")), (StatusCode::OK, Some("3145728")));
    assert_eq!(asked(&upstream, "GET", &digest), 0);
    // If HEAD is refused, a request for one byte tells the size as well.
    let other = upstream.publish_blob("app", images::random_bytes(2, 3 << 20));
    upstream.script(format!("HEAD /v2/app/blobs/{other}"), Fault::Status(405, None));
    assert_eq!(
        head(&registry, &format!("/v2/demo/app/blobs/{other}")).await?.header("content-length"),
        Some("3145728")
    );
    let log = upstream.log();
    let get = log.iter().find(|entry| entry.method == "GET").expect("a GET");
    assert_eq!(get.headers["range"], "bytes=0-0");
    let missing = head(&registry, &format!("/v2/demo/app/blobs/{}", images::sha256(b"nothing"))).await?;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    Ok(())
}

#[tokio::test]
async fn r_edge_24_a_client_that_wants_several_parts_gets_the_whole() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let layer = images::random_bytes(1, 5000);
    let image = upstream.publish_image("app", "v1", std::slice::from_ref(&layer));
    for _ in ["cold", "warm"] {
        let path = format!("/v2/demo/app/blobs/{}", image.layers[0]);
        let answer = send(registry.request(Method::GET, &path).header("range", "bytes=0-1,4000-4001")).await?;
        assert_eq!((answer.status, &answer.bytes[..]), (StatusCode::OK, &layer[..]));
    }
    assert_eq!(upstream.fetches_of(&image.layers[0]), 1);
    Ok(())
}

#[tokio::test]
async fn r_edge_25_what_several_repositories_have_is_stored_once_and_shown_where_its_upstream_says_so() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let layer = images::random_bytes(1, 5000);
    let blob = upstream.publish_blob("one", &layer);
    upstream.publish_blob("two", &layer);
    upstream.publish_image("one", "v1", std::slice::from_ref(&layer));
    for (repository, status) in [("one", StatusCode::OK), ("two", StatusCode::OK), ("three", StatusCode::NOT_FOUND)] {
        assert_eq!(registry.blob(&format!("demo/{repository}"), &blob).await?.status, status, "{repository}");
    }
    assert_eq!(registry.object_count("blobs").await?, 1);
    assert_eq!(upstream.fetches_of(&blob), 1);
    Ok(())
}

#[tokio::test]
async fn r_edge_27_a_first_pull_streams_while_its_blob_lands() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let layer = images::random_bytes(1, 5 << 20);
    let blob = upstream.publish_blob("app", &layer);
    // It ends only when nobody waits for it any more.
    upstream.script(blob.clone(), Fault::StallAfter(2 << 20));
    let mut answer = registry.request(Method::GET, &format!("/v2/demo/app/blobs/{blob}")).send().await?;
    assert_eq!(answer.status(), StatusCode::OK);
    let mut got = Vec::new();
    while got.len() < 1 << 20 {
        got.extend_from_slice(&answer.chunk().await?.expect("more of it"));
    }
    assert_eq!(got, layer[..got.len()]);
    assert_eq!(registry.object_count("blobs").await?, 0, "it has not landed yet");
    Ok(())
}

#[tokio::test]
async fn r_edge_31_where_an_upstream_redirects_to_is_told_nobody() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let secret = "X-Amz-Signature=5ecret";
    upstream.script("/blobs/", Fault::Redirect(307, format!("http://127.0.0.1:9/storage?{secret}")));
    registry.manifest("demo/app", "v1").await?;
    let answer = registry.blob("demo/app", &image.layers[0]).await?;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    let said = format!("{:?} {}", answer.headers, String::from_utf8_lossy(&answer.bytes));
    assert!(!said.contains("5ecret") && !said.contains("/storage"), "{said}");
    let explained = format!("{:?}", registry.explained(&answer).await?);
    assert!(!explained.contains("5ecret"), "{explained}");
    Ok(())
}

#[tokio::test]
async fn r_edge_36_who_may_pull_is_decided_here_and_before_anything_else() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let paths = ["manifests/v1".to_owned(), format!("blobs/{}", image.config), "tags/list".to_owned()];
    for path in &paths {
        let answer = send(registry.anonymous(Method::GET, &format!("/v2/demo/app/{path}"))).await?;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    assert_eq!(upstream.request_count(), 0, "nobody was asked for who may not pull");
    for path in &paths {
        assert_eq!(registry.get(&format!("/v2/demo/app/{path}")).await?.status, StatusCode::OK, "{path}");
    }
    let before = upstream.request_count();
    for path in &paths {
        let answer = send(registry.anonymous(Method::GET, &format!("/v2/demo/app/{path}"))).await?;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "cached {path}");
        assert_eq!(registry.get(&format!("/v2/demo/app/{path}")).await?.header("cache-status"), Some("entrepot; hit"));
    }
    assert_eq!(upstream.request_count(), before);
    Ok(())
}
