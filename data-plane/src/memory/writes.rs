//! Writes by this node itself.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use entrepot_domain::{Digest, ResourceId};
use entrepot_records::layout;
use entrepot_store::{
    Abilities, BlobStore, ByteStream, Deleted, Entry, Error, Key, Object, Prefix, Store, Upload, Version,
};

use super::Memory;
use super::words::is_below;

/// A store whose writer stops relying on what it holds of the records that it writes, whatever happens to the write.
pub(crate) struct Forgetful {
    inner: Store,
    memory: Memory,
    records: Prefix,
}

/// A write that is under way. If this is dropped, the write may have happened.
struct Writing<'a> {
    memory: &'a Memory,
    key: &'a Key,
    is_record: bool,
}

impl Writing<'_> {
    fn done(&self, bytes: &Bytes) {
        if self.is_record {
            self.memory.wrote(self.key, bytes);
        }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if self.is_record {
            self.memory.may_have_written(self.key);
        }
    }
}

impl Forgetful {
    pub(crate) fn new(inner: Store, memory: Memory) -> Self {
        Self { inner, memory, records: layout::repositories_prefix() }
    }

    fn begin_write<'a>(&'a self, key: &'a Key) -> Writing<'a> {
        Writing { memory: &self.memory, key, is_record: is_below(key, self.records.as_str()) }
    }
}

#[async_trait]
impl BlobStore for Forgetful {
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        let writing = self.begin_write(key);
        let version = self.inner.put_once(key, bytes.clone()).await?;
        writing.done(&bytes);
        Ok(version)
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        let writing = self.begin_write(key);
        let version = self.inner.put(key, bytes.clone()).await?;
        writing.done(&bytes);
        Ok(version)
    }

    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error> {
        let writing = self.begin_write(key);
        let version = self.inner.replace_if(key, expected, bytes.clone()).await?;
        writing.done(&bytes);
        Ok(version)
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        self.inner.get(key).await
    }

    async fn get_content(&self, key: &Key, digest: &Digest) -> Result<Option<Bytes>, Error> {
        self.inner.get_content(key, digest).await
    }

    async fn put_content(&self, key: &Key, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        self.inner.put_content(key, digest, bytes).await
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        self.inner.head(key).await
    }

    fn size_at_hand(&self, key: &Key) -> Option<u64> {
        self.inner.size_at_hand(key)
    }

    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error> {
        self.inner.read(key, range, digest).await
    }

    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Entry>, Error> {
        self.inner.list(prefix, start_after, limit).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        let _writing = self.begin_write(key);
        self.inner.delete(key).await?;
        self.memory.forget(key);
        Ok(())
    }

    async fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error> {
        let _writing = self.begin_write(key);
        self.inner.delete_if(key, version).await
    }

    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error> {
        self.inner.begin_upload(key).await
    }

    async fn abort_uploads(&self, owner: &ResourceId) -> Result<usize, Error> {
        self.inner.abort_uploads(owner).await
    }
}
