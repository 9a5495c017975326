//! Pointers: which object has the content of a digest.

use chrono::{DateTime, Utc};
use entrepot_domain::Digest;
use entrepot_store::{BlobStore, Error, Key, Version};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::layout;
use crate::word::{Rest, Vocabulary, Word};

/// Which object has the content of a digest, at [`crate::layout::pointer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointerRecord {
    /// The object that has it; of an erased pointer, the one that is still to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Key>,
    /// The content's size.
    pub size_bytes: u64,
    /// Whether the content stays.
    pub state: Word<PointerState>,
    /// When somebody last claimed it.
    pub claim_time: DateTime<Utc>,
    /// When its bytes were last known to be right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_time: Option<DateTime<Utc>>,
    /// Since when it is condemned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condemn_time: Option<DateTime<Utc>>,
    /// The hosts of the upstreams that have delivered it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delivered_by: Vec<String>,
    /// Changes with every write.
    #[serde(default)]
    pub write: Uuid,
    /// What other releases know of it.
    #[serde(flatten)]
    pub rest: Rest,
}

/// Whether content stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointerState {
    /// It is there, and stays while it is needed.
    Live,
    /// It is there, and goes unless somebody claims it.
    Condemned,
    /// It is gone, or about to go.
    Erased,
}

impl Vocabulary for PointerState {
    fn read(word: &str) -> Option<Self> {
        [Self::Live, Self::Condemned, Self::Erased].into_iter().find(|state| state.word() == word)
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Condemned => "condemned",
            Self::Erased => "erased",
        }
    }
}

impl PointerRecord {
    /// A live pointer to an object that was verified and claimed at `now`.
    pub fn new(object: Key, size_bytes: u64, now: DateTime<Utc>) -> Self {
        Self {
            object: Some(object),
            size_bytes,
            state: PointerState::Live.into(),
            claim_time: now,
            verify_time: Some(now),
            condemn_time: None,
            delivered_by: Vec::new(),
            write: Uuid::nil(),
            rest: Rest::new(),
        }
    }

    /// The content that readers may have.
    pub fn content(&self) -> Option<Content> {
        match self.state.known()? {
            PointerState::Live | PointerState::Condemned => {
                Some(Content { object: self.object.clone()?, size_bytes: self.size_bytes })
            }
            PointerState::Erased => None,
        }
    }

    /// Whether an upstream has delivered the content.
    pub fn was_delivered_by(&self, host: &str) -> bool {
        self.delivered_by.iter().any(|known| known == host)
    }
}

/// An object that has the content of a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The object.
    pub object: Key,
    /// Its size.
    pub size_bytes: u64,
}

/// What there is in place of a pointer.
#[derive(Clone, Debug)]
pub enum Found {
    /// No record.
    Absent,
    /// A record.
    Record(Box<PointerRecord>, Version),
    /// Something that cannot be read.
    Unreadable(Version),
}

impl Found {
    /// The record.
    pub fn record(&self) -> Option<&PointerRecord> {
        match self {
            Self::Record(record, _) => Some(record),
            Self::Absent | Self::Unreadable(_) => None,
        }
    }

    /// What a conditional write has to find.
    pub fn version(&self) -> Option<&Version> {
        match self {
            Self::Record(_, version) | Self::Unreadable(version) => Some(version),
            Self::Absent => None,
        }
    }
}

/// Reads the pointer of a digest. One that is damaged is said at ERROR.
///
/// # Errors
/// If the store is away.
pub async fn read(store: &dyn BlobStore, digest: &Digest) -> Result<Found, Error> {
    let key = layout::pointer(digest);
    let Some(object) = store.get(&key).await? else { return Ok(Found::Absent) };
    match serde_json::from_slice(&object.bytes) {
        Ok(record) => Ok(Found::Record(Box::new(record), object.version)),
        Err(error) => {
            tracing::error!(content.digest = %digest, "the pointer `{key}` is damaged: {error}");
            Ok(Found::Unreadable(object.version))
        }
    }
}
