//! TLS, HTTP/1 and HTTP/2, and proxies that say for whom they speak.

use std::sync::Arc;

use entrepot_runtime::Tls;
use entrepot_runtime::tls::Alpn;
use entrepot_test_support::tls::Authority;
use entrepot_test_support::{FakeUpstream, Fault, images};
use reqwest::{Certificate, Client, Version};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::fixture::{Fixture, KEY, LIMIT, Node, challenge};

/// A node with TLS, and its certificate authority.
async fn tls_node(fixture: &Fixture) -> (Node, Authority) {
    let authority = Authority::new();
    let mut start = fixture.start("node-1");
    start.tls = Some(tls(fixture, &authority, Alpn::Http1And2));
    let node = fixture.run(start).await;
    node.ready().await;
    (node, authority)
}

/// A certificate for loopback, from files.
pub(crate) fn tls(fixture: &Fixture, authority: &Authority, alpn: Alpn) -> Arc<Tls> {
    let (certificate, key) = authority.certificate_for(&["127.0.0.1"]);
    let (certificate_file, key_file) = (fixture.dir.path().join("tls.crt"), fixture.dir.path().join("tls.key"));
    std::fs::write(&certificate_file, certificate).unwrap();
    std::fs::write(&key_file, key).unwrap();
    Tls::load(certificate_file, key_file, alpn).unwrap()
}

fn client(authority: &Authority, http1_only: bool) -> Client {
    let certificate = Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let builder = Client::builder().no_proxy().timeout(LIMIT).tls_certs_only([certificate]);
    if http1_only { builder.http1_only().build().unwrap() } else { builder.build().unwrap() }
}

#[tokio::test]
async fn over_tls_clients_have_the_http_that_they_know() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 5 << 20)]);
    fixture.publish(1, &upstream).await;
    let (node, authority) = tls_node(&fixture).await;
    for (http1_only, version) in [(true, Version::HTTP_11), (false, Version::HTTP_2)] {
        let client = client(&authority, http1_only);
        let get = async |path: String| {
            client.get(format!("{}{path}", node.url)).basic_auth(KEY.0, Some(KEY.1)).send().await.unwrap()
        };
        let manifest = get("/v2/demo/app/manifests/v1".to_owned()).await;
        assert_eq!((manifest.status().as_u16(), manifest.version()), (200, version));
        assert_eq!(manifest.bytes().await.unwrap(), image.manifest_bytes);
        let blob = get(format!("/v2/demo/app/blobs/{}", image.layers[0])).await;
        assert_eq!(blob.version(), version);
        assert_eq!(images::sha256(&blob.bytes().await.unwrap()), image.layers[0]);

        let unknown = client.get(format!("{}/v2/", node.url)).send().await.unwrap();
        assert_eq!(unknown.status(), 401);
        assert_eq!(challenge(&unknown)["realm"], format!("{}/token", node.url), "https, over {version:?}");
    }
    let clear = Client::builder().no_proxy().build().unwrap();
    let clear = clear.get(node.url.replace("https", "http")).send().await;
    assert!(clear.is_err(), "clear text is not spoken here");
}

#[tokio::test]
async fn a_body_that_turns_out_wrong_ends_early_as_its_protocol_says_it() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    upstream.script("GET /v2/app/blobs/", Fault::FlipBit);
    fixture.publish(1, &upstream).await;
    let (node, authority) = tls_node(&fixture).await;
    for (seed, http1_only, says) in [(1, true, "UnexpectedEof"), (2, false, "Reset(StreamId")] {
        let image = upstream.publish_image("app", "v1", &[images::random_bytes(seed, 3 << 20)]);
        let client = client(&authority, http1_only);
        let pull = client.get(format!("{}/v2/demo/app/blobs/{}", node.url, image.layers[0]));
        // The blob belongs to the repository only once a manifest names it.
        let manifest = client.get(format!("{}/v2/demo/app/manifests/{}", node.url, image.manifest));
        assert_eq!(manifest.basic_auth(KEY.0, Some(KEY.1)).send().await.unwrap().status(), 200);
        let answer = pull.basic_auth(KEY.0, Some(KEY.1)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let error = format!("{:?}", answer.bytes().await.unwrap_err());
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn only_a_trusted_proxy_says_how_the_client_came() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream).await;
    for (trusted, realm) in
        [(vec![], None), (vec!["127.0.0.0/8".parse().unwrap()], Some("https://registry.example/token"))]
    {
        let mut start = fixture.start("node-1");
        start.config.trusted_proxies = trusted;
        let node = fixture.run(start).await;
        node.ready().await;
        let client = Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        let request = client.get(format!("{}/v2/", node.url));
        let request = request.header("x-forwarded-proto", "https").header("x-forwarded-host", "registry.example");
        let answer = request.header("x-forwarded-for", "192.0.2.77").send().await.unwrap();
        let own = format!("{}/token", node.url);
        assert_eq!(challenge(&answer)["realm"], realm.unwrap_or(&own));
        let is_believed = !crate::fixture::logged("192.0.2.77").is_empty();
        assert_eq!(is_believed, realm.is_some(), "the log says who the client was");
    }
}

#[tokio::test]
async fn requests_are_measured_by_their_route_until_their_last_byte() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 3 << 20)]);
    fixture.publish(1, &upstream).await;
    let node = fixture.node("node-1").await;
    let count = |labels: &[&str]| node.metric("http_server_request_duration_seconds_count", labels);
    node.get("/v2/demo/app/manifests/v1").await.bytes().await.unwrap();
    let manifests = "http_route=\"/v2/{name}/manifests/{reference}\"";
    let measured = [manifests, "http_request_method=\"GET\"", "http_response_status_code=\"200\""];
    entrepot_test_support::wait_until(LIMIT, "it is measured", async || count(&measured) == 1.0).await;

    upstream.script("/blobs/", Fault::Rate(2 << 20));
    let mut blob = node.get(&format!("/v2/demo/app/blobs/{}", image.layers[0])).await;
    assert!(blob.chunk().await.unwrap().is_some());
    let blobs = "http_route=\"/v2/{name}/blobs/{digest}\"";
    assert_eq!(count(&[blobs]), 0.0, "it goes on");
    assert_eq!(node.metric("entrepot_pull_duration_seconds_count", &["content=\"blob\""]), 1.0);
    while blob.chunk().await.unwrap().is_some() {}
    entrepot_test_support::wait_until(LIMIT, "it is measured", async || count(&[blobs]) == 1.0).await;

    for path in ["/nonsense/1", "/nonsense/2"] {
        assert_eq!(node.get(path).await.status(), 404);
    }
    let refused = ["http_response_status_code=\"404\""];
    entrepot_test_support::wait_until(LIMIT, "they are measured", async || count(&refused) == 2.0).await;
    assert!(!node.metrics.render().contains("nonsense"), "what clients make up is no label");

    let asked = node.metric("http_client_request_duration_seconds_count", &["server_address=\"127.0.0.1\""]);
    assert!(asked >= 2.0, "requests to upstreams are measured, too: {asked}");
}

#[tokio::test]
async fn a_client_that_takes_back_request_after_request_loses_its_connection() {
    let fixture = Fixture::new();
    let upstream = FakeUpstream::start().await;
    fixture.publish(1, &upstream).await;
    let (node, authority) = tls_node(&fixture).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider().into();
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(node.addr).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let mut connection = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();

    // More than this node permits, and fewer than the library's own limit, which is 20.
    let resets = 15;
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(4, 0, 0, &[]));
    for stream in (1..).step_by(2).take(resets) {
        // GET https://x/, followed at once by RST_STREAM with CANCEL.
        sent.extend(frame(1, 0x5, stream, &[0x82, 0x87, 0x84, 0x41, 1, b'x']));
        sent.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    connection.write_all(&sent).await.unwrap();
    let ended_with = async {
        loop {
            let mut head = [0; 9];
            connection.read_exact(&mut head).await.unwrap();
            let mut body = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            connection.read_exact(&mut body).await.unwrap();
            // GOAWAY: the last stream, followed by the reason.
            if head[3] == 7 {
                return u32::from_be_bytes(body[4..8].try_into().unwrap());
            }
        }
    };
    let enhance_your_calm = 0xb;
    assert_eq!(tokio::time::timeout(LIMIT, ended_with).await.unwrap(), enhance_your_calm);
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}
