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
use entrepot_domain::{Reference, RepositoryName};
use entrepot_runtime::{Clock, Tasks};
use moka::future::Cache;
use uuid::Uuid;

use crate::config::limits;
use crate::error::PullError;
use crate::fill::Fills;
use crate::flight::Flights;
use crate::repository::Repositories;
use crate::trail::Trail;
use head::Heads;
use lists::Lists;

pub(crate) use blob::{Blob, Want};
pub(crate) use head::Told;
pub(crate) use manifest::{Described, Resolved};
pub(crate) use referrers::ReferrerList;
pub(crate) use refusals::Refusals;
pub(crate) use sync::{Ahead, Synced};
pub(crate) use tags::TagList;

/// Resolves references. Clones share everything.
#[derive(Clone)]
pub(crate) struct Resolver {
    repositories: Repositories,
    fills: Fills,
    clock: Clock,
    manifests: Arc<Flights<ManifestKey, Resolution>>,
    /// Tags whose upstream did not confirm them when it was last asked.
    unconfirmed: Cache<ManifestKey, InVain>,
    refusals: Refusals,
    lists: Lists,
    heads: Heads,
}

/// A question to an upstream that has led to nothing.
#[derive(Clone)]
struct InVain {
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
    ) -> Self {
        let unconfirmed = Cache::builder().max_capacity(limits::REFUSALS).time_to_idle(limits::REFUSALS_IDLE).build();
        let (lists, heads) = (Lists::new(tasks.clone()), Heads::new(tasks.clone()));
        let manifests = Arc::new(Flights::new(tasks));
        Self { repositories, fills, clock, manifests, unconfirmed, refusals, lists, heads }
    }

    /// What time it is for whatever is decided here.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }
}
