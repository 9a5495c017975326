//! While the store is away, what cannot be served gets an honest error, and everything works again once it is back.
//! Also a slow store.

use std::time::Duration;

use entrepot_records::layout;
use entrepot_store::BlobStore as _;
use entrepot_test_support::{FakeUpstream, images};
use reqwest::Method;

use crate::fixture::{Fixture, KEY, LIMIT};

#[tokio::test]
async fn without_the_store_whatever_cannot_be_served_is_503_with_a_time_to_come_back() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 2 << 20), images::random_bytes(2, 1000)]);
    upstream.publish_image("other", "v1", &[images::random_bytes(3, 1000)]);
    fixture.publish(1, &upstream).await;
    let node = fixture.node("node-1").await;
    for path in [format!("manifests/{}", image.manifest), "manifests/v1".to_owned()] {
        assert_eq!(node.get(&format!("/v2/demo/app/{path}")).await.status(), 200);
    }
    for blob in image.blobs() {
        let bytes = node.get(&format!("/v2/demo/app/blobs/{blob}")).await.bytes().await.unwrap();
        assert_eq!(images::sha256(&bytes), blob);
    }

    fixture.store.set_away(true);
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let blob = format!("/v2/demo/app/blobs/{}", image.layers[0]);
    for (method, path, range) in [
        (Method::GET, "/v2/demo/app/manifests/v1".to_owned(), None),
        (Method::HEAD, "/v2/demo/app/manifests/v1".to_owned(), None),
        (Method::GET, format!("/v2/demo/app/manifests/{}", image.manifest), None),
        (Method::GET, blob.clone(), None),
        (Method::HEAD, blob.clone(), None),
        (Method::GET, blob.clone(), Some("bytes=100-199")),
        (Method::GET, "/v2/demo/other/manifests/v1".to_owned(), None),
    ] {
        let mut request = client.request(method.clone(), format!("{}{path}", node.url)).basic_auth(KEY.0, Some(KEY.1));
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 503, "{method} {path} {range:?}");
        let seconds: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds));
        if method == Method::GET {
            assert!(answer.text().await.unwrap().contains("UNAVAILABLE"), "{path}");
        }
    }
    // The caller is identified without the store.
    assert_eq!(node.get("/v2/").await.status(), 200);
    assert!(node.health.is_ready(), "a store that all share empties no load balancer");

    fixture.store.set_away(false);
    assert_eq!(node.get(&blob).await.bytes().await.unwrap().len(), 2 << 20);
    assert_eq!(node.get("/v2/demo/other/manifests/v1").await.status(), 200);
}

#[tokio::test]
async fn who_was_looking_into_a_slow_store_does_not_ask_again_for_a_list_that_came_meanwhile() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    fixture.publish(1, &upstream).await;
    let node = fixture.node("node-1").await;
    let list = async || node.get("/v2/demo/app/tags/list").await.text().await.unwrap();
    let (waiting, release) = fixture.store.hold(layout::repository(&"demo/app".parse().unwrap()));
    let (slow, quick) = tokio::join!(list(), async {
        tokio::time::timeout(LIMIT, waiting).await.unwrap().unwrap();
        let quick = list().await;
        release.send(()).unwrap();
        quick
    });
    assert!(slow.contains(r#"["v1"]"#), "{slow}");
    assert_eq!(slow, quick);
    let asked = upstream.log().iter().filter(|entry| entry.path.ends_with("/tags/list")).count();
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn a_manifest_is_fetched_while_slow_blobs_have_all_turns() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 3 << 20)]);
    upstream.publish_image("other", "v1", &[images::random_bytes(2, 100)]);
    fixture.publish(1, &upstream).await;
    let mut start = fixture.start("node-1");
    start.config.capacity.fills = 1;
    let node = fixture.run(start).await;
    node.ready().await;
    let layer = upstream.hold(format!("/v2/app/blobs/{}", image.layers[0]));
    let slow = node.request(&format!("/v2/demo/app/blobs/{}", image.layers[0])).send();
    let (blob, ()) = tokio::join!(slow, async {
        layer.until_waiting(1).await;
        // Turns for blobs would be waited for longer than this.
        let manifest = node.request("/v2/demo/other/manifests/v1").timeout(Duration::from_secs(8)).send().await;
        assert_eq!(manifest.unwrap().status(), 200);
        layer.release();
    });
    assert_eq!(images::sha256(&blob.unwrap().bytes().await.unwrap()), image.layers[0]);
}

#[tokio::test]
async fn a_repository_whose_record_cannot_be_read_is_503_with_the_reason_and_nothing_is_created() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 1000)]);
    fixture.publish(1, &upstream).await;
    let key = layout::repository(&"demo/app".parse().unwrap());
    for junk in ["", "{}", "null"] {
        fixture.store.put(&key, junk.into()).await.unwrap();
        let node = fixture.node("node-1").await;
        let answer = node.get("/v2/demo/app/manifests/v1").await;
        assert_eq!(answer.status(), 503);
        let text = answer.text().await.unwrap();
        assert!(text.contains("repositories/demo/app/_repository"), "{text}");
        assert!(text.contains("entrepot admin reindex"), "{text}");
        assert_eq!(fixture.store.get(&key).await.unwrap().unwrap().bytes, junk);
        assert!(node.tasks.drain(LIMIT).await);
    }
}

#[tokio::test]
async fn a_manifest_that_the_store_does_not_take_is_served_and_counted() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    fixture.publish(1, &upstream).await;
    let node = fixture.node("node-1").await;
    let gate = upstream.hold("/v2/app/manifests/v1");
    let (answer, ()) = tokio::join!(node.get("/v2/demo/app/manifests/v1"), async {
        gate.until_waiting(1).await;
        fixture.store.set_away(true);
        gate.release();
    });
    assert_eq!(answer.status(), 200);
    assert_eq!(images::sha256(&answer.bytes().await.unwrap()), image.manifest);
    let failed = || node.metric("entrepot_commit_failed_total", &["content=\"manifest\""]);
    assert_eq!(failed(), 1.0);
    fixture.store.set_away(false);
    assert_eq!(node.get("/v2/demo/app/manifests/v1").await.status(), 200);
    assert_eq!(failed(), 1.0);
}
