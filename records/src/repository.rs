//! The record of a repository, and of where its content comes from.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use entrepot_domain::template::{RepositorySettings, TagMutability};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::word::{Rest, Vocabulary, Word, rest_of_new};

/// A repository, at [`crate::layout::repository`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryRecord {
    /// Part of the keys of its links and tags. A repository that is deleted and created again gets a new one.
    pub incarnation: Uuid,
    /// Whether the repository exists.
    pub state: Word<State>,
    pub kind: Word<Kind>,
    /// The rule that fills it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_uid: Option<Uuid>,
    /// The place from which that rule fills it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The region that decides about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home_region: Option<String>,
    /// When this incarnation was created.
    pub create_time: DateTime<Utc>,
    /// When this record was last changed.
    pub update_time: DateTime<Utc>,
    /// When the previous incarnation was deleted. What an upstream was asked for before that is not stored in this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_time_before: Option<DateTime<Utc>>,
    /// The settings with which this incarnation was created.
    #[serde(default, skip_serializing_if = "SettingsRecord::is_default")]
    pub settings: SettingsRecord,
    /// Whether its tags are synced automatically; `None` leaves this to its rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic_sync: Option<bool>,
    /// Changes with every write.
    #[serde(default)]
    pub write: Uuid,
    /// Fields of other releases.
    #[serde(flatten)]
    pub rest: Rest,
}

impl RepositoryRecord {
    pub fn new(incarnation: Uuid, now: DateTime<Utc>) -> Self {
        Self {
            incarnation,
            state: State::Live.into(),
            kind: Kind::Cached.into(),
            rule_uid: None,
            origin: None,
            home_region: None,
            create_time: now,
            update_time: now,
            delete_time_before: None,
            settings: SettingsRecord::default(),
            automatic_sync: None,
            write: Uuid::nil(),
            rest: rest_of_new(),
        }
    }

    /// Whether the repository exists and this release can handle it.
    pub fn is_live(&self) -> bool {
        self.state == State::Live && self.kind.known().is_some()
    }

    /// What only another release understands about it. Such a repository can be neither shown nor treated as absent.
    pub fn not_understood(&self) -> Option<String> {
        if self.state.known().is_none() {
            return Some(format!("its state `{}` is of another release", self.state));
        }
        let unknown = self.state == State::Live && self.kind.known().is_none();
        unknown.then(|| format!("its kind `{}` is of another release", self.kind))
    }
}

/// Whether something exists, such as a repository or a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It exists.
    Live,
    /// It was deleted; this is a tombstone.
    Deleted,
}

impl Vocabulary for State {
    fn read(word: &str) -> Option<Self> {
        [Self::Live, Self::Deleted].into_iter().find(|state| state.word() == word)
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Deleted => "deleted",
        }
    }
}

/// How content comes into a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From an upstream, on demand.
    Cached,
    /// By pushes.
    Hosted,
}

impl Vocabulary for Kind {
    fn read(word: &str) -> Option<Self> {
        [Self::Cached, Self::Hosted].into_iter().find(|kind| kind.word() == word)
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Hosted => "hosted",
        }
    }
}

/// The place that content comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The upstream's host, with its port if that is not the default.
    pub host: String,
    /// The repository's name there.
    pub repository: String,
    /// Fields of other releases.
    #[serde(flatten)]
    pub rest: Rest,
}

impl Origin {
    pub fn new(host: impl Into<String>, repository: impl Into<String>) -> Self {
        Self { host: host.into(), repository: repository.into(), rest: Rest::new() }
    }

    /// The same place. It keeps the fields of other releases if `old` is this place, too.
    #[must_use]
    pub(crate) fn in_place_of(&self, old: Option<&Self>) -> Self {
        old.filter(|old| old.is(self)).unwrap_or(self).clone()
    }

    fn is(&self, other: &Self) -> bool {
        self.host == other.host && self.repository == other.repository
    }
}

/// What fills a repository: a rule, and the upstream's repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    pub rule_uid: Uuid,
    pub origin: Origin,
}

impl Provenance {
    /// Whether a record with this rule and origin was written for the same rule and upstream. Content that one rule has
    /// filled proves nothing about what another rule may show, nor about the same rule once it is pointed elsewhere.
    pub fn covers(&self, rule_uid: Option<Uuid>, origin: Option<&Origin>) -> bool {
        rule_uid == Some(self.rule_uid) && origin.is_some_and(|origin| origin.is(&self.origin))
    }
}

/// The settings with which a repository was created. They are text, so that a record of another release stays readable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SettingsRecord {
    /// The id of the template that was applied; empty if there was none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub template: String,
    /// Whether tags may move, in ECR's words; if empty, they may.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tag_mutability: String,
    /// Patterns of tags that are exempt from that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tag_mutability_exclusions: Vec<String>,
    /// The repository's marks.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub resource_tags: BTreeMap<String, String>,
    /// Fields of other releases.
    #[serde(flatten)]
    pub rest: Rest,
}

impl SettingsRecord {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The settings as values of the domain.
    pub fn settings(&self) -> RepositorySettings {
        let tags = self.resource_tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        RepositorySettings::lenient(&self.template, &self.tag_mutability, &self.tag_mutability_exclusions, tags)
    }
}

impl From<&RepositorySettings> for SettingsRecord {
    fn from(settings: &RepositorySettings) -> Self {
        let mutability = &settings.tag_mutability;
        let is_default = *mutability == TagMutability::default();
        Self {
            template: settings.template.as_ref().map(ToString::to_string).unwrap_or_default(),
            tag_mutability: if is_default { String::new() } else { mutability.as_str().to_owned() },
            tag_mutability_exclusions: mutability.exclusions().iter().map(ToString::to_string).collect(),
            resource_tags: settings
                .resource_tags
                .iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            rest: Rest::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_repository_was_created_with_is_read_back_and_absent_where_it_is_nothing() {
        let settings =
            RepositorySettings::lenient("hub", "IMMUTABLE_WITH_EXCLUSION", &["edge*".to_owned()], [("a", "1")]);
        let record = SettingsRecord::from(&settings);
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<SettingsRecord>(&text).unwrap().settings(), settings);
        let none = SettingsRecord::from(&RepositorySettings::default());
        assert_eq!((none.is_default(), none.settings()), (true, RepositorySettings::default()));
    }

    #[test]
    fn another_rule_and_another_upstream_are_no_evidence() {
        let here = Provenance { rule_uid: Uuid::from_u128(1), origin: Origin::new("a.example", "nginx") };
        assert!(here.covers(Some(Uuid::from_u128(1)), Some(&Origin::new("a.example", "nginx"))));
        for (rule, origin) in [
            (Some(Uuid::from_u128(2)), Some(Origin::new("a.example", "nginx"))),
            (Some(Uuid::from_u128(1)), Some(Origin::new("b.example", "nginx"))),
            (Some(Uuid::from_u128(1)), Some(Origin::new("a.example", "redis"))),
            (None, Some(Origin::new("a.example", "nginx"))),
            (Some(Uuid::from_u128(1)), None),
        ] {
            assert!(!here.covers(rule, origin.as_ref()), "{rule:?} {origin:?}");
        }
    }
}
