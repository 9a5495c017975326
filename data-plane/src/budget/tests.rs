//! Buckets with and without a real Redis.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::budget::{Admission, Bucket, ReportedLimit, Source};
use entrepot_domain::upstream::{Credential, Endpoint, PlainHttp};
use entrepot_domain::{Budget, Digest, Priority, Secret, Upstream, UpstreamKind};
use entrepot_runtime::{Metrics, Tasks};
use entrepot_test_support::redis::{Login, Options};
use entrepot_test_support::{Redis, wait_until};
use entrepot_upstream::Account as _;

use super::redis::Shared;
use super::{AccountHandle, BudgetAccount, Budgets};
use crate::lease::{Claim, LeaseKey, Leases, RedisConfig, RedisMode};

const LIMIT: Duration = Duration::from_secs(30);
const PASSWORD: &str = "hunter22";
/// The permissions that docs/operate.md gives to a node's user.
const RULES: &str = "~f:* ~t:* ~b:* +ping +set +get +del +pexpire +time +evalsha +script|load";

/// A budget so slow that nothing is regained during a test.
fn budget(requests: u32) -> Budget {
    Budget { requests: NonZeroU32::new(requests).unwrap(), window: entrepot_domain::budget::LONGEST_WINDOW }
}

fn upstream(budget: Option<Budget>) -> Upstream {
    Upstream {
        uid: uuid::Uuid::from_u128(7),
        id: "hub".parse().unwrap(),
        kind: UpstreamKind::DockerHub,
        endpoint: Endpoint::parse("https://hub.example", PlainHttp::Refused).unwrap(),
        allow_private_addresses: false,
        allow_hosts: Vec::new(),
        ca_certificates: String::new(),
        credential: Some(Credential { username: "puller".into(), password: Secret::new("secret-1".into()) }),
        budget,
        fallback_endpoints: Vec::new(),
        revision: 1,
    }
}

async fn start_redis() -> Redis {
    let login = Login::User { name: "entrepot".into(), password: PASSWORD.into(), rules: RULES.into() };
    Redis::start_with(Options { login: Some(login), ..Options::default() }).await
}

/// A node, as far as budgets are concerned.
struct Node {
    leases: Leases,
    budgets: Budgets,
    tasks: Tasks,
}

impl Node {
    async fn start(id: &str, redis: &Redis) -> Self {
        let config = RedisConfig {
            mode: RedisMode::Single,
            servers: vec![redis.url().parse().unwrap()],
            username: Some("entrepot".into()),
            password: Some(Secret::new(PASSWORD.into())),
            sentinel_master: None,
            sentinel_password: None,
            ca: None,
        };
        let tasks = Tasks::new();
        let leases = Leases::redis(&config, &id.parse().unwrap(), &tasks, &Metrics::new("test")).await.unwrap();
        let budgets = Budgets::new(leases.redis_client(), || 2, tasks.clone());
        Self { leases, budgets, tasks }
    }

    fn account(&self, budget: Option<Budget>) -> Arc<BudgetAccount> {
        self.budgets.account(&upstream(budget))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

#[tokio::test]
async fn a_redis_that_does_not_let_budgets_in_still_has_leases() {
    let rules = RULES.replace("~b:* ", "").replace("+time ", "");
    let login = Login::User { name: "entrepot".into(), password: PASSWORD.into(), rules };
    let redis = Redis::start_with(Options { login: Some(login), ..Options::default() }).await;
    let node = Node::start("node-1", &redis).await;
    let account = node.account(Some(budget(100)));
    let key = LeaseKey::content(uuid::Uuid::nil(), &Digest::sha256(b"content"));
    for _ in 0..3 {
        assert_eq!(admitted(&account, Priority::Sync, 5).await, 5, "its share");
        assert!(matches!(node.leases.claim(&key, None).await, Claim::Granted(_)));
    }
}

/// How many requests are admitted until one is refused, or `most`.
async fn admitted(account: &BudgetAccount, priority: Priority, most: u32) -> u32 {
    for count in 0..most {
        if account.admit(priority).await != Admission::Admitted {
            return count;
        }
    }
    most
}

#[tokio::test]
async fn redis_pours_as_the_domain_does() {
    let redis = start_redis().await;
    let node = Node::start("node-1", &redis).await;
    let (shared, budget) = (Shared::new(node.leases.redis_client().unwrap(), "pours"), budget(50));
    let mut bucket = Bucket::full(budget, 0);
    let is_close = |redis: f64, domain: f64| (redis - domain).abs() < 0.01;
    for step in 0..120_u32 {
        let priority = [Priority::Pull, Priority::Sync, Priority::Warm][step as usize % 3];
        let (next, admission) = bucket.take(budget, priority, 0);
        bucket = next;
        let (left, taken) = shared.take(budget, priority).await.unwrap();
        assert!(is_close(left, bucket.left), "step {step}: {left} and {bucket:?}");
        assert_eq!(taken == Admission::Admitted, admission == Admission::Admitted, "step {step}");
        if step % 40 == 20 {
            let source = if step < 60 { Source::Operator } else { Source::Upstream };
            for remaining in [45, 3, 30] {
                bucket = bucket.with_reported(budget, remaining, source, 0);
                shared.tell(budget, remaining, source).await;
                let left = shared.read_left(budget).await.unwrap();
                assert!(is_close(left, bucket.left), "step {step}, told {remaining}: {left} and {bucket:?}");
            }
        }
    }
    let key = redis.dump().await;
    assert!(!key.contains("puller") && !key.contains("secret"), "{key}");
}

#[tokio::test]
async fn nodes_use_up_one_budget_and_clients_never_wait_for_it() {
    let redis = start_redis().await;
    let (one, two) = (Node::start("node-1", &redis).await, Node::start("node-2", &redis).await);
    let (first, second) = (one.account(Some(budget(100))), two.account(Some(budget(100))));
    assert_eq!(admitted(&first, Priority::Warm, 30).await, 30);
    assert_eq!(admitted(&second, Priority::Warm, 100).await, 20, "half of it is not for warming");
    assert_eq!(admitted(&first, Priority::Sync, 100).await, 30, "a fifth is for clients");
    let Admission::NotBefore(wait) = second.admit(Priority::Sync).await else { panic!("admitted") };
    assert!(wait > Duration::ZERO && wait < budget(100).window, "{wait:?}");
    for account in [&first, &second] {
        assert_eq!(admitted(account, Priority::Pull, 100).await, 100);
    }
    let state = second.shared_state().await.unwrap();
    assert!(state.left < 1.0 && state.per_hour > 0.0, "{state:?}");
    // Another user name has another account.
    let other = Upstream { credential: None, ..upstream(Some(budget(100))) };
    assert_eq!(admitted(&two.budgets.account(&other), Priority::Sync, 100).await, 80);
}

#[tokio::test]
async fn a_node_whose_redis_is_away_takes_its_share_and_no_more() {
    let redis = start_redis().await;
    let (one, two) = (Node::start("node-1", &redis).await, Node::start("node-2", &redis).await);
    let (first, second) = (one.account(Some(budget(100))), two.account(Some(budget(100))));
    redis.stop().await;
    // A broken connection is noticed when it is used.
    assert_eq!(admitted(&first, Priority::Sync, 100).await, 40);
    assert_eq!(admitted(&second, Priority::Warm, 100).await, 25);
    assert_eq!(admitted(&first, Priority::Pull, 100).await, 100);
    redis.start_again().await;
    wait_until(LIMIT, "the budget is shared again", async || first.admit(Priority::Sync).await == Admission::Admitted)
        .await;
}

#[tokio::test]
async fn a_limit_that_the_upstream_tells_is_kept_to_by_all_nodes_that_have_heard_of_it() {
    let redis = start_redis().await;
    let (one, two) = (Node::start("node-1", &redis).await, Node::start("node-2", &redis).await);
    let (first, second) = (one.account(None), two.account(None));
    assert_eq!(admitted(&first, Priority::Warm, 200).await, 200, "without a budget nothing is held back");
    assert_eq!(redis.dump().await, "", "and nobody asks Redis");
    let told = |remaining| ReportedLimit { budget: budget(100), remaining };
    AccountHandle(first.clone()).observe(told(22));
    wait_until(LIMIT, "what was told is shared", async || !redis.dump().await.is_empty()).await;
    AccountHandle(second.clone()).observe(told(22));
    wait_until(LIMIT, "that, too", async || ![&first, &second].iter().any(|account| account.lock().is_sharing)).await;
    assert!(second.shared_state().await.is_some_and(|state| state.left < 22.1));
    assert_eq!(admitted(&first, Priority::Sync, 100).await + admitted(&second, Priority::Sync, 100).await, 2);
}

#[tokio::test]
async fn a_node_alone_keeps_its_buckets_in_memory_also_over_a_change_of_settings() {
    let budgets = Budgets::new(None, || 1, Tasks::new());
    let account = budgets.account(&upstream(Some(budget(100))));
    assert_eq!(admitted(&account, Priority::Sync, 100).await, 80);
    let again = budgets.account(&Upstream { revision: 2, ..upstream(Some(budget(100))) });
    assert_eq!(admitted(&again, Priority::Sync, 100).await, 0, "it is the same account");
    let larger = budgets.account(&upstream(Some(budget(200))));
    assert_eq!(admitted(&larger, Priority::Sync, 200).await, 160);
    assert!(account.own_state().is_some_and(|known| known.budget == budget(200)));
}
