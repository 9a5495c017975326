//! Tests of the fixture: a link carries everything, and misbehaves when told to.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use entrepot_test_support::{Link, Partition, wait_until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);
/// How long to wait for something that must not happen.
const MOMENT: Duration = Duration::from_millis(300);

/// A server that sends back everything it receives, until this is dropped.
async fn echo() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let (address, mut server) = (listener.local_addr().expect("it is bound"), JoinSet::new());
    server.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("connections come");
            connections.spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    (address, server)
}

async fn said(stream: &mut TcpStream, what: &[u8]) {
    stream.write_all(what).await.expect("it is connected");
    let mut heard = vec![0; what.len()];
    timeout(LIMIT, stream.read_exact(&mut heard)).await.expect("it is said again").expect("it is connected");
    assert_eq!(heard, what);
}

#[tokio::test]
async fn a_link_carries_both_directions_and_the_end() {
    let (target, _server) = echo().await;
    let link = Link::start(target).await;
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    let bytes = entrepot_test_support::images::random_bytes(1, 3_000_000);
    let (mut read, mut write) = stream.split();
    let speaks = async {
        write.write_all(&bytes).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let (_, length) = timeout(LIMIT, async { tokio::join!(speaks, read.read_to_end(&mut heard)) }).await.unwrap();
    assert_eq!((length.unwrap(), heard == bytes), (bytes.len(), true));
    assert_eq!((link.connections(), link.bytes()), (1, 2 * bytes.len() as u64));
}

#[tokio::test]
async fn a_slow_link_keeps_to_its_rate_until_it_is_healed() {
    let (target, _server) = echo().await;
    let link = Link::start(target).await;
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    link.slow(100_000);
    let began = Instant::now();
    said(&mut stream, &[1; 50_000]).await;
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    link.slow(10);
    stream.write_all(&[2; 1000]).await.unwrap();
    assert!(timeout(MOMENT, stream.read_exact(&mut [0; 1000])).await.is_err());
    link.heal();
    let mut rest = [0; 900];
    timeout(LIMIT, stream.read_exact(&mut rest)).await.expect("it is fast again").unwrap();
}

#[tokio::test]
async fn a_delayed_byte_comes_later_and_many_of_them_no_later_than_one() {
    let (target, _server) = echo().await;
    let link = Link::start(target).await;
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    link.delay(Duration::from_millis(100));
    let began = Instant::now();
    said(&mut stream, &[1; 150_000]).await;
    assert!(began.elapsed() >= Duration::from_millis(200), "there and back: {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(2), "they wait beside each other: {:?}", began.elapsed());
}

#[tokio::test]
async fn a_stalled_link_says_nothing_not_even_that_an_end_has_gone() {
    let (target, server) = echo().await;
    let link = Link::start(target).await;
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    said(&mut stream, b"before").await;
    link.stall();
    stream.write_all(b"during").await.unwrap();
    let mut heard = [0; 6];
    assert!(timeout(MOMENT, stream.read_exact(&mut heard)).await.is_err());
    link.heal();
    timeout(LIMIT, stream.read_exact(&mut heard)).await.expect("it moves again").unwrap();
    assert_eq!(&heard, b"during");

    link.stall();
    drop(server);
    assert!(timeout(MOMENT, stream.read(&mut heard)).await.is_err());
    link.heal();
    assert!(matches!(timeout(LIMIT, stream.read(&mut heard)).await, Ok(Ok(0) | Err(_))));
}

#[tokio::test]
async fn a_reset_cuts_what_is_there_and_a_refusal_what_comes_as_well() {
    let (target, _server) = echo().await;
    let link = Link::start(target).await;
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    said(&mut stream, b"before").await;
    link.reset();
    let cut = timeout(LIMIT, stream.read(&mut [0; 1])).await.unwrap();
    assert_eq!(cut.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    said(&mut stream, b"again").await;

    link.refuse();
    assert!(timeout(LIMIT, stream.read(&mut [0; 1])).await.unwrap().is_err());
    wait_until(LIMIT, "new ones are cut", async || match TcpStream::connect(link.address()).await {
        Ok(mut stream) => stream.read(&mut [0; 1]).await.is_err(),
        Err(_) => true,
    })
    .await;
    link.heal();
    said(&mut TcpStream::connect(link.address()).await.unwrap(), b"healed").await;
}

#[tokio::test]
async fn a_partition_loses_packets_of_one_link_until_it_is_dropped() {
    if !Partition::works() {
        return;
    }
    let (target, _server) = echo().await;
    let (link, other) = (Link::start(target).await, Link::start(target).await);
    let mut stream = TcpStream::connect(link.address()).await.unwrap();
    said(&mut stream, b"before").await;
    let partition = Partition::of(&[link.address()]).await;
    stream.write_all(b"during").await.unwrap();
    assert!(timeout(MOMENT, stream.read(&mut [0; 6])).await.is_err());
    assert!(timeout(MOMENT, TcpStream::connect(link.address())).await.is_err(), "nobody answers");
    said(&mut TcpStream::connect(other.address()).await.unwrap(), b"elsewhere").await;
    drop(partition);
    let mut heard = [0; 6];
    timeout(LIMIT, stream.read_exact(&mut heard)).await.expect("it is sent again").unwrap();
    assert_eq!(&heard, b"during");
}
