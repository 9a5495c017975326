//! What upstreams let us ask for: one bucket for each account, which all nodes draw from by way of Redis.
//!
//! The arithmetic is the domain's (`domain/src/budget.rs`), and the same in Redis, whose clock counts there. A node alone
//! keeps its buckets in memory. So does one whose Redis is away: then each takes no more than its share of the budget.
//! Nobody asks Redis for an upstream that has no budget and tells of no limit.

mod redis;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use entrepot_domain::budget::{Admission, Bucket, Pace, Source, Told};
use entrepot_domain::{Budget, Digest, Priority, Upstream};
use entrepot_runtime::Tasks;
use entrepot_upstream::Account;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use uuid::Uuid;

use self::redis::Shared;
use crate::lease::Line;

/// How many digits tell an account from all others.
const ACCOUNT_DIGITS: usize = 32;

/// What upstreams let us ask for. Clones share it.
#[derive(Clone)]
pub(crate) struct Budgets {
    ground: Ground,
    accounts: Arc<Mutex<Accounts>>,
}

/// Accounts by the upstream and the user that it is asked as.
type Accounts = HashMap<(Uuid, String), Arc<BudgetAccount>>;

#[derive(Clone)]
struct Ground {
    /// Where nodes share buckets; `None` for a node alone.
    line: Option<Line>,
    /// How many nodes live.
    nodes: Arc<dyn Fn() -> u32 + Send + Sync>,
    tasks: Tasks,
    /// From when on time is counted.
    began: Instant,
}

/// What one upstream lets us ask for as one user.
pub(crate) struct BudgetAccount {
    ground: Ground,
    shared: Option<Shared>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What an operator has set.
    set: Option<Budget>,
    /// The limit that the upstream tells.
    told: Option<Budget>,
    /// What is left, as far as this node knows.
    bucket: Option<Bucket>,
    /// What this node asks for.
    pace: Pace,
    /// Whether Redis is being told what the upstream has said.
    is_telling: bool,
}

/// An account as the client of its upstream sees it.
pub(crate) struct AccountHandle(pub(crate) Arc<BudgetAccount>);

/// How an account stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Standing {
    pub(crate) budget: Budget,
    pub(crate) left: f64,
    /// The pace of this node.
    pub(crate) per_hour: f64,
}

impl Budgets {
    /// Budgets that nodes share by way of `line`; `nodes` says how many live.
    pub(crate) fn new(line: Option<Line>, nodes: impl Fn() -> u32 + Send + Sync + 'static, tasks: Tasks) -> Self {
        let ground = Ground { line, nodes: Arc::new(nodes), tasks, began: Instant::now() };
        Self { ground, accounts: Arc::default() }
    }

    /// The account that `upstream` is asked on. It is the same one after a change of the upstream's settings, unless it is
    /// asked as another user.
    pub(crate) fn account(&self, upstream: &Upstream) -> Arc<BudgetAccount> {
        let user = upstream.credential.as_ref().map(|credential| credential.username.clone()).unwrap_or_default();
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        // What no snapshot has any more is forgotten.
        accounts.retain(|_, account| Arc::strong_count(account) > 1);
        let key = (upstream.uid, user);
        let account = accounts.entry(key).or_insert_with_key(|(uid, user)| {
            // Others may look into Redis, and need not learn as whom we log in.
            let name = Digest::sha256(format!("{uid}\n{user}").as_bytes()).hex()[..ACCOUNT_DIGITS].to_owned();
            let shared = self.ground.line.clone().map(|line| Shared::new(line, &name));
            Arc::new(BudgetAccount { ground: self.ground.clone(), shared, state: Mutex::default() })
        });
        account.lock().set(upstream.budget);
        account.clone()
    }
}

impl BudgetAccount {
    /// Whether a request that counts may go out now for the sake of `priority`.
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

    /// How the account stands; `None` if it has no budget, and the upstream tells of no limit.
    pub(crate) async fn standing(&self) -> Option<Standing> {
        let known = self.known()?;
        let shared = match &self.shared {
            Some(shared) => shared.look(known.budget).await,
            None => None,
        };
        Some(Standing { left: shared.unwrap_or(known.left), ..known })
    }

    /// As [`Self::standing`], as far as this node knows by itself.
    pub(crate) fn known(&self) -> Option<Standing> {
        let (now, mut state) = (self.now(), self.lock());
        let (budget, _) = state.budget()?;
        let bucket = state.bucket.unwrap_or_else(|| Bucket::full(budget, now));
        Some(Standing { budget, left: bucket.refilled(budget, now).left, per_hour: state.pace.per_hour(now) })
    }

    async fn take_shared(&self, budget: Budget, priority: Priority) -> Option<(Bucket, Admission)> {
        let (left, admission) = self.shared.as_ref()?.take(budget, priority).await?;
        Some((Bucket { left, at: self.now() }, admission))
    }

    /// Takes from what this node has for itself: all if it is alone, else its share.
    fn take_own(&self, budget: Budget, priority: Priority) -> Admission {
        let budget = if self.shared.is_some() { budget.share((self.ground.nodes)()) } else { budget };
        let (now, mut state) = (self.now(), self.lock());
        let bucket = state.bucket.unwrap_or_else(|| Bucket::full(budget, now));
        let (bucket, admission) = bucket.take(budget, priority, now);
        state.bucket = Some(bucket);
        admission
    }

    fn now(&self) -> u64 {
        u64::try_from(self.ground.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn told(&self, told: Told) {
        let account = &self.0;
        let (now, mut state) = (account.now(), account.lock());
        state.told = Some(told.budget);
        let Some((budget, source)) = state.budget() else { return };
        let bucket = state.bucket.unwrap_or_else(|| Bucket::full(budget, now));
        state.bucket = Some(bucket.told(budget, told.remaining, source, now));
        // One at a time: what is said next says more.
        if account.shared.is_some() && !std::mem::replace(&mut state.is_telling, true) {
            let account = account.clone();
            self.0.ground.tasks.spawn("budget", async move {
                if let Some(shared) = &account.shared {
                    shared.tell(budget, told.remaining, source).await;
                }
                account.lock().is_telling = false;
            });
        }
    }
}

impl State {
    /// The budget, and who says it: an operator before the upstream.
    fn budget(&self) -> Option<(Budget, Source)> {
        let set = self.set.map(|budget| (budget, Source::Operator));
        set.or_else(|| self.told.map(|budget| (budget, Source::Upstream)))
    }

    fn set(&mut self, budget: Option<Budget>) {
        if self.set != budget {
            (self.set, self.bucket) = (budget, None);
        }
    }
}
