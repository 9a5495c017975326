//! Requests that must fail: each gets the right status and code, and nothing is stored.

use std::sync::Arc;

use anyhow::Result;
use entrepot_test_support::{Auth, FakeUpstream, Fault, images};
use futures_util::StreamExt as _;
use http::{Method, StatusCode};

use crate::registry::{Registry, send};

const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[tokio::test]
async fn malformed_requests_get_their_status_and_code() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    for (method, path, status, code) in [
        (Method::GET, "/v2/Demo/app/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        (Method::GET, "/v2/demo//app/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        (Method::GET, format!("/v2/demo/{}/manifests/v1", "a".repeat(300)), 400, "NAME_INVALID"),
        (Method::GET, "/v2/demo%2Fapp/manifests/v1".to_owned(), 404, "NAME_UNKNOWN"),
        (Method::GET, "/v2/demo/app/manifests/.bad".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (Method::GET, format!("/v2/demo/app/manifests/{}", "a".repeat(129)), 404, "MANIFEST_UNKNOWN"),
        (Method::GET, "/v2/demo/app/manifests/sha256:xyz".to_owned(), 400, "DIGEST_INVALID"),
        (Method::GET, format!("/v2/demo/app/manifests/{}", EMPTY.to_uppercase()), 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/demo/app/blobs/latest".to_owned(), 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/demo/app/blobs/blake3:00".to_owned(), 404, "BLOB_UNKNOWN"),
        (Method::GET, "/v2/nowhere/app/manifests/v1".to_owned(), 404, "NAME_UNKNOWN"),
        (Method::GET, format!("/v2/nowhere/app/blobs/{EMPTY}"), 404, "BLOB_UNKNOWN"),
        (Method::GET, "/v2/demo/app/manifests/unknown".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (Method::GET, format!("/v2/demo/app/blobs/{EMPTY}"), 404, "BLOB_UNKNOWN"),
        (Method::GET, "/v2/demo/app".to_owned(), 404, "UNSUPPORTED"),
        (Method::GET, "/".to_owned(), 404, "UNSUPPORTED"),
        (Method::PUT, "/v2/demo/app/manifests/v1".to_owned(), 405, "UNSUPPORTED"),
        (Method::POST, "/v2/demo/app/blobs/uploads/".to_owned(), 405, "UNSUPPORTED"),
        (Method::DELETE, format!("/v2/demo/app/blobs/{EMPTY}"), 405, "UNSUPPORTED"),
    ] {
        let answer = send(registry.request(method.clone(), &path)).await?;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{method} {path}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{method} {path}");
    }
    assert_eq!(registry.object_count("blobs").await? + registry.object_count("repositories").await?, 0);
    Ok(())
}

#[tokio::test]
async fn r_edge_28_bad_content_from_the_upstream_is_refused_and_nothing_is_stored() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image =
        upstream.publish_image("app", "v1", &[images::random_bytes(1, 100_000), images::random_bytes(2, 3 << 20)]);
    let large = vec![b' '; (4 << 20) + 1];
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let large = upstream.publish_manifest("app", Some("large"), oci, &large);
    upstream.publish_manifest("app", Some("html"), "text/html", b"<html>busy</html>");
    upstream.publish_manifest("app", Some("schema1"), oci, br#"{"schemaVersion":1}"#);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;

    for reference in ["large", "html", "schema1", large.as_str()] {
        let answer = registry.manifest("demo/app", reference).await?;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "UNKNOWN"), "{reference}");
    }
    upstream.script(&image.manifest, Fault::FlipBit);
    assert_eq!(registry.manifest("demo/app", &image.manifest).await?.status, StatusCode::BAD_GATEWAY);

    // A small blob is verified before its first byte; a large one is cut before its end.
    let (small, large) = (&image.layers[0], &image.layers[1]);
    upstream.script(small, Fault::FlipBit);
    upstream.script(large, Fault::FlipBit);
    assert_eq!(registry.blob("demo/app", small).await?.status, StatusCode::BAD_GATEWAY);
    let response = registry.request(Method::GET, &format!("/v2/demo/app/blobs/{large}")).send().await?;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.bytes().await.is_err(), "a wrong blob is never completed");

    assert_eq!(registry.object_count("blobs").await? + registry.object_count("repositories").await?, 0);
    assert!(registry.repository_names().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn redirects_and_realms_to_addresses_without_leave_are_refused() -> Result<()> {
    // A canary that must never be called: private addresses are allowed only for the upstream's own host and port.
    let canary = FakeUpstream::start_at("127.0.0.2:0".parse()?).await;
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 1000)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;

    let layer = &image.layers[0];
    upstream.script(layer, Fault::Redirect(307, format!("{}/v2/app/blobs/{layer}", canary.url())));
    upstream.script("manifests/v1", Fault::Redirect(307, format!("{}/v2/app/manifests/v1", canary.url())));
    for path in [format!("blobs/{layer}"), "manifests/v1".to_owned()] {
        let answer = registry.get(&format!("/v2/demo/app/{path}")).await?;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "UNKNOWN"), "{path}");
        let text = String::from_utf8_lossy(&answer.bytes).into_owned();
        assert!(text.contains("127.0.0.2"), "names the host: {text}");
    }

    upstream.heal();
    upstream.set_auth(Auth::AnonymousToken);
    upstream.set_realm(format!("{}/token", canary.url()));
    let answer = registry.manifest("demo/app", "v1").await?;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "UNKNOWN"));
    assert_eq!((canary.connections(), registry.object_count("blobs").await?), (0, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_pulls_of_random_names_leave_no_object_and_no_row() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let registry = Arc::new(Registry::start().await?);
    registry.rule("demo", &upstream).await?;
    let paths = (0..10_000_u32).map(|number| {
        let name = uuid::Uuid::new_v4().simple().to_string();
        match number % 4 {
            0 => format!("/v2/demo/{name}/manifests/latest"),
            1 => format!("/v2/demo/{name}/manifests/sha256:{name}{name}"),
            2 => format!("/v2/demo/{name}/blobs/sha256:{name}{name}"),
            _ => format!("/v2/{name}/app/manifests/latest"),
        }
    });
    let answers = futures_util::stream::iter(paths).map(|path| {
        let registry = registry.clone();
        async move { registry.get(&path).await.map(|answer| answer.status) }
    });
    let statuses: Vec<_> = answers.buffer_unordered(32).collect().await;
    for status in statuses {
        assert_eq!(status?, StatusCode::NOT_FOUND);
    }
    for folder in ["blobs", "repositories", "events", "uploads"] {
        assert_eq!(registry.object_count(folder).await?, 0, "{folder}");
    }
    assert!(registry.repository_names().await?.is_empty());
    Ok(())
}
