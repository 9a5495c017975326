//! Upstreams that are throttling, away, or reject our credential: they are left alone, and what is cached is served.

use std::time::{Duration, Instant};

use anyhow::Result;
use entrepot_data_plane::UpstreamLimits;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{Auth, FakeUpstream, Fault, images, wait_until};
use http::StatusCode;

use crate::registry::{LIMIT, Registry, send};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn text(answer: &crate::registry::Answer) -> String {
    String::from_utf8_lossy(&answer.bytes).into_owned()
}

#[tokio::test]
async fn a_throttled_upstream_is_asked_nothing_before_its_time_while_what_is_cached_is_served() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    upstream.publish_image("new", "v1", &[images::random_bytes(2, 100)]);
    let registry = Registry::start_with_manual_clock().await?;
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;
    registry.clock.advance(DAY);

    let pause = Duration::from_secs(6);
    upstream.script_times("/v2/", Fault::Status(429, Some(pause.as_secs().to_string())), 1);
    let stale = |answer: &crate::registry::Answer| {
        assert_eq!((answer.status, &answer.bytes), (StatusCode::OK, &image.manifest_bytes));
        assert_eq!(answer.header("cache-status"), Some("entrepot; hit; detail=stale"));
    };
    stale(&registry.manifest("demo/app", "v1").await?);
    let (throttled, asked) = (Instant::now(), upstream.request_count());
    for _ in 0..5 {
        stale(&registry.manifest("demo/app", "v1").await?);
        assert_eq!(registry.manifest("demo/app", &image.manifest).await?.status, StatusCode::OK);
        let new = registry.manifest("demo/new", "v1").await?;
        assert_eq!((new.status, new.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"));
        assert!(
            new.header("retry-after").is_some_and(|after| after.parse::<u64>().is_ok_and(|s| s <= pause.as_secs()))
        );
        let text = text(&new);
        let named = "the upstream `demo` of rule `demo` limits our requests (status 429), and is asked nothing for ";
        assert!(text.contains(named), "{text}");
    }
    assert_eq!(upstream.request_count(), asked, "nobody asks before the time");
    let again = async || registry.manifest("demo/new", "v1").await.is_ok_and(|new| new.status == StatusCode::OK);
    wait_until(LIMIT, "what is new is served again", async || {
        let is_early = upstream.request_count() == asked;
        let is_served = again().await;
        // Measured from when the answer arrived, which is later than when it was sent.
        assert!(!is_served || !is_early || throttled.elapsed() + Duration::from_millis(500) >= pause, "too early");
        is_served
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_is_away_is_tried_by_one_request_at_a_time() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    for app in 0..20 {
        upstream.publish_image(&format!("app-{app}"), "v1", &[images::random_bytes(app, 100)]);
    }
    let limits = UpstreamLimits { retries: 0, probe: Duration::from_millis(500), ..UpstreamLimits::default() };
    let registry = Registry::start_with_limits(limits).await?;
    registry.rule("demo", &upstream).await?;
    upstream.script("/v2/", Fault::Status(503, None));
    for app in 0..3 {
        let away = registry.manifest(&format!("demo/app-{app}"), "v1").await?;
        assert!(text(&away).contains("is away (status 503)"), "{}", text(&away));
    }
    let asked = upstream.request_count();
    assert_eq!(asked, 3);
    // The next request is the probe, which is held back; all others are refused meanwhile.
    let gate = upstream.hold("/v2/");
    let pull = |app: usize| registry.request(http::Method::GET, &format!("/v2/demo/app-{app}/manifests/v1"));
    let mut waiting = Vec::new();
    wait_until(LIMIT, "one finds out whether it is back", async || {
        waiting.push(tokio::spawn(send(pull(waiting.len() % 20))));
        upstream.request_count() > asked
    })
    .await;
    waiting.extend((0..20).map(|app| tokio::spawn(send(pull(app)))));
    wait_until(LIMIT, "all others are refused, but for those that want what the probe wants", async || {
        waiting.iter().filter(|task| !task.is_finished()).count() <= 2
    })
    .await;
    assert_eq!(upstream.request_count(), asked + 1);
    upstream.heal();
    gate.release();
    for task in waiting {
        task.await??;
    }
    wait_until(LIMIT, "all are served again", async || {
        registry.manifest("demo/app-7", "v1").await.is_ok_and(|answer| answer.status == StatusCode::OK)
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_credential_that_is_refused_hurts_nothing_that_is_cached_and_is_told_with_its_status() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.set_auth(Auth::Token("puller".into(), "pass-word-1".into()));
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    upstream.publish_image("new", "v1", &[images::random_bytes(2, 100)]);
    let registry = Registry::start_with_manual_clock().await?;
    registry.rule("demo", &upstream).await?;
    let login = async |password: &str| {
        let request = pb::UpdateUpstreamRequest {
            upstream: Some(pb::Upstream {
                name: "upstreams/demo".into(),
                username: "puller".into(),
                password: password.into(),
                ..Default::default()
            }),
            update_mask: None,
        };
        registry.upstreams().update_upstream(request).await
    };
    login("pass-word-1").await?;
    assert_eq!(registry.manifest("demo/app", "v1").await?.status, StatusCode::OK);
    login("something-else").await?;
    registry.clock.advance(DAY);
    let stale = registry.manifest("demo/app", "v1").await?;
    assert_eq!((stale.status, &stale.bytes), (StatusCode::OK, &image.manifest_bytes));
    assert_eq!(stale.header("cache-status"), Some("entrepot; hit; detail=stale"));
    let denied = registry.manifest("demo/new", "v1").await?;
    assert_eq!((denied.status, denied.code().as_str()), (StatusCode::FORBIDDEN, "DENIED"));
    let text = text(&denied);
    assert!(text.contains("the upstream `demo` of rule `demo` denies access (status 401)"), "{text}");
    assert!(text.contains("another credential"), "{text}");
    Ok(())
}

#[tokio::test]
async fn each_node_says_what_it_has_seen_also_one_that_only_other_nodes_reach() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let second = registry.second_node("node-2").await?;
    upstream.script_times("/v2/", Fault::Status(429, Some("600".to_owned())), 1);
    let throttled = send(registry.request_at(&second, "/v2/demo/app/manifests/v1")).await?;
    assert_eq!(throttled.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(registry.manifest("demo/app", "v1").await?.status, StatusCode::OK, "the other node was told nothing");

    let seen = parking_lot::Mutex::new(pb::UpstreamHealth::default());
    wait_until(LIMIT, "both nodes are asked", async || {
        let request = pb::GetUpstreamRequest { name: "upstreams/demo".to_owned() };
        let health = registry.upstreams().get_upstream(request).await.ok().and_then(|got| got.into_inner().health);
        let health = health.unwrap_or_default();
        let is_both = health.nodes.len() == 2;
        *seen.lock() = health;
        is_both
    })
    .await;
    let seen = seen.into_inner();
    let states: Vec<_> = seen.nodes.iter().map(|node| (node.node.as_str(), node.endpoints[0].state())).collect();
    let expected = [("nodes/node-1", pb::UpstreamState::Healthy), ("nodes/node-2", pb::UpstreamState::Throttled)];
    assert_eq!(states, expected);
    assert_eq!(seen.state(), pb::UpstreamState::Throttled, "the worst counts");
    let left = seen.until_time.map(|until| until.seconds - registry.clock.now().timestamp());
    assert!(left.is_some_and(|left| (500..=600).contains(&left)), "{left:?}");
    Ok(())
}
