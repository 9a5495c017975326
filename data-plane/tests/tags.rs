//! Lists of tags: the upstream's list, page by page, remembered for a while, and what is served while the upstream is
//! away.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

#[path = "several/fixture.rs"]
mod fixture;

use std::time::Duration;

use entrepot_proto::node::v1 as pb;
use entrepot_test_support::{Fault, images, wait_until};
use entrepot_upstream::Limits;
use futures_util::future::join_all;
use reqwest::StatusCode;

use fixture::{Fixture, Node};

const WINDOW: Duration = Duration::from_secs(300);

/// Counts the claims for which another node held the lease.
const BUSY: &str = "entrepot_lease_claim_duration_seconds_count{outcome=\"busy\"";

/// An answer to a client that lists tags.
#[derive(Debug)]
struct Listed {
    status: StatusCode,
    tags: Vec<String>,
    link: Option<String>,
    cache_status: String,
    age: Option<String>,
    warning: Option<String>,
    text: String,
}

async fn list(node: &Node, path: &str) -> Listed {
    let answer = node.request(path).send().await.unwrap();
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (link, age, warning) = (header("link"), header("age"), header("warning"));
    let (status, cache_status) = (answer.status(), header("cache-status").unwrap_or_default());
    let text = answer.text().await.unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let tags = json["tags"].as_array().into_iter().flatten().map(|tag| tag.as_str().unwrap().to_owned()).collect();
    Listed { status, tags, link, cache_status, age, warning, text }
}

fn publish(fixture: &Fixture, tags: &[&str]) {
    for tag in tags {
        fixture.upstream.publish_image("app", tag, &[images::random_bytes(1, 100)]);
    }
}

/// How often the upstream was asked for a page of tags.
fn asked(fixture: &Fixture) -> usize {
    fixture.upstream.log().iter().filter(|entry| entry.path.ends_with("/tags/list")).count()
}

#[tokio::test]
async fn the_upstreams_view_is_listed_and_asked_for_once_in_a_window() {
    let fixture = Fixture::new().await;
    publish(&fixture, &["v2", "v1", "latest"]);
    fixture.upstream.set_tags_page(2);
    let node = fixture.node("node-1").await;
    let gate = fixture.upstream.hold("/tags/list");
    let clients = (0..30).map(|_| list(&node, "demo/app/tags/list"));
    let (answers, ()) = tokio::join!(join_all(clients), async {
        gate.until_waiting(1).await;
        gate.release();
    });
    for answer in answers {
        assert_eq!((answer.status, answer.link), (StatusCode::OK, None));
        assert_eq!(answer.tags, ["latest", "v1", "v2"], "nothing of it is cached, all of it is listed");
        assert!(answer.text.contains(r#""name":"demo/app""#), "{}", answer.text);
    }
    assert_eq!(asked(&fixture), 2, "two pages, once");

    publish(&fixture, &["v3"]);
    fixture.advance(WINDOW - Duration::from_secs(1)).await;
    let answer = list(&node, "demo/app/tags/list").await;
    assert_eq!((answer.cache_status.as_str(), answer.age.as_deref()), ("entrepot; hit", Some("299")));
    assert_eq!((answer.tags.len(), asked(&fixture)), (3, 2));
    fixture.advance(Duration::from_secs(1)).await;
    assert_eq!(list(&node, "demo/app/tags/list").await.tags, ["latest", "v1", "v2", "v3"]);
    assert_eq!(asked(&fixture), 4);
}

#[tokio::test]
async fn the_upstream_is_asked_once_by_all_nodes() {
    let fixture = Fixture::new().await;
    publish(&fixture, &["v1", "v2"]);
    let (one, two) = fixture.two().await;
    assert_eq!(one.get("app/manifests/v1").await.unwrap().0, StatusCode::OK);
    let gate = fixture.upstream.hold("/tags/list");
    let both = async { tokio::join!(list(&one, "demo/app/tags/list"), list(&two, "demo/app/tags/list")) };
    let busy = || one.metric(BUSY) + two.metric(BUSY);
    let ((one_got, two_got), ()) = tokio::join!(both, async {
        gate.until_waiting(1).await;
        wait_until(fixture::LIMIT, "one waits for the other", async || busy() >= 1.0).await;
        gate.release();
    });
    assert_eq!((one_got.tags.concat(), two_got.tags.concat(), asked(&fixture)), ("v1v2".into(), "v1v2".into(), 1));
    let mut said = [one_got.cache_status, two_got.cache_status];
    said.sort();
    assert_eq!(said, ["entrepot; fwd=miss; collapsed; detail=follow", "entrepot; fwd=miss; stored"]);
    // A node that starts later finds what they have fetched.
    let three = fixture.node("node-3").await;
    assert_eq!(list(&three, "demo/app/tags/list").await.cache_status, "entrepot; hit");
}

#[tokio::test]
async fn clients_page_through_a_list() {
    let fixture = Fixture::new().await;
    publish(&fixture, &["a", "b", "c", "d", "e"]);
    let node = fixture.node("node-1").await;
    let (mut path, mut seen) = ("demo/app/tags/list?n=2".to_owned(), Vec::new());
    loop {
        let answer = list(&node, &path).await;
        seen.push(answer.tags.concat());
        let Some(link) = answer.link else { break };
        path = link.strip_prefix("</v2/").unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned();
    }
    assert_eq!(seen, ["ab", "cd", "e"]);
    assert_eq!(list(&node, "demo/app/tags/list?last=bb").await.tags.concat(), "cde");
    let none = list(&node, "demo/app/tags/list?n=0").await;
    assert_eq!((none.status, none.tags.len(), none.link), (StatusCode::OK, 0, None));
    let wrong = list(&node, "demo/app/tags/list?n=many").await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    assert!(wrong.text.contains("PAGINATION_NUMBER_INVALID"), "{}", wrong.text);
    assert_eq!(asked(&fixture), 1);
}

#[tokio::test]
async fn an_upstream_that_is_away_leaves_its_last_list_or_what_is_cached() {
    let limits = Limits { retries: 0, probe: Duration::ZERO, ..Limits::default() };
    let fixture = Fixture::with(&[("demo", pb::SnapshotFreshness::default())], limits).await;
    publish(&fixture, &["v1", "v2"]);
    let (one, two) = fixture.two().await;
    assert_eq!(one.get("app/manifests/v2").await.unwrap().0, StatusCode::OK);
    assert_eq!(list(&one, "demo/app/tags/list").await.tags, ["v1", "v2"]);

    fixture.advance(WINDOW).await;
    fixture.upstream.script("/tags/list", Fault::Status(503, None));
    for _ in 0..2 {
        let stale = list(&one, "demo/app/tags/list").await;
        assert_eq!(
            (stale.tags.concat(), stale.cache_status.as_str()),
            ("v1v2".to_owned(), "entrepot; hit; detail=stale")
        );
        assert!(stale.warning.unwrap().starts_with("299 - "), "a client is told");
    }
    assert_eq!(asked(&fixture), 2, "it was left alone after it had failed");
    // This node has never requested a list, and knows the one that the other node got.
    let shared = list(&two, "demo/app/tags/list").await;
    assert_eq!(
        (shared.tags.concat(), shared.cache_status.as_str()),
        ("v1v2".to_owned(), "entrepot; hit; detail=stale")
    );
    // There never was a list of this repository.
    fixture.upstream.publish_image("other/app", "v3", &[images::random_bytes(1, 100)]);
    assert_eq!(two.get("other/app/manifests/v3").await.unwrap().0, StatusCode::OK);
    let cached = list(&two, "demo/other/app/tags/list").await;
    assert_eq!((cached.tags.concat(), cached.cache_status.as_str()), ("v3".to_owned(), "entrepot; hit; detail=stale"));
    assert!(cached.warning.is_some() && cached.age.is_none());
    let nothing = list(&two, "demo/other/tags/list").await;
    assert_eq!(nothing.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(nothing.text.contains("the upstream `local` of rule `demo` is away (status 503)"), "{}", nothing.text);

    fixture.upstream.heal();
    fixture.advance(Duration::from_secs(15)).await;
    assert_eq!(list(&one, "demo/app/tags/list").await.cache_status, "entrepot; fwd=miss; stored");
    let unknown = list(&two, "demo/nowhere/tags/list").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert!(unknown.text.contains("NAME_UNKNOWN"), "{}", unknown.text);
}

#[tokio::test]
async fn without_a_rule_what_is_cached_is_listed() {
    let drops = pb::SnapshotFreshness { when_deleted: "DROP".to_owned(), ..Default::default() };
    let fixture = Fixture::with(&[("demo", drops)], Limits::default()).await;
    publish(&fixture, &["c", "a", "b", "gone"]);
    let one = fixture.node("node-1").await;
    for tag in ["c", "gone", "a"] {
        assert_eq!(one.get(&format!("app/manifests/{tag}")).await.unwrap().0, StatusCode::OK);
    }
    fixture.upstream.remove("app", "gone");
    fixture.advance(Duration::from_secs(25 * 3600)).await;
    assert_eq!(one.get("app/manifests/gone").await.unwrap().0, StatusCode::NOT_FOUND);

    fixture.publish(2, &[]).await;
    let two = fixture.node("node-2").await;
    let first = list(&two, "demo/app/tags/list?n=1").await;
    assert_eq!(
        (first.tags.concat(), first.link.as_deref()),
        ("a".to_owned(), Some("</v2/demo/app/tags/list?n=1&last=a>; rel=\"next\""))
    );
    let second = list(&two, "demo/app/tags/list?n=1&last=a").await;
    assert_eq!((second.tags.concat(), second.link), ("c".to_owned(), None), "what was dropped is not listed");
    assert_eq!(list(&two, "demo/app/tags/list?last=*").await.tags.concat(), "ac");
    assert_eq!(list(&two, "demo/other/tags/list").await.status, StatusCode::NOT_FOUND);
    assert_eq!(asked(&fixture), 0);
    let anonymous = two.client.get(format!("{}/v2/demo/app/tags/list", two.url)).send().await.unwrap();
    assert_eq!(anonymous.status(), StatusCode::UNAUTHORIZED);
    let challenge = anonymous.headers()["www-authenticate"].to_str().unwrap();
    assert!(challenge.contains("repository:demo/app:pull"), "{challenge}");
}
