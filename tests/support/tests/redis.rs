//! Tests of the fixture: each kind of Redis starts, obeys, and ends.

use entrepot_test_support::redis::{Login, Options};
use entrepot_test_support::tls::Authority;
use entrepot_test_support::{Redis, RedisCluster, RedisSentinels};

#[tokio::test]
async fn one_server_forgets_pauses_and_comes_back_empty_at_its_address() {
    let redis = Redis::start().await;
    let address = redis.address();
    redis.command(&["SET", "a", "b"]).await;
    assert_eq!(redis.dump().await, "a = b\n");
    redis.flush().await;
    assert_eq!(redis.dump().await, "");
    redis.command(&["SET", "a", "b"]).await;
    redis.pause();
    redis.resume();
    assert_eq!(redis.command(&["GET", "a"]).await, "b");
    redis.stop().await;
    redis.start_again().await;
    assert_eq!((redis.address(), redis.dump().await), (address, String::new()));
}

#[tokio::test]
async fn passwords_users_and_certificates_are_wanted_where_a_test_says_so() {
    let password = Redis::start_with_password("hunter22").await;
    assert_eq!(password.command(&["PING"]).await, "PONG");
    let login = Login::User { name: "app".into(), password: "hunter22".into(), rules: "~f:* +set".into() };
    let user = Redis::start_with(Options { login: Some(login), tls: None }).await;
    assert!(user.command(&["ACL", "LIST"]).await.contains("user app on"));
    let tls = Redis::start_tls(&Authority::new()).await;
    assert!(tls.url().starts_with("rediss://"));
    assert_eq!(tls.command(&["PING"]).await, "PONG");
}

#[tokio::test]
async fn sentinels_replace_a_master_that_is_gone() {
    let sentinels = RedisSentinels::start(3, "hunter22").await;
    let old = sentinels.master().await;
    sentinels.kill_master().await;
    sentinels.until_master_is_not(old).await;
}

#[tokio::test]
async fn a_cluster_has_three_members() {
    let cluster = RedisCluster::start("hunter22").await;
    assert_eq!(cluster.keys().await, vec![Vec::<String>::new(); 3]);
}
