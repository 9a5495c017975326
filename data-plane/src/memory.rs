//! What this node has read of the store's records, and of manifests, for as long as it may believe it.
//!
//! A pull asks for the same few records again and again, and a bucket takes milliseconds for each. So what was read is
//! held for the hold time of the snapshot, counted from when the read of it was *begun*. Whoever replaces a record that
//! said something else tells all nodes to forget it ([`Memory::forget`]), and waits for the hold time where one does not
//! answer; so what is held is never older than what a call has returned for. A node that others may take for dead holds
//! nothing: see [`Hold`].
//!
//! What is not there is never held, since nobody is told of what appears: such reads are only shared, and never with a
//! question that came after the read was begun. When the store is away, what was read last is believed, and marked; so is
//! what is on the disk.

mod breaker;
mod hold;
mod question;
mod words;
mod writes;

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use entrepot_domain::RepositoryName;
use entrepot_records::layout;
use entrepot_runtime::{Clock, Metrics, Tasks};
use entrepot_store::{Error, Key, Store};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use crate::moment::Moment;

use breaker::{Breaker, SLOW};
pub(crate) use hold::Hold;
pub(crate) use question::{Holdable, ManifestBytes, Presence, Question, Record};
use words::Words;
pub(crate) use writes::Forgetful;

/// What an entry takes besides its key and bytes.
const ENTRY_BYTES: usize = 256;
/// How many keys are read at once at most with their reads shared, and how long one is remembered as read.
const SHARED_READS: u64 = 10_000;
const SHARED_IDLE: Duration = Duration::from_secs(60);
/// Of how many repositories it is known when a word last came, and for how long: longer than anything is waited for.
const TOLD: u64 = 100_000;
const TOLD_IDLE: Duration = Duration::from_secs(600);
/// How long a read waits for the one before it.
const TURN: Duration = Duration::from_secs(1);

/// What was found for a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found<T> {
    /// What there is, or what is left of it; `None` if there is nothing.
    pub(crate) answer: Option<T>,
    /// Where it comes from.
    pub(crate) source: Source,
}

/// Where an answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// From memory, within the hold time.
    Memory,
    Store,
    /// From memory, although it may be no more true: the store did not answer.
    LastKnown,
}

/// Reads records, and holds them. Clones share everything.
#[derive(Clone)]
pub(crate) struct Memory(Arc<Inner>);

struct Inner {
    store: Store,
    clock: Clock,
    tasks: Tasks,
    known: Cache<Key, Known>,
    /// For each key that is read what its last read has come to; locked while one is under way.
    reads: Cache<Key, Arc<tokio::sync::Mutex<LastRead>>>,
    /// Orders reads, questions and words.
    sequence: AtomicU64,
    words: Mutex<Words>,
    /// When this node was last told to forget something of a repository, by what its keys begin with.
    told: Cache<String, Instant>,
    hold: Mutex<Hold>,
    breaker: Breaker,
    answers_while_away: AtomicU64,
}

/// What was read of a key.
#[derive(Clone)]
struct Known {
    answer: Arc<dyn Any + Send + Sync>,
    size_bytes: usize,
    begun: Moment,
    number: u64,
    /// Whether it says that there is something; only that is held.
    is_there: bool,
}

/// A record that this node has written.
struct Written(Bytes);

/// What the last read of a key has come to.
#[derive(Default)]
struct LastRead {
    /// If it found nothing to hold: when it was begun, by [`Inner::sequence`], and what it found; an answer for all who
    /// had asked before that.
    absent: Option<(u64, Option<Arc<dyn Any + Send + Sync>>)>,
}

/// Why the store was not heard.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    #[error("it did not answer within {SLOW:?}")]
    Slow,
    #[error("it did not answer a moment ago")]
    LeftAlone,
}

impl Memory {
    /// A memory of so many bytes, which believes what it holds as long as `hold` lets it.
    pub(crate) fn new(store: Store, clock: Clock, tasks: Tasks, size_bytes: u64, hold: Hold) -> Self {
        let known = Cache::builder()
            .weigher(|key: &Key, known: &Known| {
                u32::try_from(ENTRY_BYTES + key.as_str().len() + known.size_bytes).unwrap_or(u32::MAX)
            })
            .max_capacity(size_bytes)
            // Those that are pulled now, rather than those that were pulled often.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        let reads = Cache::builder().max_capacity(SHARED_READS).time_to_idle(SHARED_IDLE).build();
        let (sequence, words, hold) = (AtomicU64::new(1), Mutex::default(), Mutex::new(hold));
        let (breaker, answers_while_away) = (Breaker::default(), AtomicU64::default());
        let told = Cache::builder().max_capacity(TOLD).time_to_idle(TOLD_IDLE).build();
        let inner =
            Inner { store, clock, tasks, known, reads, sequence, words, told, hold, breaker, answers_while_away };
        Self(Arc::new(inner))
    }

    /// What there is now, or was within the hold time.
    ///
    /// # Errors
    /// As the store, if nothing is known.
    pub(crate) async fn read<Q: Question>(&self, question: &Q) -> Result<Found<Q::Answer>, Error> {
        if let Some((answer, is_old)) = self.0.lookup(question) {
            if is_old {
                self.read_behind(question);
            }
            return Ok(Found { answer: Some(answer), source: Source::Memory });
        }
        let asked = self.0.next();
        let turn = self.0.turn_of(question.key());
        // A read that hangs does not hold up all who come after it.
        let Ok(mut last) = timeout(TURN, turn.lock()).await else { return self.read_anew(question).await };
        // Somebody may have read it while this one waited.
        if let Some((answer, _)) = self.0.lookup(question) {
            return Ok(Found { answer: Some(answer), source: Source::Memory });
        }
        if let Some((begun, absent)) = &last.absent
            && *begun > asked
        {
            let answer = absent.as_ref().and_then(|answer| answer.downcast_ref::<Q::Answer>()).cloned();
            return Ok(Found { answer, source: Source::Store });
        }
        self.0.read_shared(question, &mut last).await
    }

    /// What there is now, as the store says; it is held then.
    ///
    /// # Errors
    /// As the store, if nothing is known.
    pub(crate) async fn read_anew<Q: Question>(&self, question: &Q) -> Result<Found<Q::Answer>, Error> {
        self.0.read_from_store(question).await.map(|(found, _)| found)
    }

    /// Forgets a key: whoever asks from now on is told what the store says from now on.
    pub(crate) fn forget(&self, key: &Key) {
        self.0.note_told(key.as_str());
        let mut words = self.0.words.lock();
        words.note_key(key, self.0.next());
        self.0.known.invalidate(key);
    }

    /// Since when work for a repository must have begun for whoever asks now to believe what comes of it: since the last
    /// word about the repository, and within the hold time, since words are lost. `None` if that does not matter.
    pub(crate) fn believed_since(&self, name: &RepositoryName) -> Option<Instant> {
        let told = repository_of(layout::repository(name).as_str()).and_then(|repository| self.0.told.get(repository));
        let hold_time = self.hold_to_announce();
        // Where nothing is ever held, nobody waits for nodes to forget.
        let held = (!hold_time.is_zero()).then(|| Instant::now().checked_sub(hold_time)).flatten();
        told.max(held)
    }

    /// This node has written a record: that is what it is known as, but read before it is believed.
    fn wrote(&self, key: &Key, bytes: &Bytes) {
        let mut words = self.0.words.lock();
        let number = self.0.next();
        words.note_key(key, number);
        // A slice would keep alive all that it was cut from.
        let (answer, size_bytes) = (Arc::new(Written(Bytes::copy_from_slice(bytes))), bytes.len());
        let known = Known { answer, size_bytes, begun: self.0.now(), number, is_there: false };
        self.0.known.insert(key.clone(), known);
    }

    /// This node may have written a record. What was read before is believed no more, unless the store is away.
    fn may_have_written(&self, key: &Key) {
        let mut words = self.0.words.lock();
        words.note_key(key, self.0.next());
        if let Some(known) = self.0.known.get(key) {
            self.0.known.insert(key.clone(), Known { is_there: false, ..known });
        }
    }

    /// Forgets all keys below a prefix.
    pub(crate) fn forget_below(&self, prefix: &str) {
        self.0.note_told(prefix);
        let mut words = self.0.words.lock();
        words.note_prefix(prefix, self.0.next());
        let below = self.0.known.iter().map(|(key, _)| key).filter(|key| words::is_below(key, prefix));
        below.collect::<Vec<_>>().iter().for_each(|key| self.0.known.invalidate(&**key));
    }

    /// What time it is, by both clocks.
    pub(crate) fn now(&self) -> Moment {
        self.0.now()
    }

    /// The largest hold time that this node uses, or is about to use: what its record has to say.
    pub(crate) fn hold_to_announce(&self) -> Duration {
        self.0.hold.lock().wanted()
    }

    /// This node's record was written, begun at that time, and says this hold time.
    pub(crate) fn announced(&self, begun: Moment, hold_time: Duration) {
        let now = self.0.now();
        self.0.hold.lock().announced(begun, now, hold_time);
    }

    /// Another node is called as this one, so that others may take the one for the other. Nothing is held until this one's
    /// record has been the only one for as long as after a start.
    pub(crate) fn doubled(&self) {
        self.0.hold.lock().doubled();
    }

    /// Counts what is held, for as long as anybody reads.
    pub(crate) fn observe(&self, metrics: &Metrics) {
        let meter = metrics.meter("entrepot.data_plane");
        let hold = Arc::downgrade(&self.0);
        meter
            .f64_observable_gauge("entrepot.memory.hold_time")
            .with_unit("s")
            .with_description("For how long this node believes now what it has read of records.")
            .with_callback(move |gauge| {
                let time = hold.upgrade().map(|inner| inner.hold.lock().time_at(inner.now()));
                time.into_iter().for_each(|time| gauge.observe(time.as_secs_f64(), &[]));
            })
            .build();
        let (held, size, away) = (Arc::downgrade(&self.0), Arc::downgrade(&self.0), Arc::downgrade(&self.0));
        meter
            .u64_observable_gauge("entrepot.memory.records")
            .with_description("Records and manifests that this node knows.")
            .with_callback(move |gauge| {
                held.upgrade().into_iter().for_each(|inner| gauge.observe(inner.known.entry_count(), &[]));
            })
            .build();
        meter
            .u64_observable_gauge("entrepot.memory.size")
            .with_unit("By")
            .with_description("What they take in memory.")
            .with_callback(move |gauge| {
                size.upgrade().into_iter().for_each(|inner| gauge.observe(inner.known.weighted_size(), &[]));
            })
            .build();
        meter
            .u64_observable_counter("entrepot.memory.answers_while_away")
            .with_description("Questions that were answered with what the store had said last, since it was away.")
            .with_callback(move |counter| {
                let answers = away.upgrade().map(|inner| inner.answers_while_away.load(Ordering::Relaxed));
                answers.into_iter().for_each(|answers| counter.observe(answers, &[]));
            })
            .build();
    }

    /// Reads something anew that is held, unless that is done already, and lets nobody wait.
    fn read_behind<Q: Question>(&self, question: &Q) {
        let (inner, question) = (self.0.clone(), question.clone());
        let Ok(mut last) = inner.turn_of(question.key()).try_lock_owned() else { return };
        self.0.tasks.spawn("record", async move {
            // What fails is read in front of somebody's answer, when the hold time is over.
            drop(inner.read_shared(&question, &mut last).await);
        });
    }
}

impl Inner {
    fn next(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    fn note_told(&self, key: &str) {
        if let Some(repository) = repository_of(key) {
            self.told.insert(repository.to_owned(), Instant::now());
        }
    }

    fn turn_of(&self, key: &Key) -> Arc<tokio::sync::Mutex<LastRead>> {
        self.reads.get_with_by_ref(key, Arc::default)
    }

    fn now(&self) -> Moment {
        Moment::now(&self.clock)
    }

    /// What is held, and whether it is in the second half of its hold time.
    fn lookup<Q: Question>(&self, question: &Q) -> Option<(Q::Answer, bool)> {
        let known = self.known.get(question.key())?;
        let now = self.now();
        let (age, hold_time) = (known.begun.age_at(now), self.hold.lock().time_at(now));
        if !known.is_there || age >= hold_time {
            return None;
        }
        Some((known.answer.downcast_ref::<Q::Answer>()?.clone(), age * 2 >= hold_time))
    }

    /// Reads something for all who wait for it.
    async fn read_shared<Q: Question>(&self, question: &Q, last: &mut LastRead) -> Result<Found<Q::Answer>, Error> {
        last.absent = None;
        let (found, number) = self.read_from_store(question).await?;
        let is_there = found.answer.as_ref().is_some_and(Q::is_there);
        if found.source == Source::Store && !is_there {
            let left = found.answer.clone().map(|answer| Arc::new(answer) as Arc<dyn Any + Send + Sync>);
            last.absent = Some((number, left));
        }
        Ok(found)
    }

    /// What the store says, or has said last if it does not answer; and the number of the read.
    async fn read_from_store<Q: Question>(&self, question: &Q) -> Result<(Found<Q::Answer>, u64), Error> {
        let (begun, number) = (self.now(), self.next());
        let key = question.key();
        match self.ask(question).await {
            Ok(Some((answer, size_bytes))) => {
                let is_there = Q::is_there(&answer);
                let known = Known { answer: Arc::new(answer.clone()), size_bytes, begun, number, is_there };
                self.keep(key, known);
                Ok((Found { answer: Some(answer), source: Source::Store }, number))
            }
            Ok(None) => {
                self.known.invalidate(key);
                Ok((Found { answer: None, source: Source::Store }, number))
            }
            Err(error) if error.retry() => {
                let answer = self.last_known(question).ok_or(error)?;
                self.answers_while_away.fetch_add(1, Ordering::Relaxed);
                Ok((Found { answer: Some(answer), source: Source::LastKnown }, number))
            }
            Err(error) => {
                // What is there cannot be read: what was there before is no answer.
                self.known.invalidate(key);
                Err(error)
            }
        }
    }

    /// Asks the store; not for long, where there is another answer.
    async fn ask<Q: Question>(&self, question: &Q) -> Result<Option<(Q::Answer, usize)>, Error> {
        let asking = question.ask(&self.store);
        let (request, answer) = if self.last_known(question).is_none() {
            let request = self.breaker.enter_anyway();
            (request, asking.await)
        } else {
            let request = self.breaker.enter().ok_or_else(|| Error::Away(Box::new(Unheard::LeftAlone)))?;
            (request, within(asking).await)
        };
        match &answer {
            Err(error) if error.retry() => request.unanswered(),
            Ok(_) | Err(_) => request.answered(),
        }
        answer
    }

    /// Keeps what was read, unless something newer is known, or there was a word about it since. What took longer than the
    /// hold time is kept for when the store is away, and believed by nobody before.
    fn keep(&self, key: &Key, known: Known) {
        let words = self.words.lock();
        let is_newest = self.known.get(key).is_none_or(|other| other.number < known.number);
        if is_newest && !words.are_about(key, known.number) {
            self.known.insert(key.clone(), known);
        }
    }

    /// What was read last, for when the store does not answer.
    fn last_known<Q: Question>(&self, question: &Q) -> Option<Q::Answer> {
        let Some(known) = self.known.get(question.key()) else { return question.at_hand(&self.store) };
        match known.answer.downcast_ref::<Written>() {
            Some(Written(bytes)) => question.decode(bytes),
            None => known.answer.downcast_ref::<Q::Answer>().cloned(),
        }
    }
}

/// What all keys of the repository begin with that this is a key of, or a prefix of some. No part of a name begins so.
fn repository_of(key: &str) -> Option<&str> {
    key.split_once("/_").map(|(repository, _)| repository)
}

async fn within<T>(asking: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(SLOW, asking).await.unwrap_or_else(|_| Err(Error::Away(Box::new(Unheard::Slow))))
}

#[cfg(test)]
mod tests;
