//! Snapshots that somebody has tampered with, and a control plane that is away, half dead, or one of several.

use std::sync::Arc;

use bytes::Bytes;
use entrepot_records::layout;
use entrepot_store::BlobStore as _;
use entrepot_test_support::{FakeUpstream, wait_until};
use entrepot_trust::{SnapshotSigner, Statement};
use futures_util::future::join_all;
use prost::Message as _;
use uuid::Uuid;

use crate::fixture::{Fixture, LIMIT, Node, Published, logged, signed};

const REFUSED: &str = "entrepot_snapshot_refused_total";
const REVISION: &str = "entrepot_snapshot_revision";

/// What is done to the published snapshot of revision 2; revision 1 was published before.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Truncate,
    Alter,
    RollBack,
    SignWithAnotherKey,
    SignInTheNameOfTheRightKey,
    ClaimALaterRevision,
    Enlarge,
    FillWithGarbage,
    SayAnotherVersionInside,
    BreakTheHead,
    TakeTheObjectAway,
    TakeTheHeadAway,
    SealWithAnotherKey,
}

impl Deed {
    const ALL: [(Self, &str); 13] = [
        (Self::Truncate, "altered"),
        (Self::Alter, "altered"),
        (Self::RollBack, "rolled_back"),
        (Self::SignWithAnotherKey, "unknown_key"),
        (Self::SignInTheNameOfTheRightKey, "bad_signature"),
        (Self::ClaimALaterRevision, "bad_signature"),
        (Self::Enlarge, "too_large"),
        (Self::FillWithGarbage, "undecodable"),
        (Self::SayAnotherVersionInside, "other_version"),
        (Self::BreakTheHead, "malformed_head"),
        (Self::TakeTheObjectAway, "missing"),
        (Self::TakeTheHeadAway, "missing"),
        (Self::SealWithAnotherKey, "malformed"),
    ];

    async fn do_it(self, fixture: &Fixture, upstream: &FakeUpstream, old: &Published) {
        let bytes = fixture.snapshot(3, upstream).encode_to_vec();
        let key = layout::snapshot(1, 3, Uuid::new_v4());
        let put = async |bytes: Vec<u8>| drop(fixture.store.put(&key, Bytes::from(bytes)).await.unwrap());
        let statement = Statement::of(1, 3, &bytes);
        let head = signed(&fixture.signer, key.clone(), 3, statement.clone());
        match self {
            Self::Truncate => {
                put(bytes[..bytes.len() / 2].to_vec()).await;
                fixture.put_head(&head).await;
            }
            Self::Alter => {
                let mut changed = bytes.clone();
                changed[bytes.len() / 2] ^= 1;
                put(changed).await;
                fixture.put_head(&head).await;
            }
            Self::RollBack => fixture.put_head(&old.head).await,
            Self::SignWithAnotherKey => {
                put(bytes).await;
                fixture.put_head(&signed(&SnapshotSigner::generate(), key.clone(), 3, statement)).await;
            }
            Self::SignInTheNameOfTheRightKey => {
                put(bytes).await;
                let mut forged = signed(&SnapshotSigner::generate(), key.clone(), 3, statement);
                forged.key_id = head.key_id;
                fixture.put_head(&forged).await;
            }
            Self::ClaimALaterRevision => {
                put(bytes).await;
                let mut claiming = head;
                claiming.revision = 4;
                fixture.put_head(&claiming).await;
            }
            Self::Enlarge => {
                let folder = fixture.dir.path().join("store").join(key.as_str());
                std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
                // A sparse file, which takes no room on the disk.
                std::fs::File::create(folder).unwrap().set_len(300 << 20).unwrap();
                fixture.put_head(&head).await;
            }
            Self::FillWithGarbage => drop(fixture.publish_bytes(3, vec![0xff; 1000]).await),
            Self::SayAnotherVersionInside => {
                fixture.publish_bytes(3, fixture.snapshot(7, upstream).encode_to_vec()).await;
            }
            Self::BreakTheHead => {
                let bytes = Bytes::from_static(b"{\"epoch\": 1, \"revision\"");
                fixture.store.put(&layout::snapshot_head(), bytes).await.unwrap();
            }
            Self::TakeTheObjectAway => fixture.put_head(&head).await,
            Self::TakeTheHeadAway => fixture.store.delete(&layout::snapshot_head()).await.unwrap(),
            Self::SealWithAnotherKey => {
                let mut snapshot = fixture.snapshot(3, upstream);
                let key = entrepot_trust::ClusterKey::generate();
                snapshot.principals[0].access_keys[0].sealed_hash = key.seal("access-key/puller", b"x");
                fixture.publish_bytes(3, snapshot.encode_to_vec()).await;
            }
        }
    }
}

#[tokio::test]
async fn whatever_is_wrong_with_a_snapshot_it_is_refused_and_the_last_good_one_serves() {
    let upstream = Arc::new(FakeUpstream::start().await);
    upstream.publish_image("app", "v1", &[vec![1; 100]]);
    let cases = Deed::ALL.map(|(deed, reason)| {
        let upstream = upstream.clone();
        async move {
            let fixture = Fixture::new();
            let old = fixture.publish(1, &upstream).await;
            fixture.publish(2, &upstream).await;
            let node = fixture.node("node-1").await;
            assert_eq!(node.metric(REVISION, &[]), 2.0);

            deed.do_it(&fixture, &upstream, &old).await;
            let label = format!("reason=\"{reason}\"");
            let what = format!("{deed:?} is counted as {reason}");
            wait_until(LIMIT, &what, async || node.metric(REFUSED, &[&label]) >= 1.0).await;
            assert_eq!(node.metric(REFUSED, &[]), node.metric(REFUSED, &[&label]), "{deed:?} is nothing else");
            assert_eq!(node.metric(REVISION, &[]), 2.0, "{deed:?}");
            assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), 200, "{deed:?}");

            fixture.publish(9, &upstream).await;
            let what = format!("a good one is run after {deed:?}");
            wait_until(LIMIT, &what, async || node.metric(REVISION, &[]) == 9.0).await;
        }
    });
    join_all(cases).await;
    for text in
        ["it was cut or changed", "it was rolled back", "larger than", "cannot be decoded", "its head is malformed"]
    {
        assert!(!logged(text).is_empty(), "{text}");
    }
}

#[tokio::test]
async fn what_is_refused_again_and_again_is_told_once() {
    let (upstream, fixture, foreign) = (FakeUpstream::start().await, Fixture::new(), SnapshotSigner::generate());
    let published = fixture.publish(1, &upstream).await;
    let statement = Statement::of(1, 1, &published.bytes);
    fixture.put_head(&signed(&foreign, published.head.key.clone(), 1, statement)).await;
    // Without a first snapshot it checks every second.
    let node = fixture.run(fixture.start("node-1")).await;
    wait_until(LIMIT, "it is refused thrice", async || node.metric(REFUSED, &[]) >= 3.0).await;
    let lines = logged(&foreign.public_key().id());
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(!node.health.is_ready());
    let answer = node.get("/v2/").await;
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
}

#[tokio::test]
async fn the_age_of_a_snapshot_counts_from_when_it_was_built() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(5, &upstream).await;
    let node = fixture.node("node-1").await;
    let age = node.metric("entrepot_snapshot_age_seconds", &[]);
    assert!((90.0..90.0 + LIMIT.as_secs_f64()).contains(&age), "{age}");
    assert_eq!(node.metric("entrepot_snapshot_epoch", &[]), 1.0);
}

/// Waits until a node runs this revision.
async fn runs(node: &Node, revision: f64) {
    wait_until(LIMIT, "the node runs the newest", async || node.metric(REVISION, &[]) == revision).await;
}

#[tokio::test]
async fn news_come_from_the_store_while_the_control_plane_takes_calls_and_says_nothing() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    fixture.publish(1, &upstream).await;
    // It accepts connections and does nothing else.
    let (silent, addr) = crate::fixture::loopback().await;
    let mut start = fixture.start("node-1");
    start.config.control_apis = vec![format!("http://{addr}").parse().unwrap()];
    let node = fixture.run(start).await;
    runs(&node, 1.0).await;
    fixture.publish(2, &upstream).await;
    runs(&node, 2.0).await;
    drop(silent);
}

mod replicas {
    //! Several control planes, one of which goes away.

    use std::sync::atomic::{AtomicUsize, Ordering};

    use entrepot_domain::Digest;
    use entrepot_test_support::images;
    use entrepot_test_support::tls::Authority;

    use super::*;
    use crate::replica::Replica;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_moves_on_to_another_control_plane_with_its_stream_and_its_reports() {
        let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
        upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
        fixture.publish(1, &upstream).await;
        let (one, other) = (Replica::start(None).await, Replica::start(None).await);
        let mut start = fixture.start("node-1");
        start.config.control_apis =
            [&one.url, "http://127.0.0.1:1", &other.url].iter().map(|url| url.parse().unwrap()).collect();
        let node = fixture.run(start).await;
        node.ready().await;
        wait_until(LIMIT, "it watches one", async || one.watchers() + other.watchers() > 0).await;
        assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), 200);
        wait_until(LIMIT, "it reports to one", async || one.reports() + other.reports() > 0).await;

        let (first, second) = if one.watchers() > 0 { (one, other) } else { (other, one) };
        assert_eq!((second.watchers(), second.reports()), (0, 0), "one at a time");
        drop(first);
        wait_until(LIMIT, "it watches the other", async || second.watchers() > 0).await;
        let digest = Digest::sha256(b"nothing");
        assert_eq!(node.get(&format!("/v2/demo/app/manifests/{digest}")).await.status(), 404);
        assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), 200);
        wait_until(LIMIT, "it reports to the other", async || second.reports() > 0).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_snapshot_that_was_changed_on_the_stream_is_refused_and_the_control_plane_is_told() {
        let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
        let mut published = fixture.publish(2, &upstream).await;
        fixture.publish(1, &upstream).await;
        let mut bytes = published.bytes.to_vec();
        bytes[10] ^= 1;
        published.bytes = bytes.into();
        let replica = Replica::start(None).await;
        *replica.state.published.lock() = Some(published);
        let mut start = fixture.start("node-1");
        start.config.control_apis = vec![replica.url.parse().unwrap()];
        let node = fixture.run(start).await;
        wait_until(LIMIT, "it is refused", async || node.metric(REFUSED, &["reason=\"altered\""]) >= 1.0).await;
        runs(&node, 1.0).await;
        let said = || replica.state.said.lock().clone();
        wait_until(LIMIT, "it is told", async || said().iter().any(|message| message.refused.is_some())).await;
    }

    /// Forwards connections to `to`, and counts them.
    async fn counted(to: &str) -> (String, Arc<AtomicUsize>) {
        let (listener, addr) = crate::fixture::loopback().await;
        let (count, to) = (Arc::new(AtomicUsize::new(0)), to.trim_start_matches("https://").to_owned());
        let counting = count.clone();
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                counting.fetch_add(1, Ordering::SeqCst);
                let to = to.clone();
                tokio::spawn(async move {
                    let mut to = tokio::net::TcpStream::connect(to).await.unwrap();
                    tokio::io::copy_bidirectional(&mut from, &mut to).await.ok();
                });
            }
        });
        (format!("https://{addr}"), count)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn tls_to_the_control_plane_needs_a_certificate_of_the_right_authority() {
        let (upstream, fixture, authority) = (FakeUpstream::start().await, Fixture::new(), Authority::new());
        fixture.publish(1, &upstream).await;
        let replica = Replica::start(Some(&authority)).await;
        let (url, connections) = counted(&replica.url).await;
        let start = |authority: &Authority| {
            let mut start = fixture.start("node-1");
            start.config.control_apis = vec![url.parse().unwrap()];
            start.config.control_ca = Some(authority.pem());
            start
        };
        let stranger = fixture.run(start(&Authority::new())).await;
        stranger.ready().await;
        let tries = || connections.load(Ordering::SeqCst);
        wait_until(LIMIT, "the stranger tries again and again", async || tries() >= 4).await;
        assert_eq!(replica.watchers(), 0);
        stranger.tasks.drain(LIMIT).await;
        let _friend = fixture.run(start(&authority)).await;
        wait_until(LIMIT, "the friend watches", async || replica.watchers() > 0).await;
    }
}
