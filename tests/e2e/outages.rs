//! While the upstream or the database is away, existing content is still served.

use anyhow::Result;
use entrepot_runtime::Clock;
use entrepot_test_support::{FakeUpstream, Fault, Postgres, images, wait_until};
use http::StatusCode;

use crate::registry::{LIMIT, Registry};

#[tokio::test]
async fn cached_pulls_go_on_without_the_upstream_and_new_ones_get_an_honest_error() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 2 << 20)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;
    for blob in image.blobs() {
        registry.blob("demo/app", blob).await?;
    }

    upstream.stop().await;
    assert_eq!(registry.manifest("demo/app", "v1").await?.status, StatusCode::OK);
    assert_eq!(registry.manifest("demo/app", &image.manifest).await?.status, StatusCode::OK);
    for blob in image.blobs() {
        assert_eq!(images::sha256(&registry.blob("demo/app", &blob).await?.bytes), blob);
    }
    let new = registry.manifest("demo/app", "v2").await?;
    assert_eq!((new.status, new.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"));
    assert!(new.header("retry-after").is_some());
    let text = String::from_utf8_lossy(&new.bytes).into_owned();
    assert!(text.contains("`demo`") && text.contains("upstream"), "names the rule and the upstream: {text}");
    Ok(())
}

#[tokio::test]
async fn clients_that_do_not_resume_do_not_notice_an_upstream_that_breaks_off() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let layer = images::random_bytes(1, 3 << 20);
    let image = upstream.publish_image("app", "v1", std::slice::from_ref(&layer));
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;
    upstream.script_times(&image.layers[0], Fault::CutAfter(500_000), 5);
    let pulled = registry.blob("demo/app", &image.layers[0]).await?;
    assert_eq!((pulled.status, pulled.bytes.len()), (StatusCode::OK, layer.len()));
    assert!(pulled.bytes == layer);
    assert_eq!(upstream.fetches_of(&image.layers[0]), 6);

    // It is stored as if nothing had happened.
    upstream.stop().await;
    assert!(registry.blob("demo/app", &image.layers[0]).await?.bytes == layer);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_go_on_without_postgres_and_are_listed_once_when_it_is_back() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.publish_image("old", "v1", &[images::random_bytes(1, 1000)]);
    let new = upstream.publish_image("new", "v1", &[images::random_bytes(2, 1000)]);
    let postgres = Postgres::start().await;
    let registry = Registry::start_on(&postgres.database().await, Clock::system()).await?;
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/old", "v1").await?;
    registry.listed("demo/old", "v1").await;

    postgres.kill().await;
    assert_eq!(registry.manifest("demo/old", "v1").await?.status, StatusCode::OK);
    assert_eq!(registry.manifest("demo/new", "v1").await?.status, StatusCode::OK);
    for blob in new.blobs() {
        assert_eq!(registry.blob("demo/new", &blob).await?.status, StatusCode::OK);
    }
    let status = registry.repository_names().await.unwrap_err().downcast::<tonic::Status>()?;
    assert_eq!(status.code(), tonic::Code::Unavailable);

    postgres.resume().await;
    registry.listed("demo/new", "v1").await;
    wait_until(LIMIT, "no event waits", async || registry.object_count("events").await.is_ok_and(|count| count == 0))
        .await;
    assert_eq!(registry.repository_names().await?, ["repositories/demo/new", "repositories/demo/old"]);
    assert_eq!(registry.image_list("demo/new").await?.len(), 1);
    Ok(())
}
