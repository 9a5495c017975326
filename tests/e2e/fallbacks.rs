//! Fallback endpoints of an upstream: pulls continue through them, and they are not trusted without need.

use std::time::Duration;

use anyhow::{Context as _, Result};
use entrepot_data_plane::UpstreamLimits;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, Fault, images, wait_until};
use http::StatusCode;
use tonic::Code;

use crate::registry::{LIMIT, Registry};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A registry with a rule `demo` to `own`, with `others` as fallbacks.
async fn registry(own: &FakeUpstream, others: [&FakeUpstream; 2]) -> Result<Registry> {
    let limits = UpstreamLimits { retries: 0, probe: Duration::from_millis(100), ..UpstreamLimits::default() };
    let registry = Registry::start_with_limits(limits).await?;
    registry.rule("demo", own).await?;
    let request = pb::UpdateUpstreamRequest {
        upstream: Some(pb::Upstream {
            name: "upstreams/demo".to_owned(),
            fallback_endpoints: others.map(FakeUpstream::url).to_vec(),
            ..Default::default()
        }),
        update_mask: None,
    };
    let updated = registry.upstreams().update_upstream(request).await?.into_inner();
    assert_eq!(updated.fallback_endpoints, others.map(FakeUpstream::url));
    Ok(registry)
}

async fn health(registry: &Registry) -> Result<pb::UpstreamHealth> {
    let get = async || {
        let request = pb::ListUpstreamsRequest::default();
        let listed = registry.upstreams().list_upstreams(request).await.map(tonic::Response::into_inner);
        listed.map(|listed| listed.upstreams.into_iter().next().and_then(|demo| demo.health).unwrap_or_default())
    };
    wait_until(LIMIT, "the node is asked", async || get().await.is_ok_and(|health| !health.nodes.is_empty())).await;
    Ok(get().await?)
}

#[tokio::test]
async fn pulls_go_on_with_the_right_bytes_while_fallbacks_are_down_or_lie() -> Result<()> {
    let (own, first, second) = (FakeUpstream::start().await, FakeUpstream::start().await, FakeUpstream::start().await);
    let layers: Vec<Vec<u8>> = (1..4).map(|seed| images::random_bytes(seed, 100_000)).collect();
    let known = own.publish_image("app", "v1", &layers);
    let new = own.publish_image("new", "v1", &[images::random_bytes(9, 3 << 20)]);
    first.publish_all_of(&own);
    second.publish_all_of(&own);
    let registry = registry(&own, [&first, &second]).await?;
    registry.manifest("demo/app", "v1").await?;
    own.stop().await;

    // The first fallback is down, too: a tag is confirmed, and content fetched, through the second.
    first.stop().await;
    registry.clock.advance(DAY);
    let confirmed = registry.manifest("demo/app", "v1").await?;
    assert_eq!(confirmed.header("cache-status"), Some("entrepot; hit; detail=revalidated"));
    assert_eq!(confirmed.bytes, known.manifest_bytes);
    assert!(registry.blob("demo/app", &known.layers[0]).await?.bytes == layers[0]);
    assert!(registry.metric("entrepot_upstream_disagreements") == 0.0);

    // It comes back and contradicts what is known about a tag.
    first.resume().await;
    let other = first.publish_image("app", "v1", &[images::random_bytes(77, 1000)]);
    registry.clock.advance(DAY);
    let before = first.request_count();
    wait_until(LIMIT, "the first one is asked again", async || {
        registry.clock.advance(DAY);
        let pulled = registry.manifest("demo/app", "v1").await.expect("an answer");
        assert_eq!((pulled.status, &pulled.bytes), (StatusCode::OK, &known.manifest_bytes));
        first.request_count() > before
    })
    .await;
    wait_until(LIMIT, "the alarm is seen", async || {
        health(&registry).await.is_ok_and(|health| !health.disagreements.is_empty())
    })
    .await;
    let seen = health(&registry).await?;
    let said = seen.disagreements.first().context("it is told")?;
    assert_eq!((said.endpoint.as_str(), said.node.as_str()), (first.url().as_str(), "nodes/node-1"));
    assert_eq!((said.reference.as_str(), said.upstream_repository.as_str()), ("v1", "app"));
    assert_eq!((&said.known_digest, &said.said_digest), (&known.manifest, &other.manifest));
    assert_eq!(seen.state(), pb::UpstreamState::Away);
    assert_eq!(seen.endpoint_in_use, first.url());
    assert!(registry.metric("entrepot_upstream_disagreements") >= 1.0);

    // It sends wrong bytes: small content is fetched from the second fallback within the same pull.
    first.script("GET ", Fault::FlipBit);
    assert!(registry.blob("demo/app", &known.layers[1]).await?.bytes == layers[1]);
    let manifest = registry.manifest("demo/new", &new.manifest).await?;
    assert_eq!((manifest.status, manifest.bytes), (StatusCode::OK, new.manifest_bytes.clone()));
    // Of large content, much has been sent when the mistake is found: that pull is cut short, and the next one is
    // right.
    let path = format!("/v2/demo/new/blobs/{}", new.layers[0]);
    let cut = registry.request(http::Method::GET, &path).send().await?.bytes().await;
    assert!(cut.is_err(), "nobody completes a wrong blob");
    wait_until(LIMIT, "it comes from the second", async || {
        registry.blob("demo/new", &new.layers[0]).await.is_ok_and(|blob| images::sha256(&blob.bytes) == new.layers[0])
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn an_unknown_tag_is_taken_from_a_fallback_and_what_that_lacks_deletes_nothing() -> Result<()> {
    let (own, first, second) = (FakeUpstream::start().await, FakeUpstream::start().await, FakeUpstream::start().await);
    let known = own.publish_image("app", "v1", &[]);
    first.publish_all_of(&own);
    let fresh = second.publish_image("other", "v1", &[]);
    let registry = registry(&own, [&first, &second]).await?;
    registry.manifest("demo/app", "v1").await?;
    own.script("/v2/", Fault::Status(503, None));
    let pulled = registry.manifest("demo/other", "v1").await?;
    assert_eq!(
        (pulled.status, pulled.header("docker-content-digest")),
        (StatusCode::OK, Some(fresh.manifest.as_str()))
    );
    first.remove("app", "v1");
    registry.clock.advance(DAY);
    let stale = registry.manifest("demo/app", "v1").await?;
    assert_eq!((stale.status, &stale.bytes), (StatusCode::OK, &known.manifest_bytes));
    assert_eq!(stale.header("cache-status"), Some("entrepot; hit; detail=stale"));
    let missing = registry.manifest("demo/app", "v2").await?;
    assert_eq!(missing.status, StatusCode::SERVICE_UNAVAILABLE, "the upstream may have it");
    own.heal();
    wait_until(LIMIT, "its own word counts", async || {
        registry.manifest("demo/app", "v2").await.is_ok_and(|answer| answer.status == StatusCode::NOT_FOUND)
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn fallbacks_are_checked_as_the_endpoint_is() -> Result<()> {
    let own = FakeUpstream::start().await;
    let registry = Registry::start().await?;
    let create = async |fallbacks: &[&str], plain: bool| {
        let request = pb::CreateUpstreamRequest {
            upstream_id: "demo".to_owned(),
            upstream: Some(pb::Upstream {
                kind: pb::UpstreamKind::Oci.into(),
                endpoint: if plain { own.url() } else { "https://registry.example".to_owned() },
                allow_plain_http: plain,
                fallback_endpoints: fallbacks.iter().map(|endpoint| (*endpoint).to_owned()).collect(),
                ..Default::default()
            }),
            request_id: String::new(),
        };
        registry.upstreams().create_upstream(request).await
    };
    let many = ["https://a", "https://b", "https://c", "https://d", "https://e"];
    for (fallbacks, plain, field) in [
        (&["http://mirror.example"][..], false, "upstream.fallback_endpoints[0]"),
        (&["https://a.example", "https://a.example"], false, "upstream.fallback_endpoints[1]"),
        (&["https://registry.example"], false, "upstream.fallback_endpoints[0]"),
        (&["https://a.example/path"], true, "upstream.fallback_endpoints[0]"),
        (&many, false, "upstream.fallback_endpoints"),
    ] {
        let refused = create(fallbacks, plain).await.expect_err(field);
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(String::from_utf8_lossy(refused.details()).contains(field), "{refused:?}");
    }
    Ok(())
}
