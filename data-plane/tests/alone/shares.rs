//! No upstream and no client can take all of a node from the others.

#![expect(clippy::disallowed_methods, reason = "a test spawns its clients")]

use std::time::{Duration, Instant};

use entrepot_data_plane::Capacity;
use entrepot_domain::Secret;
use entrepot_proto::node::v1 as pb;
use entrepot_test_support::upstream::Fault;
use entrepot_test_support::{FakeUpstream, images, wait_until};
use entrepot_trust::access_key;
use futures_util::future::join_all;
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::published::{self, KEY};
use crate::{Fixture, LIMIT, Node};

const MIB: usize = 1 << 20;
/// A second principal that may pull.
const OTHER: (&str, &str) = ("other", "another-secret-of-some-length");

/// Publishes an image with one layer, whose manifest gives this size for the layer.
fn publish_image_that_says(upstream: &FakeUpstream, repository: &str, layer: &[u8], size: usize) -> String {
    let layers = [layer.to_vec()];
    let config = images::config("linux/amd64", &layers);
    let manifest = String::from_utf8(images::manifest(&config, &layers)).unwrap();
    let manifest = manifest.replace(&format!("\"size\":{}", layer.len()), &format!("\"size\":{size}"));
    assert!(manifest.contains(&format!("\"size\":{size}")), "{manifest}");
    upstream.publish_manifest(repository, Some("v1"), images::OCI_MANIFEST, manifest);
    upstream.publish_blob(repository, layer)
}

/// A node with a second upstream, under the rule `second`, and a second principal that may pull.
async fn node_for_two(fixture: &Fixture, first: &FakeUpstream, second: &FakeUpstream, capacity: Capacity) -> Node {
    let rules = ["demo", "second"].map(|prefix| (prefix, pb::SnapshotFreshness::default()));
    let mut snapshot = published::snapshot(1, &fixture.cluster_key, first, &rules);
    let uid = Uuid::from_u128(11).to_string();
    let upstream = pb::SnapshotUpstream {
        uid: uid.clone(),
        upstream_id: "second".to_owned(),
        endpoint: second.url(),
        ..snapshot.upstreams[0].clone()
    };
    snapshot.upstreams.push(upstream);
    snapshot.rules[1].upstream_uid = uid;
    let hash = access_key::hash_generated(&Secret::new(OTHER.1.to_owned()));
    let sealed_hash = fixture.cluster_key.seal(&format!("access-key/{}", OTHER.0), &hash.encode());
    let other = pb::SnapshotPrincipal {
        uid: Uuid::from_u128(12).to_string(),
        principal_id: "other".to_owned(),
        access_keys: vec![pb::SnapshotAccessKey { key_id: OTHER.0.to_owned(), sealed_hash, minimum_reader: 0 }],
        ..snapshot.principals[0].clone()
    };
    snapshot.principals.push(other);
    published::publish(&*fixture.store, &fixture.signer, 1, &snapshot).await;
    let node = fixture.node_with(|config| config.capacity = capacity).await;
    node.ready().await;
    node
}

#[tokio::test]
async fn what_a_manifest_says_bounds_an_upstream_that_says_nothing() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream, &fixture.signer).await;
    let node = fixture.node().await;
    node.ready().await;
    let layer = images::random_bytes(1, 48 * MIB);
    let digest = publish_image_that_says(&upstream, "app", &layer, 200_000);
    upstream.script(format!("GET /v2/app/blobs/{digest}"), Fault::NoLength);
    assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), StatusCode::OK);
    let answer = node.get(&format!("/v2/demo/app/blobs/{digest}")).await;
    assert!(answer.status() == StatusCode::BAD_GATEWAY || answer.bytes().await.is_err(), "it looks whole");
    let log = upstream.log();
    let sent: Vec<_> = log.iter().filter(|entry| entry.path.contains("/blobs/")).collect();
    // A HEAD would have told the size, but the manifest's size is used first.
    assert!(sent.iter().all(|entry| entry.method == "GET"), "{sent:?}");
    let bytes: u64 = sent.iter().map(|entry| entry.sent_bytes).sum();
    assert!(bytes < 24 * MIB as u64, "{bytes} were taken for 200,000");
}

#[tokio::test]
async fn a_wrong_size_in_one_repositorys_manifest_fails_no_other() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream, &fixture.signer).await;
    let node = fixture.node().await;
    node.ready().await;
    for (seed, said) in [(1, 200_000), (2, 30_000_000)] {
        let layer = images::random_bytes(seed, 3 * MIB);
        let (wrong, right) = (format!("wrong{seed}"), format!("right{seed}"));
        let digest = publish_image_that_says(&upstream, &wrong, &layer, said);
        publish_image_that_says(&upstream, &right, &layer, layer.len());
        upstream.script(format!("GET /v2/{wrong}/blobs/"), Fault::NoLength);
        for repository in [&wrong, &right] {
            let manifest = node.get(&format!("/v2/demo/{repository}/manifests/v1")).await;
            assert_eq!(manifest.status(), StatusCode::OK);
        }
        let gate = upstream.hold(format!("GET /v2/{wrong}/blobs/"));
        let first = async {
            let answer = node.get(&format!("/v2/demo/{wrong}/blobs/{digest}")).await;
            answer.status() != StatusCode::OK || answer.bytes().await.is_err()
        };
        let second = async {
            gate.until_waiting(1).await;
            let answer = node.request(&format!("/v2/demo/{right}/blobs/{digest}")).send();
            let joined = async {
                let is_asked = || upstream.log().iter().any(|entry| entry.path.contains(&format!("{right}/blobs")));
                wait_until(LIMIT, "the other repository has joined", async || is_asked()).await;
                gate.release();
            };
            let (answer, ()) = tokio::join!(answer, joined);
            let answer = answer.unwrap();
            assert_eq!((answer.status(), answer.content_length()), (StatusCode::OK, Some(3 * MIB as u64)));
            answer.bytes().await.unwrap()
        };
        let (is_cut, bytes) = tokio::join!(first, second);
        assert!(is_cut, "{said} were promised, and seemed to come");
        assert!(bytes == layer, "the other one has it whole");
        assert_eq!(upstream.fetches_of(&digest), 1);
    }
}

#[tokio::test]
async fn what_is_larger_than_the_largest_blob_is_passed_through_and_not_kept() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream, &fixture.signer).await;
    let node = fixture.node_with(|config| config.largest_blob = 2 * MIB as u64).await;
    node.ready().await;
    for (seed, says_length) in [(1, true), (2, false)] {
        let layer = images::random_bytes(seed, 3 * MIB);
        let digest = publish_image_that_says(&upstream, "app", &layer, layer.len());
        if !says_length {
            upstream.script(format!("GET /v2/app/blobs/{digest}"), Fault::NoLength);
        }
        assert_eq!(node.get(&format!("/v2/demo/app/manifests/{}", "v1")).await.status(), StatusCode::OK);
        for _ in 0..2 {
            let answer = node.get(&format!("/v2/demo/app/blobs/{digest}")).await;
            assert_eq!(answer.status(), StatusCode::OK);
            assert!(answer.bytes().await.unwrap() == layer, "says its length: {says_length}");
        }
        upstream.remove("app", &digest);
        let gone = node.get(&format!("/v2/demo/app/blobs/{digest}")).await.status();
        assert_eq!(gone, StatusCode::NOT_FOUND, "says its length: {says_length}");
    }
    // What is passed through has its size; one that no blob has is not repeated.
    let huge = 150_i64 << 30;
    let digest = publish_image_that_says(&upstream, "huge", b"huge", 4);
    upstream.script(format!("HEAD /v2/huge/blobs/{digest}"), Fault::WrongLength(huge - 4));
    let larger = fixture.node_with(|config| config.largest_blob = 200 << 30).await;
    larger.ready().await;
    for (node, size) in [(&node, None), (&larger, Some(huge.to_string()))] {
        let answer = node.head(&format!("/v2/demo/huge/blobs/{digest}")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let said = answer.headers().get("content-length").map(|size| size.to_str().unwrap().to_owned());
        assert_eq!(said, size);
    }
    let layer = images::random_bytes(4, 3 * MIB);
    let digest = publish_image_that_says(&upstream, "passed", &layer, layer.len());
    let answer = node.head(&format!("/v2/demo/passed/blobs/{digest}")).await;
    assert_eq!(answer.headers()["content-length"], layer.len().to_string().as_str());
    // Nobody says how large it is, and there is no end of it.
    let endless = upstream.publish_blob("app", images::random_bytes(3, 3 * MIB));
    upstream.script(format!("HEAD /v2/app/blobs/{endless}"), Fault::Status(405, None));
    upstream.script(format!("GET /v2/app/blobs/{endless}"), Fault::NoLength);
    upstream.script(format!("GET /v2/app/blobs/{endless}"), Fault::NoRanges);
    let answer = node.get(&format!("/v2/demo/app/blobs/{endless}")).await;
    assert!(answer.status() != StatusCode::OK || answer.bytes().await.is_err(), "it ends at the largest blob");
}

#[tokio::test]
async fn an_upstream_that_drips_keeps_nobody_from_another() {
    let (slow, other, fixture) = (FakeUpstream::start().await, FakeUpstream::start().await, Fixture::new());
    let capacity = Capacity { fills: 4, readers: 64, followers: 32 };
    let node = node_for_two(&fixture, &slow, &other, capacity).await;
    let image = other.publish_image("app", "v1", &[images::random_bytes(1, 2 * MIB)]);
    let (blobs, manifests) = (slow.hold("GET /v2/app/blobs"), slow.hold("GET /v2/app/manifests"));
    let mut waiting = Vec::new();
    for seed in 2..8 {
        let digest = slow.publish_blob("app", images::random_bytes(seed, 2 * MIB));
        slow.publish_image("app", &format!("v{seed}"), &[images::random_bytes(seed, 1000)]);
        for path in [format!("/v2/demo/app/blobs/{digest}"), format!("/v2/demo/app/manifests/v{seed}")] {
            waiting.push(tokio::spawn(node.request(&path).send()));
        }
    }
    blobs.until_waiting(3).await;
    manifests.until_waiting(3).await;
    let began = Instant::now();
    assert_eq!(node.get("/v2/second/app/manifests/v1").await.status(), StatusCode::OK);
    for blob in image.blobs() {
        let answer = node.get(&format!("/v2/second/app/blobs/{blob}")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(images::sha256(&answer.bytes().await.unwrap()), blob);
    }
    assert!(began.elapsed() < Duration::from_secs(8), "nobody waits out a turn's limit");
    assert_eq!((blobs.waiting(), manifests.waiting()), (3, 3), "alone, it has all turns but one");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn many_clients_of_one_principal_are_served_and_leave_room_for_another() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let capacity = Capacity { fills: 4, readers: 80, followers: 32 };
    let node = node_for_two(&fixture, &upstream, &upstream, capacity).await;
    let (large, small) = (images::random_bytes(1, 24 * MIB), images::random_bytes(2, 2 * MIB));
    let [large, small] = [large, small].map(|bytes| upstream.publish_blob("app", bytes));
    for digest in [&large, &small] {
        node.get(&format!("/v2/demo/app/blobs/{digest}")).await.bytes().await.unwrap();
    }
    let ask = |digest: &str, key: (&'static str, &'static str), count: usize| {
        let request = || node.request_as(key, &format!("/v2/demo/app/blobs/{digest}"));
        // A hundred at once, some of which wait for a turn until they are refused.
        join_all((0..count).map(|_| request().timeout(3 * LIMIT).send()).collect::<Vec<_>>())
    };
    // None of them reads further.
    let held: Vec<_> = ask(&large, KEY, 70).await.into_iter().map(Result::unwrap).collect();
    assert!(held.iter().all(|answer| answer.status() == StatusCode::OK), "alone, none is refused");
    let (more, others) = tokio::join!(ask(&large, KEY, 30), async {
        let mut others = Vec::new();
        for _ in 0..2 {
            for answer in ask(&small, OTHER, 3).await {
                let answer = answer.unwrap();
                others.push((answer.status(), answer.bytes().await.unwrap().len()));
            }
        }
        others
    });
    assert_eq!(others, vec![(StatusCode::OK, 2 * MIB); 6], "another one is served in its turn");
    for refused in more {
        let refused = refused.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.headers().contains_key("retry-after"));
    }
    drop(held);
    wait_until(LIMIT, "its places come back", async || {
        ask(&small, KEY, 1).await.into_iter().all(|answer| answer.unwrap().status() == StatusCode::OK)
    })
    .await;
}

/// Requests `/v2/` over a kept connection, and reads the head of the answer.
async fn ask_over(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: registry\r\n\r\n").await?;
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(LIMIT, stream.read(&mut answer)).await??;
    Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
}

#[tokio::test]
async fn silent_connections_make_room_for_those_that_ask() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream, &fixture.signer).await;
    let node = fixture.node_with(|config| config.connections = 40).await;
    node.ready().await;
    let address = node.url.trim_start_matches("http://").to_owned();
    let mut kept = TcpStream::connect(&address).await.unwrap();
    assert!(ask_over(&mut kept).await.unwrap().starts_with("HTTP/1.1 401"));
    let mut silent = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        if number % 2 == 1 {
            stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: ").await.unwrap();
        }
        silent.push(stream);
        if number % 50 == 49 {
            assert_eq!(node.get("/v2/").await.status(), StatusCode::OK, "after {number}");
        }
    }
    assert!(ask_over(&mut kept).await.unwrap().starts_with("HTTP/1.1 401"), "who has asked is closed last");
    let first = tokio::time::timeout(LIMIT, silent[0].read(&mut [0])).await.unwrap();
    assert!(first.is_err() || first.is_ok_and(|read| read == 0), "the oldest silent one was closed");
}
