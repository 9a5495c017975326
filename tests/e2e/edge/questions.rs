//! Requests of clients other than pulls.

use anyhow::Result;
use entrepot_test_support::images;
use http::StatusCode;

use super::{asked, ground, head};

#[tokio::test]
async fn r_edge_19_a_tag_that_is_looked_for_in_vain_is_not_looked_for_at_the_upstream_each_time() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let signature = format!("{}.sig", image.manifest.replace(':', "-"));
    for _ in 0..3 {
        let path = format!("/v2/demo/app/manifests/{signature}");
        assert_eq!(head(&registry, &path).await?.status, StatusCode::NOT_FOUND);
        assert_eq!(registry.get(&path).await?.code(), "MANIFEST_UNKNOWN");
    }
    assert_eq!(asked(&upstream, "HEAD", &signature) + asked(&upstream, "GET", &signature), 1);
    // It is found soon after it was pushed.
    upstream.publish_manifest("app", Some(&signature), images::OCI_MANIFEST, &image.manifest_bytes);
    registry.clock.advance(std::time::Duration::from_secs(5));
    assert_eq!(registry.manifest("demo/app", &signature).await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn r_edge_20_all_tags_of_the_upstream_are_listed_before_anything_is_cached() -> Result<()> {
    let (upstream, registry) = ground().await?;
    for tag in ["v2", "v1", "latest"] {
        upstream.publish_image("app", tag, &[images::random_bytes(1, 100)]);
    }
    let answer = registry.get("/v2/demo/app/tags/list").await?;
    assert_eq!(answer.bytes, r#"{"name":"demo/app","tags":["latest","v1","v2"]}"#);
    assert_eq!(upstream.request_count(), 1);
    assert_eq!(registry.object_count("repositories").await?, 0, "a question creates nothing");
    Ok(())
}

#[tokio::test]
async fn r_edge_21_no_catalog_of_an_upstream_is_passed_on() -> Result<()> {
    let (upstream, registry) = ground().await?;
    for path in ["/v2/_catalog", "/v2/demo/_catalog"] {
        assert_eq!(registry.get(path).await?.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(upstream.request_count(), 0);
    Ok(())
}

#[tokio::test]
async fn r_edge_22_what_refers_to_an_image_is_listed_and_pulled_before_the_image() -> Result<()> {
    for knows_the_api in [true, false] {
        let (upstream, registry) = ground().await?;
        let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
        let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
        let digest = upstream.publish_referrer("app", None, &image.manifest_bytes, kind, b"bundle");
        upstream.set_referrers_api(knows_the_api);
        if !knows_the_api {
            let index = format!(
                r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","artifactType":"{kind}","size":1}}]}}"#
            );
            let tag = image.manifest.replace(':', "-");
            upstream.publish_manifest("app", Some(&tag), images::OCI_INDEX, index);
        }
        let path = format!("/v2/demo/app/referrers/{}?artifactType={kind}", image.manifest);
        let answer = registry.get(&path).await?;
        assert_eq!((answer.status, answer.header("oci-filters-applied")), (StatusCode::OK, Some("artifactType")));
        let listed: serde_json::Value = serde_json::from_slice(&answer.bytes)?;
        assert_eq!(listed["manifests"][0]["digest"], digest.as_str());
        let manifest = registry.manifest("demo/app", &digest).await?;
        assert_eq!(images::sha256(&manifest.bytes), digest);
        assert_eq!(registry.blob("demo/app", images::sha256(b"bundle")).await?.bytes, "bundle");
        assert_eq!(upstream.fetches_of(&format!("manifests/{}", image.manifest)), 0);
    }
    Ok(())
}
