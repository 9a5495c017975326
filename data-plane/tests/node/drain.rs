//! A node that is told to stop: work that is under way ends well, and nothing new begins.

use std::time::Duration;

use entrepot_data_plane::DataPlane;
use entrepot_test_support::{FakeUpstream, Fault, images, wait_until};
use reqwest::Version;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fixture::{Fixture, LIMIT, logged};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_answers_end_well_and_then_the_node_is_gone() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let layers = [images::random_bytes(1, 4 << 20), images::random_bytes(2, 100)];
    let image = upstream.publish_image("app", "v1", &layers);
    upstream.publish_image("late", "v1", &[images::random_bytes(3, 100)]);
    fixture.publish(1, &upstream).await;
    let node = fixture.node("node-1").await;
    assert!(fixture.record("node-1").await.is_some());
    assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), 200);

    // One that streams, one that has no head yet, and one that waits for its next request.
    upstream.script(&image.layers[0], Fault::Rate(1 << 20));
    let mut streaming = node.get(&format!("/v2/demo/app/blobs/{}", image.layers[0])).await;
    let mut bytes = streaming.chunk().await.unwrap().unwrap().to_vec();
    let gate = upstream.hold("/late/");
    let waiting = tokio::spawn(node.request("/v2/demo/late/manifests/v1").send());
    gate.until_waiting(1).await;
    let mut idle = TcpStream::connect(node.addr).await.unwrap();
    idle.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(idle.read(&mut [0; 4096]).await.unwrap() > 0);

    let tasks = node.tasks.clone();
    let draining = tokio::spawn(async move { tasks.drain(LIMIT).await });
    assert_eq!(idle.read(&mut [0; 10]).await.unwrap(), 0, "an idle connection is closed");
    wait_until(LIMIT, "no connection is taken any more", async || TcpStream::connect(node.addr).await.is_err()).await;
    assert!(fixture.record("node-1").await.is_some(), "others may still need it");
    gate.release();
    let late = waiting.await.unwrap().unwrap();
    assert_eq!(late.status(), 200, "what it needs is still fetched");
    assert_eq!(late.headers()["connection"], "close");
    while let Some(chunk) = streaming.chunk().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(images::sha256(&bytes), image.layers[0]);
    assert!(draining.await.unwrap(), "it ends by itself");
    assert!(fixture.record("node-1").await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http2_open_streams_end_well_and_the_client_is_told_to_go() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 4 << 20)]);
    fixture.publish(1, &upstream).await;
    let authority = entrepot_test_support::tls::Authority::new();
    let mut start = fixture.start("node-1");
    start.tls = Some(crate::edge::tls(&fixture, &authority, entrepot_runtime::tls::Alpn::Http1And2));
    let node = fixture.run(start).await;
    node.ready().await;
    let certificate = reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).tls_certs_only([certificate]).build().unwrap();
    let get = |path: String| {
        client.get(format!("{}{path}", node.url)).basic_auth(crate::fixture::KEY.0, Some(crate::fixture::KEY.1)).send()
    };
    assert_eq!(get("/v2/demo/app/manifests/v1".to_owned()).await.unwrap().status(), 200);
    upstream.script("/blobs/", Fault::Rate(2 << 20));
    let mut streaming = get(format!("/v2/demo/app/blobs/{}", image.layers[0])).await.unwrap();
    assert_eq!(streaming.version(), Version::HTTP_2);
    let mut bytes = streaming.chunk().await.unwrap().unwrap().to_vec();

    let tasks = node.tasks.clone();
    let draining = tokio::spawn(async move { tasks.drain(LIMIT).await });
    wait_until(LIMIT, "no connection is taken any more", async || TcpStream::connect(node.addr).await.is_err()).await;
    // The client knows that its connection is closing, and has no other.
    wait_until(LIMIT, "no request is taken any more", async || get("/v2/".to_owned()).await.is_err()).await;
    while let Some(chunk) = streaming.chunk().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(images::sha256(&bytes), image.layers[0]);
    assert!(draining.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_end_is_left_behind_at_the_limit() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 4 << 20)]);
    fixture.publish(1, &upstream).await;
    let mut start = fixture.start("node-1");
    start.config.drain_limit = Duration::from_millis(300);
    let node = fixture.run(start).await;
    node.ready().await;
    assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), 200);
    upstream.script("/blobs/", Fault::StallAfter(2 << 20));
    let mut stuck = node.get(&format!("/v2/demo/app/blobs/{}", image.layers[0])).await;
    assert!(stuck.chunk().await.unwrap().is_some());
    assert!(node.tasks.drain(LIMIT).await, "the node gives up by itself");
    assert!(fixture.record("node-1").await.is_none());
    assert!(logged("left tasks behind").iter().any(|line| line.contains("connection")));
}

/// The type that a process holds until it serves.
#[expect(dead_code, reason = "it only has to compile: a node can be handed to another thread")]
fn a_node_can_be_sent(node: DataPlane) -> impl Send {
    node
}
