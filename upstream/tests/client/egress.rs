//! Redirects, and forbidden addresses.

use entrepot_domain::Upstream;
use entrepot_test_support::images::random_bytes;
use entrepot_test_support::tls::Authority;
use entrepot_test_support::{Auth, FakeUpstream, Fault};
use entrepot_upstream::egress::Refusal;
use entrepot_upstream::{Error, Trouble};

use crate::{Canary, client, client_of, name, read_blob, reference, upstream_at, upstream_with_credential};

/// A second host, at another loopback address.
async fn other_host() -> FakeUpstream {
    FakeUpstream::start_at(([127, 0, 0, 3], 0).into()).await
}

/// An upstream that may redirect to `other`.
fn leading_to(other: &FakeUpstream, upstream: Upstream) -> Upstream {
    Upstream { allow_hosts: vec![other.address().to_string().parse().expect("a host")], ..upstream }
}

#[tokio::test]
async fn r_authu_09_a_redirect_to_another_host_leaves_the_login_behind() {
    let (fake, other) = (FakeUpstream::start().await, other_host().await);
    fake.set_auth(Auth::Token("puller".into(), "pass-word-1".into()));
    let blob = fake.publish_blob("demo", random_bytes(1, 100_000));
    other.publish_blob("data", random_bytes(1, 100_000));
    for status in [301, 302, 303, 307, 308] {
        let location = format!("{}/v2/data/blobs/{blob}?X-Signature=secret", other.url());
        fake.script_times("GET /v2/demo/blobs/", Fault::Redirect(status, location), 2);
        let upstream = leading_to(&other, upstream_with_credential(&fake.url()));
        let bytes = read_blob(&client(&upstream), "demo", &blob).await;
        fake.heal();
        assert_eq!(bytes.unwrap(), random_bytes(1, 100_000), "{status}");
    }
    assert_eq!(other.request_count(), 5);
    assert!(other.log().iter().all(|entry| entry.authorization().is_none()));
}

#[tokio::test]
async fn r_authu_10_a_host_behind_a_redirect_that_wants_a_login_gets_an_anonymous_one() {
    let (fake, other) = (FakeUpstream::start().await, other_host().await);
    fake.set_auth(Auth::Token("puller".into(), "pass-word-1".into()));
    other.set_auth(Auth::AnonymousToken);
    let image = fake.publish_image("demo", "v1", &[]);
    other.publish_image("data/demo", "v1", &[]);
    let location = format!("{}/v2/data/demo/manifests/v1", other.url());
    // Only callers that have logged in are redirected.
    let client = client(&leading_to(&other, upstream_with_credential(&fake.url())));
    client.manifest(&name("demo"), &reference("v1")).await.unwrap();
    fake.script("/manifests/", Fault::Redirect(307, location));
    let manifest = client.manifest(&name("demo"), &reference("v1")).await.unwrap();
    assert_eq!(entrepot_test_support::images::sha256(&manifest.bytes), image.manifest);

    let log = other.log();
    assert_eq!(log.iter().map(|entry| entry.status).collect::<Vec<_>>(), [401, 200, 200]);
    assert_eq!(log[1].authorization(), None, "the token was asked for by nobody in particular");
    assert!(log[2].authorization().unwrap().starts_with("Bearer "));
    // That token is only sent to its own host.
    let own = fake.log().last().unwrap().authorization().unwrap().to_owned();
    assert_ne!(Some(own.as_str()), log[2].authorization());

    // The other host's challenge does not get the credential, whatever it asks for.
    other.set_auth(Auth::Basic("puller".into(), "pass-word-1".into()));
    let denied = client.manifest(&name("demo"), &reference("v1")).await;
    assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
    assert!(other.log().iter().all(|entry| !entry.authorization().unwrap_or_default().starts_with("Basic ")));
}

#[tokio::test]
async fn r_up_06_redirects_are_bounded_and_never_leave_tls() {
    let fake = FakeUpstream::start().await;
    fake.script("GET ", Fault::Redirect(302, "/v2/demo/manifests/v1".into()));
    let looped = client_of(&fake).manifest(&name("demo"), &reference("v1")).await;
    assert!(matches!(looped, Err(Error::BadAnswer { .. })), "{looped:?}");
    assert_eq!(fake.request_count(), 6);

    let authority = Authority::new();
    let (secure, plain) = (FakeUpstream::start_tls(&authority).await, other_host().await);
    secure.script("GET ", Fault::Redirect(302, format!("{}/v2/demo/manifests/v1", plain.url())));
    let upstream = Upstream { ca_certificates: authority.pem(), ..upstream_at(&secure.url()) };
    let downgraded = client(&leading_to(&plain, upstream)).manifest(&name("demo"), &reference("v1")).await;
    assert!(matches!(downgraded, Err(Error::BadAnswer { .. })), "{downgraded:?}");
    assert_eq!(plain.connections(), 0);
}

#[tokio::test]
async fn redirects_that_lead_nowhere_are_bad_answers() {
    let fake = FakeUpstream::start().await;
    let user = format!("http://user:password@{}/v2/", fake.address());
    for location in ["http://", "ftp://127.0.0.1/x", "file:///etc/passwd", &user] {
        fake.script_times("GET ", Fault::Redirect(307, location.into()), 1);
        let answer = client_of(&fake).manifest(&name("demo"), &reference("v1")).await.unwrap_err();
        assert!(matches!(answer, Error::BadAnswer { .. }), "{location}: {answer:?}");
        assert!(!answer.to_string().contains("password"), "{answer}");
    }
}

#[tokio::test]
async fn leave_for_private_addresses_covers_the_endpoints_own_host_and_port_only() {
    let (fake, canary, neighbour) = (FakeUpstream::start().await, Canary::new(), Canary::at("127.0.0.1"));
    let client = client_of(&fake);
    let port = canary.address.port();
    // 127.0.0.9 as a literal in several spellings, the endpoint's host at another port, and a name.
    let places = [
        canary.url(),
        format!("http://0x7f.9:{port}"),
        format!("http://[::ffff:127.0.0.9]:{port}"),
        format!("http://[64:ff9b::127.0.0.9]:{port}"),
        neighbour.url(),
        format!("http://localhost:{}", neighbour.address.port()),
    ];
    for place in &places {
        fake.script_times("GET ", Fault::Redirect(307, format!("{place}/x?signature=secret")), 1);
        let refused = client.manifest(&name("demo"), &reference("v1")).await.unwrap_err();
        assert!(matches!(refused, Error::AddressRefused { reason: Refusal::Private, .. }), "{place}: {refused:?}");
        assert!(!format!("{refused} {refused:?}").contains("secret"), "{refused:?}");
    }
    fake.set_auth(Auth::AnonymousToken);
    for place in &places {
        fake.set_realm(format!("{place}/token"));
        let refused = client.manifest(&name("demo"), &reference("v1")).await.unwrap_err();
        assert!(matches!(refused, Error::AddressRefused { reason: Refusal::Private, .. }), "{place}: {refused:?}");
    }
    canary.assert_untouched();
    neighbour.assert_untouched();
}

#[tokio::test]
async fn metadata_addresses_are_refused_with_any_leave() {
    let fake = FakeUpstream::start().await;
    let upstream = Upstream {
        allow_hosts: ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]"]
            .map(|host| host.parse().unwrap())
            .into(),
        ..upstream_at(&fake.url())
    };
    let client = client(&upstream);
    for place in ["http://169.254.169.254", "http://[fe80::1]", "http://[::ffff:a9fe:a9fe]", "http://2852039166"] {
        fake.script_times("GET ", Fault::Redirect(307, format!("{place}/latest/meta-data")), 1);
        let refused = client.manifest(&name("demo"), &reference("v1")).await.unwrap_err();
        assert!(matches!(refused, Error::AddressRefused { reason: Refusal::Forbidden, .. }), "{place}: {refused:?}");
    }
}

#[tokio::test]
async fn an_endpoint_at_a_private_address_wants_leave_as_literal_and_as_name() {
    let fake = FakeUpstream::start().await;
    fake.publish_image("demo", "v1", &[]);
    let by_name = format!("http://localhost:{}", fake.address().port());
    for url in [&fake.url(), &by_name] {
        let mut upstream = upstream_at(url);
        assert!(client(&upstream).manifest(&name("demo"), &reference("v1")).await.is_ok(), "{url}");
        upstream.allow_private_addresses = false;
        upstream.allow_hosts = vec![upstream.endpoint.host_and_port()];
        let refused = client(&upstream).manifest(&name("demo"), &reference("v1")).await;
        assert!(matches!(refused, Err(Error::AddressRefused { reason: Refusal::Private, .. })), "{url}: {refused:?}");
    }
    assert_eq!(fake.request_count(), 2);
}

#[tokio::test]
async fn a_name_without_address_is_told_apart() {
    // A label that is too long is refused without asking a name server.
    let url = format!("http://{}.invalid", "x".repeat(64));
    let away = client(&upstream_at(&url)).manifest(&name("demo"), &reference("v1")).await;
    assert!(matches!(away, Err(Error::Away { trouble: Trouble::Name, .. })), "{away:?}");
}
