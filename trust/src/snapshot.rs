//! Signed snapshots: nodes follow only snapshots that the control plane has signed.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::key_file::{self, KeyBytes, KeyFileError};

const SEED_LABEL: &str = "entrepot-snapshot-seed";
const PUBLIC_LABEL: &str = "entrepot-snapshot-key";

/// What a signature states: these bytes are the snapshot of this epoch and revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    pub epoch: i64,
    pub revision: i64,
    /// The hash of the snapshot's bytes, in hex.
    pub sha256: String,
}

impl Statement {
    /// The statement about a snapshot.
    pub fn of(epoch: i64, revision: i64, snapshot: &[u8]) -> Self {
        Self { epoch, revision, sha256: hex::encode(Sha256::digest(snapshot)) }
    }

    /// The text to sign; nothing else that is signed begins like this.
    fn text(&self) -> String {
        format!("entrepot snapshot v1\n{}\n{}\n{}\n", self.epoch, self.revision, self.sha256)
    }
}

/// A signature in the form of a snapshot's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The key that signed.
    pub key_id: String,
    /// The signature, in Base64.
    pub signature: String,
}

/// Signs snapshots; only the control plane has one. It is never printed.
pub struct SnapshotSigner(Ed25519KeyPair);

impl SnapshotSigner {
    /// A signer with a new key.
    pub fn generate() -> Self {
        Self::from_seed(&key_file::generate())
    }

    /// Reads the seed file at `path`, or creates it with a new seed, mode 0600.
    ///
    /// # Errors
    /// If others can read the file, or it holds something else, or it can be neither read nor created.
    pub fn load_or_generate(path: impl AsRef<Path>) -> Result<Self, KeyFileError> {
        key_file::load_or_generate(SEED_LABEL, path.as_ref()).map(|seed| Self::from_seed(&seed))
    }

    /// Reads the seed file at `path`.
    ///
    /// # Errors
    /// If there is none, or others can read it, or it holds something else, or it cannot be read.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, KeyFileError> {
        key_file::load(SEED_LABEL, path.as_ref()).map(|seed| Self::from_seed(&seed))
    }

    /// The key that nodes pin.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.0.public_key().as_ref().try_into().expect("Ed25519 has public keys of 32 bytes"))
    }

    pub fn sign(&self, statement: &Statement) -> Signature {
        let signature = STANDARD.encode(self.0.sign(statement.text().as_bytes()));
        Signature { key_id: self.public_key().id(), signature }
    }

    fn from_seed(seed: &KeyBytes) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&**seed).expect("Ed25519 has seeds of 32 bytes"))
    }
}

impl fmt::Debug for SnapshotSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotSigner({})", self.public_key().id())
    }
}

/// A signer's public key, written `entrepot-snapshot-key:` and 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

/// The text is not a snapshot signer's public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be `{PUBLIC_LABEL}:` and 64 hex digits")]
pub struct PublicKeyError;

impl PublicKey {
    /// Reads the public key file at `path`.
    ///
    /// # Errors
    /// If there is none, or it holds something else, or it cannot be read.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, KeyFileError> {
        key_file::load_public(PUBLIC_LABEL, path.as_ref()).map(|bytes| Self(*bytes))
    }

    /// Writes the file that [`PublicKey::load`] reads, mode 0644. An existing file must hold this key.
    ///
    /// # Errors
    /// If there is another key, or the file cannot be created.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), KeyFileError> {
        key_file::save_public(PUBLIC_LABEL, path.as_ref(), &Zeroizing::new(self.0))
    }

    /// The id of the key in signatures.
    pub fn id(&self) -> String {
        hex::encode(&Sha256::digest(self.0)[..8])
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_LABEL}:{}", hex::encode(self.0))
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        let bytes = key_file::parse(PUBLIC_LABEL, text).map_err(|_| PublicKeyError)?;
        Ok(Self(*bytes))
    }
}

/// The keys whose snapshots a node follows: one, or two while the control plane's key is being exchanged.
#[derive(Clone, Debug)]
pub struct SnapshotTrust {
    keys: Vec<PublicKey>,
}

/// Why a snapshot is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Signed by a key that this node does not pin.
    #[error("signed with the key `{key_id}`, which is not among those that are trusted here")]
    UnknownKey { key_id: String },
    /// The signature does not match this snapshot.
    #[error("its signature does not belong to its content, epoch and revision")]
    BadSignature,
}

impl SnapshotTrust {
    /// Trusts `key`, and during an exchange also `other`.
    pub fn new(key: PublicKey, other: Option<PublicKey>) -> Self {
        Self { keys: [key].into_iter().chain(other).collect() }
    }

    /// Checks that a trusted key has signed the statement.
    ///
    /// # Errors
    /// If none has.
    pub fn check(&self, statement: &Statement, signature: &Signature) -> Result<(), SnapshotError> {
        let unknown = || SnapshotError::UnknownKey { key_id: signature.key_id.clone() };
        let key = self.keys.iter().find(|key| key.id() == signature.key_id).ok_or_else(unknown)?;
        let bytes = STANDARD.decode(&signature.signature).map_err(|_| SnapshotError::BadSignature)?;
        UnparsedPublicKey::new(&ED25519, &key.0)
            .verify(statement.text().as_bytes(), &bytes)
            .map_err(|_| SnapshotError::BadSignature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_good_for_its_own_content_epoch_and_revision_only() {
        let signer = SnapshotSigner::generate();
        let trust = SnapshotTrust::new(signer.public_key(), None);
        let statement = Statement::of(1, 7, b"snapshot");
        let signature = signer.sign(&statement);
        assert_eq!(trust.check(&statement, &signature), Ok(()));
        for other in [Statement::of(1, 8, b"snapshot"), Statement::of(2, 7, b"snapshot"), Statement::of(1, 7, b"other")]
        {
            assert_eq!(trust.check(&other, &signature), Err(SnapshotError::BadSignature), "{other:?}");
        }
        for text in ["", "?", "AAAA", &signature.signature.to_lowercase()] {
            let changed = Signature { signature: text.to_owned(), ..signature.clone() };
            assert_eq!(trust.check(&statement, &changed), Err(SnapshotError::BadSignature), "{text}");
        }
    }

    #[test]
    fn only_pinned_keys_are_trusted_and_two_can_be() {
        let (old, new, foreign) = (SnapshotSigner::generate(), SnapshotSigner::generate(), SnapshotSigner::generate());
        let trust = SnapshotTrust::new(new.public_key(), Some(old.public_key()));
        let statement = Statement::of(1, 1, b"x");
        assert!(trust.check(&statement, &old.sign(&statement)).is_ok());
        assert!(trust.check(&statement, &new.sign(&statement)).is_ok());
        let forged = Signature { key_id: new.public_key().id(), ..foreign.sign(&statement) };
        assert_eq!(trust.check(&statement, &forged), Err(SnapshotError::BadSignature));
        let error = trust.check(&statement, &foreign.sign(&statement)).unwrap_err();
        assert_eq!(error, SnapshotError::UnknownKey { key_id: foreign.public_key().id() });
    }

    #[test]
    fn a_signer_is_the_same_after_a_restart_and_its_public_key_survives_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed");
        let signer = SnapshotSigner::load_or_generate(&path).unwrap();
        assert_eq!(SnapshotSigner::load_or_generate(&path).unwrap().public_key(), signer.public_key());
        assert_eq!(signer.public_key().to_string().parse(), Ok(signer.public_key()));
        assert_eq!("entrepot-snapshot-key:00".parse::<PublicKey>(), Err(PublicKeyError));
        let public = folder.path().join("public");
        signer.public_key().save(&public).unwrap();
        assert_eq!(PublicKey::load(&public).unwrap(), signer.public_key());
        assert_eq!(SnapshotSigner::load(&path).unwrap().public_key(), signer.public_key());
        // The two kinds of key files cannot be mixed up.
        assert!(SnapshotSigner::load(&public).is_err() && PublicKey::load(&path).is_err());
        assert!(crate::ClusterKey::load_or_generate(&path).is_err());
    }
}
