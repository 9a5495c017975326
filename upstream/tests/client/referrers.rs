//! What refers to a manifest.

use entrepot_test_support::{FakeUpstream, Fault, images};

use super::*;

const SUBJECT: &[u8] = b"x";

/// Tells of a referrer, with fields that nobody knows.
fn descriptor(number: u8) -> String {
    let digest = Digest::sha256(&[number]);
    format!(r#"{{"mediaType":"m","digest":"{digest}", "size":1,"artifactType":"sig","annotations":{{"a":"b"}},"x":3}}"#)
}

async fn referrers(upstream: &FakeUpstream, limits: Limits) -> Result<Vec<String>, Error> {
    let client = Client::new(&upstream_at(&upstream.url()), limits).expect("a client");
    let found = client.referrers(&"team/app".parse().expect("a name"), &Digest::sha256(SUBJECT)).await?;
    Ok(found.iter().map(|one| one.descriptor.to_string()).collect())
}

fn index(manifests: &str) -> Vec<u8> {
    format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{manifests}]}}"#, images::OCI_INDEX).into()
}

fn answer(upstream: &FakeUpstream, body: Vec<u8>, times: usize) {
    upstream.script_times("/referrers/", Fault::Body(body), times);
}

#[tokio::test]
async fn descriptors_come_as_the_upstream_has_them_page_by_page() {
    let upstream = FakeUpstream::start().await;
    answer(&upstream, index(&descriptor(1)), 1);
    let next = "</v2/team/app/referrers/second>; rel=\"next\"";
    upstream.script_times("/referrers/", Fault::Header("link".into(), next.into()), 1);
    let second = format!("{},{}", descriptor(2), r#"{"digest":"md5:1","size":1}"#);
    upstream.script_times("/referrers/second", Fault::Body(index(&second)), 1);
    let found = referrers(&upstream, short()).await.expect("two pages");
    assert_eq!(found, [descriptor(1), descriptor(2)], "as they were, but for what cannot be fetched");
    let paths: Vec<_> = upstream.log().into_iter().map(|entry| entry.path).collect();
    assert_eq!(paths.len(), 2, "{paths:?}");
}

#[tokio::test]
async fn an_upstream_without_the_api_is_asked_for_the_tag_that_holds_the_same() {
    let upstream = FakeUpstream::start().await;
    upstream.set_referrers_api(false);
    assert_eq!(referrers(&upstream, short()).await.expect("none"), [""; 0]);
    let tag = Digest::sha256(SUBJECT).to_string().replace(':', "-");
    upstream.publish_manifest("team/app", Some(&tag), images::OCI_INDEX, index(&descriptor(1)));
    for status in [404, 400, 405, 406, 501] {
        upstream.script_times("/referrers/", Fault::Status(status, None), 1);
        assert_eq!(referrers(&upstream, short()).await.expect("by tag"), [descriptor(1)], "{status}");
    }
    // A page that is no index is an answer of something else, wherever it is.
    upstream.script_times("/referrers/", Fault::Html, 1);
    assert_eq!(referrers(&upstream, short()).await.expect("by tag").len(), 1);
    let before = upstream.request_count();
    upstream.script_times("/referrers/", Fault::Redirect(303, format!("{}/login", upstream.url())), 1);
    assert_eq!(referrers(&upstream, short()).await.expect("by tag").len(), 1);
    assert_eq!(upstream.request_count() - before, 2, "the redirect was not followed");
}

#[tokio::test]
async fn a_tag_that_is_the_manifest_itself_or_an_image_holds_no_referrers() {
    let upstream = FakeUpstream::start().await;
    upstream.set_referrers_api(false);
    let tag = Digest::sha256(SUBJECT).to_string().replace(':', "-");
    upstream.publish_image("team/app", &tag, &[b"layer".to_vec()]);
    assert_eq!(referrers(&upstream, short()).await.expect("none"), [""; 0]);
    let subject = index(&descriptor(1));
    let client = Client::new(&upstream_at(&upstream.url()), short()).expect("a client");
    let tag = Digest::sha256(&subject).to_string().replace(':', "-");
    upstream.publish_manifest("team/app", Some(&tag), images::OCI_INDEX, &subject);
    let found = client.referrers(&"team/app".parse().expect("a name"), &Digest::sha256(&subject)).await;
    assert_eq!(found.expect("none"), []);
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let upstream = FakeUpstream::start().await;
    upstream.script_times("/referrers/", Fault::Status(403, None), 1);
    assert!(matches!(referrers(&upstream, short()).await, Err(Error::Denied { .. })));
    let three = [1, 2, 3].map(descriptor).join(",");
    for (body, limits, why) in [
        (b"nonsense".to_vec(), short(), "a list of referrers that is none"),
        (index("3"), short(), "a list of referrers that is none"),
        (index("{}"), short(), "a list of referrers that is none"),
        (index(&three), Limits { referrers_count: 2, ..short() }, "more than 2 referrers"),
    ] {
        answer(&upstream, body, 1);
        let error = referrers(&upstream, limits).await.expect_err("refused");
        assert!(error.to_string().contains(why), "{error}");
        upstream.heal();
    }
    answer(&upstream, index(&descriptor(1)), usize::MAX);
    upstream.script("/referrers/", Fault::Header("link".into(), "</v2/team/app/referrers/x>; rel=\"next\"".into()));
    let error = referrers(&upstream, Limits { list_pages: 3, ..short() }).await.expect_err("refused");
    assert!(error.to_string().contains("on more than 3 pages"), "{error}");
}
