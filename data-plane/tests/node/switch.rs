//! A store that can be switched off, and that remembers whose uploads were given up.

use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use entrepot_domain::ResourceId;
use entrepot_store::{BlobStore, ByteStream, Error, Key, LocalStore, Object, Prefix, Upload, Version};

/// A local store behind a switch.
pub(crate) struct Switch {
    local: LocalStore,
    away: AtomicBool,
    aborted: Mutex<Vec<String>>,
}

impl Switch {
    pub(crate) fn open(folder: &Path) -> Self {
        let local = LocalStore::open(folder).unwrap();
        Self { local, away: AtomicBool::new(false), aborted: Mutex::default() }
    }

    /// Goes away, or comes back.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// The owners whose uploads were given up so far.
    pub(crate) fn aborted(&self) -> Vec<String> {
        self.aborted.lock().unwrap().clone()
    }

    fn there(&self) -> Result<&LocalStore, Error> {
        if self.away.load(Ordering::SeqCst) { Err(Error::Away("switched off".into())) } else { Ok(&self.local) }
    }
}

#[async_trait::async_trait]
impl BlobStore for Switch {
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.there()?.put_once(key, bytes).await
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.there()?.put(key, bytes).await
    }

    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error> {
        self.there()?.replace_if(key, expected, bytes).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        self.there()?.get(key).await
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        self.there()?.head(key).await
    }

    async fn read(&self, key: &Key, range: Range<u64>) -> Result<Option<ByteStream>, Error> {
        self.there()?.read(key, range).await
    }

    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Key>, Error> {
        self.there()?.list(prefix, start_after, limit).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.there()?.delete(key).await
    }

    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error> {
        self.there()?.begin_upload(key).await
    }

    async fn abort_uploads(&self, owner: &ResourceId) -> Result<usize, Error> {
        self.aborted.lock().unwrap().push(owner.to_string());
        self.there()?.abort_uploads(owner).await
    }
}
