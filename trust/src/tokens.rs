//! Tokens with which registry clients and nodes prove who they are.
//!
//! All are JSON Web Tokens signed with Ed25519. Each names its kind and its audience, so that none can be used in place
//! of another: a login token is not a bearer token, and a token of one registry is not valid at another.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use chrono::{DateTime, SubsecRound, Utc};
use entrepot_domain::Secret;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::key_file::KeyBytes;

/// How long a login token is valid, as with ECR.
const LOGIN_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);
/// How long a node's token is valid.
const NODE_LIFETIME: Duration = Duration::from_secs(60);

/// How far another machine's clock may be ahead of ours. A token with a later issue time is refused.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// Signs and checks tokens. Clones share the key, which is never printed.
#[derive(Clone)]
pub struct Tokens(Arc<Keys>);

struct Keys {
    signing: EncodingKey,
    checking: DecodingKey,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It has expired.
    #[error("the token has expired")]
    Expired,
    /// It is not one of ours, or is for something else.
    #[error("the token is not valid here")]
    Invalid,
}

/// The content of a login token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginClaims {
    /// The principal.
    pub principal_uid: Uuid,
    /// The access key with which it was obtained.
    pub key_id: String,
    /// When it expires.
    pub expire_time: DateTime<Utc>,
}

/// The content of a bearer token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BearerClaims {
    /// The principal; `None` for an anonymous caller.
    pub principal_uid: Option<Uuid>,
    /// The access key that it is based on.
    pub key_id: Option<String>,
    /// The permitted actions.
    pub access: Vec<Access>,
}

/// The content of a node's token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeClaims {
    pub node_id: String,
}

/// The permitted actions on a repository, as in registries' tokens: `{"type":"repository","name":…,"actions":[…]}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "AccessOnWire", try_from = "AccessOnWire")]
pub struct Access {
    pub repository: String,
    /// The actions, such as `pull`.
    pub actions: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct AccessOnWire {
    r#type: String,
    name: String,
    actions: Vec<String>,
}

impl From<Access> for AccessOnWire {
    fn from(access: Access) -> Self {
        Self { r#type: "repository".to_owned(), name: access.repository, actions: access.actions }
    }
}

impl TryFrom<AccessOnWire> for Access {
    type Error = &'static str;

    fn try_from(wire: AccessOnWire) -> Result<Self, &'static str> {
        match wire.r#type.as_str() {
            "repository" => Ok(Self { repository: wire.name, actions: wire.actions }),
            _ => Err("the type of access must be `repository`"),
        }
    }
}

/// The three kinds of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Login,
    Bearer,
    Node,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    kind: Kind,
    aud: String,
    iat: i64,
    exp: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    access: Vec<Access>,
}

impl Tokens {
    pub(crate) fn new(seed: &KeyBytes) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&**seed).expect("Ed25519 has seeds of 32 bytes");
        let document = pair.to_pkcs8v1().expect("an Ed25519 key can be written");
        Self(Arc::new(Keys {
            signing: EncodingKey::from_ed_der(document.as_ref()),
            checking: DecodingKey::from_ed_der(pair.public_key().as_ref()),
        }))
    }

    /// A token with which a principal logs in to the registry, and its expiry time, 12 h from now.
    pub fn issue_login(
        &self,
        registry_id: Uuid,
        principal_uid: Uuid,
        key_id: &str,
        now: DateTime<Utc>,
    ) -> (Secret<String>, DateTime<Utc>) {
        let mut claims = Claims::new(Kind::Login, registry_id.to_string(), now, LOGIN_LIFETIME);
        claims.sub = Some(principal_uid.to_string());
        claims.key_id = Some(key_id.to_owned());
        (self.sign(&claims), expiry(now, LOGIN_LIFETIME))
    }

    /// A token for requests to the registry, and its expiry time. Without a principal it is an anonymous one.
    pub fn issue_bearer(
        &self,
        registry_id: Uuid,
        principal_uid: Option<Uuid>,
        key_id: Option<&str>,
        access: &[Access],
        now: DateTime<Utc>,
        lifetime: Duration,
    ) -> (Secret<String>, DateTime<Utc>) {
        let mut claims = Claims::new(Kind::Bearer, registry_id.to_string(), now, lifetime);
        claims.sub = principal_uid.map(|uid| uid.to_string());
        claims.key_id = key_id.map(ToOwned::to_owned);
        claims.access = access.to_vec();
        (self.sign(&claims), expiry(now, lifetime))
    }

    /// A token with which a node proves itself to `audience`, valid for 60 s.
    pub fn issue_node(&self, node_id: &str, audience: &str, now: DateTime<Utc>) -> Secret<String> {
        let mut claims = Claims::new(Kind::Node, audience.to_owned(), now, NODE_LIFETIME);
        claims.sub = Some(node_id.to_owned());
        self.sign(&claims)
    }

    /// Checks a login token of this registry.
    ///
    /// # Errors
    /// If it has expired, or is not one.
    pub fn verify_login(&self, registry_id: Uuid, token: &str, now: DateTime<Utc>) -> Result<LoginClaims, TokenError> {
        let claims = self.verify(Kind::Login, &registry_id.to_string(), token, now)?;
        Ok(LoginClaims {
            principal_uid: claims.sub.as_deref().and_then(|uid| uid.parse().ok()).ok_or(TokenError::Invalid)?,
            key_id: claims.key_id.ok_or(TokenError::Invalid)?,
            expire_time: DateTime::from_timestamp_secs(claims.exp).ok_or(TokenError::Invalid)?,
        })
    }

    /// Checks a bearer token of this registry.
    ///
    /// # Errors
    /// If it has expired, or is not one.
    pub fn verify_bearer(
        &self,
        registry_id: Uuid,
        token: &str,
        now: DateTime<Utc>,
    ) -> Result<BearerClaims, TokenError> {
        let claims = self.verify(Kind::Bearer, &registry_id.to_string(), token, now)?;
        let principal_uid = claims.sub.map(|uid| uid.parse()).transpose().map_err(|_| TokenError::Invalid)?;
        Ok(BearerClaims { principal_uid, key_id: claims.key_id, access: claims.access })
    }

    /// Checks a node's token for `audience`.
    ///
    /// # Errors
    /// If it has expired, or is not one.
    pub fn verify_node(&self, audience: &str, token: &str, now: DateTime<Utc>) -> Result<NodeClaims, TokenError> {
        let claims = self.verify(Kind::Node, audience, token, now)?;
        Ok(NodeClaims { node_id: claims.sub.ok_or(TokenError::Invalid)? })
    }

    fn sign(&self, claims: &Claims) -> Secret<String> {
        let token = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &self.0.signing);
        Secret::new(token.expect("plain claims can be signed"))
    }

    fn verify(&self, kind: Kind, audience: &str, token: &str, now: DateTime<Utc>) -> Result<Claims, TokenError> {
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.set_required_spec_claims(&["exp", "aud"]);
        rules.set_audience(&[audience]);
        // Otherwise the library would read the system's clock.
        rules.validate_exp = false;
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.0.checking, &rules);
        let claims = decoded.map_err(|_| TokenError::Invalid)?.claims;
        let is_from_the_future = claims.iat > expiry(now, CLOCK_SKEW).timestamp();
        if claims.kind != kind || is_from_the_future {
            return Err(TokenError::Invalid);
        }
        if claims.exp <= now.timestamp() { Err(TokenError::Expired) } else { Ok(claims) }
    }
}

impl Claims {
    fn new(kind: Kind, aud: String, now: DateTime<Utc>, lifetime: Duration) -> Self {
        let exp = expiry(now, lifetime).timestamp();
        Self { kind, aud, iat: now.timestamp(), exp, sub: None, key_id: None, access: Vec::new() }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(…)")
    }
}

/// Tokens count time in whole seconds.
fn expiry(now: DateTime<Utc>, lifetime: Duration) -> DateTime<Utc> {
    now.trunc_subsecs(0) + lifetime
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterKey;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    const REGISTRY: Uuid = Uuid::from_u128(1);
    const OTHER_REGISTRY: Uuid = Uuid::from_u128(2);
    const PRINCIPAL: Uuid = Uuid::from_u128(3);

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 500_000_000).unwrap()
    }

    fn access() -> Vec<Access> {
        vec![Access { repository: "hub/library/nginx".to_owned(), actions: vec!["pull".to_owned()] }]
    }

    /// A token with this header and these claims, signed by `sign`.
    fn forge(header: &str, claims: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(sign(text.as_bytes()));
        format!("{text}.{signature}")
    }

    #[test]
    fn a_login_token_says_whose_it_is_for_twelve_hours() {
        let tokens = ClusterKey::generate().tokens();
        let (token, expire_time) = tokens.issue_login(REGISTRY, PRINCIPAL, "ak1", at(0));
        assert_eq!(expire_time.timestamp(), at(12 * 60 * 60).timestamp());
        let claims = LoginClaims { principal_uid: PRINCIPAL, key_id: "ak1".to_owned(), expire_time };
        let verify = |registry, now| tokens.verify_login(registry, token.expose(), now);
        assert_eq!(verify(REGISTRY, at(12 * 60 * 60 - 1)), Ok(claims));
        assert_eq!(verify(REGISTRY, at(12 * 60 * 60)), Err(TokenError::Expired));
        assert_eq!(verify(OTHER_REGISTRY, at(0)), Err(TokenError::Invalid));
        assert_eq!(verify(OTHER_REGISTRY, at(24 * 60 * 60)), Err(TokenError::Invalid));
    }

    #[test]
    fn a_bearer_token_says_what_may_be_done_also_for_nobody_in_particular() {
        let tokens = ClusterKey::generate().tokens();
        for (principal_uid, key_id) in [(Some(PRINCIPAL), Some("ak1")), (None, None)] {
            let lifetime = Duration::from_secs(300);
            let (token, expire_time) = tokens.issue_bearer(REGISTRY, principal_uid, key_id, &access(), at(0), lifetime);
            assert_eq!(expire_time.timestamp(), at(300).timestamp());
            let claims = BearerClaims { principal_uid, key_id: key_id.map(ToOwned::to_owned), access: access() };
            assert_eq!(tokens.verify_bearer(REGISTRY, token.expose(), at(299)), Ok(claims));
            assert_eq!(tokens.verify_bearer(REGISTRY, token.expose(), at(300)), Err(TokenError::Expired));
            assert_eq!(tokens.verify_bearer(OTHER_REGISTRY, token.expose(), at(0)), Err(TokenError::Invalid));
        }
    }

    #[test]
    fn a_node_token_names_its_audience_and_lives_a_minute() {
        let tokens = ClusterKey::generate().tokens();
        let token = tokens.issue_node("node-1", "control-plane", at(0));
        let node = NodeClaims { node_id: "node-1".to_owned() };
        assert_eq!(tokens.verify_node("control-plane", token.expose(), at(59)), Ok(node));
        assert_eq!(tokens.verify_node("control-plane", token.expose(), at(60)), Err(TokenError::Expired));
        assert_eq!(tokens.verify_node("node-2", token.expose(), at(0)), Err(TokenError::Invalid));
    }

    #[test]
    fn a_token_from_the_future_is_invalid() {
        let tokens = ClusterKey::generate().tokens();
        let audience = REGISTRY.to_string();
        let (login, _) = tokens.issue_login(REGISTRY, PRINCIPAL, "ak1", at(300));
        let (bearer, _) = tokens.issue_bearer(REGISTRY, None, None, &[], at(300), Duration::from_secs(60));
        let node = tokens.issue_node("node-1", &audience, at(300));
        for (now, is_good) in [(at(0), true), (at(-1), false), (at(-400 * 24 * 60 * 60), false)] {
            assert_eq!(tokens.verify_login(REGISTRY, login.expose(), now).is_ok(), is_good, "{now}");
            assert_eq!(tokens.verify_bearer(REGISTRY, bearer.expose(), now).is_ok(), is_good, "{now}");
            assert_eq!(tokens.verify_node(&audience, node.expose(), now).is_ok(), is_good, "{now}");
        }
    }

    #[test]
    fn no_kind_passes_for_another() {
        let tokens = ClusterKey::generate().tokens();
        let audience = REGISTRY.to_string();
        let (login, _) = tokens.issue_login(REGISTRY, PRINCIPAL, "ak1", at(0));
        let (bearer, _) =
            tokens.issue_bearer(REGISTRY, Some(PRINCIPAL), Some("ak1"), &[], at(0), Duration::from_secs(60));
        let node = tokens.issue_node(&PRINCIPAL.to_string(), &audience, at(0));
        for (token, is) in [(&login, Kind::Login), (&bearer, Kind::Bearer), (&node, Kind::Node)] {
            let token = token.expose();
            assert_eq!(tokens.verify_login(REGISTRY, token, at(1)).is_ok(), is == Kind::Login, "{is:?}");
            assert_eq!(tokens.verify_bearer(REGISTRY, token, at(1)).is_ok(), is == Kind::Bearer, "{is:?}");
            assert_eq!(tokens.verify_node(&audience, token, at(1)).is_ok(), is == Kind::Node, "{is:?}");
        }
    }

    #[test]
    fn a_changed_token_or_one_of_another_key_is_invalid() {
        let tokens = ClusterKey::generate().tokens();
        let (token, _) = tokens.issue_login(REGISTRY, PRINCIPAL, "ak1", at(0));
        let verify = |text: &str| tokens.verify_login(REGISTRY, text, at(0));
        for at in (0..token.expose().len()).step_by(3) {
            let mut changed = token.expose().clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(verify(std::str::from_utf8(&changed).unwrap()), Err(TokenError::Invalid), "byte {at}");
        }
        for text in ["", ".", "..", "a.b.c", &token.expose()[..40], &format!("{}.x", token.expose())] {
            assert_eq!(verify(text), Err(TokenError::Invalid), "{text}");
        }
        let (foreign, _) = ClusterKey::generate().tokens().issue_login(REGISTRY, PRINCIPAL, "ak1", at(0));
        assert_eq!(verify(foreign.expose()), Err(TokenError::Invalid));
    }

    #[test]
    fn no_other_algorithm_is_accepted_whatever_the_header_says() {
        let tokens = ClusterKey::generate().tokens();
        let public_key = tokens.0.checking.try_get_as_bytes().unwrap().to_vec();
        let claims = format!(
            r#"{{"kind":"login","aud":"{REGISTRY}","iat":0,"exp":{},"sub":"{PRINCIPAL}","key_id":"ak1"}}"#,
            at(60).timestamp()
        );
        // Using the public key as a shared secret is the classic confusion attack.
        let hmac = |text: &[u8]| {
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &public_key);
            aws_lc_rs::hmac::sign(&key, text).as_ref().to_vec()
        };
        for algorithm in ["HS256", "HS512", "none", "None", "NONE", "RS256", "ES256", "EdDSA", ""] {
            for sign in [&hmac as &dyn Fn(&[u8]) -> Vec<u8>, &|_| Vec::new()] {
                let header = format!(r#"{{"typ":"JWT","alg":"{algorithm}"}}"#);
                let token = forge(&header, &claims, sign);
                assert_eq!(tokens.verify_login(REGISTRY, &token, at(0)), Err(TokenError::Invalid), "{algorithm}");
            }
        }
    }

    #[test]
    fn access_looks_as_it_does_in_registries_tokens() {
        let text = r#"[{"type":"repository","name":"hub/library/nginx","actions":["pull"]}]"#;
        assert_eq!(serde_json::to_string(&access()).unwrap(), text);
        assert_eq!(serde_json::from_str::<Vec<Access>>(text).unwrap(), access());
        assert!(serde_json::from_str::<Vec<Access>>(&text.replace("repository", "registry")).is_err());
    }
}
