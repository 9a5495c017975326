//! Budgets of requests to upstreams: one bucket for each account, which all nodes share through Redis.
//!
//! The arithmetic is in `domain/src/budget.rs`; Redis does the same arithmetic, by its own clock. A single node keeps
//! its buckets in memory. While Redis is away, each node keeps its own bucket, too, and takes no more than its share of
//! the budget. Redis is not asked about an upstream without a budget or reported limit.

mod redis;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::budget::{Admission, Bucket, Pace, ReportedLimit, Source};
use entrepot_domain::{Budget, Digest, Priority, Upstream};
use entrepot_runtime::Tasks;
use entrepot_upstream::Account;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use uuid::Uuid;

use self::redis::Shared;
use crate::lease::RedisClient;

/// The number of hex digits in an account's name.
const ACCOUNT_DIGITS: usize = 32;

/// The budgets of all upstreams. Clones share them.
#[derive(Clone)]
pub(crate) struct Budgets {
    deps: BudgetDeps,
    accounts: Arc<Mutex<Accounts>>,
}

/// Accounts by the upstream and the user name that it is asked with.
type Accounts = HashMap<(Uuid, String), Arc<BudgetAccount>>;

#[derive(Clone)]
struct BudgetDeps {
    /// Where nodes share buckets; `None` if this is the only node.
    redis: Option<RedisClient>,
    /// Returns how many nodes are alive.
    nodes: Arc<dyn Fn() -> u32 + Send + Sync>,
    tasks: Tasks,
    /// The origin of time.
    began: Instant,
}

/// The budget of one upstream for one user name.
pub(crate) struct BudgetAccount {
    deps: BudgetDeps,
    shared: Option<Shared>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The budget that an operator has set.
    set: Option<Budget>,
    /// The limit that the upstream reports.
    reported: Option<Budget>,
    /// What is left, as far as this node knows.
    bucket: Option<Bucket>,
    /// The pace of this node's requests.
    pace: Pace,
    /// Whether the upstream's report is being passed on to Redis.
    is_sharing: bool,
}

/// The account in the form that the upstream's client needs.
pub(crate) struct AccountHandle(pub(crate) Arc<BudgetAccount>);

/// What is left of a budget, and how fast this node uses it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BudgetState {
    pub(crate) budget: Budget,
    pub(crate) left: f64,
    /// This node's requests per hour.
    pub(crate) per_hour: f64,
}

impl Budgets {
    /// Budgets that nodes share through `redis`; `nodes` returns how many are alive.
    pub(crate) fn new(
        redis: Option<RedisClient>,
        nodes: impl Fn() -> u32 + Send + Sync + 'static,
        tasks: Tasks,
    ) -> Self {
        let deps = BudgetDeps { redis, nodes: Arc::new(nodes), tasks, began: Instant::now() };
        Self { deps, accounts: Arc::default() }
    }

    /// The account for `upstream`. It stays the same when the upstream's settings change, unless the user name changes.
    pub(crate) fn account(&self, upstream: &Upstream) -> Arc<BudgetAccount> {
        let user = upstream.credential.as_ref().map(|credential| credential.username.clone()).unwrap_or_default();
        let mut accounts = self.accounts.lock();
        // Accounts that no snapshot refers to any more are dropped.
        accounts.retain(|_, account| Arc::strong_count(account) > 1);
        let key = (upstream.uid, user);
        let account = accounts.entry(key).or_insert_with_key(|(uid, user)| {
            // Others may be able to read Redis, and should not learn the user name.
            let name = Digest::sha256(format!("{uid}\n{user}").as_bytes()).hex()[..ACCOUNT_DIGITS].to_owned();
            let shared = self.deps.redis.clone().map(|redis| Shared::new(redis, &name));
            Arc::new(BudgetAccount { deps: self.deps.clone(), shared, state: Mutex::default() })
        });
        account.lock().set(upstream.budget);
        account.clone()
    }
}

impl BudgetAccount {
    /// Asks to send a counted request now, with this `priority`.
    pub(crate) async fn admit(&self, priority: Priority) -> Admission {
        let (now, budget) = {
            let state = self.lock();
            (self.now(), state.budget())
        };
        let admission = match budget {
            None => Admission::Admitted,
            Some((budget, _)) => match self.take_shared(budget, priority).await {
                Some((bucket, admission)) => {
                    self.lock().bucket = Some(bucket);
                    admission
                }
                None => self.take_own(budget, priority),
            },
        };
        if admission == Admission::Admitted {
            self.lock().pace.count(now);
        }
        admission
    }

    /// What is left of the budget for all nodes; `None` if there is no budget and the upstream reports no limit.
    pub(crate) async fn shared_state(&self) -> Option<BudgetState> {
        let known = self.own_state()?;
        let shared = match &self.shared {
            Some(shared) => shared.read_left(known.budget).await,
            None => None,
        };
        Some(BudgetState { left: shared.unwrap_or(known.left), ..known })
    }

    /// As [`Self::shared_state`], but only as far as this node knows.
    pub(crate) fn own_state(&self) -> Option<BudgetState> {
        let (now, mut state) = (self.now(), self.lock());
        let (budget, _) = state.budget()?;
        let bucket = state.bucket.unwrap_or_else(|| Bucket::full(budget, now));
        Some(BudgetState { budget, left: bucket.refilled(budget, now).left, per_hour: state.pace.per_hour(now) })
    }

    async fn take_shared(&self, budget: Budget, priority: Priority) -> Option<(Bucket, Admission)> {
        let (left, admission) = self.shared.as_ref()?.take(budget, priority).await?;
        Some((Bucket { left, at: self.now() }, admission))
    }

    /// Takes a request from this node's own bucket: the whole budget if it is the only node, else its share.
    fn take_own(&self, budget: Budget, priority: Priority) -> Admission {
        let budget = if self.shared.is_some() { budget.share((self.deps.nodes)()) } else { budget };
        let (now, mut state) = (self.now(), self.lock());
        let bucket = state.bucket.unwrap_or_else(|| Bucket::full(budget, now));
        let (bucket, admission) = bucket.take(budget, priority, now);
        state.bucket = Some(bucket);
        admission
    }

    fn now(&self) -> u64 {
        u64::try_from(self.deps.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Account for AccountHandle {
    fn admit(&self, priority: Priority) -> BoxFuture<'_, Result<(), Duration>> {
        async move {
            match self.0.admit(priority).await {
                Admission::Admitted => Ok(()),
                Admission::NotBefore(wait) => Err(wait),
            }
        }
        .boxed()
    }

    fn observe(&self, reported: ReportedLimit) {
        let account = &self.0;
        let (now, mut state) = (account.now(), account.lock());
        state.reported = Some(reported.budget);
        let Some((budget, source)) = state.budget() else { return };
        let bucket = state.bucket.unwrap_or_else(|| Bucket::full(budget, now));
        state.bucket = Some(bucket.with_reported(budget, reported.remaining, source, now));
        // Only one report at a time: the next one is more recent anyway.
        if account.shared.is_some() && !std::mem::replace(&mut state.is_sharing, true) {
            let account = account.clone();
            self.0.deps.tasks.spawn("budget", async move {
                if let Some(shared) = &account.shared {
                    shared.tell(budget, reported.remaining, source).await;
                }
                account.lock().is_sharing = false;
            });
        }
    }
}

impl State {
    /// The budget and its source: an operator's budget comes before the upstream's report.
    fn budget(&self) -> Option<(Budget, Source)> {
        let set = self.set.map(|budget| (budget, Source::Operator));
        set.or_else(|| self.reported.map(|budget| (budget, Source::Upstream)))
    }

    fn set(&mut self, budget: Option<Budget>) {
        if self.set != budget {
            (self.set, self.bucket) = (budget, None);
        }
    }
}
