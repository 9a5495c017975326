//! Syncs, and images fetched in advance: what the upstream is asked, and what pulls get meanwhile and afterwards.

use anyhow::{Context as _, Result};
use entrepot_proto::v1 as pb;
use entrepot_runtime::Tasks;
use entrepot_test_support::{FakeUpstream, Fault, images, wait_until};
use http::StatusCode;
use tokio::runtime::Runtime;

use crate::registry::{LIMIT, Registry, send};
use pb::ItemOutcome::{Created, Failed, Unchanged};

/// Starts a sync of these tags, or of all.
async fn begin(registry: &Registry, repository: &str, tags: &[&str]) -> Result<pb::Operation> {
    let request = pb::SyncRepositoryRequest {
        name: format!("repositories/{repository}"),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        request_id: String::new(),
    };
    Ok(registry.repositories().sync_repository(request).await?.into_inner())
}

/// Waits for the end of an operation, like `entrepot sync`. Returns its items in the order in which they ended.
pub(crate) async fn watched(
    registry: &Registry,
    operation: &pb::Operation,
) -> Result<(pb::Operation, Vec<pb::OperationItem>)> {
    let request = pb::WatchOperationRequest { name: operation.name.clone() };
    let mut messages = registry.operations().watch_operation(request).await?.into_inner();
    let (mut last, mut ended) = (operation.clone(), Vec::new());
    let all = async {
        while let Some(message) = messages.message().await? {
            last = message.operation.context("each message has the operation")?;
            ended.extend(message.items.into_iter().filter(|item| item.outcome != 0));
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, all).await??;
    assert!(last.done, "the stream ends with the operation: {last:?}");
    Ok((last, ended))
}

/// Syncs, and returns the result of each tag.
pub(crate) async fn sync(registry: &Registry, repository: &str, tags: &[&str]) -> Result<Vec<pb::OperationItem>> {
    let (_, mut items) = watched(registry, &begin(registry, repository, tags).await?).await?;
    items.sort_by(|one, other| one.image.cmp(&other.image));
    Ok(items)
}

async fn digest_of(registry: &Registry, repository: &str, tag: &str) -> Result<String> {
    let answer = registry.manifest(repository, tag).await?;
    Ok(answer.header("docker-content-digest").context("a digest")?.to_owned())
}

/// A registry that knows the tag `demo/app:v1` of its upstream, and the image that it means.
async fn with_one_tag() -> Result<(FakeUpstream, Registry, images::Image)> {
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    registry.manifest("demo/app", "v1").await?;
    registry.listed("demo/app", "v1").await;
    Ok((upstream, registry, image))
}

#[tokio::test]
async fn a_sync_tells_of_each_tag_what_has_become_of_it() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let old = upstream.publish_image("app", "moves", &[images::random_bytes(1, 100)]);
    let same = upstream.publish_image("app", "stays", &[images::random_bytes(2, 100)]);
    let gone = upstream.publish_image("app", "goes", &[images::random_bytes(3, 100)]);
    for tag in ["moves", "stays", "goes"] {
        registry.manifest("demo/app", tag).await?;
        registry.listed("demo/app", tag).await;
    }
    let new = upstream.publish_image("app", "moves", &[images::random_bytes(4, 2 << 20), images::random_bytes(5, 100)]);
    let created = upstream.publish_image("app", "comes", &[images::random_bytes(6, 100)]);
    upstream.remove("app", "goes");

    let gets = upstream.fetches_of("manifests/stays");
    let items = sync(&registry, "demo/app", &["moves", "stays", "goes", "comes", "never"]).await?;
    let outcomes: Vec<_> = items
        .iter()
        .map(|item| {
            let tag = item.image.rsplit('/').next().unwrap_or_default();
            (tag, item.outcome(), item.from_digest.as_str(), item.to_digest.as_str())
        })
        .collect();
    assert_eq!(
        outcomes,
        [
            ("comes", pb::ItemOutcome::Created, "", created.manifest.as_str()),
            ("goes", pb::ItemOutcome::Deleted, gone.manifest.as_str(), gone.manifest.as_str()),
            ("moves", pb::ItemOutcome::Moved, old.manifest.as_str(), new.manifest.as_str()),
            ("never", pb::ItemOutcome::Failed, "", ""),
            ("stays", pb::ItemOutcome::Unchanged, same.manifest.as_str(), same.manifest.as_str()),
        ]
    );
    assert_eq!(upstream.fetches_of("manifests/stays"), gets, "a HEAD is enough for what has not moved");
    assert!(items[3].reason.contains("is unknown"), "{}", items[3].reason);

    // All of the new image is here.
    upstream.stop().await;
    assert_eq!(digest_of(&registry, "demo/app", "moves").await?, new.manifest);
    assert_eq!(digest_of(&registry, "demo/app", "comes").await?, created.manifest);
    for blob in new.blobs().into_iter().chain(created.blobs()) {
        let answer = registry.blob("demo/app", blob).await?;
        assert_eq!((answer.status, images::sha256(&answer.bytes)), (StatusCode::OK, blob.to_owned()));
    }
    assert_eq!(registry.manifest("demo/app", &old.manifest).await?.status, StatusCode::OK, "the old one stays");
    Ok(())
}

#[tokio::test]
async fn a_pull_during_a_sync_gets_the_old_image_whole_and_one_behind_it_the_new_one() -> Result<()> {
    let (upstream, registry, old) = with_one_tag().await?;
    for blob in old.blobs() {
        registry.blob("demo/app", blob).await?;
    }
    let new = upstream.publish_image("app", "v1", &[images::random_bytes(2, 1 << 20)]);
    let layer = &new.layers[0];
    let gate = upstream.hold(layer);

    let other_node = registry.second_node("node-2").await?;
    let operation = begin(&registry, "demo/app", &[]).await?;
    wait_until(LIMIT, "the layer is being fetched", async || upstream.fetches_of(layer) == 1).await;
    // The upstream is not even asked about these.
    let before = upstream.request_count();
    assert_eq!(digest_of(&registry, "demo/app", "v1").await?, old.manifest);
    for blob in old.blobs() {
        assert_eq!(registry.blob("demo/app", blob).await?.status, StatusCode::OK);
    }
    assert_eq!(upstream.request_count(), before);
    gate.release();

    let (operation, items) = watched(&registry, &operation).await?;
    assert_eq!((operation.state(), items.len()), (pb::OperationState::Succeeded, 1));
    assert_eq!(items[0].done_bytes, items[0].total_bytes);
    upstream.stop().await;
    assert_eq!(digest_of(&registry, "demo/app", "v1").await?, new.manifest);
    assert_eq!(registry.blob("demo/app", layer).await?.status, StatusCode::OK);
    let answer = send(registry.request_at(&other_node, "/v2/demo/app/manifests/v1")).await?;
    assert_eq!(answer.header("docker-content-digest"), Some(new.manifest.as_str()), "on every node");
    Ok(())
}

#[tokio::test]
async fn an_image_that_cannot_be_fetched_whole_leaves_the_tag_as_it_was() -> Result<()> {
    let (upstream, registry, old) = with_one_tag().await?;
    let new = upstream.publish_image("app", "v1", &[images::random_bytes(2, 1000)]);
    upstream.script(&new.layers[0], Fault::Status(404, None));

    let items = sync(&registry, "demo/app", &[]).await?;
    assert_eq!(items[0].outcome(), pb::ItemOutcome::Failed, "{items:?}");
    assert_eq!(digest_of(&registry, "demo/app", "v1").await?, old.manifest);
    Ok(())
}

#[tokio::test]
async fn a_cancelled_sync_ends_and_moves_nothing() -> Result<()> {
    let (upstream, registry, old) = with_one_tag().await?;
    let new = upstream.publish_image("app", "v1", &[images::random_bytes(2, 1 << 20)]);
    let gate = upstream.hold(&new.layers[0]);
    let operation = begin(&registry, "demo/app", &[]).await?;
    wait_until(LIMIT, "the layer is being fetched", async || upstream.fetches_of(&new.layers[0]) == 1).await;

    let request = pb::CancelOperationRequest { name: operation.name.clone() };
    let cancelled = registry.operations().cancel_operation(request).await?.into_inner();
    assert_eq!(cancelled.state(), pb::OperationState::Cancelling);
    let (operation, items) = watched(&registry, &operation).await?;
    assert_eq!((operation.state(), items[0].outcome()), (pb::OperationState::Cancelled, pb::ItemOutcome::Cancelled));
    gate.release();
    assert_eq!(digest_of(&registry, "demo/app", "v1").await?, old.manifest);
    Ok(())
}

#[tokio::test]
async fn an_image_is_fetched_ahead_for_the_platforms_that_are_asked_for() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let index = upstream.publish_index("app", "v1", &["linux/amd64", "linux/arm64", "linux/s390x"]);
    let plain = upstream.publish_image("plain", "v1", &[images::random_bytes(9, 1 << 20)]);
    let warm = |images: &[String], platforms: &[&str]| {
        let platforms = platforms.iter().map(|platform| (*platform).to_owned()).collect();
        pb::WarmImagesRequest { images: images.to_vec(), platforms, request_id: String::new() }
    };
    let names = [
        "repositories/demo/app/tags/v1".to_owned(),
        format!("repositories/demo/plain/images/{}", plain.manifest),
        "repositories/other/app/tags/v1".to_owned(),
    ];
    let operation = registry.images().warm_images(warm(&names, &["linux/arm64"])).await?.into_inner();
    let (operation, _) = watched(&registry, &operation).await?;
    assert_eq!((operation.state(), operation.failed_count), (pb::OperationState::Failed, 1), "no rule covers `other`");
    let parent = operation.name;
    let request = pb::ListOperationItemsRequest { parent, ..Default::default() };
    let items = registry.operations().list_operation_items(request).await?.into_inner().items;
    let outcomes: Vec<_> = items.iter().map(pb::OperationItem::outcome).collect();
    assert_eq!(outcomes, [Created, Created, Failed]);
    assert!(items[2].reason.contains("no rule covers this name"), "{}", items[2].reason);

    let (asked, others) = (&index.children[1], [&index.children[0], &index.children[2]]);
    for other in others {
        assert_eq!(upstream.fetches_of(&other.manifest), 0, "nobody asked for it");
    }
    // Doing it again changes nothing; without platforms it is for those that are here.
    let before = upstream.log().len();
    let operation = registry.images().warm_images(warm(&names[..2], &[])).await?.into_inner();
    let (_, items) = watched(&registry, &operation).await?;
    assert!(items.iter().all(|item| item.outcome() == Unchanged), "{items:?}");
    assert_eq!(upstream.log().len(), before, "a fresh tag is not asked for");

    upstream.stop().await;
    assert_eq!(registry.manifest("demo/app", "v1").await?.status, StatusCode::OK);
    for (repository, image) in [("demo/app", asked), ("demo/plain", &plain)] {
        assert_eq!(registry.manifest(repository, &image.manifest).await?.status, StatusCode::OK);
        for blob in image.blobs() {
            assert_eq!(registry.blob(repository, blob).await?.status, StatusCode::OK, "{repository} {blob}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_index_that_names_one_manifest_forty_thousand_times_costs_one_fetch_of_it() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let image = upstream.publish_image("app", "child", &[images::random_bytes(1, 100)]);
    let attached = upstream.publish_blob("app", images::random_bytes(2, 100));
    let entry = |media_type: &str, digest: &str, size: usize| {
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
    };
    let child = entry("", &image.manifest, 1);
    // Without a media type, so that as many as possible fit.
    let child = child.replace(r#""mediaType":"","#, "");
    let children = [vec![child; 40_000], vec![entry("text/plain", &attached, 100)]].concat().join(",");
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{children}]}}"#, images::OCI_INDEX);
    assert!(index.len() < 4 << 20, "{} bytes", index.len());
    upstream.publish_manifest("app", Some("many"), images::OCI_INDEX, &index);

    let names = vec!["repositories/demo/app/tags/many".to_owned()];
    let request = pb::WarmImagesRequest { images: names, ..Default::default() };
    let operation = registry.images().warm_images(request).await?.into_inner();
    let (operation, items) = watched(&registry, &operation).await?;
    assert_eq!(operation.state(), pb::OperationState::Succeeded, "{items:?}");
    assert_eq!(upstream.fetches_of(&image.manifest), 1);
    assert_eq!(upstream.fetches_of(&attached), 1, "what is no manifest is fetched as a blob");
    assert_eq!(items[0].total_bytes, items[0].done_bytes);
    let content: usize = image.manifest_bytes.len() + index.len() + 200;
    assert!(items[0].total_bytes < i64::try_from(content)? + 1000, "nothing counts twice: {:?}", items[0]);
    Ok(())
}

/// A repository `demo/app` with more tags than one node takes at once, all of which have moved to images whose layers
/// the upstream holds back; with a second node, once both nodes are working on them.
async fn two_at_work(end: impl FnOnce(Runtime, &Tasks) -> Option<Runtime>) -> Result<Vec<i32>> {
    const TAGS: u64 = 12;
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let publish = |seed: u64| -> Vec<images::Image> {
        let image =
            |tag| upstream.publish_image("app", &format!("v{tag:02}"), &[images::random_bytes(seed + tag, 1000)]);
        (0..TAGS).map(image).collect()
    };
    publish(0);
    for tag in 0..TAGS {
        registry.manifest("demo/app", format!("v{tag:02}")).await?;
        registry.listed("demo/app", &format!("v{tag:02}")).await;
    }
    let new = publish(100);
    let gate = upstream.hold("/blobs/");
    let (runtime, tasks) = registry.worker("node-2").await?;
    let operation = begin(&registry, "demo/app", &[]).await?;
    let items = async || {
        let request = pb::ListOperationItemsRequest { parent: operation.name.clone(), ..Default::default() };
        Ok::<_, tonic::Status>(registry.operations().list_operation_items(request).await?.into_inner().items)
    };
    wait_until(LIMIT, "both nodes work", async || {
        let items = items().await.unwrap_or_default();
        ["nodes/node-1", "nodes/node-2"].iter().all(|node| items.iter().any(|item| item.node == *node))
    })
    .await;
    let stopping = end(runtime, &tasks);
    if stopping.is_some() {
        // An attempt that was given back does not count.
        wait_until(LIMIT, "the jobs are given back", async || {
            let items = items().await.unwrap_or_default();
            !items.is_empty() && !items.iter().any(|item| item.node == "nodes/node-2" && item.attempt_count > 0)
        })
        .await;
    }
    gate.release();

    let (operation, _) = watched(&registry, &operation).await?;
    stopping.into_iter().for_each(Runtime::shutdown_background);
    assert_eq!(operation.state(), pb::OperationState::Succeeded);
    let items = items().await?;
    for (item, image) in items.iter().zip(&new) {
        assert_eq!((item.outcome(), &item.to_digest), (pb::ItemOutcome::Moved, &image.manifest), "{item:?}");
        assert_eq!(item.node, "nodes/node-1");
    }
    Ok(items.iter().map(|item| item.attempt_count).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_whose_node_is_killed_is_finished_by_another() -> Result<()> {
    let kill = |runtime: Runtime, _: &Tasks| {
        // Nobody is told.
        runtime.shutdown_background();
        None
    };
    let attempts = two_at_work(kill).await?;
    assert!(attempts.contains(&2), "{attempts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_gives_its_jobs_back_at_once() -> Result<()> {
    let stop = |runtime, tasks: &Tasks| {
        tasks.stopping().cancel();
        Some(runtime)
    };
    let attempts = two_at_work(stop).await?;
    assert!(attempts.iter().all(|attempts| *attempts == 1), "what is given back was not tried: {attempts:?}");
    Ok(())
}
