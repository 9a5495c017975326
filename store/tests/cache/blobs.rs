//! Blobs in the disk cache.

use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use entrepot_domain::digest::{Algorithm, Digest};
use entrepot_store::{BlobStore, Error, Key};
use entrepot_test_support::wait_until;
use futures_util::StreamExt as _;
use futures_util::future::join_all;

use crate::switched::Mode;
use crate::{Fixture, LIMIT, MIB, blob_key, collect, digest, key_of, pattern};

const SIZE: usize = 3 * MIB as usize + 7;

#[tokio::test]
async fn a_blob_that_was_read_whole_is_read_from_the_disk() {
    let fixture = Fixture::new().await;
    let (key, bytes) = fixture.cached_blob(1, SIZE).await;
    assert_eq!(fixture.inner.calls("read"), 1);
    for range in [0..SIZE as u64, 0..u64::MAX, 5..10, MIB - 1..2 * MIB + 1, SIZE as u64 - 1..SIZE as u64 + 9, 9..9] {
        let expected = bytes.slice(range.start as usize..SIZE.min(range.end.try_into().unwrap()));
        assert_eq!(fixture.read(&key, range.clone()).await.unwrap(), expected, "{range:?}");
    }
    assert_eq!(fixture.read(&key, SIZE as u64..SIZE as u64 + 1).await.unwrap(), "");
    assert_eq!(fixture.cache.get_content(&key, &digest(&key)).await.unwrap().unwrap(), bytes);
    assert_eq!((fixture.inner.calls("read"), fixture.inner.calls("get_content")), (0, 0));
    let stats = fixture.cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.blobs, stats.evictions), (8, 1, 1, 0));
    assert!(stats.blob_bytes >= SIZE as u64);
}

#[tokio::test]
async fn a_reader_who_stops_at_the_last_byte_has_cached_the_blob() {
    let fixture = Fixture::new().await;
    let (key, bytes) = fixture.blob(1, SIZE).await;
    assert_eq!(fixture.cache.head(&key).await.unwrap(), Some(SIZE as u64));
    // Like a connection that stops reading once it has sent as many bytes as it announced.
    let mut stream = fixture.cache.read(&key, 0..SIZE as u64, Some(&digest(&key))).await.unwrap().unwrap();
    let mut seen = 0;
    while seen < bytes.len() {
        seen += stream.next().await.unwrap().unwrap().len();
    }
    drop(stream);
    fixture.until_cached(&key).await;
}

#[tokio::test]
async fn a_blob_that_was_got_or_written_here_is_on_the_disk() {
    let fixture = Fixture::new().await;
    let (got, _) = fixture.blob(1, 1000).await;
    fixture.cache.get_content(&got, &digest(&got)).await.unwrap().unwrap();
    fixture.until_cached(&got).await;

    let bytes = pattern(2, 1000);
    let put = blob_key(&bytes);
    fixture.cache.put_content(&put, &digest(&put), bytes.clone()).await.unwrap();
    fixture.until_cached(&put).await;

    let large = pattern(3, SIZE);
    let uploaded = blob_key(&large);
    let mut upload = fixture.cache.begin_upload(&uploaded).await.unwrap();
    for part in [large.slice(..1), large.slice(1..2 * MIB as usize), large.slice(2 * MIB as usize..)] {
        upload.part(part).await.unwrap();
    }
    assert!(!fixture.file(&uploaded).exists());
    upload.complete(Some(&digest(&uploaded))).await.unwrap();
    fixture.until_cached(&uploaded).await;

    fixture.inner.calls("get_content");
    assert_eq!(fixture.cache.get_content(&put, &digest(&put)).await.unwrap().unwrap(), bytes);
    assert_eq!(fixture.read(&uploaded, 0..SIZE as u64).await.unwrap(), large);
    assert_eq!((fixture.inner.calls("get_content"), fixture.inner.calls("read")), (0, 0));
}

#[tokio::test]
async fn what_is_not_whole_leaves_nothing_behind() {
    let fixture = Fixture::new().await;
    let (key, bytes) = fixture.blob(1, SIZE).await;
    // A read of a part, and a reader that stops early.
    assert_eq!(fixture.read(&key, 0..MIB).await.unwrap(), bytes.slice(..MIB as usize));
    assert_eq!(fixture.read(&key, 1..SIZE as u64).await.unwrap(), bytes.slice(1..));
    let mut stream = fixture.cache.read(&key, 0..SIZE as u64, Some(&digest(&key))).await.unwrap().unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    // Uploads that are not completed.
    let large = pattern(3, SIZE);
    let mut dropped = fixture.cache.begin_upload(&blob_key(&large)).await.unwrap();
    dropped.part(large.clone()).await.unwrap();
    wait_until(LIMIT, "the readers' files are gone", async || fixture.files() == 1).await;
    drop(dropped);
    let mut aborted = fixture.cache.begin_upload(&blob_key(&large)).await.unwrap();
    aborted.part(large.clone()).await.unwrap();
    aborted.abort().await.unwrap();
    wait_until(LIMIT, "nothing is left", async || fixture.files() == 0).await;
    assert_eq!(fixture.cache.stats().blobs, 0);
    // A read that is known to be partial is not even cached in part.
    fixture.cache.head(&key).await.unwrap();
    let mut stream = fixture.cache.read(&key, 0..2 * MIB, Some(&digest(&key))).await.unwrap().unwrap();
    for _ in 0..3 {
        stream.next().await.unwrap().unwrap();
        assert_eq!(fixture.files(), 0);
    }
    fixture.cached_blob(4, SIZE).await;
}

#[tokio::test]
async fn what_is_not_what_its_name_says_is_never_kept() {
    let fixture = Fixture::new().await;
    let key = |text: &str| key_of(&Digest::sha256(text.as_bytes()));
    let (read, got, put, uploaded) = (key("read"), key("got"), key("put"), key("uploaded"));
    let wrong = pattern(1, SIZE);
    for key in [&read, &got] {
        fixture.inner.put_once(key, wrong.clone()).await.unwrap();
    }
    assert!(matches!(fixture.read(&read, 0..SIZE as u64).await.unwrap_err(), Error::Damaged { .. }));
    assert!(matches!(fixture.cache.get_content(&got, &digest(&got)).await.unwrap_err(), Error::Damaged { .. }));
    fixture.cache.put_content(&put, &digest(&put), wrong.clone()).await.unwrap();
    let mut upload = fixture.cache.begin_upload(&uploaded).await.unwrap();
    upload.part(wrong).await.unwrap();
    upload.complete(Some(&digest(&uploaded))).await.unwrap();
    wait_until(LIMIT, "what was written is rejected", async || fixture.cache.stats().rejected == 2).await;
    wait_until(LIMIT, "nothing is left", async || fixture.files() == 0).await;
    assert_eq!(fixture.cache.stats().blobs, 0);
}

#[tokio::test]
async fn a_file_is_not_served_as_what_it_was_not_checked_against() {
    let fixture = Fixture::new().await;
    let (key, bytes) = fixture.cached_blob(1, SIZE).await;
    let other = Digest::sha256(b"other");
    // Another record says that this object has another digest. The cached bytes do not match, so the store is asked.
    fixture.inner.calls("get_content");
    assert!(matches!(fixture.cache.get_content(&key, &other).await.unwrap_err(), Error::Damaged { .. }));
    assert_eq!(fixture.inner.calls("get_content"), 1);
    assert_eq!(fixture.cache.get_content(&key, &digest(&key)).await.unwrap().unwrap(), bytes);
    let (key, _) = fixture.cached_blob(2, SIZE).await;
    let stream = fixture.cache.read(&key, 0..u64::MAX, Some(&other)).await.unwrap().unwrap();
    collect(stream).await.unwrap_err();
    // The SHA-512 digest of the same bytes works as well.
    let (key, bytes) = fixture.cached_blob(3, SIZE).await;
    let long = Digest::of(Algorithm::Sha512, &bytes);
    fixture.inner.calls("read");
    let stream = fixture.cache.read(&key, 0..u64::MAX, Some(&long)).await.unwrap().unwrap();
    assert_eq!(collect(stream).await.unwrap(), bytes);
    assert_eq!(fixture.inner.calls("read"), 0);
}

#[tokio::test]
async fn an_upload_whose_digest_is_said_in_the_end_is_cached_under_any_algorithm() {
    let fixture = Fixture::new().await;
    let bytes = pattern(1, SIZE);
    let right = Digest::of(Algorithm::Sha512, &bytes);
    let wrong = Digest::of(Algorithm::Sha512, b"other");
    for (name, digest, are_rejected) in [("content/right", &right, 0), ("content/wrong", &wrong, 1)] {
        let key: Key = name.parse().unwrap();
        let mut upload = fixture.cache.begin_upload(&key).await.unwrap();
        upload.part(bytes.clone()).await.unwrap();
        upload.complete(Some(digest)).await.unwrap();
        wait_until(LIMIT, "it has ended", async || {
            let stats = fixture.cache.stats();
            (stats.blobs, stats.rejected) == (1, are_rejected)
        })
        .await;
    }
    let key: Key = "content/right".parse().unwrap();
    assert_eq!(fixture.cache.get_content(&key, &right).await.unwrap().unwrap(), bytes);
    assert_eq!((fixture.cache.stats().hits, fixture.cache.stats().misses), (1, 0));
    // Objects without a digest are not cached.
    let key: Key = "content/none".parse().unwrap();
    let mut upload = fixture.cache.begin_upload(&key).await.unwrap();
    upload.part(bytes.clone()).await.unwrap();
    upload.complete(None).await.unwrap();
    wait_until(LIMIT, "nothing is on its way", async || fixture.files() == 1).await;
}

#[tokio::test]
async fn an_upload_that_the_store_does_not_take_is_not_kept() {
    let fixture = Fixture::new().await;
    let (key, bytes) = fixture.blob(1, 1000).await;
    let error = fixture.cache.put_content(&key, &digest(&key), bytes).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyExists), "{error}");
    let large = pattern(2, SIZE);
    let mut upload = fixture.cache.begin_upload(&blob_key(&large)).await.unwrap();
    upload.part(large).await.unwrap();
    assert_eq!(fixture.files(), 1);
    // The store's copy is lost.
    for entry in fs::read_dir(fixture.folder.path().join("store/.tmp")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    upload.complete(Some(&Digest::sha256(b""))).await.unwrap_err();
    fixture.inner.switch(Mode::Away);
    let bytes = pattern(3, 1000);
    let key = blob_key(&bytes);
    fixture.cache.put_content(&key, &digest(&key), bytes).await.unwrap_err();
    wait_until(LIMIT, "nothing is left", async || fixture.files() == 0).await;
    assert_eq!(fixture.cache.stats().blobs, 0);
}

#[tokio::test]
async fn the_bound_is_kept_and_what_was_used_last_stays() {
    let fixture = Fixture::with(MIB).await;
    let size = 100 * 1024;
    let mut keys = Vec::new();
    for seed in 0..30 {
        keys.push(fixture.cached_blob(seed, size).await.0);
        // The first blob is used all the time.
        fixture.read(&keys[0], 0..10).await.unwrap();
        let on_disk: u64 =
            fs::read_dir(fixture.cache_dir()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(on_disk <= MIB, "{on_disk}");
    }
    let stats = fixture.cache.stats();
    assert!(stats.blob_bytes <= MIB && (9..=10).contains(&stats.blobs), "{stats:?}");
    assert_eq!(stats.evictions, 30 - stats.blobs);
    assert!(fixture.file(&keys[0]).exists() && fixture.file(&keys[29]).exists() && !fixture.file(&keys[1]).exists());
    // A blob that would take most of the space is served but not cached.
    let (large, bytes) = fixture.blob(99, 700 * 1024).await;
    assert_eq!(fixture.read(&large, 0..u64::MAX).await.unwrap(), bytes);
    assert_eq!(fixture.cache.head(&large).await.unwrap(), Some(bytes.len() as u64));
    assert_eq!(fixture.read(&large, 0..bytes.len() as u64).await.unwrap(), bytes);
    assert!(!fixture.file(&large).exists());
}

#[tokio::test]
async fn a_read_under_way_outlives_its_blob() {
    let fixture = Fixture::with(10 * MIB).await;
    let (key, bytes) = fixture.cached_blob(1, 4 * MIB as usize).await;
    let mut stream = fixture.cache.read(&key, 0..u64::MAX, Some(&digest(&key))).await.unwrap().unwrap();
    let first = stream.next().await.unwrap().unwrap();
    fixture.inner.calls("read");
    for seed in 2..5 {
        fixture.cached_blob(seed, 4 * MIB as usize).await;
    }
    assert!(!fixture.file(&key).exists());
    assert_eq!(fixture.inner.calls("read"), 3);
    let rest = collect(stream).await.unwrap();
    assert_eq!([first, rest].concat(), bytes);
    assert_eq!(fixture.inner.calls("read"), 0);
}

#[tokio::test]
async fn a_restart_keeps_the_blobs_and_the_order_of_their_use() {
    let mut fixture = Fixture::new().await;
    let mut blobs = Vec::new();
    for seed in 0..4 {
        blobs.push(fixture.cached_blob(seed, 100_000).await);
    }
    // As if they had been used a day apart, long ago. Then the first is used again.
    for (day, (key, _)) in blobs.iter().enumerate() {
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * (day as u64 + 1));
        File::options()
            .write(true)
            .open(fixture.file(key))
            .unwrap()
            .set_times(FileTimes::new().set_modified(used))
            .unwrap();
    }
    fixture.read(&blobs[0].0, 0..1).await.unwrap();
    let half = fixture.cache_dir().join(format!("{}.tmp", fixture.file(&blobs[0].0).file_name().unwrap().display()));
    fs::write(&half, "half").unwrap();
    let foreign = fixture.cache_dir().join("README");
    fs::write(&foreign, "not ours").unwrap();

    // The first process may still be finishing its work.
    fixture = fixture.restarted(2 * 102_400).await;
    assert!(!half.exists() && foreign.exists());
    assert_eq!(fixture.cache.stats().blobs, 2);
    fixture.inner.calls("read");
    for (index, (key, bytes)) in blobs.iter().enumerate() {
        assert_eq!(fixture.file(key).exists(), [0, 3].contains(&index), "{index}");
        if [0, 3].contains(&index) {
            assert_eq!(fixture.read(key, 0..u64::MAX).await.unwrap(), bytes);
        }
    }
    assert_eq!(fixture.inner.calls("read"), 0);

    fs::remove_file(foreign).unwrap();
    fixture = fixture.restarted(0).await;
    assert_eq!(fixture.files(), 0);
    let (key, bytes) = &blobs[0];
    assert_eq!(fixture.read(key, 0..u64::MAX).await.unwrap(), bytes);
    assert_eq!(fixture.files(), 0);
}

#[tokio::test]
async fn files_that_vanish_or_shrink_are_read_from_the_store() {
    let fixture = Fixture::new().await;
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("deleted", |path| fs::remove_file(path).unwrap()),
        ("truncated", |path| File::options().write(true).open(path).unwrap().set_len(1000).unwrap()),
        ("longer", |path| File::options().write(true).open(path).unwrap().set_len(9_000_000).unwrap()),
        ("a folder", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ];
    for (seed, (how, damage)) in damages.into_iter().enumerate() {
        let (key, bytes) = fixture.cached_blob(seed as u8, SIZE).await;
        damage(&fixture.file(&key));
        fixture.inner.calls("read");
        assert_eq!(fixture.read(&key, 7..MIB).await.unwrap(), bytes.slice(7..MIB as usize), "{how}");
        assert_eq!(fixture.inner.calls("read"), 1, "{how}");
        assert_eq!(fixture.read(&key, 0..u64::MAX).await.unwrap(), bytes, "{how}");
        if how != "a folder" {
            // It has been cached again.
            fixture.until_cached(&key).await;
            fixture.inner.calls("read");
            assert_eq!(fixture.read(&key, 0..u64::MAX).await.unwrap(), bytes, "{how}");
            assert_eq!(fixture.inner.calls("read"), 0, "{how}");
        }
    }
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_read_is_read_on_from_the_store() {
    let fixture = Fixture::new().await;
    let (key, bytes) = fixture.cached_blob(1, SIZE).await;
    let mut stream = fixture.cache.read(&key, 10..SIZE as u64, Some(&digest(&key))).await.unwrap().unwrap();
    let first = stream.next().await.unwrap().unwrap();
    File::options().write(true).open(fixture.file(&key)).unwrap().set_len(MIB + 5).unwrap();
    let rest = collect(stream).await.unwrap();
    assert_eq!([first, rest].concat(), bytes[10..]);
    assert_eq!((fixture.inner.calls("read"), fixture.cache.stats().blobs), (2, 0));
}

#[tokio::test]
async fn a_file_that_was_altered_between_two_starts_is_never_read_to_its_end() {
    let mut fixture = Fixture::new().await;
    let blobs =
        [fixture.cached_blob(1, SIZE).await, fixture.cached_blob(2, 1000).await, fixture.cached_blob(3, 1000).await];
    for (key, bytes) in &blobs {
        let mut altered = bytes.to_vec();
        altered[10] ^= 1;
        fs::write(fixture.file(key), altered).unwrap();
    }
    fixture = fixture.restarted(100 * MIB).await;
    let [(large, large_bytes), (small, small_bytes), (got, got_bytes)] = &blobs;
    let mut stream = fixture.cache.read(large, 0..SIZE as u64, Some(&digest(large))).await.unwrap().unwrap();
    let (mut seen, mut error) = (0, None);
    while let Some(next) = stream.next().await {
        match next {
            Ok(chunk) => seen += chunk.len(),
            Err(failure) => error = Some(failure),
        }
    }
    assert!(error.is_some_and(|error| error.retry()) && seen < SIZE, "{seen}");
    // The next reader gets it, and so does a reader that has not received anything yet.
    assert_eq!(fixture.read(large, 0..SIZE as u64).await.unwrap(), large_bytes);
    assert_eq!(fixture.read(small, 0..1000).await.unwrap(), small_bytes);
    assert_eq!(fixture.cache.get_content(got, &digest(got)).await.unwrap().unwrap(), got_bytes);
}

#[tokio::test]
async fn what_is_deleted_is_not_served_any_more() {
    let fixture = Fixture::new().await;
    let (here, _) = fixture.cached_blob(1, 1000).await;
    fixture.cache.delete(&here).await.unwrap();
    assert!(!fixture.file(&here).exists());
    assert!(
        fixture.cache.read(&here, 0..1, Some(&digest(&here))).await.unwrap().is_none()
            && fixture.cache.get_content(&here, &digest(&here)).await.unwrap().is_none()
    );
    // Another node has deleted it, which asking for its presence reveals.
    let (elsewhere, _) = fixture.cached_blob(2, 1000).await;
    fixture.inner.delete(&elsewhere).await.unwrap();
    assert_eq!(fixture.cache.head(&elsewhere).await.unwrap(), None);
    assert!(!fixture.file(&elsewhere).exists());
    assert!(fixture.cache.read(&elsewhere, 0..1, Some(&digest(&elsewhere))).await.unwrap().is_none());
    // It is deleted while it is being cached.
    let (landing, bytes) = fixture.blob(3, SIZE).await;
    let stream = fixture.cache.read(&landing, 0..SIZE as u64, Some(&digest(&landing))).await.unwrap().unwrap();
    fixture.cache.delete(&landing).await.unwrap();
    assert_eq!(collect(stream).await.unwrap(), bytes);
    wait_until(LIMIT, "nothing is left", async || fixture.files() == 0).await;
    assert!(fixture.cache.read(&landing, 0..1, Some(&digest(&landing))).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_read_one_blob_write_it_once() {
    let fixture = Fixture::new().await;
    let (key, bytes) = fixture.blob(1, SIZE).await;
    let digest = digest(&key);
    let streams = join_all((0..20).map(|_| fixture.cache.read(&key, 0..SIZE as u64, Some(&digest)))).await;
    let reads = join_all(streams.into_iter().map(|stream| async {
        let mut stream = stream.unwrap().unwrap();
        let first = stream.next().await.unwrap().unwrap();
        assert!(fixture.files() <= 1);
        Bytes::from([first, collect(stream).await.unwrap()].concat())
    }));
    assert!(reads.await.iter().all(|read| bytes == read));
    fixture.until_cached(&key).await;
    let stats = fixture.cache.stats();
    assert_eq!((stats.blobs, stats.misses, stats.rejected), (1, 20, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_read_write_and_delete_at_once_get_right_bytes_or_none() {
    let fixture = Fixture::with(2 * MIB).await;
    let mut blobs: Vec<(Key, Bytes)> = Vec::new();
    for seed in 0..12 {
        blobs.push(fixture.blob(seed, 200_000 + seed as usize).await);
    }
    let work = (0..300).map(|turn| {
        let (key, bytes) = &blobs[turn * 7 % blobs.len()];
        let cache = &fixture.cache;
        async move {
            match turn % 10 {
                8 => cache.delete(key).await.unwrap(),
                9 => match cache.put_content(key, &digest(key), bytes.clone()).await {
                    Ok(_) | Err(Error::AlreadyExists) => {}
                    Err(error) => panic!("{error}"),
                },
                _ => {
                    let start = (turn % 3) as u64 * 1000;
                    let Some(stream) = cache.read(key, start..u64::MAX, Some(&digest(key))).await.unwrap() else {
                        return;
                    };
                    assert_eq!(collect(stream).await.unwrap(), bytes[start as usize..], "{turn}");
                }
            }
        }
    });
    futures_util::stream::iter(work).buffer_unordered(30).collect::<Vec<()>>().await;
    wait_until(LIMIT, "no blob is on its way", async || fixture.files() == fixture.cache.stats().blobs as usize).await;
    assert!(fixture.cache.stats().blob_bytes <= 2 * MIB);
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_any_more_hurts_nobody() {
    let fixture = Fixture::new().await;
    let (held, held_bytes) = fixture.cached_blob(1, 1000).await;
    let (key, bytes) = fixture.blob(2, SIZE).await;
    fs::rename(fixture.cache_dir(), fixture.folder.path().join("elsewhere")).unwrap();
    assert_eq!(fixture.read(&held, 0..1000).await.unwrap(), held_bytes);
    assert_eq!(fixture.read(&key, 0..u64::MAX).await.unwrap(), bytes);
    let large = pattern(3, SIZE);
    let mut upload = fixture.cache.begin_upload(&blob_key(&large)).await.unwrap();
    upload.part(large.clone()).await.unwrap();
    upload.complete(Some(&Digest::sha256(&large))).await.unwrap();
    assert_eq!(fixture.cache.stats().blobs, 0);
}

#[tokio::test]
async fn a_disk_that_hangs_is_waited_for_once() {
    let fixture = Fixture::new().await;
    let (key, bytes) = fixture.cached_blob(1, SIZE).await;
    let (other, other_bytes) = fixture.cached_blob(2, SIZE).await;
    // Opening it waits for a writer.
    let pipe = fixture.file(&key);
    fs::remove_file(&pipe).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fixture.inner.calls("read");
    let began = Instant::now();
    assert_eq!(fixture.read(&key, 0..u64::MAX).await.unwrap(), bytes);
    println!("the first read took {:?}", began.elapsed());
    // For a while, neither this blob nor another one is looked for on the disk.
    let began = Instant::now();
    assert_eq!(fixture.read(&key, 5..9).await.unwrap(), bytes[5..9]);
    assert_eq!(fixture.read(&other, 0..9).await.unwrap(), other_bytes[..9]);
    println!("the next ones took {:?}", began.elapsed());
    assert_eq!(fixture.inner.calls("read"), 3);
    // Releases whoever waits for a writer.
    drop(File::options().read(true).write(true).open(pipe).unwrap());
}
