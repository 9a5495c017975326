//! Access keys: `<key id>:<secret>`.
//!
//! A generated secret has 240 random bits, so a fast hash is enough for it. A chosen secret can be guessed, so it needs
//! a slow hash. Nodes know only hashes. The control plane's database also holds generated secrets themselves, sealed
//! with the cluster key, because a signature made with a secret can be checked only with the secret.

mod chosen;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Argon2, Params};
use aws_lc_rs::{constant_time, rand};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use entrepot_domain::{AccessKeyId, Secret};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::cluster_key::{ClusterKey, UnsealError};
pub use chosen::{ChosenSecretError, Guessable, check_chosen, check_length};

/// How many slow hashes are computed at once. Each takes 19 MiB and a core.
pub(crate) const SLOW_HASHES: usize = 2;
/// The minimum length of a chosen secret.
pub const CHOSEN_MIN_CHARACTERS: usize = 8;
/// The maximum length of a secret, which limits the cost of a hash.
pub const SECRET_MAX_BYTES: usize = 1024;

static SLOW: Semaphore = Semaphore::const_new(SLOW_HASHES);

/// The hash of a secret.
#[derive(Clone, PartialEq, Eq)]
pub enum AccessKeyHash {
    /// Of a generated secret.
    Sha256([u8; 32]),
    /// Of a chosen secret: a PHC string.
    Argon2id(String),
}

/// Bytes that are not the hash of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the hash of an access key's secret that this release can read")]
pub struct HashError;

/// A text that is not `<key id>:<secret>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be `<key id>:<secret>`; the key id is 1 to 63 letters, digits and inner hyphens, the secret is not empty"
)]
pub struct PairError;

impl AccessKeyHash {
    /// The hash as bytes, ready to be sealed.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Sha256(hash) => [b"s", hash.as_slice()].concat(),
            Self::Argon2id(phc) => [b"a", phc.as_bytes()].concat(),
        }
    }

    /// Reads a hash back.
    ///
    /// # Errors
    /// If the bytes are not what [`AccessKeyHash::encode`] gave.
    pub fn decode(bytes: &[u8]) -> Result<Self, HashError> {
        match bytes.split_first() {
            Some((b's', hash)) => hash.try_into().map(Self::Sha256).map_err(|_| HashError),
            Some((b'a', phc)) => {
                let phc = std::str::from_utf8(phc).map_err(|_| HashError)?;
                PasswordHash::new(phc).map_err(|_| HashError)?;
                Ok(Self::Argon2id(phc.to_owned()))
            }
            _ => Err(HashError),
        }
    }

    /// A hash that matches no known secret, and that takes as long to check as that of a chosen one.
    pub(crate) fn of_nobody() -> Self {
        let encode = |bytes: &[u8]| STANDARD_NO_PAD.encode(bytes);
        let (memory, passes, lanes) = (Params::DEFAULT_M_COST, Params::DEFAULT_T_COST, Params::DEFAULT_P_COST);
        let (salt, output) = (encode(&random::<16>()), encode(&random::<32>()));
        Self::Argon2id(format!("$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}${output}"))
    }

    /// Whether `secret` has this hash. This is slow for a chosen one.
    pub(crate) fn matches(&self, secret: &[u8]) -> bool {
        match self {
            Self::Sha256(hash) => constant_time::verify_slices_are_equal(&Sha256::digest(secret), hash).is_ok(),
            Self::Argon2id(phc) => {
                PasswordHash::new(phc).is_ok_and(|hash| Argon2::default().verify_password(secret, &hash).is_ok())
            }
        }
    }
}

impl std::fmt::Debug for AccessKeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sha256(_) => "Sha256(…)",
            Self::Argon2id(_) => "Argon2id(…)",
        })
    }
}

pub fn hash_generated(secret: &Secret<String>) -> AccessKeyHash {
    AccessKeyHash::Sha256(Sha256::digest(secret.expose()).into())
}

/// The hash of a chosen secret; see [`check_chosen`]. It waits for its turn, because it uses a core for a while.
pub async fn hash_chosen(secret: &Secret<String>) -> AccessKeyHash {
    let turn = SLOW.acquire().await.expect("the semaphore is never closed");
    let secret = secret.clone();
    let hash = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        Argon2::default().hash_password(secret.expose().as_bytes()).map(|hash: PasswordHash| hash.to_string())
    });
    AccessKeyHash::Argon2id(hash.await.expect("hashing does not panic").expect("the default parameters are legal"))
}

/// A new secret: 40 characters, 240 random bits.
pub fn generate_secret() -> Secret<String> {
    Secret::new(STANDARD.encode(random::<30>()))
}

pub fn generate_key_id() -> AccessKeyId {
    AccessKeyId::generated(random())
}

/// Seals a generated secret, so that only holders of the cluster key can read it.
pub fn seal_secret(key: &ClusterKey, id: &AccessKeyId, secret: &Secret<String>) -> Vec<u8> {
    key.seal(&secret_purpose(id), secret.expose().as_bytes())
}

/// Reads a secret that [`seal_secret`] has sealed.
///
/// # Errors
/// If it was sealed with another cluster key or for another access key.
pub fn unseal_secret(key: &ClusterKey, id: &AccessKeyId, sealed: &[u8]) -> Result<Secret<String>, UnsealError> {
    let secret = key.unseal(&secret_purpose(id), sealed)?;
    let secret = String::from_utf8(secret.expose().clone()).map_err(|_| UnsealError::Malformed)?;
    Ok(Secret::new(secret))
}

fn secret_purpose(id: &AccessKeyId) -> String {
    format!("access-key-secret/{id}")
}

/// Reads `<key id>:<secret>`. The secret may hold colons.
///
/// # Errors
/// If it is not such a pair.
pub fn parse_pair(text: &str) -> Result<(AccessKeyId, Secret<String>), PairError> {
    let (key_id, secret) = text.split_once(':').ok_or(PairError)?;
    let key_id = key_id.parse().map_err(|_| PairError)?;
    let legal = (1..=SECRET_MAX_BYTES).contains(&secret.len());
    if legal { Ok((key_id, Secret::new(secret.to_owned()))) } else { Err(PairError) }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system has randomness");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    #[tokio::test]
    async fn hashes_match_their_own_secret_only_also_after_a_round_trip() {
        let generated = generate_secret();
        let hashes = [
            (generated.clone(), hash_generated(&generated)),
            (secret("correct horse"), hash_chosen(&secret("correct horse")).await),
        ];
        for (own, hash) in hashes {
            let again = AccessKeyHash::decode(&hash.encode()).unwrap();
            assert_eq!(again, hash);
            assert!(again.matches(own.expose().as_bytes()), "{hash:?}");
            assert!(!again.matches(b"correct horsf") && !again.matches(b""), "{hash:?}");
            assert!(!format!("{hash:?}").contains('$'));
        }
        let twice = (hash_chosen(&secret("correct horse")).await, hash_chosen(&secret("correct horse")).await);
        assert_ne!(twice.0, twice.1);
    }

    #[test]
    fn other_bytes_are_no_hash() {
        for bytes in [&b""[..], b"s", b"sshort", b"a", b"anot a phc string", b"x$argon2id", b"a\xff"] {
            assert_eq!(AccessKeyHash::decode(bytes), Err(HashError), "{bytes:?}");
        }
    }

    #[test]
    fn pairs_are_read_at_the_first_colon() {
        let (key_id, read) = parse_pair("admin:a:b").unwrap();
        assert_eq!((key_id.as_str(), read.expose().as_str()), ("admin", "a:b"));
        assert_eq!(parse_pair("Admin:x").unwrap().0, key_id);
        for text in ["", "admin", "admin:", ":x", "-a:x", &format!("a:{}", "x".repeat(1025))] {
            assert_eq!(parse_pair(text).err(), Some(PairError), "{text}");
        }
    }

    #[test]
    fn generated_keys_are_legal_pairs_and_differ() {
        let pair = format!("{}:{}", generate_key_id(), generate_secret().expose());
        assert!(parse_pair(&pair).is_ok(), "{pair}");
        assert_ne!(generate_secret().expose(), generate_secret().expose());
        assert_ne!(generate_key_id(), generate_key_id());
    }

    #[test]
    fn a_generated_secret_can_be_had_back_with_the_cluster_key_alone() {
        let (key, id, secret) = (ClusterKey::generate(), generate_key_id(), generate_secret());
        assert_eq!(secret.expose().len(), 40);
        assert!(secret.expose().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/'));
        let sealed = seal_secret(&key, &id, &secret);
        assert_eq!(unseal_secret(&key, &id, &sealed).unwrap().expose(), secret.expose());
        assert_eq!(unseal_secret(&ClusterKey::generate(), &id, &sealed).err(), Some(UnsealError::Refused));
        assert_eq!(unseal_secret(&key, &generate_key_id(), &sealed).err(), Some(UnsealError::Refused));
    }

    #[tokio::test]
    async fn the_hash_of_nobody_looks_like_any_other_and_takes_as_long() {
        let shape = |hash: &AccessKeyHash| {
            let text = String::from_utf8(hash.encode()).unwrap();
            let parts: Vec<String> = text.split('$').map(str::to_owned).collect();
            (parts[..4].to_vec(), parts[4..].iter().map(String::len).collect::<Vec<_>>())
        };
        let nobody = AccessKeyHash::of_nobody();
        assert_eq!(shape(&nobody), shape(&hash_chosen(&secret("correct horse")).await));
        assert_eq!(AccessKeyHash::decode(&nobody.encode()), Ok(nobody.clone()));
        assert!(!nobody.matches(b"correct horse"));
    }
}
