//! Words in records, both those that this release knows and those of other releases.

use std::fmt;

use entrepot_domain::future;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Fields that only another release knows. They are written back unchanged.
pub type Rest = serde_json::Map<String, serde_json::Value>;

/// The unknown fields of a new record: none, except in builds that play a later release.
pub(crate) fn rest_of_new() -> Rest {
    future::record_field().into_iter().map(|field| (field.to_owned(), true.into())).collect()
}

/// The words of one kind that this release knows.
pub trait Vocabulary: Copy + PartialEq {
    /// The meaning of a word.
    fn read(word: &str) -> Option<Self>;

    fn word(&self) -> &'static str;
}

/// A word in a record. An unknown word is kept, and never means the same as a known one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word<T> {
    /// A word of this release.
    Known(T),
    /// A word of another release.
    Unknown(Box<str>),
}

impl<T: Vocabulary> Word<T> {
    /// Its meaning, if this release knows it.
    pub fn known(&self) -> Option<T> {
        match self {
            Self::Known(value) => Some(*value),
            Self::Unknown(_) => None,
        }
    }

    /// The word itself.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(value) => value.word(),
            Self::Unknown(word) => word,
        }
    }
}

impl<T> From<T> for Word<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: PartialEq> PartialEq<T> for Word<T> {
    fn eq(&self, other: &T) -> bool {
        matches!(self, Self::Known(value) if value == other)
    }
}

impl<T: Vocabulary> fmt::Display for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<T: Vocabulary> Serialize for Word<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de, T: Vocabulary> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        Ok(T::read(&word).map_or_else(|| Self::Unknown(word.into()), Self::Known))
    }
}
