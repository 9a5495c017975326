//! The nouns of a registry that fills itself, and its decisions.
//!
//! Nothing here does I/O, reads a clock, waits, or knows the wire or SQL: functions over plain values decide what to
//! do, and the planes do it. Values are parsed once, at the edge, into types that cannot be wrong.

pub mod action;
pub mod breaker;
pub mod budget;
pub mod claim;
pub mod collection;
pub mod digest;
#[cfg(test)]
mod draw;
pub mod fill;
pub mod freshness;
pub mod future;
pub mod hops;
pub mod job;
pub mod key_id;
pub mod manifest;
pub mod name;
pub mod network;
pub mod prefix_map;
pub mod priority;
pub mod range;
pub mod reference;
pub mod referrer;
pub mod refusal;
pub mod rule;
pub mod rule_set;
pub mod secret;
pub mod shares;
pub mod sync;
pub mod template;
pub mod trouble;
pub mod upstream;

pub use action::Action;
pub use budget::Budget;
pub use digest::{Digest, Digester, Verifier};
pub use hops::Hops;
pub use key_id::AccessKeyId;
pub use manifest::{Manifest, MediaType};
pub use name::{NamespacePrefix, RepositoryName, ResourceId};
pub use network::Network;
pub use prefix_map::PrefixMap;
pub use priority::Priority;
pub use reference::{ImageName, Reference, Tag};
pub use referrer::Referrer;
pub use rule::Rule;
pub use rule_set::RuleSet;
pub use secret::Secret;
pub use template::Template;
pub use trouble::Trouble;
pub use upstream::{Upstream, UpstreamKind};
