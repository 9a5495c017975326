//! Reads of ranges, and of large objects.

use super::*;

pub(super) async fn ranges_are_exact_and_end_with_the_object(store: &dyn BlobStore) {
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

pub(super) async fn large_objects_come_in_bounded_chunks_and_not_by_get(store: &dyn BlobStore) {
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
    let Error::TooLarge { version: Some(version), .. } = error else { panic!("{error:?}") };
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
    // A record that is too large to be read can be replaced all the same.
    store.replace_if(&blob, Some(&version), "small".into()).await.expect("replace");
    assert_eq!(store.get(&blob).await.expect("get").map(|object| object.bytes), Some("small".into()));
}

pub(super) async fn a_read_goes_on_or_fails_when_the_object_is_replaced(store: &dyn BlobStore) {
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
