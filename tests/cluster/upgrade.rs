//! Two releases on one database, while it is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use entrepot_test_support::{FakeUpstream, images};
use futures_util::future::try_join_all;

use crate::cluster::{Cluster, Member};
use crate::report::report;

/// What the next release's migration would do, as it would note it.
const MIGRATION: &str = "
    BEGIN;
    ALTER TABLE rules ADD COLUMN next_release text;
    ALTER TABLE repositories ADD COLUMN next_release bigint NOT NULL DEFAULT 0;
    ALTER TABLE images ADD COLUMN next_release text;
    INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
         VALUES (9999, 'next_release', '2026-01-01T00:00:00Z', '1');
    COMMIT";

/// With `ENTREPOT_OLD_CONTROL_PLANE`, the file of another release's control plane, `control-1` is of that release; see
/// `scripts/test-upgrade`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_releases_work_side_by_side_on_one_database_that_has_a_new_column() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    for number in 0..2000 {
        upstream.publish_image(&format!("app-{number}"), "v1", &[images::random_bytes(number, 2000)]);
    }
    let Some(cluster) = Cluster::start_beside_all().await? else { return Ok(()) };
    let cluster = Arc::new(cluster);
    let (old, new) = (&cluster.control_planes[0], &cluster.control_planes[1]);
    cluster.api().rule("demo", &upstream).await?;

    let (stop, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let workers = (0..2).map(|worker| tokio::spawn(work(cluster.clone(), worker, stop.clone(), rounds.clone())));
    let workers: Vec<_> = workers.collect();
    let some_rounds = async || {
        let before = rounds.load(Ordering::Relaxed);
        cluster.until("the registry is used", async || rounds.load(Ordering::Relaxed) > before + 4).await;
    };
    some_rounds().await;
    cluster.sql(MIGRATION);
    some_rounds().await;
    // The new release comes, the old one is restarted once, as a machine might be.
    for member in [new, old] {
        let status = member.program.stop().await;
        assert_eq!(status.code(), Some(0), "{}", member.name());
        some_rounds().await;
        member.start().await;
        cluster.haproxy.until_sees("api", member.name(), true).await;
        some_rounds().await;
    }
    stop.store(true, Ordering::Relaxed);
    for worker in try_join_all(workers).await? {
        worker?;
    }
    is_free_of_errors(old);
    is_free_of_errors(new);
    report("rounds of pulls and calls without an error", rounds.load(Ordering::Relaxed));

    let listed = cluster.api_of(old).repository_names().await?;
    assert_eq!(listed, cluster.api_of(new).repository_names().await?);
    Ok(())
}

/// First pulls through each node, and changes through whichever control plane HAProxy chooses.
async fn work(cluster: Arc<Cluster>, worker: usize, stop: Arc<AtomicBool>, rounds: Arc<AtomicUsize>) -> Result<()> {
    let api = cluster.balanced_api();
    let client = cluster.nodes[worker % 2].client();
    for round in 0..1000 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let repository = format!("demo/app-{}", worker * 1000 + round);
        client.pull(&repository, "v1").await.context("a pull")?;
        // A call that a stopping control plane cuts off is repeated, as clients of gRPC do.
        api.round(&format!("rule-{worker}-{round}"), "demo").await.context("a round of calls")?;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Its log holds no line of the level `ERROR`.
fn is_free_of_errors(member: &Member) {
    let log = member.program.log();
    let errors: Vec<_> = log.lines().filter(|line| line.contains("\"level\":\"ERROR\"")).collect();
    assert!(errors.is_empty(), "{}: {errors:#?}", member.name());
}
