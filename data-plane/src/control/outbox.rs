//! What this node learns, on its way to the control plane.
//!
//! Events about repositories, images and tags are durable, as objects of the store, before the record is written that
//! they tell of: so whatever can be pulled will be listed. They are delivered from memory, and deleted when the control
//! plane has taken them; the store is listed only for what memory may lack. Last pulls are counted in memory and may lose
//! a second.

mod delivery;
mod queue;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName, ResourceId};
use entrepot_proto::convert::event::{self, Event, Kind};
use entrepot_proto::node::v1 as pb;
use entrepot_records::layout;
use entrepot_runtime::{Clock, Metrics, Tasks};
use entrepot_store::Store;
use prost::Message as _;
use tokio::sync::Notify;
use uuid::Uuid;

use self::delivery::Delivery;
use self::queue::{Queue, Report};
use super::line::Line;

/// How many different manifests' pulls are remembered between two reports; more than that are forgotten.
const PULLS: usize = 100_000;

/// Takes events and sees to it that they arrive.
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
    /// How many reports are kept for a control plane of a later release.
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
            .with_description("Reports of events that wait for a control plane of a later release.")
            .with_callback(move |gauge| gauge.observe(observed.load(Ordering::Relaxed), &[]))
            .build();
        let (queue, pulls, wake) = (Mutex::default(), Mutex::default(), Notify::new());
        Self { inner: Arc::new(Inner { store, node, clock, queue, pulls, wake, kept }) }
    }

    /// Makes events durable. Returns before they have been delivered.
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
            // It may be in the store all the same.
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

    /// Delivers until the node stops, and what can be delivered at once then.
    pub(crate) async fn deliver(self, line: Line, tasks: Tasks) {
        Delivery::new(self.inner, line).run(&tasks.stopping()).await;
    }
}

impl Inner {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pulls(&self) -> MutexGuard<'_, HashMap<Pulled, DateTime<Utc>>> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self, repository: &RepositoryName, incarnation: Uuid, at: DateTime<Utc>, kind: Kind) -> pb::Event {
        let event = Event { id: Uuid::now_v7(), repository: repository.clone(), incarnation, kind };
        event.to_wire(at)
    }

    /// Takes the pulls that were counted since the last time.
    fn take_pulls(&self) -> Vec<(Pulled, DateTime<Utc>)> {
        std::mem::take(&mut *self.pulls()).into_iter().collect()
    }

    /// Remembers pulls that could not be reported, unless newer ones are known already.
    fn take_back(&self, undelivered: &[(Pulled, DateTime<Utc>)]) {
        let mut pulls = self.pulls();
        for (pulled, at) in undelivered {
            if pulls.len() < PULLS {
                pulls.entry(pulled.clone()).or_insert(*at);
            }
        }
    }
}
