//! The store's records: where they are, what they say, and the one order in which they are written. Both planes write
//! records through this crate alone.
//!
//! All keys are drawn in [`layout`]. Content has names that say nothing of it; the [pointer](PointerRecord) of a digest
//! says which object has it, and a [link](ManifestLink) lets a repository show it. Whoever needs content makes a
//! [claim](Claim) on it. Everything is written in the order that [`commit`] has.
//!
//! A fleet runs two releases at a time, so a record that is rewritten keeps the fields that are not known here, and the
//! [words](Word) that are not: those grant nothing and create nothing.

pub mod claim;
pub mod commit;
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
pub use layout_version::{LayoutError, check_layout};
pub use link::{BlobLink, LISTED_CHILDREN, ManifestLink, Named};
pub use list::{ListRecord, ReferrerRecord, SnapshotHead};
pub use pointer::{Content, PointerRecord, PointerState};
pub use repository::{Kind, Origin, Provenance, RepositoryRecord, SettingsRecord, State};
pub use tag::{Stamp, TagRecord, next_revision};
pub use word::{Rest, Vocabulary, Word};

/// A record that is replaced by condition. A store's versions are hashes of bytes, so each write carries an id of its
/// own: no two writes of a key have equal bytes, and a version never comes back.
pub trait Record: Clone + Serialize + DeserializeOwned + Send + Sync {
    /// Notes under which id it is written.
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
records!(RepositoryRecord, ManifestLink, BlobLink, TagRecord, PointerRecord);

impl Record for SnapshotHead {
    /// Its object's name is its own.
    fn set_write(&mut self, _id: Uuid) {}
}

/// Reads a record.
///
/// # Errors
/// [`Error::BadRecord`] if what is there is not such a record.
pub async fn read<T: DeserializeOwned>(store: &dyn BlobStore, key: &Key) -> Result<Option<(T, Version)>, Error> {
    let Some(object) = store.get(key).await? else { return Ok(None) };
    Ok(Some((decode(key, &object.bytes)?, object.version)))
}

/// What the bytes of a record say.
///
/// # Errors
/// [`Error::BadRecord`] if they are no such record.
pub fn decode<T: DeserializeOwned>(key: &Key, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::BadRecord { key: key.clone(), source })
}

/// What the bytes of a record say that heals; that they are damaged is said at ERROR.
pub fn decode_mendable<T: DeserializeOwned>(key: &Key, bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes)
        .inspect_err(|error| tracing::error!("the record `{key}` is damaged, and is fetched anew: {error}"))
        .ok()
}

/// A record of a cached repository that whoever fills it can write again.
#[derive(Clone, Debug)]
pub enum Mendable<T> {
    /// No record.
    Absent,
    /// A record.
    Record(T, Version),
    /// Something that cannot be read, and may be replaced.
    Damaged(Version),
}

impl<T> Mendable<T> {
    /// The record, and what a conditional write has to find.
    pub fn into_parts(self) -> (Option<T>, Option<Version>) {
        match self {
            Self::Absent => (None, None),
            Self::Record(record, version) => (Some(record), Some(version)),
            Self::Damaged(version) => (None, Some(version)),
        }
    }

    /// The record.
    pub fn record(self) -> Option<T> {
        self.into_parts().0
    }
}

/// Reads a record that heals: one that is damaged is said at ERROR, and is as good as none.
///
/// # Errors
/// If the store is away.
pub async fn read_mendable<T: DeserializeOwned>(store: &dyn BlobStore, key: &Key) -> Result<Mendable<T>, Error> {
    let Some(object) = store.get(key).await? else { return Ok(Mendable::Absent) };
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

/// A record as it is written.
pub fn encode<T: Serialize>(record: &T) -> Bytes {
    serde_json::to_vec(record).expect("records are plain values with text keys").into()
}

/// What a record says that this release must not act on.
pub fn not_understood(key: &Key, why: impl std::fmt::Display) -> Error {
    Error::BadRecord { key: key.clone(), source: serde_json::Error::custom(why) }
}
