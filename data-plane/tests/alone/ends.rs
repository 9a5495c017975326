//! Bodies that must end early, for clients that do not support chunks.

use std::io::ErrorKind;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use entrepot_test_support::upstream::Fault;
use entrepot_test_support::{FakeUpstream, images};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::published::KEY;
use crate::{Fixture, Node};

/// What a client of HTTP/1.0 has received when the connection ends: head, body, and whether it ended like a complete
/// answer.
async fn ask(node: &Node, path: &str) -> (String, Vec<u8>, bool) {
    let address = node.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let login = STANDARD.encode(format!("{}:{}", KEY.0, KEY.1));
    let request = format!("GET {path} HTTP/1.0\r\nhost: {address}\r\nauthorization: Basic {login}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut answer, mut chunk) = (Vec::new(), vec![0; 65_536]);
    let is_clean = loop {
        match stream.read(&mut chunk).await {
            Ok(0) => break true,
            Ok(read) => answer.extend_from_slice(&chunk[..read]),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                break false;
            }
        }
    };
    let head_bytes = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let body = answer.split_off(head_bytes);
    (String::from_utf8(answer).unwrap().to_lowercase(), body, is_clean)
}

/// Neither GET nor HEAD tells the size of the blob.
fn say_no_length(upstream: &FakeUpstream, digest: &str) {
    upstream.script(format!("HEAD /v2/app/blobs/{digest}"), Fault::Status(405, None));
    upstream.script(format!("GET /v2/app/blobs/{digest}"), Fault::NoLength);
    upstream.script(format!("GET /v2/app/blobs/{digest}"), Fault::NoRanges);
}

#[tokio::test]
async fn http_1_0_a_body_that_is_cut_never_looks_whole() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream, &fixture.signer).await;
    let node = fixture.node().await;
    node.ready().await;
    let bytes = images::random_bytes(7, 3 << 20);

    let right = upstream.publish_blob("app", &bytes);
    say_no_length(&upstream, &right);
    let (head, body, is_clean) = ask(&node, &format!("/v2/demo/app/blobs/{right}")).await;
    assert!(head.starts_with("http/1.0 200") && !head.contains("content-length"), "{head}");
    assert!(is_clean && body == bytes, "a right one ends as it should");
    let (head, body, is_clean) = ask(&node, &format!("/v2/demo/app/blobs/{right}")).await;
    assert!(head.contains("content-length") && is_clean && body == bytes, "what is stored has its length: {head}");

    for (seed, fault) in [(8, Fault::FlipBit), (9, Fault::EndAfter(2 << 20))] {
        let wrong = upstream.publish_blob("app", images::random_bytes(seed, 3 << 20));
        say_no_length(&upstream, &wrong);
        upstream.script(format!("GET /v2/app/blobs/{wrong}"), fault.clone());
        let (head, body, is_clean) = ask(&node, &format!("/v2/demo/app/blobs/{wrong}")).await;
        assert!(head.starts_with("http/1.0 200") && !head.contains("content-length"), "{head}");
        assert!(!is_clean, "{fault:?}: it looks whole after {} bytes", body.len());
        assert!(body.len() < 3 << 20, "{fault:?}");
    }
}
