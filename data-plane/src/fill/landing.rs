//! A fill as its readers see it.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use entrepot_domain::fill::{Phase, Reach};
use entrepot_domain::{RepositoryName, ResourceId};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::watch;

use super::CHUNK_BYTES;
use super::passage::Passage;
use super::readers::{Reader, Readers};
use super::spool::Spool;
use super::view::{About, Reading};
use crate::body::Cut;
use crate::control::FillFrom;
use crate::error::PullError;
use crate::outcome::Outcome;

/// A running fill.
#[derive(Clone)]
pub(crate) struct Landing {
    progress: watch::Receiver<Progress>,
    /// The repository whose upstream is asked for the bytes.
    begun_for: RepositoryName,
    confirmed: Arc<Mutex<Confirmed>>,
    readers: Readers,
    about: Arc<About>,
    /// Counts whoever has this as a reader; `None` for what the node itself keeps of a fill.
    reading: Option<Arc<Reading>>,
}

/// The repositories whose upstream has the content; they are linked when it is stored.
struct Confirmed {
    repositories: Vec<FillFrom>,
    /// How many of them the fill has taken to link.
    taken: usize,
    /// Whether the fill takes no more.
    closed: bool,
}

/// How far a fill is.
#[derive(Clone)]
pub(super) struct Progress {
    pub(super) phase: Phase,
    /// Which attempt this is: what landed before it was wrong.
    pub(super) attempt: u32,
    /// What is known before the first byte.
    pub(super) head: Option<Head>,
    /// Whether readers may know it: small content is verified first.
    pub(super) is_told: bool,
    /// The node that brings the bytes, if it is another one.
    pub(super) leader: Option<ResourceId>,
    /// Which bytes readers may have.
    pub(super) reach: Reach,
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
    /// All bytes may be had, and are the right ones.
    Whole,
    /// Each reader goes on by itself.
    PassedThrough(Arc<Passage>),
    /// There is nothing more to come.
    Failed(PullError),
}

/// A fill that has begun to land.
pub(crate) struct Landed {
    /// The blob's size, if it is known before the end.
    pub(crate) size_bytes: Option<u64>,
    /// The node by way of which it comes, if it is another one.
    pub(crate) leader: Option<ResourceId>,
    source: Source,
    reading: Option<Arc<Reading>>,
}

/// Where a reader's bytes come from.
enum Source {
    Spool { spool: Spool, progress: watch::Receiver<Progress>, readers: Readers },
    Passage(Arc<Passage>),
}

impl Landing {
    pub(super) fn new(fill: &FillFrom, about: Arc<About>) -> (Self, watch::Sender<Progress>) {
        let (sender, progress) = watch::channel(Progress {
            phase: Phase::Looking,
            attempt: 0,
            head: None,
            is_told: false,
            leader: None,
            reach: Reach::default(),
            end: None,
        });
        let repositories = vec![fill.clone()];
        let confirmed = Arc::new(Mutex::new(Confirmed { repositories, taken: 0, closed: false }));
        let readers = Readers::default();
        (Self { progress, begun_for: fill.name.clone(), confirmed, readers, about, reading: None }, sender)
    }

    /// The same fill for one more reader, which is counted until it drops all that it has of it.
    pub(super) fn for_reader(&self) -> Self {
        Self { reading: Some(Arc::new(self.about.reading())), ..self.clone() }
    }

    /// What makes its holder a reader.
    pub(super) fn reading(&self) -> Option<Arc<Reading>> {
        self.reading.clone()
    }

    /// What operators may know of it.
    pub(crate) fn about(&self) -> &Arc<About> {
        &self.about
    }

    /// How many bytes have landed in their order, and how many of them readers may have.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let progress = self.progress.borrow();
        (progress.reach.landed_bytes(), progress.reach.until(0))
    }

    /// The node that brings the bytes, if it is another one.
    pub(super) fn leader(&self) -> Option<ResourceId> {
        self.progress.borrow().leader.clone()
    }

    /// Whether this is the same fill.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.confirmed, &other.confirmed)
    }

    /// The repository that the upstream is asked for.
    pub(super) fn begun_for(&self) -> &RepositoryName {
        &self.begun_for
    }

    /// Whether this is the repository that the upstream is asked for.
    pub(crate) fn is_begun_for(&self, repository: &RepositoryName) -> bool {
        self.begun_for == *repository
    }

    /// Whether the upstream has said that this repository has the content.
    pub(crate) fn is_confirmed_for(&self, repository: &RepositoryName) -> bool {
        self.confirmed().repositories.iter().any(|fill| fill.name == *repository)
    }

    /// Notes that the upstream has said so. Returns whether the fill links this repository: one that has stored the
    /// content and linked all that it knew of leaves that to the caller.
    #[must_use]
    pub(crate) fn confirm_for(&self, fill: &FillFrom) -> bool {
        let mut confirmed = self.confirmed();
        let known = confirmed.repositories.iter().any(|known| known.name == fill.name);
        if !known && !confirmed.closed {
            confirmed.repositories.push(fill.clone());
        }
        known || !confirmed.closed
    }

    /// The next repository to link. After the last one, the fill takes no more.
    pub(super) fn next_to_link(&self) -> Option<FillFrom> {
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

    /// How far it is.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Those who read.
    pub(super) fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Waits until there is something to send; `None` if the store has it all.
    pub(crate) async fn head(&self) -> Result<Option<Landed>, PullError> {
        let (mut progress, reading) = (self.progress.clone(), self.reading());
        let state = progress.wait_for(|progress| progress.is_told || progress.end.is_some()).await;
        // A fill that was torn down tells nobody; the node is stopping.
        let state = state.map_err(|_| PullError::GaveUp)?.clone();
        let leader = state.leader;
        match (state.head.filter(|_| state.is_told), state.end) {
            (_, Some(End::Failed(error))) => Err(error),
            (_, Some(End::PassedThrough(passage))) => {
                let size_bytes = passage.size_bytes().await?;
                Ok(Some(Landed { size_bytes, leader: None, source: Source::Passage(passage), reading }))
            }
            (Some(head), _) => {
                let (progress, readers) = (self.progress.clone(), self.readers.clone());
                let source = Source::Spool { spool: head.spool, progress, readers };
                Ok(Some(Landed { size_bytes: head.size_bytes, leader, source, reading }))
            }
            (None, Some(End::Found | End::Whole) | None) => Ok(None),
        }
    }
}

impl Landed {
    /// How the pull of a blob that is still landing ends.
    pub(crate) fn outcome(&self) -> Outcome {
        if self.leader.is_some() { Outcome::Follow } else { Outcome::Miss }
    }

    /// Waits until the fill has ended, without reading it; `landed` hears how many bytes have landed in their order.
    pub(crate) async fn ended(self, landed: impl Fn(u64)) -> Result<(), PullError> {
        let Source::Spool { mut progress, .. } = self.source else { return Err(PullError::GaveUp) };
        loop {
            let (bytes, end) = {
                let progress = progress.borrow_and_update();
                (progress.reach.landed_bytes(), progress.end.clone())
            };
            landed(bytes);
            match end {
                Some(End::Found | End::Whole) => return Ok(()),
                Some(End::Failed(error)) => return Err(error),
                // It goes past the spool, and so past the store.
                Some(End::PassedThrough(_)) => return Err(PullError::GaveUp),
                // A fill that was torn down tells nobody; the node is stopping.
                None => progress.changed().await.map_err(|_| PullError::GaveUp)?,
            }
        }
    }

    /// The bytes of `range`, or all of them, as they land.
    pub(crate) fn stream(self, range: Option<Range<u64>>) -> BoxStream<'static, Result<Bytes, Cut>> {
        let (start, end) = match range {
            Some(range) => (range.start, Some(range.end)),
            None => (0, self.size_bytes),
        };
        let reading = self.reading;
        match self.source {
            Source::Spool { spool, progress, readers } => {
                let place = readers.enter(start, end);
                let cursor = Cursor { spool, progress, at: start, end, place, passing: None, _reading: reading };
                futures_util::stream::try_unfold(cursor, Cursor::next).boxed()
            }
            Source::Passage(passage) => passage.stream(start, end),
        }
    }
}

struct Cursor {
    spool: Spool,
    progress: watch::Receiver<Progress>,
    at: u64,
    /// Where to stop; `None` is at the fill's end.
    end: Option<u64>,
    place: Reader,
    /// Where the bytes come from once the spool takes no more.
    passing: Option<BoxStream<'static, Result<Bytes, Cut>>>,
    _reading: Option<Arc<Reading>>,
}

impl Cursor {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Cut> {
        loop {
            if let Some(passing) = &mut self.passing {
                return Ok(passing.next().await.transpose()?.map(|bytes| (bytes, self)));
            }
            if self.end == Some(self.at) {
                return Ok(None);
            }
            let (until, end) = {
                let progress = self.progress.borrow_and_update();
                (progress.reach.until(self.at), progress.end.clone())
            };
            let until = self.end.map_or(until, |end| until.min(end)).min(self.at.saturating_add(CHUNK_BYTES as u64));
            if until > self.at {
                let len = usize::try_from(until - self.at).map_err(Cut::because)?;
                let bytes = self.spool.read(self.at, len).await.map_err(Cut::because)?;
                self.at = until;
                self.place.is_at(self.at);
                return Ok(Some((bytes, self)));
            }
            match end {
                Some(End::Failed(error)) => return Err(Cut::because(error)),
                Some(End::PassedThrough(passage)) => self.passing = Some(passage.stream(self.at, self.end)),
                Some(End::Whole) if self.end.is_none() => return Ok(None),
                Some(End::Whole | End::Found) => {
                    return Err(Cut::because("the blob is shorter than the upstream said"));
                }
                None => {
                    self.place.waits();
                    self.progress.changed().await.map_err(Cut::because)?;
                }
            }
        }
    }
}
