//! Tests of the fixture for programs, with programs of this machine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::time::Duration;

use entrepot_test_support::haproxy::{Mode, Service};
use entrepot_test_support::program::{Host, probe};
use entrepot_test_support::{HaProxy, Program, wait_until};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(30);
/// A running program that prints something every 10 ms would be noticed in this time.
const FIVE_TICKS: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_programs_log_can_be_searched_and_a_frozen_one_is_silent_until_it_is_thawed() {
    let folder = TempDir::new().unwrap();
    let program = Program::new("clock", "/bin/sh", folder.path())
        .arg("-c")
        .arg("echo \"$GREETING\"; while true; do echo tick; sleep 0.01; done")
        .env("GREETING", "hello");
    program.start();
    program.until_logged(0, "hello").await;
    program.until_logged(0, "tick").await;

    program.freeze();
    let stat = format!("/proc/{}/stat", program.id().unwrap());
    let is_frozen = async || std::fs::read_to_string(&stat).unwrap().contains(") T ");
    wait_until(LIMIT, "it is frozen", is_frozen).await;
    let mark = program.log_mark();
    tokio::time::sleep(FIVE_TICKS).await;
    assert_eq!(program.log_mark(), mark);
    program.thaw();
    program.until_logged(mark, "tick").await;

    assert!(!program.stop().await.success());
    assert!(!program.is_running());
    let mark = program.log_mark();
    program.set_env("GREETING", Some("hello again"));
    program.start();
    program.until_logged(mark, "hello again").await;
    program.kill().await;
}

#[tokio::test]
async fn haproxy_sends_requests_to_servers_that_are_ready() {
    let folder = TempDir::new().unwrap();
    let (one, other) = (Host::free(), Host::free());
    let server = |host: Host, name: &'static str| {
        let mut tasks = JoinSet::new();
        tasks.spawn(answer(host, name));
        tasks
    };
    let (servers, mut first) = (server(other, "other"), server(one, "one"));
    let place = |name: &str, host: Host| (name.to_owned(), host.at(15_000), host.at(15_000));
    let service = Service {
        name: "registry".to_owned(),
        mode: Mode::Http,
        port: 15_001,
        servers: vec![place("one", one), place("other", other)],
    };
    let haproxy = HaProxy::start(&[service], folder.path()).await;
    haproxy.until_sees("registry", "one", true).await;
    haproxy.until_sees("registry", "other", true).await;
    let seen = async |name: &str| probe(haproxy.at(15_001), "/").await.is_ok_and(|answer| answer.text == name);
    wait_until(LIMIT, "one is asked", async || seen("one").await).await;
    wait_until(LIMIT, "the other is asked", async || seen("other").await).await;

    first.shutdown().await;
    haproxy.until_sees("registry", "one", false).await;
    for _ in 0..10 {
        assert!(seen("other").await);
    }
    drop(servers);
}

/// Answers every request with `name`.
async fn answer(host: Host, name: &'static str) {
    let listener = TcpListener::bind(host.at(15_000)).await.unwrap();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        let length = name.len();
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{name}");
        let _ = stream.write_all(text.as_bytes()).await;
    }
}
