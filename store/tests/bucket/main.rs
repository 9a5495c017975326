//! The bucket store with a real bucket.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "what helps a test fails it, too, and tells what it saw")]
#![expect(clippy::disallowed_methods, reason = "a test that runs itself again is told so by the environment")]

mod away;
mod opening;
mod proxy;
mod reading;
mod services;
mod uploading;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use entrepot_domain::Secret;
use entrepot_store::bucket::{AccessKey, BucketConfig, BucketStore, Service};
use entrepot_store::{Key, Prefix, Store};
use entrepot_test_support::Seaweed;

use proxy::Proxy;

/// The configuration for `bucket`.
fn config(seaweed: &Seaweed, bucket: &str, prefix: &str) -> BucketConfig {
    BucketConfig {
        bucket: bucket.to_owned(),
        prefix: if prefix.is_empty() { Prefix::all() } else { Prefix::below(prefix).unwrap() },
        endpoint: Some(seaweed.endpoint().parse().unwrap()),
        allow_plain_http: true,
        trusted_certificates: None,
        proxy: None,
        service: Service::S3 {
            region: Seaweed::REGION.to_owned(),
            path_style: true,
            credentials: Some(AccessKey {
                id: Seaweed::ACCESS_KEY_ID.to_owned(),
                secret: Secret::new(Seaweed::SECRET_ACCESS_KEY.to_owned()),
            }),
        },
    }
}

/// A store in a new bucket of `seaweed`, and the proxy that all its requests pass through.
async fn behind_proxy(seaweed: &Seaweed) -> (BucketStore, Proxy) {
    let bucket = seaweed.bucket().await;
    let proxy = Proxy::before(seaweed.address()).await;
    let mut config = config(seaweed, &bucket, "");
    config.endpoint = Some(proxy.endpoint().parse().unwrap());
    (open(config).await, proxy)
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

/// Bytes that differ from place to place.
fn pattern(size: usize) -> Bytes {
    (0..size).map(|at| (at % 251) as u8).collect()
}

async fn open(config: BucketConfig) -> BucketStore {
    BucketStore::open(config, "node-1".parse().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_bucket_does_what_every_store_must_do() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let bucket = seaweed.bucket().await;
    let next = AtomicUsize::new(0);
    entrepot_store::conformance::run(async || {
        let prefix = format!("of-{}", next.fetch_add(1, Ordering::Relaxed));
        Arc::new(open(config(seaweed, &bucket, &prefix)).await) as Store
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_its_own_does_what_every_store_must_do() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    entrepot_store::conformance::run(async || {
        let bucket = seaweed.bucket().await;
        Arc::new(open(config(seaweed, &bucket, "")).await) as Store
    })
    .await;
}
