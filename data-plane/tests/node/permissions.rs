//! A principal's permissions from the snapshot: to pull, to have content fetched, to have a repository created.

use entrepot_test_support::{FakeUpstream, images};
use prost::Message as _;

use crate::fixture::{Fixture, Node};

/// A node at which the principal has these permissions.
async fn node(fixture: &Fixture, upstream: &FakeUpstream, revision: i64, actions: &[&str]) -> Node {
    let mut snapshot = fixture.snapshot(revision, upstream);
    snapshot.principals[0].actions = actions.iter().map(ToString::to_string).collect();
    fixture.publish_bytes(revision, snapshot.encode_to_vec()).await;
    fixture.node("node-1").await
}

async fn status(node: &Node, path: &str) -> u16 {
    node.get(&format!("/v2/demo/{path}")).await.status().as_u16()
}

#[tokio::test]
async fn who_may_only_pull_gets_what_is_cached_and_has_nothing_fetched() {
    let (upstream, fixture) = (FakeUpstream::start().await, Fixture::new());
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 1000)]);
    let newer = upstream.publish_image("app", "v2", &[images::random_bytes(2, 1000)]);
    upstream.publish_image("other", "v1", &[images::random_bytes(3, 1000)]);
    let blob = |digest: &str| format!("app/blobs/{digest}");
    {
        let node = node(&fixture, &upstream, 1, &["pull", "create", "fill"]).await;
        assert_eq!(status(&node, "app/manifests/v1").await, 200);
        assert_eq!(node.get(&format!("/v2/demo/{}", blob(&image.layers[0]))).await.bytes().await.unwrap().len(), 1000);
    }

    let puller = node(&fixture, &upstream, 2, &["pull", "an action of a later release"]).await;
    assert_eq!(status(&puller, "app/manifests/v1").await, 200);
    assert_eq!(status(&puller, &blob(&image.layers[0])).await, 200);
    let before = upstream.request_count();
    for path in ["app/manifests/v2".to_owned(), blob(&newer.layers[0]), "other/manifests/v1".to_owned()] {
        let answer = puller.get(&format!("/v2/demo/{path}")).await;
        assert_eq!(answer.status(), 403, "{path}");
        let text = answer.text().await.unwrap();
        assert!(text.contains("DENIED") && text.contains("fetched from an upstream"), "{text}");
    }
    assert_eq!(upstream.request_count(), before, "the upstream heard nothing of it");
    drop(puller);

    // A token covers what its principal may do.
    let filler = node(&fixture, &upstream, 3, &["pull", "fill"]).await;
    let token = filler.get("/token?scope=repository:demo/app:pull&scope=repository:demo/other:pull").await;
    let token: serde_json::Value = serde_json::from_slice(&token.bytes().await.unwrap()).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (path, expected) in [("app/manifests/v2", 200), ("other/manifests/v1", 403)] {
        let request = client.get(format!("{}/v2/demo/{path}", filler.url));
        let answer = request.bearer_auth(token["token"].as_str().unwrap()).send().await.unwrap();
        assert_eq!(answer.status(), expected, "{path}: {}", answer.text().await.unwrap());
    }
    assert_eq!(status(&filler, "other/manifests/v1").await, 403, "it may have no repository created");
    drop(filler);

    let nobody = node(&fixture, &upstream, 4, &[]).await;
    assert_eq!(status(&nobody, "app/manifests/v1").await, 403, "who is granted nothing may do nothing");
}
