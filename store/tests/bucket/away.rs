//! A bucket that is away or busy, or whose answers are lost.

use std::time::{Duration, Instant};

use bytes::Bytes;
use entrepot_store::{BlobStore, Error, Prefix};
use entrepot_test_support::Seaweed;
use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt as _, TryFutureExt as _, TryStreamExt as _};
use http::{Method, StatusCode};

use crate::proxy::Fault;
use crate::{behind_proxy, config, key, open, pattern};

/// Far more than any of these calls may take.
const LIMIT: Duration = Duration::from_secs(45);

#[tokio::test]
async fn every_call_ends_while_the_bucket_is_frozen_or_stopped() {
    let Some(seaweed) = Seaweed::start().await else { return };
    let bucket = seaweed.bucket().await;
    let store = open(config(&seaweed, &bucket, "")).await;
    store.put(&key("there"), "x".into()).await.unwrap();
    seaweed.freeze();
    all_are_away(&store, "frozen").await;
    seaweed.thaw();
    assert_eq!(store.head(&key("there")).await.unwrap(), Some(1));
    seaweed.kill().await;
    all_are_away(&store, "stopped").await;
    seaweed.resume().await;
    assert_eq!(store.get(&key("there")).await.unwrap().unwrap().bytes, "x");
}

/// Makes every kind of call at once.
async fn all_are_away(store: &dyn BlobStore, how: &str) {
    // A write that ended like this may happen later, when the bucket is back.
    let (there, written, all) = (key("there"), key("written"), Prefix::all());
    let owner = "node-1".parse().unwrap();
    let upload = async |size: usize| {
        let mut upload = store.begin_upload(&key("upload")).await?;
        upload.part(pattern(size)).await?;
        upload.complete(None).await
    };
    let read = async || match store.read(&there, 0..10, None).await? {
        Some(body) => body.try_collect::<Vec<Bytes>>().await.map(drop),
        None => Ok(()),
    };
    let calls: [(&str, BoxFuture<'_, Result<(), Error>>); 11] = [
        ("put_once", store.put_once(&written, "y".into()).map_ok(drop).boxed()),
        ("put", store.put(&written, "y".into()).map_ok(drop).boxed()),
        ("replace_if", store.replace_if(&written, None, "y".into()).map_ok(drop).boxed()),
        ("get", store.get(&there).map_ok(drop).boxed()),
        ("head", store.head(&there).map_ok(drop).boxed()),
        ("read", read().boxed()),
        ("list", store.list(&all, None, 10).map_ok(drop).boxed()),
        ("delete", store.delete(&written).boxed()),
        ("a small upload", upload(10).boxed()),
        ("a large upload", upload(20_000_000).boxed()),
        ("abort_uploads", store.abort_uploads(&owner).map_ok(drop).boxed()),
    ];
    let calls = calls.map(async |(what, call)| {
        let began = Instant::now();
        let result = tokio::time::timeout(LIMIT, call).await;
        println!("{how}: {what} ended after {:?}", began.elapsed());
        let error = result.unwrap_or_else(|_| panic!("{how}: {what} does not end")).unwrap_err();
        assert!(matches!(error, Error::Away(_)) && error.retry(), "{how}: {what}: {error:?}");
    });
    join_all(calls).await;
}

#[tokio::test]
async fn a_busy_bucket_is_asked_again_and_not_forever() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let (store, proxy) = behind_proxy(seaweed).await;
    for status in [500, 502, 503, 429].map(|status| StatusCode::from_u16(status).unwrap()) {
        let key = key(&format!("busy/{}", status.as_u16()));
        proxy.plan(Method::PUT, key.as_str(), Fault::Answer(status), 2);
        let version = store.put_once(&key, "x".into()).await.unwrap();
        proxy.plan(Method::GET, key.as_str(), Fault::Answer(status), 2);
        let object = store.get(&key).await.unwrap().unwrap();
        assert_eq!((object.version, object.bytes), (version, Bytes::from("x")));
        assert_eq!(proxy.seen(key.as_str()).len(), 6, "{status}");

        proxy.plan(Method::GET, key.as_str(), Fault::Answer(status), usize::MAX);
        let error = store.get(&key).await.unwrap_err();
        assert!(matches!(error, Error::Away(_)), "{error:?}");
        assert_eq!(proxy.seen(key.as_str()).len(), 9, "{status}");
    }
    // A request that would fail in the same way again is not repeated.
    proxy.plan(Method::PUT, "refused", Fault::Answer(StatusCode::FORBIDDEN), usize::MAX);
    let error = store.put(&key("refused"), "x".into()).await.unwrap_err();
    assert!(matches!(error, Error::Away(_)), "{error:?}");
    assert_eq!(proxy.seen("refused").len(), 1);
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_says_what_became_of_it() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let (store, proxy) = behind_proxy(seaweed).await;
    let lose = |key: &entrepot_store::Key| proxy.plan(Method::PUT, key.as_str(), Fault::LoseAnswer, 1);
    let read = async |key| store.get(key).await.unwrap().unwrap();

    let once = key("lost/once");
    lose(&once);
    let version = store.put_once(&once, "mine".into()).await.unwrap();
    assert_eq!((read(&once).await.bytes, read(&once).await.version), (Bytes::from("mine"), version.clone()));
    assert_eq!(proxy.seen("lost/once").iter().filter(|request| request.starts_with("PUT")).count(), 2);

    lose(&once);
    let version = store.replace_if(&once, Some(&version), "again".into()).await.unwrap();
    assert_eq!((read(&once).await.bytes, read(&once).await.version), (Bytes::from("again"), version.clone()));

    lose(&once);
    let version = store.put(&once, "whatever".into()).await.unwrap();
    assert_eq!(read(&once).await.version, version);

    // Somebody else was first, and wrote the same bytes.
    lose(&once);
    let error = store.put_once(&once, "whatever".into()).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyExists), "{error:?}");
    lose(&once);
    let error = store.replace_if(&once, None, "whatever".into()).await.unwrap_err();
    assert!(matches!(error, Error::Conflict), "{error:?}");
    assert_eq!(read(&once).await.version, version);

    proxy.plan(Method::DELETE, "lost/once", Fault::LoseAnswer, 1);
    store.delete(&once).await.unwrap();
    assert_eq!(store.head(&once).await.unwrap(), None);
}

#[tokio::test]
async fn racers_whose_answers_are_lost_still_have_one_winner() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let (store, proxy) = behind_proxy(seaweed).await;
    let raced = key("raced");
    proxy.plan(Method::PUT, "raced", Fault::LoseAnswer, 3);
    let results = join_all((0..4).map(|racer| store.put_once(&raced, format!("{racer}").into()))).await;
    let winners: Vec<usize> = (0..4).filter(|racer| results[*racer].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    assert_eq!(store.get(&raced).await.unwrap().unwrap().bytes, winners[0].to_string());
}
