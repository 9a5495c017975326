//! Looking at a tag that is not here, at one node, and pulling what it means, at another.

#![allow(missing_docs, reason = "tests are named by sentences")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

#[path = "several/ground.rs"]
mod ground;

use entrepot_store::Prefix;
use entrepot_test_support::{images, wait_until};
use reqwest::{Method, StatusCode};

use ground::{Ground, KEY, LIMIT, Node};

async fn head(node: &Node, path: &str) -> StatusCode {
    let request = node.client.request(Method::HEAD, format!("{}/v2/demo/{path}", node.url));
    request.basic_auth(KEY.0, Some(KEY.1)).send().await.unwrap().status()
}

#[tokio::test]
async fn a_tag_that_one_node_looked_at_is_noted_when_another_pulls_what_it_means() {
    let ground = Ground::new().await;
    let image = ground.upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let (one, two) = ground.two().await;
    assert_eq!(head(&one, "app/manifests/v1").await, StatusCode::OK);
    assert!(ground.upstream.log().iter().all(|entry| entry.method == "HEAD"), "nothing was fetched");
    let path = format!("app/manifests/{}", image.manifest);
    assert_eq!(two.get(&path).await.unwrap(), (StatusCode::OK, image.manifest.clone()));
    let tag = async || {
        let keys = ground.store.list(&Prefix::below("repositories").unwrap(), None, 100).await.unwrap();
        keys.iter().any(|entry| entry.key.as_str().ends_with("/tags/v1"))
    };
    wait_until(LIMIT, "the tag is noted", tag).await;
    ground.upstream.stop().await;
    for node in [&one, &two] {
        assert_eq!(node.get("app/manifests/v1").await.unwrap(), (StatusCode::OK, image.manifest.clone()));
    }
}
