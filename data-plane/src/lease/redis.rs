//! Leases in Redis: a key that holds the token of whoever has the lease, and that runs out by itself.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use entrepot_domain::ResourceId;
use entrepot_runtime::{Metrics, Tasks};
use opentelemetry::metrics::Counter;
use redis::Script;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::debug;
use uuid::Uuid;

use super::config::{RedisConfig, RedisConfigError};
use super::line::Line;
use super::{Holder, LeaseKey, Released};

/// How long a lease lives when nobody renews it.
const TIME_TO_LIVE: Duration = Duration::from_secs(15);
/// How often a lease is renewed.
const RENEW: Duration = Duration::from_secs(5);
/// How soon it is tried again to renew a lease.
const RETRY: Duration = Duration::from_secs(1);
/// How long after the beginning of the last good renewal a lease counts as lost: well before it can be another's.
const LOST: Duration = Duration::from_secs(12);

/// Leases of one holder: this start of this node.
pub(super) struct Redis {
    pub(super) line: Line,
    /// Begins every token.
    holder: String,
    tasks: Tasks,
    lost: Counter<u64>,
    works: Works,
}

/// What this node does, by the tokens of the leases that it does it under, whether it still has them or not.
type Works = Arc<Mutex<HashMap<String, WorkEnds>>>;

/// Closes when some work has ended.
pub(crate) type WorkEnds = watch::Receiver<()>;

impl Redis {
    pub(super) async fn open(
        config: &RedisConfig,
        node: &ResourceId,
        tasks: &Tasks,
        metrics: &Metrics,
    ) -> Result<Self, RedisConfigError> {
        let line = Line::open(config, tasks, metrics).await?;
        let lost = metrics
            .meter("entrepot.data_plane")
            .u64_counter("entrepot.lease.lost")
            .with_description("Leases that this node held and could not keep.")
            .build();
        // The same node after a restart is another holder: what it held before, it no longer works on.
        let holder = format!("{node}.{}", Uuid::new_v4().simple());
        Ok(Self { line, holder, tasks: tasks.clone(), lost, works: Works::default() })
    }

    /// Takes the lease, if nobody has it or `lost` still has. Says who has it otherwise; `None` if Redis does not say.
    pub(super) async fn claim(&self, key: &LeaseKey, lost: Option<&Holder>) -> Option<Result<Held, Holder>> {
        /// Sets the key to our token, unless it holds another than that of the holder that is lost; says which.
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
        // One that is not answered may be carried out all the same. It blocks others no longer than a dead node's.
        let holder: Option<String> = self.line.run(async |redis| claim.invoke_async(redis).await).await?;
        Some(match holder {
            Some(holder) => Err(Holder::new(holder)),
            None => Ok(self.keep(key, token, began)),
        })
    }

    /// Tells the end of what is done under a lease.
    pub(super) fn work(&self, token: &str) -> Option<WorkEnds> {
        lock(&self.works).get(token).cloned()
    }

    /// Has a lease renewed, and given back when it is let go.
    fn keep(&self, key: &LeaseKey, token: String, began: Instant) -> Held {
        let (holding, let_go) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let work = Work::begin(&self.works, &token);
        let keeper = Keeper { line: self.line.clone(), key: key.clone(), token, lost: self.lost.clone() };
        self.tasks.spawn("lease", async move {
            let _ = ended.send(keeper.keep(began, let_go).await);
        });
        Held { holding, end, _work: work }
    }
}

/// The holder's end of a lease in Redis. Dropping it gives the lease back.
pub(super) struct Held {
    holding: oneshot::Sender<Infallible>,
    end: oneshot::Receiver<Released>,
    _work: Work,
}

/// Some work under a lease, until it is dropped.
struct Work {
    works: Works,
    token: String,
    _ends: watch::Sender<()>,
}

impl Work {
    fn begin(works: &Works, token: &str) -> Self {
        let (ends, ended) = watch::channel(());
        lock(works).insert(token.to_owned(), ended);
        Self { works: works.clone(), token: token.to_owned(), _ends: ends }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        lock(&self.works).remove(&self.token);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Held {
    /// Whether its keeper has given up.
    pub(super) fn is_lost(&self) -> bool {
        self.holding.is_closed()
    }

    pub(super) async fn release(self) -> Released {
        drop(self.holding);
        // A keeper that was torn down with its process leaves the lease to run out.
        self.end.await.unwrap_or(Released::Unknown)
    }
}

/// Renews one lease until it is let go or lost.
struct Keeper {
    line: Line,
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

    /// Whether the lease is still ours; `None` if Redis does not say.
    async fn renew(&self) -> Option<bool> {
        /// Lets the key live on, if it still holds our token.
        static RENEW: LazyLock<Script> = LazyLock::new(|| {
            Script::new(
                "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0",
            )
        });
        let mut renew = RENEW.key(self.key.as_str());
        renew.arg(&self.token).arg(millis(TIME_TO_LIVE));
        self.line.run(async |redis| renew.invoke_async(redis).await).await
    }

    /// Gives the lease back. One that has passed to another node is left alone.
    async fn release(&self) -> Released {
        /// Deletes the key, if it still holds our token.
        static RELEASE: LazyLock<Script> = LazyLock::new(|| {
            Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0")
        });
        let mut release = RELEASE.key(self.key.as_str());
        release.arg(&self.token);
        match self.line.run(async |redis| release.invoke_async(redis).await).await {
            Some(true) => Released::Now,
            Some(false) => Released::AlreadyLost,
            None => Released::Unknown,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
