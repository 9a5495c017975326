//! The keys for a bucket's own use: probes, and records of begun uploads.
//!
//! Nothing else is written below them.

use entrepot_domain::ResourceId;
use uuid::Uuid;

use crate::{Key, Prefix};

/// A key for trying out a bucket. `name` is spelled like a key.
pub(super) fn probe(probe: Uuid, name: &str) -> Key {
    Key::new_unchecked(format!("probe/{probe}/{name}"))
}

/// All keys of one probe.
pub(super) fn probe_prefix(probe: Uuid) -> Prefix {
    Prefix::new_unchecked(format!("probe/{probe}"))
}

/// All keys of all probes.
pub(super) fn probes_prefix() -> Prefix {
    Prefix::new_unchecked("probe".to_owned())
}

/// The probe that has written a key.
pub(super) fn probe_of(key: &Key) -> Option<Uuid> {
    let (probe, _) = key.as_str().strip_prefix("probe/")?.split_once('/')?;
    probe.parse().ok()
}

/// The record of an upload that `owner` has begun.
pub(super) fn upload(owner: &ResourceId, upload: Uuid) -> Key {
    Key::new_unchecked(format!("uploads/{owner}/{upload}"))
}

/// The records of all uploads that `owner` has begun.
pub(super) fn uploads_prefix(owner: &ResourceId) -> Prefix {
    Prefix::new_unchecked(format!("uploads/{owner}"))
}
