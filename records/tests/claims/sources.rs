//! What a claim goes by: the store and its clock, and nothing that a node has of its own.

use std::sync::Arc;
use std::time;

use chrono::Duration;
use entrepot_domain::Digest;
use entrepot_domain::claim::{Claimer, PUSH_TIME};
use entrepot_domain::collection::{Candidate, examine};
use entrepot_records::claim::Lookup;
use entrepot_records::{Claim, Claimed, Content, PointerRecord, PointerState, claim, layout, pointer};
use entrepot_store::{BlobStore as _, CacheConfig, Error, NodeCache};
use uuid::Uuid;

use crate::fixture::{Fixture, NOW};
use crate::{BYTES, digest, object_of};

/// Whether a collector may condemn what the pointer says now.
async fn is_forsaken(fixture: &Fixture, digest: &Digest) -> bool {
    let found = pointer::read(fixture, digest).await.unwrap();
    // Its own clock is ahead.
    matches!(examine(&found.seen(*NOW + Duration::days(1)), PUSH_TIME), Candidate::Condemn(_))
}

#[tokio::test]
async fn a_claim_by_a_node_whose_clock_is_behind_is_as_good_as_any() {
    let fixture = Fixture::new();
    let (digest, own) = (digest(), fixture.content(BYTES).await);
    let after = |minutes| *NOW + Duration::minutes(minutes);
    fixture.set_node_time(after(-120));
    let mut claim = Claim::new(&fixture, &fixture, &digest, Claimer::Fill).with_own(own.clone(), after(-120));
    assert!(matches!(claim.take().await.unwrap(), Claimed::Content(_)));
    assert!(claim.holds(&own.object).await.unwrap());
    assert_eq!(fixture.pointer(&digest).await.claim_time, after(-120), "the record says what the node believes");
    for (minutes, forsaken) in [(0, false), (74, false), (76, true)] {
        fixture.set_store_time(after(minutes));
        assert_eq!(is_forsaken(&fixture, &digest).await, forsaken, "{minutes} minutes after the claim");
    }

    // It sees as well as any other how old the last claim is, though by its own clock that was a moment ago.
    fixture.forget_writes();
    fixture.set_node_time(after(1));
    let mut claim = Claim::new(&fixture, &fixture, &digest, Claimer::Head);
    assert!(matches!(claim.take().await.unwrap(), Claimed::Content(_)));
    assert!(claim.holds(&own.object).await.unwrap());
    assert_eq!(fixture.writes(), ["pointer"], "it is claimed anew, once");
    fixture.set_store_time(after(76 + 74));
    assert!(!is_forsaken(&fixture, &digest).await);

    // A node whose clock is right does not write what was claimed a moment ago.
    fixture.set_store_time(after(76 + 14));
    fixture.set_node_time(after(76 + 14));
    fixture.forget_writes();
    Claim::new(&fixture, &fixture, &digest, Claimer::Fill).take().await.unwrap();
    assert!(fixture.writes().is_empty(), "{:?}", fixture.writes());
}

#[tokio::test]
async fn a_claim_asks_the_store_and_not_what_the_node_has_at_hand() {
    let fixture = Arc::new(Fixture::new());
    let (digest, dir) = (digest(), tempfile::tempdir().unwrap());
    let config = CacheConfig { dir: dir.path().to_owned(), size_bytes: 1 << 20 };
    let node = NodeCache::open(fixture.clone(), config).await.unwrap();
    let object = layout::content(Uuid::now_v7());
    node.put_content(&object, &digest, bytes::Bytes::from_static(BYTES)).await.unwrap();
    let own = Content { object: object.clone(), size_bytes: BYTES.len() as u64 };
    let mut claim = Claim::new(&node, &*fixture, &digest, Claimer::Fill).with_own(own.clone(), *NOW);
    assert_eq!(object_of(claim.take().await.unwrap()), object);
    assert!(claim.holds(&object).await.unwrap());
    let cached = async {
        while node.size_at_hand(&object).is_none() {
            tokio::time::sleep(time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(time::Duration::from_secs(20), cached).await.expect("the disk has it");

    // Another node has found it to be bad: what this one knows of it does not count, from the first look on.
    let before = fixture.pointer(&digest).await;
    fixture.point(&digest, PointerRecord { state: PointerState::Erased.into(), ..before.clone() }).await;
    assert!(!claim.holds(&object).await.unwrap());
    let mut again = Claim::new(&node, &*fixture, &digest, Claimer::Fill);
    assert_eq!(again.take().await.unwrap(), Claimed::Missing);
    assert_eq!(claim::find(&node, &digest, None).await.unwrap(), Lookup::Nothing);

    // The pointer says that it is there, and it is not, although it is on this node's disk.
    fixture.point(&digest, before).await;
    fixture.lose_heads(true);
    let unknown = Claim::new(&node, &*fixture, &digest, Claimer::Mount).take().await;
    assert!(matches!(unknown, Err(Error::Away(_))), "{unknown:?}");
    fixture.lose_heads(false);
    fixture.delete(&object).await.unwrap();
    assert!(node.size_at_hand(&object).is_some());
    assert_eq!(Claim::new(&node, &*fixture, &digest, Claimer::Mount).take().await.unwrap(), Claimed::Missing);
    assert_eq!(fixture.pointer(&digest).await.state, PointerState::Erased);
}
