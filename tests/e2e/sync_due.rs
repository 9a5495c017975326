//! Syncs that nobody asks for: which tags are refreshed before they are stale, and how fast.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use entrepot_domain::RepositoryName;
use entrepot_proto::convert::timestamp;
use entrepot_proto::node::v1 as node;
use entrepot_proto::v1 as pb;
use entrepot_store::layout;
use entrepot_store::records::{self, RepositoryRecord, TagRecord};
use entrepot_test_support::{FakeUpstream, images, wait_until};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use crate::registry::{LIMIT, Registry};
use crate::report::report;

const HOUR: Duration = Duration::from_secs(3600);

/// How often the upstream was asked what a tag means.
fn heads(upstream: &FakeUpstream, repository: &str) -> usize {
    let prefix = format!("/v2/{repository}/manifests/");
    upstream.log().iter().filter(|entry| entry.method == "HEAD" && entry.path.starts_with(&prefix)).count()
}

/// Waits until the index knows that an image was pulled.
async fn pulled(registry: &Registry, repository: &str, tag: &str) {
    wait_until(LIMIT, "the pull is known", async || registry.listed(repository, tag).await.last_pull_time.is_some())
        .await;
}

/// Has the tags of the rule `demo` synced by themselves.
async fn switch_on(registry: &Registry) -> Result<()> {
    let automatic_sync = pb::AutomaticSync::On.into();
    let rule = pb::Rule { name: "rules/demo".to_owned(), automatic_sync, ..Default::default() };
    registry.rules().update_rule(pb::UpdateRuleRequest { rule: Some(rule), ..Default::default() }).await?;
    Ok(())
}

#[tokio::test]
async fn a_tag_in_use_is_refreshed_before_its_window_ends_unless_that_is_switched_off() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start_with_manual_clock().await?;
    registry.rule("demo", &upstream).await?;
    switch_on(&registry).await?;
    assert_eq!(registry.rule_to("calm", "demo").await?.automatic_sync(), pb::AutomaticSync::Off);
    let off = pb::AutomaticSync::Off.into();
    for (number, repository) in (1..).zip(["app", "quiet", "still"]) {
        upstream.publish_image(repository, "v1", &[images::random_bytes(number, 100)]);
    }
    for repository in ["demo/app", "demo/quiet", "calm/still"] {
        registry.manifest(repository, "v1").await?;
        pulled(&registry, repository, "v1").await;
    }
    let get = pb::GetRepositoryRequest { name: "repositories/demo/quiet".to_owned() };
    let quiet = registry.repositories().get_repository(get).await?.into_inner();
    assert_eq!(quiet.automatic_sync(), pb::AutomaticSync::Unspecified);
    let update = |etag: &str| pb::UpdateRepositoryRequest {
        repository: Some(pb::Repository {
            name: quiet.name.clone(),
            automatic_sync: off,
            etag: etag.to_owned(),
            ..Default::default()
        }),
        update_mask: None,
    };
    let stale = registry.repositories().update_repository(update("\"0\"")).await.expect_err("another etag");
    assert_eq!(stale.code(), tonic::Code::Aborted);
    let switched = registry.repositories().update_repository(update(&quiet.etag)).await?.into_inner();
    assert_eq!(switched.automatic_sync(), pb::AutomaticSync::Off);
    assert_ne!(switched.etag, quiet.etag);

    let new = upstream.publish_image("app", "v1", &[images::random_bytes(7, 1000)]);
    let before = [heads(&upstream, "app"), heads(&upstream, "quiet"), heads(&upstream, "still")];
    registry.clock.advance(22 * HOUR);
    wait_until(LIMIT, "the tag is refreshed", async || registry.listed("demo/app", "v1").await.digest == new.manifest)
        .await;
    let after = [heads(&upstream, "app"), heads(&upstream, "quiet"), heads(&upstream, "still")];
    assert_eq!(after, [before[0] + 1, before[1], before[2]], "one question, and none where it is switched off");
    for blob in new.blobs() {
        assert_eq!(upstream.fetches_of(blob), 1, "what it means now was fetched, too");
    }

    // That was this window's question: a pull that would have had to ask need not.
    registry.clock.advance(3 * HOUR);
    let count = upstream.request_count();
    let answer = registry.manifest("demo/app", "v1").await?;
    assert_eq!(answer.header("docker-content-digest"), Some(new.manifest.as_str()));
    assert_eq!(answer.header("cache-status"), Some("entrepot; hit"));
    assert_eq!(upstream.request_count(), count);
    Ok(())
}

/// Has the upstream, the store and the index know so many other tags of `demo/app:v1`, as if all of them had been pulled at
/// the same moment.
async fn publish_as_pulled(
    registry: &Registry,
    upstream: &FakeUpstream,
    image: &images::Image,
    count: usize,
) -> Result<()> {
    let name: RepositoryName = "demo/app".parse()?;
    let record = records::read::<RepositoryRecord>(&*registry.store, &layout::repository(&name)).await?;
    let incarnation = record.context("the repository")?.0.incarnation;
    let key = layout::tag(&name, incarnation, &"v1".parse()?);
    let record = records::read::<TagRecord>(&*registry.store, &key).await?.context("the tag")?.0;
    let event = |tag: &str| node::Event {
        event_id: Uuid::now_v7().to_string(),
        event_time: Some(timestamp(registry.clock.now())),
        repository: name.to_string(),
        incarnation: incarnation.to_string(),
        kind: Some(node::event::Kind::TagMoved(node::TagMoved {
            tag: tag.to_owned(),
            digest: image.manifest.clone(),
            revision: record.revision,
            validate_time: record.validate_time.map(timestamp),
        })),
    };
    let tags: Vec<String> = (0..count).map(|number| format!("t{number}")).collect();
    for tag in &tags {
        upstream.publish_manifest("app", Some(tag), &image.media_type, &image.manifest_bytes);
    }
    let writes =
        tags.iter().map(|tag| {
            let (store, name, record) = (&registry.store, &name, &record);
            async move {
                anyhow::Ok(store.put(&layout::tag(name, incarnation, &tag.parse()?), records::encode(record)).await?)
            }
        });
    stream::iter(writes).buffer_unordered(64).try_collect::<Vec<_>>().await?;
    for batch in tags.chunks(1000) {
        let events = batch.iter().map(|tag| event(tag)).collect();
        registry.report_events(events).await?;
    }
    Ok(())
}

#[tokio::test]
async fn ten_thousand_tags_that_are_due_at_once_are_asked_for_one_after_the_other() -> Result<()> {
    const TAGS: usize = 10_000;
    /// How many a second the upstream is asked for at most.
    const RATE: f64 = 10.0;
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start_with_manual_clock().await?;
    registry.rule("demo", &upstream).await?;
    switch_on(&registry).await?;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    registry.manifest("demo/app", "v1").await?;
    pulled(&registry, "demo/app", "v1").await;

    publish_as_pulled(&registry, &upstream, &image, TAGS).await?;

    let pulls = async || {
        let mut times = Vec::new();
        for _ in 0..100 {
            let began = Instant::now();
            registry.manifest("demo/app", &image.manifest).await?;
            times.push(began.elapsed());
        }
        times.sort_unstable();
        anyhow::Ok((times[50], times[99]))
    };
    let (median, worst) = pulls().await?;
    report("a pull without syncs", format!("{median:?} in the median, {worst:?} at worst"));
    let before = heads(&upstream, "app");
    let began = Instant::now();
    registry.clock.advance(22 * HOUR);
    let asked = || heads(&upstream, "app") - before;
    wait_until(LIMIT, "the first are asked for", async || asked() >= 20).await;
    let (median, worst) = pulls().await?;
    report("a pull beside them", format!("{median:?} in the median, {worst:?} at worst"));
    wait_until(LIMIT, "more are asked for", async || asked() >= 60).await;
    // Counted first: what comes after the count can only make the time longer.
    let count = asked();
    let seconds = began.elapsed().as_secs_f64();
    report("asked for", format!("{count} of {TAGS} tags in {seconds:.1} s"));
    assert!(count as f64 <= 1.0 + seconds * RATE, "{count} in {seconds} s");
    let log = upstream.log();
    let mut paths: Vec<&str> =
        log.iter().filter(|entry| entry.method == "HEAD").map(|entry| entry.path.as_str()).skip(before).collect();
    let all = paths.len();
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), all, "each is asked for once");
    Ok(())
}
