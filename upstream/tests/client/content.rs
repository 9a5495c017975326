//! Manifests and blobs.

use entrepot_domain::{Hops, Upstream, manifest};
use entrepot_test_support::images::{self, random_bytes, sha256};
use entrepot_test_support::tls::Authority;
use entrepot_test_support::{Auth, FakeUpstream, Fault};
use entrepot_upstream::{BuildError, Client, Error, Limits, State, Trouble};

use crate::{REGISTRY, client, client_of, digest, name, read_blob, reference, upstream_at};

#[tokio::test]
async fn manifests_and_blobs_come_as_they_are_over_one_connection() {
    let fake = FakeUpstream::start().await;
    let image = fake.publish_image("demo/app", "v1", &[random_bytes(1, 300_000)]);
    let client = client_of(&fake);
    let app = name("demo/app");

    let head = client.head_manifest(&app, &reference("v1")).await.unwrap();
    assert_eq!(head, Some(digest(&image.manifest)));
    let by_tag = client.manifest(&app, &reference("v1")).await.unwrap();
    assert_eq!(by_tag.content_type.as_deref(), Some(images::OCI_MANIFEST));
    assert_eq!(sha256(&by_tag.bytes), image.manifest);
    let by_digest = client.manifest(&app, &reference(&image.manifest)).await.unwrap();
    assert_eq!(by_digest.bytes, by_tag.bytes);
    assert_eq!(client.head_blob(&app, &digest(&image.layers[0])).await.unwrap(), Some(300_000));
    assert_eq!(client.blob(&app, &digest(&image.layers[0])).await.unwrap().size_bytes, Some(300_000));
    assert_eq!(read_blob(&client, "demo/app", &image.layers[0]).await.unwrap(), random_bytes(1, 300_000));
    // A blob that was not read to its end closed its connection.
    assert!(fake.connections() <= 2, "{} connections", fake.connections());
}

#[tokio::test]
async fn r_up_01_02_03_requests_say_who_asks_and_what_is_understood() {
    let fake = FakeUpstream::start().await;
    let image = fake.publish_image("demo", "v1", &[]);
    let client = client_of(&fake);
    client.manifest(&name("demo"), &reference("v1")).await.unwrap();
    read_blob(&client, "demo", &image.config).await.unwrap();
    let log = fake.log();
    let header = |entry: usize, name| log[entry].headers.get_all(name).iter().collect::<Vec<_>>();
    let all = [images::OCI_INDEX, images::DOCKER_LIST, images::OCI_MANIFEST, images::DOCKER_MANIFEST, "*/*"].join(", ");
    assert_eq!(header(0, "accept"), [all.as_str()]);
    assert_eq!(header(1, "accept-encoding"), ["identity"]);
    assert!(header(1, "user-agent")[0].to_str().unwrap().starts_with("entrepot/"));
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let fake = FakeUpstream::start().await;
    let client = client_of(&fake);
    let nothing = sha256(b"nothing");
    let demo = name("demo");
    assert!(matches!(client.head_manifest(&demo, &reference("v1")).await, Err(Error::NotFound)));
    assert!(matches!(client.manifest(&demo, &reference(&nothing)).await, Err(Error::NotFound)));
    assert!(matches!(client.head_blob(&demo, &digest(&nothing)).await, Err(Error::NotFound)));
    assert!(matches!(client.blob(&demo, &digest(&nothing)).await, Err(Error::NotFound)));
}

#[tokio::test]
async fn r_up_04_a_head_that_is_refused_or_says_nothing_is_no_answer() {
    let fake = FakeUpstream::start().await;
    let image = fake.publish_image("demo", "v1", &[]);
    let client = client_of(&fake);
    let (demo, v1) = (name("demo"), reference("v1"));
    for status in [400, 403, 405, 501] {
        fake.script_times("HEAD ", Fault::Status(status, None), 1);
        assert_eq!(client.head_manifest(&demo, &v1).await.unwrap(), None, "{status}");
        fake.script_times("HEAD ", Fault::Status(status, None), 1);
        let size_bytes = client.head_blob(&demo, &digest(&image.config)).await.unwrap();
        assert!(size_bytes.is_some_and(|size| size > 10), "{status}: {size_bytes:?}");
    }
    // A host that supports neither HEAD nor ranges is asked for the whole blob, of which nothing is read.
    fake.script_times("HEAD ", Fault::Status(400, None), 1);
    fake.script_times("GET ", Fault::Status(400, None), 1);
    let size_bytes = client.head_blob(&demo, &digest(&image.config)).await.unwrap();
    assert!(size_bytes.is_some_and(|size| size > 10), "{size_bytes:?}");
    fake.script_times("HEAD ", Fault::NoDigestHeader, 1);
    assert_eq!(client.head_manifest(&demo, &v1).await.unwrap(), None);
    fake.script_times("HEAD ", Fault::DigestHeader("nonsense".into()), 1);
    assert_eq!(client.head_manifest(&demo, &v1).await.unwrap(), None);
    let empty = fake.publish_blob("demo", Vec::new());
    fake.script_times("HEAD ", Fault::Status(405, None), 1);
    assert_eq!(client.head_blob(&demo, &digest(&empty)).await.unwrap(), Some(0));
}

#[tokio::test]
async fn r_up_05_a_manifest_with_another_digest_is_refused() {
    let fake = FakeUpstream::start().await;
    let image = fake.publish_image("demo", "v1", &[]);
    let client = client_of(&fake);
    fake.script_times("GET ", Fault::FlipBit, 1);
    let spoiled = client.manifest(&name("demo"), &reference(&image.manifest)).await;
    assert!(matches!(spoiled, Err(Error::WrongDigest)), "{spoiled:?}");
    // The header does not matter here.
    fake.script_times("GET ", Fault::DigestHeader(sha256(b"another")), 1);
    assert!(client.manifest(&name("demo"), &reference(&image.manifest)).await.is_ok());
}

#[tokio::test]
async fn r_edge_14_a_manifest_is_never_read_past_its_limit() {
    let fake = FakeUpstream::start().await;
    fake.publish_manifest("demo", Some("fits"), images::OCI_INDEX, vec![b' '; manifest::MAX_BYTES]);
    fake.publish_manifest("demo", Some("huge"), images::OCI_INDEX, vec![b' '; manifest::MAX_BYTES + 1]);
    let client = client_of(&fake);
    assert_eq!(client.manifest(&name("demo"), &reference("fits")).await.unwrap().bytes.len(), manifest::MAX_BYTES);
    for fault in [None, Some(Fault::NoLength)] {
        fault.into_iter().for_each(|fault| fake.script("GET ", fault));
        let huge = client.manifest(&name("demo"), &reference("huge")).await;
        assert!(matches!(huge, Err(Error::TooLarge { limit_bytes: manifest::MAX_BYTES })), "{huge:?}");
    }
}

#[tokio::test]
async fn a_web_page_is_no_manifest_and_encoded_content_is_none() {
    let fake = FakeUpstream::start().await;
    let image = fake.publish_image("demo", "v1", &[]);
    let client = client_of(&fake);
    fake.script_times("GET ", Fault::Html, 1);
    assert!(matches!(client.manifest(&name("demo"), &reference("v1")).await, Err(Error::BadAnswer { .. })));
    fake.script("GET ", Fault::Header("content-encoding".into(), "gzip".into()));
    assert!(matches!(client.manifest(&name("demo"), &reference("v1")).await, Err(Error::BadAnswer { .. })));
    assert!(matches!(read_blob(&client, "demo", &image.config).await, Err(Error::BadAnswer { .. })));
}

#[tokio::test]
async fn r_up_08_a_blob_without_length_is_streamed() {
    let fake = FakeUpstream::start().await;
    let blob = fake.publish_blob("demo", random_bytes(4, 100_000));
    fake.script("GET ", Fault::NoLength);
    let client = client_of(&fake);
    assert_eq!(client.blob(&name("demo"), &digest(&blob)).await.unwrap().size_bytes, None);
    assert_eq!(read_blob(&client, "demo", &blob).await.unwrap(), random_bytes(4, 100_000));
}

#[tokio::test]
async fn an_upstreams_own_authority_is_trusted_for_it_alone() {
    let (ours, other) = (Authority::new(), Authority::new());
    let fake = FakeUpstream::start_tls(&ours).await;
    fake.publish_image("demo", "v1", &[]);
    let mut upstream = upstream_at(&fake.url());
    for (pem, is_trusted) in [(ours.pem() + &other.pem(), true), (other.pem(), false), (String::new(), false)] {
        upstream.ca_certificates = pem;
        match client(&upstream).manifest(&name("demo"), &reference("v1")).await {
            Ok(_) => assert!(is_trusted),
            Err(Error::Away { trouble: Trouble::Tls, .. }) => assert!(!is_trusted),
            Err(other) => panic!("{other:?}"),
        }
    }
    for pem in ["nonsense", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----"] {
        upstream.ca_certificates = pem.to_owned();
        let built = Client::new(&upstream, REGISTRY, Limits::default());
        assert!(matches!(built, Err(BuildError::CaCertificates)), "{pem}: {built:?}");
    }
}

#[tokio::test]
async fn a_manifest_behind_a_tag_that_was_damaged_on_its_way_is_fetched_once_more() {
    let fake = FakeUpstream::start().await;
    let image = fake.publish_image("demo", "v1", &[]);
    let client = client_of(&fake);
    let fetch = async || client.manifest(&name("demo"), &reference("v1")).await;
    fake.script_times("GET ", Fault::FlipBit, 1);
    assert_eq!(fetch().await.unwrap().bytes, image.manifest_bytes);
    assert_eq!(fake.fetches_of("manifests/v1"), 2);
    // The header is wrong, not the bytes.
    fake.script_times("GET ", Fault::DigestHeader(sha256(b"another")), 2);
    assert_eq!(fetch().await.unwrap().bytes, image.manifest_bytes);
    assert_eq!(fake.fetches_of("manifests/v1"), 4);
    // The bytes are damaged in a different way each time.
    fake.script_times("GET ", Fault::FlipBitAt(30), 2);
    fake.script_times("GET ", Fault::FlipBitAt(3), 1);
    let spoiled = fetch().await;
    assert!(matches!(spoiled, Err(Error::WrongDigest)), "{spoiled:?}");
}

#[tokio::test]
async fn a_head_that_denies_a_known_tag_leaves_it_to_a_fetch() {
    let fake = FakeUpstream::start().await;
    let image = fake.publish_image("demo", "v1", &[]);
    let client = client_of(&fake);
    let (demo, tag, known) = (name("demo"), "v1".parse().unwrap(), digest(&image.manifest));
    assert_eq!(client.confirm_tag(&demo, &tag, &known).await.unwrap(), Some(known.clone()));
    for status in [400, 404] {
        fake.script_times("HEAD ", Fault::Status(status, None), 1);
        assert_eq!(client.confirm_tag(&demo, &tag, &known).await.unwrap(), None, "{status}");
    }
    // For an unknown blob the answer is trusted.
    fake.script_times("HEAD ", Fault::Status(404, None), 1);
    assert!(matches!(client.head_manifest(&demo, &reference("v1")).await, Err(Error::NotFound)));
}

#[tokio::test]
async fn all_that_goes_out_says_which_registries_it_comes_from() {
    let (fake, other) = (FakeUpstream::start().await, FakeUpstream::start_at(([127, 0, 0, 3], 0).into()).await);
    fake.set_auth(Auth::AnonymousToken);
    let image = fake.publish_image("demo", "v1", &[random_bytes(1, 1000)]);
    other.publish_all_of(&fake);
    fake.script("/blobs/", Fault::RedirectToOrigin(other.url()));
    let upstream = Upstream { allow_hosts: vec!["127.0.0.3".parse().unwrap()], ..upstream_at(&fake.url()) };
    let (client, before) = (client(&upstream), uuid::Uuid::from_u128(7));
    let all = async |client: &Client| {
        let (demo, digest) = (name("demo"), digest(&image.layers[0]));
        client.describe_manifest(&demo, &reference("v1")).await.unwrap();
        client.manifest(&demo, &reference("v1")).await.unwrap();
        client.head_blob(&demo, &digest).await.unwrap();
        read_blob(client, "demo", &image.layers[0]).await.unwrap();
        client.blob_part(&demo, &digest, 0..10).await.unwrap();
        client.tags(&demo).await.unwrap();
        client.referrers(&demo, &digest).await.unwrap();
        client.probe(Some((&demo, &reference("v1")))).await;
    };
    all(&client).await;
    let own = format!("1.1 {REGISTRY}");
    for entry in fake.log().iter().chain(&other.log()) {
        assert_eq!(entry.headers.get("via").unwrap(), &own, "{} {}", entry.method, entry.path);
    }
    let (seen, seen_there) = (fake.log().len(), other.log().len());
    all(&client.behind(&Hops::default().and(before))).await;
    let both = format!("1.1 {before}, {own}");
    let (log, there) = (fake.log(), other.log());
    assert!(log.len() > seen && there.len() > seen_there);
    for entry in
        log[seen..].iter().chain(&there[seen_there..]).filter(|entry| entry.path != "/token" && entry.path != "/v2/")
    {
        assert_eq!(entry.headers.get("via").unwrap(), &both, "{} {}", entry.method, entry.path);
    }
}

#[tokio::test]
async fn an_upstream_that_leads_back_is_not_away_and_is_not_asked_again() {
    let fake = FakeUpstream::start().await;
    fake.publish_image("demo", "v1", &[]);
    let client = client_of(&fake);
    for _ in 0..5 {
        fake.script_times("GET ", Fault::Status(508, None), 1);
        let asked = fake.request_count();
        let error = client.manifest(&name("demo"), &reference("v1")).await.unwrap_err();
        assert!(matches!(error, Error::Loop), "{error:?}");
        assert_eq!(fake.request_count() - asked, 1);
    }
    assert_eq!(client.health().state, State::Healthy);
    assert!(client.manifest(&name("demo"), &reference("v1")).await.is_ok());
}
