//! Delivers the queue to the control plane, and fills the queue from the store.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_proto::convert::event::{self, Kind};
use entrepot_proto::node::v1 as pb;
use entrepot_records::layout;
use entrepot_runtime::retry::jittered;
use entrepot_runtime::{Backoff, chain};
use entrepot_store::Key;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{debug, error, warn};

use super::queue::Report;
use super::{Inner, Pulled};
use crate::config::limits;
use crate::control::channels::ControlChannels;

/// How many keys are listed at a time, and how many pulls go into one report.
const BATCH: usize = 200;
/// How many objects are read or deleted at once.
const AT_ONCE: usize = 16;
/// How many keys of kept reports are remembered. Further ones are offered again when the store is listed.
const KEPT: usize = 10_000;
/// How many kept reports are offered to find out whether some control plane takes them.
const OFFERS: usize = 10;

/// Delivers reports.
pub(super) struct Delivery {
    outbox: Arc<Inner>,
    channels: ControlChannels,
    kept: Kept,
    /// When the store is listed again, even if nothing seems to be missing.
    list_at: Instant,
}

/// Reports that no control plane has taken yet, because they are of a later release, or because their repository's
/// record is damaged.
struct Kept {
    keys: VecDeque<Key>,
    offer_at: Instant,
    pause: Duration,
}

/// What happened to a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Taken,
    Kept,
}

impl Delivery {
    pub(super) fn new(outbox: Arc<Inner>, channels: ControlChannels) -> Self {
        let now = Instant::now();
        let kept = Kept { keys: VecDeque::new(), offer_at: now, pause: limits::KEPT_EVENTS.0 };
        Self { outbox, channels, kept, list_at: now }
    }

    /// Delivers until the node stops, and then whatever can be delivered at once.
    pub(super) async fn run(mut self, stopping: &CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let wait = match self.pass().await {
                Ok(()) => {
                    backoff.reset();
                    // Pulls are reported once a second; events wake this at once.
                    Duration::from_secs(1)
                }
                Err(problem) => {
                    debug!("events wait for the control plane: {problem}");
                    backoff.next_wait()
                }
            };
            if stopping.is_cancelled() {
                return;
            }
            tokio::select! {
                () = stopping.cancelled() => {}
                () = self.outbox.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Delivers everything that waits. If nothing waits, no request is made.
    async fn pass(&mut self) -> Result<(), String> {
        let events = self.deliver_events().await;
        let pulls = self.deliver_pulls().await;
        events.and(pulls)
    }

    async fn deliver_events(&mut self) -> Result<(), String> {
        loop {
            self.deliver_queue().await?;
            if !self.outbox.queue().may_lack() && Instant::now() < self.list_at {
                break;
            }
            if self.list().await? == 0 {
                break;
            }
        }
        self.offer_kept().await
    }

    async fn deliver_queue(&mut self) -> Result<(), String> {
        loop {
            let oldest = self.outbox.queue().oldest();
            if oldest.is_empty() {
                return Ok(());
            }
            self.deliver(&oldest).await?;
        }
    }

    /// Adds reports that are only in the store to the queue, as far as there is room. Returns how many.
    async fn list(&mut self) -> Result<usize, String> {
        self.outbox.queue().begin_listing();
        let listed = self.list_all().await;
        match &listed {
            Ok(_) => self.list_at = Instant::now() + jittered(limits::LIST_EVENTS),
            Err(_) => self.outbox.queue().note_lack(),
        }
        listed
    }

    async fn list_all(&self) -> Result<usize, String> {
        let prefix = layout::events_prefix(&self.outbox.node);
        let (mut after, mut found) = (None, 0);
        loop {
            let entries = self.outbox.store.list(&prefix, after.as_ref(), BATCH).await.map_err(away)?;
            let is_last = entries.len() < BATCH;
            let keys: Vec<Key> = entries.into_iter().map(|entry| entry.key).collect();
            after = keys.last().cloned();
            let is_new = |key: &Key| !self.outbox.queue().contains(key) && !self.kept.keys.contains(key);
            let new: Vec<Key> = keys.into_iter().filter(is_new).collect();
            for report in self.read_all(new).await? {
                self.outbox.queue().add(report);
                found += 1;
            }
            if is_last || self.outbox.queue().may_lack() {
                return Ok(found);
            }
        }
    }

    /// Reads reports in the order of their keys.
    async fn read_all(&self, keys: Vec<Key>) -> Result<Vec<Report>, String> {
        let reads = stream::iter(keys).map(|key| self.read(key)).buffered(AT_ONCE);
        let read: Vec<Option<Report>> = reads.try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }

    /// Reads the report at `key`. Anything else is dropped.
    async fn read(&self, key: Key) -> Result<Option<Report>, String> {
        let Some(object) = self.outbox.store.get(&key).await.map_err(away)? else { return Ok(None) };
        match pb::ReportEventsRequest::decode(object.bytes) {
            Ok(report) => Ok(Some(Report { key, events: report.events })),
            Err(problem) => {
                error!("the events of `{key}` cannot be read and are dropped: {problem}");
                self.outbox.store.delete(&key).await.map(|()| None).map_err(away)
            }
        }
    }

    /// Delivers reports as one. If the control plane does not take all of that, they go in smaller parts, so that neither a
    /// bad one nor one of a later release nor one that is too large takes any other along.
    async fn deliver(&mut self, reports: &[Report]) -> Result<Fate, String> {
        let sent = self.send(reports.iter().flat_map(|report| report.events.iter().cloned()).collect()).await;
        match (sent, reports) {
            (Ok(()), _) => {}
            (Err(status), [report]) if is_for_later(&status) || is_too_large(&status) => {
                self.keep(&report.key, &status);
                return Ok(Fate::Kept);
            }
            // It will never be accepted; the reconciling pass finds what it was about.
            (Err(status), [Report { key, .. }]) if status.code() == Code::InvalidArgument => {
                error!("the control plane refuses the events of `{key}`, which are dropped: {status}");
            }
            (Err(status), _)
                if status.code() == Code::InvalidArgument || is_for_later(&status) || is_too_large(&status) =>
            {
                let (older, newer) = reports.split_at(reports.len() / 2);
                Box::pin(self.deliver(older)).await?;
                return Box::pin(self.deliver(newer)).await;
            }
            (Err(status), _) => return Err(status.to_string()),
        }
        let deletions: Vec<_> = reports.iter().map(|report| self.outbox.store.delete(&report.key)).collect();
        stream::iter(deletions).buffer_unordered(AT_ONCE).try_collect::<()>().await.map_err(away)?;
        let mut queue = self.outbox.queue();
        reports.iter().for_each(|report| queue.remove(&report.key));
        Ok(Fate::Taken)
    }

    /// Leaves a report in the store, to be offered again.
    fn keep(&mut self, key: &Key, status: &Status) {
        self.outbox.queue().remove(key);
        if !self.kept.keys.contains(key) && self.kept.keys.len() < KEPT {
            warn!("the events of `{key}` are not taken, and are offered again later: {status}");
            if self.kept.keys.is_empty() {
                self.kept.offer_at = Instant::now() + jittered(self.kept.pause);
            }
            self.kept.keys.push_back(key.clone());
        }
        self.count_kept();
    }

    /// Offers the kept reports again, if that is due: first a few of them, and once one is accepted all of them.
    async fn offer_kept(&mut self) -> Result<(), String> {
        if self.kept.keys.is_empty() || Instant::now() < self.kept.offer_at {
            return Ok(());
        }
        let (mut offers, mut taken) = (self.kept.keys.len().min(OFFERS), 0);
        while offers > 0 {
            let Some(key) = self.kept.keys.front().cloned() else { break };
            let report = self.read(key.clone()).await?;
            let fate = match &report {
                Some(report) => self.deliver(std::slice::from_ref(report)).await?,
                None => Fate::Taken,
            };
            self.kept.keys.pop_front();
            match fate {
                Fate::Kept => self.kept.keys.push_back(key),
                Fate::Taken => {
                    if taken == 0 {
                        offers = self.kept.keys.len() + 1;
                    }
                    taken += 1;
                }
            }
            offers -= 1;
        }
        let (first, longest) = limits::KEPT_EVENTS;
        self.kept.pause = if taken > 0 { first } else { (self.kept.pause * 2).min(longest) };
        self.kept.offer_at = Instant::now() + jittered(self.kept.pause);
        self.count_kept();
        Ok(())
    }

    fn count_kept(&self) {
        self.outbox.kept.store(self.kept.keys.len() as u64, Ordering::Relaxed);
    }

    async fn deliver_pulls(&self) -> Result<(), String> {
        let pulls: Vec<(Pulled, DateTime<Utc>)> = self.outbox.take_pulls();
        for (done, batch) in pulls.chunks(BATCH).enumerate() {
            let events = batch.iter().map(|(pulled, at)| {
                let kind = Kind::Pulled { digest: pulled.digest.clone(), pull_time: *at };
                self.outbox.event(&pulled.repository, pulled.incarnation, *at, kind)
            });
            let events: Vec<pb::Event> = events.collect();
            if let Err(status) = self.send(event::report(self.outbox.node.as_str(), &events).events).await {
                if status.code() == Code::InvalidArgument || is_for_later(&status) {
                    warn!("the control plane refuses a report of pulls, which is dropped: {status}");
                    continue;
                }
                self.outbox.take_back(&pulls[done * BATCH..]);
                return Err(status.to_string());
            }
        }
        Ok(())
    }

    /// Reports to the replica in use. If it does not accept a report, the next one is used, which may know more.
    async fn send(&self, events: Vec<bytes::Bytes>) -> Result<(), Status> {
        let Some((replica, mut client)) = self.channels.client() else {
            return Err(Status::unavailable("there is no control plane"));
        };
        let report = pb::ReportEventsRequest { node_id: self.outbox.node.to_string(), events };
        let mut request = tonic::Request::new(report);
        request.set_timeout(limits::REPORT);
        let answer = tokio::time::timeout(limits::REPORT, client.report_events(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("the control plane took too long")));
        let has_said_all = |status: &Status| matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition);
        if answer.as_ref().is_err_and(|status| !has_said_all(status) && !is_too_large(status)) {
            self.channels.fail_over(replica);
        }
        answer.map(drop)
    }
}

/// Whether a control plane has applied a whole report except for what it cannot accept now: a later release may, or
/// this one once a damaged record has been rewritten.
fn is_for_later(status: &Status) -> bool {
    matches!(status.code(), Code::Unimplemented | Code::FailedPrecondition)
}

/// Whether a message was refused for its size, by the control plane or by what stands before it.
fn is_too_large(status: &Status) -> bool {
    matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted)
}

fn away(error: entrepot_store::Error) -> String {
    chain(&error).to_string()
}
