//! A folder as a store that records all writes, refuses lists while a test reads records, and can lose answers; and
//! nodes that write. The clocks of both stand still unless a test moves them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

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
use parking_lot::Mutex;
use tempfile::TempDir;
use uuid::Uuid;

/// The current time in these tests.
pub(crate) static NOW: LazyLock<DateTime<Utc>> = LazyLock::new(|| "2026-11-28T12:00:00Z".parse().unwrap());

pub(crate) struct Fixture {
    store: LocalStore,
    writes: Mutex<Vec<&'static str>>,
    loses_answer: AtomicBool,
    hangs: AtomicBool,
    loses_heads: AtomicBool,
    told: Mutex<Vec<Key>>,
    /// The time of the nodes.
    now: Mutex<DateTime<Utc>>,
    /// The time of the store, and when what was written, by that.
    store_now: Mutex<DateTime<Utc>>,
    written: Mutex<HashMap<Key, DateTime<Utc>>>,
    _folder: TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path()).unwrap();
        let [loses_answer, hangs, loses_heads] = [(); 3].map(|()| AtomicBool::new(false));
        let [now, store_now] = [*NOW, *NOW].map(Mutex::new);
        let (writes, told, written) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { store, writes, loses_answer, hangs, loses_heads, told, now, store_now, written, _folder: folder }
    }

    /// From now on the nodes' clocks say this.
    pub(crate) fn set_node_time(&self, now: DateTime<Utc>) {
        *self.now.lock() = now;
    }

    /// From now on the store's clock says this.
    pub(crate) fn set_store_time(&self, now: DateTime<Utc>) {
        *self.store_now.lock() = now;
    }

    /// New content with these bytes.
    pub(crate) async fn content(&self, bytes: &'static [u8]) -> Content {
        let object = layout::content(Uuid::now_v7());
        self.store.put_once(&object, Bytes::from_static(bytes)).await.unwrap();
        Content { object, size_bytes: bytes.len() as u64 }
    }

    pub(crate) async fn contents(&self) -> Vec<Key> {
        let listed = self.store.list(&layout::contents_prefix(), None, 100).await.unwrap();
        listed.into_iter().map(|entry| entry.key).collect()
    }

    pub(crate) fn live(&self, content: &Content) -> PointerRecord {
        PointerRecord::new(content.object.clone(), content.size_bytes, *NOW)
    }

    /// Sets a pointer.
    pub(crate) async fn point(&self, digest: &Digest, record: PointerRecord) {
        let key = layout::pointer(digest);
        let version = self.store.get(&key).await.unwrap().map(|object| object.version);
        replace(&self.store, &key, version.as_ref(), &record).await.unwrap();
        self.wrote_at(&key);
    }

    pub(crate) async fn pointer(&self, digest: &Digest) -> PointerRecord {
        read(&self.store, &layout::pointer(digest)).await.unwrap().unwrap().0
    }

    /// The writes so far, in order.
    pub(crate) fn writes(&self) -> Vec<&'static str> {
        self.writes.lock().clone()
    }

    pub(crate) fn forget_writes(&self) {
        self.writes.lock().clear();
    }

    /// The next conditional write does not happen, and its caller does not learn that.
    pub(crate) fn lose_answer_to_next_replace(&self) {
        self.loses_answer.store(true, Ordering::Relaxed);
    }

    /// Sets whether answers that say whether an object exists are lost.
    pub(crate) fn lose_heads(&self, loses: bool) {
        self.loses_heads.store(loses, Ordering::Relaxed);
    }

    /// The next write of a repository's record happens, but its caller waits for ever.
    pub(crate) fn hang_at_next_repository(&self) {
        self.hangs.store(true, Ordering::Relaxed);
    }

    /// The keys that all nodes were told to forget.
    pub(crate) fn told(&self) -> Vec<Key> {
        self.told.lock().clone()
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "any other key fails the test")]
    fn wrote(&self, key: &Key) {
        self.wrote_at(key);
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
        self.writes.lock().push(what);
    }

    fn wrote_at(&self, key: &Key) {
        self.written.lock().insert(key.clone(), *self.store_now.lock());
    }
}

#[async_trait]
impl Writer for Fixture {
    fn now(&self) -> DateTime<Utc> {
        *self.now.lock()
    }

    async fn record(&self, _: &RepositoryName, _: Uuid, changes: Vec<Change>) -> Result<(), Error> {
        assert!(!changes.is_empty());
        self.writes.lock().push("event");
        Ok(())
    }

    fn on_replaced(&self, key: &Key) {
        self.told.lock().push(key.clone());
    }
}

#[async_trait]
impl BlobStore for Fixture {
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
        let is_repository = matches!(layout::parse(key), Some(Parsed::Repository { .. }));
        if is_repository && self.hangs.swap(false, Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Ok(version)
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        let Some(object) = self.store.get(key).await? else { return Ok(None) };
        let modify_time = self.written.lock().get(key).copied().unwrap_or(*NOW);
        Ok(Some(Object { modify_time, read_time: Some(*self.store_now.lock()), ..object }))
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        if self.loses_heads.load(Ordering::Relaxed) {
            return Err(Error::Away("the answer was lost".into()));
        }
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
