//! A store that is away, hangs or is slow.

use std::sync::Arc;
use std::time::Duration;

use entrepot_store::{BlobStore, BucketStore, CacheConfig, Error, Key, NodeCache};
use entrepot_test_support::{Seaweed, wait_until};

use crate::switched::Mode;
use crate::{Fixture, LIMIT, MIB, blob_key, collect, digest, in_bucket, pattern};

const SIZE: usize = MIB as usize + 7;

/// A cache that holds one blob, and not another one.
async fn holding() -> (Fixture, [Key; 2]) {
    let fixture = Fixture::new().await;
    let (held, _) = fixture.cached_blob(1, SIZE).await;
    let (other, _) = fixture.blob(2, SIZE).await;
    (fixture, [held, other])
}

fn record() -> Key {
    "repositories/a/_repository".parse().unwrap()
}

fn is_away<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::Away(_)))
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_read_and_the_rest_is_an_error() {
    let (fixture, [held, other]) = holding().await;
    let cache = &fixture.cache;
    for mode in [Mode::Away, Mode::Hangs, Mode::Slow(Duration::from_secs(20))] {
        fixture.inner.switch(mode);
        assert_eq!(cache.size_at_hand(&held), Some(SIZE as u64), "{mode:?}");
        assert_eq!(cache.size_at_hand(&other), None, "{mode:?}");
        assert_eq!(fixture.read(&held, 0..u64::MAX).await.unwrap().len(), SIZE, "{mode:?}");
        assert_eq!(fixture.read(&held, 5..9).await.unwrap().len(), 4, "{mode:?}");
    }
    fixture.inner.switch(Mode::Away);
    assert!(is_away(&cache.read(&other, 0..9, Some(&digest(&other))).await.map(drop)));
    assert!(is_away(&cache.get_content(&other, &digest(&other)).await));
}

#[tokio::test(start_paused = true)]
async fn whether_an_object_is_there_and_what_a_record_says_is_never_answered_for_the_store() {
    let (fixture, [held, _]) = holding().await;
    let cache = &fixture.cache;
    fixture.inner.calls("get");
    fixture.inner.calls("head");
    for text in ["one", "two", "three"] {
        // Another node writes.
        fixture.inner.put(&record(), text.into()).await.unwrap();
        assert_eq!(cache.get(&record()).await.unwrap().unwrap().bytes, text);
        assert_eq!(cache.head(&held).await.unwrap(), Some(SIZE as u64));
    }
    assert_eq!((fixture.inner.calls("get"), fixture.inner.calls("head")), (3, 3));
    fixture.inner.switch(Mode::Away);
    assert!(is_away(&cache.get(&record()).await) && is_away(&cache.head(&held).await));
    fixture.inner.switch(Mode::Works);
    fixture.inner.delete(&held).await.unwrap();
    assert_eq!(cache.head(&held).await.unwrap(), None);
    assert_eq!(cache.size_at_hand(&held), None, "what was deleted elsewhere is not at hand either");
}

#[tokio::test(start_paused = true)]
async fn writes_need_the_store() {
    let (fixture, [held, _]) = holding().await;
    let cache = &fixture.cache;
    let version = cache.put(&record(), "held".into()).await.unwrap();
    let new = "repositories/b/_repository".parse().unwrap();
    fixture.inner.switch(Mode::Away);
    assert!(is_away(&cache.put(&record(), "x".into()).await));
    assert!(is_away(&cache.put_once(&new, "x".into()).await));
    assert!(is_away(&cache.replace_if(&record(), Some(&version), "x".into()).await));
    assert!(is_away(&cache.delete(&record()).await) && is_away(&cache.begin_upload(&held).await.map(drop)));
    assert!(is_away(&cache.list(&entrepot_store::Prefix::all(), None, 1).await));
}

#[tokio::test]
async fn with_a_bucket_that_is_frozen_or_stopped_what_is_held_is_read() {
    let Some(seaweed) = Seaweed::start().await else { return };
    let (folder, bucket) = (tempfile::tempdir().unwrap(), seaweed.bucket().await);
    let store = BucketStore::open(in_bucket(&seaweed, &bucket, "registry"), "node-1".parse().unwrap()).await.unwrap();
    let config = CacheConfig { dir: folder.path().to_owned(), size_bytes: 100 * MIB };
    let cache = NodeCache::open(Arc::new(store), config).await.unwrap();
    let bytes = pattern(1, SIZE);
    let key = blob_key(&bytes);
    let mut upload = cache.begin_upload(&key).await.unwrap();
    upload.part(bytes.clone()).await.unwrap();
    upload.complete(Some(&digest(&key))).await.unwrap();
    wait_until(LIMIT, "the blob is cached", async || cache.stats().blobs == 1).await;
    for how in ["frozen", "stopped"] {
        if how == "frozen" {
            seaweed.freeze()
        } else {
            seaweed.kill().await
        }
        for _ in 0..20 {
            assert_eq!(cache.size_at_hand(&key), Some(SIZE as u64), "{how}");
            let stream = cache.read(&key, 0..SIZE as u64, Some(&digest(&key))).await.unwrap().unwrap();
            assert_eq!(collect(stream).await.unwrap(), bytes, "{how}");
        }
        assert!(is_away(&cache.get(&record()).await), "{how}");
        if how == "frozen" {
            seaweed.thaw()
        } else {
            seaweed.resume().await
        }
        wait_until(LIMIT, "the bucket is there", async || cache.head(&key).await.is_ok()).await;
    }
}
