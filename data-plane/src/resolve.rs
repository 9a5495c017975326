//! Resolves references: which content does a reference mean now, and may this repository show it?
//!
//! What the records have is served at once. For everything else the upstream is asked, once for all callers that wait.
//! That work continues by itself: a client that disconnects does not disturb the next one.

mod blob;
mod head;
mod leadership;
mod lists;
mod manifest;
mod referrers;
mod refusals;
mod sync;
mod tag;
mod tags;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, Reference, RepositoryName, Tag};
use entrepot_runtime::{Clock, Tasks};
use moka::future::Cache;
use uuid::Uuid;

use crate::auth::Asker;
use crate::config::limits;
use crate::control::FillFrom;
use crate::error::PullError;
use crate::fill::Fills;
use crate::flight::Flights;
use crate::place::Place;
use crate::repository::Repositories;
use crate::target;
use crate::trail::Trail;
use head::Heads;
use lists::Lists;
use manifest::Cached;

pub(crate) use blob::{Blob, Want};
pub(crate) use head::UpstreamHead;
pub(crate) use manifest::Resolved;
pub(crate) use referrers::ReferrerList;
pub(crate) use refusals::Refusals;
pub(crate) use sync::FetchProgress;
pub(crate) use tags::TagList;

/// Resolves references. Clones share everything.
#[derive(Clone)]
pub(crate) struct Resolver {
    repositories: Repositories,
    fills: Fills,
    clock: Clock,
    manifests: Arc<Flights<ManifestKey, Resolution>>,
    /// Tags that their upstream did not confirm when it was last asked.
    unconfirmed: Cache<ManifestKey, RecentFailure>,
    refusals: Refusals,
    lists: Lists,
    heads: Heads,
    /// How many children of an index are linked, reported and walked.
    index_children: usize,
}

/// What a pull asks for, ready to be served.
pub(crate) enum Content {
    Manifest(Resolved),
    /// What the upstream says about a manifest whose bytes are not wanted.
    ManifestHead(UpstreamHead),
    Blob(Blob),
}

/// What the records have for a pull.
pub(crate) enum Found {
    /// Everything.
    Here(Content),
    /// Something is missing.
    Missing(Missing),
}

/// What must be fetched, or confirmed by the upstream.
pub(crate) enum Missing {
    Manifest(Reference, Cached),
    Blob(Digest),
}

/// A question to an upstream that has failed recently.
#[derive(Clone)]
struct RecentFailure {
    error: PullError,
    /// Until when it is not asked again.
    until: DateTime<Utc>,
}

/// When a known tag needs no further confirmation.
#[derive(Clone, Copy, Debug)]
enum Trust {
    /// If the rule's window covers it, or if the upstream has confirmed it since then, while the caller was waiting.
    Rule(Option<DateTime<Utc>>),
    /// Only if the upstream has confirmed it since then.
    Since(DateTime<Utc>),
}

/// What a flight gives to all callers that wait for it: the answer and its reasons.
type Resolution = (Result<Resolved, PullError>, Trail);

/// The key of a flight.
type ManifestKey = (Uuid, RepositoryName, Reference);

impl Resolver {
    pub(crate) fn new(
        repositories: Repositories,
        fills: Fills,
        refusals: Refusals,
        clock: Clock,
        tasks: Tasks,
        index_children: usize,
    ) -> Self {
        let unconfirmed = Cache::builder().max_capacity(limits::REFUSALS).time_to_idle(limits::REFUSALS_IDLE).build();
        let (lists, heads) = (Lists::new(tasks.clone()), Heads::new(tasks.clone()));
        let manifests = Arc::new(Flights::new(tasks));
        Self { repositories, fills, clock, manifests, unconfirmed, refusals, lists, heads, index_children }
    }

    /// Looks in the records and the store for what a pull asks for. No upstream is asked.
    pub(crate) async fn find(&self, place: &Place, wanted: &target::Content) -> Result<Found, PullError> {
        Ok(match wanted {
            target::Content::Manifest(reference) => {
                match self.read_cached(place, reference, Trust::Rule(None)).await? {
                    Cached::Fresh(manifest) => Found::Here(Content::Manifest(manifest)),
                    cached @ (Cached::Stale(_) | Cached::Gone | Cached::Nothing) => {
                        Found::Missing(Missing::Manifest(reference.clone(), cached))
                    }
                }
            }
            target::Content::Blob(digest) => match self.read_linked(place, digest).await? {
                Some(blob) => Found::Here(Content::Blob(blob)),
                None => Found::Missing(Missing::Blob(digest.clone())),
            },
        })
    }

    /// Gets what was not found, if it may be fetched on behalf of `asker`.
    pub(crate) async fn fill(
        &self,
        place: &Place,
        missing: Missing,
        want: Want,
        asker: &Asker,
    ) -> Result<Content, PullError> {
        match missing {
            Missing::Manifest(reference, cached) => self.fill_manifest(place, &reference, cached, want, asker).await,
            Missing::Blob(digest) => self.fill_blob(place, &digest, want, asker).await.map(Content::Blob),
        }
    }

    /// The repository that `fill` fills, with its current record.
    async fn reread(&self, fill: &FillFrom) -> Result<Place, PullError> {
        Place::reread(fill, &self.repositories).await
    }

    /// Waits until no node relies any more on what a tag meant before a sync has moved it. Returns how many nodes did
    /// not confirm this.
    pub(crate) async fn settle_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<u32, PullError> {
        self.repositories.settle_tag(name, tag).await
    }

    /// The current time, for all decisions here.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }
}
