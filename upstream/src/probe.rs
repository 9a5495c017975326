//! Tests an upstream step by step, and reports which step works, which does not, and what to do about it.

use std::time::Duration;

use entrepot_domain::upstream::{HostAndPort, RequestKind};
use entrepot_domain::{Reference, RepositoryName, Upstream};
use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Method, Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::body;
use crate::client::Client;
use crate::egress::Refusal;
use crate::error::{Error, Login, RealmFault, Trouble};
use crate::site::SiteClient;

/// One step towards a pull from an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeStep {
    pub kind: ProbeKind,
    /// How it went.
    pub state: ProbeState,
    /// What was found, or what went wrong and what to do about it.
    pub message: String,
}

/// The steps in the order in which a pull takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// The host's name is resolved, and its addresses are allowed.
    Name,
    /// A connection is opened.
    Tcp,
    /// The certificate is checked.
    Tls,
    /// The base of the API answers like a registry, and a token is obtained if one is needed.
    Token,
    /// A manifest is requested.
    Manifest,
}

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeState {
    /// It works.
    Passed,
    /// It does not work.
    Failed,
    /// It was not tried: an earlier step failed, or there is nothing to try.
    Skipped,
}

type Step = (ProbeState, String);

impl Client {
    /// Tries every step of a pull. The last step requests `sample`; without one it is skipped.
    ///
    /// The result has every step once, in order. The client's limits apply to each.
    pub async fn probe(&self, sample: Option<(&RepositoryName, &Reference)>) -> Vec<ProbeStep> {
        const KINDS: [ProbeKind; 5] =
            [ProbeKind::Name, ProbeKind::Tcp, ProbeKind::Tls, ProbeKind::Token, ProbeKind::Manifest];
        let site = self.site_client(0);
        let mut steps = Vec::with_capacity(KINDS.len());
        let mut failed = false;
        for kind in KINDS {
            let (state, message) = if failed {
                (ProbeState::Skipped, "not tried, since an earlier step failed".to_owned())
            } else {
                site.try_step(kind, sample).await.unwrap_or_else(|why| (ProbeState::Failed, why))
            };
            failed |= state == ProbeState::Failed;
            steps.push(ProbeStep { kind, state, message });
        }
        steps
    }
}

impl SiteClient {
    async fn try_step(&self, kind: ProbeKind, sample: Option<(&RepositoryName, &Reference)>) -> Result<Step, String> {
        match kind {
            ProbeKind::Name => self.try_name().await,
            ProbeKind::Tcp => self.try_tcp().await,
            ProbeKind::Tls => self.try_tls().await,
            ProbeKind::Token => self.try_token(sample).await,
            ProbeKind::Manifest => self.try_manifest(sample).await,
        }
    }

    async fn try_name(&self) -> Result<Step, String> {
        let addresses = self.addresses().await?;
        let list: Vec<_> = addresses.iter().take(4).map(|address| address.ip().to_string()).collect();
        passed(format!("`{}` is at {}", self.host(), list.join(", ")))
    }

    async fn try_tcp(&self) -> Result<Step, String> {
        let addresses = self.addresses().await?;
        let connect = self.requests().limits.connect;
        match timeout(connect, TcpStream::connect(&addresses[..])).await {
            Ok(Ok(stream)) => {
                let peer = stream.peer_addr().map(|peer| peer.to_string()).unwrap_or_default();
                passed(format!("connected to {peer}"))
            }
            Ok(Err(error)) => {
                Err(format!("no connection to `{}`: {error}; {}", self.host(), remedy(Trouble::Connection)))
            }
            Err(_) => Err(format!(
                "no connection to `{}` within {}; {}",
                self.host(),
                seconds(connect),
                remedy(Trouble::TimedOut)
            )),
        }
    }

    async fn try_tls(&self) -> Result<Step, String> {
        if self.site.endpoint.is_plain_http() {
            return skipped("the endpoint is plain HTTP");
        }
        // Any answer at all proves that TLS works.
        let requests = self.requests();
        let base = Request::new(Method::GET, self.site.endpoint.base_url());
        match timeout(requests.limits.head, requests.transport.send(base)).await {
            Ok(Ok(_)) => passed(format!("the certificate of `{}` is valid", self.host())),
            Ok(Err(error)) => Err(self.explain(&error)),
            Err(_) => Err(self.explain(&Error::timed_out())),
        }
    }

    async fn try_token(&self, sample: Option<(&RepositoryName, &Reference)>) -> Result<Step, String> {
        let requests = self.requests();
        let base = self.ask(RequestKind::List, Method::GET, self.site.endpoint.base_url());
        let answer = requests.look(&base).await.map_err(|error| self.explain(&error))?;
        if let Some(why) = no_registry(&answer) {
            return Err(format!("`{}` is no registry: {why}; check the upstream's endpoint", self.host()));
        }
        let ask = match sample {
            Some((repository, reference)) => self.manifest_ask(Method::HEAD, repository, reference),
            None => base,
        };
        match requests.try_login(&ask).await {
            Ok(None) => passed("the upstream wants no login".to_owned()),
            Ok(Some(Login::Anonymous)) => passed("got an anonymous token".to_owned()),
            Ok(Some(Login::Credential)) => passed("logged in with the upstream's credential".to_owned()),
            Err(error) => Err(self.explain(&error)),
        }
    }

    async fn try_manifest(&self, sample: Option<(&RepositoryName, &Reference)>) -> Result<Step, String> {
        let Some((repository, reference)) = sample else {
            return skipped("no image is known to be there; name one to have it asked for");
        };
        let separator = if matches!(reference, Reference::Tag(_)) { ':' } else { '@' };
        let image = format!("{repository}{separator}{reference}");
        let described = self.describe_manifest(repository, reference).await;
        let found = match described.map(|described| described.digest) {
            // Some registries do not support HEAD, and answer as if there were no such manifest.
            Ok(None) | Err(Error::NotFound) => self.manifest(repository, reference).await.map(|_| None),
            head => head,
        };
        match found {
            Ok(Some(digest)) => passed(format!("the upstream has `{image}`, which is {digest}")),
            Ok(None) => passed(format!("the upstream has `{image}`")),
            Err(Error::NotFound) => Err(format!(
                "the upstream has no `{image}`; name an image that it has, and check the rule's `upstream_prefix`"
            )),
            Err(error) => Err(self.explain(&error)),
        }
    }

    async fn addresses(&self) -> Result<Vec<std::net::SocketAddr>, String> {
        let requests = self.requests();
        let found = timeout(requests.limits.connect, requests.transport.addresses(self.site.endpoint.url())).await;
        found.unwrap_or_else(|_| Err(Error::timed_out())).map_err(|error| self.explain(&error))
    }

    fn host(&self) -> String {
        self.site.endpoint.host_and_port().to_string()
    }

    /// What went wrong, and what to do about it.
    fn explain(&self, error: &Error) -> String {
        match error {
            Error::AddressRefused { reason: Refusal::Private, .. } => format!(
                "{error}; if this upstream is meant to be inside your network, set its `allow_private_addresses`"
            ),
            Error::Denied { login: Login::Credential, .. } => {
                format!("{error}; check its user name and password, and whether they may pull this repository")
            }
            Error::Denied { login: Login::Anonymous, .. } => {
                format!(
                    "{error}; it is private or does not exist: give the upstream a credential, or name another image"
                )
            }
            Error::Throttled { .. } | Error::OverBudget { .. } => {
                format!("{error}; wait, or give the upstream a credential, which has a budget of its own")
            }
            Error::Away { trouble, source, .. } => {
                let cause = source.as_deref().map(|cause| format!(" ({})", innermost(cause))).unwrap_or_default();
                format!("{error}{cause}; {}", remedy(*trouble))
            }
            Error::NotFound => format!("{error}; check its endpoint"),
            Error::BadAnswer { .. } => format!("{error}; is `{}` a registry?", self.host()),
            Error::Loop => format!("{error}; check its endpoint, and which upstreams the registry there has"),
            Error::RealmRefused { host, reason: RealmFault::Elsewhere } => {
                format!("{error}: `{}`", allowing(self.requests().logins.upstream(), host))
            }
            Error::AddressRefused { .. } | Error::RealmRefused { .. } | Error::WrongDigest | Error::TooLarge { .. } => {
                error.to_string()
            }
        }
    }
}

/// Why the server at the base of the API is not a registry. A missing header with the API's name is no reason.
fn no_registry(response: &Response) -> Option<String> {
    let headers = response.headers();
    let is_named = headers.contains_key("docker-distribution-api-version");
    match response.status() {
        StatusCode::OK if body::is_web_page(headers) && !is_named => {
            Some("it answers `/v2/` with a web page".to_owned())
        }
        StatusCode::OK => None,
        StatusCode::UNAUTHORIZED if headers.contains_key(WWW_AUTHENTICATE) => None,
        StatusCode::UNAUTHORIZED => Some("it wants a login at `/v2/`, and does not say which".to_owned()),
        status => Some(format!("it answers `/v2/` with status {}", status.as_u16())),
    }
}

/// The command that allows `host` to get the credential, in addition to the hosts that are allowed already.
fn allowing(upstream: &Upstream, host: &HostAndPort) -> String {
    let hosts = upstream.allow_hosts.iter().chain([host]).map(|host| format!(" --allow-host {host}"));
    format!("entrepot upstream update {}{}", upstream.id, hosts.collect::<String>())
}

fn passed(message: String) -> Result<Step, String> {
    Ok((ProbeState::Passed, message))
}

fn skipped(message: &str) -> Result<Step, String> {
    Ok((ProbeState::Skipped, message.to_owned()))
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn remedy(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Name => "check the endpoint's spelling and this machine's name server",
        Trouble::Connection => "check the endpoint's port, that the registry runs, and that no firewall is in between",
        Trouble::Tls => {
            "if its certificate is from your own authority, give that to the upstream as `ca_certificates`; \
             if it speaks plain HTTP, its endpoint is `http://…` with `allow_plain_http`"
        }
        Trouble::TimedOut => "check that the registry runs and that no firewall drops packets on the way",
        Trouble::BrokenOff => "check that what listens there is a registry, and whether it wants TLS",
        Trouble::Status => "the registry has a problem of its own; try again later",
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f32())
}
