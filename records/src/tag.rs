//! The record of a tag, and the revisions and stamps that put changes in order.

use chrono::{DateTime, Utc};
use entrepot_domain::Digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::repository::Origin;
use crate::word::{Rest, rest_of_new};

/// The meaning of a tag, at [`crate::layout::tag`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The digest that it means; `None` is a tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The revision of that digest's link when the tag was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_revision: Option<i64>,
    /// When and where it last got a meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
    /// When the upstream was asked that has last confirmed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate_time: Option<DateTime<Utc>>,
    /// The rule under which it was resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_uid: Option<Uuid>,
    /// The place that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Grows with every change, including deletions.
    pub revision: i64,
    /// Changes with every write.
    #[serde(default)]
    pub write: Uuid,
    /// Fields of other releases.
    #[serde(flatten)]
    pub rest: Rest,
}

impl TagRecord {
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
            rest: rest_of_new(),
        }
    }
}

/// When and where a tag got its meaning. Everywhere, the later of two stamps wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Milliseconds since 1970.
    pub time_ms: i64,
    /// The region where that happened; empty if regions have no names.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Fields of other releases.
    #[serde(flatten)]
    pub rest: Rest,
}

impl Stamp {
    pub fn at(now: DateTime<Utc>) -> Self {
        Self { time_ms: now.timestamp_millis(), region: String::new(), rest: Rest::new() }
    }
}

/// The revision of a record that is written at `now` and replaces one of revision `old`. It is the time in
/// microseconds, but always greater than `old`, whatever the clock says. So a record that was lost or removed continues
/// with a higher revision than it had, and a write that happens gets a higher revision than earlier ones that failed.
pub fn next_revision(old: Option<i64>, now: DateTime<Utc>) -> i64 {
    old.map_or(i64::MIN, |old| old.saturating_add(1)).max(now.timestamp_micros())
}
