//! A store that can be told to fail, and counts how often it was asked.

use std::collections::HashMap;
use std::future::pending;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use entrepot_domain::{Digest, ResourceId};
use entrepot_store::{
    Abilities, BlobStore, ByteStream, Deleted, Entry, Error, Key, Object, Prefix, Store, Upload, Version,
};
use parking_lot::Mutex;

/// What a call to it comes to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    Works,
    Away,
    Hangs,
    /// It begins late.
    Slow(Duration),
}

pub(crate) struct Switched {
    inner: Store,
    mode: Mutex<Mode>,
    calls: Mutex<HashMap<&'static str, usize>>,
}

impl Switched {
    pub(crate) fn new(inner: Store) -> Self {
        Self { inner, mode: Mutex::new(Mode::Works), calls: Mutex::default() }
    }

    pub(crate) fn switch(&self, mode: Mode) {
        *self.mode.lock() = mode;
    }

    /// How often this was called since this was asked last.
    pub(crate) fn calls(&self, call: &str) -> usize {
        self.calls.lock().remove(call).unwrap_or(0)
    }

    async fn pass(&self, call: &'static str) -> Result<&Store, Error> {
        *self.calls.lock().entry(call).or_default() += 1;
        let mode = *self.mode.lock();
        match mode {
            Mode::Works => Ok(&self.inner),
            Mode::Away => Err(Error::Away("it was told to be".into())),
            Mode::Hangs => pending().await,
            Mode::Slow(time) => {
                tokio::time::sleep(time).await;
                Ok(&self.inner)
            }
        }
    }
}

#[async_trait]
impl BlobStore for Switched {
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.pass("put_once").await?.put_once(key, bytes).await
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.pass("put").await?.put(key, bytes).await
    }

    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error> {
        self.pass("replace_if").await?.replace_if(key, expected, bytes).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        self.pass("get").await?.get(key).await
    }

    async fn get_content(&self, key: &Key, digest: &Digest) -> Result<Option<Bytes>, Error> {
        self.pass("get_content").await?.get_content(key, digest).await
    }

    async fn put_content(&self, key: &Key, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        self.pass("put_content").await?.put_content(key, digest, bytes).await
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        self.pass("head").await?.head(key).await
    }

    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error> {
        self.pass("read").await?.read(key, range, digest).await
    }

    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Entry>, Error> {
        self.pass("list").await?.list(prefix, start_after, limit).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.pass("delete").await?.delete(key).await
    }

    async fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error> {
        self.pass("delete_if").await?.delete_if(key, version).await
    }

    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error> {
        self.pass("begin_upload").await?.begin_upload(key).await
    }

    async fn abort_uploads(&self, owner: &ResourceId) -> Result<usize, Error> {
        self.pass("abort_uploads").await?.abort_uploads(owner).await
    }
}
