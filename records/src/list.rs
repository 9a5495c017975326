//! Records of what upstreams list, of what refers to manifests, and of what is published.

use chrono::{DateTime, Utc};
use entrepot_store::Key;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::repository::{Origin, Provenance};
use crate::word::Rest;

/// What an upstream has listed, at [`crate::layout::tag_list`] and [`crate::layout::referrer_list`]. It is written whole, and
/// not by condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRecord {
    /// The rule under which it was asked.
    pub rule_uid: Uuid,
    /// Where that rule asked.
    pub origin: Origin,
    /// When it did.
    pub list_time: DateTime<Utc>,
    /// Tags, or descriptors of manifests.
    pub entries: Vec<String>,
    /// What other releases know of it.
    #[serde(flatten)]
    pub rest: Rest,
}

impl ListRecord {
    /// What was listed at `list_time`.
    pub fn new(from: Provenance, list_time: DateTime<Utc>, entries: Vec<String>) -> Self {
        let Provenance { rule_uid, origin } = from;
        Self { rule_uid, origin, list_time, entries, rest: Rest::new() }
    }
}

/// A cached manifest that refers to another one, at [`crate::layout::referrer`]. It is written once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferrerRecord {
    /// Its descriptor.
    pub descriptor: String,
}

/// Which snapshot is published, at [`crate::layout::snapshot_head`]. No two heads are equal: each names an object of its
/// own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The object that holds the snapshot.
    pub key: Key,
    /// The snapshot's epoch.
    pub epoch: i64,
    /// The snapshot's revision.
    pub revision: i64,
    /// The hash of the snapshot's bytes, in hex.
    pub sha256: String,
    /// Which key signed it.
    pub key_id: String,
    /// The signature, in Base64.
    pub signature: String,
}
