//! A fill from the point of view of its readers.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_domain::fill::{Phase, Reach};
use entrepot_domain::{RepositoryName, ResourceId};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{OnceCell, watch};

use super::CHUNK_BYTES;
use super::pass_through::PassThrough;
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
    /// The repository whose upstream delivers the bytes.
    begun_for: RepositoryName,
    confirmed: Arc<Mutex<Confirmed>>,
    readers: Readers,
    about: Arc<About>,
    /// Counts the owner of this as a reader; `None` for the node's own handle of a fill.
    reading: Option<Arc<Reading>>,
    /// The size that this reader's manifest promises.
    promised: Option<u64>,
    /// What its readers were promised.
    limit: Arc<Mutex<Limit>>,
    /// The size according to a manifest that another node has served, once the other nodes were asked.
    promised_elsewhere: Arc<OnceCell<Option<u64>>>,
}

/// The sizes that a fill's readers were promised by manifests.
#[derive(Default)]
struct Limit {
    /// The largest one.
    largest: u64,
    /// How many readers were promised nothing.
    open: usize,
}

/// The repositories that have the content according to the upstream. They are linked when it is stored.
struct Confirmed {
    repositories: Vec<FillFrom>,
    /// How many of them the fill has already taken for linking.
    taken: usize,
    /// Whether the fill takes no more of them.
    closed: bool,
}

/// How far a fill is.
#[derive(Clone)]
pub(super) struct Progress {
    pub(super) phase: Phase,
    /// The number of the attempt: what landed in earlier ones was wrong.
    pub(super) attempt: u32,
    /// What is known before the first byte.
    pub(super) head: Option<Head>,
    /// Whether readers may know it. Small content is verified first.
    pub(super) is_told: bool,
    /// The node through which the bytes come, if it is another one.
    pub(super) leader: Option<ResourceId>,
    /// Which bytes readers may have.
    pub(super) reach: Reach,
    pub(super) end: Option<End>,
}

#[derive(Clone)]
pub(super) struct Head {
    pub(super) spool: Spool,
    pub(super) size_bytes: Option<u64>,
}

/// How a fill ended, for its readers.
#[derive(Clone)]
pub(super) enum End {
    /// The content was in the store already.
    Found,
    /// All bytes are available and verified.
    Whole,
    /// Each reader continues with its own stream.
    PassedThrough(Arc<PassThrough>),
    /// Nothing more will come.
    Failed(PullError),
}

/// A fill that has begun to land.
pub(crate) struct Landed {
    /// The blob's size, if it is known before the end.
    pub(crate) size_bytes: Option<u64>,
    /// The node through which it comes, if it is another one.
    pub(crate) leader: Option<ResourceId>,
    source: Source,
    reading: Option<Arc<Reading>>,
    /// The size, if only a manifest tells it.
    promised: Option<u64>,
}

/// Where a reader's bytes come from.
enum Source {
    Spool { spool: Spool, progress: watch::Receiver<Progress>, readers: Readers },
    PassThrough(Arc<PassThrough>),
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
        let begun_for = fill.name.clone();
        let (limit, promised_elsewhere) = (Arc::default(), Arc::default());
        let (reading, promised) = (None, None);
        let landing =
            Self { progress, begun_for, confirmed, readers, about, reading, promised, limit, promised_elsewhere };
        (landing, sender)
    }

    /// The same fill for another reader, who counts until everything derived from this is dropped, and whose manifest
    /// promises this size.
    pub(super) fn for_reader(&self, promised: Option<u64>) -> Self {
        let mut limit = self.limit.lock();
        match promised {
            Some(size) => limit.largest = limit.largest.max(size),
            None => limit.open += 1,
        }
        drop(limit);
        Self { reading: Some(Arc::new(self.about.reading())), promised, ..self.clone() }
    }

    /// The largest promise to any of its readers, if each was promised something. So the manifest of one repository
    /// never limits what another one gets.
    pub(super) fn limit(&self) -> Option<u64> {
        let limit = self.limit.lock();
        (limit.open == 0).then_some(limit.largest)
    }

    /// Notes a promise to a reader that had joined without one.
    pub(super) fn promise(&self, size_bytes: u64) {
        let mut limit = self.limit.lock();
        limit.largest = limit.largest.max(size_bytes);
        limit.open = limit.open.saturating_sub(1);
    }

    /// The size according to a manifest that another node has served.
    pub(super) fn promised_elsewhere(&self) -> &OnceCell<Option<u64>> {
        &self.promised_elsewhere
    }

    /// Makes its owner a reader.
    pub(super) fn reading(&self) -> Option<Arc<Reading>> {
        self.reading.clone()
    }

    /// What operators may know about it.
    pub(crate) fn about(&self) -> &Arc<About> {
        &self.about
    }

    /// How many bytes have landed in order, and how many of them readers may have.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let progress = self.progress.borrow();
        (progress.reach.landed_bytes(), progress.reach.until(0))
    }

    /// The node through which the bytes come, if it is another one.
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

    /// Whether the upstream has confirmed that this repository has the content.
    pub(crate) fn is_confirmed_for(&self, repository: &RepositoryName) -> bool {
        self.lock_confirmed().repositories.iter().any(|fill| fill.name == *repository)
    }

    /// Notes that the upstream has confirmed this. Returns whether the fill will link this repository. If the fill has
    /// already stored the content and linked all repositories that it knew, the caller has to link this one.
    #[must_use]
    pub(crate) fn confirm_for(&self, fill: &FillFrom) -> bool {
        let mut confirmed = self.lock_confirmed();
        let known = confirmed.repositories.iter().any(|known| known.name == fill.name);
        if !known && !confirmed.closed {
            confirmed.repositories.push(fill.clone());
        }
        known || !confirmed.closed
    }

    /// The next repository to link. After the last one, the fill takes no more.
    pub(super) fn next_to_link(&self) -> Option<FillFrom> {
        let mut confirmed = self.lock_confirmed();
        let next = confirmed.repositories.get(confirmed.taken).cloned();
        match next {
            Some(_) => confirmed.taken += 1,
            None => confirmed.closed = true,
        }
        next
    }

    fn lock_confirmed(&self) -> MutexGuard<'_, Confirmed> {
        self.confirmed.lock()
    }

    /// Tells how far it is.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// The readers.
    pub(super) fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Waits until there is something to send; `None` if the store has everything.
    pub(crate) async fn head(&self) -> Result<Option<Landed>, PullError> {
        let (mut progress, reading) = (self.progress.clone(), self.reading());
        let state = progress.wait_for(|progress| progress.is_told || progress.end.is_some()).await;
        // A fill that was torn down sends nothing; the node is stopping.
        let state = state.map_err(|_| PullError::GaveUp)?.clone();
        let leader = state.leader;
        match (state.head.filter(|_| state.is_told), state.end) {
            (_, Some(End::Failed(error))) => Err(error),
            (_, Some(End::PassedThrough(pass_through))) => {
                let promised = self.promised.filter(|_| pass_through.size_bytes.is_none());
                let size_bytes = if promised.is_some() { promised } else { pass_through.size_bytes().await? };
                let source = Source::PassThrough(pass_through);
                Ok(Some(Landed { size_bytes, leader: None, source, reading, promised }))
            }
            (Some(head), _) => {
                let (progress, readers) = (self.progress.clone(), self.readers.clone());
                let source = Source::Spool { spool: head.spool, progress, readers };
                let promised = self.promised.filter(|_| head.size_bytes.is_none());
                Ok(Some(Landed { size_bytes: head.size_bytes.or(promised), leader, source, reading, promised }))
            }
            (None, Some(End::Found | End::Whole) | None) => Ok(None),
        }
    }
}

impl Landed {
    /// The same with a size that only a manifest tells.
    pub(super) fn promised(self, size_bytes: u64) -> Self {
        Self { size_bytes: Some(size_bytes), promised: Some(size_bytes), ..self }
    }

    /// The outcome of a pull of a blob that is still landing.
    pub(crate) fn outcome(&self) -> Outcome {
        match self.source {
            Source::PassThrough(_) => Outcome::Bypass,
            Source::Spool { .. } if self.leader.is_some() => Outcome::Follow,
            Source::Spool { .. } => Outcome::Miss,
        }
    }

    /// Waits for the end of the fill without reading it. `landed` is called with the number of bytes that have landed
    /// in order.
    pub(crate) async fn wait(self, landed: impl Fn(u64)) -> Result<(), PullError> {
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
                // It bypasses the spool, and so the store.
                Some(End::PassedThrough(_)) => return Err(PullError::GaveUp),
                // A fill that was torn down sends nothing; the node is stopping.
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
        let (reading, promised) = (self.reading, self.promised);
        match self.source {
            Source::Spool { spool, progress, readers } => {
                let place = readers.enter(start, end);
                let cursor =
                    Cursor { spool, progress, at: start, end, place, passing: None, promised, _reading: reading };
                futures_util::stream::try_unfold(cursor, Cursor::next).boxed()
            }
            Source::PassThrough(pass_through) => pass_through.stream(start, end, promised),
        }
    }
}

struct Cursor {
    spool: Spool,
    progress: watch::Receiver<Progress>,
    at: u64,
    /// Where to stop; `None` is the end of the fill.
    end: Option<u64>,
    place: Reader,
    /// The source of the bytes once the spool takes no more.
    passing: Option<BoxStream<'static, Result<Bytes, Cut>>>,
    /// The size, if only a manifest tells it.
    promised: Option<u64>,
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
            let (landed, until, end) = {
                let progress = self.progress.borrow_and_update();
                (progress.reach.landed_bytes(), progress.reach.until(self.at), progress.end.clone())
            };
            // The tail of content without a known size is held back, so the promised bytes are not complete yet.
            if self.promised.is_some_and(|promised| landed > promised) {
                return Err(Cut::because("the blob is larger than its manifest says"));
            }
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
                Some(End::PassedThrough(pass_through)) => {
                    self.passing = Some(pass_through.stream(self.at, self.end, self.promised));
                }
                Some(End::Whole) if self.end.is_none() => return Ok(None),
                Some(End::Whole | End::Found) => {
                    return Err(Cut::because("the blob is shorter than was said"));
                }
                None => {
                    self.place.waits();
                    self.progress.changed().await.map_err(Cut::because)?;
                }
            }
        }
    }
}
