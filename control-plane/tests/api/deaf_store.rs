//! A store whose answers to conditional writes get lost, as over a network: the write happens, and its repetition
//! conflicts with it. It can also be stalled, and it counts reads and lists of repositories.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use entrepot_domain::{Digest, ResourceId};
use entrepot_store::{
    Abilities, BlobStore, ByteStream, Deleted, Entry, Error, Key, Object, Prefix, Store, Upload, Version,
};
use tokio::sync::RwLock;

pub(crate) struct DeafStore {
    pub(crate) store: Store,
    /// How many answers will be lost.
    pub(crate) lost: AtomicUsize,
    /// While this is locked for writing, records of `demo/app` cannot be read.
    pub(crate) gate: RwLock<()>,
    /// How many reads wait for that lock.
    pub(crate) waiting: AtomicUsize,
    /// How many records of repositories were read, plus how many lists of them.
    pub(crate) reads: AtomicUsize,
    pub(crate) lists: AtomicUsize,
}

impl DeafStore {
    pub(crate) fn new(store: Store) -> Self {
        let (lost, gate) = (AtomicUsize::new(0), RwLock::default());
        Self { store, lost, gate, waiting: AtomicUsize::new(0), reads: AtomicUsize::new(0), lists: AtomicUsize::new(0) }
    }
}

#[tonic::async_trait]
impl BlobStore for DeafStore {
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.store.put_once(key, bytes).await
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.store.put(key, bytes).await
    }

    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error> {
        let version = self.store.replace_if(key, expected, bytes).await?;
        let lost = self.lost.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lost| lost.checked_sub(1));
        if lost.is_ok() { Err(Error::Conflict) } else { Ok(version) }
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        if key.as_str().contains("demo/app") {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            drop(self.gate.read().await);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        if key.as_str().starts_with("repositories/") {
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
        self.store.get(key).await
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        self.store.head(key).await
    }

    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error> {
        self.store.read(key, range, digest).await
    }

    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Entry>, Error> {
        if prefix.as_str().starts_with("repositories/") {
            self.lists.fetch_add(1, Ordering::Relaxed);
        }
        self.store.list(prefix, start_after, limit).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.store.delete(key).await
    }

    async fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error> {
        self.store.delete_if(key, version).await
    }

    fn abilities(&self) -> Abilities {
        self.store.abilities()
    }

    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error> {
        self.store.begin_upload(key).await
    }

    async fn abort_uploads(&self, owner: &ResourceId) -> Result<usize, Error> {
        self.store.abort_uploads(owner).await
    }
}
