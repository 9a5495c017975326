//! The addresses at which a registry can be reached.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use entrepot_runtime::Listener;
use entrepot_runtime::tls::{Alpn, Tls};
use tracing::warn;

use super::{Args, tls};
use crate::error::Error;

/// All listening sockets; those of the registry and the API have no TLS yet.
pub(super) struct Sockets {
    registry: Listener,
    api: Listener,
    operations: Listener,
    addresses: Addresses,
}

/// All listeners, ready to be served.
pub(super) struct Listeners {
    pub(super) registry: Listener,
    pub(super) api: Listener,
    /// A separate listener at which the data plane of this process reaches the API, if the public one has a
    /// certificate: that need not name this address.
    pub(super) inner_api: Option<Listener>,
    pub(super) operations: Listener,
    /// The certificates for clients, which must be kept current.
    pub(super) tls: Vec<Arc<Tls>>,
    /// Where they listen; the configured ports may be 0.
    pub(super) addresses: Addresses,
}

/// The addresses of the listeners, as this machine reaches them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) registry: SocketAddr,
    pub(super) api: SocketAddr,
    pub(super) operations: SocketAddr,
}

impl Sockets {
    /// Listens at all addresses.
    pub(super) fn bind(args: &Args) -> Result<Self, Error> {
        check_clear_text(args)?;
        let registry = Listener::bind(args.registry_listen, "--registry-listen", None).map_err(|error| {
            let hint = if error.kind() == io::ErrorKind::AddrInUse && args.registry_listen.port() == 5000 {
                "; Debian's docker-registry starts itself there: `systemctl disable --now docker-registry`"
            } else {
                ""
            };
            Error::Failed(format!("{error}{hint}"))
        })?;
        let api = Listener::bind(args.api_listen, "--api-listen", None).map_err(failed)?;
        let operations = Listener::bind(args.operations_listen, "--operations-listen", None).map_err(failed)?;
        let addresses = Addresses {
            registry: reachable(&registry).map_err(failed)?,
            api: reachable(&api).map_err(failed)?,
            operations: reachable(&operations).map_err(failed)?,
        };
        Ok(Self { registry, api, operations, addresses })
    }

    /// The names that clients may use for this machine, as far as they were given.
    pub(super) fn names(&self, args: &Args) -> Vec<String> {
        let Addresses { registry, api, .. } = self.addresses;
        let url = args.external_url.as_ref().and_then(|url| url.host_str());
        let url = url.map(|host| host.trim_matches(['[', ']']).to_owned());
        [registry.ip().to_string(), api.ip().to_string()].into_iter().chain(url).collect()
    }

    /// The listeners, with TLS if there are files for it.
    pub(super) fn with_tls(self, files: Option<&tls::Files>) -> Result<Listeners, Error> {
        let Self { registry, api, operations, addresses } = self;
        let Some(files) = files else {
            return Ok(Listeners { registry, api, inner_api: None, operations, tls: vec![], addresses });
        };
        let (for_registry, for_api) = (files.load(Alpn::Http1And2)?, files.load(Alpn::Http2)?);
        let inner = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Ok(Listeners {
            registry: registry.with_tls(Arc::clone(&for_registry)),
            api: api.with_tls(Arc::clone(&for_api)),
            inner_api: Some(Listener::bind(inner, "--api-listen", None).map_err(failed)?),
            operations,
            tls: vec![for_registry, for_api],
            addresses,
        })
    }
}

/// Refuses clear text on other addresses than loopback, unless it was requested; then there is a warning.
fn check_clear_text(args: &Args) -> Result<(), Error> {
    let listeners = [
        ("gRPC", args.api_listen, args.allow_plain_api, "--allow-plain-api", "access keys"),
        ("registry", args.registry_listen, args.allow_plain_registry, "--allow-plain-registry", "logins and content"),
    ];
    for (what, addr, is_allowed, flag, readable) in listeners {
        if args.tls.is_on() || addr.ip().is_loopback() {
            continue;
        }
        if !is_allowed {
            return Err(Error::Usage(format!(
                "clear-text {what} away from loopback needs {flag}: at {addr} {readable} would cross the network \
                 readable; give it --tls-certificate-file and --tls-key-file, or --tls self-signed, or leave it on \
                 loopback, with a proxy that has TLS before it"
            )));
        }
        warn!(
            "{addr} is clear text ({flag}): {readable} can be read and changed on the network, unless something in front adds TLS"
        );
    }
    Ok(())
}

fn failed(error: io::Error) -> Error {
    Error::Failed(error.to_string())
}

/// The address of a listener, with loopback in place of "all addresses".
fn reachable(listener: &Listener) -> io::Result<SocketAddr> {
    let mut addr = listener.local_addr()?;
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(addr)
}
