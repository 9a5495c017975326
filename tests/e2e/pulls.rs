//! The main job: a rule, and a pull of something new.

use anyhow::Result;
use entrepot_test_support::{FakeUpstream, images};
use http::{Method, StatusCode};

use crate::registry::{Registry, send};

#[tokio::test]
async fn a_first_pull_creates_the_repository_and_the_second_asks_nobody() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image =
        upstream.publish_image("team/app", "v1", &[images::random_bytes(1, 3 << 20), images::random_bytes(2, 10)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;

    for (round, outcome) in [(1, "entrepot; fwd=miss; stored"), (2, "entrepot; hit")] {
        let before = upstream.request_count();
        let manifest = registry.manifest("demo/team/app", "v1").await?;
        assert_eq!(manifest.status, StatusCode::OK);
        assert_eq!(manifest.bytes, image.manifest_bytes);
        assert_eq!(manifest.header("docker-content-digest"), Some(image.manifest.as_str()));
        assert_eq!(manifest.header("content-type"), Some(image.media_type.as_str()));
        assert_eq!(manifest.header("cache-status"), Some(outcome));
        for blob in image.blobs() {
            let answer = registry.blob("demo/team/app", &blob).await?;
            assert_eq!((answer.status, images::sha256(&answer.bytes).as_str()), (StatusCode::OK, blob));
            assert_eq!(answer.header("cache-status"), Some(outcome));
        }
        assert_eq!(round == 2, upstream.request_count() == before, "round {round}");
    }

    let listed = registry.listed("demo/team/app", "v1").await;
    assert_eq!(listed.digest, image.manifest);
    assert_eq!(listed.platforms, ["linux/amd64"]);
    assert_eq!(registry.repository_names().await?, ["repositories/demo/team/app"]);
    Ok(())
}

#[tokio::test]
async fn r_edge_01_to_03_children_and_blobs_are_pulled_by_digest_first() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let index = upstream.publish_index("app", "v1", &["linux/amd64", "linux/arm64"]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;

    let child = &index.children[1];
    let answer = registry.manifest("demo/app", &child.manifest).await?;
    assert_eq!((answer.status, answer.bytes), (StatusCode::OK, child.manifest_bytes.clone()));
    let answer = registry.manifest("demo/app", &index.digest).await?;
    assert_eq!((answer.status, answer.bytes), (StatusCode::OK, index.bytes.clone()));
    let other = &index.children[0];
    assert_eq!(upstream.fetches_of(&other.manifest), 0, "only what was asked for is fetched");

    // Children are not images of their own; the index is one, with the platforms of its children.
    let answer = registry.manifest("demo/app", "v1").await?;
    assert_eq!(answer.status, StatusCode::OK);
    let listed = registry.listed("demo/app", "v1").await;
    assert_eq!(listed.platforms, ["linux/amd64", "linux/arm64"]);
    assert_eq!(registry.image_list("demo/app").await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn r_pull_04_to_06_head_conditions_and_ranges() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let layers = [images::random_bytes(1, 2048), images::random_bytes(2, 3 << 20)];
    let image = upstream.publish_image("app", "v1", &layers);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let (small, large) = (&image.layers[0], &image.layers[1]);

    // R-BLOB-05: a HEAD for a blob that is not cached fetches nothing.
    let head = send(registry.request(Method::HEAD, &format!("/v2/demo/app/blobs/{large}"))).await?;
    assert_eq!((head.status, head.header("content-length")), (StatusCode::OK, Some("3145728")));
    assert_eq!(upstream.fetches_of(large), 0);

    for (digest, whole) in [(small, &layers[0]), (large, &layers[1])] {
        let size = whole.len();
        for round in ["cold", "warm"] {
            let path = format!("/v2/demo/app/blobs/{digest}");
            let part = send(registry.request(Method::GET, &path).header("range", "bytes=500-1499")).await?;
            assert_eq!(part.status, StatusCode::PARTIAL_CONTENT, "{round}");
            assert_eq!(part.header("content-range"), Some(format!("bytes 500-1499/{size}").as_str()));
            assert_eq!(part.bytes, whole[500..1500]);
            let tail = send(registry.request(Method::GET, &path).header("range", "bytes=-5")).await?;
            assert_eq!(tail.bytes, whole[whole.len() - 5..]);
            let none = send(registry.request(Method::GET, &path).header("range", "bytes=99999999-")).await?;
            assert_eq!(none.status, StatusCode::RANGE_NOT_SATISFIABLE);
            assert_eq!(none.header("content-range"), Some(format!("bytes */{size}").as_str()));
            let all = registry.get(&path).await?;
            assert_eq!((all.status, images::sha256(&all.bytes)), (StatusCode::OK, digest.clone()));
            let etag = all.header("etag").unwrap_or_default().to_owned();
            let same = send(registry.request(Method::GET, &path).header("if-none-match", etag)).await?;
            assert_eq!((same.status, same.bytes.len()), (StatusCode::NOT_MODIFIED, 0));
        }
        assert_eq!(upstream.fetches_of(digest), 1);
    }

    let head = send(registry.request(Method::HEAD, "/v2/demo/app/manifests/v1")).await?;
    assert_eq!((head.status, head.bytes.len()), (StatusCode::OK, 0));
    assert_eq!(head.header("content-length"), Some(image.manifest_bytes.len().to_string().as_str()));
    assert_eq!(head.header("docker-content-digest"), Some(image.manifest.as_str()));
    Ok(())
}

#[tokio::test]
async fn r_edge_12_a_blob_without_bytes_is_a_blob() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[vec![]]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;
    let empty = &image.layers[0];
    let cold = registry.blob("demo/app", empty).await?;
    assert_eq!((cold.status, cold.header("content-length"), cold.bytes.len()), (StatusCode::OK, Some("0"), 0));
    // It was answered, so it is stored.
    upstream.stop().await;
    let warm = registry.blob("demo/app", empty).await?;
    assert_eq!((warm.status, warm.header("content-length")), (StatusCode::OK, Some("0")));
    Ok(())
}
