//! Postgres goes away and comes back.

use std::time::Duration;

use entrepot_control_plane::{Config, ConfigError, StartError};
use entrepot_domain::Secret;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{Postgres, wait_until};
use tonic::Code;

use crate::fixture::{Fixture, LIMIT, World, create_rule, kind};

async fn list(fixture: &Fixture) -> Result<usize, tonic::Status> {
    let answer = fixture.rules().list_rules(pb::ListRulesRequest::default()).await?;
    Ok(answer.into_inner().rules.len())
}

#[tokio::test]
async fn everything_works_again_once_postgres_is_back() {
    let postgres = Postgres::start().await;
    let fixture = World::on(&postgres).await.start().await;
    fixture.create_upstream("quay").await;
    fixture.create_rule("a", "quay").await;
    assert_eq!(list(&fixture).await.unwrap(), 1);

    postgres.kill().await;
    let error = list(&fixture).await.unwrap_err();
    assert_eq!(kind(&error), (Code::Unavailable, "AWAY".into()));
    assert!(error.message().contains("the database is away"), "{}", error.message());
    let error = fixture.rules().create_rule(create_rule("b", "b", "quay")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);

    postgres.resume().await;
    wait_until(LIMIT, "calls are answered", async || list(&fixture).await.is_ok()).await;
    let answer = fixture.rules().create_rule(create_rule("b", "b", "quay")).await.unwrap();
    assert!(answer.metadata().get("entrepot-lagging-nodes").is_none());
    assert_eq!(list(&fixture).await.unwrap(), 2);
}

#[tokio::test]
async fn a_control_plane_waits_for_postgres_to_come() {
    let postgres = Postgres::start().await;
    let world = World::on(&postgres).await;
    postgres.kill().await;
    let fixture = world.launch(Some(crate::fixture::ADMIN)).await;
    let Err(StartError::NotYet { .. }) = fixture.plane.ready(Duration::from_millis(200)).await else {
        panic!("ready without a database")
    };
    assert_eq!(kind(&list(&fixture).await.unwrap_err()), (Code::Unavailable, "STARTING".into()));
    assert!(!fixture.health.is_ready());
    postgres.resume().await;
    fixture.plane.ready(LIMIT).await.unwrap();
    assert!(fixture.health.is_ready());
    assert_eq!(list(&fixture).await.unwrap(), 0);
}

#[tokio::test]
async fn a_schema_of_a_newer_release_is_refused_in_so_many_words() {
    let fixture = Fixture::start().await;
    let world = fixture.stop().await;
    world.sql("UPDATE registry SET oldest_release = '99.0.0'").await;
    let fixture = world.launch(None).await;
    let Err(StartError::Refused { why }) = fixture.plane.ready(LIMIT).await else { panic!("started") };
    assert!(why.contains("99.0.0 or newer") && why.contains("upgrade"), "{why}");
}

#[tokio::test]
async fn two_control_planes_start_on_one_empty_database() {
    let world = World::new().await;
    let other = world.clone();
    let (a, b) = tokio::join!(world.start(), other.start());
    a.create_upstream("quay").await;
    b.create_rule("hub", "quay").await;
    assert_eq!((list(&a).await.unwrap(), list(&b).await.unwrap()), (1, 1));
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let new = |database: &str, size| Config::new(&Secret::new(database.to_owned()), size).map(|_| ());
    assert!(matches!(new("nonsense", 1), Err(ConfigError::Database(_))));
    assert!(matches!(new("host=/run", 0), Err(ConfigError::PoolSize)));
    assert!(new("postgres://me:secret@db.example/entrepot", 4).is_ok());
}
