//! What this node learns, on its way to the control plane.
//!
//! Events about repositories, images and tags are durable, as objects of the store, before the record is written that
//! they tell of: so whatever can be pulled will be listed. They are deleted when the control plane has taken them.
//! Last pulls are counted in memory and may lose a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName, ResourceId};
use entrepot_proto::convert::event::{Event, Kind};
use entrepot_proto::node::v1 as pb;
use entrepot_records::layout;
use entrepot_runtime::{Clock, Tasks, chain};
use entrepot_store::{Key, Store};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;
use tokio::sync::Notify;
use tonic::Code;
use tracing::{debug, error, warn};
use uuid::Uuid;

use super::line::Line;
use crate::config::limits;

/// How many reports are read at a time, and how many pulls go into one.
const BATCH: usize = 200;
/// How many events the control plane takes at a time.
const EVENTS: usize = 1000;
/// How many objects are read or deleted at the same time.
const AT_ONCE: usize = 16;
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
    pulls: Mutex<HashMap<Pulled, DateTime<Utc>>>,
    wake: Notify,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pulled {
    repository: RepositoryName,
    incarnation: Uuid,
    digest: Digest,
}

/// A report that waits in the store.
#[derive(Debug)]
struct Waiting {
    key: Key,
    events: Vec<pb::Event>,
}

impl Outbox {
    pub(crate) fn new(store: Store, node: ResourceId, clock: Clock) -> Self {
        let inner = Inner { store, node, clock, pulls: Mutex::default(), wake: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Makes events durable. Returns before they have been delivered.
    pub(crate) async fn record(
        &self,
        repository: &RepositoryName,
        incarnation: Uuid,
        kinds: Vec<Kind>,
    ) -> Result<(), entrepot_store::Error> {
        let events = kinds.into_iter().map(|kind| self.event(repository, incarnation, self.inner.clock.now(), kind));
        let report = pb::ReportEventsRequest { node_id: self.inner.node.to_string(), events: events.collect() };
        let key = layout::event(&self.inner.node, Uuid::now_v7());
        self.inner.store.put_once(&key, Bytes::from(report.encode_to_vec())).await?;
        self.inner.wake.notify_one();
        Ok(())
    }

    /// Notes that a manifest was pulled.
    pub(crate) fn pulled(&self, repository: &RepositoryName, incarnation: Uuid, digest: &Digest) {
        let pulled = Pulled { repository: repository.clone(), incarnation, digest: digest.clone() };
        let mut pulls = self.inner.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        if pulls.len() < PULLS {
            pulls.insert(pulled, self.inner.clock.now());
        }
    }

    /// Delivers until the node stops, and what can be delivered at once then.
    pub(crate) async fn deliver(self, line: Line, tasks: Tasks) {
        let stopping = tasks.stopping();
        let backoff = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .without_max_times();
        let mut delays = backoff.build();
        loop {
            let wait = match self.pass(&line).await {
                Ok(()) => {
                    delays = backoff.build();
                    // Pulls are reported once a second; events wake at once.
                    Duration::from_secs(1)
                }
                Err(problem) => {
                    debug!("events wait for the control plane: {problem}");
                    delays.next().unwrap_or(Duration::from_secs(5))
                }
            };
            if stopping.is_cancelled() {
                return;
            }
            tokio::select! {
                () = stopping.cancelled() => {}
                () = self.inner.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Delivers everything that waits, oldest first.
    async fn pass(&self, line: &Line) -> Result<(), String> {
        loop {
            let prefix = layout::events_prefix(&self.inner.node);
            let keys = self.inner.store.list(&prefix, None, BATCH).await.map_err(away)?;
            let is_last = keys.len() < BATCH;
            for batch in batches(self.read(keys).await?) {
                self.deliver_batch(line, &batch).await?;
            }
            if is_last {
                break;
            }
        }
        self.deliver_pulls(line).await
    }

    /// Reads reports, in the order of their keys. What is no report is dropped.
    async fn read(&self, keys: Vec<Key>) -> Result<Vec<Waiting>, String> {
        let read = |key: Key| async move {
            let Some(object) = self.inner.store.get(&key).await.map_err(away)? else { return Ok(None) };
            match pb::ReportEventsRequest::decode(object.bytes) {
                Ok(report) => Ok(Some(Waiting { key, events: report.events })),
                Err(problem) => {
                    error!("the events of `{key}` cannot be read and are dropped: {problem}");
                    self.inner.store.delete(&key).await.map(|()| None).map_err(away)
                }
            }
        };
        let read: Vec<Option<Waiting>> =
            stream::iter(keys.into_iter().map(read)).buffered(AT_ONCE).try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }

    /// Delivers reports as one. If the control plane refuses that, each of them goes by itself, so that a bad one takes
    /// no other along.
    async fn deliver_batch(&self, line: &Line, batch: &[Waiting]) -> Result<(), String> {
        let events = batch.iter().flat_map(|waiting| waiting.events.clone()).collect();
        let report = pb::ReportEventsRequest { node_id: self.inner.node.to_string(), events };
        match (report_within_limit(line, report).await, batch) {
            (Ok(()), _) => {}
            // It will never be taken; the reconciling pass finds what it told of.
            (Err(status), [Waiting { key, .. }]) if status.code() == Code::InvalidArgument => {
                error!("the control plane refuses the events of `{key}`, which are dropped: {status}");
            }
            (Err(status), _) if status.code() == Code::InvalidArgument => {
                for waiting in batch.chunks(1) {
                    Box::pin(self.deliver_batch(line, waiting)).await?;
                }
                return Ok(());
            }
            (Err(status), _) => return Err(status.to_string()),
        }
        let deletions: Vec<_> = batch.iter().map(|waiting| self.inner.store.delete(&waiting.key)).collect();
        stream::iter(deletions).buffer_unordered(AT_ONCE).try_collect::<()>().await.map_err(away)
    }

    async fn deliver_pulls(&self, line: &Line) -> Result<(), String> {
        let pulls = std::mem::take(&mut *self.inner.pulls.lock().unwrap_or_else(PoisonError::into_inner));
        let pulls: Vec<_> = pulls.into_iter().collect();
        for (done, batch) in pulls.chunks(BATCH).enumerate() {
            let events = batch.iter().map(|(pulled, at)| {
                let kind = Kind::Pulled { digest: pulled.digest.clone(), pull_time: *at };
                self.event(&pulled.repository, pulled.incarnation, *at, kind)
            });
            let report = pb::ReportEventsRequest { node_id: self.inner.node.to_string(), events: events.collect() };
            if let Err(status) = report_within_limit(line, report).await {
                if status.code() == Code::InvalidArgument {
                    warn!("the control plane refuses a report of pulls, which is dropped: {status}");
                    continue;
                }
                self.take_back(&pulls[done * BATCH..]);
                return Err(status.to_string());
            }
        }
        Ok(())
    }

    /// Remembers pulls that could not be reported, unless newer ones are known already.
    fn take_back(&self, undelivered: &[(Pulled, DateTime<Utc>)]) {
        let mut pulls = self.inner.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        for (pulled, at) in undelivered {
            if pulls.len() < PULLS {
                pulls.entry(pulled.clone()).or_insert(*at);
            }
        }
    }

    fn event(&self, repository: &RepositoryName, incarnation: Uuid, at: DateTime<Utc>, kind: Kind) -> pb::Event {
        let event = Event { id: Uuid::now_v7(), repository: repository.clone(), incarnation, kind };
        event.to_wire(at)
    }
}

/// As many reports together as the control plane takes, in their order.
fn batches(reports: Vec<Waiting>) -> Vec<Vec<Waiting>> {
    let (mut batches, mut events): (Vec<Vec<Waiting>>, usize) = (Vec::new(), 0);
    for report in reports {
        match batches.last_mut() {
            Some(batch) if events + report.events.len() <= EVENTS => {
                events += report.events.len();
                batch.push(report);
            }
            _ => {
                events = report.events.len();
                batches.push(vec![report]);
            }
        }
    }
    batches
}

fn away(error: entrepot_store::Error) -> String {
    chain(&error).to_string()
}

/// Reports to the replica in use. One that does not take a report is left for the next.
async fn report_within_limit(line: &Line, report: pb::ReportEventsRequest) -> Result<(), tonic::Status> {
    let Some((replica, mut client)) = line.client() else {
        return Err(tonic::Status::unavailable("there is no control plane"));
    };
    let mut request = tonic::Request::new(report);
    request.set_timeout(limits::REPORT);
    let answer = tokio::time::timeout(limits::REPORT, client.report_events(request)).await;
    let answer = answer.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("the control plane took too long")));
    if answer.as_ref().is_err_and(|status| status.code() != Code::InvalidArgument) {
        line.move_on(replica);
    }
    answer.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_go_together_up_to_what_the_control_plane_takes() {
        let reports = |sizes: &[usize]| -> Vec<Waiting> {
            let waiting = |(number, size): (usize, &usize)| Waiting {
                key: Key::parse(&format!("events/{number}")).unwrap(),
                events: vec![pb::Event::default(); *size],
            };
            sizes.iter().enumerate().map(waiting).collect()
        };
        let sizes = |batches: &[Vec<Waiting>]| -> Vec<Vec<usize>> {
            batches.iter().map(|batch| batch.iter().map(|report| report.events.len()).collect()).collect()
        };
        assert!(batches(reports(&[])).is_empty());
        assert_eq!(sizes(&batches(reports(&[600, 400, 1, 999, 1]))), [vec![600, 400], vec![1, 999], vec![1]]);
        // One that is too large by itself is the control plane's to refuse.
        assert_eq!(sizes(&batches(reports(&[1, 1001, 1]))), [vec![1], vec![1001], vec![1]]);
    }
}
