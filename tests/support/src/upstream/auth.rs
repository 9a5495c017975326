//! Who may pull: challenges, and a token server.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::request::Parts;
use http::{StatusCode, header};
use serde_json::{Value, json};
use url::form_urlencoded;

/// The path of the token server.
pub(super) const TOKEN_PATH: &str = "/token";
const SERVICE: &str = "fake-upstream";

/// Who may pull.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Everybody, without authentication.
    #[default]
    Open,
    /// Everybody with a token, which everybody gets.
    AnonymousToken,
    /// Callers with a token that was issued for this user name and password.
    Token(String, String),
    /// Callers with this user name and password in every request.
    Basic(String, String),
    /// Callers without an `Authorization`, which is refused: like the storage that redirects lead to, with signed URLs.
    Unwanted,
}

/// The valid tokens, and how to get one.
pub(super) struct Tokens {
    pub(super) auth: Auth,
    pub(super) realm: Option<String>,
    pub(super) challenge: Option<String>,
    pub(super) lifetime: Duration,
    /// The scopes of each token.
    given: HashMap<String, Vec<String>>,
}

impl Default for Tokens {
    fn default() -> Self {
        let (realm, challenge, given) = (None, None, HashMap::new());
        Self { auth: Auth::Open, realm, challenge, lifetime: Duration::from_secs(300), given }
    }
}

impl Tokens {
    pub(super) fn revoke(&mut self) {
        self.given.clear();
    }

    /// Whether a request may pull from `repository`; if not, the challenge to answer with.
    pub(super) fn admit(&self, request: &Parts, repository: Option<&str>, base: &str) -> Result<(), String> {
        let scope = repository.map(|repository| format!("repository:{repository}:pull"));
        let authorization = authorization(request).unwrap_or_default();
        let admitted = match &self.auth {
            Auth::Open | Auth::Unwanted => true,
            Auth::Basic(user, password) => authorization == basic(user, password),
            Auth::AnonymousToken | Auth::Token(..) => {
                let scopes = authorization.strip_prefix("Bearer ").and_then(|token| self.given.get(token));
                scopes.is_some_and(|scopes| scope.as_ref().is_none_or(|scope| scopes.contains(scope)))
            }
        };
        if admitted {
            return Ok(());
        }
        Err(self.challenge.clone().unwrap_or_else(|| match &self.auth {
            Auth::Basic(..) => format!("Basic realm=\"{SERVICE}\""),
            Auth::Open | Auth::Unwanted | Auth::AnonymousToken | Auth::Token(..) => {
                let realm = self.realm.clone().unwrap_or_else(|| format!("{base}{TOKEN_PATH}"));
                let scope = scope.map(|scope| format!(",scope=\"{scope}\"")).unwrap_or_default();
                format!("Bearer realm=\"{realm}\",service=\"{SERVICE}\"{scope}")
            }
        }))
    }

    /// Answers a request for a token; `form` is the body of a POST.
    pub(super) fn give(&mut self, request: &Parts, form: &[u8]) -> (StatusCode, Value) {
        let query = request.uri.query().unwrap_or_default().as_bytes();
        let params: Vec<(String, String)> =
            [query, form].into_iter().flat_map(form_urlencoded::parse).map(|(k, v)| (k.into(), v.into())).collect();
        let param = |name: &str| params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let known = match &self.auth {
            Auth::Open | Auth::Unwanted | Auth::AnonymousToken => true,
            Auth::Token(user, password) | Auth::Basic(user, password) => {
                let posted = param("username") == Some(user) && param("password") == Some(password);
                posted
                    || param("refresh_token") == Some(password)
                    || authorization(request).as_deref() == Some(&basic(user, password))
            }
        };
        if !known {
            let error = json!({ "code": "UNAUTHORIZED", "message": "authentication required" });
            return (StatusCode::UNAUTHORIZED, json!({ "errors": [error] }));
        }
        let scopes = params.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' '));
        let scopes = scopes.map(str::to_owned).collect();
        let token = format!("token-{}", uuid::Uuid::new_v4());
        self.given.insert(token.clone(), scopes);
        (StatusCode::OK, json!({ "token": token, "access_token": token, "expires_in": self.lifetime.as_secs() }))
    }
}

fn authorization(request: &Parts) -> Option<String> {
    Some(request.headers.get(header::AUTHORIZATION)?.to_str().ok()?.to_owned())
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}
