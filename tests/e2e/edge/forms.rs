//! Manifests of all kinds, which are passed on unchanged.

use anyhow::Result;
use entrepot_domain::Digest;
use entrepot_domain::digest::Algorithm;
use entrepot_test_support::images::{self, descriptor};
use entrepot_test_support::{FakeUpstream, Fault};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::ground;
use crate::registry::{Registry, send};

fn bytes(manifest: &Value) -> Vec<u8> {
    manifest.to_string().into_bytes()
}

/// Pulls an artifact by its tag, with everything that it names.
async fn pulled_whole(registry: &Registry, repository: &str, tag: &str, manifest: &[u8]) -> Result<()> {
    let answer = registry.manifest(repository, tag).await?;
    assert_eq!((answer.status, &answer.bytes[..]), (StatusCode::OK, manifest));
    let manifest: Value = serde_json::from_slice(manifest)?;
    for part in manifest["layers"].as_array().into_iter().flatten().chain([&manifest["config"]]) {
        let digest = part["digest"].as_str().unwrap_or_default();
        let blob = registry.blob(repository, digest).await?;
        assert_eq!((blob.status, images::sha256(&blob.bytes).as_str()), (StatusCode::OK, digest));
    }
    Ok(())
}

/// Publishes an artifact with these layers, and returns its manifest.
fn publish(upstream: &FakeUpstream, tag: &str, config: (&str, &[u8]), layers: &[(&str, &[u8])]) -> Vec<u8> {
    let layers_json: Vec<_> = layers.iter().map(|(media_type, layer)| descriptor(media_type, layer)).collect();
    for blob in layers.iter().map(|(_, layer)| *layer).chain([config.1]) {
        upstream.publish_blob("app", blob);
    }
    let manifest = bytes(&json!({
        "schemaVersion": 2, "mediaType": images::OCI_MANIFEST, "config": descriptor(config.0, config.1),
        "layers": layers_json,
    }));
    upstream.publish_manifest("app", Some(tag), images::OCI_MANIFEST, &manifest);
    manifest
}

#[tokio::test]
async fn r_edge_09_what_is_stored_is_served_whatever_the_client_accepts() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let index = upstream.publish_index("app", "v1", &["linux/amd64"]);
    for accept in [images::DOCKER_MANIFEST, "text/plain", "*/*", ""] {
        let request = registry.request(Method::GET, "/v2/demo/app/manifests/v1").header("accept", accept);
        let answer = send(request).await?;
        assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, Some(images::OCI_INDEX)));
        assert_eq!(answer.bytes, index.bytes, "{accept}");
    }
    Ok(())
}

#[tokio::test]
async fn r_edge_10_and_23_indexes_in_indexes_and_attestations_are_pulled_like_all_else() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let inner = upstream.publish_index("app", "inner", &["linux/amd64", "unknown/unknown"]);
    let child = descriptor(images::OCI_INDEX, &inner.bytes);
    let outer = bytes(&json!({ "schemaVersion": 2, "mediaType": images::OCI_INDEX, "manifests": [child] }));
    upstream.publish_manifest("app", Some("v1"), images::OCI_INDEX, &outer);
    assert_eq!(registry.manifest("demo/app", "v1").await?.bytes, outer);
    assert_eq!(registry.manifest("demo/app", &inner.digest).await?.bytes, inner.bytes);
    for child in &inner.children {
        assert_eq!(registry.manifest("demo/app", &child.manifest).await?.bytes, child.manifest_bytes);
        assert_eq!(registry.blob("demo/app", &child.layers[0]).await?.status, StatusCode::OK);
    }
    Ok(())
}

#[tokio::test]
async fn r_edge_11_a_layer_that_lives_elsewhere_is_not_fetched_from_there() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let elsewhere = FakeUpstream::start().await;
    let digest = elsewhere.publish_blob("app", b"licensed");
    let mut layer = descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", b"licensed");
    layer["urls"] = json!([format!("{}/v2/app/blobs/{digest}", elsewhere.url())]);
    let config = upstream.publish_blob("app", b"{}");
    let manifest = bytes(&json!({
        "schemaVersion": 2, "mediaType": images::OCI_MANIFEST, "layers": [layer],
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2 },
    }));
    upstream.publish_manifest("app", Some("v1"), images::OCI_MANIFEST, &manifest);
    assert_eq!(registry.manifest("demo/app", "v1").await?.bytes, manifest);
    let missing = registry.blob("demo/app", &digest).await?;
    assert_eq!((missing.status, missing.code()), (StatusCode::NOT_FOUND, "BLOB_UNKNOWN".to_owned()));
    assert_eq!(elsewhere.request_count(), 0);
    // The upstream has it anyway. For a minute a request for it fails, and afterwards it succeeds.
    upstream.publish_blob("app", b"licensed");
    registry.clock.advance(std::time::Duration::from_secs(61));
    assert_eq!(registry.blob("demo/app", &digest).await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn r_edge_13_artifacts_need_be_no_images() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let empty = ("application/vnd.oci.empty.v1+json", images::EMPTY);
    let chart = ("application/vnd.cncf.helm.config.v1+json", &br#"{"name":"chart","version":"1.0.0"}"#[..]);
    let signed = ("application/vnd.oci.image.config.v1+json", &br#"{"rootfs":{}}"#[..]);
    let layer = images::random_bytes(1, 3000);
    let signature = format!("sha256-{}.sig", "0".repeat(64));
    for (tag, config, layers) in [
        ("generic", empty, vec![("text/plain", &layer[..])]),
        ("empty", empty, vec![empty]),
        ("twice", ("application/json", &layer[..]), vec![("a/b", &layer[..]), ("a/b", &layer[..])]),
        ("1.0.0_build", chart, vec![("application/vnd.cncf.helm.chart.content.v1.tar+gzip", &layer[..])]),
        (&signature, signed, vec![("application/vnd.dev.cosign.simplesigning.v1+json", &b"{}\n"[..])]),
    ] {
        let manifest = publish(&upstream, tag, config, &layers);
        pulled_whole(&registry, "demo/app", tag, &manifest).await?;
    }
    upstream.stop().await;
    assert_eq!(registry.manifest("demo/app", &signature).await?.header("cache-status"), Some("entrepot; hit"));
    Ok(())
}

#[tokio::test]
async fn r_edge_14_and_30_manifests_that_no_client_takes_are_refused_with_the_reason() -> Result<()> {
    let (upstream, registry) = ground().await?;
    upstream.publish_manifest("app", Some("huge"), images::OCI_MANIFEST, vec![b' '; (4 << 20) + 1]);
    let one = json!({ "schemaVersion": 1, "name": "app", "tag": "old", "fsLayers": [] });
    let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    upstream.publish_manifest("app", Some("old"), signed, bytes(&one));
    for (tag, why) in [("huge", "larger than"), ("old", "schema 1")] {
        let answer = registry.manifest("demo/app", tag).await?;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{tag}");
        assert!(String::from_utf8_lossy(&answer.bytes).contains(why), "{answer:?}");
    }
    assert_eq!(registry.object_count("repositories").await?, 0);
    Ok(())
}

#[tokio::test]
async fn r_edge_15_a_digest_of_another_algorithm_is_verified_by_that_one() -> Result<()> {
    let (upstream, registry) = ground().await?;
    let manifest = images::manifest(b"{}", &[]);
    for (wanted, status) in [(&manifest[..], StatusCode::OK), (b"other", StatusCode::BAD_GATEWAY)] {
        let digest = Digest::of(Algorithm::Sha512, wanted).to_string();
        upstream.script(digest.clone(), Fault::Status(200, None));
        upstream.script(digest.clone(), Fault::Header("content-type".into(), images::OCI_MANIFEST.into()));
        upstream.script(digest.clone(), Fault::DigestHeader(images::sha256(&manifest)));
        upstream.script(digest.clone(), Fault::Body(manifest.clone()));
        let answer = registry.manifest("demo/app", &digest).await?;
        assert_eq!(answer.status, status);
        if status == StatusCode::OK {
            assert_eq!((answer.header("docker-content-digest"), &answer.bytes[..]), (Some(&*digest), &manifest[..]));
        }
    }
    Ok(())
}
