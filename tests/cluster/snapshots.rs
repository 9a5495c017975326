//! Snapshots that somebody has tampered with: refused, and the last good one serves.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use entrepot_records::SnapshotHead;
use entrepot_records::layout;
use entrepot_store::BlobStore;
use entrepot_test_support::{FakeUpstream, images};
use entrepot_trust::{SnapshotSigner, Statement};
use http::StatusCode;
use uuid::Uuid;

use crate::cluster::{Cluster, Member};
use crate::report::report;

/// A published snapshot as it is in the bucket.
struct Published {
    head: SnapshotHead,
    body: Bytes,
}

impl Published {
    async fn read(store: &dyn BlobStore) -> Result<Self> {
        let head = store.get(&layout::snapshot_head()).await?.context("a snapshot is published")?;
        let head: SnapshotHead = serde_json::from_slice(&head.bytes)?;
        let body = store.get(&head.key).await?.context("the head names an object")?.bytes;
        Ok(Self { head, body })
    }

    /// Puts `body` into the bucket under a fresh key and lets a head name it that claims to be `ahead` revisions
    /// later.
    async fn forge(&self, store: &dyn BlobStore, body: Bytes, ahead: i64, sign: Sign<'_>) -> Result<()> {
        let revision = self.head.revision + ahead;
        let key = layout::snapshot(self.head.epoch, revision, Uuid::now_v7());
        store.put_once(&key, body.clone()).await?;
        let statement = Statement::of(self.head.epoch, revision, &body);
        let (key_id, signature) = match sign {
            Sign::AsItWas => (self.head.key_id.clone(), self.head.signature.clone()),
            Sign::With(signer) => {
                let signature = signer.sign(&statement);
                (signature.key_id, signature.signature)
            }
            Sign::InTheNameOf(signer) => (self.head.key_id.clone(), signer.sign(&statement).signature),
        };
        let sha256 = if ahead == 0 { self.head.sha256.clone() } else { statement.sha256 };
        let head = SnapshotHead { key, revision, key_id, signature, sha256, ..self.head.clone() };
        put_head(store, &serde_json::to_vec(&head)?).await
    }

    /// Puts the head back that was there.
    async fn restore(&self, store: &dyn BlobStore) -> Result<()> {
        put_head(store, &serde_json::to_vec(&self.head)?).await
    }
}

/// How a forged head is signed.
enum Sign<'a> {
    /// With the signature of the head that was there.
    AsItWas,
    /// With another key, openly.
    With(&'a SnapshotSigner),
    /// With another key, under the id of the right one.
    InTheNameOf(&'a SnapshotSigner),
}

/// Overwrites the head, whoever has written it.
async fn put_head(store: &dyn BlobStore, bytes: &[u8]) -> Result<()> {
    store.put(&layout::snapshot_head(), Bytes::copy_from_slice(bytes)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_are_truncated_altered_rolled_back_or_signed_by_others_are_refused() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 1000)]);
    let Some(cluster) = Cluster::start_beside_all().await? else { return Ok(()) };
    let store = cluster.store().await?;
    let store = &store;
    cluster.api().rule("old", &upstream).await?;
    let old = Published::read(store).await?;
    cluster.api().rule_to("demo", "old").await?;
    let good = Published::read(store).await?;
    assert!(good.head.revision > old.head.revision);
    // Without a control plane, the bucket is all that nodes have.
    for control_plane in &cluster.control_planes {
        control_plane.program.stop().await;
    }

    let foreign = SnapshotSigner::generate();
    let truncated = good.body.slice(..good.body.len() / 2);
    let altered = {
        let mut bytes = good.body.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Bytes::from(bytes)
    };
    let whole = || good.body.clone();
    for (what, body, ahead, sign) in [
        ("truncated, under the head of a later revision", truncated.clone(), 1, Sign::AsItWas),
        ("altered, under the head of a later revision", altered.clone(), 1, Sign::AsItWas),
        ("altered and signed by another key", altered, 1, Sign::With(&foreign)),
        ("signed by another key", whole(), 1, Sign::With(&foreign)),
        ("signed by another key in the name of the right one", whole(), 1, Sign::InTheNameOf(&foreign)),
        ("of another revision than was signed", whole(), 7, Sign::AsItWas),
    ] {
        good.forge(store, body, ahead, sign).await?;
        is_refused_by(&cluster, what).await?;
    }
    put_head(store, b"{\"epoch\": 1, \"revision\"").await?;
    is_refused_by(&cluster, "a head that is cut off").await?;
    // Genuine, and no longer true.
    old.restore(store).await?;
    is_refused_by(&cluster, "rolled back").await?;

    // A node that begins with nothing but a forgery serves nothing, rather than what somebody made up.
    good.forge(store, whole(), 1, Sign::With(&foreign)).await?;
    let late = cluster.further_node("node-late");
    late.program.start();
    refusals(&late, 0.0, "a node that starts").await;
    assert_eq!(late.client().get("/v2/demo/app/manifests/v1").await?.status, StatusCode::SERVICE_UNAVAILABLE);
    late.program.until_not_ready(late.at.operations()).await;

    good.restore(store).await?;
    late.until_ready().await;
    late.client().pull("demo/app", "v1").await?;
    for control_plane in &cluster.control_planes {
        control_plane.start().await;
    }
    cluster.api().rule_to("new", "old").await?;
    for node in &cluster.nodes {
        // The call waits for nodes, but not for long, and these have to find the control planes again first.
        let covered = async || node.client().pull("new/app", "v1").await.is_ok();
        cluster.until("the node follows again", covered).await;
    }
    Ok(())
}

/// All nodes refuse what is published now, in log and metric, and go on with what they had.
async fn is_refused_by(cluster: &Cluster, what: &str) -> Result<()> {
    let mut marks = Vec::new();
    for node in &cluster.nodes {
        marks.push((node.program.log_mark(), node.metric("entrepot_snapshot_refused_total", &[]).await?));
    }
    for (node, (mark, before)) in cluster.nodes.iter().zip(marks) {
        node.program.until_logged(mark, "refuse").await;
        refusals(node, before, what).await;
        node.client().pull("demo/app", "v1").await?;
        node.client().pull("old/app", "v1").await?;
    }
    report("refused by all nodes", what);
    Ok(())
}

/// Waits until a node has counted more refusals than `before`.
async fn refusals(node: &Member, before: f64, what: &str) {
    let what = format!("`{}` counts a refusal: {what}", node.name());
    entrepot_test_support::wait_until(crate::client::LIMIT, &what, async || {
        node.metric("entrepot_snapshot_refused_total", &[]).await.is_ok_and(|count| count > before)
    })
    .await;
}
