//! Tokens, credentials, and which hosts may get them.

use std::sync::Arc;

use entrepot_domain::Upstream;
use entrepot_domain::upstream::HostAndPort;
use entrepot_test_support::{Auth, FakeUpstream, Fault};
use entrepot_upstream::{Error, Fault as Whose, Login, State};
use futures_util::future::join_all;

use crate::{Canary, client, client_of, name, read_blob, reference, upstream_at, upstream_with_credential};

const USER: &str = "puller";
const PASSWORD: &str = "pass-word-1";

fn token_login() -> Auth {
    Auth::Token(USER.into(), PASSWORD.into())
}

#[tokio::test]
async fn r_authu_03_an_anonymous_token_is_got_once_and_kept() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(Auth::AnonymousToken);
    let image = fake.publish_image("demo/app", "v1", &[vec![1; 1000]]);
    let client = client_of(&fake);
    client.manifest(&name("demo/app"), &reference("v1")).await.unwrap();
    read_blob(&client, "demo/app", &image.layers[0]).await.unwrap();
    let statuses: Vec<_> = fake.log().iter().map(|entry| (entry.path.clone(), entry.status)).collect();
    let (manifest, blob) = ("/v2/demo/app/manifests/v1", format!("/v2/demo/app/blobs/{}", image.layers[0]));
    let expected = [(manifest, 401), ("/token", 200), (manifest, 200), (&blob, 200)];
    assert_eq!(statuses, expected.map(|(path, status)| (path.to_owned(), status)));
    assert_eq!(fake.connections(), 1);
}

#[tokio::test]
async fn r_authu_05_many_callers_share_one_token() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(Auth::AnonymousToken);
    fake.publish_image("demo", "v1", &[]);
    let gate = fake.hold("/manifests/");
    gate.release_at(20);
    let client = Arc::new(client_of(&fake));
    let pulls = (0..20).map(|_| {
        let client = client.clone();
        async move { client.manifest(&name("demo"), &reference("v1")).await.map(|_| ()) }
    });
    assert!(join_all(pulls).await.iter().all(Result::is_ok));
    assert_eq!(fake.token_requests(), 1);
}

#[tokio::test]
async fn r_authu_05_a_token_that_is_refused_is_dropped_and_got_anew_exactly_once() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(token_login());
    fake.publish_image("demo", "v1", &[]);
    let client = client(&upstream_with_credential(&fake.url()));
    let pull = async || client.manifest(&name("demo"), &reference("v1")).await;
    pull().await.unwrap();
    fake.revoke_tokens();
    pull().await.unwrap();
    assert_eq!(fake.token_requests(), 2);

    // If a host refuses every token, it is asked with one new token, and then no more.
    fake.script("/manifests/", Fault::Status(401, None));
    let challenge = format!(r#"Bearer realm="{}/token""#, fake.url());
    fake.script("/manifests/", Fault::Header("www-authenticate".into(), challenge));
    let asked = fake.request_count();
    let denied = pull().await.unwrap_err();
    assert!(matches!(denied, Error::Denied { status: 401, login: Login::Credential, .. }), "{denied:?}");
    assert_eq!(denied.fault(), Whose::Us);
    assert_eq!(client.health().state, State::CredentialRefused);
    assert_eq!(fake.token_requests(), 3);
    assert_eq!(fake.request_count() - asked, 4);
}

#[tokio::test]
async fn r_authu_08_a_basic_challenge_is_answered_with_the_credential_and_remembered() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(Auth::Basic(USER.into(), PASSWORD.into()));
    fake.publish_image("demo", "v1", &[]);
    let logged_in = client(&upstream_with_credential(&fake.url()));
    logged_in.manifest(&name("demo"), &reference("v1")).await.unwrap();
    logged_in.manifest(&name("demo"), &reference("v1")).await.unwrap();
    assert_eq!(fake.request_count(), 3);
    let anonymous = client_of(&fake).manifest(&name("demo"), &reference("v1")).await;
    assert!(matches!(anonymous, Err(Error::Denied { login: Login::Anonymous, .. })), "{anonymous:?}");
}

#[tokio::test]
async fn r_authu_11_a_token_server_that_refuses_denies_by_who_was_asked_for() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(Auth::Token(USER.into(), "another".into()));
    fake.publish_image("demo", "v1", &[]);
    let anonymous = client_of(&fake).manifest(&name("demo"), &reference("v1")).await.unwrap_err();
    assert!(matches!(anonymous, Error::Denied { status: 401, login: Login::Anonymous, .. }), "{anonymous:?}");
    assert_eq!(anonymous.fault(), Whose::Client);
    let broken = client(&upstream_with_credential(&fake.url()));
    let broken = broken.manifest(&name("demo"), &reference("v1")).await.unwrap_err();
    assert!(matches!(broken, Error::Denied { status: 401, login: Login::Credential, .. }), "{broken:?}");
    assert!(!format!("{broken} {broken:?}").contains(PASSWORD));
}

#[tokio::test]
async fn r_authu_02_a_401_without_a_challenge_is_a_denial() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(Auth::AnonymousToken);
    fake.set_challenge("");
    let denied = client_of(&fake).manifest(&name("demo"), &reference("v1")).await;
    assert!(matches!(denied, Err(Error::Denied { status: 401, .. })), "{denied:?}");
    assert_eq!(fake.request_count(), 1);
}

#[tokio::test]
async fn r_authu_02_a_challenge_without_scope_gets_a_token_for_the_repository() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(Auth::AnonymousToken);
    fake.set_challenge(format!(r#"Bearer realm="{}/token?x=1""#, fake.url()));
    fake.publish_image("demo/app", "v1", &[]);
    client_of(&fake).manifest(&name("demo/app"), &reference("v1")).await.unwrap();
    assert_eq!(fake.log()[1].query, "x=1&scope=repository%3Ademo%2Fapp%3Apull");
}

#[tokio::test]
async fn r_authu_04_post_is_used_where_get_does_not_exist_and_for_identity_tokens() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(token_login());
    fake.publish_image("demo", "v1", &[]);
    fake.script("GET /token", Fault::Status(404, None));
    let upstream = upstream_with_credential(&fake.url());
    client(&upstream).manifest(&name("demo"), &reference("v1")).await.unwrap();
    assert_eq!(fake.log()[2].method, "POST");

    let mut identity: Upstream = upstream;
    identity.credential.as_mut().unwrap().username = "<token>".into();
    let asked = fake.request_count();
    client(&identity).manifest(&name("demo"), &reference("v1")).await.unwrap();
    let methods: Vec<_> = fake.log()[asked..].iter().map(|entry| entry.method.clone()).collect();
    assert_eq!(methods, ["GET", "POST", "GET"]);
}

#[tokio::test]
async fn r_authu_07_the_credential_goes_to_no_realm_without_leave() {
    let (fake, thief) = (FakeUpstream::start().await, FakeUpstream::start_at(([127, 0, 0, 2], 0).into()).await);
    fake.set_auth(token_login());
    fake.publish_image("demo", "v1", &[]);
    fake.set_realm(format!("{}/token", thief.url()));
    let mut upstream = upstream_with_credential(&fake.url());
    let refused = client(&upstream).manifest(&name("demo"), &reference("v1")).await.unwrap_err();
    let is_thief = |host: &HostAndPort| host.to_string() == thief.address().to_string();
    assert!(matches!(&refused, Error::RealmRefused { host, .. } if is_thief(host)), "{refused:?}");

    // Nor at another port of an allowed host, even if it is the upstream's own.
    upstream.allow_hosts = vec!["127.0.0.2:1".parse().unwrap(), "127.0.0.2".parse().unwrap()];
    let refused = client(&upstream).manifest(&name("demo"), &reference("v1")).await.unwrap_err();
    assert!(matches!(&refused, Error::RealmRefused { .. }), "{refused:?}");
    let beside = FakeUpstream::start().await;
    fake.set_realm(format!("{}/token", beside.url()));
    let refused = client(&upstream).manifest(&name("demo"), &reference("v1")).await.unwrap_err();
    assert!(matches!(&refused, Error::RealmRefused { .. }), "{refused:?}");
    assert_eq!((thief.connections(), beside.connections()), (0, 0));

    // If it is allowed, it is asked, and with the credential.
    fake.set_realm(format!("{}/token", thief.url()));
    upstream.allow_hosts = vec![thief.address().to_string().parse().unwrap()];
    let _ = client(&upstream).manifest(&name("demo"), &reference("v1")).await;
    assert!(thief.log()[0].authorization().unwrap().starts_with("Basic "));
}

#[tokio::test]
async fn r_authu_07_a_realm_must_be_https_if_the_upstream_is() {
    let authority = entrepot_test_support::tls::Authority::new();
    let fake = FakeUpstream::start_tls(&authority).await;
    fake.set_auth(Auth::AnonymousToken);
    fake.set_realm(format!("http://{}/token", fake.address()));
    let upstream = Upstream { ca_certificates: authority.pem(), ..upstream_at(&fake.url()) };
    let refused = client(&upstream).manifest(&name("demo"), &reference("v1")).await;
    assert!(matches!(refused, Err(Error::RealmRefused { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_token_server_that_misbehaves_is_told_from_one_that_refuses() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(Auth::AnonymousToken);
    let client = client_of(&fake);
    let play = async |fault| {
        fake.script_times("/token", fault, 4);
        let error = client.manifest(&name("demo"), &reference("v1")).await.unwrap_err();
        fake.heal();
        error
    };
    assert!(matches!(play(Fault::Html).await, Error::BadAnswer { .. }));
    assert!(matches!(play(Fault::Body(b"{}".into())).await, Error::BadAnswer { .. }));
    assert!(matches!(play(Fault::Body(vec![b' '; 70_000])).await, Error::TooLarge { .. }));
    assert!(matches!(play(Fault::Redirect(302, "/token".into())).await, Error::BadAnswer { .. }));
    assert!(matches!(play(Fault::Status(508, None)).await, Error::Loop));
    assert!(matches!(play(Fault::Status(503, None)).await, Error::Away { status: Some(503), .. }));
    // This comes last, since the upstream gets no requests for a while afterwards.
    assert!(matches!(play(Fault::Status(429, Some("5".into()))).await, Error::Throttled { retry_after: Some(_) }));
}

#[tokio::test]
async fn a_token_server_is_followed_by_get_and_the_credential_stays_with_its_host_and_port() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(token_login());
    fake.publish_image("demo", "v1", &[]);
    let pull = async |upstream: &Upstream| client(upstream).manifest(&name("demo"), &reference("v1")).await;
    let own = upstream_with_credential(&fake.url());
    let moved = "/token?scope=repository%3Ademo%3Apull";
    for status in [301, 302, 303, 307, 308] {
        fake.script_times("GET /token", Fault::Redirect(status, moved.into()), 3);
        let asked = fake.request_count();
        pull(&own).await.unwrap();
        let tokens: Vec<_> = fake.log()[asked..].iter().filter(|entry| entry.path == "/token").cloned().collect();
        assert_eq!(tokens.len(), 4, "{status}");
        assert!(tokens.iter().all(|entry| entry.method == "GET" && entry.authorization().is_some()), "{status}");
    }
    // If a form is refused, the same is requested by GET.
    fake.script_times("GET /token", Fault::Status(404, None), 1);
    fake.script_times("POST /token", Fault::Redirect(307, "/token?x=1".into()), 1);
    pull(&own).await.unwrap();
    let last = fake.log().into_iter().rfind(|entry| entry.path == "/token").unwrap();
    assert_eq!(
        (last.method.as_str(), last.query.as_str()),
        ("GET", "x=1&service=fake-upstream&scope=repository%3Ademo%3Apull")
    );

    // Other places are asked anonymously, even another port, and even if they redirect back.
    let other = FakeUpstream::start().await;
    other.script("/token", Fault::Redirect(302, format!("{}{moved}", fake.url())));
    fake.script_times("/token", Fault::Redirect(302, format!("{}/token", other.url())), 1);
    let allowed = Upstream { allow_hosts: vec![other.address().to_string().parse().unwrap()], ..own };
    let denied = pull(&allowed).await.unwrap_err();
    assert!(matches!(denied, Error::Denied { status: 401, .. }), "{denied:?}");
    assert_eq!(other.log()[0].authorization(), None);
    assert_eq!(fake.log().last().unwrap().authorization(), None);
}

#[tokio::test]
async fn a_token_server_that_leads_away_from_tls_or_to_a_forbidden_address_is_not_followed() {
    let authority = entrepot_test_support::tls::Authority::new();
    let (fake, canary) = (FakeUpstream::start_tls(&authority).await, Canary::new());
    fake.set_auth(Auth::AnonymousToken);
    let upstream = Upstream { ca_certificates: authority.pem(), ..upstream_at(&fake.url()) };
    for place in [canary.url(), format!("https://{}", canary.address), "https://169.254.169.254".to_owned()] {
        fake.script_times("/token", Fault::Redirect(302, format!("{place}/token")), 1);
        let error = client(&upstream).manifest(&name("demo"), &reference("v1")).await.unwrap_err();
        assert!(matches!(error, Error::BadAnswer { .. } | Error::AddressRefused { .. }), "{place}: {error:?}");
    }
    canary.assert_untouched();
}

#[tokio::test]
async fn f10_a_token_is_for_pulling_what_is_asked_for_whatever_the_challenge_says() {
    let fake = FakeUpstream::start().await;
    fake.publish_image("demo/app", "v1", &[]);
    let hostile = "repository:victim/private:pull,push,delete registry:catalog:*";
    let own = "scope=repository%3Ademo%2Fapp%3Apull";
    for (auth, upstream) in
        [(token_login(), upstream_with_credential(&fake.url())), (Auth::AnonymousToken, upstream_at(&fake.url()))]
    {
        fake.set_auth(auth);
        fake.set_challenge(format!(r#"Bearer realm="{}/token",scope="{hostile}""#, fake.url()));
        let client = client(&upstream);
        let asked = fake.request_count();
        client.manifest(&name("demo/app"), &reference("v1")).await.unwrap();
        client.tags(&name("demo/app")).await.unwrap();
        let _ = client.probe(None).await;
        let log = fake.log();
        let queries: Vec<_> =
            log[asked..].iter().filter(|entry| entry.path == "/token").map(|entry| entry.query.as_str()).collect();
        assert_eq!(queries, [own, ""], "one for the repository, and one for none");
    }
    // An anonymous caller may ask for whatever the host wants for pulling, and for scopes that are not about
    // repositories.
    for wanted in ["repository:demo/app:pull", "aws"] {
        fake.set_challenge(format!(r#"Bearer realm="{}/token",scope="{wanted}""#, fake.url()));
        let _ = client_of(&fake).manifest(&name("demo/app"), &reference("v1")).await;
        let last = fake.log().into_iter().rfind(|entry| entry.path == "/token").unwrap();
        assert_eq!(last.query, format!("scope={}", wanted.replace(':', "%3A").replace('/', "%2F")));
    }
    // After a redirect, the repository of the new address counts.
    fake.set_auth(token_login());
    fake.publish_image("moved", "v1", &[]);
    fake.script("/demo/app/", Fault::Redirect(307, format!("{}/v2/moved/manifests/v1", fake.url())));
    let client = client(&upstream_with_credential(&fake.url()));
    client.manifest(&name("demo/app"), &reference("v1")).await.unwrap();
    assert_eq!(
        fake.log().into_iter().rfind(|entry| entry.path == "/token").unwrap().query,
        "scope=repository%3Amoved%3Apull"
    );
}

#[tokio::test]
async fn a_challenge_is_found_among_others_and_with_bytes_that_are_no_ascii() {
    let fake = FakeUpstream::start().await;
    fake.set_auth(Auth::AnonymousToken);
    fake.publish_image("demo", "v1", &[]);
    for challenge in [
        "Negotiate, Bearer realm=\"URL/token\",service=\"s\"",
        "Negotiate YWJjZA==, Bearer realm=\"URL/token\",service=\"s\"",
        "Bearer realm=\"URL/token\",service=\"R\u{e9}gistre\"",
        "Bearer realm=\"URL/token\",service=\"s\",scope=",
    ] {
        fake.set_challenge(challenge.replace("URL", &fake.url()));
        let pulled = client_of(&fake).manifest(&name("demo"), &reference("v1")).await;
        assert!(pulled.is_ok(), "{challenge}: {pulled:?}");
    }
}
