//! Patterns of tags, such as `v*` or `*-release`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::reference::Tag;

/// A pattern of tags: `*` stands for any number of characters, everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TagPattern(Box<str>);

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 128 letters, digits, `_`, `.`, `-` and `*`, such as `v*` or `*-release`")]
pub struct TagPatternError;

impl TagPattern {
    /// No tag is longer, so no pattern is.
    const MAX_BYTES: usize = 128;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the pattern matches this tag.
    pub fn matches(&self, tag: &Tag) -> bool {
        let (pattern, tag) = (self.0.as_bytes(), tag.as_str().as_bytes());
        let (mut at, mut seen) = (0, 0);
        // The last star, and how much of the tag it matches. An earlier star never has to match more.
        let mut star: Option<(usize, usize)> = None;
        while seen < tag.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, seen));
                    at += 1;
                }
                Some(byte) if *byte == tag[seen] => {
                    at += 1;
                    seen += 1;
                }
                Some(_) | None => {
                    let Some((from, taken)) = star else { return false };
                    star = Some((from, taken + 1));
                    at = from + 1;
                    seen = taken + 1;
                }
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

impl TryFrom<String> for TagPattern {
    type Error = TagPatternError;

    fn try_from(text: String) -> Result<Self, TagPatternError> {
        text.parse()
    }
}

impl From<TagPattern> for String {
    fn from(pattern: TagPattern) -> Self {
        pattern.0.into()
    }
}

impl FromStr for TagPattern {
    type Err = TagPatternError;

    fn from_str(text: &str) -> Result<Self, TagPatternError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'*');
        let is_legal = (1..=Self::MAX_BYTES).contains(&text.len()) && text.bytes().all(legal);
        if is_legal { Ok(Self(text.into())) } else { Err(TagPatternError) }
    }
}

impl fmt::Display for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_star_stands_for_any_number_of_characters_and_all_else_for_itself() {
        for (pattern, matching, others) in [
            ("v*", &["v", "v1", "v1.2.3", "v-release"][..], &["V1", "1v", "dev"][..]),
            ("*-release", &["v1-release", "1-2-release", "a-release-release"], &["release", "v1-release2", "_release"]),
            ("*", &["a", "latest"], &[]),
            ("latest", &["latest"], &["latest1", "alatest", "lates"]),
            ("v*.*.0", &["v1.2.0", "v1.2.3.0", "v..0"], &["v1.0", "v1.2.1"]),
            ("a**b", &["ab", "axb"], &["a", "abc"]),
            ("*a*a*", &["aa", "xaya"], &["a", "xay"]),
        ] {
            let parsed: TagPattern = pattern.parse().unwrap();
            assert_eq!((parsed.as_str(), parsed.to_string().as_str()), (pattern, pattern));
            for tag in matching {
                assert!(parsed.matches(&tag.parse().unwrap()), "{pattern} {tag}");
            }
            for tag in others {
                assert!(!parsed.matches(&tag.parse().unwrap()), "{pattern} {tag}");
            }
        }
    }

    #[test]
    fn what_no_tag_can_hold_is_no_pattern() {
        for text in ["", "a/b", "a b", "v?", "[a]", "a:b", "ä", &"a".repeat(129)] {
            assert_eq!(text.parse::<TagPattern>(), Err(TagPatternError), "{text}");
        }
    }

    /// A naive definition of what a pattern matches.
    fn means(pattern: &[u8], tag: &[u8]) -> bool {
        match pattern.split_first() {
            None => tag.is_empty(),
            Some((b'*', rest)) => (0..=tag.len()).any(|taken| means(rest, &tag[taken..])),
            Some((byte, rest)) => tag.first() == Some(byte) && means(rest, &tag[1..]),
        }
    }

    proptest! {
        #[test]
        fn the_matcher_agrees_with_the_plain_meaning(pattern in "[ab*]{1,8}", tag in "[ab]{1,8}") {
            let expected = means(pattern.as_bytes(), tag.as_bytes());
            prop_assert_eq!(pattern.parse::<TagPattern>().unwrap().matches(&tag.parse().unwrap()), expected);
        }
    }
}
