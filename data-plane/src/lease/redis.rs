//! Leases in Redis: a key with the token of the holder, which expires by itself.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_runtime::{Metrics, Tasks};
use opentelemetry::metrics::Counter;
use parking_lot::Mutex;
use redis::Script;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::debug;
use uuid::Uuid;

use super::client::RedisClient;
use super::config::{RedisConfig, RedisConfigError};
use super::{Holder, LeaseKey, Released};

/// How long a lease lives if it is not renewed.
const TIME_TO_LIVE: Duration = Duration::from_secs(15);
/// How often a lease is renewed.
const RENEW: Duration = Duration::from_secs(5);
/// How soon a failed renewal is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long after the beginning of the last successful renewal a lease counts as lost: well before another node can
/// have it.
const LOST: Duration = Duration::from_secs(12);

/// The leases of one holder: this run of this node.
pub(super) struct Redis {
    pub(super) client: RedisClient,
    /// The beginning of every token.
    holder: String,
    tasks: Tasks,
    lost: Counter<u64>,
    works: Works,
}

/// This node's work by the token of the lease under which it began, whether the lease is still held or not.
type Works = Arc<Mutex<HashMap<String, WorkEnds>>>;

/// Closes when the work has ended.
pub(crate) type WorkEnds = watch::Receiver<()>;

impl Redis {
    pub(super) async fn open(
        config: &RedisConfig,
        node: &ResourceId,
        tasks: &Tasks,
        metrics: &Metrics,
    ) -> Result<Self, RedisConfigError> {
        let client = RedisClient::open(config, tasks, metrics).await?;
        let lost = metrics
            .meter("entrepot.data_plane")
            .u64_counter("entrepot.lease.lost")
            .with_description("Leases that this node held and could not keep.")
            .build();
        // After a restart, the node is another holder: it no longer works on what it held before.
        let holder = format!("{node}.{}", Uuid::new_v4().simple());
        Ok(Self { client, holder, tasks: tasks.clone(), lost, works: Works::default() })
    }

    /// Takes the lease, if it is free or `lost` still holds it. Otherwise returns the holder; `None` if Redis does not
    /// answer.
    pub(super) async fn claim(&self, key: &LeaseKey, lost: Option<&Holder>) -> Option<Result<Held, Holder>> {
        /// Sets the key to our token, unless it holds a token other than that of the lost holder. Returns the token.
        static CLAIM: LazyLock<Script> = LazyLock::new(|| {
            Script::new(
                "local holder = redis.call('GET', KEYS[1]) \
                 if holder and holder ~= ARGV[3] then return holder end \
                 redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return false",
            )
        });
        let token = format!("{}.{}", self.holder, Uuid::new_v4().simple());
        let began = Instant::now();
        let mut claim = CLAIM.key(key.as_str());
        claim.arg(&token).arg(millis(TIME_TO_LIVE)).arg(lost.map_or("", Holder::token));
        // A claim without an answer may have succeeded. It blocks others no longer than a dead node's lease would.
        let holder: Option<String> = self.client.run(async |redis| claim.invoke_async(redis).await).await?;
        Some(match holder {
            Some(holder) => Err(Holder::new(holder)),
            None => Ok(self.keep(key, token, began)),
        })
    }

    /// Signals the end of the work under a lease.
    pub(super) fn work(&self, token: &str) -> Option<WorkEnds> {
        self.works.lock().get(token).cloned()
    }

    /// Renews a lease until it is let go, and then gives it back.
    fn keep(&self, key: &LeaseKey, token: String, began: Instant) -> Held {
        let (holding, let_go) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let work = Work::begin(&self.works, &token);
        let keeper = Keeper { client: self.client.clone(), key: key.clone(), token, lost: self.lost.clone() };
        self.tasks.spawn("lease", async move {
            let _ = ended.send(keeper.keep(began, let_go).await);
        });
        Held { holding, end, _work: work }
    }
}

/// The holder's side of a lease in Redis. Dropping it gives the lease back.
pub(super) struct Held {
    holding: oneshot::Sender<Infallible>,
    end: oneshot::Receiver<Released>,
    _work: Work,
}

/// Work under a lease, until this is dropped.
struct Work {
    works: Works,
    token: String,
    _ends: watch::Sender<()>,
}

impl Work {
    fn begin(works: &Works, token: &str) -> Self {
        let (ends, ended) = watch::channel(());
        works.lock().insert(token.to_owned(), ended);
        Self { works: works.clone(), token: token.to_owned(), _ends: ends }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.works.lock().remove(&self.token);
    }
}

impl Held {
    /// Whether its keeper has given up.
    pub(super) fn is_lost(&self) -> bool {
        self.holding.is_closed()
    }

    pub(super) async fn release(self) -> Released {
        drop(self.holding);
        // If the keeper was torn down with its process, the lease expires.
        self.end.await.unwrap_or(Released::Unknown)
    }
}

/// Renews one lease until it is let go or lost.
struct Keeper {
    client: RedisClient,
    key: LeaseKey,
    token: String,
    lost: Counter<u64>,
}

impl Keeper {
    async fn keep(self, began: Instant, mut let_go: oneshot::Receiver<Infallible>) -> Released {
        let (mut good, mut next) = (began, began + RENEW);
        loop {
            tokio::select! {
                biased;
                _ = &mut let_go => return self.release().await,
                () = sleep_until(next.min(good + LOST)) => {}
            }
            let now = Instant::now();
            if now >= good + LOST {
                break;
            }
            match self.renew().await {
                Some(true) => (good, next) = (now, now + RENEW),
                Some(false) => break,
                None => next = Instant::now() + RETRY,
            }
        }
        debug!(lease.key = %self.key, "the lease `{}` is lost; its holder goes on all the same", self.key);
        self.lost.add(1, &[]);
        Released::AlreadyLost
    }

    /// Renews the lease. Returns whether it is still ours; `None` if Redis does not answer.
    async fn renew(&self) -> Option<bool> {
        /// Extends the key's life, if it still holds our token.
        static RENEW: LazyLock<Script> = LazyLock::new(|| {
            Script::new(
                "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0",
            )
        });
        let mut renew = RENEW.key(self.key.as_str());
        renew.arg(&self.token).arg(millis(TIME_TO_LIVE));
        self.client.run(async |redis| renew.invoke_async(redis).await).await
    }

    /// Gives the lease back. If it has passed to another node, it is left alone.
    async fn release(&self) -> Released {
        /// Deletes the key, if it still holds our token.
        static RELEASE: LazyLock<Script> = LazyLock::new(|| {
            Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0")
        });
        let mut release = RELEASE.key(self.key.as_str());
        release.arg(&self.token);
        match self.client.run(async |redis| release.invoke_async(redis).await).await {
            Some(true) => Released::Now,
            Some(false) => Released::AlreadyLost,
            None => Released::Unknown,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
