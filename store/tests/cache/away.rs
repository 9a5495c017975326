//! A store that is away, hangs or is slow.

use std::sync::Arc;
use std::time::Duration;

use entrepot_store::{BlobStore, BucketStore, CacheConfig, Error, Key, NodeCache};
use entrepot_test_support::{Seaweed, wait_until};
use futures_util::future::join_all;
use tokio::time::{Instant, advance};

use crate::switched::Mode;
use crate::{Fixture, LIMIT, MIB, blob_key, collect, digest, in_bucket, pattern, record_folders};

const SIZE: usize = MIB as usize + 7;

fn record(name: &str) -> Key {
    format!("repositories/{name}/_repository").parse().unwrap()
}

/// Lets a breaker that is open ask again.
async fn rest() {
    advance(Duration::from_secs(4)).await;
}

/// A cache that holds a blob and the record `held`, and does not hold another blob and the record `other`.
async fn holding() -> (Fixture, [Key; 2]) {
    let fixture = Fixture::new().await;
    let (held, _) = fixture.cached_blob(1, SIZE).await;
    let (other, _) = fixture.blob(2, SIZE).await;
    for name in ["held", "other"] {
        fixture.inner.put(&record(name), name.into()).await.unwrap();
    }
    fixture.cache.get(&record("held")).await.unwrap().unwrap();
    (fixture, [held, other])
}

fn is_away<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::Away(_)))
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_served_and_the_rest_is_an_error() {
    let (fixture, [held, other]) = holding().await;
    let cache = &fixture.cache;
    let modes = [Mode::Away, Mode::Hangs, Mode::Slow(Duration::from_secs(20))];
    for mode in modes {
        fixture.inner.switch(mode);
        let began = Instant::now();
        for _ in 0..3 {
            assert_eq!(cache.get(&record("held")).await.unwrap().unwrap().bytes, "held", "{mode:?}");
            assert_eq!(cache.head(&held).await.unwrap(), Some(SIZE as u64), "{mode:?}");
            assert_eq!(fixture.read(&held, 0..u64::MAX).await.unwrap().len(), SIZE, "{mode:?}");
            assert_eq!(fixture.read(&held, 5..9).await.unwrap().len(), 4, "{mode:?}");
        }
        assert!(began.elapsed() < Duration::from_millis(2500), "{mode:?}: {:?}", began.elapsed());
        fixture.inner.switch(Mode::Away);
        assert!(is_away(&cache.get(&record("other")).await) && is_away(&cache.get(&record("none")).await));
        assert!(
            is_away(&cache.head(&other).await)
                && is_away(&cache.read(&other, 0..9, Some(&digest(&other))).await.map(drop))
        );
        assert!(is_away(&cache.get_content(&other, &digest(&other)).await));
        fixture.inner.switch(Mode::Works);
        rest().await;
        assert_eq!(cache.get(&record("held")).await.unwrap().unwrap().bytes, "held", "{mode:?}");
        rest().await;
    }
    assert_eq!(cache.stats().answers_while_away, 3 * 6);
    assert_eq!(cache.get(&record("other")).await.unwrap().unwrap().bytes, "other");
    assert!(cache.get(&record("none")).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn each_read_of_a_record_asks_the_store_while_it_is_there() {
    let (fixture, _) = holding().await;
    fixture.inner.calls("get");
    for text in ["one", "two", "three"] {
        // Another node writes.
        fixture.inner.put(&record("held"), text.into()).await.unwrap();
        assert_eq!(fixture.cache.get(&record("held")).await.unwrap().unwrap().bytes, text);
    }
    assert_eq!(fixture.inner.calls("get"), 3);
    // Somewhat slow is still asked, and believed.
    fixture.inner.switch(Mode::Slow(Duration::from_millis(1900)));
    fixture.inner.put(&record("held"), "four".into()).await.unwrap();
    assert_eq!(fixture.cache.get(&record("held")).await.unwrap().unwrap().bytes, "four");
    assert_eq!(fixture.cache.stats().answers_while_away, 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_did_not_answer_is_left_alone_for_a_second_and_then_asked_by_one() {
    let (fixture, [held, _]) = holding().await;
    let cache = &fixture.cache;
    let get = async || assert_eq!(cache.get(&record("held")).await.unwrap().unwrap().bytes, "held");
    let calls = || (fixture.inner.calls("get"), fixture.inner.calls("head"));
    fixture.inner.switch(Mode::Away);
    calls();
    get().await;
    assert_eq!(calls(), (1, 0));
    for _ in 0..10 {
        get().await;
        assert_eq!(cache.head(&held).await.unwrap(), Some(SIZE as u64));
        advance(Duration::from_millis(50)).await;
    }
    assert_eq!(calls(), (0, 0), "it is left alone");
    // What is not held is asked for all the same.
    assert!(is_away(&cache.get(&record("other")).await));
    assert_eq!(calls(), (1, 0));
    advance(Duration::from_millis(1001)).await;
    fixture.inner.switch(Mode::Hangs);
    let began = Instant::now();
    join_all((0..20).map(|_| get())).await;
    assert_eq!(calls(), (1, 0), "one asks for all");
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    get().await;
    assert_eq!(calls(), (0, 0));
    // An answer ends it at once.
    advance(Duration::from_millis(1001)).await;
    fixture.inner.switch(Mode::Works);
    get().await;
    get().await;
    assert_eq!(calls(), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_have_any_more_is_forgotten() {
    let (fixture, _) = holding().await;
    let cache = &fixture.cache;
    fixture.inner.delete(&record("held")).await.unwrap();
    assert!(cache.get(&record("held")).await.unwrap().is_none());
    fixture.inner.switch(Mode::Away);
    assert!(is_away(&cache.get(&record("held")).await));
    assert_eq!(cache.stats().answers_while_away, 0);
}

#[tokio::test(start_paused = true)]
async fn what_this_node_writes_and_deletes_is_what_it_remembers() {
    let (fixture, _) = holding().await;
    let cache = &fixture.cache;
    let seen = async |name| {
        fixture.inner.switch(Mode::Away);
        let seen = cache.get(&record(name)).await.ok().flatten();
        fixture.inner.switch(Mode::Works);
        rest().await;
        seen
    };
    cache.put(&record("put"), "put".into()).await.unwrap();
    assert_eq!(seen("put").await.unwrap().bytes, "put");
    cache.put_once(&record("once"), "once".into()).await.unwrap();
    assert_eq!(seen("once").await.unwrap().bytes, "once");
    let first = cache.replace_if(&record("replaced"), None, "1".into()).await.unwrap();
    let second = cache.replace_if(&record("replaced"), Some(&first), "2".into()).await.unwrap();
    let remembered = seen("replaced").await.unwrap();
    assert_eq!((remembered.bytes, &remembered.version), ("2".into(), &second));
    // Others change it; what is remembered of it then is known to be old, and conflicts.
    fixture.inner.put(&record("replaced"), "3".into()).await.unwrap();
    let old = seen("replaced").await.unwrap();
    let conflict = cache.replace_if(&record("replaced"), Some(&old.version), "4".into()).await;
    assert!(matches!(conflict, Err(Error::Conflict)), "{conflict:?}");
    assert!(seen("replaced").await.is_none());
    cache.delete(&record("put")).await.unwrap();
    assert!(seen("put").await.is_none());
}

#[tokio::test(start_paused = true)]
async fn writes_need_the_store() {
    let (fixture, [held, _]) = holding().await;
    let cache = &fixture.cache;
    let version = cache.get(&record("held")).await.unwrap().unwrap().version;
    fixture.inner.switch(Mode::Away);
    assert!(is_away(&cache.put(&record("held"), "x".into()).await));
    assert!(is_away(&cache.put_once(&record("new"), "x".into()).await));
    assert!(is_away(&cache.replace_if(&record("held"), Some(&version), "x".into()).await));
    assert!(is_away(&cache.delete(&record("held")).await) && is_away(&cache.begin_upload(&held).await.map(drop)));
    assert!(is_away(&cache.list(&entrepot_store::Prefix::all(), None, 1).await));
    // They are as they were, as far as is known.
    let held = cache.get(&record("held")).await.unwrap().unwrap();
    assert_eq!((held.bytes, held.version), ("held".into(), version));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_late_does_not_undo_what_was_written_meanwhile() {
    let (fixture, _) = holding().await;
    let cache = &fixture.cache;
    let key = record("held");
    fixture.inner.switch(Mode::Late(Duration::from_secs(1)));
    let old = cache.get(&key);
    let written = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        fixture.inner.switch(Mode::Works);
        cache.put(&record("held"), "new".into()).await.unwrap();
    };
    let (old, ()) = futures_util::future::join(old, written).await;
    assert_eq!(old.unwrap().unwrap().bytes, "held");
    fixture.inner.switch(Mode::Away);
    assert_eq!(cache.get(&record("held")).await.unwrap().unwrap().bytes, "new");
}

#[tokio::test]
async fn with_a_bucket_that_is_frozen_or_stopped_what_is_held_is_served() {
    let Some(seaweed) = Seaweed::start().await else { return };
    let (folder, bucket) = (tempfile::tempdir().unwrap(), seaweed.bucket().await);
    let store = BucketStore::open(in_bucket(&seaweed, &bucket, "registry"), "node-1".parse().unwrap()).await.unwrap();
    let (dir, records) = (folder.path().to_owned(), record_folders());
    let config = CacheConfig { dir, size_bytes: 100 * MIB, memory_bytes: MIB, records };
    let cache = NodeCache::open(Arc::new(store), config).await.unwrap();
    let bytes = pattern(1, SIZE);
    let key = blob_key(&bytes);
    let mut upload = cache.begin_upload(&key).await.unwrap();
    upload.part(bytes.clone()).await.unwrap();
    upload.complete(Some(&digest(&key))).await.unwrap();
    wait_until(LIMIT, "the blob is cached", async || cache.stats().blobs == 1).await;
    let version = cache.put(&record("held"), "held".into()).await.unwrap();
    for how in ["frozen", "stopped"] {
        if how == "frozen" {
            seaweed.freeze()
        } else {
            seaweed.kill().await
        }
        let began = Instant::now();
        for round in 0..20 {
            let held = cache.get(&record("held")).await.unwrap().unwrap();
            assert_eq!((held.bytes, &held.version), ("held".into(), &version), "{how}");
            assert_eq!(cache.head(&key).await.unwrap(), Some(SIZE as u64), "{how}");
            let stream = cache.read(&key, 0..SIZE as u64, Some(&digest(&key))).await.unwrap().unwrap();
            assert_eq!(collect(stream).await.unwrap(), bytes, "{how}");
            if round == 0 {
                println!("{how}: the first round took {:?}", began.elapsed());
            }
        }
        println!("{how}: 20 rounds took {:?}", began.elapsed());
        assert!(is_away(&cache.get(&record("other")).await), "{how}");
        if how == "frozen" {
            seaweed.thaw()
        } else {
            seaweed.resume().await
        }
        wait_until(LIMIT, "the bucket is there", async || cache.get(&record("other")).await.is_ok()).await;
        assert!(cache.replace_if(&record("held"), Some(&version), "held".into()).await.is_ok(), "{how}");
    }
}
