//! The addresses that a registry is reached at.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use entrepot_runtime::Listener;

use super::Args;
use crate::error::Error;

/// All sockets, listening.
pub(super) struct Listeners {
    pub(super) registry: Listener,
    pub(super) api: Listener,
    pub(super) operations: Listener,
    /// Where they listen; they may have been given port 0.
    pub(super) addresses: Addresses,
}

/// Where the sockets listen, as this machine itself reaches them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) registry: SocketAddr,
    pub(super) api: SocketAddr,
    pub(super) operations: SocketAddr,
}

impl Listeners {
    /// Listens at all addresses.
    pub(super) fn bind(args: &Args) -> Result<Self, Error> {
        if !args.api_listen.ip().is_loopback() && !args.allow_plain_api {
            return Err(Error::Usage(format!(
                "clear-text gRPC away from loopback needs --allow-plain-api: at {} access keys would cross the network \
                 readable; leave the API on loopback, with a proxy that has TLS before it",
                args.api_listen
            )));
        }
        let registry = Listener::bind(args.registry_listen, "--registry-listen", None).map_err(|error| {
            let hint = if error.kind() == io::ErrorKind::AddrInUse && args.registry_listen.port() == 5000 {
                "; Debian's docker-registry starts itself there: `systemctl disable --now docker-registry`"
            } else {
                ""
            };
            Error::Failed(format!("{error}{hint}"))
        })?;
        let failed = |error: io::Error| Error::Failed(error.to_string());
        let api = Listener::bind(args.api_listen, "--api-listen", None).map_err(failed)?;
        let operations = Listener::bind(args.operations_listen, "--operations-listen", None).map_err(failed)?;
        let addresses = Addresses {
            registry: reachable(&registry).map_err(failed)?,
            api: reachable(&api).map_err(failed)?,
            operations: reachable(&operations).map_err(failed)?,
        };
        Ok(Self { registry, api, operations, addresses })
    }
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
