//! How far a tag's digest may be trusted now, and what happens when its upstream does not confirm it.
//!
//! A tag moves, and only its upstream knows where. So the meaning of a tag is known as of a moment: its last
//! validation. A rule's [`Policy`] says how long that is good enough, and what happens afterwards.

mod pattern;
mod stored;
#[cfg(test)]
mod tests;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::reference::Tag;

pub use pattern::{TagPattern, TagPatternError};
pub use stored::Rest;

/// What a rule says about the freshness of its tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// How long a tag is trusted after the upstream has confirmed it; zero asks the upstream every time.
    #[serde(rename = "window_seconds", with = "stored::seconds")]
    pub window: Duration,
    /// What happens to a pull of a tag that is not trusted any more.
    pub mode: Mode,
    /// Tags that never move. Once the meaning of such a tag is known, the upstream is not asked again.
    pub immutable_tags: Vec<TagPattern>,
    /// How long after its last validation a tag may be served although the upstream does not confirm it; `None` means
    /// for ever.
    #[serde(rename = "max_stale_seconds", with = "stored::optional_seconds")]
    pub max_stale: Option<Duration>,
    /// What happens to a tag that no longer exists at the upstream.
    pub when_deleted: WhenDeleted,
    /// What happens when the upstream denies access.
    pub when_denied: WhenDenied,
    /// Exceptions for some tags. The first one whose pattern matches applies.
    pub tag_windows: Vec<TagWindow>,
    /// How long a repository's list of tags is served before the upstream is asked for it again.
    #[serde(rename = "tag_list_window_seconds", with = "stored::seconds")]
    pub tag_list_window: Duration,
    /// The same for the list of a manifest's referrers, such as signatures.
    #[serde(rename = "referrers_window_seconds", with = "stored::seconds")]
    pub referrers_window: Duration,
    /// Whether tags in use are revalidated before their window ends, even without a pull.
    pub automatic_sync: bool,
}

/// What happens to a pull of a tag that is no longer trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// The pull waits until the upstream has been asked, as with ECR.
    #[default]
    Blocking,
    /// The pull gets what is cached, and the upstream is asked in the background.
    Background,
    /// The pull gets what is cached, and the upstream is asked only when somebody requests a sync.
    Off,
}

/// What happens to a tag that no longer exists at the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WhenDeleted {
    /// What is cached is still served.
    #[default]
    Keep,
    /// The tag is deleted here, too. What it meant can still be pulled by digest.
    Drop,
}

/// What happens when the upstream denies access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WhenDenied {
    /// What is cached is still served.
    #[default]
    Keep,
    /// The pull is denied, too.
    Fail,
}

/// Exceptions for some tags of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagWindow {
    pub pattern: TagPattern,
    /// The window of these tags; `None` means the rule's.
    #[serde(default, rename = "window_seconds", with = "stored::optional_seconds")]
    pub window: Option<Duration>,
    /// The mode of these tags; `None` means the rule's.
    pub mode: Option<Mode>,
}

/// The policy that applies to one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagPolicy<'a> {
    /// It never moves.
    Immutable(&'a TagPattern),
    /// It is trusted for a while.
    Movable {
        window: Duration,
        /// What happens after that.
        mode: Mode,
        /// The pattern that decided; `None` means the rule itself.
        pattern: Option<&'a TagPattern>,
    },
}

/// What to do with a pull of a known tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Serve without asking the upstream.
    Serve,
    /// Serve at once, and ask the upstream in the background.
    ServeThenAsk,
    /// Ask the upstream first.
    AskThenServe,
}

/// Why an upstream did not confirm a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unconfirmed {
    /// It has no such tag.
    Deleted,
    /// It denies access.
    Denied,
    /// It cannot be asked or gives no usable answer: it is away, throttles, or delivers something else.
    Away,
}

/// What to do with a pull whose tag the upstream did not confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Serve what is cached, as stale.
    ServeStale,
    /// Drop the tag; it no longer exists.
    Drop,
    /// Fail with what the upstream said.
    Fail,
    /// Fail, because the last validation is too long ago.
    TooStale {
        /// The limit in the rule.
        max_stale: Duration,
    },
}

impl Policy {
    /// The most patterns in one list. Each pull looks through all of them.
    pub const MAX_PATTERNS: usize = 50;
    /// The longest window, and the longest time for which a stale tag may be served.
    pub const MAX_WINDOW: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
    /// The longest time for which a list of tags or referrers is served.
    pub const MAX_LIST_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

    /// The policy that applies to `tag`.
    pub fn for_tag(&self, tag: &Tag) -> TagPolicy<'_> {
        if let Some(pattern) = self.immutable_tags.iter().find(|pattern| pattern.matches(tag)) {
            return TagPolicy::Immutable(pattern);
        }
        let own = self.tag_windows.iter().find(|own| own.pattern.matches(tag));
        TagPolicy::Movable {
            window: own.and_then(|own| own.window).unwrap_or(self.window),
            mode: own.and_then(|own| own.mode).unwrap_or(self.mode),
            pattern: own.map(|own| &own.pattern),
        }
    }

    /// What to do if the upstream, at `now`, did not confirm a tag that it last confirmed at `validated`.
    pub fn remedy(&self, why: Unconfirmed, validated: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Remedy {
        match why {
            Unconfirmed::Deleted if self.when_deleted == WhenDeleted::Drop => return Remedy::Drop,
            Unconfirmed::Denied if self.when_denied == WhenDenied::Fail => return Remedy::Fail,
            Unconfirmed::Deleted | Unconfirmed::Denied | Unconfirmed::Away => {}
        }
        match self.max_stale {
            Some(max_stale) if !may_be_stale(validated, max_stale, now) => Remedy::TooStale { max_stale },
            Some(_) | None => Remedy::ServeStale,
        }
    }
}

impl Default for Policy {
    /// As with ECR: a tag is trusted for 24 h, afterwards the upstream is asked first, and cached content is never
    /// lost. Lists of referrers are kept for 6 h.
    fn default() -> Self {
        Self {
            window: Duration::from_secs(24 * 60 * 60),
            mode: Mode::default(),
            immutable_tags: Vec::new(),
            max_stale: None,
            when_deleted: WhenDeleted::default(),
            when_denied: WhenDenied::default(),
            tag_windows: Vec::new(),
            tag_list_window: Duration::from_secs(5 * 60),
            referrers_window: Duration::from_secs(6 * 60 * 60),
            automatic_sync: true,
        }
    }
}

/// What to do with a pull, at `now`, of a known `tag` that the upstream last confirmed at `validated`.
///
/// A confirmation in the future, left by a wrong clock, is ignored: it must not keep a tag unchecked for longer than
/// the window.
pub fn decide(policy: &Policy, tag: &Tag, validated: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Decision {
    let (window, mode) = match policy.for_tag(tag) {
        TagPolicy::Immutable(_) | TagPolicy::Movable { mode: Mode::Off, .. } => return Decision::Serve,
        TagPolicy::Movable { window, mode, .. } => (window, mode),
    };
    let age = validated.and_then(|at| (now - at).to_std().ok());
    if age.is_some_and(|age| age < window) {
        return Decision::Serve;
    }
    // A pull served in the background mode waits for no answer. So if the tag is too stale to be served unconfirmed,
    // the upstream is asked first.
    let may_wait = policy.max_stale.is_none_or(|max_stale| may_be_stale(validated, max_stale, now));
    if mode == Mode::Background && may_wait { Decision::ServeThenAsk } else { Decision::AskThenServe }
}

/// Whether a tag may be served that the upstream does not confirm now.
///
/// Nodes' clocks differ a little, so a confirmation slightly in the future is as good as one slightly in the past.
fn may_be_stale(validated: Option<DateTime<Utc>>, max_stale: Duration, now: DateTime<Utc>) -> bool {
    validated.is_some_and(|at| (now - at).abs().to_std().is_ok_and(|age| age <= max_stale))
}

/// A duration in whole seconds as commands accept it, in the largest unit that expresses it exactly: `24h`, `7d`,
/// `90s`.
pub fn exact(length: Duration) -> String {
    const DAY: u64 = 24 * 60 * 60;
    match length.as_secs() {
        // One day reads better as 24 hours.
        seconds if seconds > DAY && seconds.is_multiple_of(DAY) => format!("{}d", seconds / DAY),
        seconds if seconds > 0 && seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        seconds if seconds > 0 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Blocking, Self::Background, Self::Off];

    /// Its name in records and on the wire between planes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blocking => "BLOCKING",
            Self::Background => "BACKGROUND",
            Self::Off => "OFF",
        }
    }

    /// The mode of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == name)
    }
}

impl WhenDeleted {
    pub const ALL: [Self; 2] = [Self::Keep, Self::Drop];

    /// Its name in records and on the wire between planes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "KEEP",
            Self::Drop => "DROP",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|when| when.as_str() == name)
    }
}

impl WhenDenied {
    pub const ALL: [Self; 2] = [Self::Keep, Self::Fail];

    /// Its name in records and on the wire between planes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "KEEP",
            Self::Fail => "FAIL",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|when| when.as_str() == name)
    }
}
