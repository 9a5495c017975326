//! Snapshots of a later release: what this one does not understand is left out, and opens nothing.

use entrepot_proto::convert::READER;
use entrepot_proto::node::v1 as pb;
use entrepot_records::layout;
use entrepot_store::BlobStore as _;
use entrepot_test_support::{FakeUpstream, wait_until};
use entrepot_trust::access_key;
use prost::Message as _;
use uuid::Uuid;

use crate::fixture::{Fixture, KEY, LIMIT, Node, logged};

const REVISION: &str = "entrepot_snapshot_revision";

/// A snapshot with known items, and beside them a rule with an unknown mode, one with an unknown kind of upstream, a
/// template with unknown settings, a principal with an unknown permission set, and a key with an unknown hash.
fn of_later_release(fixture: &Fixture, revision: i64, upstream: &FakeUpstream) -> pb::Snapshot {
    let mut snapshot = fixture.snapshot(revision, upstream);
    let known = snapshot.rules[0].clone();
    let rule = |number: u128, id: &str, prefix: &str| pb::SnapshotRule {
        uid: Uuid::from_u128(number).to_string(),
        rule_id: id.to_owned(),
        prefix: prefix.to_owned(),
        ..known.clone()
    };
    let mode = pb::SnapshotFreshness { mode: "SOMETIMES".to_owned(), ..Default::default() };
    snapshot.rules.push(pb::SnapshotRule { freshness: Some(mode), ..rule(50, "moody", "demo/moody") });
    snapshot.rules.push(pb::SnapshotRule {
        upstream_uid: Uuid::from_u128(60).to_string(),
        ..rule(51, "hologram", "demo/hologram")
    });
    snapshot.upstreams.push(pb::SnapshotUpstream {
        uid: Uuid::from_u128(60).to_string(),
        upstream_id: "hologram".to_owned(),
        kind: "HOLOGRAM".to_owned(),
        ..snapshot.upstreams[0].clone()
    });
    snapshot.templates.push(pb::SnapshotTemplate {
        uid: Uuid::from_u128(70).to_string(),
        template_id: "frozen".to_owned(),
        prefix: "demo/frozen".to_owned(),
        settings: Some(pb::RepositorySettings { tag_mutability: "FROZEN_ON_MONDAYS".to_owned(), ..Default::default() }),
        minimum_reader: 0,
    });
    let key = |id: &str, hash: &[u8]| pb::SnapshotAccessKey {
        key_id: id.to_owned(),
        sealed_hash: fixture.cluster_key.seal(&format!("access-key/{id}"), hash),
        minimum_reader: 0,
    };
    let hash = access_key::hash_generated(&entrepot_domain::Secret::new(KEY.1.to_owned())).encode();
    snapshot.principals[0].access_keys.push(key("odd", b"x of a later kind"));
    snapshot.principals.push(pb::SnapshotPrincipal {
        uid: Uuid::from_u128(80).to_string(),
        principal_id: "auditor".to_owned(),
        permission_set: "AUDITOR".to_owned(),
        access_keys: vec![key("auditor", &hash)],
        actions: ["pull", "audit"].map(str::to_owned).into(),
        minimum_reader: 0,
    });
    snapshot
}

async fn runs(node: &Node, revision: f64) {
    wait_until(LIMIT, "the node runs it", async || node.metric(REVISION, &[]) == revision).await;
}

fn left_out(node: &Node) -> [f64; 4] {
    ["principals", "rules", "templates", "upstreams"]
        .map(|kind| node.metric("entrepot_snapshot_left_out", &[&format!("kind=\"{kind}\"")]))
}

#[tokio::test]
async fn what_is_not_understood_opens_nothing_and_keeps_nothing_else_from_being_run() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    // All of them exist at the upstream of the shorter prefix, too.
    for name in ["app", "moody/app", "hologram/app", "frozen/app", "moody/new"] {
        upstream.publish_image(name, "v1", &[vec![1; 100]]);
    }
    let mut understood = fixture.snapshot(1, &upstream);
    understood.rules.push(pb::SnapshotRule {
        uid: Uuid::from_u128(50).to_string(),
        rule_id: "moody".to_owned(),
        prefix: "demo/moody".to_owned(),
        upstream_prefix: "moody".to_owned(),
        ..understood.rules[0].clone()
    });
    fixture.publish_bytes(1, understood.encode_to_vec()).await;
    let node = fixture.node("node-1").await;
    assert_eq!(node.get("/v2/demo/moody/app/manifests/v1").await.status(), 200);
    assert_eq!(left_out(&node), [0.0; 4]);

    fixture.publish_bytes(2, of_later_release(&fixture, 2, &upstream).encode_to_vec()).await;
    runs(&node, 2.0).await;
    assert_eq!(left_out(&node), [2.0, 2.0, 1.0, 1.0]);
    assert!(!logged("left `rules/moody` out of snapshot 1.2").is_empty());
    assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), 200, "what is known is served");
    assert_eq!(node.get("/v2/demo/moody/app/manifests/v1").await.status(), 200, "and what is cached");
    for (name, item) in [("demo/moody/new", "rules/moody"), ("demo/hologram/app", "rules/hologram")] {
        let answer = node.get(&format!("/v2/{name}/manifests/v1")).await;
        assert_eq!((answer.status().as_u16(), answer.headers().contains_key("retry-after")), (503, true), "{name}");
        assert!(answer.text().await.unwrap().contains(item), "{name}");
    }
    for id in ["odd", "auditor"] {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(format!("{}/v2/", node.url)).basic_auth(id, Some(KEY.1)).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{id}");
    }
    assert_eq!(node.get("/v2/demo/frozen/app/manifests/v1").await.status(), 200, "passed through");
    let record = layout::repository(&"demo/frozen/app".parse().unwrap());
    assert_eq!(fixture.store.head(&record).await.unwrap(), None, "and not created without its template");
}

#[tokio::test]
async fn an_item_for_later_readers_is_left_out_and_a_whole_snapshot_is_refused_aloud() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    upstream.publish_image("app", "v1", &[vec![1; 100]]);
    let mut snapshot = fixture.snapshot(1, &upstream);
    let known = snapshot.principals[0].access_keys[0].clone();
    snapshot.principals[0].access_keys.push(pb::SnapshotAccessKey {
        key_id: "later".to_owned(),
        minimum_reader: READER + 1,
        ..known
    });
    fixture.publish_bytes(1, snapshot.encode_to_vec()).await;
    let node = fixture.node("node-1").await;
    assert_eq!(left_out(&node), [1.0, 0.0, 0.0, 0.0]);

    let whole = pb::Snapshot { minimum_reader: READER + 1, ..fixture.snapshot(2, &upstream) };
    fixture.publish_bytes(2, whole.encode_to_vec()).await;
    let refused = || node.metric("entrepot_snapshot_refused_total", &["reason=\"too_new\""]);
    wait_until(LIMIT, "it is refused", async || refused() >= 1.0).await;
    assert!(node.health.is_ready());
    let remarks = node.health.remarks();
    assert!(
        remarks.iter().any(|(name, text)| *name == "snapshot" && text.contains("upgrade this node")),
        "{remarks:?}"
    );
    assert_eq!(node.metric(REVISION, &[]), 1.0);
    assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), 200);
}
