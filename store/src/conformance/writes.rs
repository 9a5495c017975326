//! Single objects: what was written is read, and of several writers one wins.

use super::*;

pub(super) async fn what_is_absent_is_none_and_may_be_deleted(store: &dyn BlobStore) {
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

pub(super) async fn what_is_written_is_read_back(store: &dyn BlobStore) {
    for (text, content) in [("empty", ""), ("a/full", "content"), ("a/b/c/d/e/f", "deep")] {
        let version = store.put(&key(text), content.into()).await.expect("put");
        let object = store.get(&key(text)).await.expect("get").expect("is there");
        assert_eq!((object.bytes, object.version), (Bytes::from(content), version));
        // Both times are from the same clock, which some services report in whole seconds.
        let age = (object.read_time.expect("the store tells its time") - object.modify_time).num_milliseconds();
        assert!((-1000..60_000).contains(&age), "{text} was written {age} ms before it was read");
        assert_eq!(store.head(&key(text)).await.expect("head"), Some(content.len() as u64));
    }
    write(store, "a/full", "more").await;
    assert_eq!(read(store, "a/full").await.as_deref(), Some("more"));
}

pub(super) async fn put_once_never_overwrites(store: &dyn BlobStore) {
    store.put_once(&key("events/1"), "first".into()).await.expect("put");
    for content in ["second", "first"] {
        let error = store.put_once(&key("events/1"), content.into()).await.expect_err("must not overwrite");
        assert!(matches!(error, Error::AlreadyExists) && error.is_conflict() && !error.retry(), "{error:?}");
    }
    assert_eq!(read(store, "events/1").await.as_deref(), Some("first"));
}

pub(super) async fn a_race_of_put_once_has_one_winner(store: &dyn BlobStore) {
    for round in 0..RACES {
        let key = key(&format!("race/{round}/once"));
        let results = join_all((0..RACERS).map(|racer| store.put_once(&key, number(racer)))).await;
        let winner = one_winner(&results, |error| matches!(error, Error::AlreadyExists));
        assert_eq!(read(store, key.as_str()).await, Some(winner.to_string()));
    }
}

pub(super) async fn replace_if_wants_the_version_that_is_there(store: &dyn BlobStore) {
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

pub(super) async fn a_race_of_replace_if_has_one_winner_per_version(store: &dyn BlobStore) {
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

pub(super) async fn no_increment_is_lost(store: &dyn BlobStore) {
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

pub(super) async fn versions_tell_values_apart(store: &dyn BlobStore) {
    let one = store.put(&key("v"), "1".into()).await.expect("put");
    let two = store.put(&key("v"), "2".into()).await.expect("put");
    let seen = store.get(&key("v")).await.expect("get").expect("is there").version;
    assert!(one != two && two == seen);
}

pub(super) async fn delete_if_wants_the_version_that_is_there(store: &dyn BlobStore) {
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

pub(super) async fn a_race_of_delete_if_and_replace_if_has_one_winner(store: &dyn BlobStore) {
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

pub(super) async fn content_is_read_back_by_its_digest(store: &dyn BlobStore) {
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

pub(super) async fn deleted_keys_can_be_written_again(store: &dyn BlobStore) {
    for content in ["1", "2", "3"] {
        store.put_once(&key("a/b/c"), content.into()).await.expect("put");
        store.delete(&key("a/b/c")).await.expect("delete");
        store.delete(&key("a/b/c")).await.expect("delete again");
        assert!(keys(store, &Prefix::all(), None, 10).await.is_empty());
    }
    // A former folder may become a file.
    write(store, "a/b", "file").await;
}

pub(super) async fn writers_and_deleters_in_one_folder_do_not_hurt_each_other(store: &dyn BlobStore) {
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

pub(super) async fn keys_that_others_begin_with_are_not_those(store: &dyn BlobStore) {
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

pub(super) async fn the_longest_keys_work(store: &dyn BlobStore) {
    let (long, deep) = ("a".repeat(255), ["a"; 128].join("/"));
    for text in [format!("repositories/{long}/_repository"), format!("repositories/{deep}/_x/tags/{}", "t".repeat(128))]
    {
        write(store, &text, "x").await;
        assert_eq!(read(store, &text).await.as_deref(), Some("x"));
        assert_eq!(keys(store, &folder("repositories"), None, 10).await, [key(&text)]);
        store.delete(&key(&text)).await.expect("delete");
    }
}
