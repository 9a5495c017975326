//! The reasons for an answer: each step that decides something leaves a note, and the code that answers collects them.
//!
//! The notes belong to the task, so no function has to pass them on. Work that is done once for many requests keeps its
//! own notes, which each of the requests takes over with the result.

mod note;

use std::future::Future;
use std::sync::Arc;

use entrepot_domain::RepositoryName;
use parking_lot::{Mutex, MutexGuard};

pub(crate) use note::{Note, age};

/// How many notes are kept per request, and how many bytes of each are shown.
const NOTES: usize = 12;
const NOTE_BYTES: usize = 240;

tokio::task_local! {
    static TRAIL: Trail;
}

/// The notes of one request, or of work for many. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trail(Arc<Mutex<Noted>>);

/// What was noted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Noted {
    /// The repository, in the spelling under which it is kept.
    pub(crate) repository: Option<String>,
    /// The id of the caller's principal.
    pub(crate) principal: Option<String>,
    /// What was found and decided, in order.
    pub(crate) notes: Vec<Note>,
}

impl Trail {
    /// Runs `work`, whose notes go here.
    pub(crate) async fn follow<F: Future>(&self, work: F) -> F::Output {
        TRAIL.scope(self.clone(), work).await
    }

    /// Runs `work`, and returns its result with its notes.
    pub(crate) async fn of<F: Future>(work: F) -> (F::Output, Self) {
        let trail = Self::default();
        (trail.follow(work).await, trail)
    }

    /// Everything noted so far.
    pub(crate) fn noted(&self) -> Noted {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock()
    }
}

impl Noted {
    fn add(&mut self, note: Note) {
        if self.notes.len() < NOTES && !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// Adds a note, if anybody collects notes.
pub(crate) fn note(note: Note) {
    change(|noted| noted.add(note));
}

/// Whether this was noted.
pub(crate) fn has(note: &Note) -> bool {
    TRAIL.try_with(|trail| trail.lock().notes.contains(note)).unwrap_or(false)
}

/// The notes as sentences for people.
pub(crate) fn sentences(notes: &[Note]) -> Vec<String> {
    notes.iter().map(|note| truncated(note.to_string(), NOTE_BYTES)).collect()
}

/// Notes the repository of the request.
pub(crate) fn about(repository: &RepositoryName) {
    change(|noted| noted.repository = Some(repository.to_string()));
}

/// Notes the caller.
pub(crate) fn asked_by(principal_id: &str) {
    change(|noted| noted.principal = Some(principal_id.to_owned()));
}

/// Takes over the notes of shared work.
pub(crate) fn take_over(other: &Trail) {
    let notes = other.noted().notes;
    change(|noted| notes.into_iter().for_each(|note| noted.add(note)));
}

fn change(change: impl FnOnce(&mut Noted)) {
    let _ = TRAIL.try_with(|trail| change(&mut trail.lock()));
}

/// At most `limit` bytes of `text`, without splitting a character.
pub(crate) fn truncated(mut text: String, limit: usize) -> String {
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
