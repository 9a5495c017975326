//! Lists of referrers: the upstream's list, remembered for a while and shared by the nodes, and what is served while
//! the upstream is away.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

#[path = "several/fixture.rs"]
mod fixture;

use std::time::Duration;

use entrepot_proto::node::v1 as pb;
use entrepot_test_support::images::{self, Image};
use entrepot_test_support::{Fault, wait_until};
use entrepot_upstream::Limits;
use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::Value;

use fixture::{Fixture, Node};

const WINDOW: Duration = Duration::from_secs(6 * 60 * 60);
const SIGNATURE: &str = "application/vnd.example.signature+json";
const SBOM: &str = "application/vnd.example.sbom";

/// Counts the claims for which another node held the lease.
const BUSY: &str = "entrepot_lease_claim_duration_seconds_count{outcome=\"busy\"";

/// An answer to a client that lists referrers.
#[derive(Debug)]
struct Listed {
    status: StatusCode,
    content_type: String,
    /// The digests, in order.
    digests: Vec<String>,
    filters: Option<String>,
    cache_status: String,
    age: Option<String>,
    warning: Option<String>,
    json: Value,
}

async fn list(node: &Node, path: &str) -> Listed {
    let answer = node.request(path).send().await.unwrap();
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, content_type, filters) =
        (answer.status(), header("content-type").unwrap(), header("oci-filters-applied"));
    let (cache_status, age, warning) = (header("cache-status").unwrap_or_default(), header("age"), header("warning"));
    let json: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    let digests = json["manifests"].as_array().into_iter().flatten();
    let digests = digests.map(|descriptor| descriptor["digest"].as_str().unwrap().to_owned()).collect();
    Listed { status, content_type, digests, filters, cache_status, age, warning, json }
}

fn path(subject: &Image) -> String {
    format!("demo/app/referrers/{}", subject.manifest)
}

/// An image with a signature and a bill of materials, in the order in which the upstream lists them.
fn signed(fixture: &Fixture) -> (Image, Vec<String>) {
    let image = fixture.upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let publish = |kind, layer| fixture.upstream.publish_referrer("app", None, &image.manifest_bytes, kind, layer);
    let mut digests = vec![publish(SIGNATURE, b"signed"), publish(SBOM, b"parts")];
    digests.sort();
    (image, digests)
}

/// How often the upstream was asked for referrers.
fn asked(fixture: &Fixture) -> usize {
    fixture.upstream.log().iter().filter(|entry| entry.path.contains("/referrers/")).count()
}

#[tokio::test]
async fn the_upstreams_view_is_asked_for_once_in_a_window_by_all_nodes() {
    let fixture = Fixture::new().await;
    let (image, digests) = signed(&fixture);
    let (one, two) = fixture.two().await;
    assert_eq!(one.get("app/manifests/v1").await.unwrap().0, StatusCode::OK);

    let gate = fixture.upstream.hold("/referrers/");
    let path = path(&image);
    let clients = [&one, &two].repeat(10).into_iter().map(|node| list(node, &path));
    let (answers, ()) = tokio::join!(join_all(clients), async {
        gate.until_waiting(1).await;
        wait_until(fixture::LIMIT, "one waits for the other", async || one.metric(BUSY) + two.metric(BUSY) >= 1.0)
            .await;
        gate.release();
    });
    for answer in answers {
        assert_eq!((answer.status, answer.content_type.as_str()), (StatusCode::OK, images::OCI_INDEX));
        assert_eq!((&answer.json["schemaVersion"], &answer.json["mediaType"]), (&2.into(), &images::OCI_INDEX.into()));
        assert_eq!((&answer.digests, answer.filters), (&digests, None));
    }
    assert_eq!(asked(&fixture), 1, "once for 20 clients of two nodes");

    // A node that starts later knows what the others have fetched.
    let three = fixture.node("node-3").await;
    fixture.advance(WINDOW - Duration::from_secs(1)).await;
    let answer = list(&three, &path).await;
    assert_eq!((answer.cache_status.as_str(), answer.age.as_deref()), ("entrepot; hit", Some("21599")));
    assert_eq!((answer.digests, asked(&fixture)), (digests.clone(), 1));
    let added = fixture.upstream.publish_referrer("app", None, &image.manifest_bytes, SIGNATURE, b"again");
    fixture.advance(Duration::from_secs(1)).await;
    assert!(list(&one, &path).await.digests.contains(&added));
    assert!(list(&two, &path).await.digests.contains(&added));
    assert_eq!(asked(&fixture), 2, "once more, when the window was over");
}

#[tokio::test]
async fn a_client_may_ask_for_some_types_and_get_what_it_is_told_of() {
    let fixture = Fixture::new().await;
    let (image, digests) = signed(&fixture);
    let node = fixture.node("node-1").await;
    for query in ["artifactType=application%2Fvnd.example.signature%2Bjson", &format!("artifactType={SIGNATURE}")] {
        let answer = list(&node, &format!("{}?{query}", path(&image))).await;
        assert_eq!((answer.digests.len(), answer.filters.as_deref()), (1, Some("artifactType")), "{query}");
        let descriptor = &answer.json["manifests"][0];
        assert_eq!(descriptor["artifactType"], SIGNATURE);
        assert_eq!(descriptor["annotations"]["org.example.made-by"], "a test");
    }
    let both = list(&node, &format!("{}?artifactType={SIGNATURE}&artifactType={SBOM}", path(&image))).await;
    assert_eq!(both.digests, digests);
    let none = list(&node, &format!("{}?artifactType=other", path(&image))).await;
    assert_eq!((none.status, none.json["manifests"].clone()), (StatusCode::OK, serde_json::json!([])));
    assert_eq!(asked(&fixture), 1, "one list for all types");
    for digest in &digests {
        let (status, hash) = node.get(&format!("app/manifests/{digest}")).await.unwrap();
        assert_eq!((status, &hash), (StatusCode::OK, digest), "what a list names can be pulled");
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_know_the_api_says_it_by_a_tag_and_nothing_by_an_empty_list() {
    let fixture = Fixture::new().await;
    fixture.upstream.set_referrers_api(false);
    let (image, digests) = signed(&fixture);
    let node = fixture.node("node-1").await;
    let other = images::sha256(b"nothing");
    for subject in [format!("demo/app/referrers/{other}"), format!("demo/nowhere/referrers/{other}")] {
        let nothing = list(&node, &subject).await;
        assert_eq!((nothing.status, nothing.content_type.as_str()), (StatusCode::OK, images::OCI_INDEX));
        assert_eq!(nothing.json["manifests"], serde_json::json!([]));
    }
    let descriptors: Vec<_> = digests.iter().map(|digest| format!(r#"{{"digest":"{digest}","size":1}}"#)).collect();
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptors.join(","));
    let tag = image.manifest.replace(':', "-");
    fixture.upstream.publish_manifest("app", Some(&tag), images::OCI_INDEX, index);
    assert_eq!(list(&node, &path(&image)).await.digests, digests);
    let malformed = list(&node, "demo/app/referrers/latest").await;
    assert_eq!(
        (malformed.status, &malformed.json["errors"][0]["code"]),
        (StatusCode::BAD_REQUEST, &"DIGEST_INVALID".into())
    );
}

#[tokio::test]
async fn an_upstream_that_is_away_leaves_its_last_list_and_what_is_cached_and_never_an_empty_one() {
    let limits = Limits { retries: 0, probe: Duration::ZERO, ..Limits::default() };
    let fixture = Fixture::with(&[("demo", pb::SnapshotFreshness::default())], limits).await;
    let (image, digests) = signed(&fixture);
    let (one, two) = fixture.two().await;
    fixture.upstream.script("/referrers/", Fault::Status(503, None));
    assert_eq!(one.get("app/manifests/v1").await.unwrap().0, StatusCode::OK);
    let unknown = list(&one, &path(&image)).await;
    assert_eq!(unknown.status, StatusCode::SERVICE_UNAVAILABLE, "an empty list would say that nothing was signed");
    // A referrer that was pulled is known without a list.
    assert_eq!(one.get(&format!("app/manifests/{}", digests[0])).await.unwrap().0, StatusCode::OK);
    for node in [&one, &two] {
        let cached = list(node, &path(&image)).await;
        assert_eq!((&cached.digests[..], cached.cache_status.as_str()), (&digests[..1], "entrepot; hit; detail=stale"));
        assert!(cached.warning.is_some() && cached.age.is_none());
        assert_eq!(cached.json["manifests"][0]["annotations"]["org.example.made-by"], "a test");
    }

    fixture.upstream.heal();
    fixture.advance(Duration::from_secs(15)).await;
    assert_eq!(list(&one, &path(&image)).await.digests, digests);
    let late = fixture.upstream.publish_referrer("app", None, &image.manifest_bytes, SIGNATURE, b"late");
    assert_eq!(one.get(&format!("app/manifests/{late}")).await.unwrap().0, StatusCode::OK);
    fixture.advance(WINDOW).await;
    fixture.upstream.script("/referrers/", Fault::Status(503, None));
    let before = asked(&fixture);
    for node in [&one, &two] {
        let stale = list(node, &path(&image)).await;
        assert_eq!(stale.digests, [digests.clone(), vec![late.clone()]].concat(), "and what was pulled since");
        assert_eq!(stale.cache_status, "entrepot; hit; detail=stale");
        assert!(stale.warning.unwrap().starts_with("299 - "), "a client is told");
        assert_eq!(list(node, &path(&image)).await.status, StatusCode::OK);
    }
    assert_eq!(asked(&fixture) - before, 2, "each node left it alone after it had failed");

    // Without a rule, only what is cached is known.
    fixture.publish(2, &[]).await;
    let three = fixture.node("node-3").await;
    let mut cached = vec![digests[0].clone(), late];
    cached.sort();
    let unfilled = list(&three, &path(&image)).await;
    assert_eq!((unfilled.digests, unfilled.cache_status.as_str()), (cached, "entrepot; hit"));
    let nowhere = format!("demo/other/referrers/{}", image.manifest);
    assert_eq!(list(&three, &nowhere).await.status, StatusCode::NOT_FOUND);
    let anonymous = three.client.get(format!("{}/v2/{}", three.url, path(&image))).send().await.unwrap();
    assert_eq!(anonymous.status(), StatusCode::UNAUTHORIZED);
}
