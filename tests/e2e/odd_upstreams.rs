//! Upstreams that break a rule harmlessly, and registries that ask each other: whatever can be served is served, and
//! nothing incomplete is presented as complete.

use std::time::{Duration, Instant};

use anyhow::Result;
use entrepot_data_plane::UpstreamLimits;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, Fault, images};
use http::{Method, StatusCode};
use serde_json::Value;

use crate::registry::{Answer, Registry, send};
use crate::sync::{sync, watched};

/// The limits of a registry whose upstreams are tried again at once.
fn hasty() -> UpstreamLimits {
    UpstreamLimits { retries: 0, probe: Duration::ZERO, retry_wait: Duration::from_millis(1), ..Default::default() }
}

/// Creates a rule `ring` to the registry at `url`, with the same names there.
async fn ring_to(registry: &Registry, url: &str, fallback: Option<&str>) -> Result<()> {
    let upstream = pb::Upstream {
        kind: pb::UpstreamKind::Oci.into(),
        endpoint: url.to_owned(),
        allow_plain_http: true,
        allow_private_addresses: true,
        username: "admin".to_owned(),
        password: "correct horse battery".to_owned(),
        fallback_endpoints: fallback.iter().map(|url| (*url).to_owned()).collect(),
        allow_hosts: fallback.iter().map(|url| url.replace("http://", "")).collect(),
        ..Default::default()
    };
    let request = pb::CreateUpstreamRequest {
        upstream_id: "ring".to_owned(),
        upstream: Some(upstream),
        request_id: String::new(),
    };
    registry.upstreams().create_upstream(request).await?;
    let rule = pb::Rule {
        upstream: "upstreams/ring".to_owned(),
        // Names are the same everywhere.
        prefix: if fallback.is_some() { "ROOT".to_owned() } else { "ring".to_owned() },
        upstream_prefix: if fallback.is_some() { String::new() } else { "ring".to_owned() },
        automatic_sync: pb::AutomaticSync::Off.into(),
        ..Default::default()
    };
    let request = pb::CreateRuleRequest { rule_id: "ring".to_owned(), rule: Some(rule), request_id: String::new() };
    registry.rules().create_rule(request).await?;
    Ok(())
}

/// How many requests a registry has answered.
fn answered(registry: &Registry) -> f64 {
    registry.metric("http_server_request_duration_seconds_count")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registries_that_ask_each_other_in_a_ring_notice_it_at_once() -> Result<()> {
    let (one, two, three) = (Registry::start().await?, Registry::start().await?, Registry::start().await?);
    // The first asks itself, and the other two ask each other.
    ring_to(&one, &one.url, None).await?;
    ring_to(&two, &three.url, None).await?;
    ring_to(&three, &two.url, None).await?;
    let digest = images::sha256(b"x");
    let questions = [
        (Method::HEAD, format!("blobs/{digest}")),
        (Method::GET, format!("blobs/{digest}")),
        (Method::HEAD, "manifests/v1".to_owned()),
        (Method::GET, "manifests/v1".to_owned()),
        (Method::GET, format!("manifests/{digest}")),
        (Method::GET, "tags/list".to_owned()),
        (Method::GET, format!("referrers/{digest}")),
    ];
    for registry in [&one, &two] {
        for (method, path) in &questions {
            for _ in 0..2 {
                let (before, since) = (answered(&one) + answered(&two) + answered(&three), Instant::now());
                let answer = send(registry.request(method.clone(), &format!("/v2/ring/app/{path}"))).await?;
                assert_eq!(answer.status, StatusCode::LOOP_DETECTED, "{method} {path}");
                let took = since.elapsed();
                assert!(took < Duration::from_secs(10), "{method} {path} took {took:?}");
                let more = answered(&one) + answered(&two) + answered(&three) - before;
                // Some requests are between nodes and their control planes.
                assert!(more <= 20.0, "{method} {path} became {more} requests");
            }
        }
        let request = pb::GetUpstreamRequest { name: "upstreams/ring".to_owned() };
        let health = registry.upstreams().get_upstream(request).await?.into_inner().health.unwrap_or_default();
        assert_ne!(health.state(), pb::UpstreamState::Away, "nobody is away: {health:?}");
    }
    let answer = one.get("/v2/ring/app/manifests/v1").await?;
    let text = String::from_utf8_lossy(&answer.bytes).into_owned();
    assert!(text.contains("the upstream `ring` of rule `ring` leads back to this registry"), "{text}");

    // The operator who creates such a rule is told.
    let request = pb::ValidateRuleRequest { name: "rules/ring".to_owned(), ..Default::default() };
    let checked = one.rules().validate_rule(request).await?.into_inner();
    let told = checked.steps.iter().any(|step| step.message.contains("leads back to this registry"));
    assert!(!checked.valid && told, "{checked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registries_that_are_each_others_fallback_serve_while_one_of_them_can() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("ring/app", "v1", &[images::random_bytes(1, 1000)]);
    let (one, two) = (Registry::start_with_limits(hasty()).await?, Registry::start_with_limits(hasty()).await?);
    ring_to(&one, &upstream.url(), Some(&two.url)).await?;
    ring_to(&two, &upstream.url(), Some(&one.url)).await?;
    let path = "/v2/ring/app/manifests/v1";
    assert_eq!(two.get(path).await?.status, StatusCode::OK);
    upstream.stop().await;
    assert_eq!(one.get(path).await?.header("docker-content-digest"), Some(image.manifest.as_str()));
    // Content that neither has is reported as unavailable, not as a loop.
    let absent = one.get("/v2/ring/app/manifests/absent").await?;
    assert_eq!(absent.status, StatusCode::SERVICE_UNAVAILABLE, "{absent:?}");
    Ok(())
}

#[tokio::test]
async fn a_request_that_has_been_here_or_has_come_too_far_is_refused_and_asks_nobody() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 1000)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let challenge = send(registry.anonymous(Method::GET, "/v2/")).await?;
    let challenge = challenge.header("www-authenticate").unwrap_or_default().to_owned();
    let own = challenge.split("service=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    let far = ["1.1 a, 1.1 b (x, y)", "1.1 c", "1.1 d, 1.0 e, HTTP/1.1 f"];
    let path = "/v2/demo/app/manifests/v1";
    let ask = async |values: &[String], path: &str| {
        let request = registry.request(Method::GET, path);
        send(values.iter().fold(request, |request, value| request.header("via", value))).await
    };
    for values in [vec![format!("1.1 {own}")], vec![format!("1.1 a, 2 {own} (b)")], far.map(str::to_owned).to_vec()] {
        for path in [path, "/v2/", "/v2/demo/app/tags/list", "/token"] {
            assert_eq!(ask(&values, path).await?.status, StatusCode::LOOP_DETECTED, "{values:?} {path}");
        }
    }
    assert_eq!(upstream.request_count(), 0);
    // Others may be on the way, and the loop is not remembered for them.
    assert_eq!(ask(&far[..2].iter().map(|value| (*value).to_owned()).collect::<Vec<_>>(), path).await?.status, 200);
    let asked = upstream.log();
    let via = asked[0].headers.get("via").and_then(|via| via.to_str().ok()).unwrap_or_default();
    assert_eq!(via, format!("1.1 proxy, 1.1 proxy, 1.1 proxy, 1.1 {own}"));
    Ok(())
}

#[tokio::test]
async fn a_list_whose_next_page_cannot_be_had_is_the_kept_one_with_a_warning_or_none() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    for tag in ["a", "b", "c"] {
        upstream.publish_image("app", tag, &[images::random_bytes(1, 100)]);
    }
    upstream.set_tags_page(2);
    let registry = Registry::start_with_limits(hasty()).await?;
    registry.rule("demo", &upstream).await?;
    let tags = |answer: &Answer| {
        let json: Value = serde_json::from_slice(&answer.bytes).unwrap_or_default();
        json["tags"].as_array().map(Vec::len)
    };
    let list = "/v2/demo/app/tags/list";
    // The second page does not exist, as if a registry had forgotten a path prefix in its links.
    let break_second = async || {
        let gate = upstream.hold("/tags/list");
        let (answer, ()) = tokio::join!(registry.get(list), async {
            gate.until_waiting(1).await;
            upstream.script("/tags/list", Fault::Status(404, None));
            gate.release();
        });
        upstream.heal();
        answer
    };
    let failed = break_second().await?;
    assert_eq!((failed.status, failed.code().as_str()), (StatusCode::BAD_GATEWAY, "UNKNOWN"));
    let whole = registry.get(list).await?;
    assert_eq!((whole.status, tags(&whole)), (StatusCode::OK, Some(3)), "and that is not remembered");
    registry.clock.advance(Duration::from_secs(3600));
    let kept = break_second().await?;
    assert_eq!((kept.status, tags(&kept)), (StatusCode::OK, Some(3)));
    assert!(kept.header("warning").is_some(), "{kept:?}");
    Ok(())
}

#[tokio::test]
async fn a_signature_that_clients_have_listed_without_its_type_is_found_by_it() -> Result<()> {
    const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
    const EMPTY: &str = "application/vnd.oci.empty.v1+json";
    let upstream = FakeUpstream::start().await;
    upstream.set_referrers_api(false);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let signature = upstream.publish_referrer("app", None, &image.manifest_bytes, BUNDLE, b"signed");
    let gone = images::sha256(b"gone");
    let publish = |digests: &[&str]| {
        let listed: Vec<_> = digests
            .iter()
            .map(|digest| {
                format!(
                    r#"{{"mediaType":"{}","digest":"{digest}","size":7,"artifactType":"{EMPTY}"}}"#,
                    images::OCI_MANIFEST
                )
            })
            .collect();
        let index =
            format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{}]}}"#, images::OCI_INDEX, listed.join(","));
        upstream.publish_manifest("app", Some(&image.manifest.replace(':', "-")), images::OCI_INDEX, index);
    };
    let list = async |query: &str| {
        let answer = registry.get(&format!("/v2/demo/app/referrers/{}{query}", image.manifest)).await?;
        let json: Value = serde_json::from_slice(&answer.bytes)?;
        let kinds = json["manifests"].as_array().into_iter().flatten();
        let kinds: Vec<_> = kinds.map(|one| one["artifactType"].as_str().unwrap_or_default().to_owned()).collect();
        anyhow::Ok((kinds, answer.header("oci-filters-applied").is_some()))
    };
    publish(&[&signature]);
    let wanted = format!("?artifactType={}", BUNDLE.replace('+', "%2B"));
    assert_eq!(list(&wanted).await?, (vec![BUNDLE.to_owned()], true));
    assert_eq!(list("?artifactType=other").await?, (vec![], true));
    assert_eq!(list("").await?, (vec![BUNDLE.to_owned()], false));

    // Unreadable content may be anything, and is left to the client.
    let other = Registry::start().await?;
    other.rule("demo", &upstream).await?;
    publish(&[&signature, &gone]);
    let answer = other.get(&format!("/v2/demo/app/referrers/{}{wanted}", image.manifest)).await?;
    let json: Value = serde_json::from_slice(&answer.bytes)?;
    assert_eq!(json["manifests"].as_array().map(Vec::len), Some(2));
    assert_eq!(answer.header("oci-filters-applied"), None);
    Ok(())
}

#[tokio::test]
async fn a_known_tag_moves_although_its_upstream_answers_no_head() -> Result<()> {
    for status in [400, 404, 405] {
        let upstream = FakeUpstream::start().await;
        upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
        let registry = Registry::start_with_limits(hasty()).await?;
        registry.rule("demo", &upstream).await?;
        upstream.script("HEAD ", Fault::Status(status, None));
        assert_eq!(registry.manifest("demo/app", "v1").await?.status, StatusCode::OK);
        let moved = upstream.publish_image("app", "v1", &[images::random_bytes(2, 100)]);
        registry.clock.advance(Duration::from_secs(25 * 3600));
        let answer = registry.manifest("demo/app", "v1").await?;
        assert_eq!(answer.header("docker-content-digest"), Some(moved.manifest.as_str()), "{status}: {answer:?}");
        // If it is gone, this is still noticed, by the same rule and after one fetch.
        upstream.remove("app", "v1");
        registry.clock.advance(Duration::from_secs(25 * 3600));
        let answer = registry.manifest("demo/app", "v1").await?;
        assert_eq!(answer.header("cache-status"), Some("entrepot; hit; detail=stale"), "{status}");
    }
    Ok(())
}

#[tokio::test]
async fn a_blob_whose_rest_is_not_served_as_asked_is_served_whole_and_nothing_is_remembered() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 600_000)]);
    for odd in [
        Fault::Status(416, None),
        Fault::Header("content-range".into(), "bytes 0-599999/600000".into()),
        Fault::Header("content-range".into(), "nonsense".into()),
    ] {
        let registry = Registry::start().await?;
        registry.rule("demo", &upstream).await?;
        assert_eq!(registry.manifest("demo/app", "v1").await?.status, StatusCode::OK);
        let layer = format!("GET /v2/app/blobs/{}", image.layers[0]);
        upstream.script_times(&layer, Fault::CutAfter(200_000), 1);
        let gate = upstream.hold(&layer);
        let (blob, ()) = tokio::join!(registry.blob("demo/app", &image.layers[0]), async {
            gate.until_waiting(1).await;
            upstream.script_times(&layer, odd.clone(), 1);
            gate.release();
        });
        upstream.heal();
        let blob = blob?;
        assert_eq!((blob.status, images::sha256(&blob.bytes)), (StatusCode::OK, image.layers[0].clone()), "{odd:?}");
    }
    Ok(())
}

#[tokio::test]
async fn why_a_blob_that_is_here_may_not_be_shown_is_said() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let layers = [images::random_bytes(1, 1000)];
    let image = upstream.publish_image("one", "v1", &layers);
    upstream.publish_image("two", "v1", &layers);
    let registry = Registry::start_with_limits(hasty()).await?;
    registry.rule("demo", &upstream).await?;
    assert_eq!(registry.manifest("demo/one", "v1").await?.status, StatusCode::OK);
    assert_eq!(registry.blob("demo/one", &image.layers[0]).await?.status, StatusCode::OK);
    upstream.stop().await;
    for _ in 0..2 {
        let answer = registry.blob("demo/two", &image.layers[0]).await?;
        let text = String::from_utf8_lossy(&answer.bytes).into_owned();
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("the upstream `demo` of rule `demo` is away"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn buildkits_cache_is_pulled_warmed_and_synced_although_it_lists_layers_as_manifests() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let publish = |seed| {
        let (layer, config) = (images::random_bytes(seed, 40), format!(r#"{{"layers":[],"seed":{seed}}}"#));
        let listed = [
            ("application/vnd.oci.image.layer.v1.tar+gzip", upstream.publish_blob("app", &layer), layer.len()),
            ("application/vnd.buildkit.cacheconfig.v0", upstream.publish_blob("app", &config), config.len()),
        ];
        let entry = |(kind, digest, size): &(&str, String, usize)| {
            format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#)
        };
        let manifests = listed.iter().map(entry).collect::<Vec<_>>().join(",");
        let index = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{manifests}]}}"#, images::OCI_INDEX);
        upstream.publish_manifest("app", Some("cache"), images::OCI_INDEX, index);
        listed.map(|(_, digest, _)| digest)
    };
    let old = publish(1);
    let images = vec!["repositories/demo/app/tags/cache".to_owned()];
    let request = pb::WarmImagesRequest { images, ..Default::default() };
    let operation = registry.images().warm_images(request).await?.into_inner();
    let (operation, items) = watched(&registry, &operation).await?;
    assert_eq!(operation.state(), pb::OperationState::Succeeded, "{items:?}");
    let new = publish(2);
    let items = sync(&registry, "demo/app", &["cache"]).await?;
    assert_eq!(items[0].outcome(), pb::ItemOutcome::Moved, "{items:?}");
    upstream.stop().await;
    assert_eq!(registry.manifest("demo/app", "cache").await?.status, StatusCode::OK);
    for blob in old.iter().chain(&new) {
        assert_eq!(registry.blob("demo/app", blob).await?.status, StatusCode::OK, "{blob}");
    }
    Ok(())
}
