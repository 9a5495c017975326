//! Leases in a real Redis: who gets them, who loses them, and what it costs when Redis is away, slow or replaced.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::time::{Duration, Instant};

use entrepot_data_plane::lease::{Claim, Lease, LeaseKey, Leases, RedisConfig, RedisMode, Released};
use entrepot_domain::{Digest, RepositoryName, Secret};
use entrepot_runtime::{Metrics, Tasks};
use entrepot_test_support::redis::{Login, Options};
use entrepot_test_support::tls::Authority;
use entrepot_test_support::{Redis, RedisCluster, RedisSentinels, wait_until};
use parking_lot::Mutex;
use uuid::Uuid;

/// The limit of every wait: longer than a lease lives.
const LIMIT: Duration = Duration::from_secs(30);
/// The time that a claim must not exceed, whatever the state of Redis. The limit of a claim is a quarter of a second,
/// but the machine may be busy.
const SLOW: Duration = Duration::from_millis(150);
/// How often leases are claimed while Redis is away.
const CLAIM_PACE: Duration = Duration::from_millis(1);

/// A node, as far as leases are concerned.
struct Node {
    leases: Leases,
    tasks: Tasks,
    metrics: Metrics,
}

impl Node {
    async fn new(id: &str, config: &RedisConfig) -> Self {
        let (tasks, metrics) = (Tasks::new(), Metrics::new("test"));
        let leases = Leases::redis(config, &id.parse().unwrap(), &tasks, &metrics).await.unwrap();
        Self { leases, tasks, metrics }
    }

    /// Two nodes that share a Redis.
    async fn two(config: &RedisConfig) -> (Self, Self) {
        (Self::new("node-1", config).await, Self::new("node-2", config).await)
    }

    async fn claim(&self, key: &LeaseKey) -> Claim {
        self.leases.claim(key, None).await
    }

    async fn granted(&self, key: &LeaseKey) -> Lease {
        match self.claim(key).await {
            Claim::Granted(lease) => lease,
            other @ (Claim::Busy(_) | Claim::Uncoordinated) => panic!("the lease `{key}` is {}", other.as_str()),
        }
    }

    /// Waits until the lease can be had.
    async fn granted_soon(&self, key: &LeaseKey) -> Lease {
        let lease = Mutex::new(None);
        wait_until(LIMIT, "the lease is granted", async || match self.claim(key).await {
            Claim::Granted(granted) => lease.lock().replace(granted).is_none(),
            Claim::Busy(_) | Claim::Uncoordinated => false,
        })
        .await;
        lease.into_inner().unwrap()
    }

    async fn is_busy(&self, key: &LeaseKey) -> bool {
        matches!(self.claim(key).await, Claim::Busy(_))
    }

    fn metric(&self, line: &str) -> f64 {
        let text = self.metrics.render();
        let lines = text.lines().filter(|l| l.starts_with(line));
        lines.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

fn config(mode: RedisMode, urls: &[String]) -> RedisConfig {
    RedisConfig {
        mode,
        servers: urls.iter().map(|url| url.parse().unwrap()).collect(),
        username: None,
        password: None,
        sentinel_master: None,
        sentinel_password: None,
        ca: None,
    }
}

fn single(redis: &Redis) -> RedisConfig {
    config(RedisMode::Single, &[redis.url()])
}

fn secret(text: &str) -> Option<Secret<String>> {
    Some(Secret::new(text.to_owned()))
}

fn key(number: usize) -> LeaseKey {
    LeaseKey::content(Uuid::from_u128(1), &Digest::sha256(&number.to_be_bytes()))
}

/// The remaining time of a lease in Redis.
async fn time_left(redis: &Redis, key: &LeaseKey) -> i64 {
    redis.command(&["PTTL", key.as_str()]).await.parse().unwrap()
}

#[test]
fn keys_say_what_they_are_about_and_each_has_one_place_in_a_cluster() {
    let (origin, digest) = (Uuid::from_u128(1), Digest::sha256(b"x"));
    let repository: RepositoryName = "hub/library/nginx".parse().unwrap();
    let tag = LeaseKey::reference(origin, &repository, &"latest".parse().unwrap());
    assert_eq!(tag.as_str(), format!("t:{origin}:{{hub/library/nginx:latest}}"));
    let content = LeaseKey::content(origin, &digest);
    assert_eq!(content.as_str(), format!("f:{origin}:{{{digest}}}"));
    assert_eq!(LeaseKey::reference(origin, &repository, &digest.to_string().parse().unwrap()), content);
}

#[tokio::test]
async fn of_many_who_have_lost_the_same_holder_one_succeeds_it() {
    let redis = Redis::start().await;
    let config = config(RedisMode::Single, &[redis.url()]);
    let (one, two) = Node::two(&config).await;
    let three = Node::new("node-3", &config).await;
    let lost = one.granted(&key(1)).await;
    let Claim::Busy(holder) = two.claim(&key(1)).await else { panic!("it is held") };
    assert_eq!(holder.node().unwrap().as_str(), "node-1");

    let Claim::Granted(_successor) = two.leases.claim(&key(1), Some(&holder)).await else { panic!("it is lost") };
    let Claim::Busy(next) = three.leases.claim(&key(1), Some(&holder)).await else { panic!("it has a successor") };
    assert_eq!(next.node().unwrap().as_str(), "node-2");
    // The lost holder, which is alive, takes nothing away.
    assert_eq!(lost.release().await, Released::AlreadyLost);
    assert!(three.is_busy(&key(1)).await);
}

#[tokio::test]
async fn of_two_nodes_one_gets_the_lease_and_the_other_after_it() {
    let redis = Redis::start().await;
    let (one, two) = Node::two(&single(&redis)).await;
    let lease = one.granted(&key(1)).await;
    assert!(two.is_busy(&key(1)).await && one.is_busy(&key(1)).await);
    drop(two.granted(&key(2)).await);
    let value = redis.command(&["GET", key(1).as_str()]).await;
    assert!(value.starts_with("node-1.") && value.split('.').count() == 3, "{value}");

    assert_eq!(lease.release().await, Released::Now);
    let lease = two.granted(&key(1)).await;
    drop(lease);
    drop(one.granted_soon(&key(1)).await);
    wait_until(LIMIT, "nothing is left in Redis", async || redis.dump().await.is_empty()).await;
    assert_eq!(two.metric("entrepot_lease_claim_duration_seconds_count{outcome=\"busy\""), 1.0);
    assert_eq!(two.metric("entrepot_lease_breaker_open"), 0.0);
}

#[tokio::test]
async fn a_lease_that_has_passed_to_another_is_left_alone() {
    let redis = Redis::start().await;
    let (one, two) = Node::two(&single(&redis)).await;
    let lease = one.granted(&key(1)).await;
    redis.flush().await;
    let others = two.granted(&key(1)).await;
    assert_eq!(lease.release().await, Released::AlreadyLost);
    assert!(one.is_busy(&key(1)).await);
    assert_eq!(others.release().await, Released::Now);
}

#[tokio::test]
async fn a_lease_is_renewed_for_as_long_as_it_is_held() {
    let redis = Redis::start().await;
    let node = Node::new("node-1", &single(&redis)).await;
    let lease = node.granted(&key(1)).await;
    assert!((14_000..=15_000).contains(&time_left(&redis, &key(1)).await));
    redis.command(&["PEXPIRE", key(1).as_str(), "9000"]).await;
    wait_until(LIMIT, "it is renewed", async || time_left(&redis, &key(1)).await > 10_000).await;
    assert!(!lease.is_lost());
}

#[tokio::test]
async fn a_lease_that_redis_has_forgotten_is_lost_and_its_holder_notices() {
    let redis = Redis::start().await;
    let (one, two) = Node::two(&single(&redis)).await;
    let lease = one.granted(&key(1)).await;
    redis.flush().await;
    let _others = two.granted(&key(1)).await;
    wait_until(LIMIT, "the holder notices", async || lease.is_lost()).await;
    wait_until(LIMIT, "it is counted", async || one.metric("entrepot_lease_lost") == 1.0).await;
    assert_eq!(lease.release().await, Released::AlreadyLost);
    assert!(one.is_busy(&key(1)).await);
}

#[test]
fn the_lease_of_a_node_that_died_runs_out() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (dying, living) = (runtime(), runtime());
    let redis = living.block_on(Redis::start());
    let lease = dying.block_on(async { Node::new("node-1", &single(&redis)).await.granted(&key(1)).await });
    dying.shutdown_timeout(LIMIT);
    living.block_on(async {
        assert!(lease.is_lost());
        let node = Node::new("node-2", &single(&redis)).await;
        assert!(node.is_busy(&key(1)).await);
        let since = Instant::now();
        drop(node.granted_soon(&key(1)).await);
        println!("measured: a dead node's lease was free after {:?}", since.elapsed());
    });
}

#[tokio::test]
async fn a_holder_that_cannot_renew_counts_its_lease_as_lost_before_it_can_be_anothers() {
    let redis = Redis::start().await;
    let node = Node::new("node-1", &single(&redis)).await;
    let (since, lease) = (Instant::now(), node.granted(&key(1)).await);
    redis.pause();
    wait_until(LIMIT, "it counts as lost", async || lease.is_lost()).await;
    println!("measured: lost {:?} after it was granted", since.elapsed());
    redis.resume();
    assert!(time_left(&redis, &key(1)).await > 0, "it could be another's already");
}

#[tokio::test]
async fn redis_paused_costs_at_most_one_slow_claim_a_second_and_never_an_error() {
    let redis = Redis::start().await;
    let (one, two) = Node::two(&single(&redis)).await;
    let lease = one.granted(&key(0)).await;
    redis.pause();
    let (since, mut claims, mut slow, mut slowest) = (Instant::now(), 0, 0, Duration::ZERO);
    while since.elapsed() < Duration::from_secs(3) {
        let began = Instant::now();
        claims += 1;
        assert!(matches!(two.claim(&key(claims)).await, Claim::Uncoordinated));
        slow += u32::from(began.elapsed() > SLOW);
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(CLAIM_PACE).await;
    }
    println!("measured: paused, {claims} claims in {:?}, {slow} slow ones, the slowest {slowest:?}", since.elapsed());
    assert!((1..=4).contains(&slow), "{slow}");
    assert_eq!(two.metric("entrepot_lease_breaker_open"), 1.0);

    redis.resume();
    drop(two.granted_soon(&key(0xffff)).await);
    assert_eq!(two.metric("entrepot_lease_breaker_open"), 0.0);
    // A pause that is shorter than a lease's life costs nobody a lease.
    assert!(two.is_busy(&key(0)).await && !lease.is_lost());
}

#[tokio::test]
async fn redis_restarted_is_used_again_and_what_it_held_is_lost() {
    let redis = Redis::start().await;
    let (one, two) = Node::two(&single(&redis)).await;
    let lease = one.granted(&key(1)).await;
    redis.stop().await;
    let began = Instant::now();
    for number in 0..100 {
        assert!(matches!(two.claim(&key(number)).await, Claim::Uncoordinated));
    }
    println!("measured: Redis gone, 100 claims in {:?}", began.elapsed());
    redis.start_again().await;
    let others = two.granted_soon(&key(1)).await;
    wait_until(LIMIT, "the first holder notices", async || lease.is_lost()).await;
    assert_eq!(others.release().await, Released::Now);
}

#[tokio::test]
async fn a_node_starts_without_redis_and_uses_it_when_it_is_there() {
    let redis = Redis::start().await;
    redis.stop().await;
    let node = Node::new("node-1", &single(&redis)).await;
    assert!(matches!(node.claim(&key(1)).await, Claim::Uncoordinated));
    redis.start_again().await;
    drop(node.granted_soon(&key(1)).await);
}

#[tokio::test]
async fn nothing_of_a_lease_holds_up_the_end_of_a_process() {
    let redis = Redis::start().await;
    let node = Node::new("node-1", &single(&redis)).await;
    let lease = node.granted(&key(1)).await;
    redis.pause();
    drop(lease);
    let began = Instant::now();
    assert!(node.tasks.drain(Duration::from_secs(2)).await);
    println!("measured: drained in {:?}", began.elapsed());
    redis.resume();
}

#[tokio::test]
async fn a_failover_by_sentinel_is_followed() {
    const PASSWORD: &str = "correct-horse";
    let sentinels = RedisSentinels::start(3, PASSWORD).await;
    let config = RedisConfig {
        sentinel_master: Some(sentinels.master_name().to_owned()),
        password: secret(PASSWORD),
        sentinel_password: secret(&RedisSentinels::password_of_sentinels(PASSWORD)),
        ..config(RedisMode::Sentinel, &sentinels.urls())
    };
    let (one, two) = Node::two(&config).await;
    let _lease = one.granted(&key(1)).await;
    assert!(two.is_busy(&key(1)).await);

    let (old, since) = (sentinels.master().await, Instant::now());
    sentinels.kill_master().await;
    assert!(matches!(two.claim(&key(2)).await, Claim::Uncoordinated));
    drop(two.granted_soon(&key(2)).await);
    println!("measured: leases again {:?} after the master was killed", since.elapsed());
    sentinels.until_master_is_not(old).await;
    drop(one.granted_soon(&key(3)).await);
}

#[tokio::test]
async fn a_cluster_holds_the_leases_on_all_its_members() {
    const PASSWORD: &str = "correct-horse";
    let cluster = RedisCluster::start(PASSWORD).await;
    let config = RedisConfig { password: secret(PASSWORD), ..config(RedisMode::Cluster, &cluster.urls()) };
    let (one, two) = Node::two(&config).await;
    let mut leases = Vec::new();
    for number in 0..30 {
        leases.push(one.granted(&key(number)).await);
        assert!(two.is_busy(&key(number)).await);
    }
    let keys = cluster.keys().await;
    assert!(keys.iter().all(|member| !member.is_empty()), "{keys:?}");
    for lease in leases {
        assert_eq!(lease.release().await, Released::Now);
    }
    drop(two.granted(&key(1)).await);

    // Without one member, the keys of the others remain available, or the whole cluster stops, depending on its
    // settings.
    cluster.stop_one().await;
    let began = Instant::now();
    for number in 0..10 {
        two.claim(&key(number)).await;
    }
    println!("measured: a member gone, 10 claims in {:?}", began.elapsed());
    cluster.start_again().await;
    for number in 0..10 {
        drop(two.granted_soon(&key(number)).await);
    }
}

#[tokio::test]
async fn users_with_few_rights_and_certificates_of_ones_own_are_enough() {
    // The minimal permissions of a user. A user needs the permissions for everything that its scripts do.
    let rules = "~f:* ~t:* ~b:* +ping +set +get +del +pexpire +time +evalsha +script|load".to_owned();
    let login = Login::User { name: "leases".into(), password: "correct-horse".into(), rules };
    let redis = Redis::start_with(Options { login: Some(login), tls: None }).await;
    let config = RedisConfig { username: Some("leases".into()), password: secret("correct-horse"), ..single(&redis) };
    let node = Node::new("node-1", &config).await;
    assert_eq!(node.granted(&key(1)).await.release().await, Released::Now);

    let authority = Authority::new();
    let redis = Redis::start_tls(&authority).await;
    let config = RedisConfig { ca: Some(authority.pem().into_bytes()), ..single(&redis) };
    let node = Node::new("node-1", &config).await;
    assert_eq!(node.granted(&key(1)).await.release().await, Released::Now);

    let config = RedisConfig { ca: Some(Authority::new().pem().into_bytes()), ..single(&redis) };
    let stranger = Node::new("node-2", &config).await;
    assert!(matches!(stranger.claim(&key(1)).await, Claim::Uncoordinated));
}

#[tokio::test]
async fn an_outage_is_told_once_and_no_password_with_it() {
    let log = Log::of_this_thread();
    let redis = Redis::start_with_password("correct-horse").await;
    let config = RedisConfig { password: secret("wrong-battery"), ..single(&redis) };
    let node = Node::new("node-1", &config).await;
    assert!(matches!(node.claim(&key(1)).await, Claim::Uncoordinated));
    assert!(log.text().contains("Redis is away"), "{}", log.text());
    drop(node);

    let config = RedisConfig { password: secret("correct-horse"), ..single(&redis) };
    let node = Node::new("node-2", &config).await;
    drop(node.granted(&key(1)).await);
    let mark = log.text().len();
    redis.stop().await;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        assert!(matches!(node.claim(&key(2)).await, Claim::Uncoordinated));
        tokio::time::sleep(CLAIM_PACE).await;
    }
    redis.start_again().await;
    drop(node.granted_soon(&key(3)).await);
    let told = log.text()[mark..].to_owned();
    assert_eq!(told.matches("Redis is away").count(), 1, "{told}");
    assert_eq!(told.matches("Redis is back").count(), 1, "{told}");
    for secret in ["correct-horse", "wrong-battery"] {
        assert!(!log.text().contains(secret), "{}", log.text());
        assert!(!format!("{config:?}").contains(secret));
    }
    assert!(!redis.dump().await.contains("correct-horse"));
}

thread_local! {
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What this thread has logged. A test does everything on one thread. (A subscriber for this thread alone would miss
/// messages that another thread was the first to log.)
#[derive(Clone, Copy)]
struct Log;

impl Log {
    fn of_this_thread() -> Self {
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        // Another test may have installed it already.
        let _ = subscriber.with_writer(|| Log).try_init();
        LINES.with_borrow_mut(Vec::clear);
        Self
    }

    fn text(self) -> String {
        LINES.with_borrow(|lines| String::from_utf8_lossy(lines).into_owned())
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LINES.with_borrow_mut(|lines| lines.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
