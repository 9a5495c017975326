//! What both planes must agree on to trust each other: sealed secrets, tokens, signed snapshots and node records,
//! access keys.
//!
//! Everything rests on two keys. Both planes hold the *cluster key*: it seals secrets and signs tokens. Only the
//! control plane holds the *snapshot seed*: nodes pin its public key, so that somebody who can write to the store still
//! cannot make them follow a forged snapshot.

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
pub use verifier::{Login, NotChecked, SecretVerifier};
