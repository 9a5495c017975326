//! The nouns of a registry that fills itself, and its decisions.
//!
//! Nothing here does I/O, reads a clock, waits, or knows the wire or SQL: what to do is decided by functions over
//! plain values, and the planes do it. Values are parsed once, at the edge, into types that cannot be wrong.

pub mod digest;
pub mod fill;
pub mod freshness;
pub mod manifest;
pub mod name;
pub mod priority;
pub mod range;
pub mod reference;
pub mod refusal;
pub mod rule;
pub mod rule_set;
pub mod secret;
pub mod sync;
pub mod upstream;

pub use digest::{Digest, Verifier};
pub use manifest::{Manifest, MediaType};
pub use name::{NamespacePrefix, RepositoryName, ResourceId};
pub use priority::Priority;
pub use reference::{ImageName, Reference, Tag};
pub use rule::Rule;
pub use rule_set::RuleSet;
pub use secret::Secret;
pub use upstream::{Upstream, UpstreamKind};
