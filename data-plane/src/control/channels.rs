//! Channels to the addresses of the control plane. One of them is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use entrepot_proto::node::v1::nodes_client::NodesClient;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tracing::info;
use uuid::Uuid;

use super::NodeToken;
use crate::config::{Config, limits};

/// A client that sends this node's token.
pub(crate) type Client = NodesClient<InterceptedService<Channel, NodeToken>>;

/// Channels to the addresses of the control plane. Clones share which one is in use.
#[derive(Clone)]
pub(crate) struct ControlChannels(Arc<Inner>);

struct Inner {
    replicas: Vec<(String, Channel)>,
    current: AtomicUsize,
    token: NodeToken,
}

/// The index of an address that was in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replica(usize);

impl ControlChannels {
    /// Channels to all addresses. They connect when they are used, and again after they broke.
    ///
    /// Which one is used first depends on the boot id, so that many nodes spread over the replicas.
    pub(crate) fn new(config: &Config, token: NodeToken, boot_id: Uuid) -> Result<Self, tonic::transport::Error> {
        let replicas: Result<Vec<_>, _> = config
            .control_apis
            .iter()
            .map(|uri| {
                let mut endpoint = Endpoint::from(uri.clone())
                    .connect_timeout(limits::CONTROL_CONNECT)
                    .http2_keep_alive_interval(limits::CONTROL_KEEP_ALIVE)
                    .keep_alive_timeout(limits::CONTROL_KEEP_ALIVE)
                    .keep_alive_while_idle(true);
                if uri.scheme_str() == Some("https") {
                    endpoint = endpoint.tls_config(tls(config.control_ca.as_deref()))?;
                }
                Ok((uri.to_string(), endpoint.connect_lazy()))
            })
            .collect();
        let replicas = replicas?;
        let first = usize::from(boot_id.as_bytes()[15]) % replicas.len().max(1);
        Ok(Self(Arc::new(Inner { replicas, current: AtomicUsize::new(first), token })))
    }

    /// A client of the replica in use; `None` if there is no control plane at all.
    pub(crate) fn client(&self) -> Option<(Replica, Client)> {
        let current = self.0.current.load(Ordering::Acquire);
        let (_, channel) = self.0.replicas.get(current)?;
        let channel = InterceptedService::new(channel.clone(), self.0.token.clone());
        Some((Replica(current), NodesClient::new(channel)))
    }

    /// A client of each address.
    pub(crate) fn clients(&self) -> Vec<Client> {
        let token = &self.0.token;
        let client = |channel: &Channel| NodesClient::new(InterceptedService::new(channel.clone(), token.clone()));
        self.0.replicas.iter().map(|(_, channel)| client(channel)).collect()
    }

    /// Switches to the next replica, unless another caller has switched away from this one already.
    pub(crate) fn fail_over(&self, from: Replica) {
        let next = (from.0 + 1) % self.0.replicas.len();
        let moved = self.0.current.compare_exchange(from.0, next, Ordering::AcqRel, Ordering::Acquire);
        if next != from.0 && moved.is_ok() {
            let (old, new) = (&self.0.replicas[from.0].0, &self.0.replicas[next].0);
            info!("switched from the control plane at {old} to the one at {new}");
        }
    }

    /// How many channels there are.
    pub(crate) fn len(&self) -> usize {
        self.0.replicas.len()
    }
}

/// The TLS settings: the control plane's certificate must come from these authorities, or from the machine's.
fn tls(ca: Option<&str>) -> ClientTlsConfig {
    match ca {
        Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
        None => ClientTlsConfig::new().with_native_roots(),
    }
}
