//! Gets a blob once, for all who want it: drives the domain's state machine and lets readers have the bytes as they
//! land.
//!
//! A fill belongs to the node, not to the client that caused it. Bytes land in a spool, from which each reader reads
//! at its own pace; the last of them are held back until the digest is verified, so that nobody ever completes a blob
//! that is not the one it asked for.

mod driver;
mod landing;
mod passage;
mod readers;
mod spool;
mod tail;
mod upload;
mod view;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use entrepot_domain::Digest;
use entrepot_domain::fill::Terms;
use entrepot_runtime::Tasks;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::capacity::Capacity;
use crate::config::limits;
use crate::control::FillFrom;
use crate::error::PullError;
use crate::lease::Leases;
use crate::metrics::FillMetrics;
use crate::peers::Peers;
use crate::repository::Repositories;

pub(crate) use landing::{Landed, Landing};
pub(crate) use view::{FillState, FillView};

/// How a fill lets go of bytes: small blobs whole, large ones but for their end.
const TERMS: Terms = Terms { whole_bytes: 1024 * 1024, held_back_bytes: 64 * 1024 };

/// How much is read from the spool at once: the memory that one reader costs.
const CHUNK_BYTES: usize = 256 * 1024;

/// All fills of this node. Clones share them.
#[derive(Clone)]
pub(crate) struct Fills {
    inner: Arc<Inner>,
}

struct Inner {
    repositories: Repositories,
    spool_dir: PathBuf,
    tasks: Tasks,
    leases: Leases,
    peers: Peers,
    turns: Arc<Semaphore>,
    /// Those who fetch manifests, so that none waits for slow layers.
    manifest_turns: Arc<Semaphore>,
    /// Those of the turns for blobs that may be had without a lease.
    uncoordinated_turns: Arc<Semaphore>,
    /// Those who are sent what lands here.
    followers: Arc<Semaphore>,
    running: Mutex<HashMap<FillKey, Landing>>,
    metrics: FillMetrics,
}

/// Where fills find what they need: content, the right to lead, and those who lead.
pub(crate) struct Places {
    pub(crate) repositories: Repositories,
    pub(crate) leases: Leases,
    pub(crate) peers: Peers,
}

/// What one fill is about: content under one origin. Bytes that one rule may see never reach another's readers.
type FillKey = (Uuid, Digest);

impl Fills {
    pub(crate) fn new(
        Places { repositories, leases, peers }: Places,
        spool_dir: PathBuf,
        tasks: Tasks,
        capacity: Capacity,
        metrics: FillMetrics,
    ) -> Self {
        let inner = Inner {
            repositories,
            spool_dir,
            tasks,
            leases,
            peers,
            turns: Arc::new(Semaphore::new(capacity.fills)),
            manifest_turns: Arc::new(Semaphore::new(capacity.fills)),
            uncoordinated_turns: Arc::new(Semaphore::new(capacity.fills.div_ceil(2))),
            followers: Arc::new(Semaphore::new(capacity.followers)),
            running: Mutex::default(),
            metrics,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The other nodes.
    pub(crate) fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    /// Where fills are counted.
    pub(crate) fn metrics(&self) -> &FillMetrics {
        &self.inner.metrics
    }

    /// Where this node takes leases.
    pub(crate) fn leases(&self) -> &Leases {
        &self.inner.leases
    }

    /// Waits for a turn to fetch a manifest: only so many are fetched at once.
    pub(crate) async fn manifest_turn(&self) -> Result<OwnedSemaphorePermit, PullError> {
        take(&self.inner.manifest_turns).await
    }

    /// Waits for a turn to fetch a blob: only so many are fetched at once.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, PullError> {
        take(&self.inner.turns).await
    }

    /// Waits for leave to fetch without a lease: while Redis is away all nodes may fetch the same, so each does less.
    async fn uncoordinated_turn(&self) -> Result<OwnedSemaphorePermit, PullError> {
        take(&self.inner.uncoordinated_turns).await
    }

    /// The fill of `digest` that runs, if one does.
    pub(crate) fn running(&self, origin: Uuid, digest: &Digest) -> Option<Landing> {
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(&(origin, digest.clone())).map(Landing::for_reader)
    }

    /// The fill of `digest`, begun from the upstream of `fill` if none runs.
    ///
    /// One that runs may have been begun for another repository: the caller asks whether this one may have it, too.
    pub(crate) fn join_or_start(&self, fill: &FillFrom, digest: &Digest) -> Landing {
        let key = (fill.origin, digest.clone());
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        match running.entry(key.clone()) {
            Entry::Occupied(entry) => entry.get().for_reader(),
            Entry::Vacant(entry) => {
                let about = view::About::new(fill, digest, self.inner.repositories.clock.now());
                let (landing, progress) = Landing::new(fill, about);
                let reader = landing.for_reader();
                entry.insert(landing.clone());
                let (fills, fill, digest) = (self.clone(), fill.clone(), digest.clone());
                let active = self.inner.metrics.begin();
                let leaving = Leaving { fills: self.clone(), key, landing: landing.clone() };
                let confirmed = landing.clone();
                let work = async move {
                    driver::drive(&fills, &fill, &digest, progress, &confirmed).await;
                    drop((leaving, active));
                };
                // Part of the trace of the pull that has caused it, although it may outlive it.
                self.inner.tasks.spawn("fill", work.in_current_span());
                reader
            }
        }
    }

    /// Takes a fill out of the table if nobody reads it. Who comes from now on begins another.
    fn leave_unread(&self, origin: Uuid, digest: &Digest, landing: &Landing) -> bool {
        // Readers join under this lock.
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        let is_unread = landing.about().reader_count() == 0;
        if is_unread {
            running.remove(&(origin, digest.clone()));
        }
        is_unread
    }
}

async fn take(turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, PullError> {
    let turn = tokio::time::timeout(limits::FILL_TURN, turns.clone().acquire_owned()).await;
    turn.ok().and_then(Result::ok).ok_or(PullError::Busy)
}

/// Takes a fill out of the table however it ends.
struct Leaving {
    fills: Fills,
    key: FillKey,
    landing: Landing,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut running = self.fills.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was given up has left already, and another may have taken its place.
        if running.get(&self.key).is_some_and(|landing| landing.is(&self.landing)) {
            running.remove(&self.key);
        }
    }
}
