//! What a bucket must be able to do, and the errors for one that is not.

use std::time::Duration;

use entrepot_domain::Secret;
use entrepot_store::bucket::{AccessKey, BucketConfig, BucketStore, OpenError, Service};
use entrepot_store::{BlobStore as _, Deleted, Prefix};
use entrepot_test_support::Seaweed;
use http::{Method, Response, StatusCode};

use crate::proxy::{Fault, Proxy, Stranger};
use crate::{config, open};

async fn refusal(config: BucketConfig) -> OpenError {
    BucketStore::open(config, "node-1".parse().unwrap()).await.unwrap_err()
}

/// The text that an operator reads.
fn told(error: &OpenError) -> String {
    let mut told = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        told += &format!(": {cause}");
        source = cause.source();
    }
    told
}

#[tokio::test]
async fn a_bucket_that_ignores_conditions_is_refused_with_the_remedy() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let bucket = seaweed.bucket().await;
    let proxy = Proxy::before(seaweed.address()).await;
    let mut config = config(seaweed, &bucket, "");
    config.endpoint = Some(proxy.endpoint().parse().unwrap());
    open(config.clone()).await;
    proxy.plan(Method::PUT, "/", Fault::Unconditionally, usize::MAX);
    let error = refusal(config).await;
    let text = error.to_string();
    assert!(matches!(error, OpenError::IgnoresConditions { .. }) && !error.retry(), "{error:?}");
    assert!(text.contains(&bucket) && text.contains("If-None-Match"), "{text}");
}

#[tokio::test]
async fn a_list_that_lags_and_a_delete_without_conditions_are_abilities_that_lack() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let bucket = seaweed.bucket().await;
    let proxy = Proxy::before(seaweed.address()).await;
    let mut config = config(seaweed, &bucket, "");
    config.endpoint = Some(proxy.endpoint().parse().unwrap());
    let store = open(config.clone()).await;
    println!("the bucket as it is: {:?}", store.abilities());
    assert!(store.abilities().lists_at_once);
    proxy.plan(Method::GET, "list-type", Fault::ListNothing, 1);
    let store = open(config.clone()).await;
    assert!(!store.abilities().lists_at_once);
    // A service may refuse the request in several ways.
    for status in [StatusCode::NOT_IMPLEMENTED, StatusCode::BAD_REQUEST, StatusCode::INTERNAL_SERVER_ERROR] {
        proxy.plan(Method::DELETE, "if-match", Fault::Answer(status), 1);
        let store = open(config.clone()).await;
        assert!(!store.abilities().deletes_if, "{status}");
        let key = "records/1".parse().unwrap();
        let version = store.put(&key, "1".into()).await.unwrap();
        assert_eq!(store.delete_if(&key, &version).await.unwrap(), Deleted::Unsupported);
        assert!(store.head(&key).await.unwrap().is_some(), "nothing was done");
    }
}

#[tokio::test]
async fn a_server_that_is_no_store_is_refused_once_and_for_all() {
    let servers = [
        ("nothing is there", Stranger::answering(|_| Response::builder().status(404).body("").unwrap()).await),
        ("a website", Stranger::answering(|_| Response::new("<html>Welcome</html>")).await),
        ("bad requests", Stranger::answering(|_| Response::builder().status(400).body("no").unwrap()).await),
        ("wrong methods", Stranger::answering(|_| Response::builder().status(405).body("no").unwrap()).await),
        ("redirects", Stranger::answering(|_| Response::builder().status(301).body("").unwrap()).await),
        ("forgetful", Stranger::careless().await),
    ];
    for (what, server) in servers {
        let mut config = plain("some-bucket");
        config.endpoint = Some(server.endpoint().parse().unwrap());
        let error = refusal(config).await;
        println!("{what}: {}", told(&error));
        assert!(!error.retry() && error.to_string().contains("`some-bucket`"), "{what}: {error:?}");
    }
}

#[tokio::test]
async fn a_wrong_secret_and_a_missing_bucket_are_told_apart() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let bucket = seaweed.bucket().await;
    let mut wrong = config(seaweed, &bucket, "");
    if let Service::S3 { credentials, .. } = &mut wrong.service {
        let secret = Secret::new("another-secret-than-it-is".to_owned());
        *credentials = Some(AccessKey { id: Seaweed::ACCESS_KEY_ID.to_owned(), secret });
    }
    let error = refusal(wrong).await;
    assert!(matches!(error, OpenError::Denied { .. }) && !error.retry(), "{error:?}");
    assert!(error.to_string().contains("access key and its secret"), "{error}");
    assert!(!told(&error).contains("another-secret-than-it-is"));
    assert!(!format!("{error:?}").contains("another-secret-than-it-is"));

    let error = refusal(config(seaweed, "no-such-bucket", "")).await;
    assert!(matches!(error, OpenError::NoBucket { .. }) && !error.retry(), "{error:?}");
    assert!(error.to_string().contains("no bucket `no-such-bucket`"), "{error}");
}

#[tokio::test]
async fn a_bucket_that_is_away_is_to_be_tried_again() {
    let mut config = plain("some-bucket");
    // Nobody listens there.
    config.endpoint = Some("http://127.0.0.1:9".parse().unwrap());
    let error = tokio::time::timeout(Duration::from_secs(30), refusal(config)).await.unwrap();
    assert!(matches!(error, OpenError::Away { .. }) && error.retry(), "{error:?}");
}

#[tokio::test]
async fn clear_text_is_refused_unless_it_is_allowed() {
    let mut config = plain("some-bucket");
    config.endpoint = Some("http://127.0.0.1:9".parse().unwrap());
    config.allow_plain_http = false;
    let error = refusal(config).await;
    println!("{}", told(&error));
    assert!(matches!(error, OpenError::BadConfig { .. }), "{error:?}");
}

#[tokio::test]
async fn opening_leaves_nothing_behind() {
    let Some(seaweed) = Seaweed::shared().await else { return };
    let bucket = seaweed.bucket().await;
    for prefix in ["", "shared/with-others"] {
        let store = open(config(seaweed, &bucket, prefix)).await;
        assert!(store.list(&Prefix::below("probe").unwrap(), None, 10).await.unwrap().is_empty());
        assert!(store.list(&Prefix::all(), None, 10).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn the_environment_names_no_proxy() {
    // This test runs itself in a second process, whose environment names a proxy that does not exist.
    const NAME: &str = "opening::the_environment_names_no_proxy";
    if let Some(endpoint) = std::env::var_os("TEST_ENDPOINT") {
        let mut config = plain(std::env::var_os("TEST_BUCKET").unwrap().to_str().unwrap());
        config.endpoint = Some(endpoint.to_str().unwrap().parse().unwrap());
        open(config).await;
        println!("opened");
        return;
    }
    let Some(seaweed) = Seaweed::shared().await else { return };
    let bucket = seaweed.bucket().await;
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", NAME, "--nocapture"]).env("TEST_ENDPOINT", seaweed.endpoint()).env("TEST_BUCKET", bucket);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(name, "http://127.0.0.1:9");
    }
    let output = command.env_remove("NO_PROXY").env_remove("no_proxy").output().await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("opened"), "{output:?}");
}

#[test]
fn secrets_are_not_printed() {
    let text = format!("{:?}", plain("bucket"));
    assert!(text.contains(Seaweed::ACCESS_KEY_ID) && !text.contains(Seaweed::SECRET_ACCESS_KEY), "{text}");
}

pub(crate) fn plain(bucket: &str) -> BucketConfig {
    BucketConfig {
        bucket: bucket.to_owned(),
        prefix: Prefix::all(),
        endpoint: None,
        allow_plain_http: true,
        trusted_certificates: None,
        proxy: None,
        service: Service::S3 {
            region: Seaweed::REGION.to_owned(),
            path_style: true,
            credentials: Some(AccessKey {
                id: Seaweed::ACCESS_KEY_ID.to_owned(),
                secret: Secret::new(Seaweed::SECRET_ACCESS_KEY.to_owned()),
            }),
        },
    }
}

#[tokio::test]
async fn secrets_are_in_no_error() {
    let mut config = plain("bucket");
    config.endpoint = Some("http://127.0.0.1:9".parse().unwrap());
    config.proxy = Some(Secret::new("http://user:proxy-password@127.0.0.1:9".parse().unwrap()));
    let printed = format!("{config:?}");
    let error = refusal(config).await;
    for text in [printed, told(&error), format!("{error:?}")] {
        assert!(!text.contains("proxy-password") && !text.contains(Seaweed::SECRET_ACCESS_KEY), "{text}");
    }
}
