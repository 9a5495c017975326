//! The keys that a bucket's own work needs: what is tried out in it, and which uploads were begun.
//!
//! Nobody else writes below them.

use entrepot_domain::ResourceId;
use uuid::Uuid;

use crate::{Key, Prefix};

/// Something that is written to try out a bucket. `name` is written like a key.
pub(super) fn probe(probe: Uuid, name: &str) -> Key {
    Key::assembled(format!("probe/{probe}/{name}"))
}

/// What one probe has written.
pub(super) fn probe_prefix(probe: Uuid) -> Prefix {
    Prefix::assembled(format!("probe/{probe}"))
}

/// What all probes have written and not removed yet.
pub(super) fn probes_prefix() -> Prefix {
    Prefix::assembled("probe".to_owned())
}

/// Which probe has written a key.
pub(super) fn probe_of(key: &Key) -> Option<Uuid> {
    let (probe, _) = key.as_str().strip_prefix("probe/")?.split_once('/')?;
    probe.parse().ok()
}

/// The record of an upload that `owner` has begun.
pub(super) fn upload(owner: &ResourceId, upload: Uuid) -> Key {
    Key::assembled(format!("uploads/{owner}/{upload}"))
}

/// The records of all uploads that `owner` has begun.
pub(super) fn uploads_prefix(owner: &ResourceId) -> Prefix {
    Prefix::assembled(format!("uploads/{owner}"))
}
