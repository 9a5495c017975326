//! Manifests of types that mean nothing here: any artifact is pulled, fetched ahead, kept up to date, listed and deleted.

use anyhow::Result;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, images};
use http::{Method, StatusCode};

use crate::registry::{Registry, send};
use crate::sync::{sync, watched};

const THING: &str = "application/vnd.example.thing.v1+json";

#[tokio::test]
async fn an_artifact_of_any_type_is_warmed_synced_listed_and_deleted() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let old = upstream.publish_manifest("app", Some("v1"), THING, r#"{"things":[1,2]}"#);
    let request =
        pb::WarmImagesRequest { images: vec!["repositories/demo/app/tags/v1".to_owned()], ..Default::default() };
    let operation = registry.images().warm_images(request).await?.into_inner();
    let (operation, items) = watched(&registry, &operation).await?;
    assert_eq!(operation.state(), pb::OperationState::Succeeded, "{items:?}");
    let listed = registry.listed("demo/app", "v1").await;
    assert_eq!((listed.media_type.as_str(), listed.digest.as_str()), (THING, old.as_str()));
    assert_eq!((listed.manifest_size_bytes, listed.content_size_bytes), (16, 0));

    let new = upstream.publish_manifest("app", Some("v1"), THING, "no JSON any more");
    let items = sync(&registry, "demo/app", &["v1"]).await?;
    assert_eq!(items[0].outcome(), pb::ItemOutcome::Moved, "{items:?}");
    upstream.stop().await;
    for (reference, digest, bytes) in
        [("v1", &new, "no JSON any more"), (&new, &new, "no JSON any more"), (&old, &old, r#"{"things":[1,2]}"#)]
    {
        let path = format!("/v2/demo/app/manifests/{reference}");
        let head = send(registry.request(Method::HEAD, &path)).await?;
        let get = registry.get(&path).await?;
        for answer in [&head, &get] {
            assert_eq!(answer.status, StatusCode::OK, "{reference}: {answer:?}");
            assert_eq!(answer.header("content-type"), Some(THING), "{reference}");
            assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()), "{reference}");
        }
        assert_eq!(&*get.bytes, bytes.as_bytes());
    }
    let name = registry.listed("demo/app", "v1").await.name;
    let deleted = registry.images().delete_image(pb::DeleteImageRequest { name }).await?.into_inner();
    assert_eq!(format!("{deleted:?}").matches(THING).count(), 1, "{deleted:?}");
    assert!(registry.image_list("demo/app").await?.iter().all(|image| image.digest != new));
    Ok(())
}

#[tokio::test]
async fn an_index_may_list_manifests_of_any_type() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let thing = upstream.publish_manifest("app", None, THING, "thing");
    let entry = images::descriptor(THING, b"thing");
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{entry}]}}"#, images::OCI_INDEX);
    upstream.publish_manifest("app", Some("all"), images::OCI_INDEX, index);
    let request =
        pb::WarmImagesRequest { images: vec!["repositories/demo/app/tags/all".to_owned()], ..Default::default() };
    let operation = registry.images().warm_images(request).await?.into_inner();
    let (operation, items) = watched(&registry, &operation).await?;
    assert_eq!(operation.state(), pb::OperationState::Succeeded, "{items:?}");
    upstream.stop().await;
    let answer = registry.manifest("demo/app", &thing).await?;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, Some(THING)));
    Ok(())
}
