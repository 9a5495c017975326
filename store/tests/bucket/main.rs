//! The bucket, with a real one.

mod opening;
mod proxy;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use entrepot_domain::Secret;
use entrepot_store::bucket::{AccessKey, BucketConfig, BucketStore, Service};
use entrepot_store::{Prefix, Store};
use entrepot_test_support::Seaweed;

/// How to get at `bucket`.
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

async fn open(config: BucketConfig) -> BucketStore {
    BucketStore::open(config, "node-1".parse().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_does_what_every_store_must_do() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let bucket = seaweed.bucket().await;
    let next = AtomicUsize::new(0);
    entrepot_store::conformance::run(async || {
        let prefix = format!("of-{}", next.fetch_add(1, Ordering::Relaxed));
        Arc::new(open(config(seaweed, &bucket, &prefix)).await) as Store
    })
    .await;
}
