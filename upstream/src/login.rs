//! Who is told what: which host gets which token, and who may learn the credential.
//!
//! What a host wants is remembered per host and repository, so that a token goes only to the host that asked for it.
//! The credential serves the upstream's own endpoint and nobody else; hosts that redirects lead to get anonymous tokens.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use entrepot_domain::Upstream;
use entrepot_domain::upstream::{Credential, Endpoint, HostAndPort};
use moka::future::Cache;
use reqwest::header::{HeaderMap, HeaderValue};
use url::Url;

use crate::challenge::Challenge;
use crate::error::{Error, Login};
use crate::limits::Limits;
use crate::token::{Token, TokenKey, Tokens};
use crate::transport::{Transport, place};

/// How many challenges are remembered per upstream, and for how long: longer than any token lives.
const REMEMBERED_CHALLENGES: u64 = 10_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(48 * 60 * 60);

/// Where a login holds: a host, and what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// Scheme, host and port.
    origin: String,
    /// `repository:<name>:pull` of the repository that is asked for; `None` for the base of the API.
    scope: Option<String>,
}

impl Place {
    /// The place that a URL is at.
    pub(crate) fn of(url: &Url) -> Self {
        let path = url.path().strip_prefix("/v2/").unwrap_or_default();
        let name = ["/manifests/", "/blobs/"].iter().find_map(|kind| Some(path.rsplit_once(kind)?.0));
        let scope = name.map(|name| format!("repository:{name}:pull"));
        Self { origin: url.origin().ascii_serialization(), scope }
    }
}

/// What a request carries to be let in.
#[derive(Clone, Debug)]
pub(crate) enum Pass {
    /// A token, and what it is kept under.
    Token(TokenKey, Arc<Token>),
    /// The credential itself.
    Basic(HeaderValue),
}

impl Pass {
    pub(crate) fn header(&self) -> HeaderValue {
        match self {
            Self::Token(_, token) => token.header(),
            Self::Basic(header) => header.clone(),
        }
    }
}

/// The logins of one upstream.
pub(crate) struct Logins {
    endpoint: Endpoint,
    credential: Option<Credential>,
    /// Hosts besides the endpoint's own that may be given the credential.
    realm_hosts: Vec<HostAndPort>,
    challenges: Cache<Place, Challenge>,
    tokens: Tokens,
}

impl Logins {
    pub(crate) fn new(upstream: &Upstream, transport: Arc<Transport>, limits: Limits) -> Self {
        let known = upstream.kind.profile().realm_hosts.iter();
        let known = known.map(|host| HostAndPort { host: (*host).to_owned(), port: None });
        Self {
            endpoint: upstream.endpoint.clone(),
            credential: upstream.credential.clone(),
            realm_hosts: known.chain(upstream.allow_hosts.iter().cloned()).collect(),
            challenges: Cache::builder().max_capacity(REMEMBERED_CHALLENGES).time_to_idle(REMEMBERED_FOR).build(),
            tokens: Tokens::new(transport, limits),
        }
    }

    /// As whom the host of `place` is asked.
    pub(crate) fn login(&self, place: &Place) -> Login {
        self.credential_for(place).map_or(Login::Anonymous, |_| Login::Credential)
    }

    /// What let requests in at `place` before; `None` if nothing is remembered, or what is no longer works.
    pub(crate) async fn remembered(&self, place: &Place) -> Result<Option<Pass>, Error> {
        let Some(challenge) = self.challenges.get(place).await else { return Ok(None) };
        match self.pass(place, challenge).await {
            Ok(pass) => Ok(Some(pass)),
            Err(error) if error.may_retry() => Err(error),
            Err(_) => {
                self.challenges.invalidate(place).await;
                Ok(None)
            }
        }
    }

    /// Forgets what no longer lets requests in.
    pub(crate) async fn forget(&self, place: &Place, pass: &Pass) {
        self.challenges.invalidate(place).await;
        if let Pass::Token(key, token) = pass {
            self.tokens.forget(key, token).await;
        }
    }

    /// Answers the challenge that a host at `place` has put; `None` if there is none that can be answered.
    pub(crate) async fn answer(&self, place: &Place, headers: &HeaderMap) -> Result<Option<Pass>, Error> {
        let Some(challenge) = Challenge::of(headers) else { return Ok(None) };
        if challenge == Challenge::Basic && self.credential_for(place).is_none() {
            return Ok(None);
        }
        let pass = self.pass(place, challenge.clone()).await?;
        self.challenges.insert(place.clone(), challenge).await;
        Ok(Some(pass))
    }

    async fn pass(&self, place: &Place, challenge: Challenge) -> Result<Pass, Error> {
        let credential = self.credential_for(place);
        match (challenge, credential) {
            (Challenge::Bearer { realm, service, scope }, credential) => {
                self.check_realm(&realm, self.login(place))?;
                let scope = scope.or_else(|| place.scope.clone());
                let key = TokenKey { realm, service, scope, login: self.login(place) };
                let token = self.tokens.get(&key, credential).await?;
                Ok(Pass::Token(key, token))
            }
            (Challenge::Basic, Some(credential)) => Ok(Pass::Basic(basic(credential)?)),
            (Challenge::Basic, None) => Err(Error::bad("wants a login, and has no credential")),
        }
    }

    /// The credential, if `place` is at the upstream's own endpoint.
    fn credential_for(&self, place: &Place) -> Option<&Credential> {
        let own = self.endpoint.url().origin().ascii_serialization() == place.origin;
        self.credential.as_ref().filter(|_| own)
    }

    /// An upstream that has fallen into wrong hands names its own realm. The credential goes only where it was before,
    /// or where the operator lets it; anonymous tokens may come from anywhere that has a certificate.
    fn check_realm(&self, realm: &Url, login: Login) -> Result<(), Error> {
        let (host, port) = place(realm)?;
        if realm.scheme() != "https" && !self.endpoint.is_plain_http() {
            return Err(Error::RealmRefused { host, reason: "it is plain HTTP, while the upstream is not" });
        }
        let own = self.endpoint.url().host_str().is_some_and(|own| own.eq_ignore_ascii_case(&host));
        let known = || self.realm_hosts.iter().any(|known| known.covers(&host, port));
        if login == Login::Anonymous || own || known() {
            return Ok(());
        }
        let reason = "it is not the upstream's own host; if it is right, add it to the upstream's `allow_hosts`";
        Err(Error::RealmRefused { host, reason })
    }
}

/// The credential as a header.
pub(crate) fn basic(credential: &Credential) -> Result<HeaderValue, Error> {
    let pair = format!("{}:{}", credential.username, credential.password.expose());
    let mut header = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(pair)))
        .map_err(|_| Error::bad("has a credential that fits into no header"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_origin_and_the_repository_that_is_asked_for() {
        let place = |url: &str| Place::of(&url.parse().unwrap());
        let scoped = Place { origin: "https://r.example".into(), scope: Some("repository:a/b:pull".into()) };
        assert_eq!(place("https://r.example/v2/a/b/manifests/latest"), scoped);
        assert_eq!(place("https://r.example:443/v2/a/b/blobs/sha256:00?sig=x"), scoped);
        assert_eq!(
            place("https://r.example/v2/manifests/manifests/blobs").scope.as_deref(),
            Some("repository:manifests:pull")
        );
        assert_eq!(place("https://r.example/v2/").scope, None);
        assert_ne!(place("https://r.example:8443/v2/").origin, place("https://r.example/v2/").origin);
    }
}
