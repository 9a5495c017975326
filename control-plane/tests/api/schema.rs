//! The schema and releases: what a newer release has added does not stop this one, unless the schema says so.

use entrepot_control_plane::StartError;

use crate::content::{Repository, list_images, list_repositories, report};
use crate::fixture::{ADMIN, Fixture, LIMIT};

/// What a newer release would do: add columns, a table, and a line in the history of migrations.
const NEWER: &str = "
    ALTER TABLE rules ADD COLUMN colour text;
    ALTER TABLE upstreams ADD COLUMN colour text NOT NULL DEFAULT 'red';
    ALTER TABLE principals ADD COLUMN colour text;
    ALTER TABLE access_keys ADD COLUMN colour text;
    ALTER TABLE repositories ADD COLUMN colour text;
    ALTER TABLE images ADD COLUMN colour text;
    ALTER TABLE tags ADD COLUMN colour text;
    ALTER TABLE events ADD COLUMN colour text;
    ALTER TABLE requests ADD COLUMN colour text;
    ALTER TABLE registry ADD COLUMN colour text;
    CREATE TABLE colours (colour text PRIMARY KEY);
    INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
    VALUES (9000, 'add_colours', '2030-01-01T00:00:00Z', '1234567890')";

#[tokio::test]
async fn columns_of_a_newer_release_are_no_obstacle_before_or_after_a_restart() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("before").await;
    fixture.create_rule("before", "before").await;
    fixture.world.sql(NEWER).await;

    // The running control plane continues, with the statements that it has prepared before.
    fixture.create_upstream("meanwhile").await;
    fixture.create_rule("meanwhile", "meanwhile").await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    report(&fixture, vec![app.created(), app.cached(b"a", 0), app.moved("v1", b"a", 1)]).await;
    assert_eq!(list_images(&fixture, "demo/app", r#"tag = "v1""#).await.len(), 1);

    let fixture = fixture.stop().await.launch(Some(ADMIN)).await;
    fixture.plane.ready(LIMIT).await.unwrap();
    fixture.create_upstream("after").await;
    fixture.create_rule("after", "after").await;
    report(&fixture, vec![app.cached(b"b", 1)]).await;
    assert_eq!(list_repositories(&fixture, "").await, ["demo/app"]);
}

#[tokio::test]
async fn a_newer_release_can_shut_this_one_out() {
    let fixture = Fixture::start().await;
    fixture.world.sql(NEWER).await;
    fixture.world.sql("UPDATE registry SET oldest_release = '0.99.0'").await;
    // It does not stop at once: it was started while that was permitted, and continues until its operator stops it.
    fixture.create_upstream("quay").await;
    let fixture = fixture.stop().await.launch(Some(ADMIN)).await;
    let Err(StartError::Refused { why }) = fixture.plane.ready(LIMIT).await else { panic!("started") };
    assert!(why.contains("0.99.0 or newer") && why.contains("upgrade"), "{why}");
    assert_eq!(why.lines().count(), 1);
}

#[tokio::test]
async fn a_migration_that_was_changed_after_its_release_is_refused() {
    let fixture = Fixture::start().await;
    fixture.world.sql("UPDATE refinery_schema_history SET checksum = '1' WHERE version = 3").await;
    let fixture = fixture.stop().await.launch(Some(ADMIN)).await;
    let Err(StartError::Refused { why }) = fixture.plane.ready(LIMIT).await else { panic!("started") };
    assert!(why.contains("create_rules"), "{why}");
}
