//! A database restored from a backup, and the index rebuilt from the store.

use entrepot_control_plane::{Foreign, Repaired, reindex, restore};
use entrepot_domain::Digest;
use entrepot_records::State;
use entrepot_test_support::Postgres;
use entrepot_test_support::wait_until;
use tonic::Code;

use crate::content::{Repository, list_images, list_repositories, report};
use crate::fixture::{Fixture, LIMIT, World, create_rule, kind};
use crate::snapshot::published;

/// A control plane whose database has the state after `before`, while the store has gone on to `after`.
async fn restored_to_before(
    before: impl AsyncFnOnce(&Fixture),
    after: impl AsyncFnOnce(&Fixture),
) -> (Fixture, &'static Postgres) {
    let postgres = Postgres::shared().await;
    let fixture = World::on(postgres).await.start().await;
    before(&fixture).await;
    let world = fixture.stop().await;
    let name = world.database.rsplit_once("dbname=").unwrap().1.to_owned();
    let backup = postgres.database_from(&name).await;
    let fixture = world.start().await;
    after(&fixture).await;
    let world = fixture.stop().await;
    (World { database: backup, ..world }.start().await, postgres)
}

/// Writes what a node would write into the store.
async fn fill(world: &World, repository: &Repository, contents: &[&[u8]], tag: &str, revision: i64) {
    for content in contents {
        let digest = Digest::sha256(content);
        repository.write_link(world, &digest, &repository.link()).await;
    }
    let newest = contents.last().map(|content| Digest::sha256(content));
    repository.write_tag(world, tag, newest.as_ref(), revision).await;
}

#[tokio::test]
async fn after_a_restore_writes_wait_for_the_operator_and_events_do_not() {
    let (fixture, _postgres) = restored_to_before(
        async |fixture| {
            fixture.create_upstream("quay").await;
        },
        async |fixture| {
            fixture.create_rule("hub", "quay").await;
            fixture.create_rule("other", "quay").await;
            let app = Repository::create(&fixture.world, "hub/app").await;
            fill(&fixture.world, &app, &[b"a"], "v1", 1).await;
            report(fixture, vec![app.created(), app.cached(b"a", 0), app.moved("v1", b"a", 1)]).await;
        },
    )
    .await;
    let before = published(&fixture.world).await;
    let error = fixture.rules().create_rule(create_rule("new", "new", "quay")).await.unwrap_err();
    assert_eq!(kind(&error), (Code::FailedPrecondition, "DATABASE_BEHIND_SNAPSHOT".into()));
    for part in ["entrepot admin restore", "--config"] {
        assert!(error.message().contains(part), "{}", error.message());
    }
    assert!(fixture.health.is_ready(), "pulls and events need it");

    // What nodes report meanwhile is taken in, and stays.
    let late = Repository::create(&fixture.world, "hub/late").await;
    fill(&fixture.world, &late, &[b"b"], "v1", 1).await;
    report(&fixture, vec![late.created(), late.cached(b"b", 0), late.moved("v1", b"b", 1)]).await;
    assert_eq!(list_images(&fixture, "hub/late", r#"tag = "v1""#).await.len(), 1);

    // The operator need not even stop the control plane.
    let restored = restore(fixture.world.config(), &*fixture.world.store, Foreign::Refused).await.unwrap();
    assert_eq!((restored.raised, restored.version.epoch), (true, before.0.epoch + 1));
    let index = restored.index;
    assert_eq!((index.repositories.found, index.images.found, index.tags.found), (2, 2, 2), "{index:?}");
    assert_eq!(list_repositories(&fixture, "").await, ["hub/app", "hub/late"]);
    assert_eq!(list_images(&fixture, "hub/app", r#"tag = "v1""#).await.len(), 1);
    wait_until(LIMIT, "the new epoch is published", async || {
        published(&fixture.world).await.0.epoch == restored.version.epoch
    })
    .await;
    let (_, snapshot) = published(&fixture.world).await;
    assert_eq!(snapshot.registry_id, before.1.registry_id, "tokens stay good");
    fixture.create_rule("new", "quay").await;
    assert_eq!(published(&fixture.world).await.1.rules.len(), 1);
}

#[tokio::test]
async fn an_index_of_the_past_is_brought_up_to_the_store() {
    let (fixture, _postgres) = restored_to_before(
        async |fixture| {
            let world = &fixture.world;
            let (app, gone) = (Repository::create(world, "a/app").await, Repository::create(world, "a/gone").await);
            fill(world, &app, &[b"one", b"two"], "v1", 1).await;
            fill(world, &gone, &[b"one"], "v1", 1).await;
            report(fixture, vec![app.created(), app.cached(b"one", 0), app.cached(b"two", 0)]).await;
            report(fixture, vec![app.moved("v1", b"two", 1), gone.created(), gone.cached(b"one", 0)]).await;
        },
        async |fixture| {
            let world = &fixture.world;
            let delete = |name: &str| entrepot_proto::v1::DeleteRepositoryRequest {
                name: format!("repositories/{name}"),
                ..Default::default()
            };
            fixture.repositories().delete_repository(delete("a/gone")).await.unwrap();
            let again = Repository::create(world, "a/gone").await;
            fill(world, &again, &[b"three"], "v2", 1).await;
            let new = Repository::create(world, "a/new").await;
            fill(world, &new, &[b"four"], "v3", 1).await;
            let image = format!("repositories/a/app/images/{}", Digest::sha256(b"one"));
            let request = entrepot_proto::v1::DeleteImageRequest { name: image };
            fixture.images().delete_image(request).await.unwrap();
        },
    )
    .await;
    let app = read_repository(&fixture, "a/app").await;
    fill(&fixture.world, &app, &[b"five"], "v1", 2).await;

    // The control plane repairs by itself as well, so either of the two may have done each repair.
    reindex(fixture.world.config(), &*fixture.world.store).await.unwrap();
    assert_eq!(list_repositories(&fixture, "").await, ["a/app", "a/gone", "a/new"]);
    let digests = async |repository: &str, filter: &str| {
        let mut digests: Vec<_> =
            list_images(&fixture, repository, filter).await.into_iter().map(|image| image.digest).collect();
        digests.sort();
        digests
    };
    let expected = |contents: &[&[u8]]| {
        let mut digests: Vec<_> = contents.iter().map(|content| Digest::sha256(content).to_string()).collect();
        digests.sort();
        digests
    };
    assert_eq!(digests("a/app", "").await, expected(&[b"two", b"five"]));
    assert_eq!(digests("a/app", r#"tag = "v1""#).await, expected(&[b"five"]));
    assert_eq!(digests("a/gone", "").await, expected(&[b"three"]));
    assert_eq!(digests("a/new", "").await, expected(&[b"four"]));
    let again = reindex(fixture.world.config(), &*fixture.world.store).await.unwrap();
    assert_eq!(again.repositories, Repaired { found: 3, ..Repaired::default() });
    assert_eq!(again.images, Repaired { found: 4, ..Repaired::default() });
    assert_eq!(again.tags, Repaired { found: 3, ..Repaired::default() });
}

/// A repository that exists already.
async fn read_repository(fixture: &Fixture, name: &str) -> Repository {
    use entrepot_records::{RepositoryRecord, read};
    let name: entrepot_domain::RepositoryName = name.parse().unwrap();
    let key = entrepot_records::layout::repository(&name);
    let (record, _) = read::<RepositoryRecord>(&*fixture.world.store, &key).await.unwrap().unwrap();
    Repository { name, incarnation: record.incarnation }
}

#[tokio::test]
async fn an_index_is_rebuilt_from_nothing_with_the_control_plane_stopped() {
    let world = World::new().await.start().await.stop().await;
    for (name, contents) in [("a/one", 3_u8), ("b/two", 5)] {
        let repository = Repository::create(&world, name).await;
        let contents: Vec<[u8; 1]> = (0..contents).map(|content| [content]).collect();
        let contents: Vec<&[u8]> = contents.iter().map(|content| content.as_slice()).collect();
        fill(&world, &repository, &contents, "v1", 1).await;
    }
    Repository::create(&world, "c/gone").await.write(&world, State::Deleted).await;
    let broken = Repository::create(&world, "d/broken").await;
    let record = entrepot_records::layout::repository(&broken.name);
    world.store.put(&record, b"not a record".to_vec().into()).await.unwrap();
    world.sql("TRUNCATE repositories CASCADE").await;

    let index = reindex(world.config(), &*world.store).await.unwrap();
    let all = |found| Repaired { found, added: found, ..Repaired::default() };
    assert_eq!((index.repositories, index.images, index.tags), (all(2), all(8), all(2)));
    let fixture = world.start().await;
    assert_eq!(list_repositories(&fixture, "").await, ["a/one", "b/two"]);
}

#[tokio::test]
async fn a_database_that_is_not_behind_keeps_its_epoch() {
    let fixture = Fixture::start().await;
    let (head, _) = published(&fixture.world).await;
    let restored = restore(fixture.world.config(), &*fixture.world.store, Foreign::Refused).await.unwrap();
    assert_eq!(
        (restored.raised, restored.version.epoch, restored.version.revision),
        (false, head.epoch, head.revision)
    );
}
