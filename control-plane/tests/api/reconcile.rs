//! The index is repaired from the store, and events that a node left behind are taken in.

use entrepot_domain::{Digest, ResourceId};
use entrepot_proto::convert::event;
use entrepot_proto::node::v1 as node;
use entrepot_records::layout;
use entrepot_records::{ManifestLink, State};
use entrepot_test_support::wait_until;
use prost::Message as _;
use uuid::{NoContext, Timestamp, Uuid};

use crate::content::{Repository, list_images, list_repositories, report};
use crate::fixture::{Fixture, LIMIT, World, now};

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
async fn of_two_that_create_a_repository_at_once_the_one_that_its_record_names_stays_listed() {
    let fixture = Fixture::start().await;
    let one = || Repository { name: "demo/app".parse().unwrap(), incarnation: Uuid::now_v7() };
    let (winner, loser) = (one(), one());
    // Both report it before either has written the record, and the loser is heard last.
    report(&fixture, vec![winner.created(), winner.cached(b"a", 0)]).await;
    let lost = report(&fixture, vec![loser.created(), loser.cached(b"b", 0)]);
    let written = async {
        fixture.world.sql("SELECT pg_sleep(0.1)").await;
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
    // Known ones beside one of a kind that only a later release knows.
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
