//! Deletes, and pulls that race with them.

use std::sync::Arc;

use anyhow::Result;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, images, wait_until};
use futures_util::future::try_join_all;
use http::StatusCode;

use crate::registry::{LIMIT, Registry};

#[tokio::test]
async fn a_tag_that_is_deleted_and_pulled_again_is_listed_again() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    for _ in 0..3 {
        let answer = registry.manifest("demo/app", "v1").await?;
        assert_eq!(answer.header("docker-content-digest"), Some(image.manifest.as_str()));
        registry.listed("demo/app", "v1").await;

        let name = "repositories/demo/app/tags/v1".to_owned();
        let deleted = registry.images().delete_image(pb::DeleteImageRequest { name }).await?.into_inner();
        assert_eq!(deleted.digest, image.manifest);
        let images = registry.image_list("demo/app").await?;
        assert!(images.iter().all(|image| image.tags.is_empty()), "the tag is gone at once: {images:?}");
    }

    let before = upstream.request_count();
    registry.manifest("demo/app", "v1").await?;
    assert!(upstream.request_count() > before, "a deleted tag is asked for again");
    let name = format!("repositories/demo/app/images/{}", image.manifest);
    registry.images().delete_image(pb::DeleteImageRequest { name }).await?;
    assert!(registry.image_list("demo/app").await?.is_empty());
    assert_eq!(registry.manifest("demo/app", "v1").await?.status, StatusCode::OK);
    registry.listed("demo/app", "v1").await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_delete_that_races_with_pulls_is_wholly_the_old_or_wholly_the_new() -> Result<()> {
    const PULLS: usize = 50;
    const ROUNDS: usize = 100;
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 1000)]);
    let registry = Arc::new(Registry::start().await?);
    registry.rule("demo", &upstream).await?;

    let name = || "repositories/demo/app".to_owned();
    let (mut left, mut gone) = (0, 0);
    for round in 0..ROUNDS {
        let pulls: Vec<_> = (0..PULLS)
            .map(|_| {
                let registry = registry.clone();
                tokio::spawn(async move { registry.manifest("demo/app", "v1").await })
            })
            .collect();
        let deleted = registry
            .repositories()
            .delete_repository(pb::DeleteRepositoryRequest { name: name(), ..Default::default() })
            .await;
        if let Err(status) = &deleted {
            assert_eq!(status.code(), tonic::Code::NotFound, "round {round}: {status}");
        }
        for answer in try_join_all(pulls).await? {
            assert_eq!(answer?.bytes, image.manifest_bytes, "round {round}");
        }

        // What the store has and what the index lists must become the same, and complete.
        let path = "repositories/demo/app/_repository".parse()?;
        let record: serde_json::Value =
            serde_json::from_slice(&registry.store.get(&path).await?.expect("a record").bytes)?;
        if record["state"] == "live" {
            left += 1;
            let listed = registry.listed("demo/app", "v1").await;
            assert_eq!(listed.digest, image.manifest, "round {round}");
            let get = pb::GetRepositoryRequest { name: name() };
            let repository = registry.repositories().get_repository(get).await?.into_inner();
            assert_eq!(repository.uid, record["incarnation"].as_str().unwrap_or_default(), "round {round}");
            assert_eq!(repository.image_count, 1, "round {round}");
        } else {
            gone += 1;
            let what = format!("round {round}: a deleted repository is not listed");
            wait_until(LIMIT, &what, async || registry.repository_names().await.is_ok_and(|names| names.is_empty()))
                .await;
        }
    }
    println!("{ROUNDS} rounds: {left} left the new repository, {gone} left none");
    // All events of the rounds have arrived; none of them brings a dead repository back.
    wait_until(LIMIT, "no event waits", async || registry.object_count("events").await.is_ok_and(|count| count == 0))
        .await;
    assert!(registry.repository_names().await?.len() <= 1);
    Ok(())
}
