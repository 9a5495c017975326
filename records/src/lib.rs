//! The store's records: where they are, what they contain, and the one order in which they are written. Both planes
//! write records only through this crate.
//!
//! All keys are listed in [`layout`]. Content has names that say nothing about it; the [pointer](PointerRecord) of a
//! digest names the object with the content, and a [link](ManifestLink) lets a repository show it. Code that needs
//! content makes a [claim](Claim) on it. Everything is written in the order that [`commit`] describes.
//!
//! A fleet may run two releases at a time. So a rewritten record keeps the fields and the [words](Word) that this
//! release does not know; unknown words grant nothing and create nothing.

pub mod claim;
pub mod commit;
mod damage;
mod draft;
pub mod layout;
mod layout_version;
mod link;
mod list;
pub mod pointer;
mod repository;
mod tag;
pub mod tags;
pub mod tombstone;
mod word;

use bytes::Bytes;
use entrepot_store::{BlobStore, Error, Key, Version};
use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};
use uuid::Uuid;

pub use claim::{Claim, Claimed};
pub use damage::DamageRecord;
pub use layout_version::{LayoutError, check_layout};
pub use link::{BlobLink, LISTED_CHILDREN, ManifestLink, Named};
pub use list::{ListRecord, ReferrerRecord, SnapshotHead};
pub use pointer::{Content, PointerRecord, PointerState};
pub use repository::{Kind, Origin, Provenance, RepositoryRecord, SettingsRecord, State};
pub use tag::{Stamp, TagRecord, next_revision};
pub use word::{Rest, Vocabulary, Word};

/// A record that is replaced conditionally. A store's versions are hashes of bytes, so each write carries an id of its
/// own: no two writes of a key have equal bytes, and a version never returns.
pub trait Record: Clone + Serialize + DeserializeOwned + Send + Sync {
    /// Sets the id of the next write.
    fn set_write(&mut self, id: Uuid);
}

macro_rules! records {
    ($($record:ty),*) => {$(
        impl Record for $record {
            fn set_write(&mut self, id: Uuid) {
                self.write = id;
            }
        }
    )*};
}
records!(RepositoryRecord, ManifestLink, BlobLink, TagRecord, PointerRecord, DamageRecord);

impl Record for SnapshotHead {
    /// Each head names an object of its own, so no two are equal.
    fn set_write(&mut self, _id: Uuid) {}
}

/// Reads a record.
///
/// # Errors
/// [`Error::BadRecord`] if the object is not such a record.
pub async fn read<T: DeserializeOwned>(store: &dyn BlobStore, key: &Key) -> Result<Option<(T, Version)>, Error> {
    let Some(object) = store.get(key).await? else { return Ok(None) };
    Ok(Some((decode(key, &object.bytes)?, object.version)))
}

/// Decodes a record.
///
/// # Errors
/// [`Error::BadRecord`] if the bytes are not such a record.
pub fn decode<T: DeserializeOwned>(key: &Key, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::BadRecord { key: key.clone(), source })
}

/// Decodes a record that can be fetched again. Damage is logged at ERROR, and gives `None`.
pub fn decode_mendable<T: DeserializeOwned>(key: &Key, bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes)
        .inspect_err(|error| tracing::error!("the record `{key}` is damaged, and is fetched anew: {error}"))
        .ok()
}

/// A record of a cached repository that a later fill can write again if it is damaged.
#[derive(Clone, Debug)]
pub enum Mendable<T> {
    /// No record.
    Absent,
    Record(T, Version),
    /// Something unreadable, which may be replaced.
    Damaged(Version),
}

impl<T> Mendable<T> {
    /// The record, and the version that a conditional write expects.
    pub fn into_parts(self) -> (Option<T>, Option<Version>) {
        match self {
            Self::Absent => (None, None),
            Self::Record(record, version) => (Some(record), Some(version)),
            Self::Damaged(version) => (None, Some(version)),
        }
    }

    pub fn record(self) -> Option<T> {
        self.into_parts().0
    }
}

/// Reads a record that can be fetched again. Damage is logged at ERROR and treated as an absent record.
///
/// # Errors
/// If the store is away.
pub async fn read_mendable<T: DeserializeOwned>(store: &dyn BlobStore, key: &Key) -> Result<Mendable<T>, Error> {
    let object = match store.get(key).await {
        Ok(Some(object)) => object,
        Ok(None) => return Ok(Mendable::Absent),
        Err(Error::TooLarge { version: Some(version), size_bytes, .. }) => {
            tracing::error!("the record `{key}` is damaged, and is fetched anew: it has {size_bytes} bytes");
            return Ok(Mendable::Damaged(version));
        }
        Err(error) => return Err(error),
    };
    Ok(match decode_mendable(key, &object.bytes) {
        Some(record) => Mendable::Record(record, object.version),
        None => Mendable::Damaged(object.version),
    })
}

/// Replaces a record that is still at `expected`, under a new write id; `None` creates it.
///
/// # Errors
/// [`Error::Conflict`] if it was changed or created meanwhile.
pub async fn replace<T: Record>(
    store: &dyn BlobStore,
    key: &Key,
    expected: Option<&Version>,
    record: &T,
) -> Result<Version, Error> {
    let mut record = record.clone();
    record.set_write(Uuid::new_v4());
    store.replace_if(key, expected, encode(&record)).await
}

/// The bytes of a record.
pub fn encode<T: Serialize>(record: &T) -> Bytes {
    serde_json::to_vec(record).expect("records are plain values with text keys").into()
}

/// An error for something in a record that this release must not act on.
pub fn not_understood(key: &Key, why: impl std::fmt::Display) -> Error {
    Error::BadRecord { key: key.clone(), source: serde_json::Error::custom(why) }
}
