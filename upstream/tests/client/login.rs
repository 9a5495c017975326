//! Tokens, credentials, and who may learn them.

use std::sync::Arc;

use entrepot_domain::Upstream;
use entrepot_test_support::{Auth, FakeUpstream, Fault};
use entrepot_upstream::{Error, Fault as Whose, Login, State};
use futures_util::future::join_all;

use crate::{client, client_of, name, read_blob, reference, upstream_at, upstream_with_credential};

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

    // A host that refuses every token is asked with one new token, and no more.
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
    assert!(matches!(&refused, Error::RealmRefused { host, .. } if host == "127.0.0.2"), "{refused:?}");
    assert_eq!(thief.connections(), 0);

    // With leave it is asked, and with the credential.
    upstream.allow_hosts = vec!["127.0.0.2".parse().unwrap()];
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
        fake.script_times("/token", fault, 3);
        let error = client.manifest(&name("demo"), &reference("v1")).await.unwrap_err();
        fake.heal();
        error
    };
    assert!(matches!(play(Fault::Html).await, Error::BadAnswer { .. }));
    assert!(matches!(play(Fault::Body(b"{}".into())).await, Error::BadAnswer { .. }));
    assert!(matches!(play(Fault::Body(vec![b' '; 70_000])).await, Error::TooLarge { .. }));
    assert!(matches!(play(Fault::Redirect(302, "/elsewhere".into())).await, Error::BadAnswer { .. }));
    assert!(matches!(play(Fault::Status(503, None)).await, Error::Away { status: Some(503), .. }));
    // The last one, since the upstream is asked nothing for a while then.
    assert!(matches!(play(Fault::Status(429, Some("5".into()))).await, Error::Throttled { retry_after: Some(_) }));
}
