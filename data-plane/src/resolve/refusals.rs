//! What upstreams have refused a moment ago: it is refused again without asking them.
//!
//! Nothing is shared between rules, and nothing outlives a change of the upstream's settings, its credential included.
//! One caller cannot fill the memory: what is beyond its share is asked again each time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use entrepot_domain::refusal::Refusal;
use entrepot_domain::{Digest, Reference, RepositoryName};
use entrepot_runtime::{Clock, Metrics};
use moka::future::Cache;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use uuid::Uuid;

use crate::config::limits;
use crate::control::FillFrom;
use crate::error::{Asked, PullError};
use crate::trail::{self, Note};

/// Refusals that are remembered. Clones share them.
#[derive(Clone)]
pub(crate) struct Refusals {
    entries: Cache<Key, Entry>,
    /// How many entries each caller has caused.
    shares: Arc<Mutex<HashMap<Uuid, usize>>>,
    /// Most that one caller may cause.
    share: usize,
    clock: Clock,
    answered: Counter<u64>,
}

/// What was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    origin: Uuid,
    /// The upstream, and which of its settings were in force.
    upstream: (Uuid, i64),
    repository: RepositoryName,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum What {
    /// All that is in the repository.
    All,
    /// One manifest.
    Manifest(Reference),
    /// One blob.
    Blob(Digest),
    /// The list of tags.
    Tags,
    /// The list of what refers to a manifest.
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

/// What is asked of an upstream.
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
            // What comes again this soon is remembered longer.
            .time_to_idle(limits::REFUSALS_IDLE)
            .eviction_listener(move |_, entry: Entry, _| {
                let mut shares = lock(&counted);
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

    /// The error that this question was answered with a moment ago.
    pub(super) async fn remembered(&self, fill: &FillFrom, question: Question<'_>) -> Result<(), PullError> {
        for what in [What::All, What::of(question)] {
            let entry = self.entries.get(&Key::new(fill, what)).await;
            if let Some(entry) = entry.filter(|entry| entry.until > self.clock.now()) {
                self.answered.add(1, &[KeyValue::new("reason", entry.refusal.as_str())]);
                trail::note(Note::RefusedUntil(entry.until));
                return Err(entry.error);
            }
        }
        Ok(())
    }

    /// Takes in how a question to the upstream has ended.
    pub(super) async fn learn<T>(
        &self,
        fill: &FillFrom,
        question: Question<'_>,
        asker: Option<Uuid>,
        answer: &Result<T, PullError>,
    ) {
        let key = |what| Key::new(fill, what);
        let Err(error) = answer else {
            // Only tags and repositories come to be.
            if let Question::Manifest(Reference::Tag(_)) | Question::Tags | Question::Referrers(_) = question {
                self.entries.invalidate(&key(What::of(question))).await;
            }
            return;
        };
        let Some((refusal, what)) = refused(error, question) else { return };
        let (key, asker, now) = (key(what), asker.unwrap_or_default(), self.clock.now());
        let before = self.entries.get(&key).await.filter(|entry| entry.refusal == refusal);
        // All who wait for the same answer come here.
        if before.as_ref().is_some_and(|entry| entry.until > now) {
            return;
        }
        let times = before.map_or(1, |entry| entry.times.saturating_add(1));
        {
            let mut shares = lock(&self.shares);
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

impl What {
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
    fn new(fill: &FillFrom, what: What) -> Self {
        let upstream = &fill.source.upstream;
        Self { origin: fill.origin, upstream: (upstream.uid, upstream.revision), repository: fill.name.clone(), what }
    }
}

/// Which refusal an error is, and of what.
fn refused(error: &PullError, question: Question<'_>) -> Option<(Refusal, What)> {
    let this = What::of(question);
    // What may be another the next time; content has its digest.
    let by_tag = matches!(question, Question::Manifest(Reference::Tag(_)) | Question::Tags | Question::Referrers(_));
    match error {
        PullError::NotFound { asked: Asked::Manifest | Asked::Repository, .. } if by_tag => {
            Some((Refusal::NoTag, this))
        }
        PullError::NotFound { .. } => Some((Refusal::NoContent, this)),
        // A login that may not read the manifests of a repository may not read anything there. A blob alone may be
        // refused by where the upstream keeps it.
        PullError::UpstreamDenied { .. } if matches!(question, Question::Manifest(_)) => {
            Some((Refusal::Denied, What::All))
        }
        PullError::UpstreamDenied { .. } => Some((Refusal::Denied, this)),
        PullError::BadContent { .. } if !by_tag => Some((Refusal::WrongContent, this)),
        PullError::UpstreamRefused { .. } => Some((Refusal::Astray, this)),
        PullError::BadContent { .. }
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
        | PullError::StoreAway
        | PullError::NoSnapshot
        | PullError::LeftOut { .. }
        | PullError::Busy
        | PullError::GaveUp
        | PullError::Internal => None,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
