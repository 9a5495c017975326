//! The snapshot: published, signed, only moving forward, streamed, and waited for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use entrepot_control_plane::{Foreign, RestoreError, restore};
use entrepot_proto::node::v1 as node;
use entrepot_proto::v1 as pb;
use entrepot_records::layout;
use entrepot_records::{self as records, SnapshotHead};
use entrepot_store::Store;
use entrepot_trust::{Signature, SnapshotTrust, Statement};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::deaf_store::DeafStore;
use crate::fixture::{Fixture, LIMIT, World, create_rule, kind};
use crate::node::{Node, put_record, record};

pub(crate) async fn published(world: &World) -> (SnapshotHead, node::Snapshot) {
    let (head, _) = records::read::<SnapshotHead>(&*world.store, &layout::snapshot_head()).await.unwrap().unwrap();
    let body = world.store.get(&head.key).await.unwrap().unwrap().bytes;
    let statement = Statement::of(head.epoch, head.revision, &body);
    let signature = Signature { key_id: head.key_id.clone(), signature: head.signature.clone() };
    SnapshotTrust::new(world.public_key(), None).check(&statement, &signature).unwrap();
    (head, node::Snapshot::decode(body).unwrap())
}

#[tokio::test]
async fn every_change_is_published_and_signed_before_it_is_answered() {
    let fixture = Fixture::start().await;
    let (first, snapshot) = published(&fixture.world).await;
    assert_eq!(snapshot.principals[0].principal_id, "admin");
    assert_eq!(snapshot.principals[0].access_keys[0].key_id, "admin");
    let upstream = pb::Upstream {
        kind: pb::UpstreamKind::Github.into(),
        username: "me".into(),
        password: "hunter22".into(),
        ..Default::default()
    };
    let request =
        pb::CreateUpstreamRequest { upstream_id: "gh".into(), upstream: Some(upstream), ..Default::default() };
    fixture.upstreams().create_upstream(request).await.unwrap();
    fixture.rules().create_rule(create_rule("gh", "ROOT", "gh")).await.unwrap();

    let (head, snapshot) = published(&fixture.world).await;
    assert_eq!((head.epoch, head.revision), (first.epoch, first.revision + 2));
    assert_eq!((snapshot.rules[0].prefix.as_str(), snapshot.rules[0].upstream_prefix.as_str()), ("ROOT", ""));
    let upstream = &snapshot.upstreams[0];
    let purpose = format!("upstream-password/{}", upstream.uid);
    let password = fixture.world.cluster_key().unseal(&purpose, &upstream.sealed_password).unwrap();
    assert_eq!(password.expose(), b"hunter22");
    assert_eq!(snapshot.rules[0].upstream_uid, upstream.uid);
}

#[tokio::test]
async fn old_snapshots_are_deleted_but_for_a_few() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    for id in ["a", "b", "c", "d", "e", "f"] {
        fixture.create_rule(id, "quay").await;
    }
    entrepot_test_support::wait_until(crate::fixture::LIMIT, "old snapshots are deleted", async || {
        fixture.world.store.list(&layout::snapshots_prefix(), None, 100).await.unwrap().len() == 5
    })
    .await;
}

#[tokio::test]
async fn a_change_waits_for_the_nodes_that_watch() {
    let fixture = Fixture::start().await;
    let mut watcher = Node::watch(&fixture, "n1").await;
    let (head, snapshot) = watcher.next().await;
    assert_eq!(head, published(&fixture.world).await.0);
    watcher.runs(&snapshot).await;

    let change = fixture.upstreams();
    let create = async {
        let upstream = pb::Upstream { kind: pb::UpstreamKind::Quay.into(), ..Default::default() };
        let request =
            pb::CreateUpstreamRequest { upstream_id: "quay".into(), upstream: Some(upstream), ..Default::default() };
        change.clone().create_upstream(request).await.unwrap()
    };
    let follow = async {
        let (_, snapshot) = watcher.next().await;
        assert_eq!(snapshot.upstreams.len(), 1);
        watcher.runs(&snapshot).await;
        Instant::now()
    };
    let begun = Instant::now();
    let (answer, _) = tokio::join!(create, follow);
    assert!(answer.metadata().get("entrepot-lagging-nodes").is_none());
    assert!(begun.elapsed() < Duration::from_millis(1900), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_node_that_lags_or_refuses_is_named() {
    let fixture = Fixture::start().await;
    let mut slow = Node::watch(&fixture, "slow").await;
    slow.next().await;
    let upstream = || pb::Upstream { kind: pb::UpstreamKind::Quay.into(), ..Default::default() };
    let create = |id: &str| pb::CreateUpstreamRequest {
        upstream_id: id.into(),
        upstream: Some(upstream()),
        ..Default::default()
    };
    let begun = Instant::now();
    let answer = fixture.upstreams().create_upstream(create("a")).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert_eq!(answer.metadata().get("entrepot-lagging-nodes").unwrap(), "slow");
    drop(slow);

    let mut stubborn = Node::watch(&fixture, "stubborn").await;
    stubborn.next().await;
    let (_, snapshot) = published(&fixture.world).await;
    let next = snapshot.version.map(|version| node::SnapshotVersion { revision: version.revision + 1, ..version });
    let refused = node::RefusedSnapshot { version: next, reason: "on purpose".into() };
    let said = node::WatchSnapshotRequest { node_id: "stubborn".into(), refused: Some(refused), ..Default::default() };
    stubborn.say.send(said).await.unwrap();
    let begun = Instant::now();
    let answer = fixture.upstreams().create_upstream(create("b")).await.unwrap();
    assert_eq!(answer.metadata().get("entrepot-lagging-nodes").unwrap(), "stubborn");
    assert!(begun.elapsed() < Duration::from_millis(1900), "a refusal is not waited for");
}

#[tokio::test]
async fn a_hold_time_that_was_changed_reaches_running_nodes_when_a_control_plane_starts_with_it() {
    let running = Fixture::start().await;
    let mut watcher = Node::watch(&running, "n1").await;
    let (_, first) = watcher.next().await;
    let revision = |snapshot: &node::Snapshot| snapshot.version.unwrap().revision;
    let held = |snapshot: &node::Snapshot| snapshot.hold_duration.unwrap().seconds;
    assert_eq!(held(&first), 5);
    let hold_time = Duration::from_secs(12);
    let changed = World { hold_time, ..running.world.clone() }.start().await;
    let followed = tokio::time::timeout(LIMIT, watcher.next()).await;
    let (_, second) = followed.expect("the other control plane passes it on");
    assert_eq!((held(&second), revision(&second)), (12, revision(&first) + 1), "and nothing else was changed");

    running.stop().await;
    let changed = changed.stop().await.start().await;
    let (_, snapshot) = published(&changed.world).await;
    assert_eq!(revision(&snapshot), revision(&second), "the same again is nothing new");
}

#[tokio::test]
async fn a_node_that_loses_its_way_here_while_a_change_waits_for_it_is_named() {
    let fixture = Fixture::start().await;
    let mut lost = Node::watch(&fixture, "lost").await;
    let (_, snapshot) = lost.next().await;
    lost.runs(&snapshot).await;
    put_record(&fixture.world, &record(&fixture.world, "lost", snapshot.version.as_ref())).await;
    let upstream = pb::Upstream { kind: pb::UpstreamKind::Quay.into(), ..Default::default() };
    let request = pb::CreateUpstreamRequest { upstream_id: "a".into(), upstream: Some(upstream), ..Default::default() };
    let change = fixture.upstreams();
    let create = async { change.clone().create_upstream(request).await.unwrap() };
    let lose = async {
        lost.next().await;
        drop(lost);
    };
    let (answer, ()) = tokio::join!(create, lose);
    assert_eq!(answer.metadata().get("entrepot-lagging-nodes").unwrap(), "lost");
}

#[tokio::test]
async fn a_watcher_is_who_its_token_says() {
    let fixture = Fixture::start().await;
    let (say, said) = mpsc::channel(1);
    say.send(node::WatchSnapshotRequest { node_id: "other".into(), ..Default::default() }).await.unwrap();
    let mut stream = fixture.nodes("n1").watch_snapshot(ReceiverStream::new(said)).await.unwrap().into_inner();
    assert_eq!(kind(&stream.message().await.unwrap_err()), (Code::InvalidArgument, "INVALID_FIELDS".into()));
}

#[tokio::test]
async fn a_database_behind_the_head_refuses_changes_until_it_is_restored() {
    let fixture = Fixture::start().await;
    let quay = fixture.create_upstream("quay").await;
    let before = published(&fixture.world).await;
    let world = fixture.stop().await;
    // As if the database had been created anew.
    world
        .sql("UPDATE registry SET revision = revision - 1, registry_id = gen_random_uuid(); DELETE FROM upstreams")
        .await;

    let fixture = world.start().await;
    let error = fixture.rules().create_rule(create_rule("hub", "hub", "quay")).await.unwrap_err();
    assert_eq!(kind(&error), (Code::FailedPrecondition, "DATABASE_BEHIND_SNAPSHOT".into()));
    assert!(error.message().contains("entrepot admin restore"), "{}", error.message());
    assert_eq!(published(&fixture.world).await, before);

    let world = fixture.stop().await;
    let refused = restore(world.config(), &*world.store, Foreign::Refused).await.unwrap_err();
    assert!(matches!(refused, RestoreError::Foreign { .. }) && refused.to_string().contains("--adopt"), "{refused}");
    let restored = restore(world.config(), &*world.store, Foreign::Adopted).await.unwrap();
    let version = restored.version;
    assert_eq!((restored.raised, version.epoch), (true, before.0.epoch + 1));
    let again = restore(world.config(), &*world.store, Foreign::Refused).await.unwrap();
    assert!(!again.raised, "a repetition does nothing");
    let fixture = world.start().await;
    let (head, snapshot) = published(&fixture.world).await;
    assert_eq!((head.epoch, snapshot.upstreams.len()), (version.epoch, 0));
    assert_eq!(snapshot.registry_id, before.1.registry_id, "tokens stay good");
    assert_ne!(fixture.create_upstream("quay").await.etag, quay.etag);
}

#[tokio::test]
async fn a_head_whose_answer_was_lost_keeps_its_snapshot() {
    let mut world = World::new().await;
    let deaf = Arc::new(DeafStore::new(Arc::clone(&world.store)));
    deaf.lost.store(1, Ordering::Relaxed);
    world.store = Arc::clone(&deaf) as Store;
    let fixture = world.start().await;
    published(&fixture.world).await;
    deaf.lost.store(1, Ordering::Relaxed);
    fixture.create_upstream("quay").await;
    let (_, snapshot) = published(&fixture.world).await;
    assert_eq!(snapshot.upstreams.len(), 1);
}

#[tokio::test]
async fn a_head_that_cannot_be_read_is_published_anew_at_a_start_and_while_it_runs() {
    let mut fixture = Fixture::start().await;
    let mut last = published(&fixture.world).await.0;
    let whole = fixture.world.store.get(&layout::snapshot_head()).await.unwrap().unwrap().bytes;
    let huge = vec![b' '; 17 << 20];
    for junk in [&b""[..], &whole[..50], &whole[..whole.len() - 1], b"\0\xff", b"[]", b"null", b"{}", &huge] {
        let world = fixture.stop().await;
        world.store.put(&layout::snapshot_head(), junk.to_vec().into()).await.unwrap();
        fixture = world.start().await;
        let (head, _) = published(&fixture.world).await;
        assert_eq!((head.epoch, head.revision), (last.epoch, last.revision + 1), "{} bytes", junk.len());
        last = head;
    }
    fixture.world.store.put(&layout::snapshot_head(), b"junk".to_vec().into()).await.unwrap();
    fixture.create_upstream("quay").await;
    assert_eq!(published(&fixture.world).await.0.revision, last.revision + 1);
}

#[tokio::test]
async fn beside_a_head_that_cannot_be_read_the_newest_snapshot_says_whether_the_database_is_behind() {
    let fixture = Fixture::start().await;
    let (head, before) = published(&fixture.world).await;
    let world = fixture.stop().await;
    let later = layout::snapshot(head.epoch, head.revision + 5, uuid::Uuid::now_v7());
    world.store.put(&later, before.encode_to_vec().into()).await.unwrap();
    world.store.put(&layout::snapshot_head(), b"{".to_vec().into()).await.unwrap();

    let fixture = world.start().await;
    let request = pb::CreateUpstreamRequest {
        upstream_id: "quay".into(),
        upstream: Some(pb::Upstream { kind: pb::UpstreamKind::Quay.into(), ..Default::default() }),
        ..Default::default()
    };
    let error = fixture.upstreams().create_upstream(request).await.unwrap_err();
    assert_eq!(kind(&error), (Code::FailedPrecondition, "DATABASE_BEHIND_SNAPSHOT".into()));
    let object = fixture.world.store.get(&layout::snapshot_head()).await.unwrap().unwrap();
    assert_eq!(object.bytes, "{", "nothing is published over what may be newer");

    let world = fixture.stop().await;
    let restored = restore(world.config(), &*world.store, Foreign::Refused).await.unwrap();
    assert_eq!((restored.raised, restored.version.epoch), (true, head.epoch + 1));
    let fixture = world.start().await;
    assert_eq!(published(&fixture.world).await.0.epoch, head.epoch + 1);
}

#[tokio::test]
async fn a_snapshot_that_is_lost_is_published_anew_at_the_next_change_or_start() {
    let fixture = Fixture::start().await;
    let lose = async |fixture: &Fixture| {
        let (head, _) = published(&fixture.world).await;
        fixture.world.store.delete(&head.key).await.unwrap();
        head.revision
    };
    let lost = lose(&fixture).await;
    fixture.create_upstream("quay").await;
    assert_eq!(published(&fixture.world).await.0.revision, lost + 1);
    let lost = lose(&fixture).await;
    let fixture = fixture.stop().await.start().await;
    assert_eq!(published(&fixture.world).await.0.revision, lost + 1);
}
