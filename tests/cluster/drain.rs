//! Programs that are told to stop while they are used: nobody notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use entrepot_test_support::{FakeUpstream, images};
use futures_util::future::try_join_all;

use crate::cluster::{Cluster, Setup};
use crate::report::report;

/// Long enough for HAProxy to look away before the listener closes.
const NOTICE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_nodes_fails_no_request() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.publish_image("warm", "v1", &[images::random_bytes(1, 3 << 20), images::random_bytes(2, 1000)]);
    for number in 0..400 {
        upstream.publish_image(&format!("cold-{number}"), "v1", &[images::random_bytes(100 + number, 200_000)]);
    }
    let setup = Setup { drain_notice: NOTICE, ..Setup::default() };
    let Some(cluster) = Cluster::start_with(setup).await? else { return Ok(()) };
    let cluster = Arc::new(cluster);
    cluster.api().rule("demo", &upstream).await?;
    cluster.client().pull("demo/warm", "v1").await?;

    let (stop, pulls, next) =
        (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let clients = (0..6).map(|number| {
        let (cluster, stop, pulls, next) = (cluster.clone(), stop.clone(), pulls.clone(), next.clone());
        tokio::spawn(async move {
            // Connections are kept from pull to pull, as clients and load balancers do.
            let client = cluster.client();
            while !stop.load(Ordering::Relaxed) {
                let warm = client.pull("demo/warm", "v1").await;
                warm.with_context(|| format!("client {number}, a warm pull"))?;
                let cold = next.fetch_add(1, Ordering::Relaxed);
                if cold < 400 {
                    let pulled = client.pull(&format!("demo/cold-{cold}"), "v1").await;
                    pulled.with_context(|| format!("client {number}, cold pull {cold}"))?;
                }
                pulls.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        })
    });
    let clients: Vec<_> = clients.collect();
    let begun = Instant::now();
    for node in &cluster.nodes {
        let before = pulls.load(Ordering::Relaxed);
        cluster.until("the clients pull", async || pulls.load(Ordering::Relaxed) > before + 12).await;
        let stopping = Instant::now();
        let status = node.program.stop().await;
        assert_eq!(status.code(), Some(0), "`{}` was told to stop", node.name());
        report(&format!("`{}` had drained after", node.name()), format!("{:?}", stopping.elapsed()));
        node.start().await;
        cluster.haproxy.until_sees("registry", node.name(), true).await;
    }
    let before = pulls.load(Ordering::Relaxed);
    cluster.until("the clients pull on", async || pulls.load(Ordering::Relaxed) > before + 12).await;
    stop.store(true, Ordering::Relaxed);
    for client in try_join_all(clients).await? {
        client?;
    }
    let whole = pulls.load(Ordering::Relaxed);
    report("whole pulls without a failure during the rolling restart", format!("{whole} in {:?}", begun.elapsed()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_planes_that_are_restarted_in_turn_fail_no_call() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    let setup = Setup { drain_notice: NOTICE, ..Setup::default() };
    let Some(cluster) = Cluster::start_with(setup).await? else { return Ok(()) };
    let cluster = Arc::new(cluster);
    cluster.api().rule("demo", &upstream).await?;

    let (stop, calls, retries) =
        (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let callers = (0..3).map(|caller| {
        let (cluster, stop, calls, retries) = (cluster.clone(), stop.clone(), calls.clone(), retries.clone());
        tokio::spawn(async move {
            let api = cluster.balanced_api();
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let repeated = api.round(&format!("rule-{caller}-{round}"), "demo").await?;
                retries.fetch_add(repeated, Ordering::Relaxed);
                calls.fetch_add(3, Ordering::Relaxed);
            }
            anyhow::Ok(())
        })
    });
    let callers: Vec<_> = callers.collect();
    for control_plane in &cluster.control_planes {
        let before = calls.load(Ordering::Relaxed);
        cluster.until("calls are answered", async || calls.load(Ordering::Relaxed) > before + 9).await;
        let status = control_plane.program.stop().await;
        assert_eq!(status.code(), Some(0), "`{}` was told to stop", control_plane.name());
        control_plane.start().await;
        cluster.haproxy.until_sees("api", control_plane.name(), true).await;
    }
    let before = calls.load(Ordering::Relaxed);
    cluster.until("calls are answered", async || calls.load(Ordering::Relaxed) > before + 9).await;
    stop.store(true, Ordering::Relaxed);
    for caller in try_join_all(callers).await? {
        caller?;
    }
    assert_eq!(cluster.api().rule_names().await?, ["rules/demo"]);
    report("calls that were answered while control planes restarted", calls.load(Ordering::Relaxed));
    report("of them after a retry", retries.load(Ordering::Relaxed));
    Ok(())
}
