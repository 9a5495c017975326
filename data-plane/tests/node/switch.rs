//! A store that can be switched off or made slow, and that remembers whose uploads were aborted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use entrepot_domain::{Digest, ResourceId};
use entrepot_store::{
    Abilities, BlobStore, ByteStream, Deleted, Entry, Error, Key, LocalStore, Object, Prefix, Upload, Version,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// A local store behind a switch.
pub(crate) struct Switch {
    local: LocalStore,
    away: AtomicBool,
    aborted: Mutex<Vec<String>>,
    /// The object whose next reader must wait.
    held: Mutex<Option<(Key, Held)>>,
    /// The number of requests by kind and folder.
    asked: Mutex<BTreeMap<(&'static str, String), usize>>,
}

/// Signals that a reader waits, and when it may continue.
type Held = (oneshot::Sender<()>, oneshot::Receiver<()>);

impl Switch {
    pub(crate) fn open(folder: &Path) -> Self {
        let local = LocalStore::open(folder).unwrap();
        Self {
            local,
            away: AtomicBool::new(false),
            aborted: Mutex::default(),
            held: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    /// Switches it off or on.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// Stops the next reader of this object: the first end signals that it waits, and the second lets it continue.
    pub(crate) fn hold(&self, key: Key) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((waits, waiting), (release, released)) = (oneshot::channel(), oneshot::channel());
        *self.held.lock() = Some((key, (waits, released)));
        (waiting, release)
    }

    /// The owners whose uploads were aborted so far.
    pub(crate) fn aborted(&self) -> Vec<String> {
        self.aborted.lock().clone()
    }

    /// The number of requests since the last call, by kind and folder.
    pub(crate) fn take_asked(&self) -> BTreeMap<(&'static str, String), usize> {
        std::mem::take(&mut *self.asked.lock())
    }

    /// Counts a request below `path`.
    fn count(&self, what: &'static str, path: &str) -> Result<&LocalStore, Error> {
        let folder = path.split('/').next().unwrap_or_default().to_owned();
        *self.asked.lock().entry((what, folder)).or_default() += 1;
        self.there()
    }

    fn there(&self) -> Result<&LocalStore, Error> {
        if self.away.load(Ordering::SeqCst) { Err(Error::Away("switched off".into())) } else { Ok(&self.local) }
    }
}

#[async_trait::async_trait]
impl BlobStore for Switch {
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.count("put_once", key.as_str())?.put_once(key, bytes).await
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.count("put", key.as_str())?.put(key, bytes).await
    }

    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error> {
        self.count("replace_if", key.as_str())?.replace_if(key, expected, bytes).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        let held = self.held.lock().take_if(|(held, _)| held == key);
        if let Some((_, (waits, released))) = held {
            let _ = waits.send(());
            let _ = released.await;
        }
        self.count("get", key.as_str())?.get(key).await
    }

    async fn get_content(&self, key: &Key, digest: &Digest) -> Result<Option<Bytes>, Error> {
        self.count("get", key.as_str())?.get_content(key, digest).await
    }

    async fn put_content(&self, key: &Key, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        self.count("put", key.as_str())?.put_content(key, digest, bytes).await
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        self.count("head", key.as_str())?.head(key).await
    }

    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error> {
        self.count("read", key.as_str())?.read(key, range, digest).await
    }

    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Entry>, Error> {
        self.count("list", prefix.as_str())?.list(prefix, start_after, limit).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.count("delete", key.as_str())?.delete(key).await
    }

    async fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error> {
        self.count("delete_if", key.as_str())?.delete_if(key, version).await
    }

    fn abilities(&self) -> Abilities {
        self.local.abilities()
    }

    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error> {
        self.count("begin_upload", key.as_str())?.begin_upload(key).await
    }

    async fn abort_uploads(&self, owner: &ResourceId) -> Result<usize, Error> {
        self.aborted.lock().push(owner.to_string());
        self.count("list", "uploads")?.abort_uploads(owner).await
    }
}
