//! Digests identify bytes; a verifier tells whether bytes match a digest.

#[cfg(feature = "aws-lc")]
mod fastest;

use std::fmt;
use std::str::FromStr;

#[cfg(not(feature = "aws-lc"))]
use sha2::Sha256;
use sha2::{Digest as _, Sha512};

#[cfg(feature = "aws-lc")]
use fastest::Sha256;

/// The hash of some content, such as `sha256:44136fa3…`. Only algorithms that can be verified here are accepted.
///
/// Source: OCI image specification 1.1, "Digests".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, which nearly everything uses.
    Sha256,
    Sha512,
}

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Not `<algorithm>:<encoded>`, or not as many lower-case hex digits as the algorithm has.
    #[error("must be `sha256:` with 64, or `sha512:` with 128 lower-case hex digits")]
    Malformed,
    /// Well formed, but with an algorithm that is not known here.
    #[error("uses an algorithm that is not known here; `sha256` and `sha512` are")]
    UnknownAlgorithm,
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut digester = Digester::new(algorithm);
        digester.update(bytes);
        digester.finish()
    }

    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash in lower-case hex.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, encoded) = text.split_once(':').ok_or(DigestError::Malformed)?;
        let (algorithm, digits) = match algorithm {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            other if is_algorithm(other) && is_encoded(encoded) => return Err(DigestError::UnknownAlgorithm),
            _ => return Err(DigestError::Malformed),
        };
        let legal = encoded.len() == digits && encoded.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if legal { Ok(Self { algorithm, hex: encoded.into() }) } else { Err(DigestError::Malformed) }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.hex)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        })
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Takes content piece by piece, and returns its digest at the end.
#[derive(Clone)]
pub struct Digester {
    algorithm: Algorithm,
    hasher: Hasher,
}

impl Digester {
    /// A digester that has seen nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, hasher: Hasher::new(algorithm) }
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// The digest of all bytes that were taken.
    pub fn finish(self) -> Digest {
        Digest { algorithm: self.algorithm, hex: self.hasher.finish() }
    }
}

impl fmt::Debug for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digester").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// Takes content piece by piece, and tells at the end whether it matches the digest.
#[derive(Clone)]
pub struct Verifier {
    expected: Digest,
    hasher: Hasher,
    seen_bytes: u64,
}

impl Verifier {
    /// A verifier that has seen nothing yet.
    pub fn new(expected: Digest) -> Self {
        Self { hasher: Hasher::new(expected.algorithm), expected, seen_bytes: 0 }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.seen_bytes += bytes.len() as u64;
    }

    /// How many bytes were taken so far.
    pub fn seen_bytes(&self) -> u64 {
        self.seen_bytes
    }

    /// Whether the bytes that were taken hash to the digest.
    pub fn finish(self) -> bool {
        self.hasher.finish() == self.expected.hex
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("expected", &self.expected).field("seen_bytes", &self.seen_bytes).finish()
    }
}

#[derive(Clone)]
enum Hasher {
    Sha256(Sha256),
    // Boxed because it is twice the size of the other one, and rare.
    Sha512(Box<Sha512>),
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Box::new(Sha512::new())),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> Box<str> {
        match self {
            Self::Sha256(hasher) => hex::encode(hasher.finalize()).into(),
            Self::Sha512(hasher) => hex::encode(hasher.finalize()).into(),
        }
    }
}

/// `[a-z0-9]+([+._-][a-z0-9]+)*`
fn is_algorithm(text: &str) -> bool {
    text.split(['+', '.', '_', '-'])
        .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
}

/// `[a-zA-Z0-9=_-]+`
fn is_encoded(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn r_name_05_digests_have_the_algorithms_own_length_in_lower_case_hex() {
        assert_eq!(Digest::sha256(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::sha256(b"")));
        for text in
            ["", "sha256", "sha256:", "sha256:baddigeststring", &EMPTY.to_uppercase(), &EMPTY[..70], "sha256:=="]
        {
            assert_eq!(text.parse::<Digest>(), Err(DigestError::Malformed), "{text}");
        }
        let upper = format!("sha256:{}", EMPTY[7..].to_uppercase());
        assert_eq!(upper.parse::<Digest>(), Err(DigestError::Malformed));
    }

    #[test]
    fn r_name_06_an_unknown_algorithm_is_told_from_a_malformed_digest() {
        assert_eq!("blake3:00ff".parse::<Digest>(), Err(DigestError::UnknownAlgorithm));
        assert_eq!("blake3:".parse::<Digest>(), Err(DigestError::Malformed));
        assert_eq!("Blake3:00".parse::<Digest>(), Err(DigestError::Malformed));
    }

    proptest! {
        #[test]
        fn r_name_07_a_verifier_accepts_the_bytes_in_any_pieces_and_no_others(
            bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..400, sha512: bool,
        ) {
            let algorithm = if sha512 { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let digest = Digest::of(algorithm, &bytes);
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            let mut verifier = Verifier::new(digest.clone());
            verifier.update(head);
            verifier.update(tail);
            prop_assert_eq!(verifier.seen_bytes(), bytes.len() as u64);
            let mut longer = verifier.clone();
            longer.update(b"x");
            prop_assert!(verifier.finish());
            prop_assert!(!longer.finish());
        }

        #[test]
        fn any_text_is_a_digest_or_an_error(text in ".{0,200}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }
    }
}
