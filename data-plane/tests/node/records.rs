//! Records of nodes: written, read, trusted or not, and what dead nodes leave behind.

use std::time::{Duration, Instant};

use bytes::Bytes;
use entrepot_records::layout;
use entrepot_store::BlobStore as _;
use entrepot_test_support::{FakeUpstream, wait_until};
use entrepot_trust::ClusterKey;
use uuid::Uuid;

use crate::fixture::{Fixture, LIMIT, logged};

const NODES: &str = "entrepot_nodes";

#[tokio::test]
async fn a_node_says_who_it_is_and_what_it_runs_until_it_ends() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(4, &upstream).await;
    let mut start = fixture.start("node-1");
    start.config.peer_address = Some("http://10.0.0.5:5003".parse().unwrap());
    let node = fixture.run(start).await;
    wait_until(LIMIT, "it is said what runs", async || {
        fixture.record("node-1").await.is_some_and(|record| record.running == Some((1, 4)))
    })
    .await;
    let record = fixture.record("node-1").await.unwrap();
    assert_eq!(record.node_id.as_str(), "node-1");
    assert_eq!(record.peer_address.as_deref(), Some("http://10.0.0.5:5003"));
    assert_eq!(record.release, env!("CARGO_PKG_VERSION"));
    assert!(record.start_time <= fixture.clock.now());

    fixture.publish(5, &upstream).await;
    wait_until(LIMIT, "the node runs it", async || node.metric("entrepot_snapshot_revision", &[]) == 5.0).await;
    let since = Instant::now();
    let running = async || fixture.record("node-1").await.unwrap().running;
    wait_until(Duration::from_secs(2), "the record says so at once", async || running().await == Some((1, 5))).await;
    println!("the record followed the snapshot after {:?}", since.elapsed());

    node.tasks.drain(LIMIT).await;
    assert!(fixture.record("node-1").await.is_none(), "a clean end leaves no record");
}

#[tokio::test]
async fn only_live_records_with_the_right_signature_under_the_right_name_count() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream).await;
    let (key, live) = (fixture.cluster_key.clone(), Duration::from_secs(5));
    fixture.put_record("live", &fixture.made_up("live", live), &key).await;
    fixture.put_record("old", &fixture.made_up("old", Duration::from_secs(45)), &key).await;
    fixture.put_record("ancient", &fixture.made_up("ancient", Duration::from_secs(7200)), &key).await;
    fixture.put_record("forged", &fixture.made_up("forged", live), &ClusterKey::generate()).await;
    fixture.put_record("borrowed", &fixture.made_up("live", live), &key).await;
    let garbage = layout::node(&"garbage".parse().unwrap());
    fixture.store.put(&garbage, Bytes::from_static(b"garbage")).await.unwrap();

    let node = fixture.node("node-1").await;
    wait_until(LIMIT, "it sees itself and the live one", async || node.metric(NODES, &[]) == 2.0).await;
    for (reason, id) in [("bad_signature", "forged"), ("other_node", "borrowed"), ("malformed", "garbage")] {
        assert!(node.metric("entrepot_node_refused_total", &[&format!("reason=\"{reason}\"")]) >= 1.0, "{reason}");
        let lines = logged(&format!("the record of node `{id}` is not believed"));
        assert_eq!(lines.len(), 1, "{lines:?}");
    }
    wait_until(LIMIT, "the one that is long dead is forgotten", async || fixture.record("ancient").await.is_none())
        .await;
    assert!(fixture.record("old").await.is_some());
}

#[tokio::test]
async fn another_node_with_the_same_id_is_noticed_and_its_record_survives_our_end() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream).await;
    // A record left by a killed run is not another node's.
    fixture.put_record("twin", &fixture.made_up("twin", Duration::from_secs(3)), &fixture.cluster_key).await;
    let node = fixture.node("twin").await;
    let conflicts = || node.metric("entrepot_node_conflicts_total", &[]);
    wait_until(LIMIT, "it has written its own", async || {
        fixture.record("twin").await.is_some_and(|record| record.running == Some((1, 1)))
    })
    .await;
    assert_eq!(conflicts(), 0.0);
    let other = fixture.made_up("twin", Duration::ZERO);
    fixture.put_record("twin", &other, &fixture.cluster_key).await;
    wait_until(LIMIT, "it is noticed", async || conflicts() >= 1.0).await;
    assert_eq!(logged(&other.boot_id.to_string()).len(), 1);

    fixture.put_record("twin", &other, &fixture.cluster_key).await;
    node.tasks.drain(LIMIT).await;
    assert_eq!(fixture.record("twin").await.map(|record| record.boot_id), Some(other.boot_id));
}

#[tokio::test]
async fn uploads_of_an_earlier_life_and_of_dead_nodes_are_given_up() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream).await;
    let key = fixture.cluster_key.clone();
    fixture.put_record("live", &fixture.made_up("live", Duration::from_secs(5)), &key).await;
    fixture.put_record("pausing", &fixture.made_up("pausing", Duration::from_secs(100)), &key).await;
    fixture.put_record("dead", &fixture.made_up("dead", Duration::from_secs(130)), &key).await;
    fixture.put_record("foreign", &fixture.made_up("foreign", Duration::from_secs(999)), &ClusterKey::generate()).await;
    for owner in ["dead", "foreign", "gone", "live", "node-1", "pausing"] {
        for _ in 0..3 {
            let record = layout::upload(&owner.parse().unwrap(), Uuid::now_v7());
            fixture.store.put(&record, Bytes::from_static(b"{}")).await.unwrap();
        }
    }
    let node = fixture.node("node-1").await;
    let aborted = || fixture.store.aborted();
    wait_until(LIMIT, "the dead are swept", async || aborted().contains(&"gone".to_owned())).await;
    assert_eq!(aborted()[..3], ["node-1", "dead", "gone"], "its own first, before it begins anything");
    wait_until(LIMIT, "its own are swept, too", async || aborted().len() == 4).await;
    assert_eq!(aborted()[3], "node-1", "those that it could not abort itself");
    drop(node);
}
