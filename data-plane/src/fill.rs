//! Fetches a blob once for everybody who wants it: drives the domain's state machine, and gives readers the bytes as
//! they land.
//!
//! A fill belongs to the node, not to the client that caused it. Bytes land in a spool, from which each reader reads at
//! its own pace. The last bytes are held back until the digest is verified, so that no client ever completes a wrong
//! blob.

mod driver;
mod landing;
mod pass_through;
mod promises;
mod readers;
mod spool;
mod tail;
mod upload;
mod view;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::Arc;

use entrepot_domain::fill::FillSettings;
use entrepot_domain::{Digest, ResourceId};
use entrepot_runtime::Tasks;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::capacity::Capacity;
use crate::config::{Config, limits};
use crate::control::FillFrom;
use crate::error::PullError;
use crate::lease::Leases;
use crate::metrics::FillMetrics;
use crate::peers::Peers;
use crate::repository::Repositories;
use crate::turns::{Turn, Turns};

pub(crate) use landing::{Landed, Landing};
pub(crate) use promises::Promises;
pub(crate) use view::{FillState, FillView};

/// What a fill holds back: small blobs completely, and the tail of large ones.
const SETTINGS: FillSettings = FillSettings { whole_bytes: 1024 * 1024, held_back_bytes: 64 * 1024 };

/// How much is read from the spool at once, which is the memory that one reader costs.
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
    /// The turns for fetching blobs. All turns are shared by upstream, so that a slow upstream does not take them all.
    turns: Turns<ResourceId>,
    /// The turns for fetching manifests, so that manifests do not wait for slow layers.
    manifest_turns: Turns<ResourceId>,
    /// The turns for fetching blobs without a lease.
    uncoordinated_turns: Turns<ResourceId>,
    /// The permits for sending what lands here to followers.
    followers: Arc<Semaphore>,
    running: Mutex<HashMap<FillKey, Landing>>,
    promises: Promises,
    metrics: FillMetrics,
    /// Larger blobs are not stored.
    largest_blob: u64,
}

/// The permission to fetch from an upstream.
pub(crate) type FetchTurn = Turn<ResourceId>;

/// How much a node permits its fills.
pub(crate) struct Grants {
    pub(crate) spool_dir: PathBuf,
    pub(crate) capacity: Capacity,
    /// Larger blobs are not stored.
    pub(crate) largest_blob: u64,
}

impl Grants {
    /// The grants of a node with this configuration.
    pub(crate) fn of(config: &Config) -> Self {
        let Config { spool_dir, capacity, largest_blob, .. } = config;
        Self { spool_dir: spool_dir.clone(), capacity: *capacity, largest_blob: *largest_blob }
    }
}

/// What fills need: the content, leases, and the nodes that lead.
pub(crate) struct Places {
    pub(crate) repositories: Repositories,
    pub(crate) leases: Leases,
    pub(crate) peers: Peers,
}

/// The key of a fill: content under one origin. Bytes fetched under one rule never reach readers of another.
type FillKey = (Uuid, Digest);

impl Fills {
    pub(crate) fn new(
        Places { repositories, leases, peers }: Places,
        Grants { spool_dir, capacity, largest_blob }: Grants,
        tasks: Tasks,
        metrics: FillMetrics,
    ) -> Self {
        let inner = Inner {
            repositories,
            spool_dir,
            tasks,
            leases,
            peers,
            turns: Turns::new(capacity.fills),
            manifest_turns: Turns::new(capacity.fills),
            uncoordinated_turns: Turns::new(capacity.fills.div_ceil(2)),
            followers: Arc::new(Semaphore::new(capacity.followers)),
            running: Mutex::default(),
            promises: Promises::new(),
            metrics,
            largest_blob,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The largest blob that is kept.
    pub(crate) fn largest_blob(&self) -> u64 {
        self.inner.largest_blob
    }

    /// The other nodes.
    pub(crate) fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    /// The sizes of blobs according to the manifests that this node has served.
    pub(crate) fn promises(&self) -> &Promises {
        &self.inner.promises
    }

    /// What has landed, with the size that a manifest of the repository promises, if the upstream does not tell the
    /// size and another node has served the manifest. All readers of the repository ask the other nodes once.
    pub(crate) async fn with_promise(
        &self,
        landing: &Landing,
        landed: Landed,
        fill: &FillFrom,
        digest: &Digest,
    ) -> Landed {
        if landed.size_bytes.is_some() || !landing.is_begun_for(&fill.name) {
            return landed;
        }
        let asked = || self.inner.peers.promised(fill.origin, &fill.name, digest);
        match *landing.promised_elsewhere().get_or_init(asked).await {
            Some(size_bytes) => {
                landing.promise(size_bytes);
                landed.promised(size_bytes)
            }
            None => landed,
        }
    }

    /// The metrics of fills.
    pub(crate) fn metrics(&self) -> &FillMetrics {
        &self.inner.metrics
    }

    /// This node's leases.
    pub(crate) fn leases(&self) -> &Leases {
        &self.inner.leases
    }

    /// Waits for a turn to fetch a manifest, since only so many are fetched at once.
    pub(crate) async fn manifest_turn(&self, fill: &FillFrom) -> Result<FetchTurn, PullError> {
        take(&self.inner.manifest_turns, fill).await
    }

    /// Waits for a turn to fetch a blob, since only so many are fetched at once.
    async fn turn(&self, fill: &FillFrom) -> Result<FetchTurn, PullError> {
        take(&self.inner.turns, fill).await
    }

    /// Waits for a turn to fetch without a lease. While Redis is away, all nodes may fetch the same, so each does less.
    async fn uncoordinated_turn(&self, fill: &FillFrom) -> Result<FetchTurn, PullError> {
        take(&self.inner.uncoordinated_turns, fill).await
    }

    /// The running fill of `digest`, if there is one, for a reader whose manifest promises this size.
    pub(crate) fn running(&self, origin: Uuid, digest: &Digest, promised: Option<u64>) -> Option<Landing> {
        let running = self.inner.running.lock();
        running.get(&(origin, digest.clone())).map(|landing| landing.for_reader(promised))
    }

    /// The fill of `digest`, started from the upstream of `fill` if none is running, for a reader whose manifest
    /// promises this size.
    ///
    /// A running fill may have been started for another repository: the caller asks whether this repository may have
    /// the content, too.
    pub(crate) fn join_or_start(&self, fill: &FillFrom, digest: &Digest, promised: Option<u64>) -> Landing {
        let key = (fill.origin, digest.clone());
        let mut running = self.inner.running.lock();
        match running.entry(key.clone()) {
            Entry::Occupied(entry) => entry.get().for_reader(promised),
            Entry::Vacant(entry) => {
                let about = view::About::new(fill, digest, self.inner.repositories.clock.now());
                let (landing, progress) = Landing::new(fill, about);
                let reader = landing.for_reader(promised);
                entry.insert(landing.clone());
                let (fills, fill, digest) = (self.clone(), fill.clone(), digest.clone());
                let active = self.inner.metrics.begin();
                let leaving = Leaving { fills: self.clone(), key, landing: landing.clone() };
                let confirmed = landing.clone();
                let work = async move {
                    driver::drive(&fills, &fill, &digest, progress, &confirmed).await;
                    drop((leaving, active));
                };
                // It belongs to the trace of the pull that has caused it, although it may outlive the pull.
                self.inner.tasks.spawn("fill", work.in_current_span());
                reader
            }
        }
    }

    /// Takes an unread fill out of the table. Later readers start another one.
    fn leave_unread(&self, origin: Uuid, digest: &Digest, landing: &Landing) -> bool {
        // Readers join under this lock.
        let mut running = self.inner.running.lock();
        let is_unread = landing.about().reader_count() == 0;
        if is_unread {
            running.remove(&(origin, digest.clone()));
        }
        is_unread
    }
}

async fn take(turns: &Turns<ResourceId>, fill: &FillFrom) -> Result<FetchTurn, PullError> {
    turns.take(fill.source.upstream.id.clone(), limits::FILL_TURN).await.ok_or(PullError::Busy)
}

/// Takes a fill out of the table, however it ends.
struct Leaving {
    fills: Fills,
    key: FillKey,
    landing: Landing,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut running = self.fills.inner.running.lock();
        // A fill that was given up is already out of the table, and another one may have taken its place.
        if running.get(&self.key).is_some_and(|landing| landing.is(&self.landing)) {
            running.remove(&self.key);
        }
    }
}
