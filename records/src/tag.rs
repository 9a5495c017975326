//! The record of a tag, and the revisions and stamps that order changes.

use chrono::{DateTime, Utc};
use entrepot_domain::Digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::repository::Origin;
use crate::word::Rest;

/// What a tag means, at [`crate::layout::tag`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The digest that it means; `None` is a tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The revision of that digest's link when the tag was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_revision: Option<i64>,
    /// When and where it was last given a meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
    /// When the upstream last confirmed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate_time: Option<DateTime<Utc>>,
    /// The rule that it was resolved under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_uid: Option<Uuid>,
    /// Where that rule asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Grows with every change, deletions too.
    pub revision: i64,
    /// Changes with every write.
    #[serde(default)]
    pub write: Uuid,
    /// What other releases know of it.
    #[serde(flatten)]
    pub rest: Rest,
}

impl TagRecord {
    /// A tag that means `digest`, or a tombstone.
    pub fn new(digest: Option<Digest>, revision: i64) -> Self {
        Self {
            digest,
            link_revision: None,
            stamp: None,
            validate_time: None,
            rule_uid: None,
            origin: None,
            revision,
            write: Uuid::nil(),
            rest: Rest::new(),
        }
    }
}

/// When and where a tag was given its meaning; of two, the later one counts everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Milliseconds since 1970.
    pub time_ms: i64,
    /// The region that did it; empty where regions have no names.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// What other releases know of it.
    #[serde(flatten)]
    pub rest: Rest,
}

impl Stamp {
    /// A stamp of this region.
    pub fn at(now: DateTime<Utc>) -> Self {
        Self { time_ms: now.timestamp_millis(), region: String::new(), rest: Rest::new() }
    }
}

/// The revision of a record that is written at `now` in place of one that was at `old`.
///
/// The first one is the time in microseconds, so that revisions grow even after a record was removed for good.
pub fn next_revision(old: Option<i64>, now: DateTime<Utc>) -> i64 {
    old.map_or_else(|| now.timestamp_micros(), |old| old.saturating_add(1))
}
