//! What upstreams list: tags, and what refers to a manifest. It is served for as long as the rule says, and asked for
//! once by all nodes.
//!
//! A list is kept by each node, and in the record of a repository that exists, so that what one node has asked for the
//! others have, too, after a restart as well.

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

use super::refusals::Question;
use super::tag::unconfirmed_because;
use super::turn::Turn;
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

/// Something that upstreams list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    Tags,
    /// What refers to the manifest with this digest.
    Referrers(Digest),
}

/// The lists that this node remembers. Clones share them.
#[derive(Clone)]
pub(super) struct Lists {
    known: Cache<Key, Known>,
    in_vain: Cache<Key, RecentFailure>,
    flights: Arc<Flights<Key, Result<Listed, PullError>>>,
}

/// The origin, the repository, and what is listed.
type Key = (Uuid, RepositoryName, What);

/// All that an upstream has listed: tags in byte order, or descriptors.
#[derive(Clone)]
struct Known {
    entries: Arc<[String]>,
    listed: DateTime<Utc>,
}

/// What is served of it.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) entries: Arc<[String]>,
    /// When the upstream gave it.
    pub(super) listed: DateTime<Utc>,
    pub(super) outcome: Outcome,
}

/// Why there is no list of the upstream.
pub(super) enum Unlisted {
    /// None is known, and what is cached may be served in its place.
    Unknown(PullError),
    /// The rule says that this is for clients to know.
    Failed(PullError),
}

impl Lists {
    pub(super) fn new(tasks: Tasks) -> Self {
        let known = Cache::builder().max_capacity(limits::LIST_BYTES).weigher(|_, known: &Known| known.bytes());
        let in_vain = Cache::builder().max_capacity(limits::LISTS_IN_VAIN).time_to_live(limits::REFUSALS_IDLE);
        Self { known: known.build(), in_vain: in_vain.build(), flights: Arc::new(Flights::new(tasks)) }
    }
}

impl Resolver {
    /// What the upstream lists, as far as it must be asked.
    pub(super) async fn list(&self, fill: &FillFrom, what: What, asker: Option<Uuid>) -> Result<Listed, Unlisted> {
        let key = (fill.origin, fill.name.clone(), what);
        let known = self.known(&key, fill).await;
        if let Some(known) = known.as_ref().filter(|known| self.is_current(known, &key.2, fill)) {
            trail::note(Note::Listed { age: trail::age(known.listed, self.now()) });
            return Ok(known.served(Outcome::Hit));
        }
        let vain = if known.is_some() { self.lists.in_vain.get(&key).await } else { None };
        let error = match vain.filter(|vain| vain.until > self.now()) {
            Some(vain) => vain.error,
            None => match self.list_anew(&key, fill, known.is_some(), asker).await {
                Ok(listed) => return Ok(listed),
                Err(error) => error,
            },
        };
        trail::note(Note::NotListed(error.clone()));
        let listed = known.as_ref().map(|known| known.listed);
        match (fill.rule.freshness.remedy(unconfirmed_because(&error), listed, self.now()), known) {
            (Remedy::ServeStale, Some(known)) => Ok(known.served(Outcome::Stale)),
            (Remedy::ServeStale, None) => Err(Unlisted::Unknown(error)),
            (Remedy::TooStale { max_stale }, Some(_)) => {
                let rule = fill.rule.id.clone();
                let cause = Box::new(error);
                Err(Unlisted::Failed(PullError::TooStale { rule, max_stale, validated: listed, cause }))
            }
            (Remedy::TooStale { .. } | Remedy::Fail | Remedy::Drop, _) => Err(Unlisted::Failed(error)),
        }
    }

    /// The newest list that is known here or in the store.
    async fn known(&self, key: &Key, fill: &FillFrom) -> Option<Known> {
        let here = self.lists.known.get(key).await;
        if here.as_ref().is_some_and(|known| self.is_current(known, &key.2, fill)) {
            return here;
        }
        let recorded = self.recorded(key, fill).await;
        let recorded_at = recorded.as_ref().map(|known| known.listed);
        if recorded_at > here.as_ref().map(|known| known.listed) { recorded } else { here }
    }

    /// What the record has. A store that is away is no reason not to ask the upstream.
    async fn recorded(&self, key: &Key, fill: &FillFrom) -> Option<Known> {
        let (_, repository, what) = key;
        let read = async {
            let Some(live) = self.repositories.live(repository).await? else { return Ok(None) };
            self.repositories.listed(&what.record(&live), fill).await
        };
        let record = within_limit(read).await.ok().flatten()?;
        let known = Known { entries: record.entries.into(), listed: record.list_time };
        self.lists.known.insert(key.clone(), known.clone()).await;
        Some(known)
    }

    /// Asks the upstream, once for all who wait.
    async fn list_anew(
        &self,
        key: &Key,
        fill: &FillFrom,
        is_known: bool,
        asker: Option<Uuid>,
    ) -> Result<Listed, PullError> {
        if !is_known {
            self.refusals.remembered(fill, key.2.question()).await?;
        }
        let (resolver, fill, work_key) = (self.clone(), fill.clone(), key.clone());
        let work = || async move { resolver.list_in_turn(&work_key, &fill, asker).await };
        let listed = self.lists.flights.join_or_start(key.clone(), work).await.ok_or(PullError::GaveUp)??;
        trail::note(Note::ListedNow { by_us: listed.outcome != Outcome::Follow });
        Ok(listed)
    }

    /// Asks the upstream, or takes over what another node has asked for meanwhile.
    async fn list_in_turn(&self, key: &Key, fill: &FillFrom, asker: Option<Uuid>) -> Result<Listed, PullError> {
        let (origin, repository, what) = key;
        // While whoever wants this was looking into the store, the same may have been asked for and have come.
        if let Some(known) = self.lists.known.get(key).await.filter(|known| self.is_current(known, what, fill)) {
            return Ok(known.served(Outcome::Hit));
        }
        let began = self.now();
        let (lease_key, mut lost) = (what.lease(*origin, repository), None);
        let limit = Instant::now() + limits::OTHERS_WORK;
        let lease = loop {
            let turn = self.turn(&lease_key, &mut lost, limit).await;
            let meanwhile = self.recorded(key, fill).await;
            if let Some(known) = meanwhile.filter(|known| known.listed >= began || self.is_current(known, what, fill)) {
                return Ok(known.served(Outcome::Follow));
            }
            if let Turn::Ours(lease) = turn {
                break lease;
            }
        };
        let listed = what.ask(fill).await;
        self.refusals.learn(fill, what.question(), asker, &listed).await;
        let listed = match listed {
            Ok(entries) => {
                let known = Known { entries: entries.into(), listed: self.now() };
                self.lists.in_vain.invalidate(key).await;
                self.lists.known.insert(key.clone(), known.clone()).await;
                self.record(key, fill, &known).await;
                Ok(known.served(Outcome::Miss))
            }
            Err(error) => {
                let until = self.now() + limits::REVALIDATE_BACKOFF;
                self.lists.in_vain.insert(key.clone(), RecentFailure { error: error.clone(), until }).await;
                Err(error)
            }
        };
        // After the record is written, so that whoever waits for it finds what is there.
        drop(lease);
        listed
    }

    /// Shares a list with the other nodes, if there is a repository to keep it in.
    async fn record(&self, (_, repository, what): &Key, fill: &FillFrom, known: &Known) {
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

    fn is_current(&self, known: &Known, what: &What, fill: &FillFrom) -> bool {
        let policy = &fill.rule.freshness;
        let window = match what {
            What::Tags => policy.tag_list_window,
            What::Referrers(_) => policy.referrers_window,
        };
        let age = (self.now() - known.listed).to_std().ok();
        age.is_some_and(|age| age < window)
    }
}

impl What {
    async fn ask(&self, fill: &FillFrom) -> Result<Vec<String>, PullError> {
        let (client, repository) = (&fill.source.client, &fill.repository);
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

    /// Where it is recorded.
    fn record(&self, live: &Live) -> StoreKey {
        match self {
            Self::Tags => layout::tag_list(&live.name, live.record.incarnation),
            Self::Referrers(subject) => layout::referrer_list(&live.name, live.record.incarnation, subject),
        }
    }
}

impl Known {
    fn served(&self, outcome: Outcome) -> Listed {
        Listed { entries: self.entries.clone(), listed: self.listed, outcome }
    }

    /// About how much of the memory it takes.
    fn bytes(&self) -> u32 {
        let bytes: usize = self.entries.iter().map(|entry| entry.len() + size_of::<String>() + 16).sum();
        u32::try_from(bytes + 256).unwrap_or(u32::MAX)
    }
}
