//! Why a request is answered as it is: each step that decides something leaves a note, and whoever answers collects them.
//!
//! The notes go with the task, so that no function has to hand them on. Work that is done once for many requests keeps
//! notes of its own, which each of the requests takes over with the result.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_domain::RepositoryName;

/// How many notes are kept of one request, and how many bytes of each.
const NOTES: usize = 12;
const NOTE_BYTES: usize = 240;

tokio::task_local! {
    static TRAIL: Trail;
}

/// The notes of one request, or of work that is done for many. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trail(Arc<Mutex<Noted>>);

/// What was noted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    /// The repository in the spelling under which it is kept.
    pub(crate) repository: Option<String>,
    /// The id of the principal that asks.
    pub(crate) principal: Option<String>,
    /// What was found and decided, in order.
    pub(crate) reasons: Vec<String>,
}

impl Trail {
    /// Runs `work`, whose notes go here.
    pub(crate) async fn follow<F: Future>(&self, work: F) -> F::Output {
        TRAIL.scope(self.clone(), work).await
    }

    /// Runs `work`, and returns its notes with what it gives.
    pub(crate) async fn of<F: Future>(work: F) -> (F::Output, Self) {
        let trail = Self::default();
        (trail.follow(work).await, trail)
    }

    /// What was noted so far.
    pub(crate) fn noted(&self) -> Noted {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    fn add(&mut self, reason: String) {
        if self.reasons.len() < NOTES && !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }
}

/// Notes a reason. Where nobody collects them, it is not even made.
pub(crate) fn because(reason: impl FnOnce() -> String) {
    note(|noted| noted.add(capped(reason(), NOTE_BYTES)));
}

/// Notes which repository the request is about.
pub(crate) fn about(repository: &RepositoryName) {
    note(|noted| noted.repository = Some(repository.to_string()));
}

/// Notes who asks.
pub(crate) fn asked_by(principal_id: &str) {
    note(|noted| noted.principal = Some(principal_id.to_owned()));
}

/// Takes over the reasons of work that was done for several.
pub(crate) fn take_over(other: &Trail) {
    let reasons = other.noted().reasons;
    note(|noted| reasons.into_iter().for_each(|reason| noted.add(reason)));
}

fn note(change: impl FnOnce(&mut Noted)) {
    let _ = TRAIL.try_with(|trail| change(&mut trail.lock()));
}

/// At most `limit` bytes of `text`, without breaking a character.
pub(crate) fn capped(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let end = (0..=limit.saturating_sub('…'.len_utf8())).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}

/// How long ago `then` was, in the largest unit that says enough, such as `26 h`.
pub(crate) fn ago(then: DateTime<Utc>, now: DateTime<Utc>) -> String {
    (now - then).to_std().map_or_else(|_| "0 s".to_owned(), length)
}

/// A length of time in the largest unit that says enough.
pub(crate) fn length(length: Duration) -> String {
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

    #[tokio::test]
    async fn reasons_are_collected_once_each_and_shared_work_hands_its_own_on() {
        let ((), trail) = Trail::of(async {
            because(|| "the first".to_owned());
            let ((), shared) = Trail::of(async {
                because(|| "the first".to_owned());
                because(|| "of shared work".to_owned());
            })
            .await;
            take_over(&shared);
            take_over(&shared);
            asked_by("ci");
        })
        .await;
        let noted = trail.noted();
        assert_eq!(noted.reasons, ["the first", "of shared work"]);
        assert_eq!(noted.principal.as_deref(), Some("ci"));
        because(|| unreachable!("nobody collects it"));
    }

    #[tokio::test]
    async fn what_is_noted_is_bounded() {
        let ((), trail) = Trail::of(async {
            for number in 0..1000 {
                because(|| format!("{number}{}", "ä".repeat(1000)));
            }
        })
        .await;
        let reasons = trail.noted().reasons;
        assert!(reasons.len() == NOTES && reasons.iter().all(|reason| reason.len() <= NOTE_BYTES), "{reasons:?}");
        assert!(reasons[0].ends_with("ä…"));
    }

    #[test]
    fn lengths_of_time_are_for_people() {
        for (seconds, text) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (93_600, "26 h"), (864_000, "10 days")] {
            assert_eq!(length(Duration::from_secs(seconds)), text);
        }
    }
}
