//! Why a request is answered as it is: each step that decides something leaves a note, and whoever answers collects them.
//!
//! The notes go with the task, so that no function has to hand them on. Work that is done once for many requests keeps
//! notes of its own, which each of the requests takes over with the result.

mod note;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use entrepot_domain::RepositoryName;

pub(crate) use note::{Note, age};

/// How many notes are kept of one request, and how many bytes of each are shown.
const NOTES: usize = 12;
const NOTE_BYTES: usize = 240;

tokio::task_local! {
    static TRAIL: Trail;
}

/// The notes of one request, or of work that is done for many. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trail(Arc<Mutex<Noted>>);

/// What was noted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Noted {
    /// The repository in the spelling under which it is kept.
    pub(crate) repository: Option<String>,
    /// The id of the principal that asks.
    pub(crate) principal: Option<String>,
    /// What was found and decided, in order.
    pub(crate) notes: Vec<Note>,
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
    fn add(&mut self, note: Note) {
        if self.notes.len() < NOTES && !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// Notes something, if anybody collects notes.
pub(crate) fn note(note: Note) {
    change(|noted| noted.add(note));
}

/// Whether something was noted.
pub(crate) fn has(note: &Note) -> bool {
    TRAIL.try_with(|trail| trail.lock().notes.contains(note)).unwrap_or(false)
}

/// Notes as people read them.
pub(crate) fn sentences(notes: &[Note]) -> Vec<String> {
    notes.iter().map(|note| capped(note.to_string(), NOTE_BYTES)).collect()
}

/// Notes which repository the request is about.
pub(crate) fn about(repository: &RepositoryName) {
    change(|noted| noted.repository = Some(repository.to_string()));
}

/// Notes who asks.
pub(crate) fn asked_by(principal_id: &str) {
    change(|noted| noted.principal = Some(principal_id.to_owned()));
}

/// Takes over the notes of work that was done for several.
pub(crate) fn take_over(other: &Trail) {
    let notes = other.noted().notes;
    change(|noted| notes.into_iter().for_each(|note| noted.add(note)));
}

fn change(change: impl FnOnce(&mut Noted)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::PullError;

    #[tokio::test]
    async fn notes_are_collected_once_each_and_shared_work_hands_its_own_on() {
        let ((), trail) = Trail::of(async {
            note(Note::StoreAway);
            let ((), shared) = Trail::of(async {
                note(Note::StoreAway);
                note(Note::BlobHere);
            })
            .await;
            take_over(&shared);
            take_over(&shared);
            asked_by("ci");
        })
        .await;
        let noted = trail.noted();
        assert_eq!(noted.notes, [Note::StoreAway, Note::BlobHere]);
        assert_eq!(noted.principal.as_deref(), Some("ci"));
        note(Note::BlobLost);
        assert_eq!(trail.noted().notes.len(), 2, "nobody collects what comes later");
    }

    #[tokio::test]
    async fn what_is_noted_is_bounded() {
        let long = |number: usize| PullError::BadContent {
            rule: "hub".parse().unwrap(),
            upstream: "hub".parse().unwrap(),
            what: format!("{number}{}", "ä".repeat(1000)),
        };
        let ((), trail) = Trail::of(async {
            for number in 0..1000 {
                note(Note::Failed(long(number)));
            }
        })
        .await;
        let sentences = sentences(&trail.noted().notes);
        assert_eq!(sentences.len(), NOTES);
        assert!(sentences.iter().all(|text| text.len() <= NOTE_BYTES && text.ends_with("ä…")), "{sentences:?}");
    }
}
