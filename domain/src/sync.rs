//! Syncs: which parts of an image are fetched in advance, when a tag is due without a pull, and how often a failed job
//! is repeated.

mod walk;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::freshness::{Mode, Policy, TagPolicy};
use crate::manifest::{Descriptor, Manifest};
use crate::reference::Tag;

pub use walk::{Bounds, Visit, Walk};

/// Which images of an index are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platforms {
    /// All of them, and everything else that the index lists.
    All,
    /// Those for these platforms, given as `os/architecture[/variant]`.
    These(Vec<String>),
}

impl Platforms {
    /// The children of an index that are wanted. A child without a platform may be for any platform, so it is wanted.
    pub fn children<'m>(&self, index: &'m Manifest) -> impl Iterator<Item = &'m Descriptor> {
        index.children.iter().filter(move |child| match (self, &child.platform) {
            (Self::All, _) | (Self::These(_), None) => true,
            (Self::These(wanted), Some(has)) => wanted.iter().any(|wanted| is_for(wanted, has)),
        })
    }
}

/// Whether an image for the platform `has` satisfies a request for `wanted`. A variant that only one of them names
/// makes no difference, as with `linux/arm64` and `linux/arm64/v8`.
fn is_for(wanted: &str, has: &str) -> bool {
    let is_part = |part: &str, whole: &str| whole.strip_prefix(part).is_some_and(|rest| rest.starts_with('/'));
    wanted == has || is_part(wanted, has) || is_part(has, wanted)
}

/// The text is not a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be `os/architecture` or `os/architecture/variant` in lower case, such as `linux/arm64`")]
pub struct PlatformError;

/// Checks the spelling of a platform.
///
/// # Errors
/// If it is not a platform.
pub fn check_platform(text: &str) -> Result<(), PlatformError> {
    let is_part = |part: &str| {
        (1..=64).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
    };
    let parts: Vec<&str> = text.split('/').collect();
    if (2..=3).contains(&parts.len()) && parts.into_iter().all(is_part) { Ok(()) } else { Err(PlatformError) }
}

/// Tags with a shorter window are not synced automatically, which would be work without end.
pub const SHORTEST_WINDOW: Duration = Duration::from_secs(60);

/// The earliest and the latest part of its window at which a tag is due, in percent. The rest of the window is reserved
/// for waiting in the queue.
const DUE: (u64, u64) = (60, 90);

/// When a tag should be revalidated without a pull, so that it does not become stale. `None` if its rule does not want
/// that, or never asks for the tag.
///
/// Tags that were validated at the same moment are due at different moments, and a given tag of a repository is always
/// due after the same part of its window.
pub fn due_time(
    policy: &Policy,
    repository: Uuid,
    tag: &Tag,
    validated: Option<DateTime<Utc>>,
) -> Option<DateTime<Utc>> {
    let window = swept_window(policy, tag)?;
    let Some(validated) = validated else { return Some(DateTime::UNIX_EPOCH) };
    let hash: [u8; 32] = Sha256::new().chain_update(repository).chain_update(tag.as_str()).finalize().into();
    let spread = u64::from(u16::from_be_bytes([hash[0], hash[1]]));
    let part = DUE.0 * 65_536 + (DUE.1 - DUE.0) * spread;
    let seconds = u128::from(window.as_secs()) * u128::from(part) / (100 * 65_536);
    validated.checked_add_signed(chrono::TimeDelta::seconds(i64::try_from(seconds).ok()?))
}

/// The window of a tag that is synced automatically; `None` if it is not.
pub fn swept_window(policy: &Policy, tag: &Tag) -> Option<Duration> {
    if !policy.automatic_sync {
        return None;
    }
    match policy.for_tag(tag) {
        TagPolicy::Immutable(_) | TagPolicy::Movable { mode: Mode::Off, .. } => None,
        TagPolicy::Movable { window, .. } => (window >= SHORTEST_WINDOW).then_some(window),
    }
}

/// How long ago a tag of a rule must have been validated, at least, to be due. `None` if no tag ever is.
pub fn earliest_due(policy: &Policy) -> Option<Duration> {
    let own = policy.tag_windows.iter().filter_map(|own| own.window);
    let shortest = own.chain([policy.window]).filter(|window| *window >= SHORTEST_WINDOW).min()?;
    policy.automatic_sync.then(|| Duration::from_secs(shortest.as_secs() * DUE.0 / 100))
}

/// The longest window of a rule's tags. A tag that was not pulled for this long is not synced.
pub fn longest_window(policy: &Policy) -> Duration {
    let own = policy.tag_windows.iter().filter_map(|own| own.window);
    own.chain([policy.window]).max().unwrap_or(policy.window)
}

/// How often a job is tried, counting attempts that were lost with a node or failed for a temporary reason.
pub const ATTEMPTS: u32 = 5;

/// How long a job rests after the attempt with this number, counted from 1; `asked` is the time that the upstream asks
/// for.
pub fn rest(attempt: u32, asked: Option<Duration>) -> Duration {
    const LONGEST: Duration = Duration::from_secs(60);
    let own = Duration::from_secs(1 << attempt.clamp(1, 6));
    own.max(asked.unwrap_or_default()).min(LONGEST)
}

/// How long a job rests if the upstream's budget is used up, and has something again after `asked`.
pub fn rest_of_budget(asked: Option<Duration>) -> Duration {
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(15 * 60);
    asked.unwrap_or(LONGEST).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freshness::TagWindow;

    const HOUR: Duration = Duration::from_secs(3600);

    fn index(platforms: &[Option<&str>]) -> Manifest {
        let child = |platform: &Option<&str>| Descriptor {
            digest: None,
            size_bytes: 1,
            platform: platform.map(str::to_owned),
            is_foreign: false,
            is_manifest: true,
        };
        Manifest {
            media_type: crate::MediaType::OciIndex,
            config: None,
            layers: Vec::new(),
            children: platforms.iter().map(child).collect(),
            subject: None,
        }
    }

    #[test]
    fn children_are_chosen_by_platform() {
        let index =
            index(&[Some("linux/amd64"), Some("linux/arm64/v8"), Some("linux/arm/v7"), Some("unknown/unknown"), None]);
        let chosen = |wanted: &[&str]| -> Vec<Option<&str>> {
            let wanted = Platforms::These(wanted.iter().map(|text| (*text).to_owned()).collect());
            wanted.children(&index).map(|child| child.platform.as_deref()).collect()
        };
        assert_eq!(chosen(&["linux/amd64"]), [Some("linux/amd64"), None]);
        assert_eq!(chosen(&["linux/arm64"]), [Some("linux/arm64/v8"), None]);
        assert_eq!(chosen(&["linux/arm", "linux/arm64/v8"]), [Some("linux/arm64/v8"), Some("linux/arm/v7"), None]);
        assert_eq!(chosen(&["linux/arm/v6"]), [None]);
        assert_eq!(Platforms::All.children(&index).count(), 5);
    }

    #[test]
    fn platforms_are_written_with_slashes() {
        for good in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(check_platform(good), Ok(()));
        }
        for bad in ["", "linux", "linux/", "Linux/amd64", "a/b/c/d", "linux/amd64 "] {
            assert_eq!(check_platform(bad), Err(PlatformError), "{bad}");
        }
    }

    #[test]
    fn tags_are_due_within_their_window_and_never_all_at_once() {
        let policy = Policy::default();
        let (repository, validated) = (Uuid::from_u128(7), DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        let due =
            |tag: &str| due_time(&policy, repository, &tag.parse().unwrap(), Some(validated)).unwrap() - validated;
        let mut all: Vec<i64> = (0..10_000).map(|number| due(&format!("v{number}")).num_seconds()).collect();
        all.sort_unstable();
        let (first, last) = (24 * 3600 * 60 / 100, 24 * 3600 * 90 / 100);
        assert!(all[0] >= first && all[9_999] <= last, "{} to {}", all[0], all[9_999]);
        // Each tenth of that time gets about a tenth of the tags.
        for tenth in 0..10 {
            let (from, to) = (first + (last - first) * tenth / 10, first + (last - first) * (tenth + 1) / 10);
            let count = all.iter().filter(|due| (from..to).contains(*due)).count();
            assert!((850..1150).contains(&count), "tenth {tenth} has {count}");
        }
        assert_eq!(due("v1"), due("v1"));
    }

    #[test]
    fn who_must_not_be_asked_for_is_never_due() {
        let (tag, repository) = ("v1".parse().unwrap(), Uuid::nil());
        let due = |policy: Policy| due_time(&policy, repository, &tag, None);
        assert_eq!(due(Policy::default()), Some(DateTime::UNIX_EPOCH), "never validated is due at once");
        assert_eq!(due(Policy { automatic_sync: false, ..Policy::default() }), None);
        assert_eq!(due(Policy { mode: Mode::Off, ..Policy::default() }), None);
        assert_eq!(due(Policy { immutable_tags: vec!["v*".parse().unwrap()], ..Policy::default() }), None);
        assert_eq!(due(Policy { window: Duration::from_secs(59), ..Policy::default() }), None);
        let own = TagWindow { pattern: "v*".parse().unwrap(), window: Some(HOUR), mode: None };
        let policy = Policy { window: Duration::ZERO, tag_windows: vec![own], ..Policy::default() };
        assert_eq!(earliest_due(&policy), Some(Duration::from_secs(2160)));
        assert_eq!((longest_window(&policy), swept_window(&policy, &tag)), (HOUR, Some(HOUR)));
        assert_eq!(earliest_due(&Policy { automatic_sync: false, ..Policy::default() }), None);
    }

    #[test]
    fn rests_grow_and_have_an_end() {
        let rests: Vec<u64> = (0..9).map(|attempt| rest(attempt, None).as_secs()).collect();
        assert_eq!(rests, [2, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(rest(1, Some(Duration::from_secs(30))).as_secs(), 30);
        assert_eq!(rest(1, Some(HOUR)).as_secs(), 60);
    }
}
