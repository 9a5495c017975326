//! Node records: through them, and so through the store alone, nodes find each other and the control plane sees them.
//!
//! Somebody who can write to the bucket must not be able to send nodes to an address of their choice. So records are
//! signed with the cluster key: one line of JSON, readable for people, and one line with the signature.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use entrepot_domain::ResourceId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ClusterKey;

/// The age up to which a record's node counts as live. Nodes rewrite theirs every 10 s.
pub const LIVE_FOR: Duration = Duration::from_secs(30);

/// Whether the node whose record was written at `write_time`, according to the store, counts as live. A clock that is
/// ahead does not keep a dead node alive for longer.
pub fn is_live(write_time: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    (now - write_time).abs().to_std().is_ok_and(|age| age <= LIVE_FOR)
}

/// The beginning of the signed text; nothing else that is signed begins like this.
const DOMAIN: &[u8] = b"entrepot node record v1\n";

/// What a node says about itself. The bytes stay the same while nothing changes, so that others need not read them
/// again; the store tells when they were written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node's id, which is also in the key of the record.
    #[serde(with = "node_id")]
    pub node_id: ResourceId,
    /// Identifies one run of the node's process.
    pub boot_id: Uuid,
    /// The URL at which other nodes reach it; `None` if they cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_address: Option<String>,
    pub release: String,
    /// Epoch and revision of the node's snapshot; `None` before the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<(i64, i64)>,
    /// When this run of the process began.
    pub start_time: DateTime<Utc>,
    /// The longest time, in milliseconds, for which the node relies on records that it has read; 0 means not at all.
    #[serde(default)]
    pub hold_ms: u64,
}

/// Why a node record is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeRecordError {
    /// Not a record and a signature.
    #[error("not a node record that this release can read")]
    Malformed,
    /// It was signed with another key, or changed since.
    #[error("not signed with this cluster's key")]
    BadSignature,
}

impl ClusterKey {
    /// The signed form for the store.
    pub fn sign_node_record(&self, record: &NodeRecord) -> Vec<u8> {
        let text = serde_json::to_vec(record).expect("plain fields can be written");
        let signature = STANDARD.encode(hmac::sign(&self.node_records(), &signed_bytes(&text)));
        [&text, &b"\n"[..], signature.as_bytes(), b"\n"].concat()
    }

    /// Reads a node record from the store. The caller checks that it is under the key of its own node.
    ///
    /// # Errors
    /// If it was not signed with this key, or is not a node record.
    pub fn read_node_record(&self, bytes: &[u8]) -> Result<NodeRecord, NodeRecordError> {
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let (Some(text), Some(signature)) = (lines.next(), lines.next()) else {
            return Err(NodeRecordError::Malformed);
        };
        let signature = STANDARD.decode(signature).map_err(|_| NodeRecordError::Malformed)?;
        hmac::verify(&self.node_records(), &signed_bytes(text), &signature)
            .map_err(|_| NodeRecordError::BadSignature)?;
        serde_json::from_slice(text).map_err(|_| NodeRecordError::Malformed)
    }

    fn node_records(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &*self.derive("entrepot node records v1"))
    }
}

fn signed_bytes(text: &[u8]) -> Vec<u8> {
    [DOMAIN, text].concat()
}

/// Serializes ids as text, since the domain's types know no format.
mod node_id {
    use entrepot_domain::ResourceId;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(id: &ResourceId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(id.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ResourceId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn record() -> NodeRecord {
        NodeRecord {
            node_id: "node-1".parse().unwrap(),
            boot_id: Uuid::from_u128(7),
            peer_address: Some("https://10.0.0.5:5003".to_owned()),
            release: "0.1.0".to_owned(),
            running: Some((1, 42)),
            start_time: at(-60),
            hold_ms: 5000,
        }
    }

    #[test]
    fn a_record_is_read_with_the_same_key_alone() {
        let key = ClusterKey::generate();
        let bytes = key.sign_node_record(&record());
        assert_eq!(key.read_node_record(&bytes), Ok(record()));
        assert_eq!(ClusterKey::generate().read_node_record(&bytes), Err(NodeRecordError::BadSignature));
        let bare = NodeRecord { peer_address: None, running: None, ..record() };
        assert_eq!(key.read_node_record(&key.sign_node_record(&bare)), Ok(bare));
    }

    #[test]
    fn a_record_that_was_changed_or_cut_is_refused() {
        let key = ClusterKey::generate();
        let bytes = key.sign_node_record(&record());
        // The last byte ends the line and has no meaning.
        for at in 0..bytes.len() - 1 {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(key.read_node_record(&changed).is_err(), "byte {at}");
            assert!(key.read_node_record(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(key.read_node_record(b""), Err(NodeRecordError::Malformed));
    }

    #[test]
    fn fields_of_a_later_release_do_no_harm() {
        let key = ClusterKey::generate();
        let mut value = serde_json::to_value(record()).unwrap();
        value["zone"] = "b".into();
        let text = serde_json::to_vec(&value).unwrap();
        let signature = STANDARD.encode(hmac::sign(&key.node_records(), &signed_bytes(&text)));
        let bytes = [&text, &b"\n"[..], signature.as_bytes()].concat();
        assert_eq!(key.read_node_record(&bytes), Ok(record()));
    }

    #[test]
    fn a_record_is_live_for_thirty_seconds_also_by_a_clock_that_is_behind() {
        for (seconds, live) in [(0, true), (30, true), (31, false), (-30, true), (-31, false)] {
            assert_eq!(is_live(at(0), at(seconds)), live, "{seconds}");
        }
    }

    #[test]
    fn a_record_that_says_the_same_has_the_same_bytes() {
        let key = ClusterKey::generate();
        assert_eq!(key.sign_node_record(&record()), key.sign_node_record(&record()));
    }

    proptest! {
        #[test]
        fn reading_anything_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(ClusterKey::generate().read_node_record(&bytes).is_err());
        }
    }
}
