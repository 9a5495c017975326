//! Lists of referrers.

use entrepot_test_support::{FakeUpstream, Fault, images};

use super::*;

const SUBJECT: &[u8] = b"x";

/// The descriptor of a referrer, with unknown fields.
fn descriptor(number: u8) -> String {
    let digest = Digest::sha256(&[number]);
    format!(r#"{{"mediaType":"m","digest":"{digest}", "size":1,"artifactType":"sig","annotations":{{"a":"b"}},"x":3}}"#)
}

async fn referrers(upstream: &FakeUpstream, limits: Limits) -> Result<Vec<String>, Error> {
    let client = Client::new(&upstream_at(&upstream.url()), REGISTRY, limits).expect("a client");
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
    // Wherever the link leads, it is the same list.
    let next = "</v2/app/referrers/second?page=2>; rel=\"last next\"";
    upstream.script_times("/referrers/", Fault::Header("link".into(), next.into()), 1);
    let gate = upstream.hold("/referrers/");
    let second = format!("{},{}", descriptor(2), r#"{"digest":"md5:1","size":1}"#);
    let playing = async {
        gate.until_waiting(1).await;
        answer(&upstream, index(&second), 1);
        gate.release();
    };
    let (found, ()) = futures_util::future::join(referrers(&upstream, Limits::default()), playing).await;
    let found = found.expect("two pages");
    assert_eq!(found, [descriptor(1), descriptor(2)], "as they were, but for what cannot be fetched");
    let asked: Vec<_> = upstream.log().into_iter().map(|entry| (entry.path, entry.query)).collect();
    assert_eq!((asked.len(), &asked[0].0), (2, &asked[1].0), "{asked:?}");
    assert_eq!(asked[1].1, "page=2");
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
    // An answer that is not an index is refused on any page.
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
    let client = Client::new(&upstream_at(&upstream.url()), REGISTRY, short()).expect("a client");
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
    for (link, why) in [
        ("</v2/team/app/referrers/x>; rel=\"next\"", "without saying which"),
        ("</v2/team/app/referrers/x?a>; rel=\"next\"", "in a circle"),
        ("next", "not understood"),
    ] {
        upstream.script("/referrers/", Fault::Header("link".into(), link.into()));
        let error = referrers(&upstream, short()).await.expect_err("refused");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn what_a_referrer_is_is_read_where_the_list_of_clients_does_not_say_it() {
    const EMPTY: &str = "application/vnd.oci.empty.v1+json";
    const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let upstream = FakeUpstream::start().await;
    upstream.set_referrers_api(false);
    let image = upstream.publish_image("team/app", "v1", &[]);
    let publish = |layer: &[u8]| upstream.publish_referrer("team/app", None, &image.manifest_bytes, BUNDLE, layer);
    let (one, two, told) = (publish(b"1"), publish(b"2"), publish(b"3"));
    let missing = Digest::sha256(b"nobody has it");
    let kind = |digest: &str, kind: &str| {
        format!(r#"{{"mediaType":"{}","digest":"{digest}","size":1{kind}}}"#, images::OCI_MANIFEST)
    };
    let listed = [
        kind(&one, &format!(r#","artifactType":"{EMPTY}""#)),
        kind(&two, ""),
        kind(&told, r#","artifactType":"as/told""#),
        kind(&missing.to_string(), &format!(r#","artifactType":"{EMPTY}""#)),
    ];
    let tag = image.manifest.replace(':', "-");
    upstream.publish_manifest("team/app", Some(&tag), images::OCI_INDEX, index(&listed.join(",")));
    let client = client_of(&upstream);
    let list = async |client: &Client| {
        let found = client.referrers(&name("team/app"), &digest(&image.manifest)).await.expect("a list");
        found.iter().map(|one| one.known_type().map(str::to_owned)).collect::<Vec<_>>()
    };
    let bundle = || Some(BUNDLE.to_owned());
    assert_eq!(list(&client).await, [bundle(), bundle(), Some("as/told".to_owned()), None]);
    assert_eq!(upstream.fetches_of(&told), 0, "what is said is believed");
    let limits = Limits { referrers_read: 1, ..Limits::default() };
    let hasty = Client::new(&upstream_at(&upstream.url()), REGISTRY, limits).expect("a client");
    assert_eq!(list(&hasty).await, [bundle(), None, Some("as/told".to_owned()), None], "no more are read");
}
