//! Tags and digests: what they mean, when that changes, and when they are gone.

use anyhow::Result;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, Fault, images, wait_until};
use http::{Method, StatusCode};

use super::{asked, ground, ground_with, head};
use crate::registry::{LIMIT, Registry, send};

const DAY: std::time::Duration = std::time::Duration::from_secs(25 * 3600);

#[tokio::test]
async fn r_edge_04_a_pull_of_a_tag_with_a_digest_asks_for_the_digest_alone_and_invents_no_tag() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    assert_eq!(registry.manifest("demo/app", &image.manifest).await?.bytes, image.manifest_bytes);
    wait_until(LIMIT, "the image is listed", async || {
        registry.image_list("demo/app").await.is_ok_and(|images| images.len() == 1)
    })
    .await;
    assert_eq!(registry.image_list("demo/app").await?[0].tags, []);
    assert_eq!(asked(&upstream, "HEAD", "manifests/v1") + asked(&upstream, "GET", "manifests/v1"), 0);
    // A tag with a digest is not a reference, and leads nowhere.
    let both = registry.manifest("demo/app", format!("v1@{}", image.manifest)).await?;
    assert!(both.status.is_client_error(), "{}", both.status);
    Ok(())
}

#[tokio::test]
async fn r_edge_06_a_tag_that_moves_between_two_questions_means_what_was_sent() -> Result<()> {
    let (upstream, registry) = ground().await?;
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    registry.manifest("demo/app", "v1").await?;
    registry.clock.advance(DAY);
    let moved = upstream.publish_image("app", "v1", &[images::random_bytes(2, 100)]);
    upstream.script("HEAD /v2/app/manifests/v1", Fault::DigestHeader(images::sha256(b"in between")));
    let answer = registry.manifest("demo/app", "v1").await?;
    assert_eq!(
        (answer.bytes.clone(), answer.header("docker-content-digest")),
        (moved.manifest_bytes, Some(&*moved.manifest))
    );
    // The same for a client that looks at a missing tag by HEAD, and pulls the digest that it was told.
    let (upstream, registry) = ground().await?;
    let old = upstream.publish_image("app", "v1", &[images::random_bytes(3, 100)]);
    assert_eq!(
        head(&registry, "/v2/demo/app/manifests/v1").await?.header("docker-content-digest"),
        Some(&*old.manifest)
    );
    upstream.remove("app", &old.manifest);
    let new = upstream.publish_image("app", "v1", &[images::random_bytes(4, 100)]);
    assert_eq!(registry.manifest("demo/app", &old.manifest).await?.code(), "MANIFEST_UNKNOWN");
    assert_eq!(registry.manifest("demo/app", "v1").await?.bytes, new.manifest_bytes);
    Ok(())
}

#[tokio::test]
async fn r_edge_07_and_08_what_was_pulled_stays_whole_when_the_upstream_deletes_it() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let layers = [images::random_bytes(1, 100), images::random_bytes(2, 100)];
    let image = upstream.publish_image("app", "v1", &layers);
    registry.manifest("demo/app", "v1").await?;
    for blob in [&image.config, &image.layers[0]] {
        registry.blob("demo/app", blob).await?;
    }
    for name in ["v1", &image.manifest, &image.config, &image.layers[0], &image.layers[1]] {
        upstream.remove("app", name);
    }
    registry.clock.advance(DAY);
    let stale = registry.manifest("demo/app", "v1").await?;
    assert_eq!((stale.status, stale.bytes.clone()), (StatusCode::OK, image.manifest_bytes.clone()));
    assert!(stale.header("warning").is_some());
    assert_eq!(registry.manifest("demo/app", &image.manifest).await?.header("cache-status"), Some("entrepot; hit"));
    for blob in [&image.config, &image.layers[0]] {
        assert_eq!(registry.blob("demo/app", blob).await?.header("cache-status"), Some("entrepot; hit"));
    }
    // Content that nobody has pulled is gone, and the client is told so.
    let never = registry.blob("demo/app", &image.layers[1]).await?;
    assert_eq!((never.status, never.code()), (StatusCode::NOT_FOUND, "BLOB_UNKNOWN".to_owned()));
    Ok(())
}

#[tokio::test]
async fn r_edge_29_a_repository_that_has_moved_at_the_upstream_is_kept_under_the_name_that_was_asked_for() -> Result<()>
{
    let (upstream, registry) = ground().await?;
    let image = upstream.publish_image("new/app", "v1", &[images::random_bytes(1, 100)]);
    for path in ["manifests/v1".to_owned(), format!("blobs/{}", image.config)] {
        let moved = format!("{}/v2/new/app/{path}", upstream.url());
        upstream.script(format!("GET /v2/app/{path}"), Fault::Redirect(301, moved));
    }
    assert_eq!(registry.manifest("demo/app", "v1").await?.bytes, image.manifest_bytes);
    assert_eq!(registry.blob("demo/app", &image.config).await?.status, StatusCode::OK);
    registry.listed("demo/app", "v1").await;
    assert_eq!(registry.repository_names().await?, ["repositories/demo/app"]);
    Ok(())
}

#[tokio::test]
async fn r_edge_32_the_longest_prefix_decides_and_a_miss_there_falls_through_to_no_other() -> Result<()> {
    let (general, special, root) =
        (FakeUpstream::start().await, FakeUpstream::start().await, FakeUpstream::start().await);
    let registry = Registry::start().await?;
    registry.rule("demo", &general).await?;
    for (id, prefix, upstream) in [("special", "demo/team", &special), ("root", "ROOT", &root)] {
        registry.upstream(id, upstream).await?;
        let rule = pb::Rule { upstream: format!("upstreams/{id}"), prefix: prefix.to_owned(), ..Default::default() };
        let request = pb::CreateRuleRequest { rule_id: id.to_owned(), rule: Some(rule), request_id: String::new() };
        registry.rules().create_rule(request).await?;
    }
    let layers = [images::random_bytes(1, 100)];
    let image = special.publish_image("app", "v1", &layers);
    general.publish_image("team/other", "v1", &layers);
    root.publish_image("elsewhere/app", "v1", &layers);
    assert_eq!(registry.manifest("demo/team/app", "v1").await?.bytes, image.manifest_bytes);
    assert_eq!(registry.manifest("demo/team/other", "v1").await?.status, StatusCode::NOT_FOUND);
    assert_eq!(registry.manifest("elsewhere/app", "v1").await?.status, StatusCode::OK);
    assert_eq!((general.request_count(), root.fetches_of("manifests/v1")), (0, 1));
    Ok(())
}

#[tokio::test]
async fn r_edge_33_a_name_is_as_long_as_it_may_be_and_no_longer() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let name = "a".repeat(255 - "demo/".len());
    let image = upstream.publish_image(&name, "v1", &[images::random_bytes(1, 100)]);
    assert_eq!(registry.manifest(&format!("demo/{name}"), "v1").await?.bytes, image.manifest_bytes);
    let longer = registry.manifest(&format!("demo/{name}a"), "v1").await?;
    assert_eq!((longer.status, longer.code()), (StatusCode::BAD_REQUEST, "NAME_INVALID".to_owned()));
    Ok(())
}

#[tokio::test]
async fn r_edge_35_a_tag_that_never_moves_is_never_asked_for_again() -> Result<()> {
    let rule = pb::Rule { immutable_tags: vec!["v*".to_owned()], ..Default::default() };
    let (upstream, registry) = ground_with(rule).await?;
    let old = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    registry.manifest("demo/app", "v1").await?;
    upstream.publish_image("app", "v1", &[images::random_bytes(2, 100)]);
    registry.clock.advance(DAY * 100);
    let before = upstream.request_count();
    assert_eq!(registry.manifest("demo/app", "v1").await?.bytes, old.manifest_bytes);
    assert_eq!(upstream.request_count(), before);
    Ok(())
}

#[tokio::test]
async fn r_edge_37_a_window_of_zero_asks_by_head_at_every_pull() -> Result<()> {
    let (upstream, registry) =
        ground_with(pb::Rule { window: Some(prost_types::Duration::default()), ..Default::default() }).await?;
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    for _ in 0..3 {
        assert_eq!(registry.manifest("demo/app", "v1").await?.status, StatusCode::OK);
        registry.clock.advance(std::time::Duration::from_secs(1));
    }
    assert_eq!((asked(&upstream, "HEAD", "manifests/v1"), asked(&upstream, "GET", "manifests/v1")), (2, 1));
    Ok(())
}

#[tokio::test]
async fn r_edge_38_a_head_of_an_uncached_tag_fetches_nothing_and_the_pull_behind_it_notes_the_tag() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let path = "/v2/demo/app/manifests/v1";
    for _ in 0..2 {
        let answer = head(&registry, path).await?;
        assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, Some(image.media_type.as_str())));
        assert_eq!(answer.header("docker-content-digest"), Some(image.manifest.as_str()));
        assert_eq!(answer.header("content-length"), Some(image.manifest_bytes.len().to_string().as_str()));
        assert_eq!((answer.header("cache-status"), answer.bytes.len()), (Some("entrepot; fwd=bypass"), 0));
        let etag = format!("\"{}\"", image.manifest);
        let same = send(registry.request(Method::HEAD, path).header("if-none-match", etag)).await?;
        assert_eq!(same.status, StatusCode::NOT_MODIFIED);
    }
    assert!(upstream.log().iter().all(|entry| entry.method == "HEAD"), "nothing was fetched");
    assert_eq!((registry.object_count("repositories").await?, registry.object_count("blobs").await?), (0, 0));

    // Like containerd and Docker: they look at the tag, and pull the digest that it means.
    assert_eq!(registry.manifest("demo/app", &image.manifest).await?.bytes, image.manifest_bytes);
    registry.listed("demo/app", "v1").await;
    upstream.stop().await;
    let again = registry.manifest("demo/app", "v1").await?;
    assert_eq!((again.header("cache-status"), &again.bytes), (Some("entrepot; hit"), &image.manifest_bytes));

    // Content cached only by digest is enough for a tag that is looked at next.
    upstream.resume().await;
    upstream.publish_manifest("app", Some("v2"), images::OCI_MANIFEST, &image.manifest_bytes);
    assert_eq!(head(&registry, "/v2/demo/app/manifests/v2").await?.status, StatusCode::OK);
    let noted = head(&registry, "/v2/demo/app/manifests/v2").await?;
    assert_eq!(noted.header("cache-status"), Some("entrepot; hit"));

    // If an upstream does not tell enough by HEAD, the manifest itself is fetched.
    let other = upstream.publish_image("app", "v3", &[images::random_bytes(3, 100)]);
    upstream.script("HEAD /v2/app/manifests/v3", Fault::Status(405, None));
    let fetched = head(&registry, "/v2/demo/app/manifests/v3").await?;
    assert_eq!((fetched.status, fetched.header("docker-content-digest")), (StatusCode::OK, Some(&*other.manifest)));
    let nothing = head(&registry, "/v2/demo/app/manifests/nothing").await?;
    assert_eq!(nothing.status, StatusCode::NOT_FOUND);
    Ok(())
}
