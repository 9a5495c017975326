//! Templates: the settings of new repositories, whichever node creates them, while the control plane is away.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

#[path = "several/fixture.rs"]
mod fixture;

use std::time::Duration;

use entrepot_proto::node::v1 as pb;
use entrepot_records::layout;
use entrepot_records::{self as records, RepositoryRecord, SettingsRecord};
use entrepot_test_support::images;
use reqwest::StatusCode;
use uuid::Uuid;

use fixture::{Fixture, Node};

const DAY: Duration = Duration::from_secs(25 * 3600);

fn template(number: u128, id: &str, prefix: &str, mutability: &str, exclusions: &[&str]) -> pb::SnapshotTemplate {
    pb::SnapshotTemplate {
        uid: Uuid::from_u128(number).to_string(),
        template_id: id.to_owned(),
        prefix: prefix.to_owned(),
        settings: Some(pb::RepositorySettings {
            template_id: id.to_owned(),
            tag_mutability: mutability.to_owned(),
            tag_mutability_exclusions: exclusions.iter().map(ToString::to_string).collect(),
            resource_tags: vec![pb::ResourceTag { key: "by".to_owned(), value: id.to_owned() }],
        }),
        minimum_reader: 0,
    }
}

async fn settings(fixture: &Fixture, name: &str) -> SettingsRecord {
    let key = layout::repository(&name.parse().unwrap());
    records::read::<RepositoryRecord>(&*fixture.store, &key).await.unwrap().unwrap().0.settings
}

/// The digest of the manifest that a tag means at a node.
async fn pulled(node: &Node, path: &str) -> String {
    let (status, digest) = node.get(path).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{path}");
    digest
}

#[tokio::test]
async fn the_template_with_the_longest_prefix_is_applied_by_the_first_pull_at_any_node() {
    let fixture = Fixture::new().await;
    let templates = vec![
        template(20, "root", "ROOT", "MUTABLE", &[]),
        template(21, "demo", "demo", "IMMUTABLE", &[]),
        template(22, "team", "demo/team", "IMMUTABLE_WITH_EXCLUSION", &["latest"]),
    ];
    let rules = [("demo", pb::SnapshotFreshness::default()), ("other", pb::SnapshotFreshness::default())];
    fixture.publish_with(2, &rules, templates).await;
    // Nobody listens at the address of their control plane.
    let (one, two) = fixture.two().await;
    let mut old = Vec::new();
    for (seed, repository) in (0..).zip(["app", "team/app"]) {
        for (number, tag) in (0..).zip(["v1", "latest"]) {
            let layer = images::random_bytes(10 * seed + number, 100);
            old.push(fixture.upstream.publish_image(repository, tag, &[layer]).manifest);
        }
    }
    fixture.upstream.publish_image("x", "v1", &[images::random_bytes(99, 100)]);
    assert_eq!(pulled(&one, "app/manifests/v1").await, old[0]);
    assert_eq!(pulled(&two, "app/manifests/latest").await, old[1]);
    assert_eq!(pulled(&two, "team/app/manifests/v1").await, old[2]);
    assert_eq!(pulled(&two, "team/app/manifests/latest").await, old[3]);
    let other = one.request("other/x/manifests/v1").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::OK);
    for (name, by) in [("demo/app", "demo"), ("demo/team/app", "team"), ("other/x", "root")] {
        let settings = settings(&fixture, name).await;
        assert_eq!((settings.template.as_str(), settings.resource_tags["by"].as_str()), (by, by), "{name}");
    }

    // A tag that may not move does not move, however long ago it was confirmed.
    for repository in ["app", "team/app"] {
        for tag in ["v1", "latest"] {
            fixture.upstream.publish_image(repository, tag, &[images::random_bytes(50, 100)]);
        }
    }
    fixture.advance(DAY).await;
    for node in [&one, &two] {
        assert_eq!(pulled(node, "app/manifests/v1").await, old[0]);
        assert_eq!(pulled(node, "app/manifests/latest").await, old[1]);
        assert_eq!(pulled(node, "team/app/manifests/v1").await, old[2]);
        assert_ne!(pulled(node, "team/app/manifests/latest").await, old[3], "it is excluded");
    }

    // A template is applied once.
    let changed = vec![template(23, "changed", "demo", "MUTABLE", &[])];
    fixture.publish_with(3, &rules, changed).await;
    let three = fixture.node("node-3").await;
    assert_eq!(pulled(&three, "app/manifests/v1").await, old[0]);
    assert_eq!(settings(&fixture, "demo/app").await.template, "demo");
    fixture.upstream.publish_image("new", "v1", &[images::random_bytes(60, 100)]);
    pulled(&three, "new/manifests/v1").await;
    assert_eq!(settings(&fixture, "demo/new").await.template, "changed");
}

#[tokio::test]
async fn a_template_of_a_newer_release_breaks_no_pull_and_creates_nothing() {
    let fixture = Fixture::new().await;
    let strange = template(20, "strange", "demo", "FROZEN_ON_MONDAYS", &["("]);
    fixture.publish_with(2, &[("demo", pb::SnapshotFreshness::default())], vec![strange]).await;
    fixture.upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let node = fixture.node("node-1").await;
    pulled(&node, "app/manifests/v1").await;
    let record = layout::repository(&"demo/app".parse().unwrap());
    assert_eq!(fixture.store.head(&record).await.unwrap(), None, "what it would have to forbid is not known here");
}

#[tokio::test]
async fn a_repository_whose_record_is_damaged_is_answered_503_with_the_reason() {
    let fixture = Fixture::new().await;
    fixture.upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let record = layout::repository(&"demo/app".parse().unwrap());
    fixture.store.put(&record, b"no record".to_vec().into()).await.unwrap();
    let node = fixture.node("node-1").await;
    let answer = node.request("demo/app/manifests/v1").send().await.unwrap();
    assert_eq!(answer.status(), 503);
    let text = answer.text().await.unwrap();
    assert!(text.contains(record.as_str()), "{text}");
    assert_eq!(fixture.store.get(&record).await.unwrap().unwrap().bytes, "no record", "nothing is created");
}
