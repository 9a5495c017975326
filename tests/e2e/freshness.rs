//! How long a tag is trusted, and what happens after that.

use std::time::Duration;

use anyhow::Result;
use entrepot_test_support::{FakeUpstream, Fault, images};
use http::StatusCode;

use crate::registry::Registry;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_tag_is_trusted_for_24_hours_then_confirmed_by_one_head() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let registry = Registry::start_with_manual_clock().await?;
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;

    registry.clock.advance(24 * HOUR - Duration::from_secs(1));
    let before = upstream.request_count();
    assert_eq!(registry.manifest("demo/app", "v1").await?.header("cache-status"), Some("entrepot; hit"));
    assert_eq!(upstream.request_count(), before, "a fresh tag asks nobody");

    registry.clock.advance(Duration::from_secs(1));
    let gets = upstream.fetches_of("manifests/v1");
    let answer = registry.manifest("demo/app", "v1").await?;
    assert_eq!(answer.header("cache-status"), Some("entrepot; hit; detail=revalidated"));
    assert_eq!(answer.header("docker-content-digest"), Some(image.manifest.as_str()));
    assert_eq!((upstream.request_count(), upstream.fetches_of("manifests/v1")), (before + 1, gets));

    // A confirmed tag is trusted for another 24 hours.
    assert_eq!(registry.manifest("demo/app", "v1").await?.header("cache-status"), Some("entrepot; hit"));
    assert_eq!(upstream.request_count(), before + 1);
    Ok(())
}

#[tokio::test]
async fn r_edge_05_a_tag_that_moved_is_followed_after_24_hours_and_the_old_digest_stays() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let old = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let registry = Registry::start_with_manual_clock().await?;
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;
    let new = upstream.publish_image("app", "v1", &[images::random_bytes(2, 100)]);

    let answer = registry.manifest("demo/app", "v1").await?;
    assert_eq!(answer.header("docker-content-digest"), Some(old.manifest.as_str()));
    registry.clock.advance(25 * HOUR);
    let answer = registry.manifest("demo/app", "v1").await?;
    assert_eq!(answer.header("docker-content-digest"), Some(new.manifest.as_str()));
    assert_eq!(registry.manifest("demo/app", &old.manifest).await?.status, StatusCode::OK);

    entrepot_test_support::wait_until(crate::registry::LIMIT, "the index follows", async || {
        registry.listed("demo/app", "v1").await.digest == new.manifest
    })
    .await;
    assert_eq!(registry.image_list("demo/app").await?.len(), 2, "the old one is there, untagged");
    Ok(())
}

#[tokio::test]
async fn r_fail_01_an_upstream_that_cannot_be_asked_does_not_hurt_what_is_cached() -> Result<()> {
    for trouble in ["away", "throttled", "broken", "denied", "deleted"] {
        let upstream = FakeUpstream::start().await;
        let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
        let registry = Registry::start_with_manual_clock().await?;
        registry.rule("demo", &upstream).await?;
        registry.manifest("demo/app", "v1").await?;
        registry.clock.advance(25 * HOUR);
        match trouble {
            "away" => upstream.stop().await,
            "throttled" => upstream.script("manifests/", Fault::Status(429, None)),
            "broken" => upstream.script("manifests/", Fault::Status(500, None)),
            "denied" => upstream.script("manifests/", Fault::Status(403, None)),
            _ => upstream.script("manifests/", Fault::Status(404, None)),
        }
        for _ in 0..2 {
            let answer = registry.manifest("demo/app", "v1").await?;
            assert_eq!(
                (answer.status, answer.bytes.clone()),
                (StatusCode::OK, image.manifest_bytes.clone()),
                "{trouble}"
            );
            assert_eq!(answer.header("cache-status"), Some("entrepot; hit; detail=stale"), "{trouble}");
            assert!(answer.header("warning").is_some_and(|text| text.starts_with("299 - ")), "{trouble}");
        }
    }
    Ok(())
}
