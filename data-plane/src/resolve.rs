//! Which content does a reference mean now, and may this repository show it?
//!
//! What the records have is served at once. Everything else asks the upstream, once for all who wait, and goes on for
//! its own sake: a client that hangs up takes nothing away from the next.

mod blob;
mod head;
mod lists;
mod manifest;
mod referrers;
mod refusals;
mod sync;
mod tag;
mod tags;
mod turn;

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
pub(crate) use sync::Ahead;
pub(crate) use tags::TagList;

/// Resolves references. Clones share everything.
#[derive(Clone)]
pub(crate) struct Resolver {
    repositories: Repositories,
    fills: Fills,
    clock: Clock,
    manifests: Arc<Flights<ManifestKey, Resolution>>,
    /// Tags whose upstream did not confirm them when it was last asked.
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
    /// What the upstream says of a manifest of which nobody wants the bytes.
    ManifestHead(UpstreamHead),
    Blob(Blob),
}

/// What the records have of what a pull asks for.
pub(crate) enum Found {
    /// All of it.
    Here(Content),
    /// Less than that.
    Missing(Missing),
}

/// What is to be filled, or confirmed by its upstream.
pub(crate) enum Missing {
    Manifest(Reference, Cached),
    Blob(Digest),
}

/// A question to an upstream that has led to nothing a moment ago.
#[derive(Clone)]
struct RecentFailure {
    error: PullError,
    /// Until when it is not asked again.
    until: DateTime<Utc>,
}

/// What of a known tag needs no other confirmation.
#[derive(Clone, Copy, Debug)]
enum Trust {
    /// What the rule's window covers, and what the upstream has confirmed since then, while whoever asks was waiting.
    Rule(Option<DateTime<Utc>>),
    /// Only what the upstream has confirmed since then.
    Since(DateTime<Utc>),
}

/// What a flight gives to all who wait for it: the answer, and why it is that.
type Resolution = (Result<Resolved, PullError>, Trail);

/// What one flight is about.
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

    /// Looks for what a pull asks for in the records and the store. No upstream is asked.
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

    /// Gets what was not found, as far as `asker` may have it fetched.
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

    /// The repository that `fill` fills, with its record as it is now.
    async fn reread(&self, fill: &FillFrom) -> Result<Place, PullError> {
        Place::reread(fill, &self.repositories).await
    }

    /// Waits until no node believes any more what a tag meant before a sync has moved it.
    pub(crate) async fn settle_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<(), PullError> {
        self.repositories.settle_tag(name, tag).await
    }

    /// What time it is for whatever is decided here.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }
}
