//! Full, read-only and stuck disks under the spool: pulls continue without caching.
//!
//! These tests mount file systems, which needs root; without it they print that and end.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use entrepot_test_support::{FakeUpstream, Fault, images};
use http::{Method, StatusCode};
use tempfile::TempDir;

use crate::registry::Registry;

/// A separate file system, until it is dropped.
struct Disk {
    dir: TempDir,
}

impl Disk {
    /// A file system in memory; `None` if it cannot be mounted here.
    fn in_memory(size_mib: u32) -> Result<Option<Self>> {
        let disk = Self { dir: TempDir::new()? };
        let size = format!("size={size_mib}m");
        let mounted = run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "spool"]).arg(disk.path()));
        Ok(disk.unless(mounted))
    }

    /// A file system in a file, which can be frozen; `None` if it cannot be mounted here.
    fn in_file(size_mib: u32) -> Result<Option<Self>> {
        let disk = Self { dir: TempDir::new()? };
        let image = disk.dir.path().join("image");
        std::fs::File::create(&image)?.set_len(u64::from(size_mib) << 20)?;
        let path = disk.path();
        let mounted = run(Command::new("mkfs.ext4").arg("-q").arg(&image))
            .and_then(|()| run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&path)));
        Ok(disk.unless(mounted))
    }

    #[expect(clippy::print_stdout, reason = "what is skipped is said aloud")]
    fn unless(self, mounted: Result<()>) -> Option<Self> {
        match mounted {
            Ok(()) => Some(self),
            Err(error) => {
                println!("skipped, since no file system can be mounted here: {error:#}");
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        let path = self.dir.path().join("disk");
        let _ = std::fs::create_dir(&path);
        path
    }

    fn remount(&self, how: &str) -> Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(self.path()))
    }

    /// Stops everything that writes, or lets it continue.
    fn freeze(&self, is_frozen: bool) -> Result<()> {
        run(Command::new("fsfreeze").arg(if is_frozen { "--freeze" } else { "--unfreeze" }).arg(self.path()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("--lazy").arg(self.path()));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?} cannot be run"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A registry whose spool is at `path`, and an upstream with an image of these layers.
async fn ground(path: &Path, layers: &[Vec<u8>]) -> Result<(Registry, FakeUpstream, images::Image)> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", layers);
    let registry = Registry::start_with_spool(path).await?;
    registry.rule("demo", &upstream).await?;
    registry.manifest("demo/app", "v1").await?;
    Ok((registry, upstream, image))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_lets_running_pulls_go_on_and_nothing_wrong_is_ever_completed() -> Result<()> {
    let Some(disk) = Disk::in_memory(8)? else { return Ok(()) };
    let layers =
        [images::random_bytes(1, 20 << 20), images::random_bytes(2, 20 << 20), images::random_bytes(3, 2 << 20)];
    let (registry, upstream, image) = ground(&disk.path(), &layers).await?;
    let path = format!("/v2/demo/app/blobs/{}", image.layers[0]);
    let readers: Vec<_> = (0..3).map(|_| registry.request(Method::GET, &path).send()).collect();
    let range = registry.request(Method::GET, &path).header("range", format!("bytes={}-", 19 << 20)).send();
    for reader in readers {
        let reader = reader.await?;
        assert_eq!(reader.status(), StatusCode::OK);
        assert_eq!(images::sha256(&reader.bytes().await?), image.layers[0]);
    }
    assert!(range.await?.bytes().await?[..] == layers[0][19 << 20..]);
    assert_eq!(registry.metric("entrepot_fill_duration_seconds_count{outcome=\"stored\""), 0.0);
    assert!(registry.metric("entrepot_fill_duration_seconds_count{outcome=\"passed_through\"") > 0.0);

    // Wrong content is not completed in this way, either.
    upstream.script(&image.layers[1], Fault::FlipBit);
    let response = registry.request(Method::GET, &format!("/v2/demo/app/blobs/{}", image.layers[1])).send().await?;
    assert!(response.bytes().await.is_err(), "a wrong blob is never completed");

    // Content that fits is still cached.
    assert_eq!(registry.blob("demo/app", &image.layers[2]).await?.status, StatusCode::OK);
    upstream.stop().await;
    assert_eq!(images::sha256(&registry.blob("demo/app", &image.layers[2]).await?.bytes), image.layers[2]);
    Ok(())
}

#[tokio::test]
async fn a_read_only_disk_passes_pulls_through() -> Result<()> {
    let Some(disk) = Disk::in_memory(64)? else { return Ok(()) };
    let layers = [images::random_bytes(1, 3 << 20), images::random_bytes(2, 1000)];
    let (registry, upstream, image) = ground(&disk.path(), &layers).await?;
    disk.remount("ro")?;
    for (digest, bytes) in image.layers.iter().zip(&layers) {
        let answer = registry.blob("demo/app", digest).await?;
        assert_eq!((answer.status, answer.bytes[..] == bytes[..]), (StatusCode::OK, true));
    }
    let absent = images::sha256(b"absent");
    assert_eq!(registry.blob("demo/app", &absent).await?.status, StatusCode::NOT_FOUND);
    disk.remount("rw")?;
    assert_eq!(registry.blob("demo/app", &image.layers[0]).await?.status, StatusCode::OK);
    upstream.stop().await;
    assert_eq!(registry.blob("demo/app", &image.layers[0]).await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_stuck_is_done_without() -> Result<()> {
    let Some(disk) = Disk::in_file(64)? else { return Ok(()) };
    let layers = [images::random_bytes(1, 12 << 20)];
    let (registry, upstream, image) = ground(&disk.path(), &layers).await?;
    upstream.script(&image.layers[0], Fault::Rate(4 << 20));
    let mut response = registry.request(Method::GET, &format!("/v2/demo/app/blobs/{}", image.layers[0])).send().await?;
    let mut bytes = response.chunk().await?.context("it has begun")?.to_vec();
    disk.freeze(true)?;
    let rest = async {
        while let Some(chunk) = response.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        anyhow::Ok(())
    };
    let rest = rest.await;
    disk.freeze(false)?;
    rest?;
    assert_eq!(images::sha256(&bytes), image.layers[0]);
    Ok(())
}
