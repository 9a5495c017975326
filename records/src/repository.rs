//! The record of a repository, and what it says of where its content comes from.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use entrepot_domain::template::{RepositorySettings, TagMutability};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::word::{Rest, Vocabulary, Word};

/// A repository, at [`crate::layout::repository`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryRecord {
    /// Under which the links and tags are; a repository that is deleted and created again gets another one.
    pub incarnation: Uuid,
    /// Whether there is a repository.
    pub state: Word<State>,
    /// How content comes into it.
    pub kind: Word<Kind>,
    /// The rule that fills it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_uid: Option<Uuid>,
    /// Where that rule fills it from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The region that decides about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home_region: Option<String>,
    /// When this incarnation was created.
    pub create_time: DateTime<Utc>,
    /// When this record was last changed.
    pub update_time: DateTime<Utc>,
    /// What this incarnation was created with.
    #[serde(default, skip_serializing_if = "SettingsRecord::is_default")]
    pub settings: SettingsRecord,
    /// Whether its tags are synced by themselves; `None` is as its rule says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic_sync: Option<bool>,
    /// Changes with every write.
    #[serde(default)]
    pub write: Uuid,
    /// What other releases know of it.
    #[serde(flatten)]
    pub rest: Rest,
}

impl RepositoryRecord {
    /// A cached repository that is created at `now`.
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
            settings: SettingsRecord::default(),
            automatic_sync: None,
            write: Uuid::nil(),
            rest: Rest::new(),
        }
    }

    /// Whether there is a repository that this release knows how to handle.
    pub fn is_live(&self) -> bool {
        self.state == State::Live && self.kind.known().is_some()
    }

    /// What of it only another release understands, so that it can be neither shown nor taken for absent.
    pub fn not_understood(&self) -> Option<String> {
        if self.state.known().is_none() {
            return Some(format!("its state `{}` is of another release", self.state));
        }
        let unknown = self.state == State::Live && self.kind.known().is_none();
        unknown.then(|| format!("its kind `{}` is of another release", self.kind))
    }
}

/// Whether something exists: a repository, or a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does.
    Live,
    /// It did: a tombstone.
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
    /// From an upstream, when it is asked for.
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

/// Where content comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The upstream's host, with its port where it has an unusual one.
    pub host: String,
    /// The repository there.
    pub repository: String,
    /// What other releases know of it.
    #[serde(flatten)]
    pub rest: Rest,
}

impl Origin {
    /// A repository of an upstream.
    pub fn new(host: impl Into<String>, repository: impl Into<String>) -> Self {
        Self { host: host.into(), repository: repository.into(), rest: Rest::new() }
    }

    fn is(&self, other: &Self) -> bool {
        self.host == other.host && self.repository == other.repository
    }
}

/// What fills a repository: a rule, from an upstream's repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The rule.
    pub rule_uid: Uuid,
    /// Where it fills from.
    pub origin: Origin,
}

impl Provenance {
    /// Whether a record that says this of where it came from was written for the same rule and upstream. What one rule
    /// has filled is no evidence for what another may show, nor once the rule is pointed elsewhere.
    pub fn covers(&self, rule_uid: Option<Uuid>, origin: Option<&Origin>) -> bool {
        rule_uid == Some(self.rule_uid) && origin.is_some_and(|origin| origin.is(&self.origin))
    }
}

/// What a repository was created with, as text: a record of another release must not be unreadable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SettingsRecord {
    /// The id of the template that said so; empty if there was none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub template: String,
    /// Whether tags may move, in ECR's words; empty is that they may.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tag_mutability: String,
    /// Patterns of tags that are excluded from that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tag_mutability_exclusions: Vec<String>,
    /// What it is marked with.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub resource_tags: BTreeMap<String, String>,
    /// What other releases know of them.
    #[serde(flatten)]
    pub rest: Rest,
}

impl SettingsRecord {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// As they are meant.
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
