//! The paths at which nodes ask each other, and what a node says about itself.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Returns who the node is.
pub(crate) const NODE: &str = "/internal/v1/node";
/// Returns the node's running fills.
pub(crate) const FILLS: &str = "/internal/v1/fills";
/// A header whose presence means: the leader knows from the upstream that the repository has the content.
pub(crate) const CONFIRMED: &str = "entrepot-confirmed";
/// Below this path: a stream that lasts as long as the node works under a lease.
pub(crate) const LEASES: &str = "/internal/v1/leases/";
/// Returns what the node has observed about upstreams.
pub(crate) const UPSTREAMS: &str = "/internal/v1/upstreams";
/// Below this path, by origin and digest: the size of a blob according to the manifests that the node has served.
pub(crate) const SIZES: &str = "/internal/v1/sizes/";
/// Receives what the node must forget.
pub(crate) const FORGET: &str = "/internal/v1/forget";
/// Below this path, by request id: what the node remembers about an answer.
pub(crate) const ANSWERS: &str = "/internal/v1/answers/";

/// What a node says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeAnswer {
    pub(crate) id: String,
    pub(crate) boot_id: Uuid,
    pub(crate) release: String,
    pub(crate) running: Option<Running>,
}

/// The size of a blob according to a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SizeAnswer {
    pub(crate) size_bytes: Option<u64>,
}

/// The snapshot that it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) epoch: i64,
    pub(crate) revision: i64,
}
