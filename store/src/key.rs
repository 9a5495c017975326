//! Keys, the names of objects.

use std::fmt;
use std::str::FromStr;

/// The name of an object: parts separated by `/`, each a legal file name that does not begin with a dot.
///
/// Keys order by bytes, as object storage lists them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Box<str>);

/// Why a text is not a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Longer than object storage permits.
    #[error("must have at most {} bytes", Key::MAX_BYTES)]
    TooLong,
    /// A part is empty, too long, begins with an illegal character or contains one.
    #[error(
        "must be parts separated by `/`, each of 1 to {} letters, digits, `_`, `.` and `-`, beginning with a letter, a digit or `_`",
        Key::MAX_PART_BYTES
    )]
    BadPart,
}

impl Key {
    /// The longest key that object storage permits.
    pub const MAX_BYTES: usize = 1024;
    /// The longest part, since parts are file names in a local store.
    pub const MAX_PART_BYTES: usize = 255;

    /// Reads a key, for example from a record.
    ///
    /// # Errors
    /// If it is too long, or one of its parts is not a legal file name.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if text.len() > Self::MAX_BYTES {
            return Err(KeyError::TooLong);
        }
        if text.split('/').all(is_part) { Ok(Self(text.into())) } else { Err(KeyError::BadPart) }
    }

    /// A key made of parts that are known to be legal. Only debug builds check it again.
    pub fn new_unchecked(text: String) -> Self {
        debug_assert_eq!(Self::parse(&text).as_ref().map(Self::as_str), Ok(text.as_str()));
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::parse(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A common beginning of keys: a folder with its trailing `/`, or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(Box<str>);

impl Prefix {
    /// The prefix of every key.
    pub fn all() -> Self {
        Self("".into())
    }

    /// The prefix of keys below `folder`, which is spelled like a key.
    ///
    /// # Errors
    /// As [`Key::parse`].
    pub fn below(folder: &str) -> Result<Self, KeyError> {
        Key::parse(folder).map(|folder| Self(format!("{folder}/").into()))
    }

    /// The prefix of keys below a folder made of parts that are known to be legal. Only debug builds check it again.
    pub fn new_unchecked(folder: String) -> Self {
        debug_assert!(Self::below(&folder).is_ok(), "{folder}");
        Self((folder + "/").into())
    }

    /// The prefix as text; empty, or ending with `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}`. Neither `..` nor a hidden file can be spelled this way.
fn is_part(part: &str) -> bool {
    (1..=Key::MAX_PART_BYTES).contains(&part.len())
        && !part.starts_with(['.', '-'])
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_cannot_leave_the_store() {
        for text in ["", "/", "a/", "/a", "a//b", "..", "a/../b", ".tmp/x", "-a", "a b", "a\0b", "é", "a\\b"] {
            assert_eq!(Key::parse(text), Err(KeyError::BadPart), "{text:?}");
        }
        assert_eq!(Key::parse(&"a".repeat(256)), Err(KeyError::BadPart));
        assert_eq!(Key::parse(&"a/".repeat(600)), Err(KeyError::TooLong));
        assert!(Key::parse(&"a".repeat(255)).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_an_error(text in ".{0,300}") {
            if let Ok(key) = Key::parse(&text) {
                prop_assert_eq!(key.as_str(), text);
            }
        }
    }
}
