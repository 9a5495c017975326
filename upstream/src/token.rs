//! Tokens: they are requested from token servers and kept while they are valid. Any number of waiting callers share one
//! request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use entrepot_domain::Secret;
use entrepot_domain::upstream::Credential;
use moka::future::Cache;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use url::{Url, form_urlencoded};

use crate::body;
use crate::error::{Error, Login, Refuser, Trouble};
use crate::limits::Limits;
use crate::login::basic;
use crate::request;
use crate::transport::{Transport, place};

/// How many tokens are kept per upstream.
const KEPT_TOKENS: u64 = 10_000;
/// The user name under which Docker's tools store a refresh token in place of a password.
const IDENTITY_TOKEN_USER: &str = "<token>";
const CLIENT_ID: &str = "entrepot";
/// How many redirects of a token server are followed.
const REDIRECTS: usize = 3;

/// The scope of a token, and the login with which it was obtained.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TokenKey {
    pub(crate) realm: Url,
    pub(crate) service: Option<String>,
    pub(crate) scope: Option<String>,
    pub(crate) login: Login,
}

/// A token as the value of the header that carries it.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    header: Secret<HeaderValue>,
    lifetime: Duration,
}

impl Token {
    pub(crate) fn header(&self) -> HeaderValue {
        self.header.expose().clone()
    }
}

/// The tokens of one upstream.
#[derive(Debug)]
pub(crate) struct Tokens {
    transport: Arc<Transport>,
    limits: Limits,
    kept: Cache<TokenKey, Arc<Token>>,
}

impl Tokens {
    pub(crate) fn new(transport: Arc<Transport>, limits: Limits) -> Self {
        let kept = Cache::builder().max_capacity(KEPT_TOKENS).expire_after(TokenExpiry).build();
        Self { transport, limits, kept }
    }

    /// A token for `key`: a kept one, or a new one, which one caller requests for all that wait.
    pub(crate) async fn get(&self, key: &TokenKey, credential: Option<&Credential>) -> Result<Arc<Token>, Error> {
        let fresh = async { self.exchange(key, credential).await.map(Arc::new) };
        self.kept.try_get_with_by_ref(key, fresh).await.map_err(|error: Arc<Error>| (*error).clone())
    }

    /// Drops a token that a host has refused, unless it has been replaced by a newer one.
    pub(crate) async fn forget(&self, key: &TokenKey, refused: &Arc<Token>) {
        if self.kept.get(key).await.is_some_and(|kept| Arc::ptr_eq(&kept, refused)) {
            self.kept.invalidate(key).await;
        }
    }

    async fn exchange(&self, key: &TokenKey, credential: Option<&Credential>) -> Result<Token, Error> {
        let exchanged = tokio::time::timeout(self.limits.token, self.try_forms(key, credential)).await;
        exchanged.unwrap_or_else(|_| Err(Error::timed_out()))
    }

    /// GET comes first. POST is used only with an identity token, or if the server does not support GET.
    async fn try_forms(&self, key: &TokenKey, credential: Option<&Credential>) -> Result<Token, Error> {
        let identity = credential.filter(|credential| credential.username == IDENTITY_TOKEN_USER);
        if let Some(identity) = identity {
            let posted = self.send(key, post(key, identity)?, Some(identity)).await?;
            // Token servers that do not support POST answer with one of these.
            if !matches!(posted.status().as_u16(), 400 | 401 | 404 | 405) {
                return self.read(key, posted).await;
            }
            body::discard(posted).await;
        }
        let got = self.send(key, get(&key.realm, key, credential)?, credential).await?;
        match credential {
            Some(credential) if identity.is_none() && matches!(got.status().as_u16(), 404 | 405) => {
                body::discard(got).await;
                let posted = self.send(key, post(key, credential)?, Some(credential)).await?;
                self.read(key, posted).await
            }
            _ => self.read(key, got).await,
        }
    }

    /// Sends a request, and follows redirects by GET. The credential is sent along only to the same host and port.
    async fn send(
        &self,
        key: &TokenKey,
        request: Request,
        mut credential: Option<&Credential>,
    ) -> Result<Response, Error> {
        let (mut url, is_post) = (request.url().clone(), request.method() == Method::POST);
        let mut response = self.transport.send(request).await?;
        for _ in 0..REDIRECTS {
            let Some(next) = request::next_hop(&url, &response)? else { return Ok(response) };
            body::discard(response).await;
            credential = credential.filter(|_| is_same_host(&url, &next));
            // The parameters of a form are not in the address to which a redirect leads.
            let request = if is_post { get(&next, key, credential)? } else { get_at(next.clone(), credential)? };
            response = self.transport.send(request).await?;
            url = next;
        }
        match request::next_hop(&url, &response)? {
            None => Ok(response),
            Some(_) => Err(Error::bad(format!("has a token server that redirects more than {REDIRECTS} times"))),
        }
    }

    async fn read(&self, key: &TokenKey, response: Response) -> Result<Token, Error> {
        let status = response.status();
        if status != StatusCode::OK {
            return Err(self.refusal(key, &response));
        }
        let body = body::read(response, self.limits.token_body_bytes, self.limits.token).await?;
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|_| Error::bad("has a token server whose answer is not a token"))?;
        answer.into_token()
    }

    fn refusal(&self, key: &TokenKey, response: &Response) -> Error {
        let status = response.status();
        match status.as_u16() {
            // This is also how registries avoid revealing whether something private exists.
            401 | 403 => {
                let host = place(response.url()).map(|(host, _)| host).unwrap_or_default();
                Error::Denied { host, status: status.as_u16(), login: key.login, by: Refuser::TokenServer }
            }
            429 => request::throttled_error(response, &self.limits),
            508 => Error::Loop,
            408 | 500.. => Error::Away { status: Some(status.as_u16()), trouble: Trouble::Status, source: None },
            status => Error::bad(format!("has a token server that answers with status {status}")),
        }
    }
}

/// Whether a redirect stays at the host that got the credential: on the same host and port, or from HTTP to TLS, both
/// at their default ports.
fn is_same_host(url: &Url, next: &Url) -> bool {
    let (from, to) = (url.port_or_known_default(), next.port_or_known_default());
    let is_upgrade = url.scheme() == "http" && from == Some(80) && next.scheme() == "https" && to == Some(443);
    url.host() == next.host() && (from == to || is_upgrade)
}

/// A request at `realm`, or at its redirect, with the scope in the address.
fn get(realm: &Url, key: &TokenKey, credential: Option<&Credential>) -> Result<Request, Error> {
    let mut url = realm.clone();
    {
        let mut query = url.query_pairs_mut();
        query.extend_pairs(key.service.iter().map(|service| ("service", service)));
        query.extend_pairs(key.scope.iter().flat_map(|scope| scope.split(' ')).map(|scope| ("scope", scope)));
    }
    get_at(url, credential)
}

fn get_at(url: Url, credential: Option<&Credential>) -> Result<Request, Error> {
    let mut request = Request::new(Method::GET, url);
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
    if let Some(credential) = credential {
        request.headers_mut().insert(AUTHORIZATION, basic(credential)?);
    }
    Ok(request)
}

fn post(key: &TokenKey, credential: &Credential) -> Result<Request, Error> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("client_id", CLIENT_ID);
    form.extend_pairs(key.service.iter().map(|service| ("service", service)));
    form.extend_pairs(key.scope.iter().map(|scope| ("scope", scope)));
    let password = credential.password.expose();
    if credential.username == IDENTITY_TOKEN_USER {
        form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", password);
    } else {
        form.append_pair("grant_type", "password").append_pair("username", &credential.username);
        form.append_pair("password", password);
    }
    let mut request = Request::new(Method::POST, key.realm.clone());
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    *request.body_mut() = Some(form.finish().into());
    Ok(request)
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

impl Answer {
    fn into_token(self) -> Result<Token, Error> {
        let text = [self.token, self.access_token].into_iter().flatten().find(|text| !text.is_empty());
        let text = text.ok_or_else(|| Error::bad("has a token server that answers without a token"))?;
        let mut header = HeaderValue::try_from(format!("Bearer {text}"))
            .map_err(|_| Error::bad("has a token server whose token fits into no header"))?;
        header.set_sensitive(true);
        Ok(Token { header: Secret::new(header), lifetime: lifetime(self.expires_in) })
    }
}

/// How long a token is used: nine tenths of its life, counted from its receipt, since clocks differ.
fn lifetime(expires_in_seconds: Option<f64>) -> Duration {
    const SHORTEST: f64 = 60.0;
    const LONGEST: f64 = 24.0 * 60.0 * 60.0;
    let seconds = expires_in_seconds.filter(|seconds| seconds.is_finite()).unwrap_or(SHORTEST);
    Duration::from_secs_f64(seconds.clamp(SHORTEST, LONGEST) * 0.9)
}

struct TokenExpiry;

impl moka::Expiry<TokenKey, Arc<Token>> for TokenExpiry {
    fn expire_after_create(&self, _: &TokenKey, token: &Arc<Token>, _: Instant) -> Option<Duration> {
        Some(token.lifetime)
    }

    fn expire_after_update(
        &self,
        _: &TokenKey,
        token: &Arc<Token>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(token.lifetime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_credential_follows_a_redirect_to_the_same_host_and_port_and_from_http_to_tls_alone() {
        for (from, to, goes_along) in [
            ("https://auth.example/token", "https://auth.example/auth/token", true),
            ("https://auth.example/token", "https://AUTH.example:443/token", true),
            ("https://auth.example/token", "https://auth.example:8443/token", false),
            ("https://auth.example/token", "https://sub.auth.example/token", false),
            ("http://auth.example/token", "https://auth.example/token", true),
            ("http://auth.example:8080/token", "https://auth.example/token", false),
            ("http://auth.example/token", "https://auth.example:8443/token", false),
            ("http://auth.example/token", "https://other.example/token", false),
        ] {
            assert_eq!(is_same_host(&from.parse().unwrap(), &to.parse().unwrap()), goes_along, "{from} {to}");
        }
    }

    #[test]
    fn r_authu_05_a_token_is_renewed_at_nine_tenths_of_its_life() {
        assert_eq!(lifetime(Some(300.0)), Duration::from_secs(270));
        assert_eq!(lifetime(None), Duration::from_secs(54));
        assert_eq!(lifetime(Some(1.0)), Duration::from_secs(54));
        assert_eq!(lifetime(Some(-5.0)), Duration::from_secs(54));
        assert_eq!(lifetime(Some(f64::INFINITY)), Duration::from_secs(54));
        assert_eq!(lifetime(Some(1e300)), Duration::from_secs(77760));
    }

    #[test]
    fn r_edge_34_a_token_lives_from_when_it_came_whatever_the_upstreams_clock_says() {
        for issued in ["1999-01-01T00:00:00Z", "2999-01-01T00:00:00Z", "yesterday"] {
            let text = format!(r#"{{"token":"a","expires_in":300,"issued_at":"{issued}"}}"#);
            let token = serde_json::from_str::<Answer>(&text).unwrap().into_token().unwrap();
            assert_eq!(token.lifetime, Duration::from_secs(270));
        }
    }

    #[test]
    fn answers_hold_a_token_under_either_name() {
        let read = |text: &str| serde_json::from_str::<Answer>(text).unwrap().into_token();
        assert_eq!(read(r#"{"token":"a"}"#).unwrap().header(), "Bearer a");
        assert_eq!(read(r#"{"token":"","access_token":"b","expires_in":300}"#).unwrap().header(), "Bearer b");
        assert!(matches!(read("{}"), Err(Error::BadAnswer { .. })));
        assert!(matches!(read(r#"{"token":"a\nb"}"#), Err(Error::BadAnswer { .. })));
        assert!(!format!("{:?}", read(r#"{"token":"hunter22"}"#)).contains("hunter22"));
    }
}
