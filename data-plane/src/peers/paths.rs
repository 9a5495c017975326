//! Where nodes ask each other, and what a node says of itself.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where a node says who it is.
pub(crate) const NODE: &str = "/internal/v1/node";
/// Where a node says which fills run on it.
pub(crate) const FILLS: &str = "/internal/v1/fills";
/// Whether the upstream has told the leader that the repository has the content: a header that is there or not.
pub(crate) const CONFIRMED: &str = "entrepot-confirmed";
/// Below it a node says that it works under a lease, as long as it does.
pub(crate) const LEASES: &str = "/internal/v1/leases/";
/// Where a node says what it has seen of upstreams.
pub(crate) const UPSTREAMS: &str = "/internal/v1/upstreams";
/// Where a node is told what to forget.
pub(crate) const FORGET: &str = "/internal/v1/forget";
/// Below it a node says what it remembers of an answer, under its request id.
pub(crate) const ANSWERS: &str = "/internal/v1/answers/";

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeAnswer {
    pub(crate) id: String,
    pub(crate) boot_id: Uuid,
    pub(crate) release: String,
    pub(crate) running: Option<Running>,
}

/// Which snapshot it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) epoch: i64,
    pub(crate) revision: i64,
}
