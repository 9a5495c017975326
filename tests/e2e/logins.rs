//! Who may pull: login tokens, bearer tokens, access keys, and their end.

use anyhow::Result;
use entrepot_proto::v1 as pb;
use entrepot_test_support::{FakeUpstream, images};
use http::{Method, StatusCode};

use crate::registry::{Registry, send};

#[tokio::test]
async fn r_base_01_and_auths_01_nobody_gets_a_challenge_and_somebody_a_registry() -> Result<()> {
    let registry = Registry::start().await?;
    let answer = send(registry.anonymous(Method::GET, "/v2/")).await?;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"));
    let challenges: Vec<_> = answer.headers.get_all("www-authenticate").iter().map(|v| v.to_str().unwrap()).collect();
    assert!(challenges[0].starts_with(&format!("Bearer realm=\"{}/token\",service=", registry.url)), "{challenges:?}");
    assert!(challenges[1].starts_with("Basic realm="), "{challenges:?}");
    assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));

    let answer = send(registry.anonymous(Method::GET, "/v2/demo/app/manifests/v1")).await?;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.header("www-authenticate").is_some_and(|text| text.contains("scope=\"repository:demo/app:pull\"")));
    assert_eq!(registry.get("/v2/").await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn a_login_token_is_a_password_and_buys_bearer_tokens_for_what_was_asked() -> Result<()> {
    let upstream = FakeUpstream::start().await;
    upstream.publish_image("app", "v1", &[images::random_bytes(1, 100)]);
    let registry = Registry::start().await?;
    registry.rule("demo", &upstream).await?;
    let login = registry.login_tokens().get_login_token(pb::GetLoginTokenRequest {}).await?.into_inner().token;
    let as_aws = |request: reqwest::RequestBuilder| request.basic_auth("AWS", Some(&login));
    assert_eq!(send(as_aws(registry.anonymous(Method::GET, "/v2/"))).await?.status, StatusCode::OK);

    let path = "/token?service=x&scope=repository:demo/app:pull,push&scope=repository:ext/x:pull&scope=bogus";
    let answer = send(as_aws(registry.anonymous(Method::GET, path))).await?;
    let token: serde_json::Value = serde_json::from_slice(&answer.bytes)?;
    assert_eq!(token["token"], token["access_token"]);
    let bearer = token["token"].as_str().unwrap_or_default().to_owned();
    let with = |path: &str| registry.anonymous(Method::GET, path).bearer_auth(&bearer);
    assert_eq!(send(with("/v2/demo/app/manifests/v1")).await?.status, StatusCode::OK);
    let other = send(with("/v2/demo/other/manifests/v1")).await?;
    assert_eq!(other.status, StatusCode::UNAUTHORIZED);
    assert!(other.header("www-authenticate").is_some_and(|text| text.contains("insufficient_scope")));

    // The OAuth2 form, as containerd sends it.
    let form = format!("grant_type=password&username=AWS&scope=repository:demo/app:pull&password={login}");
    let posted = registry.anonymous(Method::POST, "/token").header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(send(posted.body(form)).await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn wrong_expired_and_revoked_credentials_are_refused_at_once() -> Result<()> {
    let registry = Registry::start_with_manual_clock().await?;
    let ping = |user: &str, password: &str| registry.anonymous(Method::GET, "/v2/").basic_auth(user, Some(password));
    for (user, password) in [("admin", "wrong"), ("nobody", "x"), ("AWS", "a.b.c"), ("", "x")] {
        assert_eq!(send(ping(user, password)).await?.status, StatusCode::UNAUTHORIZED, "{user}");
    }

    let principal = pb::Principal { permission_set: pb::PermissionSet::Puller.into(), ..Default::default() };
    let request = pb::CreatePrincipalRequest {
        principal_id: "robot".to_owned(),
        principal: Some(principal),
        request_id: String::new(),
    };
    registry.principals().create_principal(request).await?;
    let request = pb::CreateAccessKeyRequest { parent: "principals/robot".to_owned(), request_id: String::new() };
    let created = registry.access_keys().create_access_key(request).await?.into_inner();
    let key = created.access_key.expect("a key");
    // Case does not matter.
    for key_id in [key.key_id.clone(), key.key_id.to_ascii_lowercase()] {
        assert_eq!(send(ping(&key_id, &created.secret)).await?.status, StatusCode::OK, "{key_id}");
    }
    let answer = send(registry.anonymous(Method::GET, "/token").basic_auth(&key.key_id, Some(&created.secret))).await?;
    let token: serde_json::Value = serde_json::from_slice(&answer.bytes)?;
    let bearer = token["token"].as_str().unwrap_or_default().to_owned();
    let with_bearer = || registry.anonymous(Method::GET, "/v2/").bearer_auth(&bearer);
    assert_eq!(send(with_bearer()).await?.status, StatusCode::OK);

    registry.access_keys().revoke_access_key(pb::RevokeAccessKeyRequest { name: key.name }).await?;
    assert_eq!(send(ping(&key.key_id, &created.secret)).await?.status, StatusCode::UNAUTHORIZED);
    assert_eq!(send(with_bearer()).await?.status, StatusCode::UNAUTHORIZED, "so are the tokens that it bought");

    let login = registry.login_tokens().get_login_token(pb::GetLoginTokenRequest {}).await?.into_inner().token;
    registry.clock.advance(std::time::Duration::from_secs(12 * 3600 + 1));
    let expired = send(ping("AWS", &login)).await?;
    assert_eq!(expired.status, StatusCode::UNAUTHORIZED);
    assert!(String::from_utf8_lossy(&expired.bytes).contains("expired"));
    Ok(())
}
