//! A HEAD for a tag at one node, where it is missing, followed by a pull of its digest at another.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests wait for what they spawn")]

#[path = "several/fixture.rs"]
mod fixture;

use std::time::Duration;

use entrepot_domain::{RepositoryName, Tag};
use entrepot_records::{RepositoryRecord, layout, tombstone};
use entrepot_store::Prefix;
use entrepot_test_support::{Fault, images, wait_until};
use reqwest::{Method, StatusCode};

use fixture::{Fixture, KEY, LIMIT, Node};

async fn head(node: &Node, path: &str) -> StatusCode {
    let request = node.client.request(Method::HEAD, format!("{}/v2/demo/{path}", node.url));
    request.basic_auth(KEY.0, Some(KEY.1)).send().await.unwrap().status()
}

#[tokio::test]
async fn a_tag_that_one_node_looked_at_is_noted_when_another_pulls_what_it_means() {
    let fixture = Fixture::new().await;
    let image = fixture.upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let (one, two) = fixture.two().await;
    assert_eq!(head(&one, "app/manifests/v1").await, StatusCode::OK);
    assert!(fixture.upstream.log().iter().all(|entry| entry.method == "HEAD"), "nothing was fetched");
    let path = format!("app/manifests/{}", image.manifest);
    assert_eq!(two.get(&path).await.unwrap(), (StatusCode::OK, image.manifest.clone()));
    let tag = async || {
        let keys = fixture.store.list(&Prefix::below("repositories").unwrap(), None, 100).await.unwrap();
        keys.iter().any(|entry| entry.key.as_str().ends_with("/tags/v1"))
    };
    wait_until(LIMIT, "the tag is noted", tag).await;
    fixture.upstream.stop().await;
    for node in [&one, &two] {
        assert_eq!(node.get("app/manifests/v1").await.unwrap(), (StatusCode::OK, image.manifest.clone()));
    }
}

#[tokio::test]
async fn a_head_that_is_answered_late_does_not_undo_a_deletion() {
    let fixture = Fixture::new().await;
    let (name, tag): (RepositoryName, Tag) = ("demo/app".parse().unwrap(), "v1".parse().unwrap());
    let second = || fixture.clock.advance(Duration::from_secs(1));
    let old = fixture.upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let node = fixture.node("node-1").await;
    let pull = async |reference: &str| node.get(&format!("app/manifests/{reference}")).await.unwrap();
    assert_eq!(pull(&old.manifest).await, (StatusCode::OK, old.manifest.clone()), "its manifest is here");
    fixture.upstream.script("HEAD /v2/app/manifests/v1", Fault::DigestHeader(old.manifest.clone()));
    let gate = fixture.upstream.hold("HEAD /v2/app/manifests/v1");
    let meanwhile = async {
        gate.until_waiting(1).await;
        second();
        assert_eq!(pull("v1").await, (StatusCode::OK, old.manifest.clone()));
        second();
        let new = fixture.upstream.publish_image("app", "v1", &[images::random_bytes(2, 100)]);
        let key = layout::repository(&name);
        let (record, _) = entrepot_records::read::<RepositoryRecord>(&*fixture.store, &key).await.unwrap().unwrap();
        let of = (&name, record.incarnation);
        tombstone::bury_tag(&*fixture.store, of, &tag, fixture.clock.now(), |_| true).await.unwrap().unwrap();
        second();
        gate.release();
        new
    };
    let (told, new) = tokio::join!(head(&node, "app/manifests/v1"), meanwhile);
    assert_eq!(told, StatusCode::OK);
    assert_eq!(pull("v1").await, (StatusCode::OK, new.manifest));
}

#[tokio::test]
async fn what_no_content_can_be_is_not_repeated_after_an_upstream() {
    // A manifest is never this large, or the upstream names another kind of digest: then a GET answers.
    for fault in [Fault::WrongLength(1 << 50), Fault::DigestHeader(format!("sha512:{}", "0".repeat(128)))] {
        let fixture = Fixture::new().await;
        let image = fixture.upstream.publish_image("app", "v1", &[images::random_bytes(1, 1000)]);
        fixture.upstream.script("HEAD /v2/app/", fault.clone());
        let node = fixture.node("node-1").await;
        let head = async |path: String| {
            let request = node.client.request(Method::HEAD, format!("{}/v2/demo/app/{path}", node.url));
            let answer = request.basic_auth(KEY.0, Some(KEY.1)).send().await.unwrap();
            let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            (answer.status(), header("docker-content-digest"), header("content-length"))
        };
        let layer = image.layers[0].clone();
        let size = if matches!(fault, Fault::WrongLength(_)) { None } else { Some("1000".to_owned()) };
        assert_eq!(head(format!("blobs/{layer}")).await, (StatusCode::OK, Some(layer), size));
        let size = image.manifest_bytes.len().to_string();
        assert_eq!(head("manifests/v1".to_owned()).await, (StatusCode::OK, Some(image.manifest), Some(size)));
    }
}

#[tokio::test]
async fn a_manifest_of_a_type_that_is_not_known_is_kept_and_its_head_says_what_its_get_does() {
    const OTHER: &str = "application/vnd.example.thing.v1+json";
    let image = r#""schemaVersion":2,"layers":[{"mediaType":"a/b","digest":"sha256:1","size":1}]"#;
    let own = format!(r#"{{"mediaType":"{OTHER}",{image}}}"#);
    let fixture = Fixture::new().await;
    // By the header, where the body does not say it, or is no JSON; by the body, whatever the header says.
    let published = [
        ("bare", OTHER, &format!("{{{image}}}")),
        ("params", "application/vnd.example.thing.v1+json; v=1", &"no json".to_owned()),
        ("own", "application/json", &own),
        ("other-header", images::OCI_MANIFEST, &own),
    ];
    let (one, two) = fixture.two().await;
    let ask = async |node: &Node, method: Method, reference: &str| {
        let request = node.client.request(method, format!("{}/v2/demo/app/manifests/{reference}", node.url));
        // Who does not accept the type gets it all the same.
        let request = request.header("accept", images::OCI_INDEX).basic_auth(KEY.0, Some(KEY.1));
        let answer = request.send().await.unwrap();
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let said = ["content-type", "docker-content-digest", "content-length"].map(header);
        (answer.status(), said, answer.bytes().await.unwrap())
    };
    for (tag, header, body) in published {
        let digest = fixture.upstream.publish_manifest("app", Some(tag), header, body);
        let said = [OTHER, &digest, &body.len().to_string()].map(|text| Some(text.to_owned()));
        if header == images::OCI_MANIFEST {
            // What an upstream says by HEAD of a type that is known is repeated until the body is here.
            assert_eq!(ask(&one, Method::GET, tag).await.0, StatusCode::OK);
        }
        for (node, reference) in [(&one, tag), (&two, &*digest), (&two, tag), (&one, &*digest)] {
            let about = format!("`{tag}` by `{reference}`");
            let head = ask(node, Method::HEAD, reference).await;
            assert_eq!((head.0, &head.1), (StatusCode::OK, &said), "HEAD {about}");
            let get = ask(node, Method::GET, reference).await;
            assert_eq!((get.0, &get.1), (StatusCode::OK, &said), "GET {about}");
            assert_eq!(get.2, body.as_bytes(), "{about}");
        }
    }
    // Docker's first schema, and what may be anybody's page, stay what they are.
    for (tag, header, body) in [
        ("schema-1", "application/vnd.docker.distribution.manifest.v1+prettyjws", r#"{"schemaVersion":1}"#),
        ("page", "text/html", "<html>"),
        ("error", "application/json", r#"{"errors":[]}"#),
        ("both", OTHER, r#"{"manifests":[],"config":{}}"#),
    ] {
        fixture.upstream.publish_manifest("app", Some(tag), header, body);
        assert_eq!(ask(&one, Method::GET, tag).await.0, StatusCode::BAD_GATEWAY, "{tag}");
    }
    fixture.upstream.stop().await;
    for node in [&one, &two] {
        for (tag, _, body) in published {
            let answer = ask(node, Method::GET, tag).await;
            assert_eq!((answer.1[0].as_deref(), answer.2.as_ref()), (Some(OTHER), body.as_bytes()), "{tag}");
        }
    }
}
