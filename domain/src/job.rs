//! Kinds of jobs: what a node is told to do, and what it says of that in the end.
//!
//! The queue, the leases and the wire know a kind by its name only and carry its payload and its result as JSON. So a new
//! kind is a type here, somebody who asks for it on the control plane, and somebody who does it on nodes; a node that
//! does not know it is never given one.

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::RepositoryName;
use crate::reference::{Reference, Tag};

/// A kind of job. What its payload and its result have besides what a release knows is ignored by that release.
pub trait JobKind: 'static {
    /// Its name in the database, on the wire and in metrics.
    const NAME: &'static str;
    /// The less, the sooner: each step is worth a minute of waiting.
    const PRIORITY: i16;
    /// What is to be done.
    type Payload: Serialize + DeserializeOwned + Send + Sync;
    /// What has come of it.
    type Result: Serialize + DeserializeOwned + Send;
}

/// Brings a tag up to date. People wait for it.
#[derive(Clone, Copy, Debug)]
pub struct SyncTag;

impl JobKind for SyncTag {
    const NAME: &'static str = "sync";
    const PRIORITY: i16 = 0;
    type Payload = SyncPayload;
    type Result = Synced;
}

/// The priority of syncs that nobody asked for.
pub const AUTOMATIC_SYNC_PRIORITY: i16 = 1;

/// Which tag to bring up to date.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPayload {
    /// The repository.
    #[serde(with = "text")]
    pub repository: RepositoryName,
    /// The tag.
    #[serde(with = "text")]
    pub tag: Tag,
    /// A tag that was validated after this needs nothing. Without it the upstream is asked, whatever the window says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_validate_time: Option<DateTime<Utc>>,
}

/// Fetches an image ahead. It can wait longest.
#[derive(Clone, Copy, Debug)]
pub struct WarmImage;

impl JobKind for WarmImage {
    const NAME: &'static str = "warm";
    const PRIORITY: i16 = 2;
    type Payload = WarmPayload;
    type Result = Synced;
}

/// Which image to fetch ahead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmPayload {
    /// The repository.
    #[serde(with = "text")]
    pub repository: RepositoryName,
    /// The tag or digest.
    #[serde(with = "text")]
    pub reference: Reference,
    /// For which platforms; none means those that are cached of the image already, and all where none is.
    #[serde(default)]
    pub platforms: Vec<String>,
}

/// What has become of a reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Synced {
    /// It means what it meant.
    Unchanged {
        /// What that is.
        digest: Digest,
    },
    /// It means something else than before, or was not known here.
    Moved {
        /// What it meant.
        from: Option<Digest>,
        /// What it means.
        to: Digest,
    },
    /// The upstream has the tag no more.
    Deleted {
        /// What it meant.
        from: Option<Digest>,
        /// Whether it was dropped here, too.
        is_dropped: bool,
    },
    /// Something that a later release knows.
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

/// Values that are written as text.
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
}
