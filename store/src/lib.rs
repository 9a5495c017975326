//! Object storage, which holds content and the records that say who may see it.
//!
//! There is one small trait, [`BlobStore`], and one test suite, [`conformance`], which every implementation passes. A
//! store does not know what its keys mean, except for the few that it needs for itself. Writers rely on put-once and
//! replace-if, but never on a conditional delete: a deletion replaces a record by a tombstone.

pub mod bucket;
pub mod cache;
pub mod conformance;
pub mod key;
pub mod local;
mod verify;

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
pub use verify::SMALL_BYTES;

/// A store that is shared by all its users.
pub type Store = Arc<dyn BlobStore>;

/// Content read from a store, in chunks of at most 1 MiB.
pub type ByteStream = BoxStream<'static, Result<Bytes, Error>>;

/// The largest object that [`BlobStore::get`] reads into memory.
pub const GET_LIMIT_BYTES: u64 = 16 * 1024 * 1024;

/// Identifies one value of an object. Equal versions mean equal bytes, and equal bytes may mean equal versions.
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

/// A small object, read as a whole.
#[derive(Clone, Debug)]
pub struct Object {
    pub bytes: Bytes,
    /// The version to pass to [`BlobStore::replace_if`].
    pub version: Version,
    /// When it was written, by the store's clock.
    pub modify_time: DateTime<Utc>,
    /// When it was read, by the same clock; `None` if the store does not say so.
    pub read_time: Option<DateTime<Utc>>,
}

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Key,
    pub size_bytes: u64,
    /// When it was written, according to the store's clock.
    pub modify_time: DateTime<Utc>,
    /// The version, as in [`BlobStore::get`]. `None` from Google Cloud Storage, whose lists have no versions, and for
    /// objects above 1 MiB in a local folder, which would have to be read for it.
    pub version: Option<Version>,
}

impl Entry {
    /// Distinguishes this value of the object from others as well as a list can: its version, or else its time and
    /// size.
    pub fn mark(&self) -> String {
        match &self.version {
            Some(version) => version.as_str().to_owned(),
            None => format!("{}-{}", self.modify_time.timestamp_micros(), self.size_bytes),
        }
    }
}

/// The result of [`BlobStore::delete_if`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone.
    Yes,
    /// It is at another version, or does not exist.
    No,
    /// The store does not support this; nothing was done.
    Unsupported,
}

/// Abilities that only some stores have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Whether [`BlobStore::delete_if`] does anything.
    pub deletes_if: bool,
    /// Whether a new object is listed at once.
    pub lists_at_once: bool,
}

/// Holds objects under keys.
///
/// A write is durable when it returns. If its future is dropped, the write may or may not happen, but never only
/// partly.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// Writes an object that must not exist yet. If several callers do this at once, one wins.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], which leaves the object as it is. It means that another writer has won, even if
    /// answers were lost during this call. But if an earlier call ended with [`Error::Away`], that other writer may
    /// have been the earlier call.
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error>;

    /// Writes an object that has a single owner, whether it exists or not. After [`Error::Away`] the owner must expect
    /// that older bytes arrive after newer ones.
    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error>;

    /// Writes an object if it is still at `expected`; `None` means that it must not exist.
    ///
    /// # Errors
    /// [`Error::Conflict`], which leaves the object as it is. After network trouble it may also mean that this write
    /// happened and that the object has been replaced since.
    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error>;

    /// Reads a small object.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above [`GET_LIMIT_BYTES`].
    async fn get(&self, key: &Key) -> Result<Option<Object>, Error>;

    /// Reads small content whose bytes hash to `digest`.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above [`GET_LIMIT_BYTES`]; [`Error::Damaged`] if the bytes hash to something else, even when
    /// they are read a second time.
    async fn get_content(&self, key: &Key, digest: &Digest) -> Result<Option<Bytes>, Error> {
        verify::small(key, digest, async || Ok(self.get(key).await?.map(|object| object.bytes))).await
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

    /// The size of an object that is available on this machine, without a request to the store, which may have deleted it
    /// since. It is for use while the store is away, and never for code that decides what is written.
    fn size_at_hand(&self, _key: &Key) -> Option<u64> {
        None
    }

    /// Reads a range of an object as it was when this call returned. If the object is deleted or replaced meanwhile,
    /// the stream continues or fails, but never mixes two objects.
    ///
    /// The range is cut at the object's end, so the stream may be shorter than asked for, or empty.
    ///
    /// If the object holds content, `digest` is the digest of the whole object. A reader of the whole object then never
    /// gets the last bytes of wrong content: the stream ends with an error before them. Content of at most
    /// [`SMALL_BYTES`] is verified before its first byte is returned.
    ///
    /// # Errors
    /// [`Error::Damaged`], also in the stream, if content is known to hash to something else, even when it is read a
    /// second time.
    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error>;

    /// At most `limit` objects below `prefix`, at any depth, in the byte order of their keys, and only those after
    /// `start_after`.
    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Entry>, Error>;

    /// Deletes an object. If it does not exist, that is a success.
    async fn delete(&self, key: &Key) -> Result<(), Error>;

    /// Deletes an object if it is still at `version`, provided that [`Abilities::deletes_if`] is true. After network
    /// trouble, [`Deleted::No`] may also mean that this call has deleted it.
    async fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error>;

    /// The abilities of this store. They do not change while it is open.
    fn abilities(&self) -> Abilities;

    /// Begins to write an object in parts. Nothing is visible under `key` before [`Upload::complete`].
    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error>;

    /// Aborts the uploads that `owner` has begun and left behind, and returns how many there were. Uploads that are
    /// under way in this process are left alone; no other process of this owner may have any.
    async fn abort_uploads(&self, owner: &ResourceId) -> Result<usize, Error>;
}

/// An object that is being written. If this is dropped, nothing remains, at the latest after
/// [`BlobStore::abort_uploads`] or when a local store is opened again.
#[async_trait]
pub trait Upload: Send {
    /// Appends bytes.
    ///
    /// # Errors
    /// Also if the future of an earlier part was dropped, which makes the upload fail.
    async fn part(&mut self, bytes: Bytes) -> Result<(), Error>;

    /// Makes the object visible, complete and durable. If it holds content, `digest` is the digest of its bytes.
    async fn complete(self: Box<Self>, digest: Option<&Digest>) -> Result<(), Error>;

    async fn abort(self: Box<Self>) -> Result<(), Error>;
}

/// Why a store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A put-once found the object there.
    #[error("the object exists already")]
    AlreadyExists,
    /// A replace-if found another version, or none.
    #[error("the object was changed meanwhile")]
    Conflict,
    /// Too large to be read at once.
    #[error("the object `{key}` has {size_bytes} bytes, at most {GET_LIMIT_BYTES} are read at once")]
    TooLarge {
        key: Key,
        size_bytes: u64,
        /// What a conditional write expects, if the store knows it.
        version: Option<Version>,
    },
    /// The object is not a valid record.
    #[error("the record `{key}` cannot be read")]
    BadRecord { key: Key, source: serde_json::Error },
    /// The object does not have the expected content.
    #[error("the object `{key}` does not hash to `{digest}`")]
    Damaged {
        key: Key,
        /// The expected digest.
        digest: Digest,
    },
    /// The store could not be reached or failed (disk or network). A write that ended like this may have happened, or
    /// may still happen for a while.
    #[error("the store is away")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Whether another writer was faster, so that the caller should read and decide again.
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::AlreadyExists | Self::Conflict => true,
            Self::TooLarge { .. } | Self::BadRecord { .. } | Self::Damaged { .. } | Self::Away(_) => false,
        }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> bool {
        match self {
            Self::Away(_) => true,
            Self::AlreadyExists
            | Self::Conflict
            | Self::TooLarge { .. }
            | Self::BadRecord { .. }
            | Self::Damaged { .. } => false,
        }
    }
}
