//! What is answered while the store is away.

use std::fs;
use std::os::unix::fs::symlink;

use entrepot_domain::Digest;
use entrepot_store::{CacheConfig, NodeCache};
use entrepot_test_support::wait_until;
use futures_util::future::join_all;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

#[tokio::test(start_paused = true)]
async fn what_was_read_last_is_answered_and_marked_while_the_store_is_away() {
    let world = World::holding();
    world.say(Some(FakeRecord::Value(1)));
    world.read().await;
    world.pass(HOLD).await;
    *world.fake.is_away.lock() = true;
    assert_eq!(world.read().await, (Some(FakeRecord::Value(1)), Source::LastKnown));
    let reads = world.reads();
    assert_eq!(world.read().await, (Some(FakeRecord::Value(1)), Source::LastKnown));
    assert_eq!(world.reads(), reads, "it is left alone for a moment");
    world.memory.forget(&World::key(1));
    assert!(world.memory.read(&world.ask()).await.is_err(), "what was to be forgotten is no answer either");
    *world.fake.is_away.lock() = false;
    world.read().await;
    world.pass(HOLD).await;
    *world.fake.takes.lock() = Duration::from_secs(60);
    let asked = tokio::time::Instant::now();
    assert_eq!(world.read().await.1, Source::LastKnown);
    assert!(asked.elapsed() <= SLOW, "a store that is slow is not waited for");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_did_not_answer_is_left_alone_for_a_second_and_then_asked_by_one() {
    let world = World::new(Hold::alone(|| Duration::ZERO));
    world.say(Some(FakeRecord::Value(1)));
    world.read().await;
    let other = Ask(world.fake.clone(), World::key(2));
    world.memory.read(&other).await.unwrap();
    *world.fake.is_away.lock() = true;
    world.read().await;
    let before = world.reads();
    for _ in 0..10 {
        assert_eq!(world.read().await, (Some(FakeRecord::Value(1)), Source::LastKnown));
        world.pass(Duration::from_millis(50)).await;
    }
    assert_eq!(world.reads(), before, "it is left alone");
    assert!(world.memory.read(&other).await.is_err(), "what was not there is not known");
    assert_eq!(world.reads(), before + 1, "and asked for all the same");

    world.pass(Duration::from_millis(1001)).await;
    *world.fake.takes.lock() = Duration::from_secs(60);
    let ask = |number| {
        let (memory, ask) = (world.memory.clone(), Ask(world.fake.clone(), World::key(number)));
        async move { memory.read(&ask).await }
    };
    // Of different keys, which share no read.
    for number in 10..30 {
        world.memory.wrote(&World::key(number), &Bytes::from_static(&[1]));
    }
    let begun = tokio::time::Instant::now();
    let answers = join_all((10..30).map(ask)).await;
    assert!(answers.into_iter().all(|found| found.unwrap().source == Source::LastKnown));
    assert_eq!((world.reads(), begun.elapsed()), (before + 2, SLOW), "one asks for all");

    world.pass(Duration::from_millis(1001)).await;
    (*world.fake.takes.lock(), *world.fake.is_away.lock()) = (Duration::ZERO, false);
    for _ in 0..2 {
        assert_eq!(world.read().await.1, Source::Store, "an answer ends it at once");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_have_any_more_is_not_known_any_more() {
    let world = World::new(Hold::alone(|| Duration::ZERO));
    world.say(Some(FakeRecord::Value(1)));
    world.read().await;
    world.say(None);
    assert_eq!(world.read().await, (None, Source::Store));
    *world.fake.is_away.lock() = true;
    assert!(world.memory.read(&world.ask()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_this_node_has_written_last_is_known_also_before_it_was_read() {
    let world = World::holding();
    let key = World::key(1);
    let store = Forgetful::new(world.store.clone(), world.memory.clone());
    *world.fake.is_away.lock() = true;
    assert!(world.memory.read(&world.ask()).await.is_err());
    let first = store.replace_if(&key, None, Bytes::from_static(&[7])).await.unwrap();
    assert_eq!(world.read().await, (Some(FakeRecord::Value(7)), Source::LastKnown));
    store.replace_if(&key, Some(&first), Bytes::from_static(&[8])).await.unwrap();
    assert!(store.replace_if(&key, Some(&first), Bytes::from_static(&[9])).await.is_err());
    assert_eq!(world.read().await, (Some(FakeRecord::Value(8)), Source::LastKnown), "a conflict changes nothing");
    store.delete(&key).await.unwrap();
    assert!(world.memory.read(&world.ask()).await.is_err());
}

#[tokio::test]
async fn a_blob_on_the_disk_is_there_as_far_as_is_known_and_never_otherwise() {
    let dir = TempDir::new().unwrap();
    let inner: Store = Arc::new(LocalStore::open(dir.path().join("store")).unwrap());
    let config = CacheConfig { dir: dir.path().join("cache"), size_bytes: 1 << 20 };
    let cache: Store = Arc::new(NodeCache::open(inner.clone(), config).await.unwrap());
    let memory = Memory::new(cache.clone(), Clock::system(), Tasks::new(), 100_000, Hold::alone(|| HOLD));
    let (here, bytes) = ("content/aa/1".parse::<Key>().unwrap(), Bytes::from_static(b"a blob"));
    cache.put_content(&here, &Digest::sha256(&bytes), bytes.clone()).await.unwrap();
    wait_until(LIMIT, "it is on the disk", async || cache.size_at_hand(&here).is_some()).await;

    // A link that leads to itself is a folder that cannot be read.
    let [folder, aside] = ["content", "aside"].map(|name| dir.path().join("store").join(name));
    fs::rename(&folder, &aside).unwrap();
    symlink("content", &folder).unwrap();
    let found = memory.read(&Presence(here.clone())).await.unwrap();
    assert_eq!(found, Found { answer: Some(6), source: Source::LastKnown });
    assert!(memory.read(&Presence("content/aa/2".parse().unwrap())).await.is_err(), "what is not on the disk");
    assert!(cache.head(&here).await.is_err(), "who decides what is written is told nothing else");

    fs::remove_file(&folder).unwrap();
    fs::rename(&aside, &folder).unwrap();
    inner.delete(&here).await.unwrap();
    wait_until(LIMIT, "the store is asked", async || {
        memory.read(&Presence(here.clone())).await.unwrap() == Found { answer: None, source: Source::Store }
    })
    .await;
}
