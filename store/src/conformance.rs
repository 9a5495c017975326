//! What every store must do. Tests of each implementation call [`run`]; a check that fails panics.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;
use entrepot_domain::digest::{Algorithm, Digest};
use futures_util::future::join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::{BlobStore, Deleted, Error, GET_LIMIT_BYTES, Key, Prefix, Store};

/// How many writers race each other.
const RACERS: usize = 16;
/// How often they do. Some services let those who lose wait for seconds.
const RACES: usize = 3;

/// Runs every check against a new store from `make`.
///
/// # Panics
/// If a check fails.
pub async fn run(make: impl AsyncFn() -> Store) {
    what_is_absent_is_none_and_may_be_deleted(&*make().await).await;
    what_is_written_is_read_back(&*make().await).await;
    put_once_never_overwrites(&*make().await).await;
    a_race_of_put_once_has_one_winner(&*make().await).await;
    replace_if_wants_the_version_that_is_there(&*make().await).await;
    a_race_of_replace_if_has_one_winner_per_version(&*make().await).await;
    no_increment_is_lost(&*make().await).await;
    versions_tell_values_apart(&*make().await).await;
    ranges_are_exact_and_end_with_the_object(&*make().await).await;
    large_objects_come_in_bounded_chunks_and_not_by_get(&*make().await).await;
    a_read_goes_on_or_fails_when_the_object_is_replaced(&*make().await).await;
    lists_are_sorted_deep_and_resumable(&*make().await).await;
    lists_keep_to_their_folder(&*make().await).await;
    lists_of_many_keys_are_whole(&*make().await).await;
    lists_say_what_reads_say(&*make().await).await;
    delete_if_wants_the_version_that_is_there(&*make().await).await;
    a_race_of_delete_if_and_replace_if_has_one_winner(&*make().await).await;
    uploads_are_invisible_until_complete(&*make().await).await;
    uploads_in_odd_parts_come_out_whole(&*make().await).await;
    uploads_that_are_given_up_leave_nothing(&*make().await).await;
    content_is_read_back_by_its_digest(&*make().await).await;
    deleted_keys_can_be_written_again(&*make().await).await;
    writers_and_deleters_in_one_folder_do_not_hurt_each_other(&*make().await).await;
    keys_that_others_begin_with_are_not_those(&*make().await).await;
    the_longest_keys_work(&*make().await).await;
}

async fn what_is_absent_is_none_and_may_be_deleted(store: &dyn BlobStore) {
    write(store, "a/b/c", "x").await;
    // Neither a folder nor something below a file is an object.
    for text in ["a", "a/b", "a/b/d", "a/b/c/d"] {
        let key = key(text);
        assert!(store.get(&key).await.expect(text).is_none(), "{text}");
        assert_eq!(store.head(&key).await.expect(text), None, "{text}");
        assert!(store.read(&key, 0..1, None).await.expect(text).is_none(), "{text}");
        store.delete(&key).await.expect(text);
    }
    assert_eq!(read(store, "a/b/c").await.as_deref(), Some("x"));
}

async fn what_is_written_is_read_back(store: &dyn BlobStore) {
    for (text, content) in [("empty", ""), ("a/full", "content"), ("a/b/c/d/e/f", "deep")] {
        let version = store.put(&key(text), content.into()).await.expect("put");
        let object = store.get(&key(text)).await.expect("get").expect("is there");
        assert_eq!((object.bytes, object.version), (Bytes::from(content), version));
        assert_eq!(store.head(&key(text)).await.expect("head"), Some(content.len() as u64));
    }
    write(store, "a/full", "more").await;
    assert_eq!(read(store, "a/full").await.as_deref(), Some("more"));
}

async fn put_once_never_overwrites(store: &dyn BlobStore) {
    store.put_once(&key("events/1"), "first".into()).await.expect("put");
    for content in ["second", "first"] {
        let error = store.put_once(&key("events/1"), content.into()).await.expect_err("must not overwrite");
        assert!(matches!(error, Error::AlreadyExists) && error.is_conflict() && !error.retry(), "{error:?}");
    }
    assert_eq!(read(store, "events/1").await.as_deref(), Some("first"));
}

async fn a_race_of_put_once_has_one_winner(store: &dyn BlobStore) {
    for round in 0..RACES {
        let key = key(&format!("race/{round}/once"));
        let results = join_all((0..RACERS).map(|racer| store.put_once(&key, number(racer)))).await;
        let winner = one_winner(&results, |error| matches!(error, Error::AlreadyExists));
        assert_eq!(read(store, key.as_str()).await, Some(winner.to_string()));
    }
}

async fn replace_if_wants_the_version_that_is_there(store: &dyn BlobStore) {
    let tag = key("tags/latest");
    let replace = async |expected, content: &'static str| store.replace_if(&tag, expected, content.into()).await;
    let first = replace(None, "1").await.expect("creates");
    assert!(matches!(replace(None, "x").await, Err(Error::Conflict)));
    let second = replace(Some(&first), "2").await.expect("replaces");
    assert!(matches!(replace(Some(&first), "x").await, Err(Error::Conflict)));
    assert_eq!(read(store, "tags/latest").await.as_deref(), Some("2"));
    store.delete(&tag).await.expect("delete");
    assert!(matches!(replace(Some(&second), "x").await, Err(Error::Conflict)));
    assert_eq!(read(store, "tags/latest").await, None);
    replace(None, "3").await.expect("creates again");
}

async fn a_race_of_replace_if_has_one_winner_per_version(store: &dyn BlobStore) {
    let head = key("snapshot/head");
    let mut version = None;
    for round in 0..RACES {
        let racers = (0..RACERS).map(|racer| store.replace_if(&head, version.as_ref(), number(round * 100 + racer)));
        let mut results = join_all(racers).await;
        let winner = one_winner(&results, |error| matches!(error, Error::Conflict));
        assert_eq!(read(store, "snapshot/head").await, Some((round * 100 + winner).to_string()));
        version = results.swap_remove(winner).ok();
    }
}

async fn no_increment_is_lost(store: &dyn BlobStore) {
    let counter = key("counter");
    let increment = async || {
        loop {
            let seen = store.get(&counter).await.expect("get");
            let count: usize = seen.as_ref().map_or(0, |object| text(&object.bytes).parse().expect("a number"));
            match store.replace_if(&counter, seen.as_ref().map(|object| &object.version), number(count + 1)).await {
                Ok(_) => break,
                Err(error) => assert!(error.is_conflict(), "{error:?}"),
            }
        }
    };
    join_all((0..RACERS).map(|_| increment())).await;
    assert_eq!(read(store, "counter").await, Some(RACERS.to_string()));
}

async fn versions_tell_values_apart(store: &dyn BlobStore) {
    let one = store.put(&key("v"), "1".into()).await.expect("put");
    let two = store.put(&key("v"), "2".into()).await.expect("put");
    let seen = store.get(&key("v")).await.expect("get").expect("is there").version;
    assert!(one != two && two == seen);
}

async fn ranges_are_exact_and_end_with_the_object(store: &dyn BlobStore) {
    write(store, "blob", "0123456789").await;
    let cases: [(Range<u64>, &str); 9] = [
        (0..10, "0123456789"),
        (0..1, "0"),
        (9..10, "9"),
        (3..7, "3456"),
        (5..5, ""),
        (10..10, ""),
        (8..100, "89"),
        (10..20, ""),
        (50..u64::MAX, ""),
    ];
    for (range, expected) in cases {
        let stream = store.read(&key("blob"), range.clone(), None).await.expect("read").expect("is there");
        let chunks: Vec<Bytes> = stream.try_collect().await.expect("stream");
        assert_eq!(text(&chunks.concat()), expected, "{range:?}");
    }
}

async fn large_objects_come_in_bounded_chunks_and_not_by_get(store: &dyn BlobStore) {
    const CHUNK: usize = 1024 * 1024;
    let blob = key("blobs/sha256/00/large");
    let piece: Bytes = (0..CHUNK).map(|i| (i % 251) as u8).collect();
    let mut upload = store.begin_upload(&blob).await.expect("begin");
    let pieces = GET_LIMIT_BYTES as usize / CHUNK + 1;
    for _ in 0..pieces {
        upload.part(piece.clone()).await.expect("part");
    }
    upload.complete(None).await.expect("complete");
    let error = store.get(&blob).await.expect_err("must not be read whole");
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
    assert_eq!(store.head(&blob).await.expect("head"), Some((pieces * CHUNK) as u64));

    let stream = store.read(&blob, 1..u64::MAX, None).await.expect("read").expect("is there");
    let mut at = 1;
    let read = stream.try_for_each(|chunk| {
        assert!((1..=CHUNK).contains(&chunk.len()));
        assert!(chunk.iter().all(|byte| (*byte == piece[at % CHUNK], at += 1).0), "wrong bytes before {at}");
        std::future::ready(Ok(()))
    });
    read.await.expect("stream");
    assert_eq!(at, pieces * CHUNK);
}

async fn a_read_goes_on_or_fails_when_the_object_is_replaced(store: &dyn BlobStore) {
    const SIZE: usize = 24 * 1024 * 1024;
    let put = async |byte: u8| {
        let mut upload = store.begin_upload(&key("blob")).await.expect("begin");
        for _ in 0..SIZE / (1024 * 1024) {
            upload.part(vec![byte; 1024 * 1024].into()).await.expect("part");
        }
        upload.complete(None).await.expect("complete");
    };
    put(b'a').await;
    let deleted = store.read(&key("blob"), 0..u64::MAX, None).await.expect("read").expect("is there");
    store.delete(&key("blob")).await.expect("delete");
    put(b'b').await;
    let replaced = store.read(&key("blob"), 0..u64::MAX, None).await.expect("read").expect("is there");
    put(b'c').await;
    for (mut stream, byte) in [(deleted, b'a'), (replaced, b'b')] {
        let (mut size, mut failed) = (0, false);
        while let Some(chunk) = stream.next().await {
            let Ok(chunk) = chunk else {
                failed = true;
                break;
            };
            assert!(chunk.iter().all(|b| *b == byte), "another object's bytes behind {size}");
            size += chunk.len();
        }
        assert!(failed || size == SIZE, "{size} bytes came and no error");
    }
}

async fn lists_are_sorted_deep_and_resumable(store: &dyn BlobStore) {
    // `-` and `.` come before `/`, `0` and `_` after it.
    let texts = [
        "r/a/_x/1",
        "r/a-b/_x",
        "r/a.b/_x",
        "r/a/b/_x",
        "r/a0/_x",
        "r/a_b/_x",
        "r/b/c/d/e",
        "r/A",
        "r/z",
        "q",
        "s/t",
        "r/a-/1",
        "r/a/_x/10",
        "r/a/_x/2",
    ];
    for text in texts {
        write(store, text, "x").await;
    }
    let all: Vec<Key> = texts.into_iter().map(key).collect::<BTreeSet<_>>().into_iter().collect();
    assert_eq!(keys(store, &Prefix::all(), None, 100).await, all);

    let below: Vec<Key> = all.iter().filter(|key| key.as_str().starts_with("r/")).cloned().collect();
    let prefix = folder("r");
    for limit in 1..=below.len() + 1 {
        let mut pages: Vec<Key> = Vec::new();
        loop {
            let page = keys(store, &prefix, pages.last(), limit).await;
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            pages.extend(page);
        }
        assert_eq!(pages, below, "in pages of {limit}");
    }
    // The key to start behind need not exist, nor be below the prefix.
    for start in ["r/a/_x/15", "r/a/b", "r/a/c/c", "r/0", "r/zz", "a", "r", "z/z"].map(key) {
        let expected: Vec<Key> = below.iter().filter(|key| **key > start).cloned().collect();
        assert_eq!(keys(store, &prefix, Some(&start), 100).await, expected, "behind {start}");
    }
}

async fn lists_keep_to_their_folder(store: &dyn BlobStore) {
    for text in ["blobs/a/1", "blobs/ab/1", "blobs-2/a", "blobs/a/2"] {
        write(store, text, "x").await;
    }
    let list = async |prefix: Prefix| keys(store, &prefix, None, 100).await;
    assert_eq!(list(folder("blobs/a")).await, ["blobs/a/1", "blobs/a/2"].map(key));
    assert_eq!(list(folder("blobs-2")).await, [key("blobs-2/a")]);
    for absent in ["none", "blobs/a/1", "blob"] {
        assert!(list(folder(absent)).await.is_empty(), "{absent}");
    }
    assert!(keys(store, &folder("blobs"), None, 0).await.is_empty());
}

async fn lists_of_many_keys_are_whole(store: &dyn BlobStore) {
    // More than services list at once, in folders that are larger than that, too, and with siblings out of order.
    let mut all = BTreeSet::new();
    for index in 0..1100 {
        all.insert(key(&format!("m/a/{index}")));
    }
    for index in 0..120 {
        all.insert(key(&format!("m/a-{index}/x")));
        all.insert(key(&format!("m/a.{index}/y-{index}/z")));
        all.insert(key(&format!("m/b/c/{index}/d/e")));
    }
    for at in ["m/a-", "m/a-1/x-y", "m/a-1-/x", "m/a.1/y-1-/z", "m/a0", "m/b-/c", "m/b/c-d/e", "m/z"] {
        all.insert(key(at));
    }
    stream::iter(&all)
        .for_each_concurrent(RACERS, async |key| drop(store.put(key, "x".into()).await.expect("put")))
        .await;
    let all: Vec<Key> = all.into_iter().collect();
    assert_eq!(keys(store, &folder("m"), None, 10_000).await, all);
    for limit in [97, 1000] {
        let mut pages: Vec<Key> = Vec::new();
        loop {
            let page = keys(store, &folder("m"), pages.last(), limit).await;
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            pages.extend(page);
        }
        assert_eq!(pages, all, "in pages of {limit}");
    }
    for start in all.iter().step_by(41) {
        let at = all.partition_point(|key| key <= start);
        let expected = &all[at..all.len().min(at + 3)];
        assert_eq!(keys(store, &folder("m"), Some(start), 3).await, expected, "behind {start}");
    }
}

async fn lists_say_what_reads_say(store: &dyn BlobStore) {
    /// What is larger is no record, and its version need not be listed.
    const RECORD: u64 = 1024 * 1024;
    const LARGE: usize = 9 * 1024 * 1024;
    for (at, size) in [("l/empty", 0), ("l/f/small", 10), ("l/f-/other", 10), ("l/z", 70_000)] {
        store.put(&key(at), vec![b'x'; size].into()).await.expect("put");
    }
    // In parts, which some services give versions of another form.
    let mut upload = store.begin_upload(&key("l/large")).await.expect("begin");
    upload.part(vec![b'x'; LARGE].into()).await.expect("part");
    upload.complete(None).await.expect("complete");
    let mut seen = std::collections::HashMap::new();
    for round in 0..3 {
        let entries = store.list(&folder("l"), None, 10).await.expect("list");
        assert_eq!(entries.len(), 5);
        for entry in entries {
            let object = store.get(&entry.key).await.expect("get").expect("is listed");
            assert_eq!(entry.size_bytes, object.bytes.len() as u64, "{entry:?}");
            let may_lack = entry.version.is_none() && entry.size_bytes > RECORD;
            assert!(may_lack || entry.version.as_ref() == Some(&object.version), "{entry:?}");
            let was = seen.insert(entry.key.clone(), (entry.version.clone(), entry.modify_time));
            let is_rewritten = entry.key == key("l/z");
            if let Some((version, time)) = was {
                assert_eq!(version != entry.version, is_rewritten, "{entry:?}");
                assert!(if is_rewritten { time <= entry.modify_time } else { time == entry.modify_time }, "{entry:?}");
            }
        }
        store.put(&key("l/z"), vec![b'0' + round; 70_000].into()).await.expect("put");
    }
}

async fn delete_if_wants_the_version_that_is_there(store: &dyn BlobStore) {
    let record = key("records/1");
    let first = store.put(&record, "1".into()).await.expect("put");
    let second = store.put(&record, "2".into()).await.expect("put");
    let delete = async |version| store.delete_if(&record, version).await.expect("delete");
    if !store.abilities().deletes_if {
        assert_eq!(delete(&second).await, Deleted::Unsupported);
        assert_eq!(read(store, "records/1").await.as_deref(), Some("2"));
        return;
    }
    assert_eq!(delete(&first).await, Deleted::No);
    assert_eq!(read(store, "records/1").await.as_deref(), Some("2"));
    assert_eq!(delete(&second).await, Deleted::Yes);
    assert_eq!(read(store, "records/1").await, None);
    assert_eq!(delete(&second).await, Deleted::No);
    assert!(keys(store, &Prefix::all(), None, 10).await.is_empty());
}

async fn a_race_of_delete_if_and_replace_if_has_one_winner(store: &dyn BlobStore) {
    if !store.abilities().deletes_if {
        return;
    }
    for round in 0..RACES {
        let record = key(&format!("records/{round}"));
        let version = store.put(&record, "old".into()).await.expect("put");
        let deletes = join_all((0..RACERS).map(|_| store.delete_if(&record, &version)));
        let replaces = join_all((0..RACERS).map(|racer| store.replace_if(&record, Some(&version), number(racer))));
        let (deletes, replaces) = futures_util::future::join(deletes, replaces).await;
        let deleted = deletes.into_iter().filter(|deleted| matches!(deleted, Ok(Deleted::Yes))).count();
        let replaced = replaces.iter().filter(|replaced| replaced.is_ok()).count();
        assert_eq!(deleted + replaced, 1, "{deleted} deletions and {replaced} replacements of one version");
        assert_eq!(read(store, record.as_str()).await.is_some(), replaced == 1);
    }
}

async fn uploads_are_invisible_until_complete(store: &dyn BlobStore) {
    let blob = key("blobs/sha256/00/1");
    let mut upload = store.begin_upload(&blob).await.expect("begin");
    for part in ["one ", "", "two ", "three"] {
        upload.part(part.into()).await.expect("part");
        assert_eq!(store.head(&blob).await.expect("head"), None);
        assert!(store.get(&blob).await.expect("get").is_none());
        assert!(keys(store, &Prefix::all(), None, 10).await.is_empty());
    }
    upload.complete(None).await.expect("complete");
    assert_eq!(read(store, blob.as_str()).await.as_deref(), Some("one two three"));

    let empty = key("blobs/sha256/00/2");
    store.begin_upload(&empty).await.expect("begin").complete(None).await.expect("complete");
    assert_eq!(store.head(&empty).await.expect("head"), Some(0));
}

async fn uploads_in_odd_parts_come_out_whole(store: &dyn BlobStore) {
    const MIB: usize = 1024 * 1024;
    let pattern = |at: usize, size: usize| -> Bytes { (at..at + size).map(|i| (i % 249) as u8).collect() };
    // Services have a smallest part, and one of the size that is sent at once may be the last.
    for (index, parts) in [
        vec![5 * MIB + 1, 7, 0, 9 * MIB, MIB - 3, 20 * MIB + 5],
        vec![8 * MIB],
        vec![8 * MIB, 8 * MIB],
        vec![8 * MIB, 1],
        vec![3 * MIB; 9],
    ]
    .into_iter()
    .enumerate()
    {
        let blob = key(&format!("blobs/sha256/00/{index}"));
        let mut upload = store.begin_upload(&blob).await.expect("begin");
        let mut size = 0;
        for part in &parts {
            upload.part(pattern(size, *part)).await.expect("part");
            size += part;
            assert_eq!(store.head(&blob).await.expect("head"), None);
        }
        upload.complete(None).await.expect("complete");
        assert_eq!(store.head(&blob).await.expect("head"), Some(size as u64));
        let stream = store.read(&blob, 0..u64::MAX, None).await.expect("read").expect("is there");
        let read = stream.try_fold(0, async |at, chunk: Bytes| {
            assert_eq!(chunk, pattern(at, chunk.len()), "wrong bytes behind {at}");
            Ok(at + chunk.len())
        });
        assert_eq!(read.await.expect("stream"), size, "{parts:?}");
    }
    assert_eq!(keys(store, &Prefix::all(), None, 10).await.len(), 5, "an upload left something behind");
}

async fn uploads_that_are_given_up_leave_nothing(store: &dyn BlobStore) {
    let blob = key("blobs/sha256/00/1");
    for (size, drop_it) in [(10, false), (10, true), (20_000_000, false)] {
        let mut upload = store.begin_upload(&blob).await.expect("begin");
        upload.part(vec![b'x'; size].into()).await.expect("part");
        if drop_it {
            drop(upload)
        } else {
            upload.abort().await.expect("abort")
        }
        assert_eq!(store.head(&blob).await.expect("head"), None);
        assert!(keys(store, &Prefix::all(), None, 10).await.is_empty());
    }
}

async fn content_is_read_back_by_its_digest(store: &dyn BlobStore) {
    const SIZE: usize = 300_000;
    let bytes: Bytes = (0..SIZE).map(|at| (at % 247) as u8).collect();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Digest::of(algorithm, &bytes);
        let (put, uploaded) = (key(&format!("content/{algorithm}/put")), key(&format!("content/{algorithm}/uploaded")));
        store.put_content(&put, &digest, bytes.clone()).await.expect("put");
        let again = store.put_content(&put, &digest, bytes.clone()).await;
        assert!(matches!(again, Err(Error::AlreadyExists)), "{again:?}");
        let mut upload = store.begin_upload(&uploaded).await.expect("begin");
        for part in [bytes.slice(..7), bytes.slice(7..)] {
            upload.part(part).await.expect("part");
        }
        upload.complete(Some(&digest)).await.expect("complete");
        for key in [&put, &uploaded] {
            for _ in 0..3 {
                assert_eq!(store.get_content(key, &digest).await.expect("get").as_ref(), Some(&bytes));
                let stream = store.read(key, 5..SIZE as u64, Some(&digest)).await.expect("read").expect("is there");
                let chunks: Vec<Bytes> = stream.try_collect().await.expect("stream");
                assert_eq!(chunks.concat(), bytes[5..]);
            }
            store.delete(key).await.expect("delete");
            assert!(store.get_content(key, &digest).await.expect("get").is_none());
            assert!(store.read(key, 0..1, Some(&digest)).await.expect("read").is_none());
        }
    }
}

async fn deleted_keys_can_be_written_again(store: &dyn BlobStore) {
    for content in ["1", "2", "3"] {
        store.put_once(&key("a/b/c"), content.into()).await.expect("put");
        store.delete(&key("a/b/c")).await.expect("delete");
        store.delete(&key("a/b/c")).await.expect("delete again");
        assert!(keys(store, &Prefix::all(), None, 10).await.is_empty());
    }
    // What was a folder may be a file later.
    write(store, "a/b", "file").await;
}

async fn writers_and_deleters_in_one_folder_do_not_hurt_each_other(store: &dyn BlobStore) {
    let work = async |worker: usize| {
        for round in 0..20 {
            let own = key(&format!("deep/er/{worker}/{round}"));
            store.put_once(&own, number(worker)).await.expect("put");
            assert_eq!(read(store, own.as_str()).await, Some(worker.to_string()));
            store.delete(&own).await.expect("delete");
        }
    };
    join_all((0..RACERS).map(work)).await;
    assert!(keys(store, &Prefix::all(), None, 10).await.is_empty());
}

async fn keys_that_others_begin_with_are_not_those(store: &dyn BlobStore) {
    let all = ["a/b", "a/b-", "a/b-c", "a/b.c", "a/bb", "a/bbb/b"];
    for at in all {
        write(store, at, at).await;
    }
    store.delete(&key("a/bb")).await.expect("delete");
    for at in all {
        assert_eq!(read(store, at).await.as_deref(), Some(at).filter(|at| *at != "a/bb"));
    }
    assert_eq!(keys(store, &folder("a"), None, 10).await.len(), all.len() - 1);
}

async fn the_longest_keys_work(store: &dyn BlobStore) {
    let (long, deep) = ("a".repeat(255), ["a"; 128].join("/"));
    for text in [format!("repositories/{long}/_repository"), format!("repositories/{deep}/_x/tags/{}", "t".repeat(128))]
    {
        write(store, &text, "x").await;
        assert_eq!(read(store, &text).await.as_deref(), Some("x"));
        assert_eq!(keys(store, &folder("repositories"), None, 10).await, [key(&text)]);
        store.delete(&key(&text)).await.expect("delete");
    }
}

/// The one that succeeded; all others must have been refused as `refused` says.
fn one_winner<T>(results: &[Result<T, Error>], refused: impl Fn(&Error) -> bool) -> usize {
    let winners: Vec<usize> = (0..results.len()).filter(|index| results[*index].is_ok()).collect();
    assert_eq!(winners.len(), 1, "winners: {winners:?}");
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(refused(error), "{error:?}");
    }
    winners[0]
}

/// The keys that are listed.
async fn keys(store: &dyn BlobStore, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Vec<Key> {
    let entries = store.list(prefix, start_after, limit).await.expect("list");
    entries.into_iter().map(|entry| entry.key).collect()
}

async fn write(store: &dyn BlobStore, at: &str, content: &str) {
    store.put(&key(at), content.to_owned().into()).await.expect(at);
}

async fn read(store: &dyn BlobStore, at: &str) -> Option<String> {
    store.get(&key(at)).await.expect(at).map(|object| text(&object.bytes).to_owned())
}

fn key(text: &str) -> Key {
    Key::parse(text).expect(text)
}

fn folder(text: &str) -> Prefix {
    Prefix::below(text).expect(text)
}

fn number(number: usize) -> Bytes {
    number.to_string().into()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}
