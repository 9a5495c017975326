//! Lists from upstreams: of tags, and of a manifest's referrers. A list is served for as long as the rule says, and
//! fetched once for all nodes.
//!
//! Each node keeps lists in memory, and in the records of existing repositories. So the other nodes have a list, too,
//! and it survives restarts.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use entrepot_domain::freshness::Remedy;
use entrepot_domain::{Digest, RepositoryName};
use entrepot_records::ListRecord;
use entrepot_records::layout;
use entrepot_runtime::Tasks;
use entrepot_store::Key as StoreKey;
use moka::future::Cache;
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::leadership::Leadership;
use super::refusals::Question;
use super::tag::unconfirmed_reason;
use super::{RecentFailure, Resolver};
use crate::config::limits;
use crate::control::FillFrom;
use crate::error::{Asked, PullError};
use crate::flight::Flights;
use crate::lease::LeaseKey;
use crate::outcome::Outcome;
use crate::repository::{Live, within_limit};
use crate::trail::{self, Note};
use crate::upstream;

/// A kind of list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum ListKind {
    Tags,
    /// The referrers of the manifest with this digest.
    Referrers(Digest),
}

/// The lists that this node remembers. Clones share them.
#[derive(Clone)]
pub(super) struct Lists {
    known: Cache<Key, CachedList>,
    failures: Cache<Key, RecentFailure>,
    flights: Arc<Flights<Key, Result<Listed, PullError>>>,
}

/// The origin, the repository, and the kind of list.
type Key = (Uuid, RepositoryName, ListKind);

/// A complete list of an upstream: tags in byte order, or descriptors.
#[derive(Clone)]
struct CachedList {
    entries: Arc<[String]>,
    listed: DateTime<Utc>,
}

/// A list to be served.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) entries: Arc<[String]>,
    /// When the upstream sent it.
    pub(super) listed: DateTime<Utc>,
    pub(super) outcome: Outcome,
}

/// Why there is no list from the upstream.
pub(super) enum ListError {
    /// None is known, and what is cached may be served instead.
    Unknown(PullError),
    /// The rule says that clients must be told.
    Failed(PullError),
}

impl Lists {
    pub(super) fn new(tasks: Tasks) -> Self {
        let known = Cache::builder().max_capacity(limits::LIST_BYTES).weigher(|_, known: &CachedList| known.bytes());
        let failures = Cache::builder().max_capacity(limits::LISTS_IN_VAIN).time_to_live(limits::REFUSALS_IDLE);
        Self { known: known.build(), failures: failures.build(), flights: Arc::new(Flights::new(tasks)) }
    }
}

impl Resolver {
    /// The upstream's list, which is fetched if needed.
    pub(super) async fn list(&self, fill: &FillFrom, what: ListKind, asker: Option<Uuid>) -> Result<Listed, ListError> {
        let key = (fill.origin, fill.name.clone(), what);
        let known = self.read_list(&key, fill).await;
        if let Some(known) = known.as_ref().filter(|known| self.is_current(known, &key.2, fill)) {
            trail::note(Note::Listed { age: trail::age(known.listed, self.now()) });
            return Ok(known.to_listed(Outcome::Hit));
        }
        let vain = if known.is_some() { self.lists.failures.get(&key).await } else { None };
        let error = match vain.filter(|vain| vain.until > self.now()) {
            Some(vain) => vain.error,
            None => match self.fetch_list(&key, fill, known.is_some(), asker).await {
                Ok(listed) => return Ok(listed),
                Err(error) => error,
            },
        };
        trail::note(Note::NotListed(error.clone()));
        let listed = known.as_ref().map(|known| known.listed);
        match (fill.rule.freshness.remedy(unconfirmed_reason(&error), listed, self.now()), known) {
            (Remedy::ServeStale, Some(known)) => Ok(known.to_listed(Outcome::Stale)),
            (Remedy::ServeStale, None) => Err(ListError::Unknown(error)),
            (Remedy::TooStale { max_stale }, Some(_)) => {
                let rule = fill.rule.id.clone();
                let cause = Box::new(error);
                Err(ListError::Failed(PullError::TooStale { rule, max_stale, validated: listed, cause }))
            }
            (Remedy::TooStale { .. } | Remedy::Fail | Remedy::Drop, _) => Err(ListError::Failed(error)),
        }
    }

    /// The newest list that is known here or in the store.
    async fn read_list(&self, key: &Key, fill: &FillFrom) -> Option<CachedList> {
        let here = self.lists.known.get(key).await;
        if here.as_ref().is_some_and(|known| self.is_current(known, &key.2, fill)) {
            return here;
        }
        let recorded = self.read_record(key, fill).await;
        let recorded_at = recorded.as_ref().map(|known| known.listed);
        if recorded_at > here.as_ref().map(|known| known.listed) { recorded } else { here }
    }

    /// The recorded list. If the store is away, the upstream can still be asked.
    async fn read_record(&self, key: &Key, fill: &FillFrom) -> Option<CachedList> {
        let (_, repository, what) = key;
        let read = async {
            let Some(live) = self.repositories.live(repository).await? else { return Ok(None) };
            self.repositories.read_list(&what.record(&live), fill).await
        };
        let record = within_limit(read).await.ok().flatten()?;
        let known = CachedList { entries: record.entries.into(), listed: record.list_time };
        self.lists.known.insert(key.clone(), known.clone()).await;
        Some(known)
    }

    /// Asks the upstream, once for all callers that wait.
    async fn fetch_list(
        &self,
        key: &Key,
        fill: &FillFrom,
        is_known: bool,
        asker: Option<Uuid>,
    ) -> Result<Listed, PullError> {
        if !is_known {
            self.refusals.check(fill, key.2.question()).await?;
        }
        let (resolver, fill, work_key) = (self.clone(), fill.clone(), key.clone());
        let work = || async move { resolver.fetch_list_once(&work_key, &fill, asker).await };
        let listed = self.lists.flights.join_or_start(key.clone(), work).await.ok_or(PullError::GaveUp)??;
        trail::note(Note::ListedNow { by_us: listed.outcome != Outcome::Follow });
        Ok(listed)
    }

    /// Asks the upstream, or uses what another node has fetched meanwhile.
    async fn fetch_list_once(&self, key: &Key, fill: &FillFrom, asker: Option<Uuid>) -> Result<Listed, PullError> {
        let (origin, repository, what) = key;
        // While this caller was looking in the store, the same list may have been fetched.
        if let Some(known) = self.lists.known.get(key).await.filter(|known| self.is_current(known, what, fill)) {
            return Ok(known.to_listed(Outcome::Hit));
        }
        let began = self.now();
        let (lease_key, mut lost) = (what.lease(*origin, repository), None);
        let limit = Instant::now() + limits::OTHERS_WORK;
        let lease = loop {
            let leadership = self.lead_or_wait(&lease_key, &mut lost, limit).await;
            let meanwhile = self.read_record(key, fill).await;
            if let Some(known) = meanwhile.filter(|known| known.listed >= began || self.is_current(known, what, fill)) {
                return Ok(known.to_listed(Outcome::Follow));
            }
            if let Leadership::Ours(lease) = leadership {
                break lease;
            }
        };
        let listed = what.ask(fill).await;
        self.refusals.learn(fill, what.question(), asker, &listed).await;
        let listed = match listed {
            Ok(entries) => {
                let known = CachedList { entries: entries.into(), listed: self.now() };
                self.lists.failures.invalidate(key).await;
                self.lists.known.insert(key.clone(), known.clone()).await;
                self.record(key, fill, &known).await;
                Ok(known.to_listed(Outcome::Miss))
            }
            // A request that comes another way may succeed.
            Err(error) if error.is_loop() => Err(error),
            Err(error) => {
                let until = self.now() + limits::REVALIDATE_BACKOFF;
                self.lists.failures.insert(key.clone(), RecentFailure { error: error.clone(), until }).await;
                Err(error)
            }
        };
        // Released after the record is written, so that nodes waiting for it find the list.
        drop(lease);
        listed
    }

    /// Shares a list with the other nodes, if there is a repository in which to record it.
    async fn record(&self, (_, repository, what): &Key, fill: &FillFrom, known: &CachedList) {
        let write = async {
            let Some(live) = self.repositories.live(repository).await? else { return Ok(()) };
            let entries = known.entries.to_vec();
            let record = ListRecord::new(fill.provenance(), known.listed, entries);
            self.repositories.write_list(&what.record(&live), &record).await
        };
        if let Err(error) = within_limit(write).await {
            warn!(repository.name = %repository, "a list of `{repository}` could not be written: {error}");
        }
    }

    fn is_current(&self, known: &CachedList, what: &ListKind, fill: &FillFrom) -> bool {
        let policy = &fill.rule.freshness;
        let window = match what {
            ListKind::Tags => policy.tag_list_window,
            ListKind::Referrers(_) => policy.referrers_window,
        };
        let age = (self.now() - known.listed).to_std().ok();
        age.is_some_and(|age| age < window)
    }
}

impl ListKind {
    async fn ask(&self, fill: &FillFrom) -> Result<Vec<String>, PullError> {
        let (client, repository) = (fill.pull_client(), &fill.repository);
        let entries = match self {
            Self::Tags => {
                let tags = upstream::request(fill, "GET", client.tags(repository)).await;
                tags.map(|tags| tags.iter().map(ToString::to_string).collect())
            }
            Self::Referrers(subject) => {
                let referrers = upstream::request(fill, "GET", client.referrers(repository, subject)).await;
                referrers.map(|all| all.iter().map(|referrer| referrer.descriptor.to_string()).collect())
            }
        };
        entries.map_err(|error| upstream::failure(fill, Asked::Repository, &error))
    }

    fn question(&self) -> Question<'_> {
        match self {
            Self::Tags => Question::Tags,
            Self::Referrers(subject) => Question::Referrers(subject),
        }
    }

    fn lease(&self, origin: Uuid, repository: &RepositoryName) -> LeaseKey {
        match self {
            Self::Tags => LeaseKey::tags(origin, repository),
            Self::Referrers(subject) => LeaseKey::referrers(origin, repository, subject),
        }
    }

    /// The key of its record.
    fn record(&self, live: &Live) -> StoreKey {
        match self {
            Self::Tags => layout::tag_list(&live.name, live.record.incarnation),
            Self::Referrers(subject) => layout::referrer_list(&live.name, live.record.incarnation, subject),
        }
    }
}

impl CachedList {
    fn to_listed(&self, outcome: Outcome) -> Listed {
        Listed { entries: self.entries.clone(), listed: self.listed, outcome }
    }

    /// Its approximate size in memory.
    fn bytes(&self) -> u32 {
        let bytes: usize = self.entries.iter().map(|entry| entry.len() + size_of::<String>() + 16).sum();
        u32::try_from(bytes + 256).unwrap_or(u32::MAX)
    }
}
