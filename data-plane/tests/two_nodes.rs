//! Two nodes that share a store and a Redis: what both lack is fetched by one of them, and whatever happens to that
//! node, the other one continues.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

#[path = "several/damage.rs"]
mod damage;
#[path = "several/fixture.rs"]
mod fixture;
#[path = "several/strangers.rs"]
mod strangers;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use entrepot_data_plane::Capacity;
use entrepot_test_support::{FakeUpstream, Fault, Image, images, wait_until};
use futures_util::future::join_all;
use parking_lot::Mutex;
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tracing::span;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use fixture::{Fixture, KEY, LIMIT};

fn ok(digest: &str) -> (StatusCode, String) {
    (StatusCode::OK, digest.to_owned())
}

/// An image with a large layer and a small one.
fn publish_image(upstream: &FakeUpstream) -> Image {
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 4 << 20), images::random_bytes(2, 1000)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_of_two_nodes_that_pull_one_cold_image_fetch_each_content_once() {
    const CLIENTS: usize = 25;
    let fixture = Fixture::new().await;
    let image = publish_image(&fixture.upstream);
    let (one, two) = fixture.two().await;
    let mut paths = vec![("app/manifests/v1".to_owned(), image.manifest.as_str())];
    paths.extend(image.blobs().into_iter().map(|digest| (format!("app/blobs/{digest}"), digest)));
    for (path, digest) in &paths {
        // The upstream holds back its first byte until all clients wait.
        let gate = fixture.upstream.hold(format!("GET /v2/{path}"));
        let clients: Vec<_> = [&one, &two].iter().flat_map(|node| (0..CLIENTS).map(|_| node.get(path))).collect();
        for node in [&one, &two] {
            let all = "all clients wait";
            wait_until(LIMIT, all, async || node.metric("entrepot_pull_active") >= CLIENTS as f64).await;
        }
        gate.until_waiting(1).await;
        gate.release();
        let since = Instant::now();
        for answer in join_all(clients).await {
            assert_eq!(answer.unwrap(), ok(digest));
        }
        println!("measured: {} clients had `{path}` {:?} after the upstream answered", 2 * CLIENTS, since.elapsed());
        for node in [&one, &two] {
            wait_until(LIMIT, "all have gone", async || node.metric("entrepot_pull_active") == 0.0).await;
        }
    }
    for digest in image.blobs() {
        assert_eq!(fixture.upstream.fetches_of(digest), 1, "{digest}");
    }
    assert_eq!(fixture.upstream.fetches_of("manifests/v1"), 1);
    let redis = &fixture.redis;
    wait_until(LIMIT, "all leases are given back", async || redis.dump().await.is_empty()).await;
}

#[tokio::test]
async fn the_size_in_a_manifest_that_another_node_has_served_counts_where_the_upstream_says_nothing() {
    const LAYER: usize = 24 << 20;
    const SAID: usize = 200_000;
    let fixture = Fixture::new().await;
    let (one, two) = fixture.two().await;
    for (seed, repository, said) in [(1, "right", LAYER), (2, "wrong", SAID)] {
        let layers = [images::random_bytes(seed, LAYER)];
        let config = images::config("linux/amd64", &layers);
        let manifest = String::from_utf8(images::manifest(&config, &layers)).unwrap();
        let manifest = manifest.replace(&format!("\"size\":{LAYER}"), &format!("\"size\":{said}"));
        fixture.upstream.publish_manifest(repository, Some("v1"), images::OCI_MANIFEST, manifest);
        let digest = fixture.upstream.publish_blob(repository, &layers[0]);
        for fault in [Fault::NoLength, Fault::NoRanges, Fault::Rate(8 << 20)] {
            fixture.upstream.script(format!("GET /v2/{repository}/blobs/{digest}"), fault);
        }
        fixture.upstream.script(format!("HEAD /v2/{repository}/blobs/{digest}"), Fault::Status(405, None));
        assert_eq!(one.get(&format!("{repository}/manifests/v1")).await.unwrap().0, StatusCode::OK);

        let answer = two.request(&format!("demo/{repository}/blobs/{digest}")).send().await.unwrap();
        if said == LAYER {
            assert_eq!((answer.status(), answer.content_length()), (StatusCode::OK, Some(LAYER as u64)));
            assert!(answer.bytes().await.unwrap() == layers[0]);
        } else {
            let (status, length) = (answer.status(), answer.content_length());
            let is_cut = status == StatusCode::BAD_GATEWAY || answer.bytes().await.is_err();
            assert!(is_cut, "{status} with {length:?} bytes looks whole");
            let log = fixture.upstream.log();
            let sent = log.iter().filter(|entry| entry.path.contains(&digest)).map(|entry| entry.sent_bytes);
            let sent: u64 = sent.sum();
            assert!(sent < LAYER as u64 / 2, "{sent} bytes were taken for {SAID}");
        }
    }
}

#[tokio::test]
async fn a_stale_tag_is_confirmed_by_one_node_for_both() {
    let fixture = Fixture::new().await;
    let image = publish_image(&fixture.upstream);
    let (one, two) = fixture.two().await;
    assert_eq!(one.get("app/manifests/v1").await.unwrap(), ok(&image.manifest));
    fixture.advance(Duration::from_secs(25 * 3600)).await;

    let gate = fixture.upstream.hold("HEAD /v2/app/manifests/v1");
    let first = one.get("app/manifests/v1");
    gate.until_waiting(1).await;
    let second = two.get("app/manifests/v1");
    two.until_busy().await;
    gate.release();
    for client in [first, second] {
        assert_eq!(client.await.unwrap(), ok(&image.manifest));
    }
    assert_eq!(gate.waiting(), 1);
    assert_eq!(fixture.upstream.fetches_of("manifests/v1"), 1);
}

#[tokio::test]
async fn a_stale_tag_whose_upstream_is_away_is_served_by_both() {
    let fixture = Fixture::new().await;
    let image = publish_image(&fixture.upstream);
    let (one, two) = fixture.two().await;
    assert_eq!(one.get("app/manifests/v1").await.unwrap(), ok(&image.manifest));
    fixture.advance(Duration::from_secs(25 * 3600)).await;
    fixture.upstream.stop().await;
    for client in [one.get("app/manifests/v1"), two.get("app/manifests/v1")] {
        assert_eq!(client.await.unwrap(), ok(&image.manifest));
    }
}

#[tokio::test]
async fn when_the_upstream_fails_one_node_the_other_has_its_own_try() {
    let fixture = Fixture::new().await;
    let image = publish_image(&fixture.upstream);
    let (one, two) = fixture.two().await;
    for (path, digest) in
        [("app/manifests/v1".to_owned(), &image.manifest), (format!("app/blobs/{}", image.layers[1]), &image.layers[1])]
    {
        let busy_before = two.metric("entrepot_lease_claim_duration_seconds_count{outcome=\"busy\"");
        let request = format!("GET /v2/{path}");
        let gate = fixture.upstream.hold(&request);
        fixture.upstream.script_times(&request, Fault::Status(404, None), 1);
        let first = one.get(&path);
        gate.until_waiting(1).await;
        let second = two.get(&path);
        let line = "entrepot_lease_claim_duration_seconds_count{outcome=\"busy\"";
        wait_until(LIMIT, "the other waits", async || two.metric(line) > busy_before).await;
        gate.release();
        assert_eq!(first.await.unwrap().0, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(second.await.unwrap(), ok(digest), "{path}");
        assert_eq!(gate.waiting(), 1, "the second request came after the first had failed");
    }
}

#[tokio::test]
async fn an_upstream_that_is_silent_for_long_is_waited_for_by_both_and_asked_once() {
    const SILENCE: Duration = Duration::from_secs(11);
    let fixture = Fixture::new().await;
    let image = publish_image(&fixture.upstream);
    let (one, two) = fixture.two().await;
    for (path, digest) in
        [("app/manifests/v1".to_owned(), &image.manifest), (format!("app/blobs/{}", image.layers[0]), &image.layers[0])]
    {
        fixture.upstream.script_times(format!("GET /v2/{path}"), Fault::Delay(SILENCE), 1);
        for client in [one.get(&path), two.get(&path)] {
            assert_eq!(client.await.unwrap(), ok(digest));
        }
        assert_eq!(
            fixture.upstream.fetches_of(digest) + fixture.upstream.fetches_of("manifests/v1"),
            1 + usize::from(path.contains("blobs"))
        );
    }
}

#[tokio::test]
async fn a_node_that_follows_reads_the_bytes_as_they_land_on_the_other() {
    let fixture = Fixture::new().await;
    let blob = images::random_bytes(7, 8 << 20);
    let digest = fixture.upstream.publish_blob("app", &blob);
    let (one, two) = fixture.two().await;
    fixture.upstream.script(&digest, Fault::Rate(4 << 20));
    let path = format!("app/blobs/{digest}");
    let first = one.get(&path);
    wait_until(LIMIT, "the upstream is asked", async || fixture.upstream.fetches_of(&digest) == 1).await;
    let request = two.client.get(format!("{}/v2/demo/{path}", two.url)).basic_auth(KEY.0, Some(KEY.1));
    let mut second = request.send().await.unwrap();
    assert_eq!(second.headers()["cache-status"], "entrepot; fwd=miss; collapsed; detail=follow");
    let mut received = second.chunk().await.unwrap().unwrap().to_vec();
    let sent: u64 = fixture.upstream.log().iter().map(|entry| entry.sent_bytes).sum();
    assert!(sent < blob.len() as u64 / 2, "the first byte comes when {sent} bytes have landed");
    while let Some(chunk) = second.chunk().await.unwrap() {
        received.extend_from_slice(&chunk);
    }
    assert_eq!(images::sha256(&received), digest);
    assert_eq!(first.await.unwrap(), ok(&digest));
    assert_eq!(fixture.upstream.fetches_of(&digest), 1);
}

#[tokio::test]
async fn a_node_follows_for_another_repository_only_if_the_upstream_has_the_blob_there() {
    let fixture = Fixture::new().await;
    let blob = images::random_bytes(7, 4 << 20);
    let digest = fixture.upstream.publish_blob("app", &blob);
    fixture.upstream.publish_blob("other", &blob);
    let (one, two) = fixture.two().await;
    let gate = fixture.upstream.hold(format!("GET /v2/app/blobs/{digest}"));
    let first = one.get(&format!("app/blobs/{digest}"));
    gate.until_waiting(1).await;
    let stranger = two.get(&format!("stranger/blobs/{digest}"));
    assert_eq!(stranger.await.unwrap().0, StatusCode::NOT_FOUND);
    let other = two.get(&format!("other/blobs/{digest}"));
    let head = format!("/v2/other/blobs/{digest}");
    let asked = || fixture.upstream.log().iter().any(|entry| entry.method == "HEAD" && entry.path == head);
    wait_until(LIMIT, "the upstream is asked for the other repository", async || asked()).await;
    gate.release();
    for client in [first, other] {
        assert_eq!(client.await.unwrap(), ok(&digest));
    }
    assert_eq!(fixture.upstream.fetches_of(&digest), 1);
}

#[test]
fn when_the_node_that_leads_dies_the_other_goes_on_from_its_own_byte() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (dying, living) = (runtime(), runtime());
    let fixture = living.block_on(Fixture::new());
    let blob = images::random_bytes(7, 12 << 20);
    let digest = fixture.upstream.publish_blob("app", &blob);
    fixture.upstream.script(&digest, Fault::Rate(4 << 20));
    let one = dying.block_on(fixture.node("node-1"));
    let path = format!("app/blobs/{digest}");
    living.block_on(async {
        let two = fixture.node("node-2").await;
        let entered = dying.enter();
        let _lost = one.get(&path);
        drop(entered);
        wait_until(LIMIT, "the upstream is asked", async || fixture.upstream.fetches_of(&digest) == 1).await;
        let second = two.get(&path);
        two.until_busy().await;
        let sent = || fixture.upstream.log().iter().map(|entry| entry.sent_bytes).sum::<u64>();
        wait_until(LIMIT, "half of it has landed", async || sent() > 6 << 20).await;
        let since = Instant::now();
        dying.shutdown_background();
        wait_until(LIMIT, "the upstream is asked again", async || fixture.upstream.fetches_of(&digest) == 2).await;
        println!("measured: the other node asked the upstream after {:?}", since.elapsed());
        assert_eq!(second.await.unwrap(), ok(&digest));
        let again = fixture.upstream.log().into_iter().rfind(|entry| entry.path.ends_with(&digest)).unwrap();
        assert!(again.sent_bytes < 7 << 20, "{} bytes were fetched again", again.sent_bytes);
        let stored = async || two.get(&path).await.unwrap() == ok(&digest) && fixture.upstream.fetches_of(&digest) == 2;
        assert!(stored().await);
    });
}

#[tokio::test]
async fn a_node_that_stops_hands_its_fill_over_to_the_node_that_follows() {
    let fixture = Fixture::new().await;
    // At a rate that a busy machine can follow: a fill is not handed over to a node that lags behind.
    let blob = images::random_bytes(7, 48 << 20);
    let digest = fixture.upstream.publish_blob("app", &blob);
    fixture.upstream.script(&digest, Fault::Rate(8 << 20));
    let (one, two) = fixture.two().await;
    let path = format!("app/blobs/{digest}");
    let leaves = one.get(&path);
    wait_until(LIMIT, "the upstream is asked", async || fixture.upstream.fetches_of(&digest) == 1).await;
    let stays = two.get(&path);
    two.until_busy().await;
    let sent = || fixture.upstream.log().iter().map(|entry| entry.sent_bytes).sum::<u64>();
    wait_until(LIMIT, "some of it has landed", async || sent() > 10 << 20).await;
    leaves.abort();
    one.tasks.stopping().cancel();
    assert_eq!(stays.await.unwrap(), ok(&digest));
    assert_eq!(fixture.upstream.fetches_of(&digest), 2, "the second one goes on where the first was");
    assert!(sent() < 58 << 20, "{} bytes were fetched for {}", sent(), blob.len());
    assert_eq!(two.get(&path).await.unwrap(), ok(&digest));
    assert_eq!(fixture.upstream.fetches_of(&digest), 2, "it is stored");
}

/// Passes connections on to `target`, and closes each behind the first bytes of its answer. Counts them.
async fn break_each(listener: TcpListener, target: String, count: Arc<AtomicUsize>) {
    loop {
        let (mut caller, _) = listener.accept().await.unwrap();
        let mut called = TcpStream::connect(&target).await.unwrap();
        count.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            let mut piece = vec![0; 64 << 10];
            loop {
                let asked = caller.read(&mut piece).await.unwrap_or_default();
                if asked == 0 || called.write_all(&piece[..asked]).await.is_err() {
                    return;
                }
                if piece[..asked].windows(4).any(|end| end == b"\r\n\r\n") {
                    break;
                }
            }
            let answered = called.read(&mut piece).await.unwrap_or_default();
            drop(caller.write_all(&piece[..answered]).await);
        });
    }
}

#[tokio::test]
async fn a_leader_on_a_way_that_breaks_again_and_again_is_called_with_pauses() {
    let fixture = Fixture::new().await;
    let digest = fixture.upstream.publish_blob("app", images::random_bytes(7, 500_000));
    let (listener, count) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Arc::new(AtomicUsize::default()));
    let address = format!("http://{}", listener.local_addr().unwrap());
    let mut target = String::new();
    let one = fixture.node_on("node-1", fixture.store.clone(), |config| {
        let own = config.peer_address.replace(address.parse().unwrap()).unwrap();
        target = own.authority().to_owned();
    });
    let one = one.await;
    tokio::spawn(break_each(listener, target, count.clone()));
    let two = fixture.node("node-2").await;
    let (gate, path) = (fixture.upstream.hold(&digest), format!("app/blobs/{digest}"));
    let first = one.get(&path);
    gate.until_waiting(1).await;
    let (since, before) = (Instant::now(), count.load(Ordering::SeqCst));
    let second = two.get(&path);
    wait_until(LIMIT, "the leader is called again and again", async || count.load(Ordering::SeqCst) >= before + 7)
        .await;
    // The third call waits first, for 50 ms at least, and each one after it twice as long as the one before.
    assert!(since.elapsed() >= Duration::from_millis(50 + 100 + 200 + 400), "after {:?}", since.elapsed());
    gate.release();
    for client in [first, second] {
        assert_eq!(client.await.unwrap(), ok(&digest));
    }
    assert_eq!(fixture.upstream.fetches_of(&digest), 1);
}

#[tokio::test]
async fn what_came_from_a_leader_whose_bytes_were_wrong_is_discarded() {
    let fixture = Fixture::new().await;
    let digest = fixture.upstream.publish_blob("app", images::random_bytes(7, 500_000));
    let (one, two) = fixture.two().await;
    fixture.upstream.script_times(&digest, Fault::FlipBitAt(5), 1);
    fixture.upstream.script_times(&digest, Fault::Rate(500_000), 1);
    let path = format!("app/blobs/{digest}");
    let first = one.get(&path);
    wait_until(LIMIT, "the upstream is asked", async || fixture.upstream.fetches_of(&digest) == 1).await;
    let second = two.get(&path);
    for client in [first, second] {
        assert_eq!(client.await.unwrap(), ok(&digest));
    }
    assert_eq!(fixture.upstream.fetches_of(&digest), 2);
}

#[tokio::test]
async fn without_redis_pulls_go_on_and_cost_a_moment_once() {
    let fixture = Fixture::new().await;
    let image = publish_image(&fixture.upstream);
    let (one, two) = fixture.two().await;
    fixture.redis.pause();
    let mut paths = vec![("app/manifests/v1".to_owned(), image.manifest.as_str())];
    paths.extend(image.blobs().into_iter().map(|digest| (format!("app/blobs/{digest}"), digest)));
    for (path, digest) in &paths {
        let since = Instant::now();
        let clients = [one.get(path), two.get(path)];
        for client in clients {
            assert_eq!(client.await.unwrap(), ok(digest));
        }
        println!("measured: Redis paused, `{path}` took {:?}", since.elapsed());
        assert!(fixture.upstream.fetches_of(digest) <= 2);
    }
    fixture.redis.resume();
}

#[tokio::test]
async fn without_redis_a_slow_answer_does_not_undo_a_newer_one() {
    let fixture = Fixture::new().await;
    let old = publish_image(&fixture.upstream);
    let (one, two) = fixture.two().await;
    fixture.redis.pause();
    fixture.upstream.script_times("GET /v2/app/manifests/v1", Fault::Rate(100), 1);
    let slow = one.get("app/manifests/v1");
    wait_until(LIMIT, "the upstream was asked", async || fixture.upstream.request_count() == 1).await;
    let new = fixture.upstream.publish_image("app", "v1", &[images::random_bytes(3, 1000)]);
    fixture.clock.advance(Duration::from_secs(1));
    assert_eq!(two.get("app/manifests/v1").await.unwrap(), ok(&new.manifest));
    assert_eq!(slow.await.unwrap(), ok(&old.manifest), "it was asked for first");
    for node in [&one, &two] {
        assert_eq!(node.get("app/manifests/v1").await.unwrap(), ok(&new.manifest));
    }
    assert_eq!(fixture.upstream.fetches_of("manifests/v1"), 2);
    fixture.redis.resume();
}

#[tokio::test]
async fn without_redis_a_node_has_half_of_its_fetches_at_once() {
    let fixture = Fixture::new().await;
    let node = fixture.node_with("node-1", Capacity { fills: 6, ..Capacity::default() }).await;
    let digests = (0..4).map(|seed| fixture.upstream.publish_blob("app", images::random_bytes(seed, 2 << 20)));
    let digests: Vec<_> = digests.collect();
    fixture.redis.pause();
    let gate = fixture.upstream.hold("GET /v2/app/blobs/");
    let clients: Vec<_> = digests.iter().map(|digest| node.get(&format!("app/blobs/{digest}"))).collect();
    let claims = "entrepot_lease_claim_duration_seconds_count{outcome=\"uncoordinated\"";
    wait_until(LIMIT, "all have asked for leases", async || node.metric(claims) == 4.0).await;
    gate.until_waiting(2).await;
    assert_eq!(gate.waiting(), 2, "half of six, of which one is kept for other upstreams");
    gate.release();
    for (client, digest) in clients.into_iter().zip(&digests) {
        assert_eq!(client.await.unwrap(), ok(digest));
    }
    fixture.redis.resume();
}

#[tokio::test]
async fn what_another_node_stored_for_another_repository_still_wants_the_upstreams_word() {
    let fixture = Fixture::new().await;
    let image = publish_image(&fixture.upstream);
    fixture.upstream.publish_blob("other", images::random_bytes(1, 4 << 20));
    let (one, two) = fixture.two().await;
    let layer = &image.layers[0];
    assert_eq!(one.get(&format!("app/blobs/{layer}")).await.unwrap(), ok(layer));

    assert_eq!(two.get(&format!("other/blobs/{layer}")).await.unwrap(), ok(layer));
    assert_eq!(two.get(&format!("stranger/blobs/{layer}")).await.unwrap().0, StatusCode::NOT_FOUND);
    assert_eq!(fixture.upstream.fetches_of(layer), 1);
    let asked: Vec<_> = fixture.upstream.log().into_iter().filter(|entry| entry.method == "HEAD").collect();
    assert!(asked.iter().any(|entry| entry.path == format!("/v2/other/blobs/{layer}")));
}

#[test]
fn one_trace_leads_from_the_pull_to_the_lease_the_upstream_and_the_commit() {
    let spans = Spans::default();
    tracing_subscriber::registry().with(spans.clone()).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let fixture = Fixture::new().await;
        let image = publish_image(&fixture.upstream);
        let node = fixture.node("node-1").await;
        node.get("app/manifests/v1").await.unwrap();
        node.get(&format!("app/blobs/{}", image.layers[0])).await.unwrap();
        wait_until(LIMIT, "the fill has ended", async || spans.has("fill.commit", "fill")).await;
    });
    let pull = spans.parent_of("fill").expect("a fill is part of a pull");
    for (span, parent) in [
        ("fill", pull.as_str()),
        ("lease.claim", "fill"),
        ("upstream.request", "fill"),
        ("fill.commit", "fill"),
        // For the manifest.
        ("lease.claim", &pull),
        ("upstream.request", &pull),
        ("fill.commit", &pull),
    ] {
        assert!(spans.has(span, parent), "`{span}` in `{parent}`: {spans:?}");
    }
}

/// The child process of the test below: it pulls an image through a node, and waits until everything is done.
#[tokio::test]
#[ignore = "it is run by the test of failpoints, in a process that dies of it"]
async fn a_pull_of_a_whole_image() {
    let fixture = Fixture::new().await;
    let image = publish_image(&fixture.upstream);
    let node = fixture.node("node-1").await;
    assert_eq!(node.get("app/manifests/v1").await.unwrap(), ok(&image.manifest));
    for digest in image.blobs() {
        assert_eq!(node.get(&format!("app/blobs/{digest}")).await.unwrap(), ok(digest));
    }
    wait_until(LIMIT, "all leases are given back", async || fixture.redis.dump().await.is_empty()).await;
}

#[cfg(feature = "failpoints")]
#[test]
fn a_pull_of_an_image_reaches_every_failpoint_and_dies_there() {
    use entrepot_data_plane::failpoint::NAMES;
    use std::os::unix::process::ExitStatusExt as _;

    let pull = |failpoint: &str| {
        let arguments = ["--exact", "a_pull_of_a_whole_image", "--ignored"];
        let this = std::env::current_exe().unwrap();
        let (status, _, log) =
            entrepot_test_support::program::try_run(this, &arguments, &[("ENTREPOT_FAILPOINT", failpoint)]);
        (status, log)
    };
    const SIGABRT: i32 = 6;
    for name in NAMES {
        let (status, log) = pull(name);
        assert_eq!(status.signal(), Some(SIGABRT), "`{name}`: {status}\n{log}");
    }
    // Three blobs mean three fills.
    assert_eq!(pull("fill.after_upload:3").0.signal(), Some(SIGABRT));
    for other in ["fill.after_upload:4", "fill", ""] {
        let (status, log) = pull(other);
        assert!(status.success(), "`{other}`: {status}\n{log}");
    }
}

/// The names of all spans, each with its parent's name.
#[derive(Clone, Debug, Default)]
struct Spans(Arc<Mutex<BTreeSet<Family>>>);

type Family = (String, Option<String>);

impl Spans {
    fn has(&self, span: &str, parent: &str) -> bool {
        self.0.lock().contains(&(span.to_owned(), Some(parent.to_owned())))
    }

    fn parent_of(&self, span: &str) -> Option<String> {
        self.0.lock().iter().find(|(name, _)| name == span)?.1.clone()
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, _: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let parent = span.parent().map(|parent| parent.name().to_owned());
        self.0.lock().insert((span.name().to_owned(), parent));
    }
}
