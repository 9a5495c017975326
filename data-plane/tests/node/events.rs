//! Events on their way to control planes of this release and of others.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use entrepot_proto::node::v1 as pb;
use entrepot_records::layout;
use entrepot_store::BlobStore as _;
use entrepot_test_support::{FakeUpstream, images, wait_until};
use prost::Message as _;
use uuid::Uuid;

use crate::fixture::{Fixture, LIMIT, Node};
use crate::replica::Replica;

/// A known event with an unknown field, and an event of an unknown kind.
fn of_later_release() -> (Bytes, Bytes) {
    let event = |kind| pb::Event {
        event_id: Uuid::now_v7().to_string(),
        repository: "demo/app".to_owned(),
        incarnation: Uuid::now_v7().to_string(),
        kind,
        ..Default::default()
    };
    let moved = pb::TagMoved { tag: "v1".to_owned(), ..Default::default() };
    let known = event(Some(pb::event::Kind::TagMoved(moved))).encode_to_vec();
    let unknown = event(None).encode_to_vec();
    // The fields 1006 and 1007, which contain text.
    let with = |bytes: Vec<u8>, field: u8| Bytes::from([&bytes[..], &[field, 0x3e, 2, b'h', b'i']].concat());
    (with(known, 0xf2), with(unknown, 0xfa))
}

/// A report of one event that takes about so many bytes.
fn of_size(bytes: usize) -> Vec<u8> {
    let (known, _) = of_later_release();
    // One more field 1006, which holds that much.
    let mut event = [&known[..], &[0xf2, 0x3e]].concat();
    prost::encode_length_delimiter(bytes, &mut event).unwrap();
    event.resize(event.len() + bytes, b'x');
    pb::ReportEventsRequest { node_id: "node-1".to_owned(), events: vec![event.into()] }.encode_to_vec()
}

async fn waiting(fixture: &Fixture) -> usize {
    let prefix = layout::events_prefix(&"node-1".parse().unwrap());
    fixture.store.list(&prefix, None, 100).await.unwrap().len()
}

async fn node(fixture: &Fixture, replica: &Replica) -> Node {
    let mut start = fixture.start("node-1");
    start.config.control_apis = vec![replica.url.parse().unwrap()];
    let node = fixture.run(start).await;
    node.ready().await;
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_later_release_wait_for_it_wrong_ones_are_dropped_and_none_holds_others_up() {
    let (upstream, fixture, replica) = (FakeUpstream::start().await, Fixture::new(), Replica::start(None).await);
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    fixture.publish(1, &upstream).await;
    let (known, unknown) = of_later_release();
    // What this node left in the store while it was of a later release: both events in one report.
    let report = pb::ReportEventsRequest { node_id: "node-1".to_owned(), events: vec![unknown.clone(), known.clone()] };
    // And one that no control plane will ever accept, which is dropped and does not affect the others.
    let kind = Some(pb::event::Kind::Pulled(pb::Pulled::default()));
    let wrong = pb::Event { repository: "NO/name".to_owned(), kind, ..pb::Event::default() };
    let wrong = entrepot_proto::convert::event::report("node-1", &[wrong]).encode_to_vec();
    for bytes in [wrong, b"no report".to_vec()] {
        let key = layout::event(&"node-1".parse().unwrap(), Uuid::now_v7());
        fixture.store.put_once(&key, bytes.into()).await.unwrap();
    }
    let key = layout::event(&"node-1".parse().unwrap(), Uuid::now_v7());
    fixture.store.put_once(&key, report.encode_to_vec().into()).await.unwrap();

    let node = node(&fixture, &replica).await;
    let kept = || node.metric("entrepot_outbox_kept", &[]);
    wait_until(LIMIT, "it is kept", async || kept() == 1.0).await;
    assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), 200);
    let taken = || replica.state.taken.lock().clone();
    wait_until(LIMIT, "the others are taken or dropped", async || taken().len() > 1 && waiting(&fixture).await == 1)
        .await;
    assert!(taken().contains(&known) && !taken().contains(&unknown), "a known event keeps its unknown field");
    assert_eq!(fixture.store.get(&key).await.unwrap().unwrap().bytes, report.encode_to_vec());

    replica.state.is_later.store(true, Ordering::SeqCst);
    wait_until(LIMIT, "it is taken at last", async || taken().contains(&unknown) && waiting(&fixture).await == 0).await;
    wait_until(LIMIT, "nothing is kept", async || kept() == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_are_too_large_to_go_together_go_apart_and_one_that_is_too_large_alone_holds_none_up() {
    const MIB: usize = 1 << 20;
    // What gRPC takes, and what something between may take: then all is refused at first, and one of them in the end.
    for (takes, bytes, too_large) in [(4 * MIB, MIB, None), (100_000, 60_000, Some(200_000))] {
        let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
        let replica = Replica::start_that_takes(None, takes).await;
        fixture.publish(1, &upstream).await;
        for bytes in too_large.into_iter().chain([bytes; 7]) {
            let key = layout::event(&"node-1".parse().unwrap(), Uuid::now_v7());
            fixture.store.put_once(&key, of_size(bytes).into()).await.unwrap();
        }
        let node = node(&fixture, &replica).await;
        let kept = usize::from(too_large.is_some());
        wait_until(LIMIT, "all others are taken", async || {
            replica.state.taken.lock().len() == 7 && waiting(&fixture).await == kept
        })
        .await;
        wait_until(LIMIT, "it is kept", async || node.metric("entrepot_outbox_kept", &[]) == kept as f64).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_delivered_from_memory() {
    let (upstream, fixture, replica) = (FakeUpstream::start().await, Fixture::new(), Replica::start(None).await);
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let published = fixture.publish(1, &upstream).await;
    *replica.state.published.lock() = Some(published);
    let node = node(&fixture, &replica).await;
    wait_until(LIMIT, "the outbox was listed", async || {
        fixture.store.take_asked().contains_key(&("list", "events".to_owned()))
    })
    .await;
    fixture.store.take_asked();
    assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), 200);
    wait_until(LIMIT, "the event is delivered", async || !replica.state.taken.lock().is_empty()).await;
    let mut asked = BTreeMap::new();
    wait_until(LIMIT, "it is deleted", async || {
        for (what, count) in fixture.store.take_asked() {
            *asked.entry(what).or_insert(0) += count;
        }
        asked.contains_key(&("delete", "events".to_owned()))
    })
    .await;
    let of_events: Vec<_> =
        asked.iter().filter(|((_, folder), _)| folder == "events").map(|(what, _)| what.0).collect();
    assert_eq!(of_events, ["delete", "put_once"], "neither listed nor read again: {asked:?}");
}
