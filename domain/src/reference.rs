//! What a client asks for inside a repository: a tag, which moves, or a digest, which does not.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};
use crate::name::{NameError, RepositoryName};

/// A movable name inside a repository, such as `latest`; case matters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Box<str>);

/// Why a text is not a tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 128 letters, digits, `_`, `.` and `-`, and begin with a letter, a digit or `_`")]
pub struct TagError;

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = TagError;

    /// Reads `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
    fn from_str(text: &str) -> Result<Self, TagError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let legal = (1..=128).contains(&text.len())
            && text.bytes().enumerate().all(|(i, b)| word(b) || (i > 0 && matches!(b, b'.' | b'-')));
        if legal { Ok(Self(text.into())) } else { Err(TagError) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A movable name.
    Tag(Tag),
    /// The hash of exactly one content.
    Digest(Digest),
}

/// Why a text is neither a tag nor a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Has no colon and is not a tag.
    #[error("the tag {0}")]
    Tag(#[from] TagError),
    /// Has a colon and is not a digest.
    #[error("the digest {0}")]
    Digest(#[from] DigestError),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// A tag cannot hold a colon and a digest must, so the colon decides; `sha256-<hex>` is a tag like any other.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// An image as people write it, without the registry's host: `hub/nginx:1.27`, `hub/nginx@sha256:…` or `hub/nginx`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    pub repository: RepositoryName,
    /// The tag or digest; `latest` if the text names none.
    pub reference: Reference,
}

/// Why a text is not an image name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageNameError {
    /// The repository name is illegal.
    #[error("the repository name {0}")]
    Name(#[from] NameError),
    /// The tag or digest is illegal.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
}

impl FromStr for ImageName {
    type Err = ImageNameError;

    /// If both a tag and a digest are given, the digest decides, as it does for clients.
    fn from_str(text: &str) -> Result<Self, ImageNameError> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(Reference::Digest(digest.parse().map_err(ReferenceError::from)?))),
            None => (text, None),
        };
        let (repository, tag) = match name.split_once(':') {
            Some((repository, tag)) => (repository, tag.parse::<Tag>()),
            None => (name, "latest".parse::<Tag>()),
        };
        let repository = repository.parse()?;
        let tag = Reference::Tag(tag.map_err(ReferenceError::from)?);
        Ok(Self { repository, reference: digest.unwrap_or(tag) })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = match self.reference {
            Reference::Tag(_) => ':',
            Reference::Digest(_) => '@',
        };
        write!(f, "{}{separator}{}", self.repository, self.reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r_name_03_tags_are_up_to_128_characters_of_a_small_set() {
        for tag in ["latest", "_x", "1.27-alpine", "A", &"a".repeat(128)] {
            assert!(tag.parse::<Tag>().is_ok(), "{tag}");
        }
        for tag in ["", ".x", "-x", "a+b", "a b", "é", &"a".repeat(129), ".INVALID_MANIFEST_NAME"] {
            assert!(tag.parse::<Tag>().is_err(), "{tag}");
        }
    }

    #[test]
    fn r_name_08_a_tag_that_looks_like_a_digest_is_a_tag() {
        let text = format!("sha256-{}", "0".repeat(64));
        assert!(matches!(text.parse(), Ok(Reference::Tag(_))));
        assert!(matches!("sha256:baddigeststring".parse::<Reference>(), Err(ReferenceError::Digest(_))));
    }

    #[test]
    fn image_names_are_read_as_people_write_them() {
        let digest = Digest::sha256(b"").to_string();
        for (text, read) in [
            ("hub/nginx".to_owned(), "hub/nginx:latest".to_owned()),
            ("hub/nginx:1.27".to_owned(), "hub/nginx:1.27".to_owned()),
            (format!("a/b@{digest}"), format!("a/b@{digest}")),
            (format!("a/b:v1@{digest}"), format!("a/b@{digest}")),
        ] {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), read);
        }
        for text in ["", ":v1", "a:", "a@", "A:v1", "host:5000/a:v1", "a@sha256:00"] {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
    }
}
