//! Running fills as operators see them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use entrepot_domain::fill::{Fill, Phase};
use entrepot_domain::{Digest, RepositoryName, ResourceId};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use super::Fills;
use crate::control::FillFrom;

/// The window over which a rate is measured, and the distance between samples.
const WINDOW: Duration = Duration::from_secs(5);
const APART: Duration = Duration::from_millis(250);

/// A running fill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FillView {
    /// Unique among the fills of its node.
    pub(crate) id: String,
    pub(crate) rule: String,
    pub(crate) upstream: String,
    pub(crate) digest: String,
    /// The repository for which it was begun.
    pub(crate) repository: String,
    pub(crate) state: FillState,
    /// The node through which the bytes come, if it is another one.
    #[serde(default)]
    pub(crate) leader: Option<String>,
    /// The nodes that follow this one.
    #[serde(default)]
    pub(crate) followers: Vec<String>,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) landed_bytes: u64,
    pub(crate) released_bytes: u64,
    pub(crate) readers: u32,
    pub(crate) bytes_per_second: u64,
    pub(crate) begin_time: DateTime<Utc>,
}

/// The state of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FillState {
    /// Checking whether the store has the content.
    Looking,
    /// Asking for the lease.
    Claiming,
    /// Another node has the lease, and bytes come from it.
    Following,
    /// Bytes come from the upstream.
    Transferring,
    /// The content is being stored.
    Committing,
    /// A state of another release.
    #[serde(other)]
    Unknown,
}

impl FillState {
    /// The view of a phase; `None` when the fill has ended.
    fn of(state: &Fill) -> Option<Self> {
        match state.phase() {
            Phase::Looking | Phase::LookingAgain => Some(Self::Looking),
            Phase::Claiming => Some(Self::Claiming),
            Phase::Following => Some(Self::Following),
            Phase::Leading | Phase::Adopting | Phase::Reading => Some(Self::Transferring),
            Phase::Verifying | Phase::Committing => Some(Self::Committing),
            Phase::Finished(_) => None,
        }
    }
}

/// Further facts about a fill, which its readers do not need.
pub(crate) struct About {
    pub(crate) began: DateTime<Utc>,
    rule: ResourceId,
    upstream: ResourceId,
    /// The repository for which it was begun.
    pub(crate) repository: RepositoryName,
    digest: Digest,
    readers: AtomicU32,
    followers: Mutex<Vec<Follower>>,
    now: Mutex<Now>,
}

/// A node that follows this one.
struct Follower {
    number: u64,
    node: ResourceId,
    at: u64,
}

/// The changing part.
struct Now {
    state: FillState,
    size_bytes: Option<u64>,
    meter: Meter,
}

impl About {
    pub(super) fn new(fill: &FillFrom, digest: &Digest, began: DateTime<Utc>) -> Arc<Self> {
        let now = Now { state: FillState::Looking, size_bytes: None, meter: Meter::default() };
        Arc::new(Self {
            began,
            rule: fill.rule.id.clone(),
            upstream: fill.source.upstream.id.clone(),
            repository: fill.name.clone(),
            digest: digest.clone(),
            readers: AtomicU32::new(0),
            followers: Mutex::default(),
            now: Mutex::new(now),
        })
    }

    /// Notes the state of the state machine.
    pub(super) fn is_at(&self, state: &Fill) {
        let mut now = self.now();
        now.state = FillState::of(state).unwrap_or(now.state);
        now.size_bytes = state.size_bytes();
        now.meter.sample(state.landed_bytes(), Instant::now());
    }

    /// Counts one reader until the result is dropped.
    pub(super) fn reading(self: &Arc<Self>) -> Reading {
        self.readers.fetch_add(1, Ordering::AcqRel);
        Reading(self.clone())
    }

    /// How many readers there are, including nodes that follow.
    pub(super) fn reader_count(&self) -> usize {
        self.readers.load(Ordering::Acquire) as usize
    }

    /// Counts one follower that has everything up to `at`, until the result is dropped.
    pub(super) fn add_follower(self: &Arc<Self>, node: ResourceId, at: u64) -> Followed {
        let mut followers = self.followers();
        let number = followers.last().map_or(0, |last| last.number + 1);
        followers.push(Follower { number, node, at });
        Followed { about: self.clone(), number }
    }

    /// How many nodes follow, and the position of the one that is furthest behind.
    pub(super) fn followed_from(&self) -> (usize, Option<u64>) {
        let followers = self.followers();
        (followers.len(), followers.iter().map(|follower| follower.at).min())
    }

    fn followers(&self) -> MutexGuard<'_, Vec<Follower>> {
        self.followers.lock()
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock()
    }
}

/// A follower of a fill.
pub(super) struct Followed {
    about: Arc<About>,
    number: u64,
}

impl Followed {
    /// Notes that it has been sent everything up to `at`.
    pub(super) fn is_at(&self, at: u64) {
        if let Some(follower) = self.about.followers().iter_mut().find(|follower| follower.number == self.number) {
            follower.at = at;
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.about.followers().retain(|follower| follower.number != self.number);
    }
}

/// A reader of a fill.
pub(crate) struct Reading(Arc<About>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Fills {
    /// The running fills.
    pub(crate) fn views(&self) -> Vec<FillView> {
        let running = self.inner.running.lock();
        let view = |((origin, _), landing): (&super::FillKey, &super::Landing)| {
            let (landed_bytes, released_bytes) = landing.bytes();
            let about = landing.about();
            let followers: Vec<_> = about.followers().iter().map(|follower| follower.node.to_string()).collect();
            let readers = about.reader_count().saturating_sub(followers.len());
            let now = about.now();
            FillView {
                id: format!("{origin}:{}", about.digest),
                rule: about.rule.to_string(),
                upstream: about.upstream.to_string(),
                digest: about.digest.to_string(),
                repository: about.repository.to_string(),
                state: now.state,
                leader: landing.leader().map(|leader| leader.to_string()),
                followers,
                size_bytes: now.size_bytes,
                landed_bytes,
                released_bytes,
                readers: u32::try_from(readers).unwrap_or(u32::MAX),
                bytes_per_second: now.meter.rate(landed_bytes, Instant::now()),
                begin_time: about.began,
            }
        };
        running.iter().map(view).collect()
    }
}

/// Measures the rate at which bytes land, from a few samples of the last seconds.
#[derive(Default)]
struct Meter(VecDeque<(Instant, u64)>);

impl Meter {
    /// Adds a sample: this many bytes have landed at `now`.
    fn sample(&mut self, landed: u64, now: Instant) {
        if self.0.back().is_some_and(|(at, _)| now.duration_since(*at) < APART) {
            return;
        }
        self.0.push_back((now, landed));
        while self.0.len() > 2 && self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.0.pop_front();
        }
    }

    /// Bytes per second until `now`, when `landed` bytes have landed.
    fn rate(&self, landed: u64, now: Instant) -> u64 {
        // The last sample before the window, so that slow streams have one, too.
        let before = self.0.iter().rev().find(|(at, _)| now.duration_since(*at) >= WINDOW);
        let Some((at, base)) = before.or_else(|| self.0.front()) else { return 0 };
        let millis = u64::try_from(now.duration_since(*at).as_millis()).unwrap_or(u64::MAX);
        landed.saturating_sub(*base).saturating_mul(1000) / millis.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds_and_falls_when_nothing_lands() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        assert_eq!(meter.rate(0, start), 0);
        for second in 0..20_u32 {
            meter.sample(u64::from(second) * 1000, at(f64::from(second)));
        }
        assert_eq!(meter.rate(19_000, at(19.0)), 1000);
        for step in 1..=40 {
            meter.sample(19_000 + step * 500, at(19.0 + step as f64 / 4.0));
        }
        assert_eq!(meter.rate(39_000, at(29.0)), 2000);
        assert!(meter.0.len() <= 25, "{} samples", meter.0.len());
        assert_eq!(meter.rate(39_000, at(39.0)), 0);
    }
}
