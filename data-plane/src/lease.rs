//! Leases: which of the nodes leads a fill.
//!
//! A lease saves work and protects nothing. It may be lost at any moment, and whoever holds it does not even have to
//! notice: content is addressed by its digest, and records are replaced only as they were read. So whenever Redis is
//! away, slow or wrong, nodes go on without: each leads its own fills, and at worst something is fetched twice.

mod config;
mod line;
mod redis;

use std::fmt;
use std::sync::Arc;

use entrepot_domain::{Digest, Reference, RepositoryName, ResourceId};
use entrepot_runtime::{Metrics, Tasks};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Histogram;
use tokio::time::Instant;
use tracing::{Span, field, instrument};
use uuid::Uuid;

pub use config::{RedisConfig, RedisConfigError, RedisMode, RedisServer};

pub(crate) use self::line::Line;
pub(crate) use self::redis::WorkEnds;
use self::redis::{Held, Redis};

/// What a lease is about. Names only, since others may look into Redis.
///
/// Two nodes have the same key for the same work. The braces make it one place in Redis Cluster, whatever is added to a
/// key one day.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseKey(Arc<str>);

impl LeaseKey {
    /// Content under one origin: the rule, and where it points.
    pub fn content(origin: Uuid, digest: &Digest) -> Self {
        Self(format!("f:{origin}:{{{digest}}}").into())
    }

    /// What a reference means in a repository: a tag's manifest, or the content with a digest.
    pub fn reference(origin: Uuid, repository: &RepositoryName, reference: &Reference) -> Self {
        match reference {
            Reference::Tag(tag) => Self(format!("t:{origin}:{{{repository}:{tag}}}").into()),
            Reference::Digest(digest) => Self::content(origin, digest),
        }
    }

    /// The list of a repository's tags.
    pub fn tags(origin: Uuid, repository: &RepositoryName) -> Self {
        Self(format!("l:{origin}:{{{repository}}}").into())
    }

    /// The list of what refers to a manifest of a repository.
    pub fn referrers(origin: Uuid, repository: &RepositoryName, subject: &Digest) -> Self {
        Self(format!("l:{origin}:{{{repository}@{subject}}}").into())
    }

    /// The key in Redis.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where this node takes leases. Clones share it.
#[derive(Clone)]
pub struct Leases(Place);

#[derive(Clone)]
enum Place {
    /// One node leads everything. The table of what runs in it is all it needs.
    Local,
    Redis(Arc<Redis>, Histogram<f64>),
}

/// What came of a claim.
#[derive(Debug)]
pub enum Claim {
    /// The lease is ours.
    Granted(Lease),
    /// Another holds it.
    Busy(Holder),
    /// Nobody can say. Go on without.
    Uncoordinated,
}

impl Claim {
    /// The word in metrics and traces.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Granted(_) => "granted",
            Self::Busy(_) => "busy",
            Self::Uncoordinated => "uncoordinated",
        }
    }
}

/// Who holds a lease: a token that is its own, which begins with the id of its node.
///
/// Others may write into Redis, so this is a hint. Where the node is stands in its signed record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder(Arc<str>);

impl Holder {
    fn new(token: impl Into<Arc<str>>) -> Self {
        Self(token.into())
    }

    /// The node that holds it, if the token says one.
    pub fn node(&self) -> Option<ResourceId> {
        self.0.split('.').next()?.parse().ok()
    }

    /// What tells this lease from all others.
    pub(crate) fn token(&self) -> &str {
        &self.0
    }
}

impl Leases {
    /// For a node that shares its store with no other: it is granted everything.
    pub fn local() -> Self {
        Self(Place::Local)
    }

    /// Leases in Redis, for the nodes that share it. Redis may be away: then this node goes on without until it is back.
    ///
    /// # Errors
    /// If the configuration cannot work.
    pub async fn redis(
        config: &RedisConfig,
        node: &ResourceId,
        tasks: &Tasks,
        metrics: &Metrics,
    ) -> Result<Self, RedisConfigError> {
        let duration = metrics
            .meter("entrepot.data_plane")
            .f64_histogram("entrepot.lease.claim.duration")
            .with_unit("s")
            .with_description("How long it takes to ask for a lease, by what came of it.")
            .build();
        let redis = Redis::open(config, node, tasks, metrics).await?;
        Ok(Self(Place::Redis(Arc::new(redis), duration)))
    }

    /// Asks for the lease once: it is free, or still that of `lost`, a holder that does not work any more. So of many
    /// who have lost the same holder one succeeds it. It never fails, and takes at most a quarter of a second.
    pub async fn claim(&self, key: &LeaseKey, lost: Option<&Holder>) -> Claim {
        match &self.0 {
            Place::Local => Claim::Granted(Lease(None)),
            Place::Redis(redis, duration) => measured_claim(redis, duration, key, lost).await,
        }
    }

    /// Whether there may be other nodes that do the same work.
    pub(crate) fn are_shared(&self) -> bool {
        matches!(self.0, Place::Redis(..))
    }

    /// The line to Redis, for what else nodes share there; `None` for a node alone.
    pub(crate) fn line(&self) -> Option<Line> {
        match &self.0 {
            Place::Local => None,
            Place::Redis(redis, _) => Some(redis.line.clone()),
        }
    }

    /// Tells the end of the work that this node does under the lease with `token`; `None` if there is none.
    pub(crate) fn work(&self, token: &str) -> Option<WorkEnds> {
        match &self.0 {
            Place::Local => None,
            Place::Redis(redis, _) => redis.work(token),
        }
    }
}

#[instrument(name = "lease.claim", skip_all, fields(lease.key = %key, lease.outcome = field::Empty))]
async fn measured_claim(redis: &Redis, duration: &Histogram<f64>, key: &LeaseKey, lost: Option<&Holder>) -> Claim {
    let began = Instant::now();
    let claim = match redis.claim(key, lost).await {
        Some(Ok(held)) => Claim::Granted(Lease(Some(held))),
        Some(Err(holder)) => Claim::Busy(holder),
        None => Claim::Uncoordinated,
    };
    duration.record(began.elapsed().as_secs_f64(), &[KeyValue::new("outcome", claim.as_str())]);
    Span::current().record("lease.outcome", claim.as_str());
    claim
}

/// The right to lead, for as long as it is held. It renews itself; dropped, it is given back as soon as may be.
pub struct Lease(Option<Held>);

/// What came of giving a lease back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// It is free.
    Now,
    /// It was not ours any more, and is left alone.
    AlreadyLost,
    /// Redis does not say. If it is still ours, it runs out.
    Unknown,
}

impl Lease {
    /// Whether another may hold it by now. That is no reason to stop.
    pub fn is_lost(&self) -> bool {
        self.0.as_ref().is_some_and(Held::is_lost)
    }

    /// Gives it back, and waits until that is done.
    pub async fn release(self) -> Released {
        match self.0 {
            Some(held) => held.release().await,
            None => Released::Now,
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("lost", &self.is_lost()).finish()
    }
}
