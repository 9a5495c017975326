//! Uploads in parts.

use bytes::Bytes;
use entrepot_store::bucket::BucketStore;
use entrepot_store::{BlobStore as _, Error, Prefix};
use entrepot_test_support::Seaweed;
use futures_util::TryStreamExt as _;
use http::{Method, StatusCode};

use crate::proxy::{Fault, Proxy};
use crate::{behind_proxy, config, key, open, pattern};

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn an_upload_that_is_left_is_aborted_by_its_owner_and_nobody_else() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let bucket = seaweed.bucket().await;
    let store = open(config(seaweed, &bucket, "some/where")).await;
    let blob = key("blobs/1");
    let mut upload = store.begin_upload(&blob).await.unwrap();
    upload.part(pattern(20 * MIB)).await.unwrap();
    drop(upload);
    let (owner, other) = ("node-1".parse().unwrap(), "node-2".parse().unwrap());
    assert_eq!(seaweed.unfinished_uploads(&bucket).await.len(), 1);
    assert_eq!(store.abort_uploads(&other).await.unwrap(), 0);
    assert_eq!(seaweed.unfinished_uploads(&bucket).await.len(), 1);
    assert_eq!(store.list(&Prefix::below("uploads").unwrap(), None, 10).await.unwrap().len(), 1);

    // An upload that is under way is not taken for a leftover.
    let mut running = store.begin_upload(&key("blobs/2")).await.unwrap();
    running.part(pattern(20 * MIB)).await.unwrap();
    assert_eq!(seaweed.unfinished_uploads(&bucket).await.len(), 2);
    assert_eq!(store.abort_uploads(&owner).await.unwrap(), 1);
    assert_eq!(seaweed.unfinished_uploads(&bucket).await.len(), 1);
    running.complete(None).await.unwrap();
    assert_eq!(store.head(&key("blobs/2")).await.unwrap(), Some(20 * MIB as u64));

    // The next start of its owner aborts it, too.
    let mut upload = store.begin_upload(&blob).await.unwrap();
    upload.part(pattern(20 * MIB)).await.unwrap();
    let again = open(config(seaweed, &bucket, "some/where")).await;
    assert_eq!(again.abort_uploads(&owner).await.unwrap(), 1);
    assert_eq!(seaweed.unfinished_uploads(&bucket).await.len(), 0);
    assert!(store.list(&Prefix::below("uploads").unwrap(), None, 10).await.unwrap().is_empty());
    assert_eq!(store.head(&blob).await.unwrap(), None);
    assert_eq!(again.abort_uploads(&owner).await.unwrap(), 0);
}

#[tokio::test]
async fn an_upload_that_was_aborted_does_not_become_an_object() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let bucket = seaweed.bucket().await;
    let store = open(config(seaweed, &bucket, "")).await;
    let mut upload = store.begin_upload(&key("blobs/1")).await.unwrap();
    upload.part(pattern(9 * MIB)).await.unwrap();
    let another = open(config(seaweed, &bucket, "")).await;
    assert_eq!(another.abort_uploads(&"node-1".parse().unwrap()).await.unwrap(), 1);
    let error = upload.complete(None).await.unwrap_err();
    assert!(matches!(error, Error::Away(_)), "{error:?}");
    assert_eq!(store.head(&key("blobs/1")).await.unwrap(), None);

    let mut upload = store.begin_upload(&key("blobs/2")).await.unwrap();
    upload.part(pattern(9 * MIB)).await.unwrap();
    upload.abort().await.unwrap();
    assert_eq!(seaweed.unfinished_uploads(&bucket).await.len(), 0);
    assert!(store.list(&entrepot_store::Prefix::all(), None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_upload_whose_beginning_was_not_answered_is_found_and_aborted() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let bucket = seaweed.bucket().await;
    let proxy = Proxy::before(seaweed.address()).await;
    let mut config = config(seaweed, &bucket, "some/where");
    config.endpoint = Some(proxy.endpoint().parse().unwrap());
    let (store, owner) = (open(config).await, "node-1".parse().unwrap());

    // It is begun twice, and one of the two is completed.
    proxy.plan(Method::POST, "blobs/1?uploads", Fault::LoseAnswer, 1);
    let mut upload = store.begin_upload(&key("blobs/1")).await.unwrap();
    upload.part(pattern(20 * MIB)).await.unwrap();
    // An upload of another object, whose key begins with the same characters, is left alone.
    let mut other = store.begin_upload(&key("blobs/10")).await.unwrap();
    other.part(pattern(20 * MIB)).await.unwrap();
    upload.complete(None).await.unwrap();
    assert_eq!(seaweed.unfinished_uploads(&bucket).await.len(), 2);
    assert_eq!(store.abort_uploads(&owner).await.unwrap(), 1);
    assert_eq!(seaweed.unfinished_uploads(&bucket).await.len(), 1);
    other.complete(None).await.unwrap();
    for name in ["blobs/1", "blobs/10"] {
        assert_eq!(store.head(&key(name)).await.unwrap(), Some(20 * MIB as u64), "{name}");
    }

    // It is begun as often as it was attempted, and none of the answers arrives.
    proxy.plan(Method::POST, "blobs/2?uploads", Fault::LoseAnswer, usize::MAX);
    let mut upload = store.begin_upload(&key("blobs/2")).await.unwrap();
    upload.part(pattern(20 * MIB)).await.unwrap_err();
    drop(upload);
    assert!(seaweed.unfinished_uploads(&bucket).await.len() > 1);
    store.abort_uploads(&owner).await.unwrap();
    assert_eq!(seaweed.unfinished_uploads(&bucket).await.len(), 0);
    assert!(store.list(&Prefix::below("uploads").unwrap(), None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn where_uploads_are_not_listed_those_are_aborted_whose_id_is_known() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let (store, proxy) = behind_proxy(seaweed).await;
    // Not permitted, not implemented, and an answer that is not a list.
    for status in [StatusCode::FORBIDDEN, StatusCode::NOT_IMPLEMENTED, StatusCode::OK] {
        proxy.plan(Method::GET, "uploads=", Fault::Answer(status), 1);
        let mut upload = store.begin_upload(&key("blobs/1")).await.unwrap();
        upload.part(pattern(20 * MIB)).await.unwrap();
        drop(upload);
        let aborted = store.abort_uploads(&"node-1".parse().unwrap()).await;
        assert_eq!(aborted.unwrap(), 1, "{status}");
        assert!(store.list(&entrepot_store::Prefix::all(), None, 10).await.unwrap().is_empty(), "{status}");
    }
    assert_eq!(proxy.seen("uploads=").iter().filter(|request| request.starts_with("GET")).count(), 3);
}

#[tokio::test]
async fn parts_come_out_in_order_however_large_and_whatever_goes_wrong() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let (store, proxy) = behind_proxy(seaweed).await;
    // Below, at and above both the services' minimum and the size that we send at once.
    let cases: [&[usize]; 6] =
        [&[8 * MIB], &[8 * MIB + 1], &[5 * MIB - 1, 5 * MIB - 1], &[1, 16 * MIB], &[17 * MIB, 1], &[3 * MIB; 6]];
    for (case, parts) in cases.into_iter().enumerate() {
        let name = format!("odd/{case}");
        proxy.plan(Method::POST, &name, Fault::Answer(StatusCode::SERVICE_UNAVAILABLE), 1);
        proxy.plan(Method::PUT, &name, Fault::Answer(StatusCode::INTERNAL_SERVER_ERROR), 1);
        proxy.plan(Method::PUT, &name, Fault::LoseAnswer, 1);
        let complete = format!("{name}?uploadId");
        proxy.plan(Method::POST, &complete, Fault::LoseAnswer, 1);
        // Some services no longer know an upload that is complete.
        proxy.plan(Method::POST, &complete, Fault::Answer(StatusCode::NOT_FOUND), 1);
        let content = pattern(parts.iter().sum());
        let mut upload = store.begin_upload(&key(&name)).await.unwrap();
        let mut rest = content.clone();
        for part in parts {
            upload.part(rest.split_to(*part)).await.unwrap();
            assert_eq!(store.head(&key(&name)).await.unwrap(), None, "{parts:?}");
        }
        upload.complete(None).await.unwrap_or_else(|error| panic!("{parts:?}: {error:?}\n{:#?}", proxy.seen(&name)));
        let body = store.read(&key(&name), 0..u64::MAX, None).await.unwrap().unwrap();
        assert!(body.try_collect::<Vec<Bytes>>().await.unwrap().concat() == content, "{parts:?}");
    }
    // An upload that was begun twice is left to the next sweep, which looks for the other one.
    store.abort_uploads(&"node-1".parse().unwrap()).await.unwrap();
    assert!(store.list(&Prefix::below("uploads").unwrap(), None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_upload_that_fails_leaves_nothing() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let (store, proxy) = behind_proxy(seaweed).await;
    proxy.plan(Method::PUT, "partNumber=2", Fault::Answer(StatusCode::SERVICE_UNAVAILABLE), usize::MAX);
    let mut upload = store.begin_upload(&key("failing")).await.unwrap();
    let mut failed = None;
    for _ in 0..5 {
        if let Err(error) = upload.part(pattern(8 * MIB)).await {
            failed = Some(error);
            break;
        }
    }
    assert!(matches!(failed, Some(Error::Away(_))), "{failed:?}");
    // It does not forget that it failed, either.
    assert!(matches!(upload.part("x".into()).await, Err(Error::Away(_))));
    assert!(matches!(upload.complete(None).await, Err(Error::Away(_))));
    assert_eq!(store.head(&key("failing")).await.unwrap(), None);
    store.abort_uploads(&"node-1".parse().unwrap()).await.unwrap();
    assert!(store.list(&entrepot_store::Prefix::all(), None, 10).await.unwrap().is_empty());
}

/// How much a process may grow by copying 256 MiB to a bucket and back.
const GROWTH_BYTES: usize = 96 * MIB;

#[tokio::test]
async fn memory_is_bounded_however_large_an_object_is() {
    // This test runs itself in a second process, to measure the memory of that process alone.
    const NAME: &str = "uploading::memory_is_bounded_however_large_an_object_is";
    if let (Ok(endpoint), Ok(bucket)) = (std::env::var("TEST_ENDPOINT"), std::env::var("TEST_BUCKET")) {
        let mut config = crate::opening::plain(&bucket);
        config.endpoint = Some(endpoint.parse().unwrap());
        let grown = move_much(&open(config).await).await;
        println!("grown by {grown} bytes.");
        return;
    }
    let Some(seaweed) = Seaweed::shared().await else { return };
    let bucket = seaweed.bucket().await;
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", NAME, "--nocapture"]).env("TEST_ENDPOINT", seaweed.endpoint()).env("TEST_BUCKET", bucket);
    let output = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let grown = text.split_once("grown by ").and_then(|(_, rest)| rest.split_once(" bytes.")).expect(&text).0;
    println!("256 MiB to a bucket and back: the process grew by {grown} bytes");
    assert!(grown.parse::<usize>().unwrap() < GROWTH_BYTES, "{grown}");
}

async fn move_much(store: &BucketStore) -> usize {
    let before = peak();
    let mut upload = store.begin_upload(&key("large")).await.unwrap();
    for _ in 0..256 {
        // Each of them is a separate allocation.
        upload.part(vec![b'x'; MIB].into()).await.unwrap();
    }
    upload.complete(None).await.unwrap();
    let mut body = store.read(&key("large"), 0..u64::MAX, None).await.unwrap().unwrap();
    let mut size = 0;
    while let Some(chunk) = body.try_next().await.unwrap() {
        size += chunk.len();
    }
    assert_eq!(size, 256 * MIB);
    peak() - before
}

/// The peak memory use of this process.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}
