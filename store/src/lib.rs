//! Object storage: where content lives, and the records that say what may be shown of it.
//!
//! One small trait, [`BlobStore`], and one suite, [`conformance`], that every implementation passes. A store does not
//! know what its keys mean, except for those that it writes itself while it works. Writers rely on put-once and
//! replace-if, never on a conditional delete: a deletion is a replacement by a tombstone.

pub mod bucket;
pub mod cache;
pub mod conformance;
pub mod key;
pub mod local;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, ResourceId};
use futures_util::stream::BoxStream;

pub use bucket::{BucketConfig, BucketStore};
pub use cache::{CacheConfig, NodeCache};
pub use key::{Key, KeyError, Prefix};
pub use local::{LocalStore, OpenError};

/// A store that is shared by all who use it.
pub type Store = Arc<dyn BlobStore>;

/// Content as it comes out of a store, in chunks of at most 1 MiB.
pub type ByteStream = BoxStream<'static, Result<Bytes, Error>>;

/// The largest object that [`BlobStore::get`] reads into memory.
pub const GET_LIMIT_BYTES: u64 = 16 * 1024 * 1024;

/// Which of an object's values one has seen; equal versions mean equal bytes, and equal bytes may mean equal versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(String);

impl Version {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A small object, read whole.
#[derive(Clone, Debug)]
pub struct Object {
    /// What it holds.
    pub bytes: Bytes,
    /// What [`BlobStore::replace_if`] wants to be told.
    pub version: Version,
}

/// What a list says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is called.
    pub key: Key,
    /// How large it is.
    pub size_bytes: u64,
    /// When it was written, by the store's clock.
    pub modify_time: DateTime<Utc>,
    /// The version that [`BlobStore::get`] gives. `None` from Google Cloud Storage, whose list does not say it, and for
    /// objects above 1 MiB in a local folder, which would have to be read for it.
    pub version: Option<Version>,
}

/// What came of [`BlobStore::delete_if`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone.
    Yes,
    /// It is at another version, or was not there.
    No,
    /// The store cannot do that; nothing was done.
    Unsupported,
}

/// What some stores can and others cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Whether [`BlobStore::delete_if`] does anything.
    pub deletes_if: bool,
    /// Whether what was written is listed at once.
    pub lists_at_once: bool,
}

/// Holds objects under keys.
///
/// A write is durable when it returns. One whose future is dropped may or may not happen, but never by half.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// Writes an object that does not exist yet; of several at once, one wins.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], which leaves the object as it is. Within one call that is said only if another writer
    /// has won, even if answers were lost on the way; after a call that ended with [`Error::Away`] the other writer may
    /// have been that call.
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error>;

    /// Writes an object that has one owner, whether it exists or not. After [`Error::Away`] the owner must reckon with
    /// older bytes that arrive behind newer ones.
    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error>;

    /// Writes an object if it is still at `expected`; `None` means that it must not exist.
    ///
    /// # Errors
    /// [`Error::Conflict`], which leaves the object as it is. After trouble on the way to the store it may also mean
    /// that the object was written and has been replaced since.
    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error>;

    /// Reads a small object.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above [`GET_LIMIT_BYTES`].
    async fn get(&self, key: &Key) -> Result<Option<Object>, Error>;

    /// Reads small content whose bytes hash to `digest`, as the caller knows from a record. A cache keeps only bytes that
    /// do; whether the bytes that come back do is for the caller to check.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above [`GET_LIMIT_BYTES`].
    async fn get_content(&self, key: &Key, _digest: &Digest) -> Result<Option<Bytes>, Error> {
        Ok(self.get(key).await?.map(|object| object.bytes))
    }

    /// Writes small content whose bytes hash to `digest`. Otherwise like [`BlobStore::put_once`].
    ///
    /// # Errors
    /// Those of [`BlobStore::put_once`].
    async fn put_content(&self, key: &Key, _digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        self.put_once(key, bytes).await.map(drop)
    }

    /// The size of an object in bytes.
    async fn head(&self, key: &Key) -> Result<Option<u64>, Error>;

    /// Reads a range of an object as it was when this returned. If it is deleted or replaced meanwhile, the stream goes
    /// on or fails, and never mixes two objects.
    ///
    /// What of the range lies beyond the end is left out, so the stream may be shorter than asked for, or empty.
    ///
    /// `digest` is what the bytes of the whole object hash to, if it holds content; as for [`BlobStore::get_content`].
    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error>;

    /// At most `limit` objects below `prefix`, however deep, in the byte order of their keys, those behind `start_after`
    /// only.
    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Entry>, Error>;

    /// Deletes an object; that it does not exist is success.
    async fn delete(&self, key: &Key) -> Result<(), Error>;

    /// Deletes an object if it is still at `version`, where [`Abilities::deletes_if`] says that the store can do that.
    /// After trouble on the way to the store, [`Deleted::No`] may also mean that this call has deleted it.
    async fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error>;

    /// What this store can. It does not change while the store is open.
    fn abilities(&self) -> Abilities;

    /// Begins to write an object in parts. Nothing is visible under `key` before [`Upload::complete`].
    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error>;

    /// Gives up the uploads that `owner` has begun and left behind, and says how many there were. Those that are under
    /// way in this process are left alone; another process of this owner must not have any.
    async fn abort_uploads(&self, owner: &ResourceId) -> Result<usize, Error>;
}

/// An object on its way into a store. Dropped, it leaves nothing behind, at the latest after
/// [`BlobStore::abort_uploads`] or when a local store is opened again.
#[async_trait]
pub trait Upload: Send {
    /// Appends bytes.
    ///
    /// # Errors
    /// Also if the future of an earlier part was dropped: the upload has come to nothing.
    async fn part(&mut self, bytes: Bytes) -> Result<(), Error>;

    /// Makes the object visible, whole and durable. `digest` is what its bytes hash to, if it holds content.
    async fn complete(self: Box<Self>, digest: Option<&Digest>) -> Result<(), Error>;

    /// Gives the upload up.
    async fn abort(self: Box<Self>) -> Result<(), Error>;
}

/// Why a store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A put-once found the object there.
    #[error("the object exists already")]
    AlreadyExists,
    /// A replace-if found another version, or none.
    #[error("the object was changed meanwhile")]
    Conflict,
    /// Too large to be read whole.
    #[error("the object `{key}` has {size_bytes} bytes, at most {GET_LIMIT_BYTES} are read at once")]
    TooLarge {
        /// Which object.
        key: Key,
        /// How large it is.
        size_bytes: u64,
    },
    /// The object is not the record that it should be.
    #[error("the record `{key}` cannot be read")]
    BadRecord {
        /// Which record.
        key: Key,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The store could not be reached or did not do its work: disk or network. A write that ended so may have happened,
    /// or may still happen for a while.
    #[error("the store is away")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Whether somebody else was faster: read again and decide again.
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::AlreadyExists | Self::Conflict => true,
            Self::TooLarge { .. } | Self::BadRecord { .. } | Self::Away(_) => false,
        }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> bool {
        match self {
            Self::Away(_) => true,
            Self::AlreadyExists | Self::Conflict | Self::TooLarge { .. } | Self::BadRecord { .. } => false,
        }
    }
}
