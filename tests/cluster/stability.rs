//! Control planes and Postgres away: nodes serve on, and what they learn is not lost.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use entrepot_data_plane::failpoint;
use entrepot_test_support::{FakeUpstream, Fault, images, wait_until};
use http::StatusCode;

use crate::api::Api;
use crate::client::{Client, Credential, LIMIT};
use crate::cluster::Cluster;
use crate::report::{report, seconds};

/// What the repositories of the test hold.
fn publish(upstream: &FakeUpstream, repository: &str, seed: u64) {
    upstream.publish_image(repository, "v1", &[images::random_bytes(seed, 300_000), images::random_bytes(seed, 100)]);
}

/// Short in CI; `ENTREPOT_OUTAGE_SECONDS=400` outlasts every lease, bearer token and memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_and_logins_go_on_without_control_planes_and_postgres() -> Result<()> {
    let length = seconds("ENTREPOT_OUTAGE_SECONDS", 20);
    let upstream = FakeUpstream::start().await;
    publish(&upstream, "cached", 1);
    let Some(cluster) = Cluster::start_beside_all().await? else { return Ok(()) };
    cluster.api().rule("demo", &upstream).await?;
    let login = Credential::Password("AWS".to_owned(), cluster.api().login_token().await?);
    let client = cluster.client().with(login.clone());
    client.pull("demo/cached", "v1").await?;
    let bearer = client.log_in("demo/cached").await?;

    for control_plane in &cluster.control_planes {
        control_plane.program.kill().await;
    }
    cluster.postgres.kill().await;
    let (begun, mut rounds) = (Instant::now(), 0);
    let late = cluster.further_node("node-late");
    while begun.elapsed() < length || rounds < 8 {
        rounds += 1;
        let repository = format!("new-{rounds}");
        publish(&upstream, &repository, 1000 + rounds);
        let context = || format!("round {rounds}, {:?} after the end", begun.elapsed());
        client.pull("demo/cached", "v1").await.with_context(context)?;
        client.pull(&format!("demo/{repository}"), "v1").await.with_context(context)?;
        client.log_in("demo/cached").await.with_context(context)?.pull("demo/cached", "v1").await?;
        if begun.elapsed() < Duration::from_secs(60) {
            bearer.pull("demo/cached", "v1").await.with_context(context)?;
        }
        if rounds == 3 {
            let started = Instant::now();
            late.start().await;
            report("a node that starts during the outage is ready after", format!("{:?}", started.elapsed()));
            let late = Client::of(&late.registry_url(), login.clone());
            publish(&upstream, "late", 2);
            late.pull("demo/cached", "v1").await?;
            late.log_in("demo/late").await?.pull("demo/late", "v1").await?;
        }
        if rounds == 6 {
            // A node that ran before the outage comes back from the published snapshot, too.
            cluster.nodes[1].program.kill().await;
            cluster.haproxy.until_sees("registry", "node-2", false).await;
            cluster.nodes[1].start().await;
            cluster.haproxy.until_sees("registry", "node-2", true).await;
        }
        // One round a second is enough for a long outage.
        tokio::time::sleep(Duration::from_secs(1).min(length / 30)).await;
    }
    report("length of the outage", format!("{:?}", begun.elapsed()));
    report("rounds of pulls and logins without a failure", rounds);

    cluster.postgres.resume().await;
    for control_plane in &cluster.control_planes {
        control_plane.start().await;
    }
    let back = Instant::now();
    let mut expected: Vec<String> = (1..=rounds).map(|round| format!("demo/new-{round}")).collect();
    expected.extend(["demo/cached".to_owned(), "demo/late".to_owned()]);
    is_listed_once(&cluster.api(), expected, &[]).await?;
    report("everything is listed this long after the control planes are back", format!("{:?}", back.elapsed()));
    Ok(())
}

/// The control planes are frozen rather than stopped: when they go on, nothing makes them look through the store, so
/// whatever is listed then has come as an event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_at_any_step_of_a_fill_loses_no_event() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let Some(cluster) = Cluster::start().await? else { return Ok(()) };
    cluster.api().rule("demo", &upstream).await?;
    let victim = &cluster.nodes[1];
    for control_plane in &cluster.control_planes {
        control_plane.program.freeze();
    }
    cluster.postgres.kill().await;

    let (mut expected, mut begun) = (Vec::new(), Vec::new());
    for (number, failpoint) in (100..).zip(failpoint::NAMES) {
        let (name, repository) = (format!("crash-{number}"), format!("demo/crash-{number}"));
        // Several parts, where the step is one of a blob's.
        let size = if failpoint.starts_with("fill.") { 20 << 20 } else { 1000 };
        upstream.publish_image(&name, "v1", &[images::random_bytes(number, size)]);
        // Whatever it has left from the time before, it delivers now.
        victim.program.kill().await;
        victim.program.set_env("ENTREPOT_FAILPOINT", Some(failpoint));
        victim.start().await;
        let pulled = victim.client().pull(&repository, "v1").await;
        assert!(
            pulled.is_err(),
            "no failpoint `{failpoint}`: build the programs with `--features entrepot-data-plane/failpoints`"
        );
        victim.program.ended().await;
        victim.program.set_env("ENTREPOT_FAILPOINT", None);
        victim.start().await;

        let visible = is_visible(&cluster, &upstream, &name).await?;
        report(&format!("killed at `{failpoint}`"), if visible { "the tag was visible" } else { "no tag" });
        // Every second client comes back, through the other node; what is visible without that must be listed, too.
        if visible || number % 2 == 0 {
            // A moment later, if the answer of `is_visible` is still remembered as the upstream's.
            let client = cluster.nodes[0].client();
            cluster.until("the image is pulled", async || client.pull(&repository, "v1").await.is_ok()).await;
            expected.push(repository);
        } else {
            // Events come first, so that none is lost: a node may have died between them and what they tell of.
            begun.push(repository);
        }
    }
    assert!(!expected.is_empty(), "there are no failpoints");

    cluster.postgres.resume().await;
    for control_plane in &cluster.control_planes {
        control_plane.program.thaw();
    }
    is_listed_once(&cluster.api(), expected, &begun).await
}

/// Whether a tag can be pulled without a word of the upstream.
async fn is_visible(cluster: &Cluster, upstream: &FakeUpstream, name: &str) -> Result<bool> {
    let before = upstream.request_count();
    upstream.script(format!("/v2/{name}/"), Fault::Status(404, None));
    let answer = cluster.nodes[0].client().get(&format!("/v2/demo/{name}/manifests/v1")).await?;
    upstream.heal();
    let asked = upstream.request_count() > before;
    assert_eq!(answer.status, if asked { StatusCode::NOT_FOUND } else { StatusCode::OK }, "{name}");
    Ok(!asked)
}

/// Waits until these repositories are listed, each with one image that has the tag `v1`, and no others but perhaps some
/// that were begun; each once.
async fn is_listed_once(api: &Api, mut expected: Vec<String>, begun: &[String]) -> Result<()> {
    expected.sort();
    let listed = async || {
        let mut names = api.repository_names().await?;
        names.sort();
        names.retain(|name| !begun.contains(name));
        anyhow::Ok(names)
    };
    let what = "everything is listed";
    wait_until(LIMIT, what, async || listed().await.is_ok_and(|names| names.len() >= expected.len())).await;
    for repository in &expected {
        api.listed(repository, "v1").await;
        let images = api.image_list(repository).await?;
        let tags: Vec<Vec<_>> =
            images.iter().map(|image| image.tags.iter().map(|tag| tag.tag.as_str()).collect()).collect();
        assert_eq!(tags, [["v1"]], "{repository}");
    }
    assert_eq!(listed().await?, expected);
    let mut names = api.repository_names().await?;
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all, "one is listed twice");
    report("repositories that are listed, each once and with one image", expected.len());
    report("more of them, of fills that came to nothing", all - expected.len());
    Ok(())
}
