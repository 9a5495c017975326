//! The client with a scripted registry over real HTTP.

mod budgets;
mod content;
mod egress;
mod fallbacks;
mod login;
mod probe;
mod referrers;
mod tags;
mod troubles;

use std::net::SocketAddr;
use std::time::Duration;

use entrepot_domain::upstream::{Credential, Endpoint, PlainHttp};
use entrepot_domain::{Digest, Reference, RepositoryName, Secret, Upstream, UpstreamKind};
use entrepot_test_support::FakeUpstream;
use entrepot_upstream::{Client, Error, Limits};

/// The id of the registry that asks.
const REGISTRY: uuid::Uuid = uuid::Uuid::from_u128(0x000e_117e_2e90);

/// An upstream at `url` that may have a private address.
fn upstream_at(url: &str) -> Upstream {
    Upstream {
        uid: uuid::Uuid::from_u128(1),
        id: "fake".parse().expect("an id"),
        kind: UpstreamKind::Oci,
        endpoint: Endpoint::parse(url, PlainHttp::Allowed).expect("an endpoint"),
        allow_private_addresses: true,
        allow_hosts: Vec::new(),
        ca_certificates: String::new(),
        credential: None,
        budget: None,
        fallback_endpoints: Vec::new(),
        revision: 1,
    }
}

fn upstream_with_credential(url: &str) -> Upstream {
    let credential = Credential { username: "puller".into(), password: Secret::new("pass-word-1".into()) };
    Upstream { credential: Some(credential), ..upstream_at(url) }
}

/// Limits that are short enough for tests of timeouts.
fn short() -> Limits {
    Limits {
        connect: Duration::from_millis(300),
        head: Duration::from_millis(300),
        token: Duration::from_millis(300),
        stall: Duration::from_millis(300),
        retry_wait: Duration::from_millis(1),
        ..Limits::default()
    }
}

fn client(upstream: &Upstream) -> Client {
    let limits = Limits { retry_wait: Duration::from_millis(1), ..Limits::default() };
    Client::new(upstream, REGISTRY, limits).expect("a client")
}

fn client_of(fake: &FakeUpstream) -> Client {
    client(&upstream_at(&fake.url()))
}

fn name(text: &str) -> RepositoryName {
    text.parse().expect("a name")
}

fn reference(text: &str) -> Reference {
    text.parse().expect("a reference")
}

fn digest(text: &str) -> Digest {
    text.parse().expect("a digest")
}

/// Reads a blob to its end.
async fn read_blob(client: &Client, repository: &str, blob: &str) -> Result<Vec<u8>, Error> {
    use futures_util::TryStreamExt;
    let body = client.blob(&name(repository), &digest(blob)).await?;
    body.stream
        .try_fold(Vec::new(), async |mut all, chunk| {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await
}

/// A listener that nobody may connect to.
struct Canary {
    address: SocketAddr,
    listener: std::net::TcpListener,
}

impl Canary {
    /// Listens at another loopback address than the fake upstreams do, perhaps at the same port as one of them.
    fn new() -> Self {
        Self::at("127.0.0.9")
    }

    fn at(host: &str) -> Self {
        let listener = std::net::TcpListener::bind((host, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket can be told not to block");
        Self { address: listener.local_addr().expect("an address"), listener }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Panics if anybody has connected. The connection would be in the queue by now.
    fn assert_untouched(&self) {
        let error = self.listener.accept().expect_err("nobody connects to the canary");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}
