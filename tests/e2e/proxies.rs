//! A proxy before the registry that speaks HTTP/1.0 to it, as nginx does unless it is told otherwise: for that one the
//! end of a connection is the end of a body, and its clients see what it makes of that.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use entrepot_data_plane::UpstreamLimits;
use entrepot_test_support::{FakeUpstream, Fault, Nginx, images, wait_until};
use tempfile::TempDir;

use crate::registry::{LIMIT, Registry};

const BYTES: usize = 3 << 20;

/// What the client of a proxy has in the end.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Right,
    /// An error, or an end that is none.
    Noticed,
    /// What looks whole and is not.
    Wrong,
}

struct Fixture {
    upstream: FakeUpstream,
    registry: Registry,
    nginx: Nginx,
    _folder: TempDir,
}

impl Fixture {
    async fn start() -> Result<Self> {
        let (upstream, folder) = (FakeUpstream::start().await, TempDir::new()?);
        let limits = UpstreamLimits {
            stall: Duration::from_millis(700),
            resumes: 3,
            retry_wait: Duration::from_millis(1),
            ..UpstreamLimits::default()
        };
        let registry = Registry::start_with_limits(limits).await?;
        registry.rule("demo", &upstream).await?;
        let nginx = Nginx::start(&[registry.url.trim_start_matches("http://").parse()?], folder.path()).await;
        Ok(Self { upstream, registry, nginx, _folder: folder })
    }

    /// An image with one large layer. The upstream says nowhere how large that is: only the manifest does.
    fn publish(&self, seed: u64) -> Result<(String, Vec<u8>)> {
        let bytes = images::random_bytes(seed, BYTES);
        let image = self.upstream.publish_image("app", &format!("v{seed}"), std::slice::from_ref(&bytes));
        let layer = image.layers[0].clone();
        self.upstream.script(format!("HEAD /v2/app/blobs/{layer}"), Fault::Status(405, None));
        self.upstream.script(format!("GET /v2/app/blobs/{layer}"), Fault::NoLength);
        self.upstream.script(format!("GET /v2/app/blobs/{layer}"), Fault::NoRanges);
        Ok((layer, bytes))
    }

    /// How a pull of a blob through the proxy ends.
    async fn pull(&self, digest: &str) -> Result<End> {
        let path = format!("/v2/demo/app/blobs/{digest}");
        let answer = self.registry.request_at(&self.nginx.url(), &path).send().await?;
        if !answer.status().is_success() {
            return Ok(End::Noticed);
        }
        let Ok(bytes) = answer.bytes().await else { return Ok(End::Noticed) };
        Ok(if images::sha256(&bytes) == digest { End::Right } else { End::Wrong })
    }
}

/// A way for a body to be wrong.
type Way = (&'static str, fn(&[u8]) -> Fault);

const WAYS: [Way; 5] = [
    ("a flipped bit", |_| Fault::FlipBit),
    ("a flipped bit in the last byte", |_| Fault::FlipBitAt(u64::MAX)),
    ("a body that ends early as if that were all", |_| Fault::EndAfter(2 << 20)),
    ("cuts without end", |_| Fault::CutAfter(2 << 20)),
    ("more than all", |bytes| Fault::Body([bytes, b"more"].concat())),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_of_nginx_with_its_defaults_completes_what_an_upstream_has_spoilt() -> Result<()> {
    let fixture = Fixture::start().await?;
    let mut seed = 0;
    for knows_the_size in [false, true] {
        let mut layer = async || {
            seed += 1;
            let (layer, bytes) = fixture.publish(seed)?;
            if knows_the_size {
                let manifest = fixture.registry.manifest("demo/app", format!("v{seed}")).await?;
                ensure!(manifest.status == 200, "{manifest:?}");
            }
            anyhow::Ok((layer, bytes))
        };
        let (right, _) = layer().await?;
        for time in ["cold", "warm"] {
            assert_eq!(fixture.pull(&right).await?, End::Right, "{time}, {knows_the_size}");
        }
        for (name, way) in WAYS {
            let (wrong, bytes) = layer().await?;
            fixture.upstream.script(format!("GET /v2/app/blobs/{wrong}"), way(&bytes));
            for time in ["first", "again"] {
                let end = fixture.pull(&wrong).await?;
                assert_eq!(end, End::Noticed, "{name}, {time}, the size is known: {knows_the_size}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_of_nginx_with_its_defaults_completes_what_was_damaged_in_the_store() -> Result<()> {
    let fixture = Fixture::start().await?;
    for (seed, bytes) in (1..).zip([2000, 1 << 20, BYTES]) {
        let digest = fixture.upstream.publish_blob("app", images::random_bytes(seed, bytes));
        assert_eq!(fixture.pull(&digest).await?, End::Right);
        wait_until(LIMIT, "it is stored", async || {
            fixture.registry.spool_count() == 0 && fixture.registry.file_of(&digest).is_some()
        })
        .await;
        let file = fixture.registry.file_of(&digest).context("it is stored")?;
        let mut damaged = std::fs::read(&file)?;
        damaged[bytes / 2] ^= 1;
        std::fs::write(file, damaged)?;
        let end = fixture.pull(&digest).await?;
        // What is small is hashed before its first byte leaves, and fetched anew.
        let honest = if bytes > 1 << 20 { End::Noticed } else { End::Right };
        assert_eq!(end, honest, "{bytes} bytes");
        assert_eq!(fixture.pull(&digest).await?, End::Right, "{bytes} bytes, and it heals");
    }
    Ok(())
}
