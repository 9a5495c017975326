//! The other nodes: how this one is found, and which of them live.
//!
//! Every node keeps a signed record of itself in the store and reads those of the others there, so that nodes find each
//! other with the control plane away. An address is believed because the cluster's key has signed it, and for no other
//! reason. What dead nodes have left behind is cleaned up by those that live.

mod announce;
mod ask;
mod client;
mod follow;
pub(crate) mod paths;
mod survey;
mod sweep;
mod tell;
pub(crate) mod words;

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use entrepot_domain::ResourceId;
use entrepot_runtime::{Clock, Metrics, Tasks};
use entrepot_store::{Store, Version};
use entrepot_trust::{ClusterKey, NodeRecord};
use tokio::time::{Instant, timeout};
use url::Url;
use uuid::Uuid;

use crate::config::limits;
use crate::control::Control;
use crate::jitter::about;
use crate::memory::Memory;

pub(crate) use ask::AskError;
pub use client::PeerTlsError;
pub(crate) use client::{PeerClient, ProbeError};
pub(crate) use follow::{Following, Lost};
use survey::SurveyMetrics;
pub(crate) use tell::Forget;
use tell::Tellers;

/// The audience of the tokens that nodes call each other with.
pub(crate) const AUDIENCE: &str = "entrepot.peer.v1";

/// This release, as nodes and control plane tell each other.
pub(crate) const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// This life of this node.
#[derive(Clone, Debug)]
pub(crate) struct Me {
    pub(crate) id: ResourceId,
    pub(crate) boot_id: Uuid,
    /// Where other nodes reach it.
    pub(crate) address: Option<Url>,
    pub(crate) start_time: DateTime<Utc>,
}

/// All nodes of the cluster, this one and the others. Clones share what is known.
#[derive(Clone)]
pub(crate) struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    me: Me,
    store: Store,
    key: ClusterKey,
    clock: Clock,
    control: Control,
    client: PeerClient,
    memory: Memory,
    tellers: Tellers,
    /// The records of the others, as they were last read.
    known: Arc<ArcSwap<Vec<NodeRecord>>>,
    /// Another life with this node's id that was told of.
    double: Mutex<Option<Uuid>>,
    /// What this life has written last as its record; locked while it writes.
    last_written: tokio::sync::Mutex<Option<Version>>,
    metrics: SurveyMetrics,
}

/// What knowing the others needs.
pub(crate) struct Ground {
    pub(crate) store: Store,
    pub(crate) key: ClusterKey,
    pub(crate) clock: Clock,
    pub(crate) control: Control,
    pub(crate) memory: Memory,
}

impl Peers {
    pub(crate) fn new(me: Me, ground: Ground, client: PeerClient, metrics: &Metrics) -> Self {
        let Ground { store, key, clock, control, memory } = ground;
        let known = Arc::new(ArcSwap::default());
        let metrics = SurveyMetrics::new(metrics, &known, &clock);
        let (double, last_written) = (Mutex::default(), tokio::sync::Mutex::default());
        let tellers = Tellers::default();
        let inner =
            Inner { me, store, key, clock, control, client, memory, tellers, known, double, last_written, metrics };
        Self { inner: Arc::new(inner) }
    }

    /// Comes before all else that this life does: what an earlier one has begun to upload would look like its own, and
    /// what it uploads itself is nobody's as long as it has no record. A store that is away is not waited for.
    pub(crate) async fn begin(&self) {
        self.abort_own_uploads().await;
        self.announce().await;
    }

    /// What this node is called.
    pub(crate) fn id(&self) -> &ResourceId {
        &self.inner.me.id
    }

    /// How many nodes live, as this one sees it; itself included.
    pub(crate) fn live_count(&self) -> u32 {
        let now = self.inner.clock.now();
        let others = self.inner.known.load().iter().filter(|record| record.is_live(now)).count();
        u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Spawns what goes on while the node runs.
    pub(crate) fn spawn(&self, tasks: &Tasks) {
        let (peers, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("node.announce", async move {
            stopping.run_until_cancelled(peers.keep_announced()).await;
        });
        let (peers, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("node.survey", async move {
            stopping.run_until_cancelled(peers.keep_surveyed()).await;
        });
        let (peers, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("node.sweep", async move {
            stopping.run_until_cancelled(peers.keep_swept()).await;
        });
    }

    /// The last of all: this node is no more.
    pub(crate) async fn end(&self) {
        let _ = timeout(limits::NODE_RECORD_IO, self.retire()).await;
    }

    async fn keep_announced(&self) {
        let mut versions = self.inner.control.versions();
        let (mut due, mut written) = (self.inner.clock.now() + about(limits::NODE_RECORD), Instant::now());
        loop {
            tokio::select! {
                // Looked at often: a clock that is set forward makes the record old at once.
                () = tokio::time::sleep(limits::NODE_RECORD_LOOK) => {
                    let now = self.inner.clock.now();
                    let is_due = now >= due || due - now > chrono::Duration::from_std(limits::NODE_RECORD * 2).unwrap_or_default();
                    // Or else, whatever the clock does: somebody who had read an old record may have removed this one.
                    if !is_due && written.elapsed() < limits::NODE_RECORD * 2 {
                        continue;
                    }
                }
                // Who waits for a change to arrive reads it in the record. The sender lives as long as this node.
                _ = versions.changed() => {}
            }
            self.announce().await;
            (due, written) = (self.inner.clock.now() + about(limits::NODE_RECORD), Instant::now());
        }
    }

    async fn keep_surveyed(&self) {
        loop {
            self.survey().await;
            self.probe().await;
            tokio::time::sleep(about(limits::SURVEY)).await;
        }
    }

    async fn keep_swept(&self) {
        loop {
            self.sweep().await;
            tokio::time::sleep(about(limits::SWEEP.0)).await;
        }
    }
}
