//! Tests of the fixture, with a real SeaweedFS.

use std::time::Duration;

use entrepot_test_support::{Seaweed, wait_until};
use tokio::net::TcpStream;

#[tokio::test]
async fn it_comes_back_after_a_stop_and_a_kill_and_goes_with_its_owner() {
    let Some(seaweed) = Seaweed::start().await else { return };
    let address = seaweed.address();
    assert_ne!(seaweed.bucket().await, seaweed.bucket().await);
    for kill in [false, true] {
        if kill {
            seaweed.kill().await
        } else {
            seaweed.stop().await
        }
        assert!(TcpStream::connect(address).await.is_err());
        seaweed.resume().await;
        seaweed.bucket().await;
    }
    drop(seaweed);
    wait_until(Duration::from_secs(10), "it is gone", async || TcpStream::connect(address).await.is_err()).await;
}
