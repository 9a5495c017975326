//! Leases, which decide which node leads a fill.
//!
//! A lease only saves work and protects nothing. It may be lost at any moment, and its holder need not even notice:
//! content is addressed by digest, and records are replaced only if they are still as they were read. So while Redis is
//! away, slow or wrong, nodes work without leases: each leads its own fills, and at worst something is fetched twice.

mod client;
mod config;
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

pub(crate) use self::client::RedisClient;
pub(crate) use self::redis::WorkEnds;
use self::redis::{Held, Redis};

/// The key of a lease. It contains only hashes, since others may be able to read Redis.
///
/// Two nodes use the same key for the same work. The braces keep the key in one slot of Redis Cluster, even if
/// something is added to it one day.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseKey(Arc<str>);

impl LeaseKey {
    /// The key for content under one origin (the rule, and where it points).
    pub fn content(origin: Uuid, digest: &Digest) -> Self {
        Self(format!("f:{origin}:{{{digest}}}").into())
    }

    /// The key for the meaning of a reference in a repository: a tag's manifest, or the content with a digest.
    pub fn reference(origin: Uuid, repository: &RepositoryName, reference: &Reference) -> Self {
        match reference {
            Reference::Tag(tag) => Self(format!("t:{origin}:{{{repository}:{tag}}}").into()),
            Reference::Digest(digest) => Self::content(origin, digest),
        }
    }

    /// The key for the list of a repository's tags.
    pub fn tags(origin: Uuid, repository: &RepositoryName) -> Self {
        Self(format!("l:{origin}:{{{repository}}}").into())
    }

    /// The key for the list of a manifest's referrers.
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

/// The leases of this node. Clones share them.
#[derive(Clone)]
pub struct Leases(Place);

#[derive(Clone)]
enum Place {
    /// A single node leads everything. Its table of running work is enough.
    Local,
    Redis(Arc<Redis>, Histogram<f64>),
}

/// The result of a claim.
#[derive(Debug)]
pub enum Claim {
    /// The lease is ours.
    Granted(Lease),
    /// Another node holds it.
    Busy(Holder),
    /// Leases are unavailable. Continue without.
    Uncoordinated,
}

impl Claim {
    /// The name in metrics and traces.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Granted(_) => "granted",
            Self::Busy(_) => "busy",
            Self::Uncoordinated => "uncoordinated",
        }
    }
}

/// The holder of a lease, identified by a token that begins with the id of its node.
///
/// Others may be able to write to Redis, so this is only a hint. The node's address comes from its signed record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder(Arc<str>);

impl Holder {
    fn new(token: impl Into<Arc<str>>) -> Self {
        Self(token.into())
    }

    /// The node that holds it, if the token names one.
    pub fn node(&self) -> Option<ResourceId> {
        self.0.split('.').next()?.parse().ok()
    }

    /// Identifies the lease among all others.
    pub(crate) fn token(&self) -> &str {
        &self.0
    }
}

impl Leases {
    /// Leases for the only node of a store: every claim is granted.
    pub fn local() -> Self {
        Self(Place::Local)
    }

    /// Leases in Redis, for the nodes that share it. While Redis is away, this node continues without leases.
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

    /// Asks for the lease once. It is granted if it is free, or still held by `lost`, a holder that no longer works. So
    /// if many nodes have lost the same holder, one of them succeeds it. This never fails, and takes at most a quarter
    /// of a second.
    pub async fn claim(&self, key: &LeaseKey, lost: Option<&Holder>) -> Claim {
        match &self.0 {
            Place::Local => Claim::Granted(Lease(None)),
            Place::Redis(redis, duration) => measured_claim(redis, duration, key, lost).await,
        }
    }

    /// Whether other nodes may do the same work.
    pub(crate) fn are_shared(&self) -> bool {
        matches!(self.0, Place::Redis(..))
    }

    /// The client of Redis, for other data that nodes share there; `None` for a single node.
    pub(crate) fn redis_client(&self) -> Option<RedisClient> {
        match &self.0 {
            Place::Local => None,
            Place::Redis(redis, _) => Some(redis.client.clone()),
        }
    }

    /// Signals the end of this node's work under the lease with `token`; `None` if there is no such work.
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

/// A held lease, which renews itself. When it is dropped, it is given back soon.
pub struct Lease(Option<Held>);

/// The result of giving a lease back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// It is free.
    Now,
    /// It no longer belonged to us, and was left alone.
    AlreadyLost,
    /// Redis did not answer. If it still belongs to us, it will expire.
    Unknown,
}

impl Lease {
    /// Whether another node may hold it by now. This is not a reason to stop.
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
