//! The id of an access key.

use std::fmt;
use std::str::FromStr;

use crate::name::{NameError, ResourceId};

/// The id of an access key. Case does not matter: each id is kept in one spelling. A generated id is `AK` followed by
/// 18 characters of `A-Z2-7`, in upper case; ids chosen by people are kept in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccessKeyId(Box<str>);

impl AccessKeyId {
    /// The beginning of generated ids.
    const PREFIX: &'static str = "AK";
    /// The characters after it.
    const ALPHABET: &'static [u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    /// How many characters follow it.
    pub const RANDOM_CHARACTERS: usize = 18;

    /// A generated id. Five bits of each byte count.
    pub fn generated(random: [u8; Self::RANDOM_CHARACTERS]) -> Self {
        let rest = random.map(|byte| char::from(Self::ALPHABET[usize::from(byte % 32)]));
        Self(Self::PREFIX.chars().chain(rest).collect::<String>().into())
    }

    /// The id in the spelling that is kept.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has the form of generated ids, which a chosen id can have, too.
    pub fn is_of_generated_form(&self) -> bool {
        Self::is_generated(&self.0)
    }

    /// Whether an upper-case text has the form of [`AccessKeyId::generated`].
    fn is_generated(text: &str) -> bool {
        let rest = text.strip_prefix(Self::PREFIX);
        rest.is_some_and(|rest| {
            rest.len() == Self::RANDOM_CHARACTERS && rest.bytes().all(|byte| Self::ALPHABET.contains(&byte))
        })
    }
}

impl FromStr for AccessKeyId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (lower, upper) = (text.to_ascii_lowercase(), text.to_ascii_uppercase());
        lower.parse::<ResourceId>()?;
        Ok(Self(if Self::is_generated(&upper) { upper } else { lower }.into()))
    }
}

impl fmt::Display for AccessKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_compared_without_case_and_kept_in_one_spelling() {
        for (text, kept) in [
            ("admin", "admin"),
            ("Admin", "admin"),
            ("akabcdefghijklmnop27", "AKABCDEFGHIJKLMNOP27"),
            ("AKABCDEFGHIJKLMNOP27", "AKABCDEFGHIJKLMNOP27"),
            // One character too few, and one that is not of the alphabet.
            ("AKABCDEFGHIJKLMNOP2", "akabcdefghijklmnop2"),
            ("AKABCDEFGHIJKLMNOP18", "akabcdefghijklmnop18"),
        ] {
            let id: AccessKeyId = text.parse().unwrap();
            assert_eq!(id.as_str(), kept, "{text}");
            assert_eq!(id.as_str().parse(), Ok(id.clone()));
        }
        for text in ["", "-a", "a b", "a/b", &"a".repeat(64)] {
            assert!(text.parse::<AccessKeyId>().is_err(), "{text}");
        }
    }

    #[test]
    fn generated_ids_have_20_characters_of_which_18_are_random() {
        let all: Vec<u8> = (0..=255).collect();
        for bytes in all.chunks_exact(AccessKeyId::RANDOM_CHARACTERS) {
            let id = AccessKeyId::generated(bytes.try_into().unwrap());
            assert_eq!((id.as_str().len(), &id.as_str()[..2]), (20, "AK"));
            assert_eq!(id.as_str().to_ascii_lowercase().parse(), Ok(id.clone()));
            assert!(id.is_of_generated_form());
        }
        assert!(!"admin".parse::<AccessKeyId>().unwrap().is_of_generated_form());
        assert_eq!(AccessKeyId::generated([31; 18]).as_str(), "AK777777777777777777");
    }
}
