//! Names of repositories, of the prefixes that rules cover, and of the things that operators configure.

use std::fmt;
use std::str::FromStr;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("is {bytes} bytes long, at most {limit} are allowed")]
    TooLong { bytes: usize, limit: usize },
    /// A part between slashes is illegal.
    #[error(
        "has the part `{0}`: parts are lower-case letters and digits, separated by one `.`, one or two `_`, or any number of `-`"
    )]
    BadComponent(Box<str>),
    #[error("`{0}` must be 1 to 63 lower-case letters, digits and hyphens, and neither begin nor end with a hyphen")]
    BadId(Box<str>),
}

/// A repository name as clients write it, such as `hub/library/nginx`; always legal by the OCI grammar.
///
/// Source: OCI distribution specification 1.1, "Pulling manifests".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Box<str>);

impl RepositoryName {
    /// The longest accepted name. Many clients refuse names of more than 255 bytes, including the host.
    pub const MAX_BYTES: usize = 255;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number of parts between slashes; at least one.
    pub fn component_count(&self) -> usize {
        self.0.split('/').count()
    }
}

impl FromStr for RepositoryName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        check_path(name, Self::MAX_BYTES)?;
        Ok(Self(name.into()))
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The leading path segments of repository names that a rule covers; the root covers every name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacePrefix(Box<str>);

impl NamespacePrefix {
    /// The text that stands for the root.
    pub const ROOT: &'static str = "ROOT";
    /// The longest accepted prefix; it leaves room for a name behind it.
    pub const MAX_BYTES: usize = 128;

    /// The prefix that covers every name.
    pub fn root() -> Self {
        Self("".into())
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The segments without the trailing slash; empty for the root.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// The rest of `name` behind this prefix, or `None` if the prefix does not cover it.
    pub fn strip<'n>(&self, name: &'n RepositoryName) -> Option<&'n str> {
        if self.is_root() {
            return Some(name.as_str());
        }
        name.as_str().strip_prefix(&*self.0)?.strip_prefix('/')
    }

    /// The name `rest` below this prefix.
    ///
    /// # Errors
    /// If the result is too long for a repository name.
    pub fn join(&self, rest: &str) -> Result<RepositoryName, NameError> {
        if self.is_root() { rest.parse() } else { format!("{}/{rest}", self.0).parse() }
    }
}

impl FromStr for NamespacePrefix {
    type Err = NameError;

    /// Reads a prefix in ECR's grammar: a path with an optional trailing slash, or `ROOT`.
    fn from_str(prefix: &str) -> Result<Self, NameError> {
        if prefix == Self::ROOT {
            return Ok(Self::root());
        }
        let path = prefix.strip_suffix('/').unwrap_or(prefix);
        check_path(path, Self::MAX_BYTES)?;
        Ok(Self(path.into()))
    }
}

impl fmt::Display for NamespacePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_root() { Self::ROOT } else { &self.0 })
    }
}

/// The id of something that operators configure: the last segment of `rules/hub` or `upstreams/docker-hub`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId(Box<str>);

impl ResourceId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ResourceId {
    type Err = NameError;

    fn from_str(id: &str) -> Result<Self, NameError> {
        let legal = (1..=63).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !id.starts_with('-')
            && !id.ends_with('-');
        if legal { Ok(Self(id.into())) } else { Err(NameError::BadId(shortened(id))) }
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_path(path: &str, limit: usize) -> Result<(), NameError> {
    if path.len() > limit {
        return Err(NameError::TooLong { bytes: path.len(), limit });
    }
    match path.split('/').find(|part| !is_component(part)) {
        Some(part) => Err(NameError::BadComponent(shortened(part))),
        None => Ok(()),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let legal_separator = |s: &str| matches!(s, "." | "_" | "__") || (!s.is_empty() && s.bytes().all(|b| b == b'-'));
    let bytes = part.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    alphanumeric(first)
        && alphanumeric(last)
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|s| s.is_empty() || legal_separator(s))
}

/// The part of a wrong value that goes into a message: enough to find it.
fn shortened(text: &str) -> Box<str> {
    const LIMIT: usize = 80;
    if text.chars().count() <= LIMIT { text.into() } else { text.chars().take(LIMIT).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn r_name_01_names_follow_the_oci_grammar() {
        for name in ["a", "hub/library/nginx", "a.b/c_d/e__f/g---h", "manifests/blobs/tags", "0/1"] {
            assert!(name.parse::<RepositoryName>().is_ok(), "{name}");
        }
        for name in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", "a b", "_a", "a/_b", "..", "a/../b",
            "é",
        ] {
            assert!(name.parse::<RepositoryName>().is_err(), "{name}");
        }
    }

    #[test]
    fn r_name_02_names_have_a_longest_length() {
        assert!("a".repeat(255).parse::<RepositoryName>().is_ok());
        let error = "a".repeat(256).parse::<RepositoryName>().unwrap_err();
        assert_eq!(error, NameError::TooLong { bytes: 256, limit: 255 });
    }

    #[test]
    fn a_prefix_covers_whole_segments_only() {
        let prefix: NamespacePrefix = "hub/".parse().unwrap();
        assert_eq!(prefix.strip(&"hub/nginx".parse().unwrap()), Some("nginx"));
        assert_eq!(prefix.strip(&"hubs/nginx".parse().unwrap()), None);
        assert_eq!(prefix.strip(&"hub".parse().unwrap()), None);
        assert_eq!(prefix.to_string(), "hub");
    }

    #[test]
    fn root_is_a_word_and_covers_everything() {
        let root: NamespacePrefix = "ROOT".parse().unwrap();
        assert!(root.is_root());
        assert_eq!(root.strip(&"a/b".parse().unwrap()), Some("a/b"));
        assert_eq!(root.join("a/b").unwrap().as_str(), "a/b");
        assert!("root/".parse::<NamespacePrefix>().is_ok_and(|p| !p.is_root()));
        assert!("".parse::<NamespacePrefix>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_name_or_an_error(text in ".{0,300}") {
            let _ = text.parse::<RepositoryName>();
            let _ = text.parse::<NamespacePrefix>();
            let _ = text.parse::<ResourceId>();
        }

        #[test]
        fn what_is_joined_can_be_stripped(rest in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,3}") {
            let prefix: NamespacePrefix = "mirrors/quay".parse().unwrap();
            let name = prefix.join(&rest).unwrap();
            prop_assert_eq!(prefix.strip(&name), Some(rest.as_str()));
        }
    }
}
