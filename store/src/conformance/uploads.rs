//! Uploads in parts.

use super::*;

pub(super) async fn uploads_are_invisible_until_complete(store: &dyn BlobStore) {
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

pub(super) async fn uploads_in_odd_parts_come_out_whole(store: &dyn BlobStore) {
    const MIB: usize = 1024 * 1024;
    let pattern = |at: usize, size: usize| -> Bytes { (at..at + size).map(|i| (i % 249) as u8).collect() };
    // Services have a minimum part size, and the last part may have exactly the size that is sent at once.
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

pub(super) async fn uploads_that_are_given_up_leave_nothing(store: &dyn BlobStore) {
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
