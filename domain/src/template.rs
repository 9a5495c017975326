//! Settings that a repository receives when its first pull creates it.
//!
//! A template is applied once: changing it later changes no existing repository. As with Amazon ECR, the template with
//! the longest prefix that covers the repository's name is used, and `ROOT` covers all other names.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::freshness::TagPattern;
use crate::name::{NamespacePrefix, ResourceId};
use crate::reference::Tag;

/// The settings for new repositories below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Identifies the template for ever, even if another one later takes its id or prefix.
    pub uid: Uuid,
    /// What operators call it.
    pub id: ResourceId,
    /// The repositories it is for.
    pub prefix: NamespacePrefix,
    /// Whether their tags may move.
    pub tag_mutability: TagMutability,
    /// The marks that they get.
    pub resource_tags: ResourceTags,
}

/// A repository's own settings, from its creation on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepositorySettings {
    /// The template that was applied, if any.
    pub template: Option<ResourceId>,
    /// Whether its tags may move.
    pub tag_mutability: TagMutability,
    /// The repository's marks.
    pub resource_tags: ResourceTags,
}

/// Whether the tags of a repository may move, in ECR's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TagMutability {
    /// All tags may move.
    #[default]
    Mutable,
    /// No tag may move.
    Immutable,
    /// Tags may move, except those that a pattern matches.
    MutableExcept(Vec<TagPattern>),
    /// Tags may not move, except those that a pattern matches.
    ImmutableExcept(Vec<TagPattern>),
}

/// Why a mutability and its exclusions are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagMutabilityError {
    /// Not one of the four names.
    #[error("must be MUTABLE, IMMUTABLE, MUTABLE_WITH_EXCLUSION or IMMUTABLE_WITH_EXCLUSION")]
    Unknown,
    /// Exclusions with a mutability that has none.
    #[error(
        "mean something with MUTABLE_WITH_EXCLUSION and IMMUTABLE_WITH_EXCLUSION only: leave them out, or choose one of these"
    )]
    Needless,
    /// Too few or too many exclusions.
    #[error("must be 1 to {} patterns, such as `v*`", TagMutability::MAX_EXCLUSIONS)]
    Count,
}

impl TagMutability {
    /// The most exclusions.
    pub const MAX_EXCLUSIONS: usize = 5;
    /// The names of the four, in records and on the wire between planes.
    pub const NAMES: [&'static str; 4] = ["MUTABLE", "IMMUTABLE", "MUTABLE_WITH_EXCLUSION", "IMMUTABLE_WITH_EXCLUSION"];

    /// The mutability of this name with these exclusions.
    ///
    /// # Errors
    /// If the two do not go together.
    pub fn new(name: &str, exclusions: Vec<TagPattern>) -> Result<Self, TagMutabilityError> {
        let is_plain = exclusions.is_empty();
        match name {
            "MUTABLE" | "IMMUTABLE" if !is_plain => Err(TagMutabilityError::Needless),
            "MUTABLE" => Ok(Self::Mutable),
            "IMMUTABLE" => Ok(Self::Immutable),
            "MUTABLE_WITH_EXCLUSION" | "IMMUTABLE_WITH_EXCLUSION"
                if is_plain || exclusions.len() > Self::MAX_EXCLUSIONS =>
            {
                Err(TagMutabilityError::Count)
            }
            "MUTABLE_WITH_EXCLUSION" => Ok(Self::MutableExcept(exclusions)),
            "IMMUTABLE_WITH_EXCLUSION" => Ok(Self::ImmutableExcept(exclusions)),
            _ => Err(TagMutabilityError::Unknown),
        }
    }

    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Mutable => "MUTABLE",
            Self::Immutable => "IMMUTABLE",
            Self::MutableExcept(_) => "MUTABLE_WITH_EXCLUSION",
            Self::ImmutableExcept(_) => "IMMUTABLE_WITH_EXCLUSION",
        }
    }

    /// The patterns of its exceptions.
    pub fn exclusions(&self) -> &[TagPattern] {
        match self {
            Self::Mutable | Self::Immutable => &[],
            Self::MutableExcept(patterns) | Self::ImmutableExcept(patterns) => patterns,
        }
    }

    /// Whether `tag` keeps its meaning for ever once it has one.
    pub fn freezes(&self, tag: &Tag) -> bool {
        let excluded = || self.exclusions().iter().any(|pattern| pattern.matches(tag));
        match self {
            Self::Mutable => false,
            Self::Immutable => true,
            Self::MutableExcept(_) => excluded(),
            Self::ImmutableExcept(_) => !excluded(),
        }
    }
}

/// Marks of a resource, by key. Only operators give them a meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceTags(BTreeMap<String, String>);

/// Why marks are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceTagError {
    /// The key is too short or too long, or has illegal characters.
    #[error("must have a key of 1 to 128 letters, digits, spaces and `_.:/=+-@`")]
    Key,
    /// The value is too long, or has illegal characters.
    #[error("must have a value of at most 256 letters, digits, spaces and `_.:/=+-@`")]
    Value,
    /// The key is used twice.
    #[error("has a key that another one has")]
    Twice,
    #[error("is one too many: {} is the most", ResourceTags::MAX_COUNT)]
    TooMany,
}

impl ResourceTags {
    pub const MAX_COUNT: usize = 50;

    /// Adds a mark.
    ///
    /// # Errors
    /// If ECR would refuse it, or if there are too many.
    pub fn add(&mut self, key: &str, value: &str) -> Result<(), ResourceTagError> {
        let legal = |text: &str| text.chars().all(|c| c.is_alphanumeric() || " _.:/=+-@".contains(c));
        if key.is_empty() || key.chars().count() > 128 || !legal(key) {
            return Err(ResourceTagError::Key);
        }
        if value.chars().count() > 256 || !legal(value) {
            return Err(ResourceTagError::Value);
        }
        if self.0.contains_key(key) {
            return Err(ResourceTagError::Twice);
        }
        if self.0.len() == Self::MAX_COUNT {
            return Err(ResourceTagError::TooMany);
        }
        self.0.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    /// The legal ones among marks that another release may have written.
    pub fn legal_of<'t>(pairs: impl IntoIterator<Item = (&'t str, &'t str)>) -> Self {
        let mut tags = Self::default();
        for (key, value) in pairs {
            // An illegal mark is left out: marks are no reason not to serve.
            let _illegal = tags.add(key, value).is_err();
        }
        tags
    }

    /// All marks, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

impl Template {
    /// The settings of a repository that this template creates.
    pub fn settings(&self) -> RepositorySettings {
        RepositorySettings {
            template: Some(self.id.clone()),
            tag_mutability: self.tag_mutability.clone(),
            resource_tags: self.resource_tags.clone(),
        }
    }
}

impl RepositorySettings {
    /// Reads what another process, perhaps of another release, has written. Unknown parts are left out, since settings
    /// must never prevent a repository from being served. If the mutability is not understood, no tag may move; if it
    /// is missing, the default applies.
    pub fn lenient<'t>(
        template: &str,
        tag_mutability: &str,
        exclusions: &[String],
        resource_tags: impl IntoIterator<Item = (&'t str, &'t str)>,
    ) -> Self {
        let patterns: Result<Vec<TagPattern>, _> = exclusions.iter().map(|pattern| pattern.parse()).collect();
        let tag_mutability = match (tag_mutability, patterns) {
            ("", _) => TagMutability::default(),
            (name, Ok(patterns)) => TagMutability::new(name, patterns).unwrap_or(TagMutability::Immutable),
            (_, Err(_)) => TagMutability::Immutable,
        };
        Self { template: template.parse().ok(), tag_mutability, resource_tags: ResourceTags::legal_of(resource_tags) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<TagPattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn tags_are_frozen_as_ecr_has_it() {
        let v1: Tag = "v1".parse().unwrap();
        let latest: Tag = "latest".parse().unwrap();
        for (name, exclusions, frozen) in [
            ("MUTABLE", vec![], (false, false)),
            ("IMMUTABLE", vec![], (true, true)),
            ("MUTABLE_WITH_EXCLUSION", patterns(&["v*"]), (true, false)),
            ("IMMUTABLE_WITH_EXCLUSION", patterns(&["v*"]), (false, true)),
        ] {
            let mutability = TagMutability::new(name, exclusions).unwrap();
            assert_eq!((mutability.freezes(&v1), mutability.freezes(&latest)), frozen, "{name}");
            assert_eq!(TagMutability::new(mutability.as_str(), mutability.exclusions().to_vec()), Ok(mutability));
        }
    }

    #[test]
    fn exclusions_go_with_what_they_exclude_from() {
        for (name, exclusions, error) in [
            ("MUTABLE", patterns(&["a"]), TagMutabilityError::Needless),
            ("IMMUTABLE", patterns(&["a"]), TagMutabilityError::Needless),
            ("MUTABLE_WITH_EXCLUSION", vec![], TagMutabilityError::Count),
            ("IMMUTABLE_WITH_EXCLUSION", patterns(&["a", "b", "c", "d", "e", "f"]), TagMutabilityError::Count),
            ("", vec![], TagMutabilityError::Unknown),
        ] {
            assert_eq!(TagMutability::new(name, exclusions), Err(error), "{name}");
        }
    }

    #[test]
    fn marks_are_those_that_ecr_takes() {
        let mut tags = ResourceTags::default();
        assert_eq!(tags.add("team", "platform/a+b = c@d"), Ok(()));
        assert_eq!(tags.add("team", ""), Err(ResourceTagError::Twice));
        assert_eq!(tags.add("", "x"), Err(ResourceTagError::Key));
        assert_eq!(tags.add("a;b", "x"), Err(ResourceTagError::Key));
        assert_eq!(tags.add("a", &"x".repeat(257)), Err(ResourceTagError::Value));
        for number in 1..50 {
            assert_eq!(tags.add(&number.to_string(), ""), Ok(()));
        }
        assert_eq!(tags.add("one more", ""), Err(ResourceTagError::TooMany));
    }

    #[test]
    fn settings_of_another_release_keep_nothing_from_being_served() {
        let read = RepositorySettings::lenient("No Id", "FROZEN", &["(".to_owned()], [("a", "1"), ("", "2")]);
        assert_eq!((read.template, read.tag_mutability), (None, TagMutability::Immutable));
        assert_eq!(read.resource_tags.iter().collect::<Vec<_>>(), [("a", "1")]);
    }

    #[test]
    fn a_mutability_that_is_not_understood_lets_no_tag_move() {
        let read = |name, exclusions: &[&str]| {
            let exclusions: Vec<String> = exclusions.iter().map(ToString::to_string).collect();
            RepositorySettings::lenient("", name, &exclusions, []).tag_mutability
        };
        assert_eq!(read("", &[]), TagMutability::Mutable, "nothing is said");
        assert_eq!(read("FROZEN_ON_SUNDAYS", &[]), TagMutability::Immutable);
        assert_eq!(read("MUTABLE", &["v*"]), TagMutability::Immutable, "a combination that is not known");
        assert_eq!(read("IMMUTABLE_WITH_EXCLUSION", &["v*", "("]), TagMutability::Immutable);
    }
}
