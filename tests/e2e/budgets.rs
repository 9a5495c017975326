//! Budgets of upstreams: what counts, what is left, and how long that lasts.

use std::time::Duration;

use anyhow::{Context as _, Result};
use entrepot_data_plane::UpstreamLimits;
use entrepot_proto::convert::time;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, images, wait_until};
use http::StatusCode;
use tonic::Code;

use crate::registry::{LIMIT, Registry};

const WINDOW: Duration = Duration::from_secs(6 * 3600);

/// A registry with a rule `hub` to an upstream that counts like Docker Hub.
async fn hub() -> Result<(FakeUpstream, Registry)> {
    hub_that_gives(100).await
}

/// The same with another limit.
async fn hub_that_gives(requests: u64) -> Result<(FakeUpstream, Registry)> {
    let upstream = FakeUpstream::start().await;
    upstream.set_limit(requests, WINDOW);
    // A refusing upstream is left alone for longer than the test takes.
    let limits = UpstreamLimits { probe: Duration::from_secs(300), ..UpstreamLimits::default() };
    let registry = Registry::start_with_limits(limits).await?;
    let request = pb::CreateUpstreamRequest {
        upstream_id: "hub".to_owned(),
        upstream: Some(pb::Upstream {
            kind: pb::UpstreamKind::DockerHub.into(),
            endpoint: upstream.url(),
            allow_plain_http: true,
            allow_private_addresses: true,
            ..Default::default()
        }),
        request_id: String::new(),
    };
    registry.upstreams().create_upstream(request).await?;
    registry.rule_to("hub", "hub").await?;
    Ok((upstream, registry))
}

/// The upstream's health, after asking its node.
async fn health(registry: &Registry) -> Result<pb::UpstreamHealth> {
    let get = async || {
        let request = pb::GetUpstreamRequest { name: "upstreams/hub".to_owned() };
        registry.upstreams().get_upstream(request).await.map(|answer| answer.into_inner().health.unwrap_or_default())
    };
    wait_until(LIMIT, "the node is asked", async || get().await.is_ok_and(|health| !health.nodes.is_empty())).await;
    Ok(get().await?)
}

#[tokio::test]
async fn a_thousand_warm_pulls_in_a_day_cost_nothing_that_docker_hub_counts() -> Result<()> {
    let (upstream, registry) = hub().await?;
    let image = upstream.publish_image("library/app", "v1", &[images::random_bytes(1, 1000)]);
    registry.manifest("hub/app", "v1").await?;
    for blob in image.blobs() {
        registry.blob("hub/app", blob).await?;
    }
    let (counted, asked) = (upstream.counted_requests(), upstream.request_count());
    assert_eq!(counted, 1, "the first pull of a manifest is one");
    for _ in 0..1000 {
        registry.clock.advance(Duration::from_secs(87));
        let pulled = registry.manifest("hub/app", "v1").await?;
        assert_eq!((pulled.status, &pulled.bytes), (StatusCode::OK, &image.manifest_bytes));
    }
    assert_eq!(upstream.counted_requests(), counted);
    assert_eq!(upstream.request_count(), asked + 1, "it was confirmed once, after a day");
    Ok(())
}

#[tokio::test]
async fn what_is_left_of_a_limit_and_how_long_it_lasts_is_told() -> Result<()> {
    let (upstream, registry) = hub().await?;
    for app in 0..32 {
        upstream.publish_image(&format!("library/app-{app}"), "v1", &[images::random_bytes(app, 100)]);
    }
    for app in 0..30 {
        assert_eq!(registry.manifest(&format!("hub/app-{app}"), "v1").await?.status, StatusCode::OK);
    }
    let seen = health(&registry).await?;
    assert_eq!((seen.state(), seen.endpoint_in_use.as_str()), (pb::UpstreamState::Healthy, upstream.url().as_str()));
    let left = seen.budget_left.context("the upstream tells its limit")?;
    let limit = left.budget.context("it is told with what is left")?;
    assert_eq!((limit.requests, limit.window.map(|window| window.seconds)), (100, Some(6 * 3600)));
    assert_eq!(left.left_requests, 70);
    assert!(left.requests_per_hour >= 30, "{left:?}");
    let exhausted = left.exhaust_time.as_ref().and_then(time).context("it does not last at this pace")?;
    let lasts = (exhausted - registry.clock.now()).to_std()?;
    assert!(lasts > Duration::ZERO && lasts < WINDOW, "{lasts:?}");
    assert_eq!(registry.metric("entrepot_upstream_budget_left{").floor(), 70.0);

    // Others use the same account. When nothing is left, counted requests are held back, and all others continue.
    upstream.take_of_limit(100);
    let refused = registry.manifest("hub/app-30", "v1").await?;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    let text = String::from_utf8_lossy(&refused.bytes).into_owned();
    assert!(text.contains("the upstream `hub` of rule `hub` limits our requests (status 429)"), "{text}");
    let counted = upstream.counted_requests();
    assert_eq!(registry.manifest("hub/app-31", "v1").await?.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(upstream.counted_requests(), counted, "nobody asks before the time");
    let seen = health(&registry).await?;
    assert_eq!(seen.state(), pb::UpstreamState::Limited);
    assert!(seen.until_time.is_some() && seen.trouble.contains("429"), "{seen:?}");
    assert_eq!(seen.budget_left.map(|left| left.left_requests), Some(0));
    let blob = upstream.publish_blob("library/app-0", images::random_bytes(99, 1000));
    assert_eq!(registry.blob("hub/app-0", &blob).await?.status, StatusCode::OK);
    registry.clock.advance(Duration::from_secs(25 * 3600));
    let confirmed = registry.manifest("hub/app-0", "v1").await?;
    assert_eq!(confirmed.header("cache-status"), Some("entrepot; hit; detail=revalidated"));
    Ok(())
}

#[tokio::test]
async fn a_budget_is_set_read_and_taken_away_and_counts_before_what_the_upstream_tells() -> Result<()> {
    let (upstream, registry) = hub().await?;
    upstream.publish_image("library/app", "v1", &[]);
    let update = async |requests: i64, seconds: i64, paths: &[&str]| {
        let budget = pb::Budget { requests, window: Some(prost_types::Duration { seconds, nanos: 0 }) };
        let request = pb::UpdateUpstreamRequest {
            upstream: Some(pb::Upstream {
                name: "upstreams/hub".to_owned(),
                budget: (requests != 0).then_some(budget),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }),
        };
        registry.upstreams().update_upstream(request).await
    };
    assert_eq!(update(40, 3600, &["budget"]).await?.into_inner().budget.map(|budget| budget.requests), Some(40));
    registry.manifest("hub/app", "v1").await?;
    let left = health(&registry).await?.budget_left.context("it has a budget")?;
    assert_eq!((left.budget.map(|budget| budget.requests), left.left_requests), (Some(40), 39));
    for (requests, seconds, field) in [(-1, 3600, "upstream.budget.requests"), (5, 0, "upstream.budget.window")] {
        let refused = update(requests, seconds, &["budget"]).await.expect_err("a bad budget");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(field) || String::from_utf8_lossy(refused.details()).contains(field));
    }
    assert_eq!(update(0, 0, &["budget"]).await?.into_inner().budget, None);
    registry.manifest("hub/app", "v2").await?;
    let left = health(&registry).await?.budget_left.context("the upstream tells its limit")?;
    assert_eq!(left.budget.map(|budget| budget.requests), Some(100));
    Ok(())
}

#[tokio::test]
async fn a_sync_leaves_the_last_fifth_to_pulls_and_waits_for_more() -> Result<()> {
    let (upstream, registry) = hub_that_gives(10).await?;
    let publish = |app: u64, seed: u64| {
        upstream.publish_image(&format!("library/app-{app}"), "v1", &[images::random_bytes(seed, 100)])
    };
    let old = publish(0, 0);
    for app in 0..8 {
        publish(app, app);
        assert_eq!(registry.manifest(&format!("hub/app-{app}"), "v1").await?.status, StatusCode::OK);
    }
    registry.listed("hub/library/app-0", "v1").await;
    publish(0, 100);
    publish(8, 8);
    registry.clock.advance(Duration::from_secs(1));

    let request = pb::SyncRepositoryRequest { name: "repositories/hub/library/app-0".to_owned(), ..Default::default() };
    let operation = registry.repositories().sync_repository(request).await?.into_inner();
    wait_until(LIMIT, "the sync waits for the budget", async || {
        let request = pb::ListOperationItemsRequest { parent: operation.name.clone(), ..Default::default() };
        let items = registry.operations().list_operation_items(request).await;
        let items = items.map(|answer| answer.into_inner().items).unwrap_or_default();
        items.iter().any(|item| item.outcome == 0 && item.reason.contains("is kept for clients that wait"))
    })
    .await;
    assert_eq!(upstream.counted_requests(), 8, "the sync has asked for nothing that counts");
    assert_eq!(registry.manifest("hub/app-0", "v1").await?.bytes, old.manifest_bytes, "it has not moved");
    assert_eq!(registry.manifest("hub/app-8", "v1").await?.status, StatusCode::OK, "a pull may have what is left");

    let request = pb::CancelOperationRequest { name: operation.name };
    let cancelled = registry.operations().cancel_operation(request).await?.into_inner();
    assert!(cancelled.done, "what waits is cancelled at once: {cancelled:?}");
    Ok(())
}
