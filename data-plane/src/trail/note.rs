//! Notes about a request. A note is a value, and becomes a sentence only when somebody reads it.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::freshness::{Mode, Policy, TagPolicy};
use entrepot_domain::{Digest, RepositoryName, ResourceId, Tag};

use crate::error::PullError;

/// Something that was found or decided for a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Note {
    /// The answer is this failure.
    Failed(PullError),
    StoreAway,
    StoreSlow,
    /// The store did not answer, so its last known answer was used.
    LastKnown,
    /// A record could not be used, for this reason.
    BadRecord(String),

    NoRepository(RepositoryName),
    NoRuleForContent,
    NoRuleForTags,
    NoRuleForReferrers,

    TagUnknown(Tag),
    TagJustGone(Tag),
    TagFrozen(Tag),
    TagAge {
        tag: Tag,
        age: Option<Duration>,
        trust: TagTrust,
    },
    TagConfirmed(Tag),
    TagMoved(Tag),
    TagNotSaid(Tag),
    TagDropped(Tag),

    ManifestUnlinked(Digest),
    ManifestLost(Digest),
    ManifestHere(Digest),
    BlobUnlinked,
    BlobLost,
    /// The store has something else in place of the content.
    Damaged,
    BlobHere,

    UpstreamLeftAlone,
    AskedBehind,
    ServedStale(PullError),
    RefusedUntil(DateTime<Utc>),
    WaitedForPull,
    WaitedForNode,
    Fetched {
        upstream: ResourceId,
        repository: RepositoryName,
        is_stored: bool,
    },
    HeadSays(Digest),
    HeadSaysTooLittle,
    HeadOfBlob,

    JoinedFill {
        age: Duration,
        repository: RepositoryName,
    },
    Filled {
        upstream: ResourceId,
        repository: RepositoryName,
    },
    CameByNode(ResourceId),
    FoundByFill,
    RepositoryConfirmed,
    StoredAndConfirmed,

    Listed {
        age: Duration,
    },
    ListedNow {
        by_us: bool,
    },
    NotListed(PullError),
    CachedTagsListed,
    CachedReferrersListed,
}

/// How long a rule trusts a tag.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TagTrust {
    /// It matches a pattern of tags that never move.
    Immutable(String),
    /// Its upstream is never asked automatically.
    NeverAsked,
    /// Its upstream is asked after this time.
    Window(Duration),
}

impl Note {
    /// How long `policy` trusts a tag that was last confirmed at `validated`.
    pub(crate) fn tag_age(policy: &Policy, tag: &Tag, validated: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Self {
        let trust = match policy.for_tag(tag) {
            TagPolicy::Immutable(pattern) => TagTrust::Immutable(pattern.to_string()),
            TagPolicy::Movable { mode: Mode::Off, .. } => TagTrust::NeverAsked,
            TagPolicy::Movable { window, .. } => TagTrust::Window(window),
        };
        Self::TagAge { tag: tag.clone(), age: validated.map(|at| age(at, now)), trust }
    }
}

impl fmt::Display for Note {
    #[expect(clippy::too_many_lines, reason = "a sentence for each note")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "{error}"),
            Self::StoreAway => f.write_str("the registry's storage was away"),
            Self::StoreSlow => f.write_str("the registry's storage took too long"),
            Self::LastKnown => f.write_str("the registry's storage was away, so its last known answer was used"),
            Self::BadRecord(reason) => write!(f, "a record could not be used: {reason}"),
            Self::NoRepository(name) => write!(f, "there was no repository `{name}`"),
            Self::NoRuleForContent => {
                f.write_str("no rule covers this name: what is cached is served, and never confirmed")
            }
            Self::NoRuleForTags => f.write_str("no rule covers this name: the cached tags are listed"),
            Self::NoRuleForReferrers => f.write_str("no rule covers this name: the cached referrers are listed"),
            Self::TagUnknown(tag) => write!(f, "tag `{tag}` was not known in this repository under its rule"),
            Self::TagJustGone(tag) => write!(f, "tag `{tag}` did not exist at the upstream a moment ago"),
            Self::TagFrozen(tag) => write!(f, "tag `{tag}` never moves in this repository, as its template said"),
            Self::TagAge { tag, age, trust } => write_tag_age(f, tag, *age, trust),
            Self::TagConfirmed(tag) => write!(f, "the upstream confirmed that tag `{tag}` still means this digest"),
            Self::TagMoved(tag) => write!(f, "the upstream says that tag `{tag}` means another digest now"),
            Self::TagNotSaid(tag) => {
                write!(f, "the upstream does not say what tag `{tag}` means without sending it")
            }
            Self::TagDropped(tag) => {
                write!(f, "tag `{tag}` no longer exists at the upstream, so it was dropped, as the rule says")
            }
            Self::ManifestUnlinked(digest) => {
                write!(f, "no link to manifest `{digest}` in this repository under its rule")
            }
            Self::ManifestLost(digest) => write!(f, "manifest `{digest}` is linked, but was not in the store"),
            Self::ManifestHere(digest) => {
                write!(f, "manifest `{digest}` is linked in this repository, and was in the store")
            }
            Self::BlobUnlinked => f.write_str("no link to this digest in this repository under its rule"),
            Self::BlobLost => f.write_str("the blob is linked in this repository, but was not in the store"),
            Self::Damaged => f.write_str("what the store has in its place is damaged, or lost"),
            Self::BlobHere => f.write_str("the blob is linked in this repository, and was in the store"),
            Self::UpstreamLeftAlone => {
                f.write_str("the upstream could not confirm the tag a moment ago, and was left alone")
            }
            Self::AskedBehind => f.write_str("served from the cache, and the upstream was asked in the background"),
            Self::ServedStale(error) => {
                write!(f, "served stale, since the upstream could not confirm the tag: {error}")
            }
            Self::RefusedUntil(until) => {
                let until = until.format("%FT%TZ");
                write!(f, "the upstream refused it a moment ago, and is not asked until {until}")
            }
            Self::WaitedForPull => f.write_str("another pull was asking the upstream for the same: waited with it"),
            Self::WaitedForNode => f.write_str("another node was asking the upstream: waited for it"),
            Self::Fetched { upstream, repository, is_stored } => {
                let stored = if *is_stored { "" } else { ", not stored" };
                write!(f, "fetched from upstream `{upstream}`, repository `{repository}`{stored}")
            }
            Self::HeadSays(digest) => {
                write!(f, "the upstream says that it means `{digest}`; nothing was fetched")
            }
            Self::HeadSaysTooLittle => f.write_str("the upstream does not say enough about it without sending it"),
            Self::HeadOfBlob => f.write_str("only its presence was asked for, so the upstream was asked by HEAD"),
            Self::JoinedFill { age, repository } => {
                write!(f, "joined the fill that was begun {} ago for `{repository}`", length(*age))
            }
            Self::Filled { upstream, repository } => {
                write!(f, "filled from upstream `{upstream}`, repository `{repository}`")
            }
            Self::CameByNode(leader) => write!(f, "it came through node `{leader}`, which was fetching it"),
            Self::FoundByFill => f.write_str("the fill found it in the store: it had come meanwhile"),
            Self::RepositoryConfirmed => f.write_str("the upstream confirmed that this repository has it, too"),
            Self::StoredAndConfirmed => {
                f.write_str("the bytes were in the store, and the upstream confirmed this repository")
            }
            Self::Listed { age } => write!(f, "the upstream listed this {} ago", length(*age)),
            Self::ListedNow { by_us: true } => f.write_str("the upstream was asked for it, by this node"),
            Self::ListedNow { by_us: false } => f.write_str("the upstream was asked for it, by another node"),
            Self::NotListed(error) => write!(f, "the upstream does not list this now: {error}"),
            Self::CachedTagsListed => f.write_str("the cached tags are listed instead"),
            Self::CachedReferrersListed => f.write_str("the cached referrers are listed instead"),
        }
    }
}

fn write_tag_age(f: &mut fmt::Formatter<'_>, tag: &Tag, age: Option<Duration>, trust: &TagTrust) -> fmt::Result {
    match age {
        Some(age) => write!(f, "tag `{tag}` was validated {} ago", length(age))?,
        None => write!(f, "tag `{tag}` was never validated")?,
    }
    match trust {
        TagTrust::Immutable(pattern) => write!(f, "; it never moves, since it matches `{pattern}`"),
        TagTrust::NeverAsked => f.write_str("; its rule never asks the upstream about it automatically"),
        TagTrust::Window(window) => write!(f, ", the window is {}", length(*window)),
    }
}

/// How long ago `then` was.
pub(crate) fn age(then: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (now - then).to_std().unwrap_or_default()
}

/// A duration in the largest unit that is precise enough, such as `26 h`.
fn length(length: Duration) -> String {
    match length.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..345_600 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_for_people() {
        for (seconds, text) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (93_600, "26 h"), (864_000, "10 days")] {
            assert_eq!(length(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn notes_of_each_kind_become_sentences() {
        let (tag, now): (Tag, _) = ("v1".parse().unwrap(), DateTime::UNIX_EPOCH + Duration::from_secs(86_400));
        let hub = || "hub".parse::<ResourceId>().unwrap();
        for (note, words) in [
            (Note::tag_age(&Policy::default(), &tag, None, now), "tag `v1` was never validated, the window is 24 h"),
            (Note::RefusedUntil(now), "is not asked until 1970-01-02T00:00:00Z"),
            (Note::CameByNode(hub()), "it came through node `hub`, which was fetching it"),
            (Note::Listed { age: Duration::from_secs(180) }, "3 min ago"),
            (Note::Failed(PullError::Busy), "busy"),
        ] {
            let text = note.to_string();
            assert!(text.contains(words), "{text}");
        }
    }
}
