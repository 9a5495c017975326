//! A store that can be switched off, that can be slow, and that remembers whose uploads were given up.

use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use entrepot_domain::{Digest, ResourceId};
use entrepot_store::{BlobStore, ByteStream, Error, Key, LocalStore, Object, Prefix, Upload, Version};
use tokio::sync::oneshot;

/// A local store behind a switch.
pub(crate) struct Switch {
    local: LocalStore,
    away: AtomicBool,
    aborted: Mutex<Vec<String>>,
    /// The object whose next reader waits.
    held: Mutex<Option<(Key, Held)>>,
}

/// Tells that a reader waits, and when it may go on.
type Held = (oneshot::Sender<()>, oneshot::Receiver<()>);

impl Switch {
    pub(crate) fn open(folder: &Path) -> Self {
        let local = LocalStore::open(folder).unwrap();
        Self { local, away: AtomicBool::new(false), aborted: Mutex::default(), held: Mutex::default() }
    }

    /// Goes away, or comes back.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// Holds the next one who reads this object: the first end tells that one waits, the second lets it go on.
    pub(crate) fn hold(&self, key: Key) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((waits, waiting), (release, released)) = (oneshot::channel(), oneshot::channel());
        *self.held.lock().unwrap() = Some((key, (waits, released)));
        (waiting, release)
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
        let held = self.held.lock().unwrap().take_if(|(held, _)| held == key);
        if let Some((_, (waits, released))) = held {
            let _ = waits.send(());
            let _ = released.await;
        }
        self.there()?.get(key).await
    }

    async fn get_content(&self, key: &Key, digest: &Digest) -> Result<Option<Bytes>, Error> {
        self.there()?.get_content(key, digest).await
    }

    async fn put_content(&self, key: &Key, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        self.there()?.put_content(key, digest, bytes).await
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        self.there()?.head(key).await
    }

    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error> {
        self.there()?.read(key, range, digest).await
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
