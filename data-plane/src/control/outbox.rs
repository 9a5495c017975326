//! What this node learns, on its way to the control plane.
//!
//! Events about repositories, images and tags are made durable in the store before the record that they announce is
//! written, so whatever can be pulled will be listed. They are delivered from memory, and deleted once the control
//! plane has taken them; the store is listed only for events that are not in memory. Last pulls are counted in memory,
//! and up to a second of them may be lost.

mod delivery;
mod queue;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName, ResourceId};
use entrepot_proto::convert::event::{self, Event, Kind};
use entrepot_proto::node::v1 as pb;
use entrepot_records::layout;
use entrepot_runtime::{Clock, Metrics, Tasks};
use entrepot_store::Store;
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;
use tokio::sync::Notify;
use uuid::Uuid;

use self::delivery::Delivery;
use self::queue::{Queue, Report};
use super::channels::ControlChannels;

/// How many different manifests' pulls are remembered between two reports; further ones are dropped.
const PULLS: usize = 100_000;

/// Takes events, and makes sure that they arrive.
#[derive(Clone)]
pub(crate) struct Outbox {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    node: ResourceId,
    clock: Clock,
    queue: Mutex<Queue>,
    pulls: Mutex<HashMap<Pulled, DateTime<Utc>>>,
    wake: Notify,
    /// How many reports are kept because no control plane takes them for now.
    kept: Arc<AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pulled {
    repository: RepositoryName,
    incarnation: Uuid,
    digest: Digest,
}

impl Outbox {
    pub(crate) fn new(store: Store, node: ResourceId, clock: Clock, metrics: &Metrics) -> Self {
        let kept = Arc::new(AtomicU64::new(0));
        let observed = kept.clone();
        metrics
            .meter("entrepot.data_plane")
            .u64_observable_gauge("entrepot.outbox.kept")
            .with_description("Reports of events that no control plane takes for now: one of a later release may, or a damaged record is in the way.")
            .with_callback(move |gauge| gauge.observe(observed.load(Ordering::Relaxed), &[]))
            .build();
        let (queue, pulls, wake) = (Mutex::default(), Mutex::default(), Notify::new());
        Self { inner: Arc::new(Inner { store, node, clock, queue, pulls, wake, kept }) }
    }

    /// Makes events durable. Returns before they are delivered.
    pub(crate) async fn record(
        &self,
        repository: &RepositoryName,
        incarnation: Uuid,
        kinds: Vec<Kind>,
    ) -> Result<(), entrepot_store::Error> {
        let now = self.inner.clock.now();
        let events: Vec<pb::Event> =
            kinds.into_iter().map(|kind| self.inner.event(repository, incarnation, now, kind)).collect();
        let report = event::report(self.inner.node.as_str(), &events);
        let key = layout::event(&self.inner.node, Uuid::now_v7());
        let written = self.inner.store.put_once(&key, Bytes::from(report.encode_to_vec())).await;
        let mut queue = self.inner.queue();
        match &written {
            Ok(_) => queue.add(Report { key, events: report.events }),
            // It may be in the store anyway.
            Err(_) => queue.note_lack(),
        }
        drop(queue);
        self.inner.wake.notify_one();
        written.map(drop)
    }

    /// Notes that a manifest was pulled.
    pub(crate) fn pulled(&self, repository: &RepositoryName, incarnation: Uuid, digest: &Digest) {
        let pulled = Pulled { repository: repository.clone(), incarnation, digest: digest.clone() };
        let mut pulls = self.inner.pulls();
        if pulls.len() < PULLS {
            pulls.insert(pulled, self.inner.clock.now());
        }
    }

    /// Delivers until the node stops, and then whatever can be delivered at once.
    pub(crate) async fn deliver(self, channels: ControlChannels, tasks: Tasks) {
        Delivery::new(self.inner, channels).run(&tasks.stopping()).await;
    }
}

impl Inner {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    fn pulls(&self) -> MutexGuard<'_, HashMap<Pulled, DateTime<Utc>>> {
        self.pulls.lock()
    }

    fn event(&self, repository: &RepositoryName, incarnation: Uuid, at: DateTime<Utc>, kind: Kind) -> pb::Event {
        let event = Event { id: Uuid::now_v7(), repository: repository.clone(), incarnation, kind };
        event.to_wire(at)
    }

    /// Takes the pulls counted since the last time.
    fn take_pulls(&self) -> Vec<(Pulled, DateTime<Utc>)> {
        std::mem::take(&mut *self.pulls()).into_iter().collect()
    }

    /// Puts back pulls that could not be reported, unless newer ones are known already.
    fn take_back(&self, undelivered: &[(Pulled, DateTime<Utc>)]) {
        let mut pulls = self.pulls();
        for (pulled, at) in undelivered {
            if pulls.len() < PULLS {
                pulls.entry(pulled.clone()).or_insert(*at);
            }
        }
    }
}
