//! Refusals of upstreams are remembered for a moment: a herd of clients costs one request.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{Auth, FakeUpstream, Fault, images, wait_until};
use futures_util::future::try_join_all;
use http::StatusCode;

use crate::registry::{LIMIT, Registry};

const SECOND: Duration = Duration::from_secs(1);

async fn status(registry: &Registry, path: &str) -> Result<u16> {
    Ok(registry.get(path).await?.status.as_u16())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_is_not_there_is_asked_for_again_after_5_s_and_then_less_often() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let registry = Arc::new(Registry::start_with_manual_clock().await?);
    registry.rule("demo", &upstream).await?;
    let path = "/v2/demo/app/manifests/v1";
    let asked = || upstream.log().iter().filter(|entry| entry.path == "/v2/app/manifests/v1").count();
    let herd = (0..50).map(|_| {
        let registry = registry.clone();
        tokio::spawn(async move { status(&registry, path).await })
    });
    for answer in try_join_all(herd).await? {
        assert_eq!(answer?, 404);
    }
    assert_eq!(asked(), 1, "50 clients cost one request");
    // 5 s, then 10 s.
    for (wait, expected) in [(4, 1), (1, 2), (9, 2), (1, 3)] {
        registry.clock.advance(wait * SECOND);
        assert_eq!((status(&registry, path).await?, asked()), (404, expected), "{wait} s later");
    }
    assert_eq!(status(&registry, "/v2/demo/other/manifests/v1").await?, 404);
    assert_eq!(upstream.log().len(), 4, "another repository is asked for by itself");

    // Pushed content appears, and then stays.
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 10)]);
    assert_eq!(status(&registry, path).await?, 404);
    registry.clock.advance(60 * SECOND);
    assert_eq!(status(&registry, path).await?, 200);
    Ok(())
}

#[tokio::test]
async fn content_that_is_not_there_or_wrong_is_remembered_by_its_digest() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 1000)]);
    let registry = Registry::start_with_manual_clock().await?;
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;
    let absent = images::sha256(b"absent");
    for path in [format!("blobs/{absent}"), format!("manifests/{absent}")] {
        let path = format!("/v2/demo/app/{path}");
        let before = upstream.request_count();
        for (wait, requests) in [(0, 1), (0, 1), (59, 1), (1, 2)] {
            registry.clock.advance(wait * SECOND);
            assert_eq!((status(&registry, &path).await?, upstream.request_count() - before), (404, requests), "{path}");
        }
    }
    // Wrong content is requested twice at once, then after 30 s, then after 60 s.
    let layer = &image.layers[0];
    let path = format!("/v2/demo/app/blobs/{layer}");
    upstream.script(layer, Fault::FlipBit);
    for (wait, fetches) in [(0, 2), (29, 2), (1, 4), (59, 4), (1, 6)] {
        registry.clock.advance(wait * SECOND);
        assert_eq!((status(&registry, &path).await?, upstream.fetches_of(layer)), (502, fetches), "{wait} s later");
    }
    assert_eq!(
        registry.metric("entrepot_refusal_answered_total{reason=\"wrong_content\""),
        2.0,
        "{}",
        registry.metrics.render()
    );
    upstream.heal();
    registry.clock.advance(120 * SECOND);
    assert_eq!(status(&registry, &path).await?, 200);
    Ok(())
}

#[tokio::test]
async fn a_denial_ends_with_the_credential_that_it_was_for_and_is_not_shared() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 10)]);
    upstream.publish_image("open", "v1", &[images::random_bytes(1, 10)]);
    upstream.script("/v2/app/", Fault::Status(403, None));
    let registry = Registry::start_with_manual_clock().await?;
    registry.rule("demo", &upstream).await?;
    for reference in ["v1", "v2", "v1"] {
        assert_eq!(registry.manifest("demo/app", reference).await?.status, StatusCode::FORBIDDEN);
    }
    assert_eq!(upstream.request_count(), 1);
    assert_eq!(registry.manifest("demo/open", "v1").await?.status, StatusCode::OK);

    // With another credential the upstream is asked at once.
    upstream.heal();
    let update = pb::UpdateUpstreamRequest {
        upstream: Some(pb::Upstream {
            name: "upstreams/demo".to_owned(),
            username: "user".to_owned(),
            password: "another secret".to_owned(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["username".to_owned(), "password".to_owned()] }),
    };
    registry.upstreams().update_upstream(update).await?;
    upstream.set_auth(Auth::Open);
    wait_until(LIMIT, "the new credential is used", async || {
        registry.manifest("demo/app", "v1").await.is_ok_and(|answer| answer.status == StatusCode::OK)
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_is_away_is_tried_now_and_then_and_used_again_when_it_is_back() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 10)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    upstream.script("GET", Fault::Status(500, None));
    for number in 0..30 {
        let answer = registry.manifest("demo/app", format!("v{number}")).await?;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    // 3 pulls with two retries each, and perhaps one further attempt.
    let requests = upstream.request_count();
    assert!(requests <= 12, "{requests} requests for 30 pulls");
    upstream.heal();
    wait_until(LIMIT, "it is used again", async || {
        registry.manifest("demo/app", "v1").await.is_ok_and(|answer| answer.status == StatusCode::OK)
    })
    .await;
    Ok(())
}
