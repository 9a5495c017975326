//! Kinds of jobs: what a node is asked to do, and what it reports when it is done.
//!
//! The queue, the leases and the wire know a kind only by its name and carry its payload and result as JSON. So a new
//! kind needs a type here, code on the control plane that asks for it, and code on nodes that does it. A node that does
//! not know a kind never gets such a job.

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::RepositoryName;
use crate::reference::{Reference, Tag};

/// A kind of job. Fields of payload and result that this release does not know are ignored.
pub trait JobKind: 'static {
    /// Its name in the database, on the wire and in metrics.
    const NAME: &'static str;
    /// A lower number goes first: each step is worth a minute of waiting.
    const PRIORITY: i16;
    /// What to do.
    type Payload: Serialize + DeserializeOwned + Send + Sync;
    /// What was achieved.
    type Result: Serialize + DeserializeOwned + Send;
}

/// Brings a tag up to date while people wait for it.
#[derive(Clone, Copy, Debug)]
pub struct SyncTag;

impl JobKind for SyncTag {
    const NAME: &'static str = "sync";
    const PRIORITY: i16 = 0;
    type Payload = SyncPayload;
    type Result = SyncResult;
}

/// The priority of a sync that nobody asked for.
pub const AUTOMATIC_SYNC_PRIORITY: i16 = 1;

/// Which tag to bring up to date.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPayload {
    #[serde(with = "text")]
    pub repository: RepositoryName,
    #[serde(with = "text")]
    pub tag: Tag,
    /// If the tag was validated after this time, nothing is to be done. Without it the upstream is always asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_validate_time: Option<DateTime<Utc>>,
}

/// Fetches an image in advance. It can wait longest.
#[derive(Clone, Copy, Debug)]
pub struct WarmImage;

impl JobKind for WarmImage {
    const NAME: &'static str = "warm";
    const PRIORITY: i16 = 2;
    type Payload = WarmPayload;
    type Result = Synced;
}

/// Which image to fetch in advance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmPayload {
    #[serde(with = "text")]
    pub repository: RepositoryName,
    #[serde(with = "text")]
    pub reference: Reference,
    /// The platforms to fetch. An empty list means those of the image that are cached already, or all if none is.
    #[serde(default)]
    pub platforms: Vec<String>,
}

/// The result of a sync job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncResult {
    #[serde(flatten)]
    pub synced: Synced,
    /// How many nodes did not confirm in time that they know of the change.
    #[serde(default, skip_serializing_if = "is_none")]
    pub lagging_nodes: u32,
}

fn is_none(count: &u32) -> bool {
    *count == 0
}

/// The result of syncing a reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Synced {
    /// It means the same as before.
    Unchanged { digest: Digest },
    /// It means something else than before, or was unknown here.
    Moved {
        /// What it meant.
        from: Option<Digest>,
        /// What it means.
        to: Digest,
    },
    /// The tag no longer exists at the upstream.
    Deleted {
        /// What it meant.
        from: Option<Digest>,
        /// Whether the tag was dropped here, too.
        is_dropped: bool,
    },
    /// A result of a later release.
    #[serde(other)]
    Unknown,
}

impl Synced {
    /// The word for it in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unchanged { .. } => "unchanged",
            Self::Moved { from: None, .. } => "created",
            Self::Moved { from: Some(_), .. } => "moved",
            Self::Deleted { .. } => "deleted",
            Self::Unknown => "unknown",
        }
    }
}

/// Serializes values as text.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn payloads_and_results_are_json_that_later_releases_may_add_to() {
        let payload: SyncPayload =
            serde_json::from_value(json!({ "repository": "demo/app", "tag": "v1", "later": 1 })).unwrap();
        assert_eq!(serde_json::to_value(&payload).unwrap(), json!({ "repository": "demo/app", "tag": "v1" }));
        assert!(serde_json::from_value::<SyncPayload>(json!({ "repository": "Demo", "tag": "v1" })).is_err());
        let digest = Digest::sha256(b"x");
        let moved = Synced::Moved { from: None, to: digest.clone() };
        let written = serde_json::to_value(&moved).unwrap();
        assert_eq!(written, json!({ "outcome": "MOVED", "from": null, "to": digest.to_string() }));
        assert_eq!(serde_json::from_value::<Synced>(written).unwrap(), moved);
        let later = json!({ "outcome": "SPLIT", "into": [1, 2] });
        assert_eq!(serde_json::from_value::<Synced>(later).unwrap(), Synced::Unknown);
    }

    #[test]
    fn a_sync_says_how_many_nodes_lag_beside_what_an_earlier_release_knows() {
        let synced = Synced::Moved { from: None, to: Digest::sha256(b"x") };
        let result = SyncResult { synced: synced.clone(), lagging_nodes: 2 };
        let written = serde_json::to_value(&result).unwrap();
        assert_eq!(serde_json::from_value::<Synced>(written.clone()).unwrap(), synced);
        assert_eq!(serde_json::from_value::<SyncResult>(written).unwrap(), result);
        let plain = serde_json::to_value(&synced).unwrap();
        assert_eq!(serde_json::from_value::<SyncResult>(plain.clone()).unwrap().lagging_nodes, 0);
        assert_eq!(serde_json::to_value(SyncResult { synced, lagging_nodes: 0 }).unwrap(), plain);
        let later = json!({ "outcome": "SPLIT", "lagging_nodes": 1 });
        let later: SyncResult = serde_json::from_value(later).unwrap();
        assert_eq!(later, SyncResult { synced: Synced::Unknown, lagging_nodes: 1 });
    }
}
