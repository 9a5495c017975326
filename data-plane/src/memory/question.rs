//! Questions to the store, and which answers are held.

use std::future::Future;
use std::marker::PhantomData;

use bytes::Bytes;
use entrepot_domain::Digest;
use entrepot_records::{self as records, BlobLink, ListRecord, ManifestLink, RepositoryRecord, State, TagRecord};
use entrepot_store::{Error, Key, Store};
use serde::de::DeserializeOwned;

/// A question to the store about one key.
pub(crate) trait Question: Clone + Send + Sync + 'static {
    /// The answer, if there is something.
    type Answer: Clone + Send + Sync + 'static;

    fn key(&self) -> &Key;

    /// Asks the store. Returns the answer and its size in bytes.
    fn ask(&self, store: &Store) -> impl Future<Output = Result<Option<(Self::Answer, usize)>, Error>> + Send;

    /// Whether an answer means that something exists. A tombstone does not.
    fn is_there(answer: &Self::Answer) -> bool;

    /// The answer in these bytes, which this node has written.
    fn decode(&self, _bytes: &Bytes) -> Option<Self::Answer> {
        None
    }

    /// The answer of what is at hand here, for when the store is away and has not been asked before.
    fn at_hand(&self, _store: &Store) -> Option<Self::Answer> {
        None
    }
}

/// A record that can be held.
pub(crate) trait Holdable: DeserializeOwned + Clone + Send + Sync + 'static {
    /// Whether it says that something exists.
    fn is_there(&self) -> bool;
}

impl Holdable for RepositoryRecord {
    fn is_there(&self) -> bool {
        self.state != State::Deleted
    }
}

impl Holdable for ManifestLink {
    fn is_there(&self) -> bool {
        self.state != State::Deleted
    }
}

impl Holdable for BlobLink {
    fn is_there(&self) -> bool {
        self.state != State::Deleted
    }
}

impl Holdable for TagRecord {
    fn is_there(&self) -> bool {
        self.digest.is_some()
    }
}

impl Holdable for ListRecord {
    fn is_there(&self) -> bool {
        true
    }
}

/// The content of a record.
#[derive(Debug)]
pub(crate) struct Record<T> {
    key: Key,
    /// Whether a damaged record is treated as absent.
    is_mendable: bool,
    kind: PhantomData<fn() -> T>,
}

impl<T> Record<T> {
    /// A record that must be readable if it exists.
    pub(crate) fn strict(key: Key) -> Self {
        Self { key, is_mendable: false, kind: PhantomData }
    }

    /// A record that is treated as absent if it is damaged.
    pub(crate) fn mendable(key: Key) -> Self {
        Self { key, is_mendable: true, kind: PhantomData }
    }
}

impl<T> Clone for Record<T> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), is_mendable: self.is_mendable, kind: PhantomData }
    }
}

impl<T: Holdable> Question for Record<T> {
    type Answer = T;

    fn key(&self) -> &Key {
        &self.key
    }

    async fn ask(&self, store: &Store) -> Result<Option<(T, usize)>, Error> {
        let object = match store.get(&self.key).await {
            Ok(Some(object)) => object,
            Ok(None) => return Ok(None),
            // It is damaged, which is logged when it is replaced.
            Err(Error::TooLarge { .. }) if self.is_mendable => return Ok(None),
            Err(error) => return Err(error),
        };
        let size_bytes = object.bytes.len();
        if self.is_mendable {
            return Ok(records::decode_mendable(&self.key, &object.bytes).map(|record| (record, size_bytes)));
        }
        Ok(Some((records::decode(&self.key, &object.bytes)?, size_bytes)))
    }

    fn is_there(answer: &T) -> bool {
        answer.is_there()
    }

    fn decode(&self, bytes: &Bytes) -> Option<T> {
        records::decode(&self.key, bytes).ok()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct ManifestBytes {
    pub(crate) object: Key,
    pub(crate) digest: Digest,
}

impl Question for ManifestBytes {
    type Answer = Bytes;

    fn key(&self) -> &Key {
        &self.object
    }

    async fn ask(&self, store: &Store) -> Result<Option<(Bytes, usize)>, Error> {
        let bytes = store.get_content(&self.object, &self.digest).await?;
        // Copied, since a slice would keep the whole buffer alive.
        Ok(bytes.map(|bytes| (Bytes::copy_from_slice(&bytes), bytes.len())))
    }

    fn is_there(_: &Bytes) -> bool {
        true
    }
}

/// That an object exists, and its size.
#[derive(Clone, Debug)]
pub(crate) struct Presence(pub(crate) Key);

impl Question for Presence {
    type Answer = u64;

    fn key(&self) -> &Key {
        &self.0
    }

    async fn ask(&self, store: &Store) -> Result<Option<(u64, usize)>, Error> {
        Ok(store.head(&self.0).await?.map(|size_bytes| (size_bytes, 0)))
    }

    fn is_there(_: &u64) -> bool {
        true
    }

    fn at_hand(&self, store: &Store) -> Option<u64> {
        store.size_at_hand(&self.0)
    }
}
