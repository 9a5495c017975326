//! Automatic syncs: which tags are refreshed before they are stale, and how fast.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use entrepot_domain::RepositoryName;
use entrepot_proto::convert::timestamp;
use entrepot_proto::node::v1 as node;
use entrepot_proto::v1 as pb;
use entrepot_records::layout;
use entrepot_records::{self as records, RepositoryRecord, TagRecord};
use entrepot_test_support::{FakeUpstream, LogEntry, images, wait_until};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use crate::registry::{LIMIT, Registry};
use crate::report::report;

const HOUR: Duration = Duration::from_secs(3600);

/// Whether a request asks what a tag of `repository` means.
fn is_head_of(repository: &str) -> impl Fn(&&LogEntry) -> bool {
    let prefix = format!("/v2/{repository}/manifests/");
    move |entry| entry.method == "HEAD" && entry.path.starts_with(&prefix)
}

/// How often the upstream was asked what a tag means.
fn heads(upstream: &FakeUpstream, repository: &str) -> usize {
    upstream.log().iter().filter(is_head_of(repository)).count()
}

/// Waits until the index knows that an image was pulled.
async fn pulled(registry: &Registry, repository: &str, tag: &str) {
    wait_until(LIMIT, "the pull is known", async || registry.listed(repository, tag).await.last_pull_time.is_some())
        .await;
}

/// Turns on automatic syncs for the rule `demo`.
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

    // That was the request of this window: a pull that would have had to ask need not.
    registry.clock.advance(3 * HOUR);
    let count = upstream.request_count();
    let answer = registry.manifest("demo/app", "v1").await?;
    assert_eq!(answer.header("docker-content-digest"), Some(new.manifest.as_str()));
    assert_eq!(answer.header("cache-status"), Some("entrepot; hit"));
    assert_eq!(upstream.request_count(), count);
    Ok(())
}

/// Makes the upstream, the store and the index know this many further tags of the image of `demo/app:v1`, as if all of
/// them had been pulled at the same moment.
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
        minimum_reader: 0,
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

/// A hundred pulls of an image that is here: the median and the longest time.
async fn pulls(registry: &Registry, image: &images::Image) -> Result<(Duration, Duration)> {
    let mut times = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        registry.manifest("demo/app", &image.manifest).await?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok((times[50], times[99]))
}

/// Gives the upstream of the rule `demo` a daily budget.
async fn set_budget(registry: &Registry, requests: i64) -> Result<()> {
    let window = Some(prost_types::Duration { seconds: 86_400, nanos: 0 });
    let budget = Some(pb::Budget { requests, window });
    let upstream = pb::Upstream { name: "upstreams/demo".to_owned(), budget, ..Default::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["budget".to_owned()] });
    let request = pb::UpdateUpstreamRequest { upstream: Some(upstream), update_mask };
    registry.upstreams().update_upstream(request).await?;
    Ok(())
}

// As in the programs: a client and a node do not wait for each other on one thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_tags_that_are_due_at_once_are_asked_for_one_after_the_other_within_the_budget() -> Result<()> {
    const TAGS: usize = 10_000;
    /// The most requests to the upstream per second.
    const RATE: f64 = 10.0;
    /// A fifth of this is reserved for clients.
    const BUDGET: usize = 100;
    const FOR_SYNCS: usize = BUDGET - BUDGET / 5;
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start_with_manual_clock().await?;
    registry.rule("demo", &upstream).await?;
    switch_on(&registry).await?;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    registry.manifest("demo/app", "v1").await?;
    pulled(&registry, "demo/app", "v1").await;
    publish_as_pulled(&registry, &upstream, &image, TAGS).await?;
    set_budget(&registry, i64::try_from(BUDGET)?).await?;

    let (median, worst) = pulls(&registry, &image).await?;
    report("a pull without syncs", format!("{median:?} in the median, {worst:?} at worst"));
    let (before, requests) = (heads(&upstream, "app"), upstream.request_count());
    let began = Instant::now();
    registry.clock.advance(22 * HOUR);
    let asked = || heads(&upstream, "app") - before;
    wait_until(LIMIT, "the first are asked for", async || asked() >= 20).await;
    let (median, worst) = pulls(&registry, &image).await?;
    report("a pull beside them", format!("{median:?} in the median, {worst:?} at worst"));
    wait_until(LIMIT, "more are asked for", async || asked() >= 60).await;
    // Counted first: later requests can only make the measured time longer.
    let count = asked();
    let seconds = began.elapsed().as_secs_f64();
    report("asked for", format!("{count} of {TAGS} tags in {seconds:.1} s"));
    assert!(count as f64 <= 1.0 + seconds * RATE, "{count} in {seconds} s");

    // After that nothing is left for syncs, which wait. The reserve is there for clients.
    let waits = "entrepot_job_duration_seconds_count{job_kind=\"automatic_sync\",outcome=\"over_budget\"";
    wait_until(LIMIT, "syncs wait for the budget", async || registry.metric(waits) >= 20.0).await;
    assert_eq!((asked(), upstream.request_count() - requests), (FOR_SYNCS, FOR_SYNCS), "a HEAD for each, and no more");
    let new = upstream.publish_image("new", "v1", &[images::random_bytes(2, 100)]);
    assert_eq!(registry.manifest("demo/new", "v1").await?.bytes, new.manifest_bytes);
    assert_eq!(asked(), FOR_SYNCS);
    let log = upstream.log();
    let paths: BTreeSet<&str> =
        log.iter().filter(is_head_of("app")).skip(before).map(|entry| entry.path.as_str()).collect();
    assert_eq!(paths.len(), FOR_SYNCS, "each is asked for once");
    Ok(())
}
