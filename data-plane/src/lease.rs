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
use std::time::Duration;

use entrepot_domain::{Digest, Reference, RepositoryName, ResourceId};
use entrepot_runtime::{Metrics, Tasks};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Histogram;
use tokio::time::Instant;
use tracing::{Span, field, instrument};
use uuid::Uuid;

pub use config::{RedisConfig, RedisConfigError, RedisMode, RedisServer};

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
pub struct Leases {
    place: Place,
    patience: Duration,
}

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
    Busy,
    /// Nobody can say. Go on without.
    Uncoordinated,
}

impl Claim {
    /// The word in metrics and traces.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Granted(_) => "granted",
            Self::Busy => "busy",
            Self::Uncoordinated => "uncoordinated",
        }
    }
}

impl Leases {
    /// How long a node waits for another node's work, unless it is told otherwise.
    pub const PATIENCE: Duration = Duration::from_secs(10);

    /// For a node that shares its store with no other: it is granted everything.
    pub fn local() -> Self {
        Self { place: Place::Local, patience: Self::PATIENCE }
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
        Ok(Self { place: Place::Redis(Arc::new(redis), duration), patience: Self::PATIENCE })
    }

    /// With another limit to how long a node waits for another node's work.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Asks for the lease once. It never fails, and takes at most a quarter of a second.
    pub async fn claim(&self, key: &LeaseKey) -> Claim {
        match &self.place {
            Place::Local => Claim::Granted(Lease(None)),
            Place::Redis(redis, duration) => measured_claim(redis, duration, key).await,
        }
    }

    /// Begins to wait for another node's work.
    pub(crate) fn patience(&self) -> Patience {
        Patience { until: Instant::now() + self.patience, pause: Patience::SHORTEST }
    }
}

#[instrument(name = "lease.claim", skip_all, fields(lease.key = %key, lease.outcome = field::Empty))]
async fn measured_claim(redis: &Redis, duration: &Histogram<f64>, key: &LeaseKey) -> Claim {
    let began = Instant::now();
    let claim = match redis.claim(key).await {
        Some(Some(held)) => Claim::Granted(Lease(Some(held))),
        Some(None) => Claim::Busy,
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

/// How long to wait for another node's work, and how often to look meanwhile.
#[derive(Debug)]
pub(crate) struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    /// The first pause: many manifests are there after it.
    const SHORTEST: Duration = Duration::from_millis(25);
    /// The last ones: each look is a question to the store, and one to Redis.
    const LONGEST: Duration = Duration::from_millis(250);

    /// Lets a moment pass. Returns whether there is patience left for another one.
    pub(crate) async fn wait(&mut self) -> bool {
        let left = self.until.saturating_duration_since(Instant::now());
        tokio::time::sleep(self.pause.min(left)).await;
        self.pause = (self.pause * 2).min(Self::LONGEST);
        Instant::now() < self.until
    }
}
