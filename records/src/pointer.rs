//! Pointers, which name the object that holds the content of a digest.

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, claim};
use entrepot_store::{BlobStore, Error, Key, Version};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::layout;
use crate::word::{Rest, Vocabulary, Word, rest_of_new};

/// The object that holds the content of a digest, at [`crate::layout::pointer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointerRecord {
    /// The object with the content; in an erased pointer, the object that is still to be deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Key>,
    pub size_bytes: u64,
    /// Whether the content stays.
    pub state: Word<PointerState>,
    /// When somebody last claimed it.
    pub claim_time: DateTime<Utc>,
    /// When its bytes were last verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_time: Option<DateTime<Utc>>,
    /// When it was condemned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condemn_time: Option<DateTime<Utc>>,
    /// The hosts of the upstreams that have delivered it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delivered_by: Vec<String>,
    /// Changes with every write.
    #[serde(default)]
    pub write: Uuid,
    /// Fields of other releases.
    #[serde(flatten)]
    pub rest: Rest,
}

/// Whether content stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointerState {
    /// It is there, and stays while it is needed.
    Live,
    /// It is there, and will be deleted unless somebody claims it.
    Condemned,
    /// It is deleted, or about to be.
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
            rest: rest_of_new(),
        }
    }

    /// The content for readers; `None` if it is erased.
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

/// An object that holds the content of a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub object: Key,
    pub size_bytes: u64,
}

/// What was found at a pointer's key.
#[derive(Clone, Debug)]
pub enum Found {
    /// No record.
    Absent,
    Record(Box<Read>),
    /// Something unreadable.
    Unreadable(Version),
}

/// A pointer as it was read.
#[derive(Clone, Debug)]
pub struct Read {
    /// What it says.
    pub record: PointerRecord,
    /// Which of its values this is.
    pub version: Version,
    /// When it was claimed: when the record says so, or when it was written by the store's clock, whichever is later.
    claim_time: DateTime<Utc>,
    /// When it was read, by the store's clock.
    read_time: Option<DateTime<Utc>>,
}

impl Found {
    pub fn record(&self) -> Option<&PointerRecord> {
        match self {
            Self::Record(read) => Some(&read.record),
            Self::Absent | Self::Unreadable(_) => None,
        }
    }

    /// The version that a conditional write expects.
    pub fn version(&self) -> Option<&Version> {
        match self {
            Self::Record(read) => Some(&read.version),
            Self::Unreadable(version) => Some(version),
            Self::Absent => None,
        }
    }

    /// The pointer as decisions see it. How long ago it was claimed is a matter of the store's clock alone, so that no
    /// node's clock makes a claim shorter; `now` stands in where the store does not tell its time.
    pub fn seen(&self, now: DateTime<Utc>) -> claim::Pointer<&Key> {
        let Read { record, claim_time, read_time, .. } = match self {
            Self::Absent => return claim::Pointer::Absent,
            Self::Unreadable(_) => return claim::Pointer::Unreadable,
            Self::Record(read) => &**read,
        };
        let claimed_ago = (read_time.unwrap_or(now) - claim_time).to_std().unwrap_or_default();
        match (record.state.known(), record.object.as_ref()) {
            (Some(PointerState::Live), Some(object)) => claim::Pointer::Live { object, claimed_ago },
            (Some(PointerState::Condemned), Some(object)) => claim::Pointer::Condemned { object },
            (Some(PointerState::Erased), object) => claim::Pointer::Erased { object },
            (Some(PointerState::Live | PointerState::Condemned), None) | (None, _) => claim::Pointer::Unreadable,
        }
    }
}

/// Reads the pointer of a digest. Damage is logged at ERROR.
///
/// # Errors
/// If the store is away.
pub async fn read(store: &dyn BlobStore, digest: &Digest) -> Result<Found, Error> {
    let key = layout::pointer(digest);
    let Some(object) = store.get(&key).await? else { return Ok(Found::Absent) };
    match serde_json::from_slice::<PointerRecord>(&object.bytes) {
        Ok(record) => {
            let claim_time = record.claim_time.max(object.modify_time);
            let (version, read_time) = (object.version, object.read_time);
            Ok(Found::Record(Box::new(Read { record, version, claim_time, read_time })))
        }
        Err(error) => {
            tracing::error!(content.digest = %digest, "the pointer `{key}` is damaged: {error}");
            Ok(Found::Unreadable(object.version))
        }
    }
}
