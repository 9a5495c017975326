//! Puts single requests on the wire, to allowed addresses only.

use std::error::Error as StdError;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use entrepot_domain::Upstream;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Request, Response, redirect};
use tracing::Instrument as _;
use url::{Host, Url};

use crate::egress::{self, Leave, Policy, Refusal};
use crate::error::{BuildError, Error, Trouble};
use crate::limits::Limits;
use crate::metrics::RequestMetrics;

const USER_AGENT: &str = concat!("entrepot/", env!("CARGO_PKG_VERSION"));

/// Two clients, since a resolver sees a name but not the port: which of them is used depends on whether the place has
/// leave for private addresses, and connections are never shared between the two.
pub(crate) struct Transport {
    policy: Policy,
    public: reqwest::Client,
    private: Option<reqwest::Client>,
    metrics: RequestMetrics,
}

impl Transport {
    pub(crate) fn new(upstream: &Upstream, limits: &Limits, metrics: RequestMetrics) -> Result<Self, BuildError> {
        let policy = Policy::of(upstream);
        Ok(Self {
            public: client(upstream, limits, Leave::Public)?,
            private: policy.gives_leave().then(|| client(upstream, limits, Leave::Private)).transpose()?,
            policy,
            metrics,
        })
    }

    /// Sends one request and waits for the head of its answer. Follows nothing and judges no status.
    ///
    /// Nobody else's trace goes out with it: what the upstream is told is its business alone.
    pub(crate) async fn send(&self, request: Request) -> Result<Response, Error> {
        let (host, port) = place(request.url())?;
        let exchange = self.metrics.begin(request.method(), &host, port);
        let result = self.send_to(request, host, port).instrument(exchange.span()).await;
        exchange.end(&result);
        result
    }

    async fn send_to(&self, request: Request, host: String, port: u16) -> Result<Response, Error> {
        if let Some(ip) = literal(request.url()) {
            let refused = |reason| Error::AddressRefused { host: host.clone(), reason };
            self.policy.check(ip, &host, port).map_err(refused)?;
        }
        let client = match (self.policy.leave(&host, port), &self.private) {
            (Leave::Private, Some(private)) => private,
            (Leave::Private | Leave::Public, _) => &self.public,
        };
        client.execute(request).await.map_err(from_network)
    }

    /// The allowed addresses of a URL's host.
    pub(crate) async fn addresses(&self, url: &Url) -> Result<Vec<SocketAddr>, Error> {
        let (host, port) = place(url)?;
        let leave = self.policy.leave(&host, port);
        let found = match literal(url) {
            Some(ip) => Ok(vec![SocketAddr::new(ip, port)]),
            None => tokio::net::lookup_host((host.as_str(), port)).await.map(Iterator::collect),
        };
        let found = found.map_err(|error| Error::Away {
            status: None,
            trouble: Trouble::Name,
            source: Some(Arc::new(error)),
        })?;
        allowed(found, leave).map_err(|reason| Error::AddressRefused { host, reason })
    }
}

/// The host and port of a URL that may be asked at all.
pub(crate) fn place(url: &Url) -> Result<(String, u16), Error> {
    let bare = url.username().is_empty() && url.password().is_none();
    match (url.scheme(), url.host_str(), url.port_or_known_default()) {
        ("http" | "https", Some(host), Some(port)) if bare => Ok((host.to_owned(), port)),
        _ => Err(Error::bad("names a URL that is neither `http` nor `https`, or holds a user")),
    }
}

/// Turns what the network said into what it means. The URL is taken off, since it may hold a signature.
pub(crate) fn from_network(error: reqwest::Error) -> Error {
    let error = error.without_url();
    if let Some(RefusedName { host, reason }) = find(&error) {
        return Error::AddressRefused { host: host.clone(), reason: *reason };
    }
    let trouble = if error.is_timeout() {
        Trouble::TimedOut
    } else if find::<rustls::Error>(&error).is_some() {
        Trouble::Tls
    } else if find::<NoAddress>(&error).is_some() {
        Trouble::Name
    } else if error.is_connect() {
        Trouble::Connection
    } else {
        Trouble::BrokenOff
    };
    Error::Away { status: None, trouble, source: Some(Arc::new(error)) }
}

/// Looks for an error of one type behind `error`, also inside `io::Error`, which does not show its own as a source.
fn find<'e, T: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| error.source());
    }
    None
}

fn client(upstream: &Upstream, limits: &Limits, leave: Leave) -> Result<reqwest::Client, BuildError> {
    let pem = upstream.ca_certificates.trim();
    let authorities = Certificate::from_pem_bundle(pem.as_bytes()).map_err(|_| BuildError::CaCertificates)?;
    if authorities.is_empty() && !pem.is_empty() {
        return Err(BuildError::CaCertificates);
    }
    let builder = || {
        reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            // A proxy of the environment would connect to addresses that nobody here has checked.
            .no_proxy()
            .connect_timeout(limits.connect)
            .dns_resolver(GuardedResolver { leave })
    };
    match builder().tls_certs_merge(authorities).build() {
        // A machine without any authorities can still talk to an upstream that needs none.
        Err(_) if upstream.endpoint.is_plain_http() && pem.is_empty() => {
            builder().tls_certs_only([]).build().map_err(BuildError::Tls)
        }
        built => built.map_err(BuildError::Tls),
    }
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(ip) => Some(ip.into()),
        Host::Ipv6(ip) => Some(ip.into()),
        Host::Domain(_) => None,
    }
}

fn allowed(found: Vec<SocketAddr>, leave: Leave) -> Result<Vec<SocketAddr>, Refusal> {
    let mut refused = Refusal::Forbidden;
    let mut allowed = Vec::with_capacity(found.len());
    for address in found {
        match egress::check(address.ip(), leave) {
            Ok(()) => allowed.push(address),
            Err(reason) => refused = reason,
        }
    }
    if allowed.is_empty() { Err(refused) } else { Ok(allowed) }
}

/// Resolves names to those of their addresses that are allowed; connections are made to exactly these.
struct GuardedResolver {
    leave: Leave,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let leave = self.leave;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(NoAddress)?;
            let refused = |reason| RefusedName { host: name.as_str().to_owned(), reason };
            let addresses = allowed(found.collect(), leave).map_err(refused)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the name `{host}` was refused")]
struct RefusedName {
    host: String,
    reason: Refusal,
}

#[derive(Debug, thiserror::Error)]
#[error("the name has no address")]
struct NoAddress(#[source] std::io::Error);

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("policy", &self.policy).finish_non_exhaustive()
    }
}
