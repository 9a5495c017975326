//! Recent refusals of upstreams: the same request is refused again without asking them.
//!
//! Rules do not share refusals, and a change of the upstream's settings (including its credential) clears them. One
//! caller cannot fill the memory: refusals beyond its share are not remembered.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use entrepot_domain::refusal::Refusal;
use entrepot_domain::{Digest, Reference, RepositoryName};
use entrepot_runtime::{Clock, Metrics};
use moka::future::Cache;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::config::limits;
use crate::control::FillFrom;
use crate::error::{Asked, PullError};
use crate::trail::{self, Note};

/// Remembered refusals. Clones share them.
#[derive(Clone)]
pub(crate) struct Refusals {
    entries: Cache<Key, Entry>,
    /// How many entries each caller has caused.
    shares: Arc<Mutex<HashMap<Uuid, usize>>>,
    /// The most entries that one caller may cause.
    share: usize,
    clock: Clock,
    answered: Counter<u64>,
}

/// What was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    origin: Uuid,
    /// The upstream, and the revision of its settings.
    upstream: (Uuid, i64),
    repository: RepositoryName,
    what: Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Refused {
    /// Everything in the repository.
    All,
    Manifest(Reference),
    Blob(Digest),
    /// The list of tags.
    Tags,
    /// The list of a manifest's referrers.
    Referrers(Digest),
}

#[derive(Clone)]
struct Entry {
    refusal: Refusal,
    error: PullError,
    times: u32,
    until: DateTime<Utc>,
    asker: Uuid,
}

/// A request to an upstream.
#[derive(Clone, Copy)]
pub(super) enum Question<'a> {
    Manifest(&'a Reference),
    Blob(&'a Digest),
    Tags,
    Referrers(&'a Digest),
}

impl Refusals {
    pub(crate) fn new(clock: Clock, metrics: &Metrics) -> Self {
        Self::with_room(limits::REFUSALS, clock, metrics)
    }

    fn with_room(room: u64, clock: Clock, metrics: &Metrics) -> Self {
        let shares: Arc<Mutex<HashMap<Uuid, usize>>> = Arc::default();
        let counted = shares.clone();
        let entries = Cache::builder()
            .max_capacity(room)
            // A refusal that recurs this soon is remembered longer.
            .time_to_idle(limits::REFUSALS_IDLE)
            .eviction_listener(move |_, entry: Entry, _| {
                let mut shares = counted.lock();
                if let Some(count) = shares.get_mut(&entry.asker) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        shares.remove(&entry.asker);
                    }
                }
            })
            .build();
        let answered = metrics
            .meter("entrepot.data_plane")
            .u64_counter("entrepot.refusal.answered")
            .with_description("Pulls that were refused as the upstream had refused them a moment ago.")
            .build();
        Self { entries, shares, share: usize::try_from(room / 10).unwrap_or(usize::MAX), clock, answered }
    }

    /// The recent error for this request, if there is one.
    pub(super) async fn check(&self, fill: &FillFrom, question: Question<'_>) -> Result<(), PullError> {
        for what in [Refused::All, Refused::of(question)] {
            let entry = self.entries.get(&Key::new(fill, what)).await;
            if let Some(entry) = entry.filter(|entry| entry.until > self.clock.now()) {
                self.answered.add(1, &[KeyValue::new("reason", entry.refusal.as_str())]);
                trail::note(Note::RefusedUntil(entry.until));
                return Err(entry.error);
            }
        }
        Ok(())
    }

    /// Notes how a request to the upstream has ended.
    pub(super) async fn learn<T>(
        &self,
        fill: &FillFrom,
        question: Question<'_>,
        asker: Option<Uuid>,
        answer: &Result<T, PullError>,
    ) {
        let key = |what| Key::new(fill, what);
        let Err(error) = answer else {
            // Only tags and repositories can come into being later.
            if let Question::Manifest(Reference::Tag(_)) | Question::Tags | Question::Referrers(_) = question {
                self.entries.invalidate(&key(Refused::of(question))).await;
            }
            return;
        };
        let Some((refusal, what)) = classify(error, question) else { return };
        let (key, asker, now) = (key(what), asker.unwrap_or_default(), self.clock.now());
        let before = self.entries.get(&key).await.filter(|entry| entry.refusal == refusal);
        // All callers that wait for the same answer come here.
        if before.as_ref().is_some_and(|entry| entry.until > now) {
            return;
        }
        let times = before.map_or(1, |entry| entry.times.saturating_add(1));
        {
            let mut shares = self.shares.lock();
            let count = shares.entry(asker).or_default();
            if *count >= self.share {
                return;
            }
            *count += 1;
        }
        let until = now + refusal.remembered_for(times);
        self.entries.insert(key, Entry { refusal, error: error.clone(), times, until, asker }).await;
    }
}

impl Refused {
    fn of(question: Question<'_>) -> Self {
        match question {
            Question::Manifest(reference) => Self::Manifest(reference.clone()),
            Question::Blob(digest) => Self::Blob(digest.clone()),
            Question::Tags => Self::Tags,
            Question::Referrers(subject) => Self::Referrers(subject.clone()),
        }
    }
}

impl Key {
    fn new(fill: &FillFrom, what: Refused) -> Self {
        let upstream = &fill.source.upstream;
        Self { origin: fill.origin, upstream: (upstream.uid, upstream.revision), repository: fill.name.clone(), what }
    }
}

fn classify(error: &PullError, question: Question<'_>) -> Option<(Refusal, Refused)> {
    let this = Refused::of(question);
    // By tag, the next content may be different; by digest, it is always the same.
    let by_tag = matches!(question, Question::Manifest(Reference::Tag(_)) | Question::Tags | Question::Referrers(_));
    match error {
        PullError::NotFound { asked: Asked::Manifest | Asked::Repository, .. } if by_tag => {
            Some((Refusal::NoTag, this))
        }
        PullError::NotFound { .. } => Some((Refusal::NoContent, this)),
        // A login that may not read the manifests of a repository may not read anything in it. If only a blob is
        // refused, this may be due to the place where the upstream stores it.
        PullError::UpstreamDenied { .. } if matches!(question, Question::Manifest(_)) => {
            Some((Refusal::Denied, Refused::All))
        }
        PullError::UpstreamDenied { .. } => Some((Refusal::Denied, this)),
        PullError::BadContent { .. } if !by_tag => Some((Refusal::WrongContent, this)),
        PullError::UpstreamRefused { .. } => Some((Refusal::Astray, this)),
        PullError::BadContent { .. }
        | PullError::Loop(_)
        | PullError::UpstreamLoops { .. }
        | PullError::Route(_)
        | PullError::Unauthenticated(_)
        | PullError::InsufficientScope
        | PullError::Denied { .. }
        | PullError::TooManyLogins { .. }
        | PullError::NoRule
        | PullError::UpstreamThrottled { .. }
        | PullError::OverBudget { .. }
        | PullError::UpstreamAway { .. }
        | PullError::TooStale { .. }
        | PullError::Damaged { .. }
        | PullError::StoreAway
        | PullError::NoSnapshot
        | PullError::LeftOut { .. }
        | PullError::Busy
        | PullError::GaveUp
        | PullError::BadRecord { .. }
        | PullError::Internal => None,
    }
}
