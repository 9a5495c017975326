//! Words of records: those that this release knows, and those that only another one does.

use std::fmt;

use entrepot_domain::MediaType;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Fields that only another release knows; they are written back as they were read.
pub type Rest = serde_json::Map<String, serde_json::Value>;

/// A set of words that this release knows.
pub trait Vocabulary: Copy + PartialEq {
    /// What a word means.
    fn read(word: &str) -> Option<Self>;

    /// The word for it.
    fn word(&self) -> &'static str;
}

/// A word of a record. One that is not known here is kept, and means nothing that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word<T> {
    /// A word of this release.
    Known(T),
    /// A word of another release.
    Unknown(Box<str>),
}

impl<T: Vocabulary> Word<T> {
    /// What it means, if that is known here.
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

impl Vocabulary for MediaType {
    fn read(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == word)
    }

    fn word(&self) -> &'static str {
        self.as_str()
    }
}
