//! `entrepot up` seen by strangers: TLS, a log that they cannot flood, and few privileges to be gained.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;

use entrepot_proto::codec::ReadingCodec;
use entrepot_test_support::wait_until_blocking;
use reqwest::{Certificate, Client};
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

#[path = "shared/registry.rs"]
#[allow(dead_code, reason = "this uses a part of it")]
mod registry;

use registry::{KEY, LIMIT, Registry, passable, up};

#[tokio::test]
async fn with_an_authority_of_its_own_registry_and_api_speak_tls() {
    let folder = passable();
    let data = folder.path().join("data");
    let registry = Registry::start_as(up(&data, Some(KEY)).args(["--tls", "self-signed"]));
    let authority = data.join("tls/authority.crt");
    assert!(registry.told("API").starts_with("https://127.0.0.1:"));

    // The data plane of this process runs, too, so a change is followed before it is answered.
    let ca = format!("--ca {}", authority.display());
    registry.text(&format!("entrepot upstream create quay --kind quay {ca}"));
    let output = registry.run(&format!("entrepot rule create quay --upstream quay {ca}"));
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!registry.run("entrepot rule list").status.success(), "a stranger's certificate is believed");

    let certificate = Certificate::from_pem(&fs::read(&authority).unwrap()).unwrap();
    let client = Client::builder().no_proxy().timeout(LIMIT).tls_certs_only([certificate]).build().unwrap();
    let address = registry.told("registry").to_owned();
    let answer = client.get(format!("https://{address}/v2/")).send().await.unwrap();
    let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
    assert!(answer.status() == 401 && challenge.contains("realm=\"https://"), "{challenge}");
    assert!(client.get(format!("http://{address}/v2/")).send().await.is_err(), "clear text is answered");
    for key in ["authority.key", "server.key"] {
        assert_eq!(fs::metadata(data.join("tls").join(key)).unwrap().permissions().mode() & 0o777, 0o600, "{key}");
    }
    registry.stop();

    // A client that trusted it before still does.
    let registry = Registry::start_as(up(&data, Some(KEY)).args(["--tls", "self-signed"]));
    assert_eq!(client.get(format!("https://{}/v2/", registry.told("registry"))).send().await.unwrap().status(), 401);

    // The same with files. Here they need not name the address of the API.
    registry.stop();
    let files = ["--tls-certificate-file", "tls/server.crt", "--tls-key-file", "tls/server.key"];
    let registry = Registry::start_as(up(&data, Some(KEY)).current_dir(&data).args(files));
    assert_eq!(client.get(format!("https://{}/v2/", registry.told("registry"))).send().await.unwrap().status(), 401);
    assert!(registry.run(&format!("entrepot rule list {ca}")).status.success());
    registry.stop();
}

#[tokio::test]
async fn reflection_can_be_closed() {
    let folder = passable();
    let code = async |registry: &Registry| {
        let channel: Channel = Endpoint::from_shared(registry.told("API").to_owned()).unwrap().connect_lazy();
        let mut client = Grpc::new(channel);
        client.ready().await.unwrap();
        let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo".parse().unwrap();
        let answer = client
            .streaming(Request::new(tonic::codegen::tokio_stream::once(())), path, ReadingCodec::<(), ()>::default())
            .await;
        match answer {
            Ok(answer) => answer.into_inner().message().await.map_or_else(|status| status.code(), |_| Code::Ok),
            Err(status) => status.code(),
        }
    };
    let registry = Registry::start(&folder.path().join("data"), Some(KEY));
    assert_ne!(code(&registry).await, Code::Unimplemented);
    registry.stop();
    let registry = Registry::start_as(up(&folder.path().join("data"), Some(KEY)).arg("--no-reflection"));
    assert_eq!(code(&registry).await, Code::Unimplemented);
}

#[test]
fn a_stranger_puts_little_into_the_log_and_nothing_that_is_not_what_it_looks_like() {
    for format in ["text", "json"] {
        let folder = passable();
        let path = folder.path().join("log");
        let log = File::create(&path).unwrap();
        let registry =
            Registry::start_as(up(&folder.path().join("data"), Some(KEY)).args(["--log-format", format]).stderr(log));
        let address = registry.told("registry").to_owned();
        let long = "a".repeat(30_000);
        for (request, shown) in [
            (format!("GET /v2/{long} HTTP/1.1\r\nHost: r\r\nUser-Agent: {long}\r\n"), "/v2/aaa"),
            (format!("{} /v2/m HTTP/1.1\r\nHost: r\r\n", "M".repeat(30_000)), "/v2/m"),
            ("GET /v2/\u{202e}\u{2028}\u{85}x HTTP/1.1\r\nHost: r\r\n".to_owned(), "202e"),
        ] {
            let before = fs::read_to_string(&path).unwrap().len();
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.write_all(format!("{request}Connection: close\r\n\r\n").as_bytes()).unwrap();
            let _ = stream.read_to_end(&mut vec![]);
            let lines = || fs::read_to_string(&path).unwrap().split_off(before);
            wait_until_blocking(LIMIT, &format!("{shown} is logged as {format}"), || lines().contains(shown));
            let lines = lines();
            assert!(lines.len() < 5000, "{format}, {} bytes: {lines:.300}", lines.len());
            let odd = |c: char| (c.is_control() && c != '\n') || ('\u{2028}'..='\u{202e}').contains(&c);
            assert!(!lines.contains(odd), "{format}: {lines:?}");
        }
        registry.stop();
    }
}

#[test]
fn root_keeps_what_the_database_needs_and_no_thread_of_ours_has_more() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    /// CHOWN, KILL, SETGID and SETUID, as the kernel numbers them.
    const KEPT: u64 = 1 | 1 << 5 | 1 << 6 | 1 << 7;
    let folder = passable();
    for _ in 0..2 {
        let registry = Registry::start(&folder.path().join("data"), Some(KEY));
        registry.text("entrepot upstream list");
        let threads = fs::read_dir(format!("/proc/{}/task", registry.pid())).unwrap().flatten();
        let statuses = threads.filter_map(|it| fs::read_to_string(it.path().join("status")).ok());
        let statuses: Vec<_> = statuses.collect();
        assert!(
            statuses.iter().any(|status| status.starts_with("Name:\tjemalloc_bg")),
            "the allocator's own among them"
        );
        for status in statuses {
            for kind in ["CapPrm:", "CapEff:"] {
                let line = status.lines().find_map(|line| line.strip_prefix(kind)).unwrap();
                let has = u64::from_str_radix(line.trim(), 16).unwrap();
                assert_eq!(has & !KEPT, 0, "{kind} {line}: {status}");
            }
        }
        registry.kill();
    }
}
