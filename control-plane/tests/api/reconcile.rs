//! The index is repaired from the store, and events that a node left behind are taken in.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use entrepot_control_plane::reindex;
use entrepot_domain::{Digest, ResourceId};
use entrepot_proto::convert::{event, timestamp};
use entrepot_proto::node::v1 as node;
use entrepot_proto::node::v1::event::Kind as EventKind;
use entrepot_records::layout;
use entrepot_records::{self as records, Kind, ManifestLink, RepositoryRecord, State};
use entrepot_store::Store;
use entrepot_test_support::wait_until;
use prost::Message as _;
use tonic::Code;
use uuid::{NoContext, Timestamp, Uuid};

use crate::content::{Repository, list_images, list_repositories, report};
use crate::deaf_store::DeafStore;
use crate::fixture::{Fixture, LIMIT, World, kind, now};

#[tokio::test]
async fn what_the_store_has_is_listed_after_a_start() {
    let world = World::new().await;
    let (app, gone) = (Repository::create(&world, "demo/app").await, Repository::create(&world, "demo/gone").await);
    let content = Digest::sha256(b"a");
    app.write_link(&world, &content, &app.link()).await;
    app.write_config(&world, "linux/riscv64").await;
    app.write_tag(&world, "v1", Some(&content), 1).await;
    let deleted = Digest::sha256(b"deleted");
    app.write_link(&world, &deleted, &ManifestLink { state: State::Deleted.into(), ..app.link() }).await;
    app.write_tag(&world, "old", None, 5).await;
    gone.write(&world, State::Deleted).await;

    let fixture = world.start().await;
    wait_until(LIMIT, "the tag is listed", async || {
        list_repositories(&fixture, "").await == ["demo/app"]
            && list_images(&fixture, "demo/app", r#"tag = "v1""#).await.len() == 1
    })
    .await;
    let images = list_images(&fixture, "demo/app", "").await;
    assert_eq!((images.len(), images[0].platforms.clone()), (1, vec!["linux/riscv64".to_owned()]));
}

#[tokio::test]
async fn records_of_repositories_that_cannot_be_read_are_written_again_from_their_rows() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    let rule = fixture.create_rule("demo", "quay").await;
    let (app, other) =
        (Repository::create(&fixture.world, "demo/app").await, Repository::create(&fixture.world, "demo/other").await);
    let created = |repository: &Repository| {
        repository.event(EventKind::RepositoryCreated(node::RepositoryCreated {
            rule_uid: rule.uid.clone(),
            create_time: Some(timestamp(now())),
            settings: None,
        }))
    };
    report(&fixture, vec![created(&app), created(&other), app.cached(b"a", 0)]).await;
    let world = fixture.stop().await;
    let key = layout::repository(&app.name);
    let read = async || records::read::<RepositoryRecord>(&*world.store, &key).await;
    let untouched = world.store.get(&layout::repository(&other.name)).await.unwrap().unwrap().bytes;
    for junk in ["", "{}", "null", r#"{"incarnation":7}"#] {
        world.store.put(&key, junk.into()).await.unwrap();
        assert!(read().await.is_err());
        reindex(world.config(), &*world.store).await.unwrap();
        let (record, _) = read().await.unwrap().unwrap();
        assert_eq!((record.incarnation, record.is_live()), (app.incarnation, true), "{junk}");
        assert_eq!((record.kind.known(), record.rule_uid), (Some(Kind::Cached), rule.uid.parse().ok()), "{junk}");
        assert_eq!(record.create_time, now());
    }
    assert_eq!(world.store.get(&layout::repository(&other.name)).await.unwrap().unwrap().bytes, untouched);
    let fixture = world.start().await;
    assert_eq!(list_images(&fixture, "demo/app", "").await.len(), 1);
}

#[tokio::test]
async fn of_two_that_create_a_repository_at_once_the_one_that_its_record_names_stays_listed() {
    let mut world = World::new().await;
    let counted = Arc::new(DeafStore::new(Arc::clone(&world.store)));
    world.store = Arc::clone(&counted) as Store;
    let fixture = world.start().await;
    let one = || Repository { name: "demo/app".parse().unwrap(), incarnation: Uuid::now_v7() };
    let (winner, loser) = (one(), one());
    // Both nodes report it before either has written the record, and the losing node reports last.
    report(&fixture, vec![winner.created(), winner.cached(b"a", 0)]).await;
    let reads = counted.reads.load(Ordering::Relaxed);
    let lost = report(&fixture, vec![loser.created(), loser.cached(b"b", 0)]);
    let written = async {
        let has_looked = async || counted.reads.load(Ordering::Relaxed) > reads;
        wait_until(LIMIT, "the record is looked for because of the loser's report", has_looked).await;
        winner.write(&fixture.world, State::Live).await;
    };
    tokio::join!(lost, written);
    report(&fixture, vec![winner.cached(b"c", 0)]).await;
    assert_eq!(list_images(&fixture, "demo/app", "").await.len(), 2, "those of the winner");
}

#[tokio::test]
async fn what_the_store_does_not_have_is_removed() {
    let fixture = Fixture::start().await;
    let world = &fixture.world;
    let app = Repository::create(world, "demo/app").await;
    let (kept, lost) = (Digest::sha256(b"kept"), Digest::sha256(b"lost"));
    app.write_link(world, &kept, &app.link()).await;
    app.write_tag(world, "moved", Some(&kept), 2).await;
    let phantom = Repository { name: "demo/phantom".parse().unwrap(), incarnation: Uuid::now_v7() };
    let events = vec![
        app.cached(b"kept", 0),
        app.cached(b"lost", 0),
        app.moved("moved", b"lost", 1),
        app.moved("lost", b"lost", 1),
        phantom.created(),
    ];
    report(&fixture, events).await;
    assert_eq!(list_images(&fixture, "demo/app", "").await.len(), 2);

    let world = fixture.stop().await;
    world
        .sql(
            "UPDATE repositories SET index_time = index_time - interval '1 hour';
             UPDATE images SET index_time = index_time - interval '1 hour';
             UPDATE tags SET index_time = index_time - interval '1 hour'",
        )
        .await;
    let fixture = world.start().await;
    wait_until(LIMIT, "the index is repaired", async || {
        let images = list_images(&fixture, "demo/app", "").await;
        let tags = images.first().map(|image| image.tags.iter().map(|tag| tag.tag.clone()).collect::<Vec<_>>());
        list_repositories(&fixture, "").await == ["demo/app"]
            && images.len() == 1
            && images[0].digest == kept.to_string()
            && tags == Some(vec!["moved".to_owned()])
    })
    .await;
    let _ = lost;
}

/// Waits until this many comparisons were complete.
async fn compared(world: &World, count: usize) {
    wait_until(LIMIT, "store and index are compared", async || {
        let rows = world.sql("SELECT uid FROM reconcile_runs WHERE is_complete").await;
        rows.iter().filter(|row| matches!(row, tokio_postgres::SimpleQueryMessage::Row(_))).count() >= count
    })
    .await;
}

#[tokio::test]
async fn a_comparison_reads_only_records_that_have_changed_since_the_last_one() {
    let mut world = World::new().await;
    let counted = Arc::new(DeafStore::new(Arc::clone(&world.store)));
    world.store = Arc::clone(&counted) as Store;
    let content = Digest::sha256(b"a");
    let app = Repository::create(&world, "demo/app").await;
    app.write_link(&world, &content, &app.link()).await;
    app.write_config(&world, "linux/riscv64").await;
    for tag in 0..20 {
        app.write_tag(&world, &format!("v{tag}"), Some(&content), 1).await;
    }
    app.write_tag(&world, "gone", None, 1).await;
    let deleted = Digest::sha256(b"deleted");
    app.write_link(&world, &deleted, &ManifestLink { state: State::Deleted.into(), ..app.link() }).await;
    Repository::create(&world, "demo/deleted").await.write(&world, State::Deleted).await;
    let took = || (counted.reads.swap(0, Ordering::Relaxed), counted.lists.swap(0, Ordering::Relaxed));

    let mut fixture = world.start().await;
    compared(&fixture.world, 1).await;
    let (reads, lists) = took();
    assert!(reads >= 25 && lists > 0, "{reads} reads, {lists} lists");
    for run in 2..=3 {
        fixture = fixture.stop().await.start().await;
        compared(&fixture.world, run).await;
        let (reads, lists) = took();
        assert!(reads == 0 && lists > 0, "run {run}: {reads} reads, {lists} lists");
    }
    assert_eq!(list_images(&fixture, "demo/app", "").await[0].tags.len(), 20);

    // A row that has changed is compared with its record again, and so is a changed record.
    report(&fixture, vec![app.moved("v1", b"phantom", 9)]).await;
    let world = fixture.stop().await;
    app.write_tag(&world, "v2", None, 2).await;
    world.sql("UPDATE tags SET index_time = index_time - interval '1 hour'").await;
    took();
    let fixture = world.start().await;
    compared(&fixture.world, 4).await;
    assert_eq!(took().0, 2, "the two tags");
    let tags = list_images(&fixture, "demo/app", "").await[0].tags.clone();
    assert!(tags.len() == 19 && tags.iter().any(|tag| tag.tag == "v1"), "{tags:?}");

    // A restored database remembers what its own rows say.
    let world = fixture.stop().await;
    world.sql("DELETE FROM tags WHERE tag = 'v3'; UPDATE repositories SET rule_uid = gen_random_uuid(), record_version = 'old'").await;
    let fixture = world.start().await;
    compared(&fixture.world, 5).await;
    assert_eq!(took().0, 2, "the tag and the repository");
    assert_eq!(list_images(&fixture, "demo/app", "").await[0].tags.len(), 19);
}

#[tokio::test]
async fn a_damaged_record_of_a_repository_keeps_its_own_events_waiting_and_no_others() {
    let fixture = Fixture::start().await;
    let (app, bad) =
        (Repository::create(&fixture.world, "demo/app").await, Repository::create(&fixture.world, "demo/bad").await);
    fixture.world.store.put(&layout::repository(&bad.name), b"no record".to_vec().into()).await.unwrap();
    let events = vec![bad.created(), bad.cached(b"b", 0), app.created(), app.cached(b"a", 0)];
    let request = event::report("n1", &events);
    for _ in 0..2 {
        let error = fixture.nodes("n1").report_events(request.clone()).await.unwrap_err();
        assert_eq!(kind(&error), (Code::FailedPrecondition, "RECORD_DAMAGED".into()));
        assert!(error.message().contains("demo/bad"), "{}", error.message());
        assert_eq!(list_repositories(&fixture, "").await, ["demo/app"]);
    }
    bad.write(&fixture.world, State::Live).await;
    report(&fixture, events).await;
    assert_eq!(list_images(&fixture, "demo/bad", "").await.len(), 1);
}

#[tokio::test]
async fn an_event_that_was_ignored_counts_when_its_repository_is_known() {
    let fixture = Fixture::start().await;
    let app = Repository { name: "demo/app".parse().unwrap(), incarnation: Uuid::now_v7() };
    let events = vec![app.cached(b"a", 0)];
    report(&fixture, events.clone()).await;
    assert!(list_repositories(&fixture, "").await.is_empty());
    app.write(&fixture.world, State::Live).await;
    report(&fixture, events).await;
    assert_eq!(list_images(&fixture, "demo/app", "").await.len(), 1);
}

#[tokio::test]
async fn events_that_a_node_left_behind_are_taken_in() {
    let world = World::new().await;
    let app = Repository { name: "demo/app".parse().unwrap(), incarnation: Uuid::now_v7() };
    let node: ResourceId = "dead-node".parse().unwrap();
    let at = |seconds_ago: i64| {
        let seconds = u64::try_from(now().timestamp() - seconds_ago).unwrap();
        layout::event(&node, Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, 0)))
    };
    let (old, later, broken, young) = (at(90), at(85), at(80), at(10));
    let batch = event::report(node.as_str(), &[app.created(), app.cached(b"a", 0)]);
    // Known events beside one of a kind that only a later release knows.
    let of_later = node::Event { kind: None, ..app.created() };
    let of_later = event::report(node.as_str(), &[of_later, app.cached(b"b", 0)]).encode_to_vec();
    world.store.put(&later, of_later.clone().into()).await.unwrap();
    world.store.put(&old, batch.encode_to_vec().into()).await.unwrap();
    world.store.put(&broken, b"\xff not protobuf".to_vec().into()).await.unwrap();
    world.store.put(&young, batch.encode_to_vec().into()).await.unwrap();

    let fixture = world.start().await;
    let is_there = async |key| fixture.world.store.head(key).await.unwrap().is_some();
    wait_until(LIMIT, "the old ones are deleted", async || !is_there(&old).await && !is_there(&broken).await).await;
    assert!(is_there(&young).await, "the node may still report these itself");
    assert_eq!(list_repositories(&fixture, "").await, ["demo/app"]);
    assert_eq!(list_images(&fixture, "demo/app", "").await.len(), 2, "the known events beside an unknown one count");
    let kept = fixture.world.store.get(&later).await.unwrap().expect("it waits for a later release");
    assert_eq!(kept.bytes, of_later);
}
