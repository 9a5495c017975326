//! How far a tag's digest may be trusted now, and what happens when its upstream does not confirm it.
//!
//! A tag moves, and only its upstream knows where to. So what a tag means is known as of a moment, its last validation.
//! A rule's [`Policy`] says for how long that is enough, and what is done when it is not.

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
    /// Tags that never move: what is known of one is never asked for again.
    pub immutable_tags: Vec<TagPattern>,
    /// How long after its last validation a tag may be served that the upstream does not confirm; `None` is for ever.
    #[serde(rename = "max_stale_seconds", with = "stored::optional_seconds")]
    pub max_stale: Option<Duration>,
    /// What is done with a tag that the upstream has no more.
    pub when_deleted: WhenDeleted,
    /// What is done when the upstream denies access.
    pub when_denied: WhenDenied,
    /// What differs for some tags. The first one whose pattern matches counts.
    pub tag_windows: Vec<TagWindow>,
    /// How long a repository's list of tags is served before the upstream is asked for it again.
    #[serde(rename = "tag_list_window_seconds", with = "stored::seconds")]
    pub tag_list_window: Duration,
    /// The same for the list of what refers to a manifest, such as signatures.
    #[serde(rename = "referrers_window_seconds", with = "stored::seconds")]
    pub referrers_window: Duration,
    /// Whether tags that are in use are revalidated before their window ends, without a pull asking for it.
    pub automatic_sync: bool,
}

/// What happens to a pull of a tag that is not trusted any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// It waits until the upstream has been asked, as with ECR.
    #[default]
    Blocking,
    /// It gets what is cached, and the upstream is asked behind it.
    Background,
    /// It gets what is cached, and the upstream is never asked by itself.
    Off,
}

/// What is done with a tag that the upstream has no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WhenDeleted {
    /// What is cached goes on being served.
    #[default]
    Keep,
    /// The tag goes here, too. What it meant stays, by its digest.
    Drop,
}

/// What is done when the upstream denies access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WhenDenied {
    /// What is cached goes on being served.
    #[default]
    Keep,
    /// The pull is denied, too.
    Fail,
}

/// What differs for some tags of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagWindow {
    /// For which tags.
    pub pattern: TagPattern,
    /// Their window; `None` leaves the rule's.
    #[serde(default, rename = "window_seconds", with = "stored::optional_seconds")]
    pub window: Option<Duration>,
    /// Their mode; `None` leaves the rule's.
    pub mode: Option<Mode>,
}

/// What applies to one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms<'a> {
    /// It never moves.
    Immutable(&'a TagPattern),
    /// It is trusted for a while.
    Movable {
        /// For how long.
        window: Duration,
        /// And then?
        mode: Mode,
        /// Whose pattern said so; `None` is the rule itself.
        pattern: Option<&'a TagPattern>,
    },
}

/// What is done with a pull of a tag that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Served without asking anybody.
    Serve,
    /// Served at once, and the upstream is asked behind it.
    ServeThenAsk,
    /// The upstream is asked first.
    AskThenServe,
}

/// Why an upstream did not confirm a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unconfirmed {
    /// It has no such tag.
    Deleted,
    /// It denies access.
    Denied,
    /// It cannot be asked, or says nothing that helps: it is away, throttles, or delivers something else.
    Away,
}

/// What is done with a pull whose tag the upstream did not confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// What is cached is served, as stale.
    ServeStale,
    /// The tag is dropped; there is no such tag any more.
    Drop,
    /// The pull fails with what the upstream said.
    Fail,
    /// The pull fails, since the last validation is too long ago.
    TooStale {
        /// What the rule allows.
        max_stale: Duration,
    },
}

impl Policy {
    /// The most patterns that one list may hold: all of them are looked through for each pull.
    pub const MAX_PATTERNS: usize = 50;
    /// The longest window, and the longest time that a stale tag may be served.
    pub const MAX_WINDOW: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
    /// The longest time that a list of tags or referrers is served.
    pub const MAX_LIST_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

    /// What applies to `tag`.
    pub fn terms(&self, tag: &Tag) -> Terms<'_> {
        if let Some(pattern) = self.immutable_tags.iter().find(|pattern| pattern.matches(tag)) {
            return Terms::Immutable(pattern);
        }
        let own = self.tag_windows.iter().find(|own| own.pattern.matches(tag));
        Terms::Movable {
            window: own.and_then(|own| own.window).unwrap_or(self.window),
            mode: own.and_then(|own| own.mode).unwrap_or(self.mode),
            pattern: own.map(|own| &own.pattern),
        }
    }

    /// What is done when the upstream did not confirm, at `now`, a tag that it last confirmed at `validated`.
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
    /// As ECR has it: a tag is trusted for 24 h, then asked for first, and what is cached is never lost; referrers are
    /// asked for after 6 h.
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

/// What is done with a pull, at `now`, of a `tag` that is known, and that the upstream last confirmed at `validated`.
///
/// A confirmation from the future, left by a clock that was wrong, counts as never made: it must not hold a tag back
/// for longer than the window.
pub fn decide(policy: &Policy, tag: &Tag, validated: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Decision {
    let (window, mode) = match policy.terms(tag) {
        Terms::Immutable(_) | Terms::Movable { mode: Mode::Off, .. } => return Decision::Serve,
        Terms::Movable { window, mode, .. } => (window, mode),
    };
    let age = validated.and_then(|at| (now - at).to_std().ok());
    if age.is_some_and(|age| age < window) {
        return Decision::Serve;
    }
    // Behind a pull nobody waits for the answer, so what is too stale to be served without one is asked for first.
    let may_wait = policy.max_stale.is_none_or(|max_stale| may_be_stale(validated, max_stale, now));
    if mode == Mode::Background && may_wait { Decision::ServeThenAsk } else { Decision::AskThenServe }
}

/// Whether a tag may be served that the upstream does not confirm now.
///
/// Clocks of nodes differ a little, so a confirmation that is a little in the future is as good as one that is a little
/// in the past.
fn may_be_stale(validated: Option<DateTime<Utc>>, max_stale: Duration, now: DateTime<Utc>) -> bool {
    validated.is_some_and(|at| (now - at).abs().to_std().is_ok_and(|age| age <= max_stale))
}

/// A length of time in whole seconds as commands take it, in the largest unit that says it exactly: `24h`, `7d`, `90s`.
pub fn exact(length: Duration) -> String {
    const DAY: u64 = 24 * 60 * 60;
    match length.as_secs() {
        // One day is better known as 24 hours.
        seconds if seconds > DAY && seconds.is_multiple_of(DAY) => format!("{}d", seconds / DAY),
        seconds if seconds > 0 && seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        seconds if seconds > 0 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

impl Mode {
    /// All of them.
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
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Keep, Self::Drop];

    /// Its name in records and on the wire between planes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "KEEP",
            Self::Drop => "DROP",
        }
    }

    /// The one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|when| when.as_str() == name)
    }
}

impl WhenDenied {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Keep, Self::Fail];

    /// Its name in records and on the wire between planes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "KEEP",
            Self::Fail => "FAIL",
        }
    }

    /// The one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|when| when.as_str() == name)
    }
}
