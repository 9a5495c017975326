//! Reading continues after a connection broke.

use bytes::Bytes;
use entrepot_store::{BlobStore as _, Error};
use entrepot_test_support::Seaweed;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::Method;

use crate::proxy::Fault;
use crate::{behind_proxy, key, pattern};

const SIZE: usize = 3_000_000;

#[tokio::test]
async fn a_body_that_breaks_off_goes_on_where_it_stopped() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let (store, proxy) = behind_proxy(seaweed).await;
    let content = pattern(SIZE);
    store.put(&key("cut"), content.clone()).await.unwrap();
    proxy.plan(Method::GET, "/cut", Fault::CutAfter(1_000_000), 1);
    proxy.plan(Method::GET, "/cut", Fault::CutAfter(0), 2);
    proxy.plan(Method::GET, "/cut", Fault::CutAfter(900_000), 1);
    let chunks: Vec<Bytes> =
        store.read(&key("cut"), 1..u64::MAX, None).await.unwrap().unwrap().try_collect().await.unwrap();
    assert!(chunks.concat() == content[1..], "other bytes came");
    let seen = proxy.seen("/cut");
    println!("{seen:#?}");
    let begins: Vec<usize> = seen[1..].iter().map(|request| range_start(request)).collect();
    assert!(begins.len() == 5 && begins.is_sorted() && begins[1] > 1 && begins[4] > begins[1], "{begins:?}");

    // A small object is read again from the start.
    proxy.plan(Method::GET, "/cut", Fault::CutAfter(10), 2);
    assert!(store.get(&key("cut")).await.unwrap().unwrap().bytes == content);
}

#[tokio::test]
async fn a_body_that_falls_silent_goes_on_too() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let (store, proxy) = behind_proxy(seaweed).await;
    let content = pattern(SIZE);
    store.put(&key("silent"), content.clone()).await.unwrap();
    proxy.plan(Method::GET, "/silent", Fault::StallAfter(500_000), 1);
    let body = store.read(&key("silent"), 0..SIZE as u64, None).await.unwrap().unwrap();
    let chunks: Vec<Bytes> = body.try_collect().await.unwrap();
    assert!(chunks.concat() == content, "other bytes came");
    assert_eq!(range_start(&proxy.seen("/silent")[2]), 500_000);
}

#[tokio::test]
async fn two_objects_are_never_mixed() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let (store, proxy) = behind_proxy(seaweed).await;
    let at = key("mixed");
    for other in [Some(vec![b'b'; SIZE]), Some(vec![b'c'; 10]), None] {
        store.put(&at, vec![b'a'; SIZE].into()).await.unwrap();
        proxy.plan(Method::GET, "/mixed", Fault::CutAfter(1_000_000), 1);
        let mut body = store.read(&at, 0..u64::MAX, None).await.unwrap().unwrap();
        let first = body.next().await.unwrap().unwrap();
        match other {
            Some(other) => drop(store.put(&at, other.into()).await.unwrap()),
            None => store.delete(&at).await.unwrap(),
        }
        let mut chunks = vec![first];
        let error = loop {
            match body.next().await.expect("it does not end as if it were whole") {
                Ok(chunk) => chunks.push(chunk),
                Err(error) => break error,
            }
        };
        assert!(chunks.concat().iter().all(|byte| *byte == b'a'), "another object's bytes came");
        assert!(matches!(error, Error::Away(_)), "{error:?}");
        println!("{}", std::error::Error::source(&error).unwrap());
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_again_and_again_comes_to_an_end() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let (store, proxy) = behind_proxy(seaweed).await;
    store.put(&key("never"), pattern(SIZE)).await.unwrap();
    proxy.plan(Method::GET, "/never", Fault::CutAfter(0), usize::MAX);
    let body = store.read(&key("never"), 0..u64::MAX, None).await.unwrap().unwrap();
    let error = body.try_collect::<Vec<Bytes>>().await.unwrap_err();
    assert!(matches!(error, Error::Away(_)), "{error:?}");
    println!("asked {} times", proxy.seen("/never").len() - 1);
}

/// The beginning of a request's range.
fn range_start(request: &str) -> usize {
    let (_, range) = request.split_once("bytes=").expect(request);
    range.split('-').next().unwrap().parse().unwrap()
}
