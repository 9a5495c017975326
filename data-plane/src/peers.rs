//! The other nodes: how this node is found, and which others are alive.
//!
//! Every node keeps a signed record of itself in the store and reads those of the others there, so nodes find each
//! other even while the control plane is away. An address is trusted only because it is signed with the cluster's key.
//! Live nodes clean up what dead nodes have left behind.

mod announce;
mod ask;
mod client;
mod follow;
pub(crate) mod paths;
mod roll;
mod survey;
mod sweep;
mod tell;
pub(crate) mod words;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use entrepot_domain::ResourceId;
use entrepot_runtime::retry::jittered;
use entrepot_runtime::{Clock, Metrics, Tasks};
use entrepot_store::{Store, Version};
use entrepot_trust::ClusterKey;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use url::Url;
use uuid::Uuid;

use crate::config::limits;
use crate::control::Control;
use crate::memory::Memory;

pub(crate) use ask::AskError;
pub use client::PeerTlsError;
pub(crate) use client::{PeerClient, ProbeError};
pub(crate) use follow::{Following, Lost};
use roll::Roll;
use survey::SurveyMetrics;
pub(crate) use tell::Forget;
use tell::Tellers;

/// The audience of the tokens with which nodes call each other.
pub(crate) const AUDIENCE: &str = "entrepot.peer.v1";

/// This release, in the form that nodes and control plane exchange.
pub(crate) const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// This run of this node.
#[derive(Clone, Debug)]
pub(crate) struct Me {
    pub(crate) id: ResourceId,
    pub(crate) boot_id: Uuid,
    /// The URL at which other nodes reach it.
    pub(crate) address: Option<Url>,
    pub(crate) start_time: DateTime<Utc>,
}

/// All nodes of the cluster. Clones share what is known.
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
    /// The other nodes.
    roll: Arc<Mutex<Roll>>,
    /// Another run with this node's id that was already reported.
    double: Mutex<Option<Uuid>>,
    /// The version of the record that this run has written last; locked while it writes.
    last_written: tokio::sync::Mutex<Option<Version>>,
    metrics: SurveyMetrics,
}

/// What is needed to know the others.
pub(crate) struct PeersDeps {
    pub(crate) store: Store,
    pub(crate) key: ClusterKey,
    pub(crate) clock: Clock,
    pub(crate) control: Control,
    pub(crate) memory: Memory,
}

impl Peers {
    pub(crate) fn new(me: Me, deps: PeersDeps, client: PeerClient, metrics: &Metrics) -> Self {
        let PeersDeps { store, key, clock, control, memory } = deps;
        let roll = Arc::new(Mutex::default());
        let metrics = SurveyMetrics::new(metrics, &roll, &clock);
        let (double, last_written) = (Mutex::default(), tokio::sync::Mutex::default());
        let tellers = Tellers::default();
        let inner =
            Inner { me, store, key, clock, control, client, memory, tellers, roll, double, last_written, metrics };
        Self { inner: Arc::new(inner) }
    }

    /// Must come before anything else in this run. Uploads that an earlier run has begun look like this one's, and as
    /// long as this run has no record, others may abort its uploads. This does not wait for a store that is away.
    pub(crate) async fn begin(&self) {
        self.abort_own_uploads().await;
        self.announce().await;
    }

    /// The id of this node.
    pub(crate) fn id(&self) -> &ResourceId {
        &self.inner.me.id
    }

    /// How many nodes are alive as far as this one knows, including itself.
    pub(crate) fn live_count(&self) -> u32 {
        let others = self.inner.roll.lock().live(self.inner.memory.now()).count();
        u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Whether no other node lives, as a list shows that is not old.
    pub(crate) fn are_alone(&self) -> bool {
        let (roll, now) = (self.inner.roll.lock(), self.inner.memory.now());
        let (_, is_old) = roll.holders(now);
        !is_old && roll.live(now).next().is_none()
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

    /// The very last step: removes this node from the list.
    pub(crate) async fn end(&self) {
        let _ = timeout(limits::NODE_RECORD_IO, self.retire()).await;
    }

    async fn keep_announced(&self) {
        let mut versions = self.inner.control.versions();
        let (mut due, mut written) = (self.inner.clock.now() + jittered(limits::NODE_RECORD), Instant::now());
        loop {
            tokio::select! {
                // Checked often, because a clock that is set forward makes the record old at once.
                () = tokio::time::sleep(limits::NODE_RECORD_LOOK) => {
                    let now = self.inner.clock.now();
                    let is_due = now >= due || due - now > chrono::Duration::from_std(limits::NODE_RECORD * 2).unwrap_or_default();
                    // Also after this time by the other clock: somebody who had read an old record may have removed
                    // this one.
                    if !is_due && written.elapsed() < limits::NODE_RECORD * 2 {
                        continue;
                    }
                }
                // Whoever waits for a change to arrive reads it in the record. The sender lives as long as this node.
                _ = versions.changed() => {}
            }
            self.announce().await;
            (due, written) = (self.inner.clock.now() + jittered(limits::NODE_RECORD), Instant::now());
        }
    }

    async fn keep_surveyed(&self) {
        loop {
            self.survey().await;
            self.probe().await;
            tokio::time::sleep(jittered(limits::SURVEY)).await;
        }
    }

    async fn keep_swept(&self) {
        loop {
            self.sweep().await;
            tokio::time::sleep(jittered(limits::SWEEP.0)).await;
        }
    }
}
