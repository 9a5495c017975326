//! Sends single requests, to allowed addresses only.

use std::error::Error as StdError;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use entrepot_domain::{Hops, Upstream};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderValue, VIA};
use reqwest::{Certificate, Request, Response, redirect};
use tracing::Instrument as _;
use url::{Host, Url};
use uuid::Uuid;

use crate::egress::{self, AllowedReach, Policy, Refusal};
use crate::error::{BuildError, Error, Trouble};
use crate::limits::Limits;
use crate::metrics::RequestMetrics;

const USER_AGENT: &str = concat!("entrepot/", env!("CARGO_PKG_VERSION"));

/// Two clients, since a resolver sees a name but not the port: which of them is used depends on whether private
/// addresses are allowed at the place. Connections are never shared between the two.
pub(crate) struct Transport {
    policy: Policy,
    public: reqwest::Client,
    private: Option<reqwest::Client>,
    metrics: RequestMetrics,
    /// The value of `Via` for requests that start here.
    via: HeaderValue,
}

impl Transport {
    pub(crate) fn new(
        upstream: &Upstream,
        registry: Uuid,
        limits: &Limits,
        metrics: RequestMetrics,
    ) -> Result<Self, BuildError> {
        let policy = Policy::of(upstream);
        Ok(Self {
            public: client(upstream, limits, AllowedReach::Public)?,
            private: policy.gives_leave().then(|| client(upstream, limits, AllowedReach::Private)).transpose()?,
            policy,
            metrics,
            via: via(&Hops::default().and(registry)),
        })
    }

    /// Sends one request and waits for the head of its answer. It follows no redirects and does not judge the status.
    ///
    /// Trace headers are not passed on, since they do not concern the upstream. `Via` is, so that registries that ask
    /// each other in a circle notice it.
    pub(crate) async fn send(&self, mut request: Request) -> Result<Response, Error> {
        request.headers_mut().entry(VIA).or_insert_with(|| self.via.clone());
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
            (AllowedReach::Private, Some(private)) => private,
            (AllowedReach::Private | AllowedReach::Public, _) => &self.public,
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
        keep_allowed(found, leave).map_err(|reason| Error::AddressRefused { host, reason })
    }
}

/// The value of `Via` for a request with these hops.
pub(crate) fn via(hops: &Hops) -> HeaderValue {
    HeaderValue::try_from(hops.to_string()).expect("ids and commas are visible ASCII")
}

/// The host and port of a URL, if it may be requested at all.
pub(crate) fn place(url: &Url) -> Result<(String, u16), Error> {
    let bare = url.username().is_empty() && url.password().is_none();
    match (url.scheme(), url.host_str(), url.port_or_known_default()) {
        ("http" | "https", Some(host), Some(port)) if bare => Ok((host.to_owned(), port)),
        _ => Err(Error::bad("names a URL that is neither `http` nor `https`, or holds a user")),
    }
}

/// Classifies a network error. The URL is removed, since it may contain a signature.
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

/// Finds an error of one type among the causes of `error`, also inside an `io::Error`, which does not show its inner
/// error as a source.
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

fn client(upstream: &Upstream, limits: &Limits, leave: AllowedReach) -> Result<reqwest::Client, BuildError> {
    let pem = upstream.ca_certificates.trim();
    let authorities = Certificate::from_pem_bundle(pem.as_bytes()).map_err(|_| BuildError::CaCertificates)?;
    if authorities.is_empty() && !pem.is_empty() {
        return Err(BuildError::CaCertificates);
    }
    let builder = || {
        reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            // A proxy from the environment would connect to addresses that were not checked here.
            .no_proxy()
            .connect_timeout(limits.connect)
            .dns_resolver(GuardedResolver { leave })
    };
    match builder().tls_certs_merge(authorities).build() {
        // A machine without any certificate authorities can still talk to an upstream that needs none.
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

fn keep_allowed(found: Vec<SocketAddr>, leave: AllowedReach) -> Result<Vec<SocketAddr>, Refusal> {
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

/// Resolves names to their allowed addresses only; connections are made to exactly these.
struct GuardedResolver {
    leave: AllowedReach,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let leave = self.leave;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(NoAddress)?;
            let refused = |reason| RefusedName { host: name.as_str().to_owned(), reason };
            let addresses = keep_allowed(found.collect(), leave).map_err(refused)?;
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
