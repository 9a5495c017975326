//! A snapshot in a store, published like a control plane does.

#![allow(dead_code, reason = "each of the test programs uses a part of it")]

use bytes::Bytes;
use entrepot_domain::Secret;
use entrepot_proto::node::v1 as pb;
use entrepot_records::layout;
use entrepot_records::{SnapshotHead, encode};
use entrepot_store::{BlobStore, Key};
use entrepot_test_support::FakeUpstream;
use entrepot_trust::{ClusterKey, SnapshotSigner, Statement, access_key};
use prost::Message as _;
use uuid::Uuid;

/// The access key of a principal that may pull, and its secret.
pub(crate) const KEY: (&str, &str) = ("puller", "a-secret-of-some-length");

/// A published snapshot.
#[derive(Clone)]
pub(crate) struct Published {
    pub(crate) head: SnapshotHead,
    pub(crate) bytes: Bytes,
}

/// A snapshot with a rule for each of these prefixes, all to `upstream`, and a principal that may pull.
pub(crate) fn snapshot(
    revision: i64,
    cluster_key: &ClusterKey,
    upstream: &FakeUpstream,
    rules: &[(&str, pb::SnapshotFreshness)],
) -> pb::Snapshot {
    let hash = access_key::hash_generated(&Secret::new(KEY.1.to_owned()));
    let sealed_hash = cluster_key.seal(&format!("access-key/{}", KEY.0), &hash.encode());
    let rule = |(number, (prefix, freshness)): (u128, &(&str, pb::SnapshotFreshness))| pb::SnapshotRule {
        uid: Uuid::from_u128(number).to_string(),
        rule_id: (*prefix).to_owned(),
        prefix: (*prefix).to_owned(),
        upstream_uid: Uuid::from_u128(1).to_string(),
        upstream_prefix: String::new(),
        freshness: Some(freshness.clone()),
        minimum_reader: 0,
    };
    pb::Snapshot {
        version: Some(pb::SnapshotVersion { epoch: 1, revision }),
        registry_id: Uuid::from_u128(3).to_string(),
        build_time: None,
        templates: vec![],
        rules: (4..).zip(rules).map(rule).collect(),
        upstreams: vec![pb::SnapshotUpstream {
            uid: Uuid::from_u128(1).to_string(),
            upstream_id: "local".to_owned(),
            kind: "OCI".to_owned(),
            endpoint: upstream.url(),
            allow_plain_http: true,
            allow_private_addresses: true,
            ..Default::default()
        }],
        principals: vec![pb::SnapshotPrincipal {
            uid: Uuid::from_u128(2).to_string(),
            principal_id: "puller".to_owned(),
            permission_set: "PULLER".to_owned(),
            actions: ["pull", "create", "fill"].map(str::to_owned).into(),
            access_keys: vec![pb::SnapshotAccessKey { key_id: KEY.0.to_owned(), sealed_hash, minimum_reader: 0 }],
            minimum_reader: 0,
        }],
        minimum_reader: 0,
        hold_duration: None,
    }
}

/// Publishes a snapshot, signed by `signer`.
pub(crate) async fn publish(
    store: &dyn BlobStore,
    signer: &SnapshotSigner,
    revision: i64,
    snapshot: &pb::Snapshot,
) -> Published {
    publish_bytes(store, signer, revision, snapshot.encode_to_vec()).await
}

/// Publishes any bytes, signed by `signer`.
pub(crate) async fn publish_bytes(
    store: &dyn BlobStore,
    signer: &SnapshotSigner,
    revision: i64,
    bytes: Vec<u8>,
) -> Published {
    let bytes = Bytes::from(bytes);
    let key = layout::snapshot(1, revision, Uuid::new_v4());
    store.put_once(&key, bytes.clone()).await.unwrap();
    let head = signed(signer, key, revision, Statement::of(1, revision, &bytes));
    put_head(store, &head).await;
    Published { head, bytes }
}

pub(crate) async fn put_head(store: &dyn BlobStore, head: &SnapshotHead) {
    store.put(&layout::snapshot_head(), encode(head)).await.unwrap();
}

pub(crate) fn signed(signer: &SnapshotSigner, key: Key, revision: i64, statement: Statement) -> SnapshotHead {
    let signature = signer.sign(&statement);
    SnapshotHead {
        key,
        epoch: 1,
        revision,
        sha256: statement.sha256,
        key_id: signature.key_id,
        signature: signature.signature,
    }
}
