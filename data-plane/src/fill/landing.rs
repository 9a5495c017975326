//! A fill as its readers see it.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use entrepot_domain::RepositoryName;
use futures_util::Stream;
use tokio::sync::watch;

use super::spool::Spool;
use crate::control::{FillFrom, Place};
use crate::error::PullError;
use crate::http::body::Cut;

/// How much a reader takes from the spool at once: the memory that one reader costs.
const CHUNK: u64 = 256 * 1024;

/// A running fill.
#[derive(Clone)]
pub(crate) struct Landing {
    progress: watch::Receiver<Progress>,
    /// The repository whose upstream is asked for the bytes.
    begun_for: RepositoryName,
    confirmed: Arc<Mutex<Confirmed>>,
}

/// The repositories whose upstream has the content; they are linked when it is stored.
struct Confirmed {
    repositories: Vec<(RepositoryName, FillFrom)>,
    /// How many of them the fill has taken to link.
    taken: usize,
    /// Whether the fill takes no more.
    closed: bool,
}

/// How far a fill is.
#[derive(Clone, Default)]
pub(super) struct Progress {
    /// What readers need before the first byte; comes when there is something to tell them.
    pub(super) head: Option<Head>,
    /// How many bytes readers may have.
    pub(super) released: u64,
    /// How the fill ended.
    pub(super) end: Option<End>,
}

#[derive(Clone)]
pub(super) struct Head {
    pub(super) spool: Spool,
    pub(super) size_bytes: Option<u64>,
}

/// How a fill ended, as far as its readers care.
#[derive(Clone)]
pub(super) enum End {
    /// The content was in the store already.
    Found,
    /// All bytes are released, and are the right ones.
    Whole,
    /// There is nothing more to come.
    Failed(PullError),
}

/// A fill that has begun to land.
pub(crate) struct Landed {
    /// The blob's size, if it is known before the end.
    pub(crate) size_bytes: Option<u64>,
    spool: Spool,
    progress: watch::Receiver<Progress>,
}

impl Landing {
    pub(super) fn new(place: &Place, fill: &FillFrom) -> (Self, watch::Sender<Progress>) {
        let (sender, progress) = watch::channel(Progress::default());
        let repositories = vec![(place.repository.clone(), fill.clone())];
        let confirmed = Arc::new(Mutex::new(Confirmed { repositories, taken: 0, closed: false }));
        (Self { progress, begun_for: place.repository.clone(), confirmed }, sender)
    }

    /// Whether this is the same fill.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.confirmed, &other.confirmed)
    }

    /// Whether this is the repository that the upstream is asked for.
    pub(crate) fn is_begun_for(&self, repository: &RepositoryName) -> bool {
        self.begun_for == *repository
    }

    /// Whether the upstream has said that this repository has the content.
    pub(crate) fn is_confirmed_for(&self, repository: &RepositoryName) -> bool {
        self.confirmed().repositories.iter().any(|(name, _)| name == repository)
    }

    /// Notes that the upstream has said so. Returns whether the fill links this repository: one that has stored the
    /// content and linked all that it knew of leaves that to the caller.
    #[must_use]
    pub(crate) fn confirm_for(&self, place: &Place, fill: &FillFrom) -> bool {
        let mut confirmed = self.confirmed();
        let known = confirmed.repositories.iter().any(|(name, _)| *name == place.repository);
        if !known && !confirmed.closed {
            confirmed.repositories.push((place.repository.clone(), fill.clone()));
        }
        known || !confirmed.closed
    }

    /// The next repository to link. After the last one, the fill takes no more.
    pub(super) fn next_to_link(&self) -> Option<(RepositoryName, FillFrom)> {
        let mut confirmed = self.confirmed();
        let next = confirmed.repositories.get(confirmed.taken).cloned();
        match next {
            Some(_) => confirmed.taken += 1,
            None => confirmed.closed = true,
        }
        next
    }

    fn confirmed(&self) -> MutexGuard<'_, Confirmed> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to send; `None` if the store has it all.
    pub(crate) async fn head(&self) -> Result<Option<Landed>, PullError> {
        let mut progress = self.progress.clone();
        let state = progress.wait_for(|progress| progress.head.is_some() || progress.end.is_some()).await;
        // A fill that was torn down tells nobody; the node is stopping.
        let state = state.map_err(|_| PullError::Busy)?.clone();
        match (state.head, state.end) {
            (_, Some(End::Failed(error))) => Err(error),
            (Some(head), _) => {
                Ok(Some(Landed { size_bytes: head.size_bytes, spool: head.spool, progress: self.progress.clone() }))
            }
            (None, Some(End::Found | End::Whole) | None) => Ok(None),
        }
    }
}

impl Landed {
    /// The bytes of `range`, or all of them, as they land.
    pub(crate) fn stream(self, range: Option<Range<u64>>) -> impl Stream<Item = Result<Bytes, Cut>> + Send + 'static {
        let (start, end) = match range {
            Some(range) => (range.start, Some(range.end)),
            None => (0, self.size_bytes),
        };
        let cursor = Cursor { spool: self.spool, progress: self.progress, at: start, end };
        futures_util::stream::try_unfold(cursor, Cursor::next)
    }
}

struct Cursor {
    spool: Spool,
    progress: watch::Receiver<Progress>,
    at: u64,
    /// Where to stop; `None` is at the fill's end.
    end: Option<u64>,
}

impl Cursor {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Cut> {
        loop {
            if self.end == Some(self.at) {
                return Ok(None);
            }
            let (released, end) = {
                let progress = self.progress.borrow_and_update();
                (progress.released, progress.end.clone())
            };
            let until = self.end.map_or(released, |end| released.min(end)).min(self.at.saturating_add(CHUNK));
            if until > self.at {
                let len = usize::try_from(until - self.at).map_err(Cut::because)?;
                let bytes = self.spool.read(self.at, len).await.map_err(Cut::because)?;
                self.at = until;
                return Ok(Some((bytes, self)));
            }
            match end {
                Some(End::Failed(error)) => return Err(Cut::because(error)),
                Some(End::Whole) if self.end.is_none() => return Ok(None),
                Some(End::Whole | End::Found) => {
                    return Err(Cut::because("the blob is shorter than the upstream said"));
                }
                None => self.progress.changed().await.map_err(Cut::because)?,
            }
        }
    }
}
