//! A folder as a store that notes what is written, refuses lists while a test asks for records, and loses answers; and a
//! writer whose clock stands still.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName, ResourceId};
use entrepot_records::commit::{Change, Writer};
use entrepot_records::layout::{self, Parsed};
use entrepot_records::{Content, PointerRecord, read, replace};
use entrepot_store::{
    Abilities, BlobStore, ByteStream, Deleted, Entry, Error, Key, LocalStore, Object, Prefix, Upload, Version,
};
use tempfile::TempDir;
use uuid::Uuid;

/// The time of these tests.
pub(crate) static NOW: LazyLock<DateTime<Utc>> = LazyLock::new(|| "2026-11-28T12:00:00Z".parse().unwrap());

pub(crate) struct Ground {
    store: LocalStore,
    writes: Mutex<Vec<&'static str>>,
    loses_answer: AtomicBool,
    _folder: TempDir,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path()).unwrap();
        Self { store, writes: Mutex::default(), loses_answer: AtomicBool::new(false), _folder: folder }
    }

    /// New content with these bytes.
    pub(crate) async fn content(&self, bytes: &'static [u8]) -> Content {
        let object = layout::content(Uuid::now_v7());
        self.store.put_once(&object, Bytes::from_static(bytes)).await.unwrap();
        Content { object, size_bytes: bytes.len() as u64 }
    }

    /// All content.
    pub(crate) async fn contents(&self) -> Vec<Key> {
        let listed = self.store.list(&layout::contents_prefix(), None, 100).await.unwrap();
        listed.into_iter().map(|entry| entry.key).collect()
    }

    /// A live pointer to content.
    pub(crate) fn live(&self, content: &Content) -> PointerRecord {
        PointerRecord::new(content.object.clone(), content.size_bytes, *NOW)
    }

    /// Sets a pointer.
    pub(crate) async fn point(&self, digest: &Digest, record: PointerRecord) {
        let key = layout::pointer(digest);
        let version = self.store.get(&key).await.unwrap().map(|object| object.version);
        replace(&self.store, &key, version.as_ref(), &record).await.unwrap();
    }

    /// The pointer.
    pub(crate) async fn pointer(&self, digest: &Digest) -> PointerRecord {
        read(&self.store, &layout::pointer(digest)).await.unwrap().unwrap().0
    }

    /// What was written, in its order.
    pub(crate) fn writes(&self) -> Vec<&'static str> {
        self.writes.lock().unwrap().clone()
    }

    pub(crate) fn forget_writes(&self) {
        self.writes.lock().unwrap().clear();
    }

    /// The next conditional write does not happen, as far as anybody knows.
    pub(crate) fn lose_answer_to_next_replace(&self) {
        self.loses_answer.store(true, Ordering::Relaxed);
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "any other key fails the test")]
    fn wrote(&self, key: &Key) {
        let what = match layout::parse(key).unwrap() {
            Parsed::Content { .. } => "content",
            Parsed::Pointer { .. } => "pointer",
            Parsed::Repository { .. } => "repository",
            Parsed::ManifestLink { .. } => "manifest link",
            Parsed::BlobLink { .. } => "blob link",
            Parsed::Referrer { .. } => "referrer",
            Parsed::Tag { .. } => "tag",
            other => panic!("nobody writes {other:?}"),
        };
        self.writes.lock().unwrap().push(what);
    }
}

#[async_trait]
impl Writer for Ground {
    fn now(&self) -> DateTime<Utc> {
        *NOW
    }

    async fn record(&self, _: &RepositoryName, _: Uuid, changes: Vec<Change>) -> Result<(), Error> {
        assert!(!changes.is_empty());
        self.writes.lock().unwrap().push("event");
        Ok(())
    }
}

#[async_trait]
impl BlobStore for Ground {
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        let version = self.store.put_once(key, bytes).await?;
        self.wrote(key);
        Ok(version)
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.store.put(key, bytes).await
    }

    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error> {
        if self.loses_answer.swap(false, Ordering::Relaxed) {
            return Err(Error::Away("the answer was lost".into()));
        }
        let version = self.store.replace_if(key, expected, bytes).await?;
        self.wrote(key);
        Ok(version)
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        self.store.get(key).await
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        self.store.head(key).await
    }

    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error> {
        self.store.read(key, range, digest).await
    }

    async fn list(&self, prefix: &Prefix, _: Option<&Key>, _: usize) -> Result<Vec<Entry>, Error> {
        panic!("nobody lists `{prefix}` on the way of a fill")
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
