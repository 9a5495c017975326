//! Decides which host gets which token, and which may get the credential.
//!
//! What a host asks for is remembered per host and repository, so that a token goes only to the host that asked for it.
//! The credential is used only for the upstream's own endpoint; hosts behind redirects get anonymous tokens. We choose
//! the scope of a token that is issued for the credential, never the host that asks for it: an upstream that an
//! attacker controls would otherwise get a token for everything that the credential permits.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use entrepot_domain::upstream::{Credential, HostAndPort};
use entrepot_domain::{RepositoryName, Upstream};
use moka::future::Cache;
use reqwest::header::{HeaderMap, HeaderValue};
use url::Url;

use crate::challenge::Challenge;
use crate::error::{Error, Login, RealmFault};
use crate::limits::Limits;
use crate::token::{Token, TokenKey, Tokens};
use crate::transport::{Transport, place};

/// How many challenges are remembered per upstream, and for how long: longer than any token lives.
const REMEMBERED_CHALLENGES: u64 = 10_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(48 * 60 * 60);

/// What a login applies to: a host, and what is requested there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// Scheme, host and port.
    origin: String,
    /// `repository:<name>:pull` for the requested repository; `None` for the base of the API.
    scope: Option<String>,
}

impl Place {
    /// The place of a URL.
    pub(crate) fn of(url: &Url) -> Self {
        let scope = repository(url.path()).map(|name| format!("repository:{name}:pull"));
        Self { origin: url.origin().ascii_serialization(), scope }
    }

    /// The scope of a token that permits requests here. An anonymous caller has nothing to lose and may ask for the
    /// scope that the host wants, but only for pulling.
    fn scope(&self, login: Login, wanted: Option<String>) -> Option<String> {
        let wanted = wanted.filter(|wanted| login == Login::Anonymous && asks_to_pull(wanted));
        wanted.or_else(|| self.scope.clone())
    }
}

/// The repository in a path of the API.
fn repository(path: &str) -> Option<RepositoryName> {
    let (before, last) = path.strip_prefix("/v2/")?.rsplit_once('/')?;
    let (name, kind) = before.rsplit_once('/')?;
    let is_of_repository = matches!((kind, last), ("manifests" | "blobs" | "referrers", _) | ("tags", "list"));
    name.parse().ok().filter(|_| is_of_repository)
}

/// Whether all parts of a scope that concern repositories are about pulling, and nothing else.
fn asks_to_pull(scope: &str) -> bool {
    let scope = scope.to_ascii_lowercase();
    scope.split_ascii_whitespace().all(|part| !part.starts_with("repository") || part.ends_with(":pull"))
}

/// What a request carries to be admitted.
#[derive(Clone, Debug)]
pub(crate) enum Pass {
    /// A token, and the key under which it is kept.
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
    upstream: Upstream,
    challenges: Cache<Place, Challenge>,
    tokens: Tokens,
}

impl Logins {
    pub(crate) fn new(upstream: &Upstream, transport: Arc<Transport>, limits: Limits) -> Self {
        Self {
            upstream: upstream.clone(),
            challenges: Cache::builder().max_capacity(REMEMBERED_CHALLENGES).time_to_idle(REMEMBERED_FOR).build(),
            tokens: Tokens::new(transport, limits),
        }
    }

    /// The upstream of these logins.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// The login that is used at `place`.
    pub(crate) fn login(&self, place: &Place) -> Login {
        self.credential_for(place).map_or(Login::Anonymous, |_| Login::Credential)
    }

    /// What worked at `place` before; `None` if nothing is remembered, or if it no longer works.
    pub(crate) async fn cached_pass(&self, place: &Place) -> Result<Option<Pass>, Error> {
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

    /// Forgets a login that no longer works.
    pub(crate) async fn forget(&self, place: &Place, pass: &Pass) {
        self.challenges.invalidate(place).await;
        if let Pass::Token(key, token) = pass {
            self.tokens.forget(key, token).await;
        }
    }

    /// Answers the challenge of a host at `place`; `None` if there is none that can be answered.
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
                let scope = place.scope(self.login(place), scope);
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
        let own = self.upstream.endpoint.url().origin().ascii_serialization() == place.origin;
        self.upstream.credential.as_ref().filter(|_| own)
    }

    /// Checks that a realm may be used. An upstream that an attacker controls chooses its realm. The credential goes
    /// only to known places or where the operator allows it; anonymous tokens may come from any server with a valid
    /// certificate.
    fn check_realm(&self, realm: &Url, login: Login) -> Result<(), Error> {
        let (host, port) = place(realm)?;
        let refused = |reason| Err(Error::RealmRefused { host: HostAndPort { host, port: Some(port) }, reason });
        if realm.scheme() != "https" && !self.upstream.endpoint.is_plain_http() {
            return refused(RealmFault::PlainHttp);
        }
        if login == Login::Anonymous || self.upstream.may_know_credential(realm) {
            return Ok(());
        }
        refused(RealmFault::Elsewhere)
    }
}

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
        assert_eq!(place("https://r.example/v2/a/b/tags/list?n=1000"), scoped);
        assert_eq!(place("https://r.example/v2/a/b/referrers/sha256:00"), scoped);
        let named = "https://r.example/v2/x:pull,push%20repository:y/manifests/v1";
        for url in ["https://r.example/v2/", "https://r.example/other/a/manifests/v1", named] {
            assert_eq!(place(url).scope, None, "{url}");
        }
        assert_ne!(place("https://r.example:8443/v2/").origin, place("https://r.example/v2/").origin);
    }

    #[test]
    fn with_a_credential_a_token_is_for_pulling_what_is_asked_for_whatever_the_host_wants() {
        let place = Place::of(&"https://r.example/v2/a/b/manifests/latest".parse().unwrap());
        let scope = |login, wanted: &str| place.scope(login, Some(wanted.to_owned())).unwrap();
        let own = "repository:a/b:pull";
        for (wanted, anonymous) in [
            (own, own),
            ("repository:other:pull", "repository:other:pull"),
            ("aws", "aws"),
            ("registry:catalog:*", "registry:catalog:*"),
            ("repository:victim/private:pull,push,delete registry:catalog:*", own),
            ("repository:a/b:*", own),
            ("repository:a/b:pull repository:c:push", own),
            ("repository(plugin):a/b:push", own),
            ("repository", own),
            ("REPOSITORY:a/b:PUSH", own),
            ("repository:victim:push\trepository:a/b:pull", own),
        ] {
            assert_eq!(
                (scope(Login::Credential, wanted), scope(Login::Anonymous, wanted)),
                (own.into(), anonymous.into())
            );
        }
        assert_eq!(place.scope(Login::Anonymous, None).as_deref(), Some(own));
        let base = Place::of(&"https://r.example/v2/".parse().unwrap());
        assert_eq!(base.scope(Login::Credential, Some("repository:victim:pull".into())), None);
    }
}
