//! Real clients with an upstream that breaks off: even clients that do not resume notice nothing.
//!
//! Clients that are not installed are skipped, which is printed.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use entrepot_test_support::{FakeUpstream, Fault, images, wait_until};
use tempfile::TempDir;
use tokio::process::Command;

use crate::registry::{LIMIT, Registry};

/// The login for every registry here, in the form for clients.
const LOGIN: &str = "admin:correct horse battery";
/// How often the upstream breaks off in each blob.
const RESETS: usize = 5;

/// Whether a client is installed.
#[expect(clippy::print_stdout, reason = "what is skipped is said aloud")]
fn have(client: &str) -> bool {
    let found = std::process::Command::new(client).arg("--version").output().is_ok();
    if !found {
        println!("skipped: {client} is not installed");
    }
    found
}

/// Runs a client to its end.
async fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output =
        tokio::time::timeout(4 * LIMIT, output).await.with_context(|| format!("{command:?} does not end"))??;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A layer with one file of this many bytes.
fn layer(dir: &Path, seed: u64, bytes: usize) -> Result<Vec<u8>> {
    let name = format!("file-{seed}");
    std::fs::write(dir.join(&name), images::random_bytes(seed, bytes))?;
    let tar = std::process::Command::new("tar").args(["-c", "-C"]).arg(dir).arg(&name).output()?;
    ensure!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    Ok(tar.stdout)
}

/// A registry with an upstream that resets each blob of `app:v1` five times.
async fn ground(dir: &Path) -> Result<(Registry, FakeUpstream, images::Image)> {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[layer(dir, 1, 7 << 20)?, layer(dir, 2, 4 << 20)?]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    for digest in &image.layers {
        upstream.script_times(digest, Fault::ResetAfter(700_000), RESETS);
    }
    Ok((registry, upstream, image))
}

/// Checks that each layer was reset each time.
fn each_was_reset(upstream: &FakeUpstream, image: &images::Image) {
    for digest in &image.layers {
        let asked = upstream.log().iter().filter(|entry| entry.method == "GET" && entry.path.ends_with(digest)).count();
        assert_eq!(asked, RESETS + 1, "{digest}");
    }
}

fn reference(registry: &Registry) -> String {
    format!("{}/demo/app:v1", registry.url.trim_start_matches("http://"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_does_not_notice_five_resets_of_each_blob() -> Result<()> {
    if !have("skopeo") {
        return Ok(());
    }
    let dir = TempDir::new()?;
    let (registry, upstream, image) = ground(dir.path()).await?;
    let to = dir.path().join("copy");
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "--src-tls-verify=false", "--src-creds", LOGIN]);
    run(copy.arg(format!("docker://{}", reference(&registry))).arg(format!("dir:{}", to.display()))).await?;
    each_was_reset(&upstream, &image);
    for digest in &image.layers {
        let copied = std::fs::read(to.join(digest.trim_start_matches("sha256:")))?;
        assert_eq!(images::sha256(&copied), *digest);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_does_not_notice_five_resets_of_each_blob() -> Result<()> {
    if !have("podman") {
        return Ok(());
    }
    let dir = TempDir::new()?;
    let (registry, upstream, image) = ground(dir.path()).await?;
    let podman = || {
        let mut podman = Command::new("podman");
        podman.args(["--storage-driver", "vfs", "--events-backend", "file", "--cgroup-manager", "cgroupfs", "--root"]);
        podman.arg(dir.path().join("root")).arg("--runroot").arg(dir.path().join("run"));
        podman
    };
    let reference = reference(&registry);
    run(podman().args(["pull", "--quiet", "--tls-verify=false", "--creds", LOGIN]).arg(&reference)).await?;
    each_was_reset(&upstream, &image);
    run(podman().args(["image", "rm", "--force"]).arg(&reference)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_fetches_a_layer_while_it_lands_for_another() -> Result<()> {
    if !have("containerd") || !have("ctr") {
        return Ok(());
    }
    let dir = TempDir::new()?;
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[layer(dir.path(), 1, 24 << 20)?]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    upstream.script(&image.layers[0], Fault::Rate(8 << 20));

    let socket = dir.path().join("containerd.sock");
    let config = dir.path().join("containerd.toml");
    std::fs::write(
        &config,
        "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n",
    )?;
    let mut daemon = Command::new("containerd")
        .arg("--config")
        .arg(config)
        .arg("--root")
        .arg(dir.path().join("root"))
        .arg("--state")
        .arg(dir.path().join("state"))
        .arg("--address")
        .arg(&socket)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let ctr = || {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(&socket);
        ctr
    };
    wait_until(LIMIT, "containerd runs", async || run(ctr().arg("version")).await.is_ok()).await;

    // Another client has already started it.
    registry.manifest("demo/app", "v1").await?;
    let mut first =
        registry.request(http::Method::GET, &format!("/v2/demo/app/blobs/{}", image.layers[0])).send().await?;
    ensure!(first.chunk().await?.is_some(), "it lands");
    run(ctr().args(["content", "fetch", "--plain-http", "--user", LOGIN]).arg(reference(&registry))).await?;
    assert_eq!(upstream.fetches_of(&image.layers[0]), 1);
    // The store of containerd accepts nothing that does not hash to its digest.
    let listed = ctr().args(["content", "ls", "--quiet"]).output().await?;
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&image.layers[0]));
    daemon.kill().await?;
    Ok(())
}
