//! A node keeps to its memory, however many read and however slowly.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use entrepot_test_support::{FakeUpstream, images};
use futures_util::future::try_join_all;
use http::{Method, StatusCode};

use crate::client::{Client, Credential};
use crate::cluster::{Cluster, Company, Setup};
use crate::report::report;

const MIB: u64 = 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_readers_of_a_blob_cold_and_warm_one_of_them_slow_take_no_more_memory_than_they_may() -> Result<()> {
    const READERS: u64 = 100;
    /// What docs/operate.md says: the base and the records, one fetch, and the readers.
    const ALLOWED_KIB: u64 = (96 + 64) * 1024 + 16 * 1024 + 512 + READERS * 384;
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 64 * MIB as usize)]);
    let Some(cluster) = Cluster::start_with(Setup { company: Company::Alone, ..Setup::default() }).await? else {
        return Ok(());
    };
    cluster.api().rule("demo", &upstream).await?;
    let password = Credential::Password("AWS".to_owned(), cluster.api().login_token().await?);
    let client = Client::of(&cluster.nodes[0].registry_url(), password).log_in("demo/app").await?;
    let client = Arc::new(client);
    assert_eq!(client.get("/v2/demo/app/manifests/v1").await?.status, StatusCode::OK);

    let path = format!("/v2/demo/app/blobs/{}", image.layers[0]);
    let mut slow = client.request(Method::GET, &path).send().await?;
    let mut slowly = slow.chunk().await?.context("it has begun")?.to_vec();
    let fast = || (1..READERS).map(|_| tokio::spawn(length(client.clone(), path.clone())));
    assert!(try_join_all(fast()).await?.into_iter().all(|received| received.is_ok_and(|bytes| bytes == 64 * MIB)));
    while let Some(chunk) = slow.chunk().await? {
        slowly.extend_from_slice(&chunk);
    }
    assert_eq!(images::sha256(&slowly), image.layers[0]);

    // The same from the disk of the node and from the bucket, which a fill leaves nothing out of.
    assert!(try_join_all(fast()).await?.into_iter().all(|received| received.is_ok_and(|bytes| bytes == 64 * MIB)));
    assert_eq!(upstream.fetches_of(&image.layers[0]), 1);

    let peak = peaks_kib(cluster.folder())?.into_iter().max().context("nodes run")?;
    report("peak memory of a node, KiB", peak);
    report("what its readers and its fetch may take, KiB", ALLOWED_KIB);
    assert!(peak > 10 * 1024, "that is no node's memory: {peak} KiB");
    assert!(peak <= ALLOWED_KIB, "{peak} KiB are more than {ALLOWED_KIB} KiB");
    Ok(())
}

/// How long the blob at `path` is, of which nothing is kept.
async fn length(client: Arc<Client>, path: String) -> Result<u64> {
    let mut response = client.request(Method::GET, &path).send().await?;
    let mut received = 0;
    while let Some(chunk) = response.chunk().await? {
        received += chunk.len() as u64;
    }
    Ok(received)
}

/// The most memory that each node of the cluster in `folder` has had.
fn peaks_kib(folder: &Path) -> Result<Vec<u64>> {
    let mut peaks = Vec::new();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let read = |name: &str| std::fs::read_to_string(process.path().join(name)).unwrap_or_default();
        let command = read("cmdline");
        if command.contains("entrepot-data-plane") && command.contains(&folder.display().to_string()) {
            let status = read("status");
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("a peak")?;
            peaks.push(line.trim().trim_end_matches("kB").trim().parse()?);
        }
    }
    Ok(peaks)
}
