//! What both planes must agree on to trust each other: sealed secrets, tokens, signed snapshots and node records,
//! access keys.
//!
//! Two keys are the root of it all. The *cluster key* is on both planes: it seals what must not be read and signs
//! tokens. The *snapshot seed* is on the control plane only: nodes pin its public key, so that whoever can write to
//! the store cannot make them follow a snapshot of their own.

pub mod access_key;
pub mod cluster_key;
pub mod key_file;
pub mod node_record;
pub mod snapshot;
pub mod tokens;
pub mod verifier;

pub use access_key::AccessKeyHash;
pub use cluster_key::{ClusterKey, UnsealError};
pub use key_file::KeyFileError;
pub use node_record::{NodeRecord, NodeRecordError};
pub use snapshot::{PublicKey, Signature, SnapshotSigner, SnapshotTrust, Statement};
pub use tokens::{Access, BearerClaims, LoginClaims, NodeClaims, TokenError, Tokens};
pub use verifier::{SecretVerifier, TooMany};
