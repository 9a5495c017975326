//! Another load balancer before the nodes: nginx with its defaults, which speaks HTTP/1.0 to them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use entrepot_test_support::{FakeUpstream, Fault, Nginx, images};
use tempfile::TempDir;

use crate::client::Client;
use crate::cluster::{Cluster, Setup, admin};
use crate::report::report;

/// How large the blob is that is read through it, in MiB. The long form sets it to 1024.
const BLOB_MIB: &str = "ENTREPOT_NGINX_MIB";

/// What a client has of a blob: all its bytes, or `None` if it notices that it has not; and when the first one came.
async fn pull(client: &Client, digest: &str) -> Result<(Option<Vec<u8>>, Duration)> {
    let begun = Instant::now();
    let mut answer = client.request(http::Method::GET, &format!("/v2/demo/app/blobs/{digest}")).send().await?;
    let (mut bytes, mut first) = (Vec::new(), None);
    if !answer.status().is_success() {
        return Ok((None, begun.elapsed()));
    }
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return Ok((Some(bytes), first.context("there is a first byte")?)),
            Err(_) => return Ok((None, begun.elapsed())),
        }
        first.get_or_insert_with(|| begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_nginx_with_its_defaults_before_two_nodes_come_right_blobs_and_no_wrong_ones() -> Result<()> {
    let mib = std::env::var(BLOB_MIB).ok().and_then(|mib| mib.parse::<u64>().ok()).unwrap_or(48);
    let size = usize::try_from(mib << 20)?;
    let upstream = FakeUpstream::start().await;
    let Some(cluster) = Cluster::start_with(Setup { control_planes: 1, ..Setup::default() }).await? else {
        return Ok(());
    };
    cluster.api().rule("demo", &upstream).await?;
    let folder = TempDir::new()?;
    let nodes: Vec<_> = cluster.nodes.iter().map(|node| node.at.registry()).collect();
    let nginx = Nginx::start(&nodes, folder.path()).await;
    let client = Client::patient(&nginx.url(), admin());

    for says_its_length in [true, false] {
        let large = upstream.publish_blob("app", images::random_bytes(mib + u64::from(says_its_length), size));
        if !says_its_length {
            say_no_length(&upstream, &large);
        }
        // Each node has it in turn: one has fetched it, the other one reads it from the bucket.
        for time in ["cold", "warm", "warm at the other node", "warm again"] {
            let (bytes, first) = pull(&client, &large).await?;
            let bytes =
                bytes.with_context(|| format!("a right blob is cut, {time}, length said: {says_its_length}"))?;
            assert_eq!(images::sha256(&bytes), large, "{time}, length said: {says_its_length}");
            report(&format!("first byte of {mib} MiB through nginx, {time}"), format!("{first:?}"));
        }
    }
    let wrong: [(&str, Fault); 4] = [
        ("a flipped bit", Fault::FlipBit),
        ("a flipped bit in the last byte", Fault::FlipBitAt(u64::MAX)),
        ("ended early", Fault::EndAfter(2 << 20)),
        ("more than all", Fault::Body(images::random_bytes(7, 4 << 20))),
    ];
    for (seed, (name, fault)) in (1000..).zip(wrong) {
        let digest = upstream.publish_blob("app", images::random_bytes(seed, 3 << 20));
        say_no_length(&upstream, &digest);
        upstream.script(format!("GET /v2/app/blobs/{digest}"), fault);
        for node in ["one", "the other"] {
            let (bytes, _) = pull(&client, &digest).await?;
            assert_eq!(bytes.map(|bytes| bytes.len()), None, "{name}: a client has what looks whole from {node}");
        }
    }
    Ok(())
}

/// Neither GET nor HEAD says how long the blob is.
fn say_no_length(upstream: &FakeUpstream, digest: &str) {
    upstream.script(format!("HEAD /v2/app/blobs/{digest}"), Fault::Status(405, None));
    upstream.script(format!("GET /v2/app/blobs/{digest}"), Fault::NoLength);
    upstream.script(format!("GET /v2/app/blobs/{digest}"), Fault::NoRanges);
}
