//! The cluster key: only holders of the same key can read what it seals.

use std::fmt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf;
use entrepot_domain::Secret;
use zeroize::Zeroizing;

use crate::key_file::{self, KEY_BYTES, KeyBytes, KeyFileError, KeyTextError};
use crate::tokens::Tokens;

const LABEL: &str = "entrepot-cluster-key";
/// The form of version 1: this byte, a random nonce, and AES-256-GCM with the purpose as additional data.
const VERSION: u8 = 1;

/// 32 random bytes that both planes of a cluster hold. It is never printed, and is wiped when dropped.
#[derive(Clone)]
pub struct ClusterKey(KeyBytes);

/// Why sealed bytes cannot be unsealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// Too short, or in the form of another release.
    #[error("not sealed bytes that this release can read")]
    Malformed,
    /// Sealed with another key or for another purpose, or changed since.
    #[error("sealed with another cluster key or for another purpose, or damaged")]
    Refused,
}

impl ClusterKey {
    pub fn generate() -> Self {
        Self(key_file::generate())
    }

    /// Reads the key file at `path`, or creates it with a new key, mode 0600.
    ///
    /// # Errors
    /// If others can read the file, or it holds something else, or it can be neither read nor created.
    pub fn load_or_generate(path: impl AsRef<Path>) -> Result<Self, KeyFileError> {
        key_file::load_or_generate(LABEL, path.as_ref()).map(Self)
    }

    /// Reads the key file at `path`.
    ///
    /// # Errors
    /// If there is none, or others can read it, or it holds something else, or it cannot be read.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, KeyFileError> {
        key_file::load(LABEL, path.as_ref()).map(Self)
    }

    /// Reads a key from the text of a key file.
    ///
    /// # Errors
    /// If it is not the text of a cluster key.
    pub fn parse(text: &str) -> Result<Self, KeyTextError> {
        key_file::parse(LABEL, text).map(Self)
    }

    /// The text for a key file.
    pub fn to_text(&self) -> Secret<String> {
        Secret::new(key_file::encode(LABEL, &self.0).to_string())
    }

    /// Encrypts `plain` so that only this key can read it, and only for the same purpose.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Vec<u8> {
        let mut body = plain.to_vec();
        let nonce = self
            .sealing()
            .seal_in_place_append_tag(Aad::from(purpose), &mut body)
            .expect("AES-GCM takes any text, and the system has randomness");
        [&[VERSION][..], nonce.as_ref(), &body].concat()
    }

    /// Decrypts what was sealed for `purpose`.
    ///
    /// # Errors
    /// If it was sealed with another key or for another purpose, or was changed.
    pub fn unseal(&self, purpose: &str, sealed: &[u8]) -> Result<Secret<Vec<u8>>, UnsealError> {
        let Some((&VERSION, rest)) = sealed.split_first() else { return Err(UnsealError::Malformed) };
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or(UnsealError::Malformed)?;
        let mut body = Zeroizing::new(body.to_vec());
        let plain = self
            .sealing()
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(purpose), &mut body)
            .map_err(|_| UnsealError::Refused)?;
        Ok(Secret::new(plain.to_vec()))
    }

    /// The tokens that are signed with this key.
    pub fn tokens(&self) -> Tokens {
        Tokens::new(&self.derive("entrepot tokens v1"))
    }

    fn sealing(&self) -> RandomizedNonceKey {
        let key = self.derive("entrepot seal v1");
        RandomizedNonceKey::new(&AES_256_GCM, &*key).expect("AES-256 has keys of 32 bytes")
    }

    /// Derives a separate key for each use, so that no use endangers another.
    pub(crate) fn derive(&self, usage: &str) -> KeyBytes {
        struct Length;
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                KEY_BYTES
            }
        }
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"entrepot cluster key")
            .extract(&*self.0)
            .expand(&[usage.as_bytes()], Length)
            .and_then(|output| output.fill(&mut *key))
            .expect("32 bytes are within what HKDF gives");
        key
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_sealed_is_read_with_the_same_key_and_purpose_only() {
        let key = ClusterKey::generate();
        let sealed = key.seal("upstream-password/1", b"hunter22");
        assert_eq!(key.unseal("upstream-password/1", &sealed).unwrap().expose(), b"hunter22");
        assert_eq!(key.unseal("upstream-password/2", &sealed).unwrap_err(), UnsealError::Refused);
        let other = ClusterKey::generate();
        assert_eq!(other.unseal("upstream-password/1", &sealed).unwrap_err(), UnsealError::Refused);
        assert_ne!(key.seal("upstream-password/1", b"hunter22"), sealed);
    }

    #[test]
    fn any_changed_or_missing_byte_is_refused() {
        let key = ClusterKey::generate();
        let sealed = key.seal("p", b"secret");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.unseal("p", &changed).is_err(), "byte {at}");
            assert!(key.unseal("p", &sealed[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(key.unseal("p", &[2; 40]).unwrap_err(), UnsealError::Malformed);
    }

    #[test]
    fn a_key_survives_its_text_and_does_not_print() {
        let key = ClusterKey::generate();
        let again = ClusterKey::parse(key.to_text().expose()).unwrap();
        assert!(again.unseal("p", &key.seal("p", b"x")).is_ok());
        assert_eq!(format!("{key:?}"), "ClusterKey(…)");
    }

    proptest! {
        #[test]
        fn everything_can_be_sealed(plain in proptest::collection::vec(any::<u8>(), 0..200), purpose in ".{0,40}") {
            let key = ClusterKey::generate();
            let sealed = key.seal(&purpose, &plain);
            let unsealed = key.unseal(&purpose, &sealed).unwrap();
            prop_assert_eq!(unsealed.expose(), &plain);
        }

        #[test]
        fn unsealing_anything_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(ClusterKey::generate().unseal("p", &bytes).is_err());
        }
    }
}
