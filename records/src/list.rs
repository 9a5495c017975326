//! Records of lists that upstreams gave, of referrers, and of the published snapshot.

use chrono::{DateTime, Utc};
use entrepot_store::Key;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::repository::{Origin, Provenance};
use crate::word::Rest;

/// A list from an upstream, at [`crate::layout::tag_list`] and [`crate::layout::referrer_list`]. It is always written
/// as a whole and unconditionally.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRecord {
    /// The rule under which it was fetched.
    pub rule_uid: Uuid,
    /// The place where it was fetched.
    pub origin: Origin,
    /// When it was fetched.
    pub list_time: DateTime<Utc>,
    /// Tags, or descriptors of manifests.
    pub entries: Vec<String>,
    /// Fields of other releases.
    #[serde(flatten)]
    pub rest: Rest,
}

impl ListRecord {
    pub fn new(from: Provenance, list_time: DateTime<Utc>, entries: Vec<String>) -> Self {
        let Provenance { rule_uid, origin } = from;
        Self { rule_uid, origin, list_time, entries, rest: Rest::new() }
    }
}

/// A cached manifest that refers to another one, at [`crate::layout::referrer`]. It is written once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferrerRecord {
    pub descriptor: String,
}

/// Names the published snapshot, at [`crate::layout::snapshot_head`]. No two heads are equal: each names an object of
/// its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The object that holds the snapshot.
    pub key: Key,
    pub epoch: i64,
    pub revision: i64,
    /// The hash of the snapshot's bytes, in hex.
    pub sha256: String,
    /// The key that signed it.
    pub key_id: String,
    /// The signature, in Base64.
    pub signature: String,
}
