//! The cache of a node, in front of real stores.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod away;
mod blobs;
mod switched;

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use entrepot_domain::{Digest, Secret};
use entrepot_store::bucket::{AccessKey, Service};
use entrepot_store::cache::OpenError;
use entrepot_store::{
    BlobStore, BucketConfig, BucketStore, ByteStream, CacheConfig, Error, Key, LocalStore, NodeCache, Prefix, Store,
};
use entrepot_test_support::{Seaweed, wait_until};
use futures_util::TryStreamExt as _;
use parking_lot::Mutex;
use tempfile::TempDir;

use switched::Switched;

const LIMIT: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

/// A local store that can fail, a cache in front of it, and their folders.
struct Fixture {
    folder: TempDir,
    inner: Arc<Switched>,
    cache: NodeCache,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(100 * MIB).await
    }

    async fn with(size_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open(folder.path().join("store")).unwrap());
        let inner = Arc::new(Switched::new(store));
        let cache = open(&folder, &inner, size_bytes).await;
        Self { folder, inner, cache }
    }

    /// The same fixture after a restart of the node.
    async fn restarted(self, size_bytes: u64) -> Self {
        let Self { folder, inner, cache } = self;
        drop(cache);
        let cache = open(&folder, &inner, size_bytes).await;
        Self { folder, inner, cache }
    }

    /// A blob that is in the store but not cached.
    async fn blob(&self, seed: u8, size: usize) -> (Key, Bytes) {
        let bytes = pattern(seed, size);
        let key = blob_key(&bytes);
        self.inner.put_once(&key, bytes.clone()).await.unwrap();
        (key, bytes)
    }

    /// A blob that is in the store, and cached.
    async fn cached_blob(&self, seed: u8, size: usize) -> (Key, Bytes) {
        let (key, bytes) = self.blob(seed, size).await;
        assert_eq!(self.read(&key, 0..size as u64).await.unwrap(), bytes);
        self.until_cached(&key).await;
        (key, bytes)
    }

    async fn until_cached(&self, key: &Key) {
        wait_until(LIMIT, &format!("`{key}` is cached"), async || self.file(key).exists()).await;
        // The file has its name shortly before the cache knows it.
        wait_until(LIMIT, "no blob is on its way", async || self.files() == self.cache.stats().blobs as usize).await;
    }

    fn cache_dir(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn file(&self, key: &Key) -> PathBuf {
        self.cache_dir().join(key.as_str().replace('/', ",") + ".cached")
    }

    /// The number of files in the cache, except its lock.
    fn files(&self) -> usize {
        fs::read_dir(self.cache_dir()).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() != ".lock").count()
    }

    async fn read(&self, key: &Key, range: Range<u64>) -> Result<Bytes, Error> {
        collect(self.cache.read(key, range, Some(&digest(key))).await?.expect("is there")).await
    }
}

async fn open(folder: &TempDir, inner: &Arc<Switched>, size_bytes: u64) -> NodeCache {
    let (dir, inner) = (folder.path().join("cache"), Arc::clone(inner) as Store);
    NodeCache::open(inner, CacheConfig { dir, size_bytes }).await.unwrap()
}

/// The configuration for a folder of `bucket`.
fn in_bucket(seaweed: &Seaweed, bucket: &str, folder: &str) -> BucketConfig {
    BucketConfig {
        bucket: bucket.to_owned(),
        prefix: Prefix::below(folder).unwrap(),
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

async fn collect(stream: ByteStream) -> Result<Bytes, Error> {
    Ok(stream.try_collect::<Vec<Bytes>>().await?.concat().into())
}

fn blob_key(bytes: &Bytes) -> Key {
    key_of(&Digest::sha256(bytes))
}

/// A key for content. Only these tests know that it contains the digest.
fn key_of(digest: &Digest) -> Key {
    format!("blobs/{}/{}", digest.to_string().replace(':', "/"), uuid::Uuid::now_v7()).parse().unwrap()
}

/// The digest in a key from [`key_of`].
fn digest(key: &Key) -> Digest {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    format!("{}:{}", parts[1], parts[2]).parse().unwrap()
}

/// Bytes that differ by position and by seed.
fn pattern(seed: u8, size: usize) -> Bytes {
    (0..size).map(|at| (at % 251) as u8 ^ seed).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_cache_a_folder_does_what_every_store_must_do() {
    let folders = Mutex::new(Vec::new());
    entrepot_store::conformance::run(async || {
        let Fixture { folder, cache, .. } = Fixture::new().await;
        folders.lock().push(folder);
        Arc::new(cache) as Store
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_cache_a_bucket_does_what_every_store_must_do() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let (bucket, folder, next) = (seaweed.bucket().await, tempfile::tempdir().unwrap(), AtomicUsize::new(0));
    entrepot_store::conformance::run(async || {
        let name = format!("of-{}", next.fetch_add(1, Ordering::Relaxed));
        let config = in_bucket(seaweed, &bucket, &name);
        let inner = Arc::new(BucketStore::open(config, "node-1".parse().unwrap()).await.unwrap());
        let config = CacheConfig { dir: folder.path().join(name), size_bytes: 100 * MIB };
        Arc::new(NodeCache::open(inner, config).await.unwrap()) as Store
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let store: Store = Arc::new(LocalStore::open(folder.path().join("store")).unwrap());
    let config = |dir: &str, size_bytes| CacheConfig { dir: folder.path().join(dir), size_bytes };
    let error = NodeCache::open(store.clone(), config("file/cache", MIB)).await.err().unwrap();
    assert!(matches!(&error, OpenError::Io { .. }) && error.to_string().contains("file/cache"), "{error}");
    let _first = NodeCache::open(store.clone(), config("cache", MIB)).await.unwrap();
    let error = NodeCache::open(store.clone(), config("cache", MIB)).await.err().unwrap();
    assert!(matches!(&error, OpenError::Taken { .. }) && error.to_string().contains("cache"), "{error}");
    // A cache of size 0 needs no folder.
    NodeCache::open(store, config("file/cache", 0)).await.unwrap();
}
