//! Parts of a blob, requested while it lands.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use entrepot_test_support::{FakeUpstream, Fault, images, wait_until};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::{Method, StatusCode};

use crate::registry::{LIMIT, Registry};

const MIB: u64 = 1024 * 1024;

/// The size in MiB of the layer that is fetched in chunks. The long form sets it to 500.
const LAYER_MIB: &str = "ENTREPOT_LAYER_MIB";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_is_fetched_in_parallel_chunks_and_once_from_the_upstream() -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "no configuration of a registry: only this test knows of it")]
    let size = std::env::var(LAYER_MIB).ok().and_then(|mib| mib.parse::<u64>().ok()).unwrap_or(100) * MIB;
    let layer = images::random_bytes(1, usize::try_from(size)?);
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[layer]);
    let registry = Arc::new(Registry::start().await?);
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;

    let digest = &image.layers[0];
    let path = format!("/v2/demo/app/blobs/{digest}");
    let began = Instant::now();
    // The first request asks for everything and is closed when the size is known; the others have no end, either.
    let first = registry.request(Method::GET, &path).header("range", "bytes=0-").send().await?;
    assert_eq!(first.status(), StatusCode::PARTIAL_CONTENT);
    drop(first);
    const CHUNK: u64 = 8 * MIB;
    let chunks = stream::iter(0..size.div_ceil(CHUNK)).map(|chunk| {
        let (registry, path) = (registry.clone(), path.clone());
        let (start, end) = (chunk * CHUNK, size.min((chunk + 1) * CHUNK));
        tokio::spawn(async move { closed_early(&registry, &path, start..end).await })
    });
    let chunks: Vec<Vec<u8>> = chunks.buffered(8).map(|chunk| chunk?).try_collect().await?;
    println!("{size} bytes in chunks of {CHUNK}, 8 at a time: {:?}", began.elapsed());
    assert_eq!(images::sha256(&chunks.concat()), *digest);
    let sent = sent_bytes(&upstream, digest);
    assert!(sent as f64 <= 1.01 * size as f64, "the upstream has sent {sent} bytes of {size}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_far_ahead_of_what_has_landed_is_fetched_besides_and_never_again() -> Result<()> {
    let size = 130 * MIB;
    let layer = images::random_bytes(2, usize::try_from(size)?);
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", std::slice::from_ref(&layer));
    let registry = Arc::new(Registry::start().await?);
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;

    let digest = image.layers[0].clone();
    let path = format!("/v2/demo/app/blobs/{digest}");
    upstream.script(&digest, Fault::Rate(8 * MIB));
    let mut whole = registry.request(Method::GET, &path).send().await?;
    let mut landed = whole.chunk().await?.context("it has begun")?.len();
    let part = 110 * MIB..112 * MIB;
    let range = format!("bytes={}-{}", part.start, part.end - 1);
    let answer = crate::registry::send(registry.request(Method::GET, &path).header("range", range)).await?;
    assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
    assert!(answer.bytes[..] == layer[part.start as usize..part.end as usize]);
    let fetched =
        || upstream.log().iter().filter(|entry| entry.method == "GET" && entry.path.ends_with(&digest)).count();
    assert_eq!(fetched(), 2, "the part came by a request of its own");
    assert!(sent_bytes(&upstream, &digest) < 110 * MIB, "long before the rest");

    upstream.heal();
    while let Some(chunk) = whole.chunk().await? {
        ensure!(chunk[..] == layer[landed..landed + chunk.len()], "the bytes from {landed} on are wrong");
        landed += chunk.len();
    }
    assert_eq!(landed as u64, size);
    wait_until(LIMIT, "the fill ends", async || registry.metric("entrepot_fill_active") == 0.0).await;
    let sent = sent_bytes(&upstream, &digest);
    // Bytes that were on their way when the connection was closed are lost.
    assert!(sent as f64 <= 1.05 * size as f64, "the upstream has sent {sent} bytes of {size}");
    upstream.stop().await;
    let answer = registry.blob("demo/app", &digest).await?;
    assert_eq!(
        answer.status,
        StatusCode::OK,
        "{}",
        String::from_utf8_lossy(&answer.bytes[..answer.bytes.len().min(300)])
    );
    assert!(answer.bytes[..] == layer[..]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_without_ranges_serves_parts_in_their_turn() -> Result<()> {
    let layer = images::random_bytes(3, 110 << 20);
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", std::slice::from_ref(&layer));
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;
    let path = format!("/v2/demo/app/blobs/{}", image.layers[0]);
    upstream.script(&image.layers[0], Fault::NoRanges);
    upstream.script(&image.layers[0], Fault::Rate(40 * MIB));
    let request = registry.request(Method::GET, &path).header("range", format!("bytes={}-", 100 * MIB));
    let answer = crate::registry::send(request).await?;
    assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
    assert!(answer.bytes[..] == layer[100 << 20..]);
    Ok(())
}

/// The bytes of `range`, requested from its start without an end, like containerd does.
async fn closed_early(registry: &Registry, path: &str, range: Range<u64>) -> Result<Vec<u8>> {
    let request = registry.request(Method::GET, path).header("range", format!("bytes={}-", range.start));
    let mut response = request.send().await?;
    ensure!(response.status() == StatusCode::PARTIAL_CONTENT, "{}", response.status());
    let wanted = usize::try_from(range.end - range.start)?;
    let mut bytes = Vec::with_capacity(wanted);
    while bytes.len() < wanted {
        bytes.extend_from_slice(&response.chunk().await?.context("the part ends early")?);
    }
    bytes.truncate(wanted);
    Ok(bytes)
}

fn sent_bytes(upstream: &FakeUpstream, digest: &str) -> u64 {
    upstream.log().iter().filter(|entry| entry.path.contains(digest)).map(|entry| entry.sent_bytes).sum()
}
