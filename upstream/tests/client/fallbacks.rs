//! Fallback endpoints, while an upstream's own endpoint is away or limits our requests.

use entrepot_domain::upstream::{Credential, Endpoint, PlainHttp};
use entrepot_domain::{Reference, Secret, Tag, Upstream};
use entrepot_test_support::images::{random_bytes, sha256};
use entrepot_test_support::{Auth, FakeUpstream, Fault};
use entrepot_upstream::{Client, Error, Limits, State};

use crate::{REGISTRY, client, digest, name, read_blob, reference, short, upstream_at};

/// An upstream with two fallbacks that have the same content.
struct Three {
    own: FakeUpstream,
    first: FakeUpstream,
    second: FakeUpstream,
}

impl Three {
    async fn start() -> Self {
        let (own, first, second) =
            (FakeUpstream::start().await, FakeUpstream::start().await, FakeUpstream::start().await);
        Self { own, first, second }
    }

    fn upstream(&self) -> Upstream {
        let endpoint = |fake: &FakeUpstream| Endpoint::parse(&fake.url(), PlainHttp::Allowed).expect("an endpoint");
        Upstream {
            fallback_endpoints: vec![endpoint(&self.first), endpoint(&self.second)],
            ..upstream_at(&self.own.url())
        }
    }

    fn share(&self) {
        self.first.publish_all_of(&self.own);
        self.second.publish_all_of(&self.own);
    }

    fn asked(&self) -> [usize; 3] {
        [&self.own, &self.first, &self.second].map(FakeUpstream::request_count)
    }
}

fn tag(text: &str) -> Tag {
    text.parse().expect("a tag")
}

#[tokio::test]
async fn fallbacks_are_asked_in_order_while_the_endpoint_is_away_or_throttled_and_not_otherwise() {
    let three = Three::start().await;
    let image = three.own.publish_image("demo", "v1", &[random_bytes(1, 1000)]);
    three.share();
    for trouble in [Fault::Status(503, None), Fault::Status(429, Some("60".into())), Fault::HangUp] {
        let client = client(&three.upstream());
        let [_, first, second] = three.asked();
        client.manifest(&name("demo"), &reference("v1")).await.unwrap();
        assert_eq!(three.asked()[1..], [first, second], "nobody else is asked while it answers");
        three.own.script("/v2/", trouble.clone());
        let fetched = client.manifest(&name("demo"), &reference("v1")).await.unwrap();
        assert_eq!(sha256(&fetched.bytes), image.manifest, "{trouble:?}");
        assert_eq!(read_blob(&client, "demo", &image.layers[0]).await.unwrap(), random_bytes(1, 1000));
        assert_eq!(three.second.request_count(), second, "the first one has it");
        assert!(three.first.request_count() > first);
        // The first fallback is away, too.
        three.first.script("/v2/", trouble.clone());
        assert_eq!(read_blob(&client, "demo", &image.layers[0]).await.unwrap(), random_bytes(1, 1000));
        assert!(three.second.request_count() > second);
        three.own.heal();
        three.first.heal();
    }
    // The endpoint's answer counts, whatever the fallbacks have.
    let client = client(&three.upstream());
    let before = three.asked();
    three.own.remove("demo", "v1");
    assert!(matches!(client.manifest(&name("demo"), &reference("v1")).await, Err(Error::NotFound)));
    three.own.script("/blobs/", Fault::Status(403, None));
    assert!(matches!(read_blob(&client, "demo", &image.layers[0]).await, Err(Error::Denied { .. })));
    assert_eq!(three.asked()[1..], before[1..]);
}

#[tokio::test]
async fn what_a_fallback_lacks_or_refuses_says_nothing() {
    let three = Three::start().await;
    three.own.publish_image("demo", "v1", &[]);
    three.own.script("/v2/", Fault::Status(503, None));
    let client = client(&three.upstream());
    for trouble in [Fault::Status(404, None), Fault::Status(403, None), Fault::Html] {
        three.first.script("/v2/", trouble.clone());
        three.second.script("/v2/", trouble.clone());
        let error = client.manifest(&name("demo"), &reference("v1")).await.unwrap_err();
        assert!(matches!(error, Error::Away { status: Some(503), .. }), "{trouble:?}: {error:?}");
        three.first.heal();
        three.second.heal();
    }
}

#[tokio::test]
async fn a_fallback_that_says_something_else_of_a_known_tag_is_not_believed() {
    let three = Three::start().await;
    let known = three.own.publish_image("demo", "v1", &[random_bytes(1, 1000)]);
    three.share();
    let other = three.first.publish_image("demo", "v1", &[random_bytes(2, 1000)]);
    three.own.stop().await;
    let client = client(&three.upstream());
    let (demo, v1, digest_) = (name("demo"), reference("v1"), digest(&known.manifest));
    // The second fallback confirms what is known, and that is enough.
    assert_eq!(client.confirm_tag(&demo, &tag("v1"), &digest_).await.unwrap(), Some(digest_.clone()));
    let fetched = client.manifest_known_as(&demo, &v1, Some(&digest_)).await.unwrap();
    assert_eq!(sha256(&fetched.bytes), known.manifest);
    let seen = client.disagreements();
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[0].known.to_string(), seen[0].reference.clone()), (known.manifest.clone(), v1.clone()));
    assert_eq!(seen[0].said.as_ref().map(ToString::to_string), Some(other.manifest.clone()));
    assert_eq!(seen[0].endpoint.to_string(), three.first.url());
    // If no fallback confirms it, the call fails with the endpoint's error.
    three.second.stop().await;
    let error = client.confirm_tag(&demo, &tag("v1"), &digest_).await.unwrap_err();
    assert!(matches!(error, Error::Away { .. }), "{error:?}");
    // An unknown tag is taken from the first fallback whose content matches its digest.
    let unknown = client.manifest(&demo, &v1).await.unwrap();
    assert_eq!(sha256(&unknown.bytes), other.manifest);
    three.first.script("manifests/", Fault::FlipBit);
    assert!(client.manifest(&demo, &v1).await.is_err());
}

#[tokio::test]
async fn a_fallback_whose_content_does_not_have_its_digest_is_passed_over() {
    let three = Three::start().await;
    let image = three.own.publish_image("demo", "v1", &[random_bytes(1, 1000)]);
    three.share();
    three.own.stop().await;
    three.first.script("GET ", Fault::FlipBit);
    let client = client(&three.upstream());
    let by_digest = Reference::Digest(digest(&image.manifest));
    let fetched = client.manifest(&name("demo"), &by_digest).await.unwrap();
    assert_eq!(sha256(&fetched.bytes), image.manifest);
    // The caller that verifies a blob reports that it was wrong.
    let layer = digest(&image.layers[0]);
    assert_ne!(sha256(&read_blob(&client, "demo", &image.layers[0]).await.unwrap()), image.layers[0]);
    assert!(client.was_wrong(&name("demo"), &layer));
    assert_eq!(sha256(&read_blob(&client, "demo", &image.layers[0]).await.unwrap()), image.layers[0]);
    assert_eq!(client.disagreements().len(), 2);
    assert!(client.disagreements().iter().all(|said| said.said.is_none()));
}

#[tokio::test]
async fn a_fallback_gets_the_credential_only_if_the_operator_says_so() {
    let three = Three::start().await;
    three.own.publish_image("demo", "v1", &[]);
    three.share();
    three.own.stop().await;
    three.first.set_auth(Auth::Basic("puller".into(), "pass-word-1".into()));
    let credential = Credential { username: "puller".into(), password: Secret::new("pass-word-1".into()) };
    let with = Upstream { credential: Some(credential), ..three.upstream() };
    client(&with).manifest(&name("demo"), &reference("v1")).await.unwrap();
    let told = |fake: &FakeUpstream| fake.log().iter().filter(|entry| entry.authorization().is_some()).count();
    assert_eq!((told(&three.first), told(&three.second)), (0, 0));
    let allowed = vec![three.first.address().to_string().parse().expect("a host")];
    client(&Upstream { allow_hosts: allowed, ..with }).manifest(&name("demo"), &reference("v1")).await.unwrap();
    assert_eq!((told(&three.first), told(&three.second)), (1, 0));
}

#[tokio::test]
async fn a_silent_endpoint_leaves_time_for_a_fallback() {
    let three = Three::start().await;
    three.own.publish_image("demo", "v1", &[]);
    three.share();
    three.own.script("/v2/", Fault::Silence);
    let limits = Limits { retries: 0, ..short() };
    let client = Client::new(&three.upstream(), REGISTRY, limits).expect("a client");
    for _ in 0..4 {
        client.manifest(&name("demo"), &reference("v1")).await.unwrap();
    }
    assert!(matches!(client.health().state, State::Away { .. }));
    assert_eq!(three.own.request_count(), 3, "it is left alone then");
    let endpoints = client.endpoints();
    assert!(!endpoints[0].is_asked() && endpoints[1].is_asked() && endpoints.len() == 3);
}
